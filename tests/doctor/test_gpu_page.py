"""`benchmarks/gpu.sh` prints its page whatever becomes of its parts, and says at once what it lacks."""

import os
import subprocess
import sys

import pytest


def run(root, **environment):
    command = ["bash", str(root / "benchmarks" / "gpu.sh")]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_every_part_is_on_the_page(request):
    """With too little time for any part, each is stopped and said to be."""
    done = run(request.config.rootpath, PYTHON=sys.executable, SCALE="0.02")
    assert done.returncode == 0
    assert done.stdout.count("\n## ") == 8
    assert done.stdout.count("(stopped after 2 s)") >= 4
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize("python", ["/nowhere/python", "bare"])
def test_what_is_lacking_is_one_line(request, python, tmp_path):
    if python == "bare":  # a Python that has nothing installed
        python = str(tmp_path / "python")
        script = f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n'
        (tmp_path / "python").write_text(script)
        (tmp_path / "python").chmod(0o755)
    done = run(request.config.rootpath, PYTHON=python)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("gpu.sh: ")
