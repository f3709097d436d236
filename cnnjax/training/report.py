"""What a person sees of a run: a progress bar, a line at each evaluation, a table at the end."""

import math
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

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


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Whoever read the output (`| head`) has gone: the run goes on without it."""
        self.quiet = True


class Report:
    """Prints to a terminal as a bar that moves, and to a file or a pipe as plain lines."""

    def __init__(self, *, quiet: bool = False):
        self.console = _Console(quiet=quiet, highlight=False, emoji=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._values = "starting"
        self._shown_at = 0.0
        self._steps_per_epoch = 1.0

    def note(self, text: str) -> None:
        """A line of information."""
        self.console.print(wrap(printable(text), width_of(self.console.file), "  "), markup=False)

    def warn(self, text: str) -> None:
        """A line that should not be missed; goes to standard error."""
        say(f"warning: {one_line(text)}", sys.stderr)

    def start(self, step: int, total: int, steps_per_epoch: float) -> None:
        """Shows the bar, at `step` of `total`."""
        self._steps_per_epoch = steps_per_epoch
        if not self.console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            transient=True,
        )
        self._task = self._progress.add_task(self._values, total=total, completed=step)
        self._progress.start()

    def advance(self, step: int) -> None:
        """Moves the bar to `step`; cheap enough to be called at every one."""
        if self._progress is not None and time.monotonic() - self._shown_at > 0.2:
            self._shown_at = time.monotonic()
            self._progress.update(self._task, completed=step, description=self._values)

    def window(self, values: dict[str, float], rate: float) -> None:
        """The training metrics to show beside the bar, and the examples per second."""
        self._values = f"{_words(values)}  {rate:,.0f} ex/s"

    def milestone(self, step: int, train: dict[str, float], validation: dict[str, float], best: bool) -> None:
        """A line for an evaluation (or, without validation images, where it would have been)."""
        parts = [
            f"{name} {_words(values)}" for name, values in (("train", train), ("validation", validation)) if values
        ]
        mark = "  best so far" if best else ""
        self.note(f"epoch {step / self._steps_per_epoch:6.2f}  step {step:>7,}   {'   '.join(parts)}{mark}")

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
    accuracy = f"  accuracy {values['accuracy']:.2%}" if "accuracy" in values else ""
    return f"loss {loss:.4f}{accuracy}"
