"""Every implementation of convolution in one program with what networks put behind it, on the installed release.

    python tests/ops/fused_programs.py [--workers N] [--sizes ROWS ...] [--write docs/equivalence.md]

What is compared is in `cnnjax.doctor.fused`. `--write` sets the line of this release in the document's table; `make
releases` runs this on every release that is allowed.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import pathlib
import platform
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # where every product is as exact as its dtype

from cnnjax import releases
from cnnjax.doctor import fused
from cnnjax.ops import CONV_IMPLEMENTATIONS

HEADING = "## Fused programs"


class Result(NamedTuple):
    """How the programs of one case and one implementation did."""

    implementation: str
    arrays: int
    error: float  # the largest, of the largest sum of absolute values in an element
    wrong: tuple[str, ...]  # a line for each array that is wrong


def check(case: fused.Case) -> list[Result]:
    """A case in every implementation that can do it."""
    results = []
    for name in fused.implementations(case):
        found = fused.compare(case, name)
        wrong = tuple(difference.text for difference in found if difference.wrong)
        results.append(Result(name, len(found), max(difference.error for difference in found), wrong))
    return results


SECTION = f"""\
{HEADING}

Written by `make equivalence` for the installed release, and by `make releases` for all that are allowed.

XLA compiles whole programs, and a convolution that is right alone may be wrong with what follows it. So each
implementation is also compared under one `jit` with what networks put behind it ({{tails}}): the outputs, the outputs
and both gradients, or the kernel's gradient alone. There are {{layers}} layers, each with each of the {{count}} tails,
at some {{sizes}} rows (examples times positions) of images of {{sides}} pixels square, by turns. `make test` runs a
chosen part.

Operands are integers of at most 1 in size, no more than {{nonzero}} of them in the kernel of a feature, and means
divide by a power of two, so that float32 has no rounding in any order of sums. So an array of `reference`, `im2col`,
`shift`, `xla` or `auto` that is off at all is wrong, but for softmaxes, gradients shared by equal maxima, and `auto`
where it takes Winograd's algorithm. Those, `winograd` and `fft` may be off by 2^-12 of the sum of the absolute values
that an element is made of, or by K 2^-24 of it in a loss over K rows. The columns of the implementations are their
largest errors in these units; a program compiled wrongly is off by some tenths. "Probes" are the programs that some
release is known to compile wrongly (docs/releases.md).

{{header}}
{{rule}}
"""


def empty_section() -> str:
    """`SECTION` filled in, its table without lines."""
    columns = ["jaxlib", "Python", "XLA_FLAGS", "programs", "arrays", "wrong", *CONV_IMPLEMENTATIONS, "probes wrong"]
    text = SECTION.format(
        tails="; ".join(fused.TAILS),
        layers=len(fused.LAYERS),
        count=len(fused.TAILS),
        sizes=" or ".join(f"{size:,}" for size in fused.SIZES),
        sides=" or ".join(map(str, fused.SIDES)),
        nonzero=fused.NONZERO,
        header=f"| {' | '.join(columns)} |",
        rule=f"|---|---|---|{'--:|' * (len(columns) - 3)}",
    )
    paragraphs = text.strip().split("\n\n")
    table = paragraphs.pop()
    return "\n\n".join([*(textwrap.fill(part, 120) for part in paragraphs), f"{table}\n"])


def section_in(path: pathlib.Path) -> str:
    """The section of a document, to its end; empty where there is none."""
    text = path.read_text() if path.exists() else ""
    return text[text.index(HEADING) :] if HEADING in text else ""


def with_line(document: str, version: str, line: str) -> str:
    """The document with this line for a release, in place of an earlier one; the table is sorted."""
    before, _, section = document.partition(HEADING)
    lines = {row.split("|")[1].strip(): row for row in section.splitlines() if row.startswith("| 0.")}
    lines[version] = line
    by_version = lambda name: [int(part) for part in name.split(".") if part.isdecimal()]
    rows = "".join(f"{lines[name]}\n" for name in sorted(lines, key=by_version))
    return f"{before.rstrip()}\n\n{empty_section()}{rows}"


def table_line(version: str, results: Sequence[Result], probes: Iterable[str]) -> str:
    """The line of a release."""
    flags = releases.RELEASES.get(version, releases.Release()).flags
    worst = [max((r.error for r in results if r.implementation == name), default=0) for name in CONV_IMPLEMENTATIONS]
    cells = [
        version,
        ".".join(platform.python_version_tuple()[:2]),
        " ".join(f"`{flag.removeprefix('--xla_cpu_')}`" for flag in flags) or "none needed",
        f"{len(results):,}",
        f"{sum(r.arrays for r in results):,}",
        str(sum(len(r.wrong) for r in results)),
        *(f"{error:.1e}" if error else "0" for error in worst),
        ", ".join(probes) or "none",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="processes (2)")
    parser.add_argument("--sizes", type=int, nargs="+", default=fused.SIZES, help="rows, about")
    parser.add_argument("--write", type=pathlib.Path, metavar="FILE", help="set this release's line in the document")
    arguments = parser.parse_args()
    version = releases.installed() or "?"
    cases = fused.cases(arguments.sizes)
    results: list[Result] = []
    start = time.monotonic()
    with concurrent.futures.ProcessPoolExecutor(arguments.workers, multiprocessing.get_context("spawn")) as executor:
        for number, found in enumerate(executor.map(check, cases), 1):
            results += found
            for line in (line for result in found for line in result.wrong):
                print(line, flush=True)
            if number % 10 == 0:
                print(f"{number} of {len(cases)} cases, {time.monotonic() - start:.0f} s", flush=True)
    probes = {name: line for name in fused.PROBES if (line := fused.probe(name)) is not None}
    for name, probe in probes.items():
        print(f"{name}: {probe}")
    line = table_line(version, results, probes)
    print(f"{empty_section().splitlines()[-2]}\n{empty_section().splitlines()[-1]}\n{line}")
    if arguments.write:
        arguments.write.write_text(with_line(arguments.write.read_text(), version, line))
    return int(bool(probes) or any(result.wrong for result in results))


if __name__ == "__main__":
    sys.exit(main())
