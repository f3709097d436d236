"""`jax.export` with symbolic sizes: batch, height and width, without bounds, wherever `lax` and Flax export."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import ops
from cnnjax.ops import CONV_IMPLEMENTATIONS, InputError, conv_general_dilated, conv_implementation

NHWC = ("NHWC", "HWIO", "NHWC")

# (kernel, strides, padding, other arguments)
CONVOLUTIONS = {
    "same": ((3, 3, 16, 20), (1, 1), "SAME", {}),
    "strided, same": ((3, 3, 16, 4), (2, 2), "SAME", {}),
    "strided, same lower": ((2, 3, 16, 4), (2, 3), "SAME_LOWER", {}),
    "strided, valid": ((3, 3, 16, 4), (2, 2), "VALID", {}),
    "strided, pairs": ((5, 5, 16, 4), (2, 2), ((2, 2), (-1, 3)), {}),
    "valid": ((3, 3, 16, 4), (1, 1), "VALID", {}),
    "pointwise": ((1, 1, 16, 4), (1, 1), "VALID", {}),
    "grouped": ((3, 3, 4, 8), (1, 1), "SAME", {"feature_group_count": 4}),
    "depthwise": ((3, 3, 1, 16), (1, 1), "SAME", {"feature_group_count": 16}),
    "dilated": ((3, 3, 16, 4), (1, 1), "SAME", {"rhs_dilation": (2, 2)}),
    "transposed": ((3, 3, 16, 4), (1, 1), ((2, 2), (1, 2)), {"lhs_dilation": (2, 2)}),
}

POOLINGS = {
    "max": functools.partial(ops.max_pool, window_shape=(3, 3), strides=(2, 2)),
    "max, same": functools.partial(ops.max_pool, window_shape=(3, 2), strides=(2, 1), padding="SAME"),
    "max, blocks": functools.partial(ops.max_pool, window_shape=(2, 2), strides=(2, 2)),
    "max, dilated": functools.partial(ops.max_pool, window_shape=(3, 3), padding="SAME", window_dilation=(2, 2)),
    "average": functools.partial(ops.avg_pool, window_shape=(3, 3), strides=(2, 2)),
    "average inside": functools.partial(
        ops.avg_pool, window_shape=(3, 3), strides=(2, 2), padding="SAME", count_include_pad=False
    ),
    "LP": functools.partial(ops.lp_pool, p=2, window_shape=(3, 3), strides=(2, 2), padding="SAME_LOWER"),
    "switches": lambda x: ops.max_pool_with_switches(x, (3, 3), (2, 2), "SAME")[0],
    "global average": ops.global_avg_pool,
    "global max": ops.global_max_pool,
}


def sizes(*bounds):
    """Images [batch, height, width, 16], and some of sizes that have nothing in common."""
    shape = (*jax.export.symbolic_shape("batch, height, width", constraints=bounds), 16)
    return jax.ShapeDtypeStruct(shape, jnp.float32), np.random.default_rng(0).normal(size=(2, 11, 8, 16)).astype("f")


def assert_exports(f, *bounds):
    symbolic, images = sizes(*bounds)
    expected = jax.jit(f)(images)
    for y, of_this_size in zip(jax.export.export(jax.jit(f))(symbolic).call(images), expected, strict=True):
        scale = max(1, float(jnp.abs(of_this_size).max()))
        np.testing.assert_allclose(y, of_this_size, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions(case):
    """By every implementation; those that Winograd can't do are XLA's.

    What is a slice for each tap has to know that there is a window, where windows are more than one element apart.
    """
    shape, *arguments, options = CONVOLUTIONS[case]
    w = np.random.default_rng(1).normal(size=shape).astype("f")
    by_taps = ("reference", "im2col", "shift")
    for names, bounds in (
        ([name for name in CONV_IMPLEMENTATIONS if name not in by_taps], ()),
        (by_taps, ("height >= 5", "width >= 5")),
    ):
        by = [conv_implementation(name, "xla" if name == "winograd" else None) for name in names]
        run = lambda x, by=by: [convolve(x, w, *arguments, dimension_numbers=NHWC, **options) for convolve in by]
        assert_exports(run, *bounds)


@pytest.mark.parametrize("name", CONV_IMPLEMENTATIONS)
def test_gradients_of_convolutions(name):
    w = np.random.default_rng(1).normal(size=(3, 3, 16, 20)).astype("f")
    f = lambda x, w: conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC, implementation=name)
    assert_exports(lambda x: jax.grad(lambda x, w: (f(x, w) ** 2).sum(), (0, 1))(x, w))


@pytest.mark.parametrize("name", POOLINGS)
def test_poolings(name):
    """And their gradients."""
    pool = POOLINGS[name]
    assert_exports(lambda x: (pool(x), jax.grad(lambda x: (pool(x) ** 2).sum())(x)))


def test_a_window_may_not_fit():
    """An image smaller than the window has no outputs, which nothing but the run can know."""
    symbolic, images = sizes()
    run = jax.export.export(jax.jit(POOLINGS["max"]))(symbolic)
    assert run.call(images[:, :2]).shape == (2, 0, 3, 16)


def test_what_goes_by_the_size_itself_is_refused():
    symbolic, _ = sizes()
    with pytest.raises(InputError, match=r"elements, of which the number is known.*height, width, 16"):
        jax.export.export(jax.jit(lambda x: ops.adaptive_max_pool(x, (2, 2))))(symbolic)
