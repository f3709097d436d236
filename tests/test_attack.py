"""The attacks of `make attack`, each kind on its own."""

import pathlib
import subprocess
import sys

import attack
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("kind", attack.KINDS)
def test_every_attack_ends_well(kind):
    """Within 30 seconds of a processor; by the clock four times that, as the tests of two workers share them."""
    command = [sys.executable, "tests/attack/attack.py", "--only", kind, "--busy", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " attacks, 0 failed, in " in done.stdout
