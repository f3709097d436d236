"""What the poolings are made of: padding, what a tap of the window meets, windows side by side and combined."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.export import is_symbolic_dim
from jax.typing import ArrayLike

from cnnjax.ops.pool_spec import Along, PoolSpec


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
    x = pad_to_windows(x, spec, jnp.zeros((), x.dtype))
    for a in reversed(spec.along):
        axis = a.axis + x.ndim - rank  # an axis of taps is put in front each time
        x = jnp.stack([seen_by(tap * a.dilation, x, axis, a.step, a.outputs) for tap in range(a.window)])
    return x.reshape(math.prod(spec.window), *x.shape[len(spec.axes) :])


def lowest(dtype: np.dtype) -> np.ndarray:
    """What padding is to a maximum: no number of `dtype` is less."""
    if dtype == jnp.bool_:
        return np.array(False)
    if not jnp.issubdtype(dtype, jnp.floating):
        return np.array(jnp.iinfo(dtype).min, dtype)
    infinite = np.array(-np.inf).astype(dtype)  # NaN in some formats of 8 bits
    return np.array(jnp.finfo(dtype).min if np.isnan(infinite) else infinite, dtype)


def pad_to_windows(x: Array, spec: PoolSpec, value: ArrayLike) -> Array:
    """`x` with its padding of `value`, to the end of the last window, rounded up to a multiple of the step.

    What no window sees is cropped. All axes at once, since on CPU each padding is a copy.
    """
    edges = [(0, 0, 0)] * x.ndim
    for a in spec.along:
        size = (a.outputs - 1 + -(-a.span // a.step)) * a.step
        edges[a.axis] = (a.low, size - a.low - x.shape[a.axis], 0)
    return lax.pad(x, value, edges)


def seen_by(tap: int, x: Array, axis: int, stride: int, outputs: int) -> Array:
    """What one tap of the window meets along one axis: x[p stride + tap] for every output position p.

    The number of these may be symbolic where `x` ends at a multiple of the stride.
    """
    if not is_symbolic_dim(outputs) and outputs == 0:
        return lax.slice_in_dim(x, 0, 0, axis=axis)
    if stride > 1 and x.shape[axis] % stride == 0:  # then slices without a stride do, which are faster on CPU
        x = x.reshape(*x.shape[:axis], x.shape[axis] // stride, stride, *x.shape[axis + 1 :])
        x = lax.index_in_dim(x, tap % stride, axis + 1, keepdims=False)
        return lax.slice_in_dim(x, tap // stride, tap // stride + outputs, axis=axis)
    return lax.slice_in_dim(x, tap, tap + (outputs - 1) * stride + 1, stride, axis)


def combine_windows(combine: Callable[[Any, Any], Any], x: Any, along: Along) -> Any:
    """One element for all of each window along one axis: say, the largest.

    A short window is combined tap by tap. For a long one each element is first combined with its neighbour, each of
    these pairs with the next pair, and so on; a few of the runs, the last ones overlapping, then make the window.

    Args:
      combine: chooses one of two elements, of which the first comes before the second: associative, and
        combine(a, a) = a.
      x: an array, or several of the same shape as a tuple, padded.
      along: the axis along which the windows lie, and what they are; there is at least one, or a symbolic number.

    Returns:
      As `x`, with an element for each window along the axis.
    """
    axis, window, dilation, stride, _, outputs = along
    taps = lambda tap, stride, count: jax.tree.map(lambda a: seen_by(tap * dilation, a, axis, stride, count), x)
    reach = 1  # how many elements of the original are in one of x
    runs = lambda reach: -(-window // reach)
    # Pairing takes a step at every position; what it saves are steps at one of `stride` positions, and compilation.
    while not is_symbolic_dim(outputs) and (runs(reach) - runs(2 * reach) > stride or runs(reach) > 16):
        pairs = jax.tree.leaves(x)[0].shape[axis] - reach * dilation
        x = combine(taps(0, 1, pairs), taps(reach, 1, pairs))
        reach *= 2
    starts = [min(i * reach, window - reach) for i in range(runs(reach))]
    return functools.reduce(combine, [taps(start, stride, outputs) for start in starts])
