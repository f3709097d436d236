"""Max and average pooling with the signatures of `flax.linen`."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from cnnjax.ops.pool_spec import PoolSpec, pool_spec


def max_pool(
    inputs: ArrayLike,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> Array:
    """The maximum of each window, each channel by itself.

    The gradient goes to the first maximum of each window in row-major order, as that of XLA's reduce-window does, but
    by slices and selects alone: deterministic on every backend, differentiable in both modes and any number of times.
    A NaN in a window makes its maximum NaN. Padding is -inf, and comes first where a window starts in it: the gradient
    of a window of nothing but -inf is lost there, as it is in `flax.linen` on CPU and GPU.

    Args:
      inputs: [..., *space, channel], with as many spatial axes as `window_shape` has entries and any number of axes, or
        none, before them; real or integer.
      window_shape: size of the window along each spatial axis.
      strides: distance between neighbouring windows along each; 1 by default.
      padding: "VALID", "SAME", "SAME_LOWER" or a (low, high) pair for each; what is added is less than every number.

    Returns:
      [..., *space, channel], of the dtype of `inputs`.

    Raises:
      InputError: an argument is out of range or does not agree with the shape of `inputs`.
      TypeError: complex inputs, which have no order.
    """
    inputs = jnp.asarray(inputs)
    if jnp.issubdtype(inputs.dtype, jnp.complexfloating):
        raise TypeError(f"inputs must hold real numbers: got {inputs.dtype}")
    spec = pool_spec(inputs.shape, window_shape, strides, padding)
    # The maximum over a window is the maximum over its rows of the maximum along each row, and the first maximum in
    # row-major order lies in the first row that attains it: so one axis at a time, the last one first. A window of k^n
    # elements then costs k n comparisons.
    along_axes = list(zip(spec.axes, spec.window, spec.strides, spec.padding, spec.output_space, strict=True))
    maximum = inputs
    for along in reversed(along_axes):
        maximum = _max_along(maximum, *along)
    return maximum


def _max_along(x: Array, axis: int, window: int, stride: int, pair: tuple[int, int], outputs: int) -> Array:
    """The maximum of each window along one axis, as a running maximum that only a larger number replaces."""
    if outputs == 0:
        return lax.slice_in_dim(x, 0, 0, axis=axis)
    low, high = pair
    x = lax.pad(x, _lowest(x.dtype), [(low, high, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)])
    tap = lambda i: lax.slice_in_dim(x, i, i + (outputs - 1) * stride + 1, stride, axis)
    best = tap(0)
    for i in range(1, window):
        candidate = tap(i)
        better = candidate > best
        if jnp.issubdtype(x.dtype, jnp.inexact):
            better |= jnp.isnan(candidate)
        best = jnp.where(better, candidate, best)
    return best


def _lowest(dtype: np.dtype) -> Array:
    """The number that is the maximum of nothing."""
    if dtype == jnp.bool_:
        return jnp.array(False)
    return jnp.array(-jnp.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min, dtype)


def avg_pool(
    inputs: ArrayLike,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    count_include_pad: bool = True,
) -> Array:
    """The mean of each window, each channel by itself.

    Args:
      inputs: as for `max_pool`; real, complex or integer.
      window_shape: size of the window along each spatial axis.
      strides: distance between neighbouring windows along each; 1 by default.
      padding: "VALID", "SAME", "SAME_LOWER" or a (low, high) pair for each; what is added is zero.
      count_include_pad: whether the padding counts as elements of the window. If not, the mean of a window with nothing
        but padding is NaN.

    Returns:
      [..., *space, channel], of the dtype of `inputs`, or the default float for integers. bfloat16 and float16 are
      summed in float32.

    Raises:
      InputError: an argument is out of range or does not agree with the shape of `inputs`.
      TypeError: boolean inputs, which have no mean.
    """
    inputs = jnp.asarray(inputs)
    if inputs.dtype == jnp.bool_:
        raise TypeError(f"inputs must hold numbers: got {inputs.dtype}")
    spec = pool_spec(inputs.shape, window_shape, strides, padding)
    result = inputs.dtype if jnp.issubdtype(inputs.dtype, jnp.inexact) else jnp.result_type(float)
    accumulator = jnp.promote_types(result, jnp.float32)
    counts = np.prod(spec.window) if count_include_pad else _elements_inside(inputs.shape, spec)
    sums = _sum_windows(inputs.astype(accumulator), spec)
    return (sums / jnp.asarray(counts, accumulator)).astype(result)


def _sum_windows(x: Array, spec: PoolSpec) -> Array:
    """The sum of each window, zero where none of it is inside."""
    along = lambda values, other: [values[spec.axes.index(i)] if i in spec.axes else other for i in range(x.ndim)]
    zero = np.zeros((), x.dtype)
    return lax.reduce_window(
        x, zero, lax.add, along(spec.window, 1), along(spec.strides, 1), along(spec.padding, (0, 0))
    )


def _elements_inside(shape: Sequence[int], spec: PoolSpec) -> np.ndarray:
    """How many elements of each window are not padding: [*output_space, 1]."""
    inside = []
    for axis, window, stride, (low, _), outputs in zip(
        spec.axes, spec.window, spec.strides, spec.padding, spec.output_space, strict=True
    ):
        start = np.arange(outputs) * stride - low
        inside.append(np.maximum(0, np.minimum(start + window, shape[axis]) - np.maximum(start, 0)))
    return functools.reduce(np.multiply.outer, inside, np.ones((), int))[..., None]
