"""Timing functions against each other on a machine whose speed drifts.

Every round times all of them, one after another, in one process, and what counts is the ratio within a round: a minute
in which the machine is slow slows both sides of it. Medians over rounds leave out the odd interruption.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

# How long to wait before each turn: threads that another library left spinning go to sleep within milliseconds.
PAUSE = 0.02


class Ratio(NamedTuple):
    """What rounds say of one ratio."""

    median: float
    """The median of the rounds' ratios."""
    low: float
    """The smallest."""
    high: float
    """The largest."""

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def interleave(
    functions: Mapping[str, Callable[[], None]],
    rounds: int,
    seconds: float,
    progress: Callable[[int, str, float], None] | None = None,
) -> dict[str, list[float]]:
    """Times functions in turns.

    Each is called once untimed, which compiles what compiles at the first call. Then in every round each has a turn of
    `seconds`: it is called until they have passed, at least once. Every other
    round goes backwards, and every second one starts with another function, so that none always follows the same one.

    Args:
      functions: by name; each returns only when what it computes is done (`jax.block_until_ready`).
      rounds: how many turns each has, at least 1.
      seconds: how long a turn lasts, but for the last call, which is let finish.
      progress: called after each turn with the number of the round, from 0, the name and the seconds per call.

    Returns:
      By name, in the order of `functions`: the mean seconds per call in each round.
    """
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds):
        for name in order(list(functions), number):
            time.sleep(PAUSE)
            times[name].append(turn(functions[name], seconds))
            if progress is not None:
                progress(number, name, times[name][-1])
    return times


def order(names: Sequence[str], number: int) -> list[str]:
    """The order of the names in a round: odd rounds go backwards, and after two comes another start."""
    start = number // 2 % len(names)
    rotated = [*names[start:], *names[:start]]
    return rotated[::-1] if number % 2 else rotated


def turn(function: Callable[[], None], seconds: float) -> float:
    """Calls a function until `seconds` have passed, at least once; the mean seconds per call."""
    calls, passed = 0, 0.0
    started = time.perf_counter()
    while calls == 0 or passed < seconds:
        function()
        calls += 1
        passed = time.perf_counter() - started
    return passed / calls


def ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """a / b round by round, of two lists of `interleave`'s: how many times as fast as a b is."""
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))
