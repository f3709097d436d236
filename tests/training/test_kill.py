"""A run killed by SIGKILL at the worst moments and started again ends with the fingerprint of one that was not."""

import json
import os
import signal
import subprocess
import sys

import pytest

# The quickstart with 40 steps and many checkpoints, in a process that kills itself at a chosen moment.
RUN = """
import os, signal, sys
moment, workdir = sys.argv[1:]
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup, under which the tests may run, has ignored
from cnnjax.training import checkpoint, feed, files
from experiments import quickstart

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def before(function, when):
    def wrapped(*args, **kwargs):
        if when(*args, **kwargs):
            die()
        return function(*args, **kwargs)
    return wrapped

if moment == "between two steps of an epoch":
    feed.batch_indices = before(feed.batch_indices, lambda n, size, step, seed: step == 17)
elif moment == "while arrays are being written":
    original = checkpoint.ocp.save_async
    def save_async(path, *args, **kwargs):
        response = original(path, *args, **kwargs)
        if path.endswith("/14"):
            die()
        return response
    checkpoint.ocp.save_async = save_async
elif moment == "after the arrays, before the manifest":
    files.replace = before(files.replace, lambda path, text: path.name == "14.json")
elif moment == "just after a save":
    original = files.replace
    def write(path, text):
        original(path, text)
        if path.name == "14.json":
            die()
    files.replace = write
elif moment == "during the very first save":
    files.replace = before(files.replace, lambda path, text: path.name == "7.json")
elif moment == "after the last save, before the result":
    files.replace = before(files.replace, lambda path, text: path.name == "result.json")
elif moment.startswith("SIG"):
    def send(n, size, step, seed):
        if step == 17:
            os.kill(os.getpid(), signal.Signals[moment])
            if moment == "SIGHUP":  # and again, by the shell; and the terminal is gone
                os.kill(os.getpid(), signal.SIGHUP)
                full = os.open("/dev/full", os.O_WRONLY)
                os.dup2(full, 1)
    feed.batch_indices = before(feed.batch_indices, send)
sys.exit(quickstart.main([
    "--workdir", workdir, "--train.steps", "40", "--train.evaluate-every", "20", "--run.checkpoint-every", "7",
]))
"""
MOMENTS = (
    "between two steps of an epoch",
    "while arrays are being written",
    "after the arrays, before the manifest",
    "just after a save",
    "during the very first save",
    "after the last save, before the result",
)


def run(moment, workdir):
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.run(
        [sys.executable, "-c", RUN, moment, str(workdir)], capture_output=True, text=True, env=environment, timeout=300
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    done = run("never", workdir)
    assert done.returncode == 0, done.stderr
    return workdir


def without_times(workdir):
    """The result, apart from how long it took and in how many parts."""
    result = json.loads((workdir / "result.json").read_text())
    return {
        name: value
        for name, value in result.items()
        if "second" not in name and name not in ("history", "finished", "seal")
    }


def parts(workdir):
    return [part["from_step"] for part in json.loads((workdir / "result.json").read_text())["history"]]


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed(whole, tmp_path, moment):
    killed = run(moment, tmp_path / "run")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "run" / "result.json").exists()
    resumed = run("never", tmp_path / "run")
    assert resumed.returncode == 0, resumed.stderr
    assert ("resuming from step" in resumed.stdout) == (moment != "during the very first save")
    assert without_times(tmp_path / "run") == without_times(whole)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_asked_to_stop(whole, tmp_path, name):
    """It saves where it stands, says so in one line, and leaves with the status of the signal."""
    stopped = run(name, tmp_path / "run")
    assert stopped.returncode == 128 + signal.Signals[name]
    assert "stopped at step 18 of 40 and saved" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    resumed = run("never", tmp_path / "run")
    assert "resuming from step 18" in resumed.stdout
    assert parts(tmp_path / "run") == [0, 18]
    assert without_times(tmp_path / "run") == without_times(whole)


def test_the_same_command_again_gives_the_same_result(whole, tmp_path):
    again = run("never", tmp_path / "run")
    assert again.returncode == 0
    assert without_times(tmp_path / "run") == without_times(whole)
