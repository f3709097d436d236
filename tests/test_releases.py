import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cnnjax import releases

ROOT = Path(__file__).resolve().parent.parent
FLAG = "--xla_cpu_experimental_ynn_fusion_type"
WRONG = "jaxlib 0.10.2 computes wrong values on CPU unless XLA_FLAGS has --xla_cpu_experimental_ynn_fusion_type=-reduce"


def set_flags(given=None, version="0.10.2", too_late=False):
    """What is said, and the XLA_FLAGS there are then."""
    environ = {} if given is None else {"XLA_FLAGS": given}
    return releases.set_flags(environ, version, too_late), environ.get("XLA_FLAGS")


@pytest.mark.parametrize("version", ["0.10.0", "0.10.1", "0.10.2", "0.11.0"])
def test_releases_that_need_a_flag_get_it(version):
    assert set_flags(version=version) == (None, f"{FLAG}=-reduce")
    assert set_flags("", version) == (None, f"{FLAG}=-reduce")
    assert set_flags("--xla_dump_to=x", version) == (None, f"--xla_dump_to=x {FLAG}=-reduce")


@pytest.mark.parametrize("version", ["0.11.3", "0.10.2.dev1", "0.12.0", None])
def test_others_get_none(version):
    """XLA ends the process at a flag it doesn't know."""
    for too_late in (False, True):
        assert set_flags(None, version, too_late) == (None, None)
        assert set_flags(f"{FLAG}=reduce", version, too_late) == (None, f"{FLAG}=reduce")


@pytest.mark.parametrize(
    "value",
    ["", "-reduce", "individual_dot", "individual_convolution,individual_dot", "-individual_convolution,-reduce"],
)
def test_the_users_own_flag_is_kept_where_it_is_right(value):
    given = f"--xla_dump_to=x {FLAG}={value}"
    assert set_flags(given) == set_flags(given, too_late=True) == (None, given)


@pytest.mark.parametrize(
    "value", ["reduce", "individual_dot,reduce", "-individual_dot", "+reduce", "individual_dot,eltwise", "dot"]
)
def test_the_users_own_flag_is_kept_and_told_of_where_it_contradicts(value):
    line = f"{WRONG}: yours has {FLAG}={value}"
    assert set_flags(f"{FLAG}={value} --xla_dump_to=x") == (line, f"{FLAG}={value} --xla_dump_to=x")


@pytest.mark.parametrize("version", ["0.11.1", "0.11.2"])
def test_transforms_on_one_thread(version):
    flag = "--xla_cpu_multi_thread_eigen"
    line = f"jaxlib {version} may hang on CPU in Fourier transforms unless XLA_FLAGS has {flag}=false"
    assert set_flags(f"{FLAG}=reduce", version) == (None, f"{FLAG}=reduce {flag}=false")
    for value, said in (("false", None), ("0", None), ("true", line), ("1", line)):
        given = f"{flag}={value} --xla_dump_to=x"
        assert set_flags(given, version) == (said and f"{said}: yours has {flag}={value}", given)
    assert set_flags(f"{flag}=false {flag}=true", version)[0] is not None
    assert set_flags(f"{flag}=true {flag}=false", version)[0] is None
    assert set_flags(None, version, too_late=True)[0].startswith(f"{line}: import cnnjax before")


def test_of_several_flags_the_later_ones_change_the_earlier():
    assert set_flags(f"{FLAG}=reduce {FLAG}=-reduce")[0] is None
    assert set_flags(f"{FLAG}= {FLAG}=+reduce")[0] == f"{WRONG}: yours has {FLAG}= {FLAG}=+reduce"


def test_too_late():
    line = f"{WRONG}: import cnnjax before the first use of JAX, or set it before Python starts"
    assert set_flags("--xla_dump_to=x", too_late=True) == (line, "--xla_dump_to=x")


def test_a_file_of_flags(tmp_path):
    """XLA_FLAGS that doesn't start with a dash names a file."""
    file = tmp_path / "flags"
    assert set_flags(str(file)) == (f"{WRONG}: add it to {file}, the file that XLA_FLAGS names", str(file))
    file.write_text("--xla_dump_to=x")
    assert set_flags(str(file))[0] == f"{WRONG}: add it to {file}, the file that XLA_FLAGS names"
    file.write_text(f"--xla_dump_to=x\n{FLAG}=-reduce\n")
    assert set_flags(str(file)) == (None, str(file))


def test_the_installed_version_is_found_without_importing_it():
    import jaxlib

    assert releases.installed() == jaxlib.__version__
    code = "import sys, cnnjax.releases; print(cnnjax.releases.installed()); assert 'jaxlib' not in sys.modules"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ran.stdout.strip(), ran.stderr) == (jaxlib.__version__, "")


def test_the_flags_are_in_force():
    """Set after jax is imported and before a backend exists; once there is one, a line says that it is too late.

    XLA prints the settings that it took from the flags as part of its compile options.
    """
    needed = releases.RELEASES[releases.installed()].flags
    code = (
        "import jax\n{first}\nimport cnnjax\nfrom jax._src.lib import xla_client\njax.devices()\n"
        "options = xla_client.CompileOptions()\n"
        "options = str(options.executable_build_options.debug_options)\n"
        "print('LIBRARY_FUSION_TYPE_REDUCE' in options and 'xla_cpu_multi_thread_eigen: true' in options)"
    )
    environ = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    for first, too_late in (("", False), ("jax.devices()", True)):
        ran = subprocess.run(
            [sys.executable, "-c", code.format(first=first)], capture_output=True, text=True, check=True, env=environ
        )
        assert ran.stdout.strip() == str(too_late or not needed)
        assert ran.stderr.count("\n") == (too_late and bool(needed))
        assert ("cnnjax: warning: jaxlib" in ran.stderr) == (too_late and bool(needed))


def test_the_releases_known_are_those_allowed():
    """The lowest allowed is the first of the table, and those that nothing makes right are excluded."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [jax] = [line for line in project["dependencies"] if line.startswith("jax>")]
    assert jax.startswith("jax>=0.10,<0.12")
    for version, release in releases.RELEASES.items():
        wrong = any(not defect.cured and defect.backend == "cpu" for defect in release.defects)
        assert (f"!={version}" in jax) == wrong
        assert bool(release.flags) == any(defect.cured for defect in release.defects)


def test_the_docs_name_every_release():
    text = (ROOT / "docs" / "releases.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| 0.")}
    assert list(rows) == list(releases.RELEASES)
    for version, release in releases.RELEASES.items():
        assert rows[version].endswith("| nothing is set |") == (not release.flags)


def test_a_python_for_each_release(monkeypatch):
    """This one where it is new enough, else one on PATH; none newer than the project knows."""
    spec = importlib.util.spec_from_file_location("every_release", ROOT / "tests" / "every_release.py")
    every_release = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(every_release)
    assert every_release.find_python((3, 11)) == sys.executable
    assert every_release.find_python((3, 99)) is None
    assert [every_release.oldest_python(version) for version in releases.RELEASES] == 3 * [(3, 11)] + 3 * [(3, 12)]
    monkeypatch.setattr(every_release, "find_python", lambda oldest: None)
    assert every_release.run("0.99.0", every_release.CHOSEN) is None
