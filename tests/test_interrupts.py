"""Ctrl-C at any moment of a command: a line, and status 130."""

import os
import pathlib
import selectors
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# A command whose work is BODY; it says where it stands.
PROGRAM = """
import sys, time
from cnnjax import interrupts
interrupts.GRACE = 0.5
interrupts.begin()
print("importing", flush=True)
{imports}
with interrupts.obeyed():
    print("working", flush=True)
    {body}
print("after", flush=True)
{after}
"""
SLEEP = "time.sleep(60)"
SWALLOWED = """
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(60)
"""

FINALIZER = """type("Slow", (), {"__del__": lambda self: time.sleep(60)})()"""  # Python can't raise what it raises


HEEDING = [
    sys.executable,
    "-c",
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])",
]
"""Before a command: gives Ctrl-C its usual meaning, which a shell's `&`, behind which the tests may run, has taken."""


def interrupted(command, word, **more):
    """Sends SIGINT once a command has said `word`; its status, what it said, and what on standard error."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
        **more,
    )
    with process:
        for line in process.stdout:
            if word in line:
                break
        time.sleep(0.2)  # it is past saying so
        process.send_signal(signal.SIGINT)
        try:
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("importing", {"imports": SLEEP, "body": "pass", "after": ""}),
        ("working", {"imports": "", "body": SLEEP, "after": ""}),
        ("working", {"imports": "", "body": SWALLOWED.strip(), "after": ""}),  # as a callback of a library may
        ("working", {"imports": "", "body": FINALIZER, "after": ""}),
        ("after", {"imports": "", "body": "pass", "after": SLEEP}),
    ],
    ids=["importing", "working", "swallowed", "in a finalizer", "leaving"],
)
def test_one_line_at_any_moment(word, parts):
    status, _, err = interrupted([*HEEDING, sys.executable, "-c", PROGRAM.format(**parts)], word)
    assert (status, err) == (130, "error: interrupted\n")


def test_where_nobody_may_interrupt_nobody_does():
    """As in what `nohup` and a shell's `&` start."""
    program = PROGRAM.format(imports="", body="time.sleep(1)", after="")
    status, out, err = interrupted(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", program], "working"
    )
    assert (status, out, err) == (0, "after\n", "")


def test_what_is_imported_only_is_left_alone():
    program = "import signal; import cnnjax.training, experiments.quickstart; print(signal.getsignal(signal.SIGINT))"
    command = [*HEEDING, sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "default_int_handler" in done.stdout


def alone():
    return os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}


@pytest.mark.slow
def test_a_process_that_waits_for_its_peers_obeys(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    options = ("--distributed.coordinator", place, "--distributed.num-processes", "2")
    command = [*HEEDING, sys.executable, "-m", "experiments.quickstart", "--workdir", str(tmp_path / "run"), *options]
    process = subprocess.Popen(
        [*command, "--distributed.process-id", "0"], cwd=ROOT, stderr=subprocess.PIPE, text=True, env=alone()
    )
    with selectors.DefaultSelector() as selector:
        selector.register(process.stderr, selectors.EVENT_READ)
        ready = selector.select(timeout=120)
    if not ready:
        process.kill()
    assert f"waiting for process 1 of 2 at {place}" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "error: interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "-m experiments.quickstart --train.steps 30 --train.evaluate-every 10 --workdir {run}",
        "-m cnnjax run quickstart --quick --workdir {run}",
        "-m cnnjax summary resnet50",
        "-m cnnjax data show digits",
    ],
)
def test_at_many_moments(command, tmp_path):
    """From when Python has begun to run the package; wherever it is."""
    command = [*HEEDING, sys.executable, *(word.format(run=tmp_path / "run") for word in command.split())]
    started = time.monotonic()
    whole = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=alone(), check=True)
    seconds = time.monotonic() - started
    for moment in range(20):
        command[-1] = str(tmp_path / f"run-{moment}") if "--workdir" in command else command[-1]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=alone()
        )
        maps = pathlib.Path(f"/proc/{process.pid}/maps")
        while process.poll() is None and "jaxlib" not in maps.read_text():  # Python's own beginning is not ours
            time.sleep(0.01)
        time.sleep(seconds * moment / 20)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        if process.returncode == 0:  # it was faster
            assert out.splitlines()[-1:] != [], err
        else:
            assert process.returncode == 130, (moment, process.returncode, err)
            *rest, line = err.splitlines()
            assert rest == []
            assert line == "error: interrupted" or line.startswith("error: stopped at step"), err
    assert whole.stderr == ""
