"""What the poolings are made of: padding along an axis, what a tap of the window meets, whole windows side by side."""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from cnnjax.ops.pool_spec import PoolSpec


def windows(x: Array, spec: PoolSpec) -> Array:
    """The elements of each window, zero where it reaches into the padding.

    An array as many times larger than `x` as windows overlap. It is made of slices, so its gradient is a sum of padded
    slices: no scatter, and deterministic on every backend.

    Args:
      x: [..., *space, channel].
      spec: the pooling.

    Returns:
      [tap, ..., *output_space, channel], the taps of the window in row-major order.
    """
    rank = x.ndim
    along_axes = list(zip(spec.axes, spec.window, spec.strides, spec.padding, spec.output_space, strict=True))
    for axis, window, stride, pair, outputs in reversed(along_axes):
        axis += x.ndim - rank  # an axis of taps is put in front each time
        x = pad_along(x, axis, pair, jnp.zeros((), x.dtype))
        x = jnp.stack([seen_by(tap, x, axis, stride, outputs) for tap in range(window)])
    return x.reshape(math.prod(spec.window), *x.shape[len(spec.axes) :])


def lowest(dtype: np.dtype) -> Array:
    """What padding is to a maximum: no number of `dtype` is less."""
    if dtype == jnp.bool_:
        return jnp.array(False)
    return jnp.array(-jnp.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min, dtype)


def pad_along(x: Array, axis: int, pair: tuple[int, int], value: Array) -> Array:
    """`x` with pair = (low, high) elements of `value` around it along one axis; a negative number crops."""
    return lax.pad(x, value, [(*(pair if i == axis else (0, 0)), 0) for i in range(x.ndim)])


def seen_by(tap: int, x: Array, axis: int, stride: int, outputs: int) -> Array:
    """What one tap of the window meets along one axis: x[p stride + tap] for every output position p."""
    if outputs == 0:
        return lax.slice_in_dim(x, 0, 0, axis=axis)
    return lax.slice_in_dim(x, tap, tap + (outputs - 1) * stride + 1, stride, axis)
