"""An attack, and what became of it."""

import contextlib
import dataclasses
import hashlib
import io
import json
import pathlib
import shutil
import signal
import stat
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from cnnjax import cli
from cnnjax.ops.errors import InputError
from cnnjax.training import RunError

PATIENCE = 30.0
"""Seconds of a processor after which a command counts as hanging."""

BUSY = 1.0
"""By the clock it may take so many times as long: more than once where other processes have the processor too."""

EXPERIMENT = '''"""Three classes of tiny images, told apart by where they are bright."""

import numpy as np

from cnnjax import data
from cnnjax.training import Config, Data, Model, Optimizer, Run, Train, launch


def arrays(n, seed):
    rng = np.random.default_rng(seed)
    label = (np.arange(n) % 3).astype(np.int32)
    image = rng.integers(0, 100, (n, 9, 9, 1))
    for i, k in enumerate(label):
        image[i, 3 * k : 3 * k + 3] += 120
    return data.Arrays(image.astype(np.uint8), label)


def bright(**_):
    return data.Dataset("bright", arrays(60, 0), arrays(21, 1), None, ("top", "middle", "bottom"), {"made": "here"})


data.DATASETS["bright"] = bright
CONFIG = Config(
    model=Model("fully_connected", {"dense": [8]}),
    data=Data("bright", validation=0.2),
    optimizer=Optimizer("sgd", learning_rate=0.1),
    train=Train(steps=4, epochs=None, batch_size=8, evaluate_every=2),
    run=Run(log_every=2, keep=50, eval_batch_size=16),
)


def main(argv=None):
    return launch(CONFIG, __file__, argv)


if __name__ == "__main__":
    raise SystemExit(main())
'''


@dataclasses.dataclass(frozen=True)
class Said:
    """What a command, or a call, ended with."""

    status: int = 0
    out: str = ""
    err: str = ""
    value: Any = None

    @property
    def warned(self) -> bool:
        """Whether something was said besides the result."""
        return bool(self.err.strip())


@dataclasses.dataclass(frozen=True)
class Case:
    """An attack.

    Attributes:
      kind: of attack, for the counts.
      name: of this one.
      act: does it; what it raises is judged.
      right: of one that ends with status 0: "" where what came out is right, or what was wrong is said; else what is
        silently wrong.
      keeps: two folders: no content of a file of the first may be missing in the second.
    """

    kind: str
    name: str
    act: Callable[[], Said]
    right: Callable[[Said], str]
    keeps: tuple[pathlib.Path, pathlib.Path] | None = None


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a case: "line", "right", or a failure: "silent", "traceback", "hang", "lost", "many lines"."""

    case: Case
    outcome: str
    detail: str

    @property
    def good(self) -> bool:
        """Whether it is as promised."""
        return self.outcome in ("line", "right")


class Hang(BaseException):
    """It takes too long."""


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Raises `Hang` where what is inside takes longer than `PATIENCE`, or by the clock than that when busy."""

    def give_up(number: int, frame: Any) -> None:
        raise Hang

    before = {number: signal.signal(number, give_up) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    signal.setitimer(signal.ITIMER_REAL, by_the_clock())
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def by_the_clock() -> float:
    """Seconds by the clock that a command may take."""
    return PATIENCE * BUSY


def command(*argv: object) -> Said:
    """`cnnjax` with these arguments, in this process."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main([str(word) for word in argv])
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
    return Said(status, out.getvalue(), err.getvalue())


def call(function: Callable[..., Any], *arguments: Any, **more: Any) -> Said:
    """What a function gives, or its error as a command would say it."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(err), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            value = function(*arguments, **more)
        except (InputError, RunError) as error:
            return Said(2, "", f"error: {error}\n")
    return Said(0, "", err.getvalue() + "".join(f"{warning.message}\n" for warning in said), value)


def judge(case: Case, outside: pathlib.Path) -> Verdict:
    """Does a case, and says what became of it.

    Args:
      case: the case.
      outside: a folder that nothing may touch.
    """
    before = contents(outside)
    kept = digests(case.keeps[0]) if case.keeps else set()
    try:
        with patience():
            said = case.act()
    except Hang:
        return Verdict(case, "hang", f"over {PATIENCE:g} s")
    except BaseException as error:
        return Verdict(case, "traceback", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    if contents(outside) != before:
        return Verdict(case, "lost", "files outside were changed")
    if case.keeps and (lost := kept - digests(case.keeps[1])):
        return Verdict(case, "lost", f"{len(lost)} files of {case.keeps[0]}")
    if "Traceback" in said.err + said.out:
        return Verdict(case, "traceback", said.err[-300:])
    if said.status == 0:
        wrong = case.right(said)
        return Verdict(case, "silent", wrong) if wrong else Verdict(case, "right", "")
    said = dataclasses.replace(said, err="\n".join(one for one in said.err.splitlines() if "WARNING:absl" not in one))
    *others, line = said.err.splitlines() or [""]
    if "Unknown flag in XLA_FLAGS" in line:  # by which XLA itself ends the process
        return Verdict(case, "line", line)
    if not line.startswith("error: ") or len(line) > 3000:
        return Verdict(case, "silent", f"status {said.status}, {said.err[-300:]!r}")
    if strange := [
        other
        for other in others
        if not other.startswith(("warning: ", "cnnjax: ", "waiting ", "making ", "compiling "))
    ]:
        return Verdict(case, "many lines", " / ".join(strange)[:300])
    return Verdict(case, "line", line)


def contents(folder: pathlib.Path) -> dict[str, str]:
    """Every file below a folder, with a digest."""
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def digests(folder: pathlib.Path) -> set[str]:
    """Of what is in the regular files below a folder."""
    found = set()
    for path in folder.rglob("*") if folder.is_dir() and not folder.is_symlink() else ():
        with contextlib.suppress(OSError):
            if stat.S_ISREG(path.lstat().st_mode) and path.lstat().st_size:
                found.add(hashlib.sha256(path.read_bytes()).hexdigest())
    return found


def copy(folder: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
    """A copy of a folder in the place of what was there."""
    if to.is_symlink() or to.is_file():
        to.unlink()
    shutil.rmtree(to, ignore_errors=True)
    return pathlib.Path(shutil.copytree(folder, to, symlinks=True))


def result_of(run: pathlib.Path) -> dict[str, Any]:
    """The result in a run's folder."""
    return json.loads((run / "result.json").read_text(encoding="utf-8"))
