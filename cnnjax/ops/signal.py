"""Convolution and correlation of two arrays, as textbooks and `scipy.signal` define them: no batch, no channels.

What networks call convolution is correlation: the kernel slides over the image as it is. True convolution flips it
first, along every axis. In one dimension, u = (1, 2, 3) and h = (0, 1, 1/2):

    convolve:   y[i] = sum over k of  u[i - k] h[k]         0  1  5/2  4  3/2      i = 0, ..., 4
    correlate:  y[i] = sum over k of  u[i + k] h[k]       1/2  2  7/2  3  0        i = -2, ..., 2

With the flip, an impulse at the input comes out as the kernel itself, in its own order; image and kernel are equals,
u * h = h * u; and filters compose, (u * g) * h = u * (g * h). Correlation is neither commutative nor associative, but
it needs no flip: it compares the kernel with each place of the image. A network learns its kernels, and would learn
the flipped ones just as well, so that the flip would change nothing but their order in memory. It matters where a
kernel comes from outside: a hand-made filter, one from a book, or a library that flips.
Source: Goodfellow, Bengio and Courville, "Deep Learning", section 9.1, equations 9.4 to 9.6.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from cnnjax.ops.conv import ConvImplementation, conv_general_dilated
from cnnjax.ops.errors import InputError, as_array, unknown

MODES: tuple[str, ...] = ("full", "same", "valid")
"""Which outputs there are; see `convolve`."""


def convolve(
    image: ArrayLike,
    kernel: ArrayLike,
    mode: str = "full",
    *,
    precision: Any = lax.Precision.HIGHEST,
    implementation: str | ConvImplementation = "auto",
) -> Array:
    """True convolution, with the kernel flipped, in any number of dimensions: as `scipy.signal.convolve`.

        y[i] = sum over k of  u[i - k] h[k]          i and k with an entry for each axis, u zero outside

    Args:
      image: u, N elements along an axis; real or complex floating point.
      kernel: h, K elements along the axis, with as many axes as `image`; real or complex floating point.
      mode: along each axis,
        "full": every i for which the sum has a term, N + K - 1;
        "same": the middle N of these, from (K - 1) // 2 on, as many as `image` has;
        "valid": those for which u and h overlap completely, |N - K| + 1. Along all axes the same of the two must be the
        larger, or they are equal.
      precision: of the products, as `lax` takes it.
      implementation: one of `CONV_IMPLEMENTATIONS` or what `conv_implementation` gave; "fft" pays for large kernels.

    Returns:
      y, of the dtype that those of `image` and `kernel` promote to.

    Raises:
      InputError: shapes that do not go together, an empty array, or an unknown mode or implementation.
      TypeError: integers or booleans.
    """
    u, h = _operands(image, kernel, mode)
    if mode == "valid" and any(n < k for n, k in zip(u.shape, h.shape, strict=True)):
        u, h = h, u  # u * h = h * u
        if any(n < k for n, k in zip(u.shape, h.shape, strict=True)):
            raise InputError(
                'image must be as large as kernel along every axis, or kernel as image, where mode is "valid": '
                f"got shapes {h.shape} and {u.shape}"
            )
    padding = {
        "full": [(k - 1, k - 1) for k in h.shape],
        "same": [(k // 2, (k - 1) // 2) for k in h.shape],
        "valid": [(0, 0) for _ in h.shape],
    }[mode]
    y = conv_general_dilated(
        u[None, None],
        jnp.flip(h)[None, None],
        (1,) * u.ndim,
        padding,
        precision=precision,
        implementation=implementation,
    )
    return y[0, 0]


def correlate(
    image: ArrayLike,
    kernel: ArrayLike,
    mode: str = "full",
    *,
    precision: Any = lax.Precision.HIGHEST,
    implementation: str | ConvImplementation = "auto",
) -> Array:
    """Correlation: convolution without the flip, as `scipy.signal.correlate`.

        y[i] = sum over k of  u[i + k] conj(h[k])

    For real numbers it is what networks call convolution. For complex ones h is conjugated, as always in signal
    processing (so that u correlated with itself is |u|^2 at no shift) and never in networks:
    `conv_general_dilated` does not conjugate.

    Args:
      image, kernel, mode, precision, implementation: as `convolve` takes them. In "full" the first i is 1 - K.

    Returns:
      y, of the dtype that those of `image` and `kernel` promote to.

    Raises:
      InputError, TypeError: as `convolve`.
    """
    u, h = _operands(image, kernel, mode)
    return convolve(u, jnp.conj(jnp.flip(h)), mode, precision=precision, implementation=implementation)


def _operands(image: ArrayLike, kernel: ArrayLike, mode: str) -> Sequence[Array]:
    """Image and kernel in the dtype they promote to, once everything has been looked at."""
    arrays = {"image": as_array("image", image), "kernel": as_array("kernel", kernel)}
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.inexact):
            raise TypeError(f"{name} must hold real or complex floating-point numbers: got {array.dtype}")
        if array.size == 0:
            raise InputError(f"{name} must have at least one element: got shape {array.shape}")
    u, h = arrays.values()
    if u.ndim != h.ndim:
        raise InputError(f"kernel must have as many axes as image: got shapes {h.shape} and {u.shape}")
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    dtype = jnp.promote_types(u.dtype, h.dtype)
    return u.astype(dtype), h.astype(dtype)
