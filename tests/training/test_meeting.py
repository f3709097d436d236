"""Processes wait for each other, and say who is missing."""

import concurrent.futures
import contextlib
import socket
import time

import pytest

from cnnjax.ops.errors import InputError
from cnnjax.training import RunError
from cnnjax.training.meeting import meet


@pytest.fixture
def place():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def meeting(place, present, seconds):
    """What became of each of the processes that are present, given as (count, index)."""

    def come(process):
        try:
            meet(place, *process, seconds=seconds)
        except (InputError, RunError) as error:
            return f"{type(error).__name__}: {error}"
        return "met"

    with concurrent.futures.ThreadPoolExecutor(len(present)) as pool:
        return list(pool.map(come, present))


def test_all_who_come_go_on(place):
    assert meeting(place, [(4, 2), (4, 1), (4, 0), (4, 3)], 60) == ["met"] * 4
    assert meeting(place, [(2, 0), (2, 1)], 60) == ["met"] * 2  # the port is free again
    assert meeting(place, [(1, 0)], 60) == ["met"]


def test_everybody_hears_who_is_missing(place):
    said = meeting(place, [(5, 0), (5, 2), (5, 3)], 1)
    assert said == [f"RunError: distributed: processes 1, 4 of 5 did not come to {place} within 1 s"] * 3


def test_where_the_first_is_missing(place):
    (said,) = meeting(place, [(2, 1)], 0.5)
    assert said == (
        f"RunError: distributed: the first process did not come to {place} within 0.5 s (Connection refused)"
    )


def test_who_was_told_something_else_does_not_count(place):
    first, second, other = meeting(place, [(3, 0), (3, 1), (4, 2)], 1)
    assert other == "InputError: distributed.num-processes: received 4, allowed: 3, as the first has"
    assert first == second == f"RunError: distributed: process 2 of 3 did not come to {place} within 1 s"


def test_two_of_one_number(place):
    others = sorted(meeting(place, [(3, 0), (3, 1), (3, 1)], 1))
    assert others[0] == "InputError: distributed.process-id: received 1, which another process has too"
    assert others[1:] == [f"RunError: distributed: process 2 of 3 did not come to {place} within 1 s"] * 2


def test_a_port_in_use(place):
    host, port = place.split(":")
    with socket.create_server((host, int(port))):
        (said,) = meeting(place, [(2, 0)], 1)
    assert said.startswith(f"RunError: distributed.coordinator: port {port} can't be listened at: ")


def test_strangers_and_those_that_leave_again_do_not_count(place):
    host, port = place.split(":")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(meeting, place, [(3, 0)], 60)
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"cnnjax 1 3\n", "cnnjax ² 3\n".encode(), b"\xff" * 5000):
            for _ in range(100):
                with contextlib.suppress(ConnectionRefusedError), socket.create_connection((host, int(port))) as line:
                    line.sendall(words)
                    break
                time.sleep(0.05)
        assert not first.done()
        assert meeting(place, [(3, 1), (3, 2)], 60) == ["met"] * 2
        assert first.result() == ["met"]
