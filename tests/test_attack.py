"""The attacks of `make attack`, each kind on its own."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
KINDS = [
    "options", "commands", "fields", "run folders", "strays", "names", "folders of images", "archives", "prepared sets",
    "weights", "signals", "environments",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_attack_ends_well(kind):
    """Patiently: the tests of two workers share the processor with what they start."""
    command = [sys.executable, "tests/attack/attack.py", "--only", kind, "--patience", "120"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " attacks, 0 failed, in " in done.stdout
