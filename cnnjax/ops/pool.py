"""Max and average pooling with the signatures of `flax.linen`."""

import functools
import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from cnnjax.ops.pool_spec import PoolSpec, pool_spec
from cnnjax.ops.windows import lowest, pad_along, seen_by


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
    if 0 in spec.output_space:
        return jnp.zeros((*inputs.shape[: spec.axes[0]], *spec.output_space, inputs.shape[-1]), inputs.dtype)
    if math.prod(spec.window) <= 4 and all(s >= k for s, k in zip(spec.strides, spec.window, strict=True)):
        return _max_of_blocks(inputs, spec)
    # The maximum over a window is the maximum over its rows of the maximum along each row, and the first maximum in
    # row-major order lies in the first row that attains it: so one axis at a time, the last one first. A window of k^n
    # elements then costs k n comparisons.
    maximum = inputs
    along_axes = list(zip(spec.axes, spec.window, spec.strides, spec.padding, spec.output_space, strict=True))
    for axis, window, stride, pair, outputs in reversed(along_axes):
        maximum = pad_along(maximum, axis, pair, lowest(inputs.dtype))
        maximum = _first_maximum([seen_by(tap, maximum, axis, stride, outputs) for tap in range(window)])
    return maximum


def _max_of_blocks(x: Array, spec: PoolSpec) -> Array:
    """The maximum of windows that don't overlap: each is inside a block of its own, as large as the strides.

    Then the taps are slices of one reshaped array, and their gradients go back without a sum: for 2x2 windows half of
    the time that one axis after the other takes.
    """
    for axis, stride, (low, _), outputs in zip(spec.axes, spec.strides, spec.padding, spec.output_space, strict=True):
        x = pad_along(x, axis, (low, outputs * stride - x.shape[axis] - low), lowest(x.dtype))
    first, last = spec.axes[0], spec.axes[-1] + 1
    blocks = [size for pair in zip(spec.output_space, spec.strides, strict=True) for size in pair]
    x = x.reshape(*x.shape[:first], *blocks, *x.shape[last:])
    every = slice(None)
    taps = itertools.product(*map(range, spec.window))
    return _first_maximum([x[(every,) * first + tuple(i for tap in at for i in (every, tap))] for at in taps])


def _first_maximum(taps: Sequence[Array]) -> Array:
    """The maximum of arrays element by element, as a running maximum that only a larger number, or a NaN, replaces."""
    best, *rest = taps
    for candidate in rest:
        better = candidate > best
        if jnp.issubdtype(best.dtype, jnp.inexact):
            better |= jnp.isnan(candidate)
        best = jnp.where(better, candidate, best)
    return best


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
