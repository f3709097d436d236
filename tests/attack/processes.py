"""Processes: signals at odd moments, and environments in which nothing is as usual."""

import functools
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import case as attacks
from case import Case, Hang, Said, command, result_of

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _start(words: list[str], **variables: str) -> subprocess.Popen:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"} | variables
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, errors="replace",
    )  # fmt: skip


def _end(process: subprocess.Popen, seconds: float | None = None) -> Said:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        out, err = process.communicate(timeout=seconds or attacks.by_the_clock())
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise Hang from None
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if took > (seconds or attacks.PATIENCE):
        raise Hang
    return Said(process.returncode, out, err)


def signals(folder: pathlib.Path, experiment: pathlib.Path, count: int) -> Iterator[Case]:
    """Ctrl-C, SIGTERM and SIGHUP at moments all over a run; the same command then ends as an uninterrupted one."""
    whole = folder / "signals-whole"
    options = ["--train.steps", "4000", "--train.evaluate-every", "1000", "--run.checkpoint-every", "200"]
    began = time.monotonic()
    said = _end(
        _start([sys.executable, "-m", "cnnjax", "run", str(experiment), "--workdir", str(whole), *options]), 200
    )
    seconds = time.monotonic() - began
    assert said.status == 0, said.err
    expected = result_of(whole)["fingerprint"]

    def act(workdir: pathlib.Path, number: signal.Signals, moment: float) -> Said:
        words = [sys.executable, "-m", "cnnjax", "run", str(experiment), "--workdir", str(workdir), *options]
        process = _start(words)
        time.sleep(moment)
        process.send_signal(number)
        stopped = _end(process)
        # Before training only Ctrl-C is promised a line; the others end the process as the system does.
        as_usual = number != signal.SIGINT and stopped.status == -number and not stopped.err
        if stopped.status and not as_usual and not stopped.err.splitlines()[-1:][0].startswith("error: "):
            return Said(0, "", f"Traceback? {stopped.status} {stopped.err}")
        if stopped.status not in (0, 128 + number, -number):
            return Said(0, "", "", f"status {stopped.status}")
        again = command("run", experiment, "--workdir", workdir, *options)
        return Said(again.status, "", again.err, result_of(workdir)["fingerprint"] if not again.status else None)

    right = lambda said: "" if said.value == expected else f"{said.value} {said.err[-200:]}"
    for i in range(count):
        number = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[i % 3]
        moment = 0.2 + (seconds - 0.2) * i / count
        workdir = folder / f"signals-{i}"
        yield Case(
            "signals", f"{number.name} after {moment:.1f} s", functools.partial(act, workdir, number, moment), right
        )


def environments(folder: pathlib.Path, experiment: pathlib.Path) -> Iterator[Case]:
    """Variables that are odd, streams that are closed, no home, few files, an ASCII locale."""
    run = [sys.executable, "-m", "cnnjax", "run", str(experiment)]

    def act(workdir: pathlib.Path, words: list[str], variables: dict[str, str]) -> Said:
        said = _end(_start([*words, "--workdir", str(workdir)], **variables))
        return Said(said.status, said.out, said.err, result_of(workdir)["fingerprint"] if not said.status else None)

    plain = act(folder / "environment", run, {})
    assert plain.status == 0, plain.err
    right = lambda said: "" if said.value == plain.value else f"{said.value} for {plain.value}"
    variables: list[dict[str, str]] = [
        {"JAX_ENABLE_X64": "1", "JAX_THREEFRY_PARTITIONABLE": "0", "JAX_DEFAULT_PRNG_IMPL": "rbg"},
        {"JAX_RANDOM_SEED_OFFSET": "3"}, {"JAX_NUMPY_RANK_PROMOTION": "raise", "JAX_NUMPY_DTYPE_PROMOTION": "strict"},
        {"JAX_ENABLE_X64": "maybe"}, {"JAX_DEFAULT_PRNG_IMPL": "x"}, {"JAX_NUM_CPU_DEVICES": "abc"},
        {"JAX_NUM_CPU_DEVICES": "0"},
        {"JAX_PLATFORMS": "nonsense"}, {"JAX_PLATFORMS": "cuda"}, {"JAX_PLATFORMS": "cpu,nonsense"},
        {"OMPI_COMM_WORLD_SIZE": "abc"}, {"OMPI_COMM_WORLD_SIZE": "2"}, {"SLURM_NTASKS": "x",
        "SLURM_STEP_NODELIST": "n"},
        {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "n"}, {"TPU_WORKER_HOSTNAMES": "a,b"}, {"HOME": "/nowhere"},
        {"HOME": ""},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"COLUMNS": "abc"}, {"COLUMNS": "0"},
        {"TERM": "x"},
        {"CNNJAX_CACHE": "/dev/null"}, {"CNNJAX_CACHE": ""}, {"TMPDIR": "/nowhere"}, {"MPLBACKEND": "nonsense"},
        {"MPLCONFIGDIR": "/dev/null"}, {"PYTHONWARNINGS": "error"}, {"XLA_FLAGS": "--nonsense"},
        {"JAX_COMPILATION_CACHE_DIR": "/proc/x"},
    ]  # fmt: skip
    for i, more in enumerate(variables):
        name = " ".join(f"{name}={value}" for name, value in more.items())
        yield Case("environments", name, functools.partial(act, folder / f"environment-{i}", run, more), right)
    shells = (">&-", "2>&-", "<&-", "<&- >&- 2>&-", ">/dev/full")
    for i, words in enumerate(shells):
        shell = ["sh", "-c", f'exec "$@" {words}', "sh", *run]
        yield Case("environments", words, functools.partial(act, folder / f"shell-{i}", shell, {}), right)
    for i, limit in enumerate(("ulimit -n 16", "ulimit -n 70", "ulimit -c 0")):
        shell = ["bash", "-c", f'{limit}; exec "$@"', "bash", *run]
        yield Case("environments", limit, functools.partial(act, folder / f"limit-{i}", shell, {}), right)
