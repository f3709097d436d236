"""Bilinear kernels: FCN's numbers, and interpolation by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cnnjax.ops import InputError, conv_general_dilated
from cnnjax.ops.upsample import bilinear_kernel

NHWC = ("NHWC", "HWIO", "NHWC")


def upsample(x, factor, **options):
    """As the docstring says: the transposed convolution that makes x `factor` times as large."""
    kernel = jnp.asarray(bilinear_kernel(factor, x.shape[-1], **options), x.dtype)
    margin = len(kernel) - 1 - factor // 2
    groups = x.shape[-1] if options.get("depthwise") else 1
    return conv_general_dilated(
        x,
        kernel,
        (1, 1),
        [(margin, margin)] * 2,
        lhs_dilation=(factor, factor),
        dimension_numbers=NHWC,
        feature_group_count=groups,
    )


def test_worked_by_hand():
    np.testing.assert_array_equal(bilinear_kernel(1), [[1]])
    np.testing.assert_array_equal(bilinear_kernel(2) * 16, np.outer([1, 3, 3, 1], [1, 3, 3, 1]))
    np.testing.assert_allclose(bilinear_kernel(3) * 9, np.outer([1, 2, 3, 2, 1], [1, 2, 3, 2, 1]), rtol=1e-15)


@pytest.mark.parametrize("size", [1, 4, 5, 8, 9, 16, 32, 64])
def test_is_that_of_the_fcn_code(size):
    """Its formula, which starts from the size: 4, 16, 32 and 64 are the sizes it uses."""
    factor = (size + 1) // 2
    center = factor - 1 if size % 2 else factor - 0.5
    tent = np.array([[1 - abs(i - center) / factor for i in range(size)]])
    np.testing.assert_allclose(bilinear_kernel(factor), tent.T @ tent, rtol=1e-14)


def test_layouts():
    """HWIO: each channel to itself; or depthwise, without the zeros."""
    tent = bilinear_kernel(2)
    full, depthwise = bilinear_kernel(2, 3), bilinear_kernel(2, 3, depthwise=True)
    assert full.shape == (4, 4, 3, 3)
    assert depthwise.shape == (4, 4, 1, 3)
    assert full.dtype == depthwise.dtype == tent.dtype == np.float64
    for i, o in np.ndindex(3, 3):
        np.testing.assert_array_equal(full[..., i, o], tent if i == o else 0 * tent)
        np.testing.assert_array_equal(depthwise[..., 0, o], tent)
    # FCN-8s's three transposed convolutions of 21 classes
    assert sum(bilinear_kernel(factor, 21).size for factor in (2, 2, 8)) == 127_008


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 8])
def test_interpolates(factor):
    """A ramp exactly, and anything as `jax.image.resize` does, away from the border; a constant stays constant."""
    with jax.enable_x64(True):
        i, j = np.mgrid[:6, :5].astype(float)
        image = np.random.default_rng(0).normal(size=(6, 5))
        x = jnp.asarray(np.stack([3 * i - 2 * j + 1, image, np.ones((6, 5))], axis=-1)[None])

        @jax.jit
        def run(x):
            resized = jax.image.resize(x, (1, 6 * factor, 5 * factor, 3), "bilinear")
            return upsample(x, factor), upsample(x, factor, depthwise=True), resized

        y, depthwise, resized = run(x)
    assert y.shape == (1, 6 * factor, 5 * factor, 3)
    np.testing.assert_allclose(depthwise, y, rtol=1e-12, atol=1e-12)
    inner = slice(factor // 2, -(factor // 2) or None)
    ramp, image, ones = np.moveaxis(np.asarray(y)[0, inner, inner], -1, 0)
    # Pixel p of the output stands at (p + 1/2) / factor - 1/2 of the input.
    at = lambda size: ((np.arange(size * factor) + 0.5) / factor - 0.5)[inner]
    np.testing.assert_allclose(ramp, 3 * at(6)[:, None] - 2 * at(5) + 1, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(image, resized[0, inner, inner, 1], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(ones, 1, rtol=1e-12)


def test_by_conv_transpose_as_fcn():
    """lax.conv_transpose keeps everything; FCN crops it. The upper left crop of factor // 2 is `upsample`."""
    x = np.random.default_rng(0).normal(size=(1, 5, 4, 2)).astype(np.float32)
    kernel = bilinear_kernel(4, 2).astype(np.float32)
    everything = lax.conv_transpose(x, kernel, (4, 4), "VALID", dimension_numbers=NHWC)
    assert everything.shape == (1, 4 * 4 + 8, 3 * 4 + 8, 2)
    np.testing.assert_allclose(everything[:, 2:22, 2:18], upsample(x, 4), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0,), {}, "factor must be a positive integer: got 0"),
        ((1.5,), {}, "factor must be a positive integer: got 1.5"),
        ((2, 0), {}, "channels must be None or a positive integer: got 0"),
        ((2, "3"), {}, "channels must be None or a positive integer: got '3'"),
        ((2,), {"depthwise": True}, "channels must be a positive integer where depthwise is true: got None"),
    ],
)
def test_bad_input(arguments, options, message):
    with pytest.raises(InputError, match=message) as caught:
        bilinear_kernel(*arguments, **options)
    assert "\n" not in str(caught.value)
