"""The proofs of convolutions on every release of JAX that is allowed, each in an environment of its own.

    python tests/every_release.py [RELEASE ...]            # all of cnnjax.releases.RELEASES, or those named
    python tests/every_release.py --chosen lowest highest  # the tests of fused programs alone, in a minute each
    python tests/every_release.py --admit RELEASE          # what a new release must pass: docs/releases.md

Environments are made in `.releases/`, once. A release for which no Python is found is left out with a line.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cnnjax.releases import RELEASES  # noqa: E402 - which needs no JAX

ENVIRONMENTS = ROOT / ".releases"

CHOSEN = [["-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "tests/doctor/test_fused.py", "tests/test_releases.py"]]
"""Arguments for Python: what `--chosen` runs."""
PROOFS = [
    ["tests/ops/equivalence.py", "--sets", "1"],
    ["tests/ops/fused_programs.py", "--write", "docs/equivalence.md"],
]
ADMISSION = [
    ["-m", "cnnjax", "doctor"],
    ["tests/ops/equivalence.py"],
    ["tests/ops/fused_programs.py", "--write", "docs/equivalence.md"],
    ["benchmarks/step.py", "--no-torch"],
]


def oldest_python(release: str) -> tuple[int, int]:
    """The oldest Python that a release of JAX and cnnjax take."""
    return (3, 11) if release.startswith("0.10.") else (3, 12)


def find_python(oldest: tuple[int, int]) -> str | None:
    """An interpreter that is new enough: this one, one on PATH, or one of pyenv's."""
    names = [f"python3.{minor}" for minor in range(oldest[1], 15)]
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv")) / "versions"
    installed = sorted(pyenv.glob("3.*/bin/python"))
    for python in (sys.executable, *filter(None, map(shutil.which, names)), *map(str, installed)):
        code = f"import sys, venv; sys.exit(not ({oldest} <= sys.version_info[:2] < (3, 15)))"
        if subprocess.run([python, "-c", code], capture_output=True).returncode == 0:
            return python
    return None


def environment(release: str, whole: bool) -> pathlib.Path | None:
    """The Python of an environment with a release, which is made where there is none; None if no Python fits.

    Args:
      release: of JAX and jaxlib.
      whole: whether it has all that cnnjax needs, and not only what the proofs do.
    """
    folder = ENVIRONMENTS / (f"admit-{release}" if whole else release)
    inside = folder / "bin" / "python"
    if (folder / "complete").exists():
        return inside
    python = find_python(oldest_python(release))
    if python is None:
        return None
    subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
    install = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if whole:
        subprocess.run([*install, "--editable", f"{ROOT}[test]"], check=True)
    # By itself, so that one that pyproject.toml does not allow yet is installed too.
    subprocess.run([*install, f"jax=={release}", f"jaxlib=={release}", "pytest>=8", "pytest-xdist>=3.6"], check=True)
    (folder / "complete").touch()
    return inside


def run(release: str, commands: list[list[str]], whole: bool = False) -> bool | None:
    """Runs commands with a release's Python, from the checkout; whether all passed, None where no Python fits."""
    python = environment(release, whole)
    if python is None:
        print(f"jax {release}: left out, as no Python {'.'.join(map(str, oldest_python(release)))} or newer was found")
        return None
    # The checkout's cnnjax, and none of the user's flags, which would stay as they are.
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    environ.pop("XLA_FLAGS", None)
    passed = True
    for command in commands:
        print(f"jax {release}: {' '.join(command)}", flush=True)
        start = time.monotonic()
        passed &= subprocess.run([python, *command], cwd=ROOT, env=environ).returncode == 0
        print(f"jax {release}: {'passed' if passed else 'FAILED'} in {time.monotonic() - start:.0f} s", flush=True)
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("releases", nargs="*", help='such as 0.10.1, "lowest" or "highest"; all that are allowed')
    parser.add_argument("--chosen", action="store_true", help="the tests of fused programs alone")
    parser.add_argument("--admit", metavar="RELEASE", help="what a new release must pass")
    arguments = parser.parse_args()
    if arguments.admit:
        return int(not run(arguments.admit, ADMISSION, whole=True))
    known = list(RELEASES)
    named = {"lowest": known[0], "highest": known[-1]}
    wanted = [named.get(name, name) for name in arguments.releases] or known
    passed = {release: run(release, CHOSEN if arguments.chosen else PROOFS) for release in wanted}
    for release, result in passed.items():
        print(f"jax {release}: {'left out' if result is None else 'passed' if result else 'FAILED'}")
    return int(any(result is False for result in passed.values()))


if __name__ == "__main__":
    sys.exit(main())
