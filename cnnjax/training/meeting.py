"""Where the processes of a run wait for each other, before JAX does.

JAX waits too, but says after minutes only that somebody did not come, with a stack of C++ and an abort. So the first
process listens at the coordinator's port, before JAX's service does, until every other one has called there and has
said which one it is. Then it tells all of them to go on, or who is missing.

What is said is lines: `cnnjax ID COUNT` from the others, then `go`, or `no` and the reason, from the first.
"""

import contextlib
import selectors
import socket
import sys
import time

from cnnjax.ops.errors import InputError
from cnnjax.training.errors import RunError

WAIT = 300.0
"""Seconds that processes wait for each other."""

_SPOKEN = 5.0  # seconds of waiting after which a line says so
_LONGEST = 1000  # bytes of a line


def meet(coordinator: str, count: int, index: int, *, seconds: float = WAIT) -> None:
    """Returns once all processes are there.

    Args:
      coordinator: HOST:PORT of the first one.
      count: how many there are.
      index: which one this is, from 0.
      seconds: how long to wait.

    Raises:
      InputError: this process was told another number of processes than the first, or has the number of another one.
      RunError: the port is in use, or not all came in time; the text names those that are missing.
    """
    host, _, port = coordinator.rpartition(":")
    if count == 1:
        return
    if index == 0:
        _receive(coordinator, int(port), count, time.monotonic() + seconds, seconds)
    else:
        _call(coordinator, host.strip("[]"), int(port), f"cnnjax {index} {count}", seconds)


def _receive(coordinator: str, port: int, count: int, deadline: float, seconds: float) -> None:
    try:
        if socket.has_dualstack_ipv6():
            server = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            server = socket.create_server(("", port))
    except OSError as error:
        raise RunError(f"distributed.coordinator: port {port} can't be listened at: {error.strerror}") from error
    here: dict[int, socket.socket] = {}
    missing = lambda: [i for i in range(1, count) if i not in here]
    spoken = time.monotonic() + _SPOKEN
    with contextlib.ExitStack() as stack:
        stack.enter_context(server)
        selector = stack.enter_context(selectors.DefaultSelector())
        selector.register(server, selectors.EVENT_READ)
        while missing() and time.monotonic() < deadline:
            if time.monotonic() > spoken:
                spoken = deadline
                print(f"waiting for {_named(missing(), count)} at {coordinator}", file=sys.stderr, flush=True)
            for ready, _ in selector.select(0.2):
                if ready.fileobj is server:
                    visitor = stack.enter_context(server.accept()[0])
                    visitor.settimeout(5)
                    _welcome(visitor, here, count, selector)
                else:  # one that waited has ended, or says what it should not
                    selector.unregister(ready.fileobj)
                    del here[ready.data]
        if missing():
            told = f"{_named(missing(), count)} did not come to {coordinator} within {seconds:g} s"
            for visitor in here.values():
                _say(visitor, f"no {told}")
            raise RunError(f"distributed: {told}")
        for visitor in here.values():
            _say(visitor, "go")
        for visitor in here.values():  # they hang up first, so that the port is free for JAX at once
            with contextlib.suppress(OSError):
                visitor.recv(1)


def _welcome(
    visitor: socket.socket, here: dict[int, socket.socket], count: int, selector: selectors.BaseSelector
) -> None:
    """Takes in a process that calls, or tells it why not; whoever else calls is not answered."""
    match _hear(visitor).split():
        case ["cnnjax", index, theirs] if index.isascii() and index.isdigit():
            if theirs != str(count):
                _say(visitor, f"no distributed.num-processes: received {theirs}, allowed: {count}, as the first has")
            elif int(index) in here:
                _say(visitor, f"no distributed.process-id: received {index}, which another process has too")
            elif 0 < int(index) < count:
                here[int(index)] = visitor
                selector.register(visitor, selectors.EVENT_READ, int(index))
        case _:
            visitor.close()


def _call(coordinator: str, host: str, port: int, greeting: str, seconds: float) -> None:
    deadline, reason = time.monotonic() + seconds, ""
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, port), timeout=5) as line:
                _say(line, greeting)
                line.settimeout(seconds + 10)  # the first may have begun later
                word, _, told = _hear(line).partition(" ")
            if word == "go":
                return
            if word == "no":
                if told.startswith("distributed."):
                    raise InputError(told)
                raise RunError(f"distributed: {told}")
            raise RunError(f"distributed: the first process, at {coordinator}, has ended, or is none of cnnjax's")
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(0.2)
    raise RunError(f"distributed: the first process did not come to {coordinator} within {seconds:g} s ({reason})")


def _say(line: socket.socket, text: str) -> None:
    with contextlib.suppress(OSError):
        line.sendall(text.encode() + b"\n")


def _hear(line: socket.socket) -> str:
    """The next line; "" where none comes."""
    heard = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        while not heard.endswith(b"\n") and len(heard) < _LONGEST and (byte := line.recv(1)):
            heard += byte
    return heard.decode(errors="replace").strip()


def _named(indices: list[int], count: int) -> str:
    shown = ", ".join(map(str, indices[:20])) + ", …" * (len(indices) > 20)
    return f"process{'es' * (len(indices) > 1)} {shown} of {count}"
