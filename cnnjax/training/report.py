"""What a person sees of a run: a progress bar, a line at each evaluation, a table at the end."""

import contextlib
import math
import os
import sys
import time
from collections.abc import Generator, Mapping
from typing import IO, Any, cast

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from cnnjax.terminal import one_line, printable, say, width_of, wrap

_SHOWN = (  # name in the result, what a person reads, how it is written
    ("test_accuracy", "test accuracy", "{:.2%}"),
    ("test_top5", "test top-5", "{:.2%}"),
    ("test_loss", "test loss", "{:.4f}"),
    ("validation_accuracy", "validation accuracy", "{:.2%}"),
    ("validation_loss", "validation loss", "{:.4f}"),
    ("best_validation_accuracy", "best validation accuracy", "{:.2%}"),
    ("best_validation_loss", "best validation loss", "{:.4f}"),
    ("best_step", "  at step", "{:,}"),
    ("best_test_accuracy", "  its test accuracy", "{:.2%}"),
    ("train_loss", "training loss", "{:.4f}"),
    ("parameters", "parameters", "{:,}"),
    ("steps", "steps", "{:,}"),
    ("train_seconds", "seconds of training", "{:.1f}"),
    ("compile_seconds", "seconds of compilation", "{:.1f}"),
    ("examples_per_second", "examples per second", "{:,.0f}"),
    ("seed", "seed", "{}"),
    ("fingerprint", "fingerprint", "{:.16}…"),
)

_LINES = 20
"""Evaluations that get a line, about."""


class _Output:
    """Standard output until it can't be written: to a full disk, a pipe (`| head`) or a terminal that was closed.

    From then on it takes everything and keeps nothing, so that a run goes on without it.
    """

    def __init__(self):
        self._stream = sys.stdout
        self.rich_proxied_file = self  # what rich writes to while a bar of its own stands in for standard output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._lose()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._lose()

    def _lose(self) -> None:
        with contextlib.suppress(OSError):  # not of a file, as in a test
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what is still buffered would fail again at the end
            os.close(nowhere)


class Report:
    """Prints to a terminal as a bar that moves, and to a file or a pipe as plain lines."""

    def __init__(self, *, quiet: bool = False):
        file = cast(IO[str], _Output())
        self.console = Console(file=file, quiet=quiet, highlight=False, emoji=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._values = ""
        self._train: dict[str, float] = {}
        self._shown_at = 0.0
        self._steps_per_epoch = 1.0
        self._total = 1
        self._first = self._every = 1

    def note(self, text: str) -> None:
        """A line of information."""
        self.console.print(wrap(printable(text), width_of(self.console.file), "  "), markup=False)

    def warn(self, text: str) -> None:
        """A line that should not be missed; goes to standard error."""
        with contextlib.suppress(OSError):  # nobody can be told
            say(f"warning: {one_line(text)}", sys.stderr)

    @contextlib.contextmanager
    def doing(self, what: str, *, announce: bool = True) -> Generator[None]:
        """Says that `what` is being done while it is, and how long it took where that was more than a second.

        Args:
          what: such as "reading digits".
          announce: prints a line at its start to a file or a pipe too: not before the command is known to be right.
        """
        began = time.monotonic()
        if self.console.is_terminal and self._progress is None:
            with self.console.status(escape(printable(what))):
                yield
        else:
            if announce and self._progress is None:
                self.note(f"{what} ...")
            yield
        seconds = time.monotonic() - began
        if seconds > 1:
            self.note(f"{what} took {seconds:.1f} s")

    def start(self, step: int, total: int, steps_per_epoch: float, evaluate_every: int) -> None:
        """Shows the bar, at `step` of `total`."""
        self._steps_per_epoch, self._total = steps_per_epoch, total
        # Every k-th evaluation gets a line, so that there are some twenty, with the first and the last.
        self._first, self._every = evaluate_every, evaluate_every * -(-total // (evaluate_every * _LINES))
        if not self.console.is_terminal:
            return
        fixed = lambda text: TextColumn(text, table_column=Column(no_wrap=True))
        self._progress = Progress(
            fixed("{task.description}"),
            BarColumn(bar_width=None),
            fixed("{task.completed:,.0f}/{task.total:,.0f}"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            fixed("left"),
            console=self.console,
            transient=True,
            expand=True,
        )
        self._task = self._progress.add_task("the first steps", total=total, completed=step)
        self._progress.start()

    def advance(self, step: int, sums: Mapping[str, Any] | None = None) -> None:
        """Moves the bar to `step`; cheap enough to be called at every one.

        Args:
          step: the steps made so far.
          sums: of a step that the device has finished, shown until there are metrics of several.
        """
        if self._progress is None or time.monotonic() - self._shown_at < 0.2:
            return
        self._shown_at = time.monotonic()
        words = self._values
        if not words and sums is not None:
            words = f"loss {float(np.sum(sums['loss']) / np.sum(sums['count'])):.4f}"
        self._progress.update(self._task, completed=step, description=words or "the first steps")

    def window(self, values: dict[str, float], rate: float) -> None:
        """The training metrics to show beside the bar, and the examples per second."""
        self._values = f"{_words(values)}  {rate:,.0f} ex/s"
        self._train = values

    def milestone(self, step: int, validation: dict[str, float], best: bool) -> None:
        """A line for an evaluation (or, without validation images, where it would have been): of some twenty a run.

        The training loss is that of the last `--run.log-every` steps, and left out where it was printed before.
        """
        if step > self._first and step % self._every and step < self._total:
            return
        count = len(f"{self._total:,}")
        epochs = f"{self._total / self._steps_per_epoch:.0f}"
        epoch = f"epoch {step / self._steps_per_epoch:>{len(epochs)}.0f}/{epochs}"
        if validation:
            loss = f"loss {self._train['loss']:.4f}" if self._train else ""
            words = f"{loss:11}  val {_words(validation)}{'  best' * best}"
        else:
            words = _words(self._train) if self._train else ""
        self._train = {}
        self.note(f"{epoch}  step {step:>{count},}  {words}".rstrip())

    def stop(self) -> None:
        """Takes the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def result(self, result: dict[str, Any], workdir: Any) -> None:
        """The final table, and where the pictures are."""
        self.note(f"{result['experiment']}: {result['model']} on {result['data']}")
        for name, label, form in _SHOWN:
            if result.get(name) is not None:
                self.note(f"  {label:24}  {form.format(result[name]):>17}")
        self.note(f"run       {workdir}")
        for picture in ("curves.png", "predictions.png"):
            if (workdir / picture).exists():
                self.note(f"picture   {workdir / picture}")


def _words(values: dict[str, float]) -> str:
    loss = values.get("loss", math.nan)
    accuracy = f"  acc {values['accuracy']:7.2%}" if "accuracy" in values else ""
    return f"loss {loss:.4f}{accuracy}"
