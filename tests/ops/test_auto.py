"""What `auto` chooses on CPU: every class of its table against the oracle, and what the choices promise."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cnnjax.ops import conv_general_dilated, reference, table, winograd
from cnnjax.ops.bilinear import opaque_one
from cnnjax.ops.dense import Geometry

NHWC = ("NHWC", "HWIO", "NHWC")

# A convolution of each class: (input, kernel, strides, padding, kernel dilation).
EXAMPLES = {
    "pointwise": ((2, 7, 6, 5), (1, 1, 5, 4), (2, 1), ((0, 0), (0, 0)), (1, 1)),
    "three taps": ((2, 9, 6, 32), (3, 1, 32, 33), (1, 1), ((1, 1), (0, -1)), (1, 1)),
    "five taps": ((2, 6, 7, 12), (5, 5, 12, 13), (1, 1), ((2, 1), (0, 2)), (1, 1)),
    "narrow": ((2, 9, 8, 1), (5, 4, 1, 3), (2, 1), ((2, 1), (0, 0)), (1, 1)),
    "few channels": ((2, 7, 19, 5), (3, 3, 5, 4), (1, 2), ((1, 1), (2, 0)), (2, 1)),
    "three taps, tiles of 4": ((2, 8, 7, 16), (3, 3, 16, 17), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "five taps, tiles of 4": ((2, 8, 4, 12), (5, 5, 12, 12), (1, 1), ((2, 2), (2, 2)), (1, 1)),
    "strided": ((2, 9, 8, 16), (3, 3, 16, 4), (2, 2), ((1, 1), (1, 1)), (1, 1)),
    "small": ((2, 4, 6, 16), (3, 4, 16, 5), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "many channels": ((2, 8, 9, 17), (3, 5, 17, 5), (1, 1), ((1, 1), (-1, 2)), (1, 1)),
}


def geometry(shape, kernel, strides, padding, dilation):
    return Geometry(shape[1:-1], kernel[:-2], strides, padding, dilation)


def test_there_is_an_example_of_every_class():
    classes = {name: name.partition(",")[0] for name in EXAMPLES}
    assert set(classes.values()) == set(table.CLASSES) == set(table.FLOAT32) == set(table.FLOAT64)
    for name, example in EXAMPLES.items():
        assert table.shape_class(jnp.zeros(example[1]), geometry(*example)) == classes[name]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_class(name, dtype):
    """Value, gradients and jvp, jitted, against the oracle and the derivatives of `lax` in float64."""
    shape, kernel, strides, padding, dilation = EXAMPLES[name]
    rng = np.random.default_rng(0)
    x, w, tx, tw = (rng.normal(size=s) for s in (shape, kernel, shape, kernel))
    expected = reference.conv_general_dilated(x, w, strides, padding, rhs_dilation=dilation, dimension_numbers=NHWC)
    dy = rng.normal(size=expected.shape)

    @jax.jit(static_argnums=0)
    def everything(convolve, x, w, tx, tw, dy):
        f = lambda x, w: convolve(x, w, strides, padding, rhs_dilation=dilation, dimension_numbers=NHWC)
        y, pull = jax.vjp(f, x, w)
        second = jax.jvp(lambda x, w: jax.vjp(f, x, w)[1](dy), (x, w), (tx, tw))[1]
        return y, pull(dy), jax.jvp(f, (x, w), (tx, tw))[1], second

    with jax.enable_x64(True):
        exact = everything(lax.conv_general_dilated, x, w, tx, tw, dy)
        np.testing.assert_allclose(exact[0], expected, rtol=1e-12, atol=1e-12)
        got = everything(conv_general_dilated, *(a.astype(dtype) for a in (x, w, tx, tw, dy)))
    tolerance = 1e-12 if dtype == np.float64 else 5e-6
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def test_large_patches_are_not_made():
    """Neither in float64 nor for a single channel: gigabytes of them would be needed."""
    g = Geometry((1024, 1024), (31, 31), (1, 1), ((15, 15),) * 2, (1, 1))
    for dtype in (jnp.float32, jnp.float64):
        with jax.enable_x64(True):
            x, w = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((1, 1024, 1024, 1), (31, 31, 1, 1)))
            assert set(table.methods(x, w, g)[:3]) == {"xla"}


def test_no_convolution_both_crops_and_pads():
    """The tangent of this one once did: XLA then reads beyond its input."""
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((1, 4, 4, 2), (3, 3, 2, 1)))

    def jvp(convolve):
        f = lambda x, w: convolve(x, w, (1, 1), ((-2, 2), (0, 0)), lhs_dilation=(1, 3), dimension_numbers=NHWC)
        return jax.jvp(f, (x, w), (x, w))[1]

    paddings = re.findall(r" padding=(\(\(.*?\)\))", str(jax.make_jaxpr(lambda: jvp(conv_general_dilated))()))
    numbers = [[int(n) for n in re.findall(r"-?\d+", pairs)] for pairs in paddings]
    assert numbers
    assert all(min(each) >= 0 or max(each) <= 0 for each in numbers)
    np.testing.assert_allclose(jvp(conv_general_dilated), jvp(lax.conv_general_dilated), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "kernel", "strides", "padding"),
    [
        ((1, 1, 7, 1), (2, 7, 1, 3), (1, 1), ((5, -3), (1, 1))),
        ((2, 2, 7, 3), (3, 3, 3, 4), (1, 2), ((-3, 6), (7, 7))),
        ((2, 3, 2, 16), (3, 3, 16, 16), (4, 2), ((7, -4), (6, -1))),
        ((2, 1, 9, 16), (3, 3, 16, 17), (1, 1), ((-2, 6), (-1, 1))),
    ],
)
def test_more_cropped_than_there_is(shape, kernel, strides, padding):
    """Negative padding that reaches into the padding on the other side."""
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in (shape, kernel))
    run = lambda convolve: jax.vjp(lambda x, w: convolve(x, w, strides, padding, dimension_numbers=NHWC), x, w)
    (y, pull), (expected, pull_expected) = run(conv_general_dilated), run(lax.conv_general_dilated)
    assert y.size > 0
    for ours, theirs in zip((y, *pull(expected)), (expected, *pull_expected(expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


def test_winograd_is_for_those_who_ask_for_no_more_digits():
    """In float32 it keeps within its bound; asked for precision, by argument or by context, `auto` adds up directly."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 12, 12, 64)), rng.normal(size=(3, 3, 64, 32))
    x, w = x.astype(np.float32), w.astype(np.float32)
    exact = reference.conv_general_dilated(x.astype(float), w.astype(float), (1, 1), "SAME", dimension_numbers=NHWC)
    f = lambda precision: jax.jit(
        lambda x, w: conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC, precision=precision)
    )
    error = lambda y: np.abs(np.asarray(y, float) - exact).max()
    scale = np.abs(x).max() * np.abs(w).sum((0, 1, 2)).max()
    default = error(f(None)(x, w))
    assert default <= winograd.error_factor(9 * 64, (3, 3)) * 2**-24 * scale
    with jax.default_matmul_precision("highest"):
        by_context = error(f(None)(x, w))
    for direct in (by_context, error(f("highest")(x, w)), error(f((lax.Precision.HIGHEST,) * 2)(x, w))):
        assert direct < default / 2
    assert "conv_general_dilated" not in str(jax.make_jaxpr(f(None))(x, w))
    assert "conv_general_dilated" in str(jax.make_jaxpr(f("highest"))(x, w))


@pytest.mark.parametrize("counts", [(32, 1), (1, 12)])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_many_groups(counts, dtype):
    """They are compiled once, whatever their number; operands are integers, so that nothing may be off."""
    features, batch = counts
    rng = np.random.default_rng(0)
    integers = lambda *shape: rng.integers(-1, 2, shape).astype(float)
    x = integers(24, 7, 6, 64 // batch)
    w = integers(3, 3, x.shape[-1] // features, 96)
    options = {
        "window_strides": (2, 1),
        "padding": ((1, 2), (0, 1)),
        "dimension_numbers": NHWC,
        "feature_group_count": features,
        "batch_group_count": batch,
    }
    f = lambda x, w: conv_general_dilated(x, w, **options)
    expected = reference.conv_general_dilated(x, w, **options)
    dy = integers(*expected.shape)
    of_oracle = reference.conv_gradients(x, w, dy, lhs_dilation=(1, 1), rhs_dilation=(1, 1), **options)

    @jax.jit
    def run(x, w, dy):
        y, pull = jax.vjp(f, x, w)
        return y, *pull(dy)

    operands = [jnp.asarray(array, dtype) for array in (x, w, dy)]
    for got, exact in zip(run(*operands), (expected, *of_oracle), strict=True):
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, jnp.asarray(exact, dtype))
    assert str(jax.make_jaxpr(run)(*operands)).count("conv_general_dilated[") <= 3


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3e38, 1e-45, np.inf, np.nan])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64])
def test_one_is_one(value, dtype):
    """Whatever the kernel holds."""
    with jax.enable_x64(True):
        one = jax.jit(opaque_one)(jnp.full((2, 2), value, dtype))
        assert one.dtype == dtype
        assert one == 1


def test_an_accelerator_gets_its_own_convolution(monkeypatch):
    """Elsewhere than on CPU it is XLA's; grouped ones are split, so that a sharded batch is not gathered."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x = jnp.ones((2, 6, 6, 8))
    for groups, expected in ((1, 1), (8, 1), (4, 4)):
        w = jnp.ones((3, 3, 8 // groups, 8))
        f = lambda x, w, groups=groups: conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=groups
        )
        assert str(jax.make_jaxpr(f)(x, w)).count("conv_general_dilated[") == expected
        np.testing.assert_allclose(
            f(x, w),
            reference.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=groups),
        )
