"""The doctor's round: every check in turn, what came of it, and how a person reads that."""

import dataclasses
import os
import shutil
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from cnnjax.doctor import machine
from cnnjax.doctor.checks import Check, Outcome, all_checks
from cnnjax.training import doubts
from cnnjax.training import mesh as meshes


@dataclasses.dataclass(frozen=True)
class Report:
    """What the doctor found."""

    machine: dict[str, Any]
    """What is installed and seen: see `machine.describe`."""
    checks: dict[str, dict[str, Any]]
    """By name, in order: `status` ("right", "wrong", "known" or "skipped"), `detail` and `seconds`."""

    @property
    def failed(self) -> list[str]:
        """The names of the checks that found something wrong."""
        return [name for name, check in self.checks.items() if check["status"] == "wrong"]


def examine(
    checks: Iterable[Check] | None = None,
    *,
    before: Callable[[str], None] = lambda name: None,
    after: Callable[[str, Outcome, float], None] = lambda name, outcome, seconds: None,
) -> Report:
    """Runs the checks on the default backend, and remembers for later runs what failed.

    Args:
      checks: `all_checks()` when None.
      before: called with the name of each check as it begins.
      after: called with its name, how it went, and the seconds it took.
    """
    found = machine.describe()
    results: dict[str, dict[str, Any]] = {}
    for check in all_checks() if checks is None else checks:
        before(check.name)
        started = time.perf_counter()
        outcome = _outcome(check)
        seconds = time.perf_counter() - started
        results[check.name] = {**outcome._asdict(), "seconds": round(seconds, 1)}
        after(check.name, outcome, seconds)
    report = Report(found, results)
    doubts.remember(report.failed)
    return report


def _outcome(check: Check) -> Outcome:
    """How a check went; one that can't be carried out is wrong too, with the last line of what it said."""
    try:
        return check.run()
    except Exception as error:
        (last,) = traceback.format_exception_only(error)[-1:]
        return Outcome("wrong", " ".join(last.split())[:300])


def use_virtual_devices(count: int = 4) -> None:
    """Has a CPU be several devices, so that the checks of sharding have some; before JAX looks for devices.

    They share one pool of threads: what one of them computes takes no longer. Nothing is done where the environment
    says how many there are.
    """
    import jax

    if "JAX_NUM_CPU_DEVICES" not in os.environ and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", count)


# --- For a person -----------------------------------------------------------------------------------------------------

_WORDS = {"right": "ok", "wrong": "WRONG", "known": "known", "skipped": "-"}
_STYLES = {"right": "green", "wrong": "bold red", "known": "yellow", "skipped": "dim"}
_INDENT = 35  # of the third column


class Display:
    """Prints the report line by line, as the checks go, at the width of the terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self._width = max(60, min(100, shutil.get_terminal_size((80, 24)).columns))
        self._console = Console(width=self._width, highlight=False)

    def machine(self, found: dict[str, Any]) -> None:
        """What is installed and seen."""
        for line in machine.lines(found):
            print(textwrap.fill(line, self._width, subsequent_indent="    ", break_on_hyphens=False))
        print(flush=True)

    def before(self, name: str) -> None:
        """Names a check while it runs, on a terminal."""
        if sys.stdout.isatty():
            print(f"...    {name}", end="\r", flush=True)

    def after(self, name: str, outcome: Outcome, seconds: float) -> None:
        """A check's line."""
        from rich.text import Text

        first, *rest = textwrap.wrap(outcome.detail, self._width - _INDENT, break_on_hyphens=False) or [""]
        word = Text(f"{_WORDS[outcome.status]:<7}", _STYLES[outcome.status])
        self._console.print(word + Text(f"{name:<{_INDENT - 7}}{first}"), soft_wrap=True)
        for line in rest:
            print(" " * _INDENT + line)
        sys.stdout.flush()

    def end(self, report: Report) -> None:
        """What it comes to."""
        seconds = sum(check["seconds"] for check in report.checks.values())
        if report.failed:
            print(f"\nWRONG: {', '.join(report.failed)} ({seconds:.0f} s). Runs here will warn of it.")
        else:
            print(f"\nNothing is wrong here ({seconds:.0f} s).")


def main(*, as_json: bool = False) -> int:
    """Runs the doctor as a command and returns its exit status: 1 where something is wrong.

    Raises:
      InputError: JAX finds no devices.
    """
    import json

    use_virtual_devices()
    meshes.visible()
    if as_json:
        report = examine()
        print(json.dumps({**dataclasses.asdict(report), "failed": report.failed}))
    else:
        display = Display()
        display.machine(machine.describe())
        report = examine(before=display.before, after=display.after)
        display.end(report)
    return 1 if report.failed else 0
