"""Convolution by minimal filtering: its matrices exactly, values against the oracle, errors against their bound."""

import functools
import itertools
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads
from rounding import KINDS, UNIT_ROUNDOFF, operands, worst_error

from cnnjax.ops import InputError, reference
from cnnjax.ops.conv_spec import conv_spec
from cnnjax.ops.winograd import choose_tile, conv_winograd, error_factor, minimal_filtering, refusal

NHWC = ("NHWC", "HWIO", "NHWC")


def winograd(x, w, *arguments, tile=None, **options):
    """`conv_winograd` with the arguments of `lax.conv_general_dilated`."""
    return conv_winograd(x, w, conv_spec(x, w, *arguments, **options), tile=tile)


def assert_close(actual, expected, tolerance=1e-11):
    """Equal to `tolerance` of the largest number."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    scale = max(1.0, float(np.max(np.abs(expected), initial=0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


# --- The matrices ---------------------------------------------------------------------------------------------------

# As printed by Lavin and Gray, sections 4.1 and 4.3: A^T, G, B^T.
PRINTED = {
    2: (
        [[1, 1, 1, 0], [0, 1, -1, -1]],
        [[1, 0, 0], ["1/2", "1/2", "1/2"], ["1/2", "-1/2", "1/2"], [0, 0, 1]],
        [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    ),
    4: (
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
        [
            ["1/4", 0, 0],
            ["-1/6", "-1/6", "-1/6"],
            ["-1/6", "1/6", "-1/6"],
            ["1/24", "1/12", "1/6"],
            ["1/24", "-1/12", "1/6"],
            [0, 0, 1],
        ],
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
    ),
}


def products(a_t, g, b_t):
    """For each of the n multiplications, what it contributes to output i from tap k and input l, scales multiplied."""
    return [
        [[[row[j] * g_k * b_l for b_l in b_t[j]] for g_k in g[j]] for row in a_t]  # [i][k][l]
        for j in range(len(b_t))
    ]


@pytest.mark.parametrize("m", PRINTED)
def test_the_matrices_are_those_of_the_paper(m):
    """Up to a factor for each multiplication, which may stand in any of the three; for m = 4 to the letter."""
    printed = [[[Fraction(v) for v in row] for row in matrix] for matrix in PRINTED[m]]
    ours = minimal_filtering(m, 3)
    assert products(*ours) == products(*printed)
    if m == 4:
        assert [[list(row) for row in matrix] for matrix in ours] == printed


@pytest.mark.parametrize(("m", "r"), [(m, r) for m, r in itertools.product(range(1, 7), repeat=2) if m + r <= 9])
def test_filtering_is_exact(m, r):
    """In rationals, output i is the sum over k of x[i + k] w[k]: all n products together, for each x[l] and w[k]."""
    n = m + r - 1
    a_t, g, b_t = minimal_filtering(m, r)
    assert (len(a_t), len(g), len(b_t)) == (m, n, n)
    assert all(v.denominator == 1 or m + r > 7 for row in b_t for v in row)
    for i, k, j in itertools.product(range(m), range(r), range(n)):
        assert sum(a_t[i][q] * g[q][k] * b_t[q][j] for q in range(n)) == (j == i + k)


def test_one_tap_is_the_identity():
    assert minimal_filtering(1, 1) == (((1,),),) * 3


@pytest.mark.parametrize(("m", "r"), [(0, 3), (4, 0), (5, 5)])
def test_no_such_filtering(m, r):
    with pytest.raises(InputError, match=f"m and r must be 1 or more, and m \\+ r no more than 9: got {m} and {r}"):
        minimal_filtering(m, r)


def test_choice_of_tile():
    """Multiplications along an axis, by hand: 4, 4, 8, 8, 12, 12, 16 ... for m = 2 and 6, 6, 6, 6, 12 ... for m = 4."""
    assert [choose_tile(outputs, 3, jnp.float32) for outputs in range(1, 11)] == [2, 2, 4, 4, 2, 2, 4, 4, 4, 4]
    # 6, 6, 12, 12, 18 ... for m = 2 and 8, 8, 8, 8, 16 ... for m = 4 and 5 taps
    assert [choose_tile(outputs, 5, jnp.float32) for outputs in range(1, 8)] == [2, 2, 4, 4, 4, 4, 4]
    assert choose_tile(56, 3, jnp.float64) == choose_tile(56, 3, jnp.complex64) == 4
    assert choose_tile(56, 3, jnp.bfloat16) == choose_tile(56, 3, jnp.float16) == 2
    assert choose_tile(56, 1, jnp.float32) == 1


# --- Values and gradients -------------------------------------------------------------------------------------------

# (lhs shape, rhs shape, padding, options)
CASES = {
    "1-D": ((2, 2, 9), (3, 2, 3), "SAME", {}),
    "1x1 output": ((2, 3, 3, 2), (3, 3, 2, 4), "VALID", {"dimension_numbers": NHWC}),
    "2-D same": ((2, 7, 10, 3), (3, 3, 3, 2), "SAME", {"dimension_numbers": NHWC}),
    "1x3": ((2, 5, 6, 2), (1, 3, 2, 3), "VALID", {"dimension_numbers": NHWC}),
    "3x1, mixed layout": ((2, 6, 2, 5), (2, 3, 1, 3), "SAME", {"dimension_numbers": ("CHNW", "IHWO", "WNCH")}),
    "5 taps": ((2, 7, 10, 3), (5, 5, 3, 2), "SAME", {"dimension_numbers": NHWC}),
    "5x3": ((2, 6, 5, 2), (5, 3, 2, 3), ((0, 1), (-1, 2)), {"dimension_numbers": NHWC}),
    "3-D": ((1, 2, 5, 4, 6), (2, 2, 3, 1, 3), ((1, 0), (2, 1), (0, 1)), {}),
    "transposed": ((2, 2, 4, 3), (3, 2, 3, 3), ((2, 1), (0, 2)), {"lhs_dilation": (2, 3)}),
    "cropped": ((2, 2, 8, 7), (3, 2, 3, 3), ((-1, 2), (0, -2)), {}),
    "groups": ((2, 6, 5, 4), (3, 3, 2, 4), "SAME", {"dimension_numbers": NHWC, "feature_group_count": 2}),
    "depthwise": ((2, 6, 5, 3), (3, 3, 1, 6), "SAME_LOWER", {"dimension_numbers": NHWC, "feature_group_count": 3}),
    "batch groups": ((4, 5, 6, 2), (3, 3, 2, 4), "SAME", {"dimension_numbers": NHWC, "batch_group_count": 2}),
}


@pytest.fixture(params=CASES)
def case(request):
    """Operands in float64 and the arguments after them."""
    lhs, rhs, padding, options = CASES[request.param]
    if options.get("feature_group_count") == 2:
        lhs = (*lhs[:-1], 4)
    rng = np.random.default_rng(len(request.param))
    return rng.normal(size=lhs), rng.normal(size=rhs), ((1,) * (len(lhs) - 2), padding), options


def test_values_and_gradients(case):
    """For every tile, the oracle's values and lax's gradients."""
    x, w, arguments, options = case
    expected = reference.conv_general_dilated(x, w, *arguments, **options)
    dy = np.random.default_rng(0).normal(size=expected.shape)
    convolutions = [lax.conv_general_dilated, *(functools.partial(winograd, tile=m) for m in (None, 2, 4))]

    @jax.jit
    def run(x, w, dy):
        values = [jax.vjp(lambda x, w: f(x, w, *arguments, **options), x, w) for f in convolutions]  # noqa: B023
        return [(y, *pull(dy)) for y, pull in values]

    with jax.enable_x64(True):
        theirs, *ours = run(x, w, dy)
    for y, *gradients in ours:
        assert_close(y, expected)
        for gradient, other in zip(gradients, theirs[1:], strict=True):
            assert_close(gradient, other)


@st.composite
def convolutions(draw):
    n = draw(st.integers(1, 3))
    axis = lambda elements: tuple(draw(st.lists(elements, min_size=n, max_size=n)))
    taps = axis(st.sampled_from([3, 5, 3, 1]))
    hypothesis.assume(set(taps) != {1})
    groups, batch_groups = draw(st.sampled_from([(1, 1), (2, 1), (1, 2)]))
    batch, channels, features = (draw(st.integers(0, 2)) for _ in range(3))
    return (
        (batch * batch_groups, channels * groups, *axis(st.integers(2, 7))),
        (features * groups * batch_groups, channels, *taps),
        axis(st.tuples(st.integers(-1, 3), st.integers(-1, 3))),
        {
            "lhs_dilation": axis(st.integers(1, 2)),
            "feature_group_count": groups,
            "batch_group_count": batch_groups,
        },
        draw(st.sampled_from([None, 2, 4])),
    )


@hypothesis.settings(max_examples=15, deadline=None, derandomize=True, database=None)
@hypothesis.given(convolutions())
def test_any_convolution(convolution):
    lhs, rhs, padding, options, tile = convolution
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=lhs), rng.normal(size=rhs)
    arguments = ((1,) * len(padding), padding)
    with jax.enable_x64(True):
        y = jax.jit(lambda x, w: winograd(x, w, *arguments, tile=tile, **options))(x, w)
    assert_close(y, reference.conv_general_dilated(x, w, *arguments, **options))


def test_complex():
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=s) + 1j * rng.normal(size=s) for s in ((2, 2, 8), (3, 2, 3)))
    with jax.enable_x64(True):
        y = winograd(x, w, (1,), "SAME")
    assert_close(y, reference.conv_general_dilated(x, w, (1,), "SAME"))


def test_what_is_cropped_away_is_not_looked_at():
    """Tiles reach beyond the last output, but not into what negative padding cut off."""
    x = np.ones((1, 1, 9), np.float32)
    x[..., :2] = x[..., 7:] = np.nan
    y = winograd(x, np.ones((1, 1, 3), np.float32), (1,), [(-2, -2)], tile=4)
    np.testing.assert_allclose(y, np.full((1, 1, 3), 3), rtol=1e-6)


# --- Derivatives and precision ---------------------------------------------------------------------------------------


def test_second_derivatives():
    """With 4 outputs along one axis and 2 along the other: m = 4 and m = 2."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, w = rng.normal(size=(1, 4, 2, 2)), rng.normal(size=(3, 3, 2, 2))
        f = jax.jit(lambda x, w: winograd(jnp.tanh(x), w, (1, 1), "SAME", dimension_numbers=NHWC))
        check_grads(f, (x, w), order=2, modes=("fwd", "rev"), rtol=1e-6, atol=1e-6)


def test_precision_is_that_of_the_products():
    f = lambda x, w: winograd(x, w, (1,), "SAME", precision=lax.Precision.HIGHEST)
    (dot,) = [e for e in jax.make_jaxpr(f)(jnp.ones((1, 2, 8)), jnp.ones((3, 2, 3))).eqns if "dot" in str(e.primitive)]
    assert dot.params["precision"] == (lax.Precision.HIGHEST,) * 2


# --- Rounding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize("taps", [3, 5])
@pytest.mark.parametrize(("axes", "channels"), [(1, 1), (1, 16), (2, 1), (2, 16)])
def test_error_bound(taps, axes, channels, tile):
    """Rounding stays below the bound, and comes within a factor 1000 of it, or 2000 for 5 taps."""
    bound = error_factor(channels * taps**axes, (taps,) * axes, tile) * UNIT_ROUNDOFF["float32"]
    convolve = functools.partial(winograd, tile=tile)
    errors = [worst_error(convolve, *operands(kind, axes, channels, size=18, taps=taps)) for kind in KINDS]
    assert bound / {3: 1000, 5: 2000}[taps] < max(errors) <= bound


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_error_bound_in_half_precision(dtype):
    """Computed in float32, in either tile, and rounded once: half a unit in the last place more."""
    bound = error_factor(16 * 9, (3, 3)) * UNIT_ROUNDOFF["float32"] + UNIT_ROUNDOFF[dtype]
    for kind, tile in itertools.product(("normal", "last tap"), (2, 4)):
        error = worst_error(functools.partial(winograd, tile=tile), *operands(kind, 2, 16, size=18, dtype=dtype))
        assert UNIT_ROUNDOFF[dtype] / 1000 < error <= bound


def test_error_factor_by_hand():
    """alpha is 4 for F(2, 3) and 88/3 for F(4, 3); rows have 3, 3, 2 and 5, 3, 4 elements other than 0 at most."""
    assert error_factor(3 * 5, (3,), 2) == pytest.approx(1.01 * (5 + 1 + 3 + 3 + 2) * 4)
    assert error_factor(3 * 5, (3,), 4) == pytest.approx(1.01 * (5 + 1 + 5 + 3 + 4) * 88 / 3)
    assert error_factor(9 * 5, (3, 3), 2) == pytest.approx(1.01 * (5 + 2 * 9) * 16)
    assert error_factor(3 * 5, (1, 3), 2) == pytest.approx(1.01 * (5 + 4 + 9) * 4)


# --- What it refuses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("taps", "options", "reason"),
    [
        ((3, 3), {"window_strides": (2, 2)}, "window_strides (2, 2); allowed: 1 along every axis"),
        ((3, 3), {"rhs_dilation": (1, 2)}, "rhs_dilation (1, 2); allowed: 1 along every axis"),
        ((7, 3), {}, "kernel of (7, 3) taps; allowed: 1, 3 or 5 along each axis, more than 1 along at least one"),
        ((1, 1), {}, "kernel of (1, 1) taps; allowed: 1, 3 or 5 along each axis, more than 1 along at least one"),
        ((5, 3), {}, None),
        ((3, 1), {}, None),
        ((3, 3), {"lhs_dilation": (2, 2)}, None),
    ],
)
def test_refusal(taps, options, reason):
    x, w = jnp.ones((1, 2, 8, 8)), jnp.ones((3, 2, *taps))
    spec = conv_spec(x, w, **{"window_strides": (1, 1), "padding": ((1, 1), (1, 1))} | options)
    assert refusal(taps, spec) == reason
    if reason is not None:
        with pytest.raises(InputError) as error:
            conv_winograd(x, w, spec)
        assert str(error.value) == f"the winograd convolution cannot do {reason}"


@pytest.mark.parametrize("tile", [1, 3, 6, "4"])
def test_tiles_there_are_not(tile):
    with pytest.raises(InputError, match=rf"tile must be None or one of \(2, 4\): got {tile!r}"):
        winograd(jnp.ones((1, 1, 8)), jnp.ones((1, 1, 3)), (1,), "SAME", tile=tile)
