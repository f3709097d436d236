"""Convolution by Fourier transforms: values against the oracle, its tiles, its errors against their bound."""

import functools
import itertools

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
from cnnjax.ops.fft import choose_tile, conv_fft, cost, error_factor, next_size

NHWC = ("NHWC", "HWIO", "NHWC")


def fft(x, w, *arguments, tile=None, **options):
    """`conv_fft` with the arguments of `lax.conv_general_dilated`."""
    return conv_fft(x, w, conv_spec(x, w, *arguments, **options), tile=tile)


def assert_close(actual, expected, tolerance=1e-11):
    """Equal to `tolerance` of the largest number."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    scale = max(1.0, float(np.max(np.abs(expected), initial=0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


# --- Values and gradients -------------------------------------------------------------------------------------------

# (lhs shape, rhs shape, strides, padding, options, tiles to try besides the choice)
CASES = {
    "1-D": ((2, 2, 9), (3, 2, 4), (1,), "SAME", {}, [(4,), (5,), (7,), (20,)]),
    "2-D": ((2, 7, 10, 3), (3, 2, 3, 2), (1, 1), "SAME", {"dimension_numbers": NHWC}, [(3, 5), (4, 32)]),
    "3-D": ((1, 2, 5, 4, 6), (2, 2, 3, 1, 2), (1, 2, 1), ((1, 0), (2, 1), (0, 1)), {}, [(3, 2, 4)]),
    "strides": ((2, 2, 11, 8), (3, 2, 5, 3), (2, 3), ((2, 1), (0, 2)), {}, [(3, 1), (4, 3)]),
    "stride beyond the kernel": ((2, 2, 11, 8), (3, 2, 2, 1), (3, 4), "VALID", {}, [(2, 2)]),
    "dilated, strided": ((2, 2, 11, 9), (3, 2, 3, 2), (2, 2), "SAME", {"rhs_dilation": (2, 3)}, [(3, 4)]),
    "transposed": ((2, 2, 4, 3), (3, 2, 3, 4), (1, 2), ((2, 1), (0, 2)), {"lhs_dilation": (2, 3)}, [(5, 5)]),
    "cropped": ((2, 2, 8, 7), (3, 2, 3, 3), (1, 1), ((-1, 2), (0, -2)), {}, [(4, 4)]),
    "mixed layout": ((2, 6, 2, 5), (2, 3, 1, 3), (1, 1), "SAME", {"dimension_numbers": ("CHNW", "IHWO", "WNCH")}, []),
    "groups": ((2, 6, 5, 4), (3, 3, 2, 4), (1, 2), "SAME", {"dimension_numbers": NHWC, "feature_group_count": 2}, []),
    "depthwise": (
        (2, 6, 5, 3),
        (3, 3, 1, 6),
        (1, 1),
        "SAME",
        {"dimension_numbers": NHWC, "feature_group_count": 3},
        [],
    ),
    "batch groups": (
        (4, 5, 6, 2),
        (3, 3, 2, 4),
        (2, 1),
        "SAME",
        {"dimension_numbers": NHWC, "batch_group_count": 2},
        [],
    ),
    "one tap": ((2, 2, 5), (3, 2, 1), (1,), "VALID", {}, [(1,), (2,)]),
    "no space": ((2, 3), (4, 3), (), (), {}, [()]),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "real") for name in CASES), *((name, "complex") for name in ("1-D", "strides", "groups", "no space"))],
)
def test_values_and_gradients(name, kind):
    """For every tile, the oracle's values and lax's gradients."""
    lhs, rhs, *arguments, options, tiles = CASES[name]
    rng = np.random.default_rng(len(name))
    draw = lambda shape: rng.normal(size=shape) + (1j * rng.normal(size=shape) if kind == "complex" else 0)
    x, w = draw(lhs), draw(rhs)
    expected = reference.conv_general_dilated(x, w, *arguments, **options)
    dy = draw(expected.shape)
    convolutions = [lax.conv_general_dilated, *(functools.partial(fft, tile=tile) for tile in (None, *tiles))]

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
    groups, batch_groups = draw(st.sampled_from([(1, 1), (2, 1), (1, 2)]))
    batch, channels, features = (draw(st.integers(0, 2)) for _ in range(3))
    taps, strides, dilation = (axis(st.integers(1, 3)) for _ in range(3))
    spans = [-(-((k - 1) * d + 1) // s) for k, d, s in zip(taps, dilation, strides, strict=True)]
    return (
        (batch * batch_groups, channels * groups, *axis(st.integers(3, 7))),
        (features * groups * batch_groups, channels, *taps),
        (strides, axis(st.tuples(st.integers(-1, 3), st.integers(-1, 3)))),
        {
            "lhs_dilation": axis(st.integers(1, 2)),
            "rhs_dilation": dilation,
            "feature_group_count": groups,
            "batch_group_count": batch_groups,
        },
        draw(st.sampled_from([None, tuple(spans), tuple(span + 2 for span in spans)])),
    )


@hypothesis.settings(max_examples=20, deadline=None, derandomize=True, database=None)
@hypothesis.given(convolutions())
def test_any_convolution(convolution):
    lhs, rhs, arguments, options, tile = convolution
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=lhs), rng.normal(size=rhs)
    with jax.enable_x64(True):
        y = jax.jit(lambda x, w: fft(x, w, *arguments, tile=tile, **options))(x, w)
    assert_close(y, reference.conv_general_dilated(x, w, *arguments, **options))


def test_what_is_cropped_away_is_not_looked_at():
    x = np.ones((1, 1, 9), np.float32)
    x[..., :2] = x[..., 7:] = np.nan
    y = fft(x, np.ones((1, 1, 3), np.float32), (1,), [(-2, -2)])
    np.testing.assert_allclose(y, np.full((1, 1, 3), 3), rtol=1e-6)


# --- Tiles ----------------------------------------------------------------------------------------------------------


def test_next_size():
    sizes = {1: 1, 2: 2, 7: 8, 11: 12, 13: 15, 17: 18, 31: 32, 61: 64, 97: 100, 217: 225, 226: 240}
    assert {n: next_size(n) for n in sizes} == sizes


def test_choice_of_tile():
    """One tile for a small input; many, a few kernels wide, for a large one; the kernel's transforms count, too."""
    assert choose_tile((3, 4), (5, 5), 32, 8, 8) == (8, 8)
    (many,) = choose_tile((100_000,), (9,), 1, 1, 1)
    assert 16 <= many <= 256
    large, small = (choose_tile((512, 512), (3, 3), batch, 64, 64) for batch in (64, 1))
    assert np.prod(small) <= np.prod(large) < 100**2
    assert choose_tile((), (), 1, 2, 3) == ()


def test_the_choice_is_as_cheap_as_any_size():
    """Of all sizes up to one tile, those of other numbers of tiles included, none costs less by more than a tenth."""
    for outputs, span, channels in [(30, 3, 4), (100, 7, 16), (224, 11, 3)]:
        of = lambda size: cost((size,), (outputs,), (span,), 8, channels, 2 * channels)  # noqa: B023
        cheapest = min(of(size) for size in range(span, next_size(outputs + span - 1) + 1) if next_size(size) == size)
        assert cheapest <= of(*choose_tile((outputs,), (span,), 8, channels, 2 * channels)) <= 1.1 * cheapest


def test_cost_by_hand():
    """Three tiles of 8 cover 18 outputs of 3 taps: twice 3 tiles, 6 (2 + 5) + 2 5 transforms, 6 2 5 products."""
    assert cost((8,), (18,), (3,), 2, 2, 5) == pytest.approx(52 * 10 * 8 * 3 + 60 * 4 * 8)


@pytest.mark.parametrize("tile", [(4,), (4, 2), (4, 4.5), (4, 4, 4), 4])
def test_tiles_that_cannot_be(tile):
    """With stride 2 and dilation 3, 3 taps span 7 elements, that is 4 of each phase."""
    x, w = jnp.ones((1, 1, 9, 9)), jnp.ones((1, 1, 3, 3))
    with pytest.raises(InputError) as error:
        fft(x, w, (2, 1), "SAME", rhs_dilation=(3, 1), tile=tile)
    assert str(error.value) == f"tile must be None or an integer for each axis, no less than (4, 3): got {tile!r}"


# --- Derivatives and precision ---------------------------------------------------------------------------------------


def test_second_derivatives():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, w = rng.normal(size=(1, 5, 3, 2)), rng.normal(size=(3, 2, 2, 2))
        f = jax.jit(lambda x, w: fft(jnp.tanh(x), w, (2, 1), "SAME", tile=(3, 4), dimension_numbers=NHWC))
        check_grads(f, (x, w), order=2, modes=("fwd", "rev"), rtol=1e-6, atol=1e-6)


def test_precision_is_that_of_the_products():
    f = lambda x, w: fft(x, w, (1,), "SAME", precision=lax.Precision.HIGHEST)
    assert "Precision.HIGHEST" in str(jax.make_jaxpr(f)(jnp.ones((1, 2, 8)), jnp.ones((3, 2, 3))))


# --- Rounding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "tile", "within"),
    [(1, (8,), 500), (1, (15,), 500), (1, (64,), 1000), (16, (36,), 2000), (1, (8, 8), 1000), (1, (36, 36), 2000)],
)
def test_error_bound(channels, tile, within):
    """Rounding stays below the bound, for sizes of every factor, and comes near: less so as tiles and channels grow."""
    bound = error_factor(channels * 3 ** len(tile), tile) * UNIT_ROUNDOFF["float32"]
    convolve = functools.partial(fft, tile=tile)
    errors = [worst_error(convolve, *operands(kind, len(tile), channels, size=34)) for kind in KINDS]
    assert bound / within < max(errors) <= bound


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_error_bound_in_half_precision(dtype):
    """Computed in float32 and rounded once: half a unit in the last place more."""
    bound = error_factor(16 * 9, (8, 8)) * UNIT_ROUNDOFF["float32"] + UNIT_ROUNDOFF[dtype]
    for kind in ("normal", "last tap"):
        error = worst_error(functools.partial(fft, tile=(8, 8)), *operands(kind, 2, 16, size=34, dtype=dtype))
        assert UNIT_ROUNDOFF[dtype] / 1000 < error <= bound


def test_small_outputs_lose_their_digits_beside_a_large_input():
    """As the module says: the error goes with the largest number in the tile, and stays in the tile."""
    x = np.full((1, 1, 64), 1e-3, np.float32)
    x[..., 4] = 1e6
    w = np.random.default_rng(0).normal(size=(1, 1, 3)).astype(np.float32)
    exact = reference.conv_general_dilated(x, w, (1,), "VALID")
    relative = np.abs(fft(x, w, (1,), "VALID", tile=(16,)) / exact - 1)[0, 0]  # tiles of 14 outputs
    assert relative[5:14].max() > 0.1  # outputs that the large input is not in
    assert relative[14:].max() < 1e-5
    direct = lax.conv_general_dilated(x, w, (1,), "VALID")
    assert np.abs(direct / exact - 1).max() < 1e-5


def test_error_factor_by_hand():
    """sqrt(N) (30 (log2 N + 1) + 2 sqrt(2) terms), and a per cent."""
    assert error_factor(10, (4, 4)) == pytest.approx(1.01 * 4 * (30 * 5 + 20 * np.sqrt(2)))
    assert error_factor(1, ()) == pytest.approx(1.01 * (30 + 2 * np.sqrt(2)))


def test_sums_are_of_the_preferred_type():
    x, w = jnp.ones((1, 1, 8), jnp.bfloat16), jnp.full((1, 1, 3), 1 / 3, jnp.bfloat16)
    for dtype, tile in itertools.product((None, jnp.float32), (None, (4,))):
        y = fft(x, w, (1,), "VALID", preferred_element_type=dtype, tile=tile)
        assert y.dtype == (dtype or jnp.bfloat16)
        np.testing.assert_allclose(y.astype(jnp.float32), 3 * float(w[0, 0, 0]), rtol=2**-8 if dtype is None else 1e-6)
