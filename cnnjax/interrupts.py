"""Ctrl-C at any moment of a command: one line, and status 130.

Python by itself hears a signal only between two of its instructions, so that a compilation or a wait for other
processes goes on to its end; and what it raises then, `KeyboardInterrupt`, is a traceback in the midst of an import and
is lost in a callback. Here a thread watches: a process that was interrupted and is still there after `GRACE` seconds is
ended.

Training has a handler of its own, which saves first. It may take its time; a second Ctrl-C is for the watch again.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any, NoReturn

GRACE = 4.0
"""Seconds that a command has for leaving in order."""

STATUS = 128 + signal.SIGINT


def end_at_once(number: int = signal.SIGINT, frame: FrameType | None = None) -> NoReturn:
    """A handler that ends the process where it stands: for imports, in which nothing is open."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or in use where the handler came between
            stream.flush()
    _end()


def _end() -> NoReturn:
    cursor = b"\x1b[?25h" if os.isatty(2) else b""  # which a progress bar may have hidden
    with contextlib.suppress(OSError):
        os.write(2, cursor + b"error: interrupted\n")
    os._exit(STATUS)


def begin() -> None:
    """From here on Ctrl-C ends the process with a line: to be called first of all in a command's process.

    Nothing is done where Ctrl-C does not have its usual meaning, as in what `nohup` or a shell's `&` starts.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)
        # Python takes its handlers away before it ends, and SIGINT would kill without a word what is done. What is
        # registered first is called last.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def obeyed() -> Generator[None]:
    """Inside, Ctrl-C raises `KeyboardInterrupt`, and the process ends even where nobody hears that.

    It holds for processes that called `begin`; elsewhere, as in a notebook, nothing is changed.
    """
    if signal.getsignal(signal.SIGINT) is not end_at_once:
        yield
        return
    _watch()
    signal.signal(signal.SIGINT, _raise)
    before, sys.unraisablehook = sys.unraisablehook, _Unraisable(sys.unraisablehook)
    try:
        yield
    except KeyboardInterrupt:
        # Not in the usual way: an interpreter that is taken down while JAX's threads work may crash.
        end_at_once()
    finally:
        signal.signal(signal.SIGINT, end_at_once)
        if isinstance(sys.unraisablehook, _Unraisable):
            sys.unraisablehook = before


class _Unraisable:
    """A `sys.unraisablehook` for which Ctrl-C is the end: in finalizers and callbacks, as of Python's collection of
    garbage, it would be printed at length and then lost."""

    def __init__(self, hook: Callable[[Any], object]):
        self.hook = hook

    def __call__(self, unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            end_at_once()
        self.hook(unraisable)


def are_obeyed() -> bool:
    """Whether this is inside of `obeyed`, in a command's process."""
    return signal.getsignal(signal.SIGINT) is _raise


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _watch() -> None:
    """Starts the thread. Unlike a handler, it is told of a signal at once, by the C part of Python's."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def follow() -> None:
        times = 0
        while heard := os.read(reading, 1):
            if heard[0] != signal.SIGINT:
                continue
            times += 1
            # A handler of another's is still to be called, or was: its first signal is its own affair.
            if times > 1 or signal.getsignal(signal.SIGINT) in (_raise, end_at_once):
                threading.Thread(target=_end_soon, daemon=True).start()

    threading.Thread(target=follow, name="interrupts", daemon=True).start()


def _end_soon() -> None:
    time.sleep(GRACE)
    _end()  # without what the main thread may hold, such as a stream that it waits for
