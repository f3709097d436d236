"""The first moments of a command's process, before the imports that take seconds and start threads."""

import contextlib
import glob
import importlib.util
import os
import pathlib
import resource
import sys
import threading
from typing import NoReturn

from cnnjax import interrupts
from cnnjax.memory import keep_freed_memory

LEAST_FILES = 64
"""Open files that a process needs: libraries, data, checkpoints written by several threads."""


MANY = 10_000
"""Processes that the system may allow without its being asked whether there are enough."""


def begin() -> None:
    """Sees to streams, memory and Ctrl-C, and imports JAX, which may refuse what the environment says, in one line."""
    open_streams()
    keep_freed_memory()
    interrupts.begin()
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= allowed < LEAST_FILES:
        _refuse(f"open files are limited to {allowed} (ulimit -n), allowed: {LEAST_FILES} or more")
    least = 48 + 4 * (os.cpu_count() or 1)  # XLA, where it can't start one, ends the process at length
    if (started := threads_that_start(least)) < least:
        limits = "see ulimit -u, and the container's limit"
        _refuse(f"{started} threads can be started ({limits}), allowed: {least} or more")
    try:
        import jax  # noqa: F401
    except (
        ValueError,
        ImportError,
        OSError,
        MemoryError,
    ) as error:  # "invalid truth value 'maybe' ..."
        _refuse(f"JAX can't be imported: {' '.join(str(error).split())}")


def threads_that_start(count: int) -> int:
    """How many threads this process can start, of `count`; they are tried only where the system sets a low limit."""
    limits = [resource.getrlimit(resource.RLIMIT_NPROC)[0]]
    with contextlib.suppress(OSError, ValueError):  # no such limit: "max"
        limits.append(int(pathlib.Path("/sys/fs/cgroup/pids.max").read_text()))
    if all(not 0 <= limit < MANY for limit in limits):
        return count
    done = threading.Event()
    started: list[threading.Thread] = []
    with contextlib.suppress(RuntimeError):  # can't start new thread
        for _ in range(count):
            thread = threading.Thread(target=done.wait, daemon=True)
            thread.start()
            started.append(thread)
    done.set()
    for thread in started:
        thread.join()
    return len(started)


def look_for_no_tpu() -> None:
    """Tells JAX to use the CPU where the `tpu` extra is installed and there is no TPU: libtpu, which JAX would ask,
    prints errors there. Not where another plugin of JAX's is installed, which knows devices of its own."""
    if "JAX_PLATFORMS" in os.environ or not _installed("libtpu") or _installed("jax_plugins"):
        return
    files = [*glob.glob("/dev/accel*"), *glob.glob("/dev/vfio/*")]
    told = any(name.startswith(("TPU_", "CLOUD_TPU", "MEGASCALE")) for name in os.environ)
    if not files and not told:
        os.environ["JAX_PLATFORMS"] = "cpu"


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _refuse(why: str) -> NoReturn:
    print(f"error: environment: {why}", file=sys.stderr)
    sys.exit(2)


def open_streams() -> None:
    """Gives standard streams that are closed (`>&-`) the place where nothing is kept.

    The next files that are opened would take their numbers, and with them what libraries write to standard error.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free, which is this one
            setattr(sys, name, open(number, mode, encoding="utf-8"))  # noqa: SIM115  (as long as the process)
