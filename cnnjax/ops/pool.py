"""Max and average pooling with the signatures of `flax.linen`."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from cnnjax.ops import primitives
from cnnjax.ops.dtypes import accumulator
from cnnjax.ops.errors import as_array
from cnnjax.ops.pool_spec import Along, PoolSpec, pool_spec
from cnnjax.ops.windows import combine_windows, lowest, pad_to_windows


def max_pool(
    inputs: ArrayLike,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    window_dilation: Sequence[int] | None = None,
) -> Array:
    """The maximum of each window, each channel by itself.

    The gradient goes to the first maximum of each window in row-major order, as that of XLA's reduce-window does, but
    by slices and selects alone: deterministic on every backend, differentiable in both modes and any number of times.
    A NaN in a window makes its maximum NaN, and the gradient goes to the last of them, as in PyTorch. Padding is -inf,
    and comes first where a window starts in it: the gradient of a window of nothing but -inf is lost there, as it is in
    `flax.linen` on CPU and GPU.

    Args:
      inputs: [..., *space, channel], with as many spatial axes as `window_shape` has entries and any number of axes, or
        none, before them; real or integer.
      window_shape: size of the window along each spatial axis.
      strides: distance between neighbouring windows along each; 1 by default.
      padding: "VALID", "SAME", "SAME_LOWER" or a (low, high) pair for each; what is added is less than every number.
      window_dilation: distance between neighbouring elements of a window along each; 1 by default. A window of k then
        spans (k - 1) window_dilation + 1 elements, and that is what the padding and the number of windows go by.

    Returns:
      [..., *space, channel], of the dtype of `inputs`.

    Raises:
      InputError: an argument is out of range or does not agree with the shape of `inputs`.
      TypeError: complex inputs, which have no order.
    """
    inputs = as_array("inputs", inputs)
    if jnp.issubdtype(inputs.dtype, jnp.complexfloating):
        raise TypeError(f"inputs must hold real numbers: got {inputs.dtype}")
    spec = pool_spec(inputs.shape, window_shape, strides, padding, window_dilation)
    if primitives.wanted():
        return reduce_windows(inputs, spec, lowest(inputs.dtype), lax.max)
    if 0 in spec.output_space:
        return jnp.zeros((*inputs.shape[: spec.axes[0]], *spec.output_space, inputs.shape[-1]), inputs.dtype)
    if math.prod(spec.window) <= 4 and all(along.step >= along.span for along in spec.along):
        return _max_of_blocks(inputs, spec)
    # The maximum over a window is the maximum over its rows of the maximum along each row, and the first maximum in
    # row-major order lies in the first row that attains it: so one axis at a time, the last one first.
    maximum = pad_to_windows(inputs, spec, lowest(inputs.dtype))
    for along in reversed(spec.along):
        maximum = _max_of_windows(maximum, along)
    return maximum


def _max_of_blocks(x: Array, spec: PoolSpec) -> Array:
    """The maximum of windows that don't overlap: each is inside a block of its own, as large as the steps.

    Then the taps are slices of one reshaped array, and their gradients go back without a sum: for 2x2 windows half of
    the time that one axis after the other takes.
    """
    x = pad_to_windows(x, spec, lowest(x.dtype))
    for i, along in enumerate(spec.along):
        axis = along.axis + i  # each axis before became two
        x = x.reshape(*x.shape[:axis], along.outputs, along.step, *x.shape[axis + 1 :])
    every = slice(None)
    taps = itertools.product(*(range(0, along.span, along.dilation) for along in spec.along))
    seen = [x[(every,) * spec.axes[0] + tuple(i for tap in at for i in (every, tap))] for at in taps]
    return functools.reduce(_first_maximum, seen)


def _max_of_windows(x: Array, along: Along) -> Array:
    """The maximum of each window along one axis of a padded array.

    A window without gaps and the distance to the next consist of whole blocks, as large as their greatest common
    divisor: windows side by side are one block each.
    """
    axis, block = along.axis, math.gcd(along.window, along.step) if along.dilation == 1 else 1
    if block > 2:
        x = max_along(x.reshape(*x.shape[:axis], x.shape[axis] // block, block, *x.shape[axis + 1 :]), axis + 1)
        along = along._replace(window=along.window // block, step=along.step // block)
    return combine_windows(_first_maximum, x, along)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def max_along(x: Array, axis: int) -> Array:
    """The maximum along an axis; its gradient goes to the first place of it, or to the last NaN."""
    # Not x.max(axis), which loses some NaNs on CPU (jaxlib 0.10.2).
    return lax.reduce(x, lowest(x.dtype), _first_maximum, (axis,))


@max_along.defjvp
def _(axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    y = max_along(x, axis)
    place = lax.broadcasted_iota(jnp.int32, x.shape, axis) + jnp.zeros_like(x, jnp.int32)  # sharded as x is
    # The least of these is that of the first maximum, or, below zero, that of the last NaN.
    is_maximum = x == jnp.expand_dims(y, axis)
    key = jnp.where(jnp.isnan(x), -1 - place, jnp.where(is_maximum, place, x.shape[axis])).min(axis, keepdims=True)
    return y, jnp.where(place == jnp.where(key < 0, -1 - key, key), dx, 0).sum(axis)


def _first_maximum(best: Array, candidate: Array) -> Array:
    """The larger of two numbers, element by element: the first where they are equal, a NaN if there is one."""
    better = candidate > best
    if jnp.issubdtype(best.dtype, jnp.inexact):
        better |= jnp.isnan(candidate)
    return jnp.where(better, candidate, best)


def avg_pool(
    inputs: ArrayLike,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    count_include_pad: bool = True,
    window_dilation: Sequence[int] | None = None,
) -> Array:
    """The mean of each window, each channel by itself.

    Args:
      inputs: as for `max_pool`; real, complex or integer.
      window_shape: size of the window along each spatial axis.
      strides: distance between neighbouring windows along each; 1 by default.
      padding: "VALID", "SAME", "SAME_LOWER" or a (low, high) pair for each; what is added is zero.
      count_include_pad: whether the padding counts as elements of the window. If not, the mean of a window with nothing
        but padding is NaN.
      window_dilation: distance between neighbouring elements of a window along each; 1 by default.

    Returns:
      [..., *space, channel], of the dtype of `inputs`, or the default float for integers. bfloat16 and float16 are
      summed in float32.

    Raises:
      InputError: an argument is out of range or does not agree with the shape of `inputs`.
      TypeError: boolean inputs, which have no mean.
    """
    inputs = as_array("inputs", inputs)
    if inputs.dtype == jnp.bool_:
        raise TypeError(f"inputs must hold numbers: got {inputs.dtype}")
    spec = pool_spec(inputs.shape, window_shape, strides, padding, window_dilation)
    result = inputs.dtype if jnp.issubdtype(inputs.dtype, jnp.inexact) else jnp.result_type(float)
    dtype = accumulator(result)
    sums = reduce_windows(inputs.astype(dtype), spec, np.zeros((), dtype), lax.add)
    if count_include_pad:
        counts = jnp.asarray(math.prod(spec.window), dtype)
    else:
        counts = _elements_inside(inputs.shape, spec).astype(dtype)
    return (sums / counts).astype(result)


def reduce_windows(x: Array, spec: PoolSpec, of_none: ArrayLike, combine: Callable[..., Array]) -> Array:
    """What `combine` makes of each window; `of_none` where none of it is inside."""
    along = lambda values, other: [values[spec.axes.index(i)] if i in spec.axes else other for i in range(x.ndim)]
    padding = along(spec.padding, (0, 0))
    # XLA ends the process at windows of one element with negative padding: what is cropped is cropped before.
    crop = lambda pad: min(pad, 0) if isinstance(pad, int) else 0  # symbolic padding, of "SAME", is never negative
    cropped = [(crop(low), crop(high), 0) for low, high in padding]
    if any(low or high for low, high, _ in cropped):
        x = lax.pad(x, jnp.zeros((), x.dtype), cropped)
        padding = [(low - crop(low), high - crop(high)) for low, high in padding]
    return lax.reduce_window(
        x,
        of_none,
        combine,
        along(spec.window, 1),
        along(spec.strides, 1),
        padding,
        window_dilation=along(spec.window_dilation, 1),
    )


def _elements_inside(shape: Sequence[int], spec: PoolSpec) -> Array:
    """How many elements of each window are not padding: int32, [1, ..., *output_space, 1]."""
    inside = []
    for along in spec.along:
        start = jnp.arange(along.outputs, dtype=jnp.int32)[:, None] * along.step - along.low
        taps = start + jnp.arange(0, along.span, along.dilation, dtype=jnp.int32)[None]  # [output, tap]
        counts = ((taps >= 0) & (taps < shape[along.axis])).sum(1, dtype=jnp.int32)
        inside.append(lax.expand_dims(counts, [i for i in range(len(shape)) if i != along.axis]))
    return functools.reduce(jnp.multiply, inside)
