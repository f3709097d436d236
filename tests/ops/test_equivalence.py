"""Every implementation of convolution against the oracle: some of the cases of `make equivalence`, and any others."""

import functools
import itertools
import math

import equivalence
import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from cnnjax.ops import CONV_IMPLEMENTATIONS, InputError, auto, conv_implementation, reference, table

# --- The covering array -----------------------------------------------------------------------------------------------

QUICK = equivalence.quick_array()


def pairs_of(name, cases) -> set:
    return set().union(*(equivalence.pairs(case) for case in cases if name in equivalence.able(case)))


def test_the_array_covers():
    """Every pair of option values for every implementation, once in the tests and as often as promised in all."""
    whole = equivalence.covering_array(equivalence.SETS)
    assert equivalence.count(whole) >= 3000
    assert equivalence.count(QUICK) >= 300
    every = equivalence.possible_pairs(equivalence.OPTIONS)
    assert len(every) > 400
    for name in CONV_IMPLEMENTATIONS:
        if name == "winograd":
            winograd = equivalence.possible_pairs(equivalence.WINOGRAD_OPTIONS)
            assert len(winograd) > 200
            assert pairs_of(name, whole) >= winograd
        else:
            assert pairs_of(name, QUICK) >= every
            assert pairs_of(name, whole) >= every


def test_the_array_reaches_every_method_of_auto(monkeypatch):
    """Every class of its table in float32, and Winograd's algorithm with 3 and 5 taps along two axes."""
    seen, tiled = set(), set()
    shape_class, by_winograd = table.shape_class, auto.by_winograd

    def class_seen(w, g):
        seen.add(shape_class(w, g))
        return shape_class(w, g)

    def taps_seen(x, w, g):
        tiled.add(tuple(sorted(k for k in g.taps if k > 1)))
        return by_winograd(x, w, g)

    monkeypatch.setattr(table, "shape_class", class_seen)
    monkeypatch.setattr(auto, "by_winograd", taps_seen)
    for case in equivalence.covering_array(equivalence.SETS):
        if case["dtype"] == "float32":
            lhs, rhs, options = equivalence.shapes_and_options(case)
            operands = [jax.ShapeDtypeStruct(shape, np.float32) for shape in (lhs, rhs)]
            jax.eval_shape(functools.partial(conv_implementation("auto"), **options), *operands)
    assert seen == set(table.CLASSES)
    assert tiled >= {(3,), (3, 3), (5,)}


@pytest.mark.parametrize("index", range(len(QUICK)))
def test_equivalence(index):
    """Values, gradients, a jvp and second derivatives, within the bounds that docs/equivalence.md gives."""
    assert equivalence.faults(equivalence.check(QUICK[index], equivalence.FAST_COMPILATION)) == []


def test_who_can_do_what():
    """`able` is right about each case: whoever cannot says so in a line, and names those who can."""
    refused = 0
    for case in QUICK:
        lhs, rhs, options = equivalence.shapes_and_options(case)
        operands = [jax.ShapeDtypeStruct(shape, np.float32) for shape in (lhs, rhs)]
        for name in CONV_IMPLEMENTATIONS:
            run = functools.partial(jax.eval_shape, functools.partial(conv_implementation(name), **options), *operands)
            if name in equivalence.able(case):
                run()
            else:
                refused += 1
                with pytest.raises(InputError, match=f"{name!r} cannot do this convolution: got .*") as caught:
                    run()
                assert "Those that can: auto, xla, reference, im2col, shift, fft (" in str(caught.value)
    assert refused > 10


# --- Any convolution --------------------------------------------------------------------------------------------------


@st.composite
def convolutions(draw):
    n = draw(st.integers(1, 3))
    axis = lambda elements: tuple(draw(st.lists(elements, min_size=n, max_size=n)))
    groups = draw(st.sampled_from([(1, 1), (2, 1), (3, 1), (1, 2)]))
    for_winograd = draw(st.booleans())
    ones = (1,) * n
    lhs_dilation = axis(st.integers(1, 3))
    padding = axis(st.tuples(st.integers(-2, 3), st.integers(-2, 3)))
    if lhs_dilation == ones:
        padding = draw(st.sampled_from(["VALID", "SAME", "SAME_LOWER", padding]))
    space, taps = axis(st.integers(4, 6)), axis(st.sampled_from([3, 1]) if for_winograd else st.integers(1, 3))
    batch, channels, features = draw(st.integers(0, 2)) * groups[1], draw(st.integers(1, 2)), draw(st.integers(1, 2))
    letters = "HWD"[:n]
    layouts = tuple("".join(draw(st.permutations(a + letters))) for a in ("NC", "OI", "NC"))
    sizes = dict(zip(letters, zip(space, taps, strict=True), strict=True))
    lhs = [sizes[a][0] if a in sizes else {"N": batch, "C": channels * groups[0]}[a] for a in layouts[0]]
    rhs = [sizes[a][1] if a in sizes else {"O": features * math.prod(groups), "I": channels}[a] for a in layouts[1]]
    order = [letters.index(a) for a in layouts[1] if a in letters]
    by_kernel = lambda values: values if isinstance(values, str) else tuple(values[i] for i in order)
    options = {
        "window_strides": ones if for_winograd else axis(st.integers(1, 3)),
        "padding": by_kernel(padding),
        "lhs_dilation": by_kernel(lhs_dilation),
        "rhs_dilation": ones if for_winograd else axis(st.integers(1, 2)),
        "dimension_numbers": layouts,
        "feature_group_count": groups[0],
        "batch_group_count": groups[1],
    }
    names = [name for name in CONV_IMPLEMENTATIONS if name != "winograd" or (for_winograd and 3 in taps)]
    return names, draw(st.sampled_from(equivalence.OPTIONS["dtype"])), lhs, rhs, options


def any_convolution(convolution):
    assert equivalence.faults(equivalence.compare(*convolution, equivalence.FAST_COMPILATION)) == []


settings = functools.partial(hypothesis.settings, deadline=None, derandomize=True, database=None)
test_any_convolution = settings(max_examples=6)(hypothesis.given(convolutions())(any_convolution))


@pytest.mark.equivalence
@settings(max_examples=200)
@hypothesis.given(convolutions())
def test_many_more_convolutions(convolution):
    any_convolution(convolution)


# --- The oracle, the bounds and the judge -----------------------------------------------------------------------------


@pytest.mark.parametrize("groups", ["two", "multiplier", "batch"])
@pytest.mark.parametrize(
    ("padding", "lhs_dilation"), [("SAME_LOWER", (1, 1, 1)), (((-1, 0), (0, -2), (-1, 1)), (2, 1, 1))]
)
def test_the_oracle_of_gradients(groups, padding, lhs_dilation):
    """Element by element: the gradient of a linear function is what it makes of each unit vector."""
    case = {"rank": 2, "layout": "mixed", "strides": (2, 1), "rhs_dilation": (1, 2), "kernel": (2, 2), "groups": groups}
    case |= {"padding": padding, "lhs_dilation": lhs_dilation, "channels": 1}
    lhs, rhs, options = equivalence.shapes_and_options(case)
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=lhs), rng.normal(size=rhs)
    y = functools.partial(reference.conv_general_dilated, **options)
    c = rng.normal(size=y(x, w).shape)
    units = lambda a: np.eye(a.size).reshape(-1, *a.shape)
    gx, gw = reference.conv_gradients(x, w, c, **options)
    np.testing.assert_allclose(gx.ravel(), [np.vdot(y(unit, w), c) for unit in units(x)], atol=1e-12)
    np.testing.assert_allclose(gw.ravel(), [np.vdot(y(x, unit), c) for unit in units(w)], atol=1e-12)


@pytest.mark.parametrize(
    ("rank", "stride", "padding", "dilation", "groups"),
    [(1, 1, 0, 1, 1), (1, 2, 3, 2, 2), (2, 2, 1, 1, 1), (2, 1, 2, 2, 4), (2, 3, (0, 2), (1, 2), 2), (3, 2, 1, 1, 2)],
)
def test_the_oracle_is_pytorchs(rank, stride, padding, dilation, groups):
    """Value and both gradients in double precision; and `auto`'s value, right away."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(rank)
    x, w = rng.normal(size=(2, 4, 7, 6, 5)[: 2 + rank]), rng.normal(size=(4, 4 // groups, 3, 3, 2)[: 2 + rank])
    tx, tw = (torch.tensor(a, requires_grad=True) for a in (x, w))
    ty = getattr(torch.nn.functional, f"conv{rank}d")(tx, tw, None, stride, padding, dilation, groups)
    c = rng.normal(size=tuple(ty.shape))
    ty.backward(torch.tensor(c))
    per_axis = lambda v: v if isinstance(v, tuple) else (v,) * rank
    options = {
        "window_strides": per_axis(stride),
        "padding": [(p, p) for p in per_axis(padding)],
        "lhs_dilation": per_axis(1),
        "rhs_dilation": per_axis(dilation),
        "dimension_numbers": None,
        "feature_group_count": groups,
        "batch_group_count": 1,
    }
    with jax.enable_x64(True):
        auto = jax.jit(functools.partial(conv_implementation("auto"), **options))(x, w)
    y = reference.conv_general_dilated(x, w, **options)
    gradients = reference.conv_gradients(x, w, c, **options)
    for ours, theirs in zip((y, auto, *gradients), (ty.detach(), ty.detach(), tx.grad, tw.grad), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-12)


SMALL = ("float32", [1, 2, 8], [1, 2, 3], {
    "window_strides": (1,), "padding": "VALID", "lhs_dilation": (1,), "rhs_dilation": (1,), "dimension_numbers": None,
    "feature_group_count": 1, "batch_group_count": 1,
})  # fmt: skip


def small():
    """Of ones, with 2 channels and 3 taps: what the oracle says of each quantity."""
    _, lhs, rhs, options = SMALL
    x, w, c = map(np.ones, (lhs, rhs, [1, 1, 6]))
    return equivalence.oracle(x, w, c, (x, w), **options)


def test_the_oracle_by_hand():
    """6 outputs of 6 products; an input element is in 1 to 3 windows; a kernel element meets 6 elements."""
    ends, middle = [1, 2, 3, 3, 3, 3, 2, 1], [6] * 6
    exact = {
        "value": ([[middle]], 6, 6),
        "input gradient": ([[ends, ends]], 3, 3),
        "kernel gradient": ([[[6] * 3] * 2], 6, 6),
        "jvp": ([[[12] * 6]], 12, 12),
        "second in input": ([[ends, ends]], 3, 3),
        "second in kernel": ([[[6] * 3] * 2], 6, 6),
    }
    for (numbers, largest, terms), it in zip(exact.values(), small(), strict=True):
        np.testing.assert_array_equal(it.exact, numbers)
        np.testing.assert_array_equal(it.scale, numbers)
        assert (it.largest, it.terms) == (largest, terms)
    assert tuple(exact) == equivalence.QUANTITIES


def test_bounds_by_hand():
    """36 u for a sum of 6 numbers that add up to 6; half precision adds half a unit in the last place of the result."""
    _, lhs, rhs, options = SMALL
    it = small()[0]
    for dtype, name, expected in [
        ("float32", "reference", 36 * 2**-24),
        ("float64", "xla", 2 * 36 * 2**-53),  # and the oracle's own
        ("bfloat16", "auto", 36 * 2**-24 + 6 * 2**-8),
        ("float32", "winograd", 6 * 1.01 * (2 + 5 + 3 + 4 + 1) * (88 / 3) * 2**-24),
        ("float32", "fft", 6 * 1.01 * 2 * (30 * 3 + 2 * math.sqrt(2) * 6) * 2**-24),  # tiles of 4
    ]:
        operands = [jax.ShapeDtypeStruct(shape, dtype) for shape in (lhs, rhs)]
        with jax.enable_x64(True):
            bound = equivalence.bound(name, "value", it, dtype, *operands, options)
        np.testing.assert_allclose(bound, np.full((1, 1, 6), expected), rtol=1e-4)


def test_what_is_wrong_is_found():
    """An error in any implementation and quantity: too large, not a number, another dtype or shape."""
    it = small()[0]
    allowed = np.full(it.exact.shape, 2.0**-20)
    judge = lambda got: equivalence.judge("im2col", "value", got, it, allowed, "float32")
    right = it.exact.astype(np.float32)
    assert judge(right) == ("im2col", "float32", "value", 0, 0, None)
    near = judge(right + np.float32(2**-21) * (np.arange(6) == 2).astype(np.float32))
    assert (near.error, near.share, near.fault) == (2**-21 / (2**-24 * 6), 0.5, None)
    wrong = [right + np.float32(2**-19), right * np.nan, it.exact, right[0]]
    for got, fault in zip(wrong, ["2 of the bound", "nan of the bound", "float64", r"float32[1, 6]"], strict=True):
        assert fault in judge(got).fault
        assert equivalence.faults([judge(got)])[0].startswith("im2col, value in float32: ")


def test_a_wrong_implementation_is_found(monkeypatch):
    """All quantities are looked at: a convolution that is off by a part in 10,000 fails in each of them."""
    off = lambda name: (
        lambda x, w, **options: conv_implementation(name)(x, w, **options) * (1 + 1e-4 * (name == "shift"))
    )
    monkeypatch.setattr(equivalence, "conv_implementation", off)
    results = equivalence.compare(["xla", "shift"], *SMALL, equivalence.FAST_COMPILATION)
    assert [(r.name, r.quantity) for r in results if r.fault] == [("shift", q) for q in equivalence.QUANTITIES]


def test_the_document():
    """The table has a line for each implementation and dtype, and the number of cases."""
    results = [
        equivalence.Result(name, dtype, quantity, number, number / 100, None)
        for name, dtype in itertools.product(CONV_IMPLEMENTATIONS, equivalence.OPTIONS["dtype"])
        for number, quantity in enumerate(equivalence.QUANTITIES)
    ]
    text, table = equivalence.document(QUICK, 1, results)
    assert table in text
    assert f"{equivalence.count(QUICK):,} cases" in text
    assert f"{equivalence.count(QUICK):,} in all" in table
    number = sum(case["dtype"] == "float16" for case in QUICK)
    assert f"| `fft` | float16 | {number} | 0.00 | 1.00 | 2.00 | 3.00 | 5.00 | 0.05 |" in table
