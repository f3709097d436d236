"""Every implementation of convolution against the NumPy oracle, in cases that have every pair of option values.

    python tests/ops/equivalence.py [--workers N] [--sets N] [--write docs/equivalence.md]

Programs in which something follows the convolution are compared by `fused_programs.py`, which writes the end of that
document.
What is compared, and how near it has to be, is said in `DOCUMENT` below, which that command fills in.
"""

import argparse
import concurrent.futures
import functools
import itertools
import math
import multiprocessing
import os
import pathlib
import random
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # where every product is as exact as its dtype

import fused_programs
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnnjax.doctor.exact import QUANTITIES, Exact, bound, oracle, unit_roundoff
from cnnjax.ops import CONV_IMPLEMENTATIONS, conv_implementation, reference

# --- The covering array -----------------------------------------------------------------------------------------------

OPTIONS = {
    "rank": [1, 2, 3],
    "dtype": ["float32", "bfloat16", "float16", "float64"],
    "layout": ["channels_last", "channels_first", "mixed", "numbers"],
    "strides": [(1, 1, 1), (2, 2, 2), (3, 1, 2), (1, 3, 2)],
    "padding": ["VALID", "SAME", "SAME_LOWER", ((0, 2), (3, 1), (1, 0)), ((-1, 0), (0, -2), (-1, 1))],
    "lhs_dilation": [(1, 1, 1), (2, 2, 2), (1, 3, 1)],
    "rhs_dilation": [(1, 1, 1), (2, 2, 2), (2, 1, 3)],
    "kernel": [(1, 1, 1), (3, 3, 1), (2, 4, 1), (3, 1, 3)],
    "groups": ["one", "two", "depthwise", "multiplier", "batch"],
    "channels": [1, 3, 9],
}
"""What a case has one value of each; the first entries of a tuple are those of the axes there are.

With three and nine times the channels and features there are cases of every class that `auto` chooses by.
"""

WINOGRAD_OPTIONS = OPTIONS | {
    "strides": [(1, 1, 1)],
    "rhs_dilation": [(1, 1, 1)],
    "kernel": [(3, 3, 1), (3, 1, 3), (5, 3, 1), (5, 5, 1)],
    "channels": [1, 9],
}
"""The values of which Winograd's algorithm can do every combination."""

SETS = 7
"""Covering sets in the whole array: as often each possible pair of option values occurs at least."""

Case = dict[str, Any]


def possible(case: Case) -> bool:
    """lax takes padding strings only without input dilation."""
    return not (isinstance(case["padding"], str) and max(case["lhs_dilation"]) > 1)


def pairs(case: Case) -> set:
    """Every pair of option values in a case."""
    return {(a, case[a], b, case[b]) for a, b in itertools.combinations(OPTIONS, 2)}


def possible_pairs(options: dict[str, list]) -> set:
    """Every pair of values of `options` that some case can have."""
    every = {(a, x, b, y) for a, b in itertools.combinations(options, 2) for x in options[a] for y in options[b]}
    harmless = {"padding": OPTIONS["padding"][-1], "lhs_dilation": (1, 1, 1)}
    return {(a, x, b, y) for a, x, b, y in every if possible(harmless | {a: x, b: y})}


def covering_set(options: dict[str, list], seed: int) -> list[Case]:
    """Cases in which every possible pair of values of two options occurs: greedily, the best of some random ones."""
    draw = random.Random(seed)
    missing, cases = possible_pairs(options), []
    while missing:
        a, x, b, y = min(missing, key=repr)  # this pair, and as many others as can be
        random_case = lambda: {name: draw.choice(values) for name, values in options.items()}
        candidates = [random_case() | {a: x, b: y} for _ in range(100)]
        best = max(filter(possible, candidates), key=lambda case: len(pairs(case) & missing))
        missing -= pairs(best)
        cases.append(best)
    return cases


def covering_array(sets: int) -> list[Case]:
    """`sets` covering sets of all options and as many of those that Winograd's algorithm can do."""
    return [case for seed in range(sets) for of in (OPTIONS, WINOGRAD_OPTIONS) for case in covering_set(of, seed)]


def quick_array() -> list[Case]:
    """The part of it in `make test`: a covering set of all options, and a dozen cases for Winograd's algorithm."""
    return [*covering_set(OPTIONS, seed=0), *covering_set(WINOGRAD_OPTIONS, seed=0)[:12]]


def count(cases: Sequence[Case]) -> int:
    """Cases with an implementation each."""
    return sum(len(able(case)) for case in cases)


def able(case: Case) -> list[str]:
    """The implementations that can do a case: Winograd's needs 1, 3 or 5 taps without gaps, at every position."""
    n = case["rank"]
    taps = case["kernel"][:n]
    fit = {1} != set(taps) <= {1, 3, 5} and all(v == 1 for v in case["strides"][:n] + case["rhs_dilation"][:n])
    return [name for name in CONV_IMPLEMENTATIONS if name != "winograd" or fit]


def shapes_and_options(case: Case) -> tuple[list[int], list[int], dict[str, Any]]:
    """Shapes of the operands of a case, and its options as `lax.conv_general_dilated` takes them."""
    n = case["rank"]
    groups, batch_groups, channels, features = {
        "one": (1, 1, 2, 3),
        "two": (2, 1, 4, 6),
        "depthwise": (3, 1, 3, 3),
        "multiplier": (3, 1, 3, 6),
        "batch": (1, 2, 2, 4),
    }[case["groups"]]
    channels, features = channels * case["channels"], features * case["channels"]
    if groups == 3:  # of one channel each
        groups = channels
    lhs = {"N": 2, "C": channels} | dict(zip("HWD", (7, 5, 4)[:n], strict=False))
    rhs = {"O": features, "I": channels // groups} | dict(zip("HWD", case["kernel"], strict=False))
    s = "HWD"[:n]
    layouts = {
        "channels_last": (f"N{s}C", f"{s}IO", f"N{s}C"),
        "channels_first": (f"NC{s}", f"OI{s}", f"NC{s}"),
        "mixed": (f"C{s[::-1]}N", f"I{s}O", f"{s[-1:]}NC{s[:-1]}"),
        "numbers": (f"{s}NC", f"O{s}I", f"NC{s}"),
    }[case["layout"]]
    lhs_shape, rhs_shape = [lhs[a] for a in layouts[0]], [rhs[a] for a in layouts[1]]
    numbers: Any = layouts
    if case["layout"] == "numbers":
        numbers = lax.conv_dimension_numbers(lhs_shape, rhs_shape, layouts)
    elif case["layout"] == "channels_first":
        numbers = None
    options = {
        "window_strides": case["strides"][:n],
        "padding": case["padding"] if isinstance(case["padding"], str) else case["padding"][:n],
        "lhs_dilation": case["lhs_dilation"][:n],
        "rhs_dilation": case["rhs_dilation"][:n],
        "dimension_numbers": numbers,
        "feature_group_count": groups,
        "batch_group_count": batch_groups,
    }
    return lhs_shape, rhs_shape, options


# --- The comparison ---------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """How one implementation did in one quantity of a case.

    Attributes:
      name, dtype, quantity: which.
      error: the largest error, in units of u times the largest `scale`.
      share: the largest error, as a part of its bound; more than 1 is a fault.
      fault: None, or what is wrong.
    """

    name: str
    dtype: str
    quantity: str
    error: float
    share: float
    fault: str | None


def everything(convolve, x, w, c, tx, tw) -> list[jax.Array]:
    """`QUANTITIES` by JAX: value, reverse mode, forward mode and forward over reverse."""

    def value_and_gradients(x, w):
        y, pull = jax.vjp(convolve, x, w)
        return y, *pull(c)

    (_, gx, gw), tangents = jax.jvp(value_and_gradients, (x, w), (tx, tw))
    return [convolve(x, w), gx, gw, *tangents]


FAST_COMPILATION = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Compiler options that halve the time of a case, nearly all of which goes to compiling."""


def compare(
    names: Sequence[str],
    dtype: str,
    lhs: Sequence[int],
    rhs: Sequence[int],
    options: dict[str, Any],
    compiler_options: dict[str, Any] | None = None,
) -> list[Result]:
    """Each of the implementations `names` against the oracle, for operands of the given shapes and dtype."""
    rng = np.random.default_rng(0)

    def operand(shape):  # numbers of one size, so that no result is too small for half precision
        numbers = rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape)
        return numbers.astype(jnp.dtype(dtype))

    x, w, tx, tw = (operand(shape) for shape in (lhs, rhs, lhs, rhs))
    c = operand(reference.conv_general_dilated(x, w, **options).shape)
    x64, w64, c64, *tangents = (a.astype(np.float64) for a in (x, w, c, tx, tw))
    exact = oracle(x64, w64, c64, tuple(tangents), **options)
    with jax.enable_x64(dtype == "float64"):
        run = jax.jit(
            lambda *operands: {
                name: everything(functools.partial(conv_implementation(name), **options), *operands) for name in names
            },
            compiler_options=compiler_options,
        )
        results = run(x, w, c, tx, tw)
    return [
        judge(name, quantity, np.asarray(got), it, bound(name, quantity, it, dtype, x, w, options), dtype)
        for name in names
        for quantity, got, it in zip(QUANTITIES, results[name], exact, strict=True)
    ]


def judge(name: str, quantity: str, got: np.ndarray, it: Exact, allowed: np.ndarray, dtype: str) -> Result:
    """`got` against the oracle's `it`."""
    if got.shape != it.exact.shape or got.dtype != jnp.dtype(dtype):
        fault = f"{got.dtype}{list(got.shape)} instead of {dtype}{list(it.exact.shape)}"
        return Result(name, dtype, quantity, math.inf, math.inf, fault)
    error = np.abs(got.astype(np.float64) - it.exact)
    scale = it.scale.max(initial=0)
    scaled = 0.0 if not error.any() else error.max() / (unit_roundoff(dtype) * scale) if scale else math.inf
    parts = np.divide(error, allowed, out=np.where(error > 0, math.inf, 0.0), where=allowed > 0)
    share = float(parts.max(initial=0))
    fault = None if share <= 1 else f"error of {scaled:.3g} u scale, {share:.3g} of the bound"  # NaN is a fault too
    return Result(name, dtype, quantity, float(scaled), share, fault)


def check(case: Case, compiler_options: dict[str, Any] | None = None) -> list[Result]:
    """Every implementation that can do a case of the covering array."""
    return compare(able(case), case["dtype"], *shapes_and_options(case), compiler_options)


def faults(results: Sequence[Result]) -> list[str]:
    """What is wrong, a line each."""
    return [f"{r.name}, {r.quantity} in {r.dtype}: {r.fault}" for r in results if r.fault]


# --- The command ------------------------------------------------------------------------------------------------------

DOCUMENT = """\
# Equivalence of the convolutions

Written by `make equivalence`, which runs `python tests/ops/equivalence.py --write docs/equivalence.md`.

Each implementation of `cnnjax.ops.conv_general_dilated` is compared with the definition, `cnnjax.ops.reference`, in
NumPy and float64. There are {cases:,} cases: {combinations:,} combinations of options, each with every implementation
that can do it. Every pair of values of two options occurs {sets} times at least for every implementation; for
`winograd`, of those values that it can do, and tests hold that it refuses the others. (XLA takes no padding by name
with `lhs_dilation`.)

| option | values |
|---|---|
{options}
Sizes are small: 2 examples, 2 to 4 channels and 3 to 6 features or three or nine times as many, 7 x 5 x 4 in space. An
entry of a tuple is for an axis. Compared are, for operands x and w, output weights c, and tangents tx and tw of the
operands:

- the value y(x, w);
- the gradients of <y, c> in x and in w, by reverse mode;
- the jvp, which is y(tx, w) + y(x, tw), by forward mode;
- the second derivatives: those of the two gradients along (tx, tw), by forward mode over reverse mode.

The oracle computes each of them from its definition; the gradients are loops over output positions, too. `make test`
runs {quick} of these cases. Convolutions of random sizes, layouts and options (hypothesis) are held to the same
bounds, 6 in `make test` and 200 in `make equivalence`.

## Bounds

Each number is a sum of K products: channels of a group times taps in a value, features of a group times taps in an
input gradient, examples times output positions in a kernel gradient, and in a jvp twice as many as in a value. Let u be
the unit roundoff of the dtype computed in: 2^-53 for float64, and 2^-24 for the others, all computed in float32.

- `xla`, `reference`, `im2col` and `shift` add up the products themselves. Whatever the order, for each element

      |got - exact| <= K u / (1 - K u) times the sum of the absolute values of its products

  (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition, section 3.1). Where that is 0, so is the
  result.
- `winograd`: with S the largest sum of |w| over taps and channels for one feature,

      |got - exact| <= cnnjax.ops.winograd.error_factor(terms, taps) u max|x| S.

  Its gradients are the same transforms in another order, with c for x or for w: in the input gradient max|c| S with S
  over taps and features for one channel; in the kernel gradient max|x| S with S the sum of |c| over examples and
  positions for one feature, and K, with one more for each axis, in place of the number of channels.
- `auto`: the first of these bounds, or that of `winograd` where it takes Winograd's algorithm for the value or for a
  gradient.
- `fft`: as `winograd`, with `cnnjax.ops.fft.error_factor(terms, tile)`; in the input gradient, times the number of
  tiles that an element is in.

In bfloat16 and float16 there is one rounding more at the end, by 2^-8 or 2^-11 of the result at most; in a jvp two, as
it may be the sum of two results. In float64 the oracle has an error of its own, of K 2^-53 at most.

## Results

Errors are in units of u (here that of the result's dtype) times the largest sum of the absolute values of an element's
products; the worst over all cases. "Second" is the worse of the two second derivatives. The last column is the largest
part of its bound that an element took up: more than 1 is an error, and for the direct sums a part near 1 is that of a
single product, rounded once. Operands are between 0.5 and 1.5 in size, of either sign; K is up to {terms}.
{versions}

{table}"""


def table(results: Sequence[Result], cases: dict[tuple[str, str], int]) -> str:
    """A line for each implementation and dtype, with the worst errors and the largest share of a bound."""
    columns = [QUANTITIES[:1], QUANTITIES[1:2], QUANTITIES[2:3], QUANTITIES[3:4], QUANTITIES[4:]]
    lines = [
        "| implementation | dtype | cases | value | input gradient | kernel gradient | jvp | second | of the bound |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, dtype in itertools.product(CONV_IMPLEMENTATIONS, OPTIONS["dtype"]):
        of = [r for r in results if (r.name, r.dtype) == (name, dtype)]
        worst = [max((r.error for r in of if r.quantity in column), default=0) for column in columns]
        share = max((r.share for r in of), default=0)
        numbers = " | ".join(f"{v:.2f}" for v in worst)
        lines.append(f"| `{name}` | {dtype} | {cases.get((name, dtype), 0)} | {numbers} | {share:.2g} |")
    totals = [f"`{name}` {sum(n for (of, _), n in cases.items() if of == name):,}" for name in CONV_IMPLEMENTATIONS]
    return "\n".join([*lines, "", f"Cases: {', '.join(totals)}; {sum(cases.values()):,} in all."])


def document(array: Sequence[Case], sets: int, results: Sequence[Result]) -> tuple[str, str]:
    """`DOCUMENT` filled in, and the table in it by itself."""
    cases: dict[tuple[str, str], int] = {}
    terms = 0
    for case in array:
        lhs, rhs, options = shapes_and_options(case)
        for name in able(case):
            cases[name, case["dtype"]] = cases.get((name, case["dtype"]), 0) + 1
        y = reference.conv_general_dilated(np.zeros(lhs), np.zeros(rhs), **options)
        x, w, c = map(np.zeros, (lhs, rhs, y.shape))
        terms = max(terms, *(it.terms for it in oracle(x, w, c, (x, w), **options)))
    rows = table(results, cases)
    rounds = {name: ", ".join(f"{value}" for value in values) for name, values in OPTIONS.items()}
    text = DOCUMENT.format(
        cases=count(array),
        combinations=len(array),
        sets=sets,
        quick=count(quick_array()),
        options="".join(f"| {name} | {values} |\n" for name, values in rounds.items()),
        terms=terms,
        versions=f"Measured on CPU with jax {jax.__version__}.",
        table=rows,
    )
    return text + "\n", rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="processes (2)")
    parser.add_argument("--sets", type=int, default=SETS, help=f"covering sets ({SETS})")
    parser.add_argument("--write", type=pathlib.Path, metavar="FILE", help="write the document there")
    arguments = parser.parse_args()
    array = covering_array(arguments.sets)
    results: list[Result] = []
    wrong: list[str] = []
    start = time.monotonic()
    with concurrent.futures.ProcessPoolExecutor(arguments.workers, multiprocessing.get_context("spawn")) as executor:
        for number, (case, found) in enumerate(zip(array, executor.map(check, array), strict=True), 1):
            results += found
            for line in faults(found):
                wrong.append(f"{line}: {case}")
                print(wrong[-1], flush=True)
            if number % 20 == 0:
                print(f"{number} of {len(array)} combinations, {time.monotonic() - start:.0f} s", flush=True)
    text, rows = document(array, arguments.sets, results)
    print(rows)
    if wrong:
        print(f"{len(wrong)} results are beyond their bounds", file=sys.stderr)
        return 1
    if arguments.write:
        fused = fused_programs.section_in(arguments.write)
        arguments.write.write_text(f"{text}\n{fused}" if fused else text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
