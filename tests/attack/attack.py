"""More than a thousand attacks on the commands, run folders, data and weights: each must end well.

    python tests/attack/attack.py [--only KIND] [--seed S] [--busy FACTOR] [--write docs/attacks.md]

An attack ends well where the result is right and unchanged, or where one line says what is wrong. It fails where the
result is wrong in silence, where there is a traceback, where nothing comes for 30 seconds, or where something is lost.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import os
import pathlib
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")
ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import case as attacks  # noqa: E402
import files  # noqa: E402
import jax  # noqa: E402
import processes  # noqa: E402
import typed  # noqa: E402
from case import EXPERIMENT, Verdict, judge  # noqa: E402

COUNTS = {"fields": 150, "run folders": 260, "signals": 12}
"""Of the kinds that are drawn from more."""

SHOWN = ("right", "line", "silent", "traceback", "many lines", "hang", "lost")


@dataclasses.dataclass(frozen=True)
class Ground:
    """What is attacked: a folder to work in, an experiment in it, its runs and images; and a folder outside."""

    folder: pathlib.Path
    outside: pathlib.Path

    @functools.cached_property
    def experiment(self) -> pathlib.Path:
        """An experiment of a second."""
        file = self.folder / "bright.py"
        file.write_text(EXPERIMENT, encoding="utf-8")
        return file

    @functools.cached_property
    def runs(self) -> files.Runs:
        """Finished runs of it."""
        return files.Runs(self.folder, self.experiment)

    @functools.cached_property
    def sets(self) -> files.Sets:
        """Images in a folder and in a tar."""
        return files.Sets(self.folder)


KINDS: dict[str, Callable[[Ground, random.Random], Iterator[attacks.Case]]] = {
    "options": lambda on, rng: typed.options(on.folder, on.experiment),
    "commands": lambda on, rng: typed.commands(on.folder, on.runs.whole),
    "fields": lambda on, rng: typed.fields(COUNTS["fields"], rng),
    "run folders": lambda on, rng: files.run_folders(on.runs, on.outside, COUNTS["run folders"], rng),
    "strays": lambda on, rng: files.strays(on.runs, on.outside),
    "names": lambda on, rng: files.names(on.runs),
    "folders of images": lambda on, rng: files.folders(on.sets, on.outside),
    "archives": lambda on, rng: files.archives(on.sets, rng),
    "prepared sets": lambda on, rng: files.prepared(on.folder),
    "weights": lambda on, rng: files.state_dicts(on.folder),
    "signals": lambda on, rng: processes.signals(on.folder, on.experiment, COUNTS["signals"]),
    "environments": lambda on, rng: processes.environments(on.folder, on.experiment),
}
"""The cases of each kind; what is drawn is the same whether other kinds go before or not."""


def cases(on: Ground, seed: int, only: str | None) -> Iterator[attacks.Case]:
    """Every case, kind after kind."""
    for kind, make in KINDS.items():
        if only in (None, kind):
            yield from make(on, random.Random(f"{seed} {kind}"))


@contextlib.contextmanager
def ending(case: attacks.Case):
    """Ends everything where a case hangs in compiled code, which no signal reaches."""

    def end() -> None:
        print(f"hang: {case.kind}: {case.name}: for good", flush=True)
        os._exit(1)

    timer = threading.Timer(2 * attacks.by_the_clock() + 10, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def table(verdicts: list[Verdict]) -> str:
    """The counts by kind, as a Markdown table."""
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for verdict in verdicts:
        counts[verdict.case.kind][verdict.outcome] += 1
    rows = ["| kind | attacks | " + " | ".join(SHOWN) + " |", "| --- |" + " ---: |" * (len(SHOWN) + 1)]
    for kind, count in [*counts.items(), ("all", sum(counts.values(), collections.Counter()))]:
        rows.append(f"| {kind} | {count.total()} | " + " | ".join(str(count[name]) for name in SHOWN) + " |")
    return "\n".join(rows)


PAGE = """# Attacks

`make attack` attacks the commands, run folders, data sets and weights in {total:,} ways. An attack ends well where the
result is **right** and unchanged (or what is odd is named beside it), or where one **line** says what is wrong. It
fails where the result is wrong in silence, where there is a traceback or more lines than one, where nothing comes for
30 seconds, or where a file is lost: files outside of the run's folder, or what a checkpoint holds. The cases are in
[`tests/attack`](../tests/attack), those of three kinds drawn at random from more (seed {seed}).

{table}

{failures}
"""


def main() -> int:
    """Prints each failure and the counts; the exit status is 1 where there is a failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=KINDS, help="one kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=pathlib.Path, help="a Markdown file for the counts")
    parser.add_argument("--patience", type=float, default=30, help="seconds of a processor for an attack")
    parser.add_argument(
        "--busy", type=float, default=1, help="so many times as long by the clock, on a machine with other work"
    )
    parser.add_argument("--verbose", action="store_true", help="a line for each attack")
    arguments = parser.parse_args()
    attacks.PATIENCE, attacks.BUSY = arguments.patience, arguments.busy
    write = arguments.write and arguments.write.resolve()
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name) / "attack"
        outside = pathlib.Path(name) / "outside"
        here = pathlib.Path(name) / "here"
        for made in (folder, outside, here):
            made.mkdir()
        (outside / "precious.txt").write_text("the only copy\n")
        os.environ["CNNJAX_CACHE"] = str(folder / "cache")
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))  # most cases run the same programs
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        os.chdir(here)  # what is written to a relative path
        started = kind_started = time.monotonic()
        kind = ""
        for case in cases(Ground(folder, outside), arguments.seed, arguments.only):
            if case.kind != kind:
                if kind:
                    print(f"{kind}: {time.monotonic() - kind_started:.0f} s", flush=True)
                kind, kind_started = case.kind, time.monotonic()
            case_started = time.monotonic()
            with ending(case):
                verdict = judge(case, outside)
            verdicts.append(verdict)
            if arguments.verbose:
                print(
                    f"{time.monotonic() - case_started:5.1f} s {verdict.outcome}: {case.name}: {verdict.detail[:200]}"
                )
            if not verdict.good:
                print(f"{verdict.outcome}: {case.kind}: {case.name}: {verdict.detail}", flush=True)
        os.chdir(ROOT)
        print(f"{kind}: {time.monotonic() - kind_started:.0f} s\n")
    bad = [verdict for verdict in verdicts if not verdict.good]
    print(table(verdicts))
    print(f"{len(verdicts):,} attacks, {len(bad)} failed, in {time.monotonic() - started:.0f} s")
    if write:
        failures = (
            "All ended well."
            if not bad
            else "Failures:\n\n"
            + "\n".join(f"- {one.outcome}: {one.case.kind}: `{one.case.name!r:.100}`" for one in bad)
        )
        page = PAGE.format(total=len(verdicts), seed=arguments.seed, table=table(verdicts), failures=failures)
        write.write_text(page, encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
