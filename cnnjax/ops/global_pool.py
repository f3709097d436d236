"""Pooling over a whole feature map: one number for each channel, whatever the size of the image."""

import math

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from cnnjax.ops import primitives
from cnnjax.ops.dtypes import accumulator
from cnnjax.ops.errors import InputError, as_array


def global_max_pool(inputs: ArrayLike, keepdims: bool = False) -> Array:
    """The maximum of each channel over all positions.

    The gradient goes to the first maximum in row-major order, as that of `max_pool`. A NaN makes the maximum NaN.

    Source: Oquab, Bottou, Laptev and Sivic, "Is object localization for free?", CVPR 2015, section 3.2.

    Args:
      inputs: [batch, *space, channel] with at least one spatial axis; real or integer.
      keepdims: whether the spatial axes stay, with size 1.

    Returns:
      [batch, channel], or [batch, 1, ..., 1, channel] with `keepdims`; of the dtype of `inputs`.

    Raises:
      InputError: `inputs` has no spatial axis or no positions.
      TypeError: complex inputs, which have no order.
    """
    inputs = as_array("inputs", inputs)
    if jnp.issubdtype(inputs.dtype, jnp.complexfloating):
        raise TypeError(f"inputs must hold real numbers: got {inputs.dtype}")
    space = _space(inputs)
    if primitives.wanted():
        return jnp.max(inputs, axis=tuple(range(1, inputs.ndim - 1)), keepdims=keepdims)
    batch, *_, channels = inputs.shape
    x = inputs.reshape(batch, math.prod(space), channels)
    # Not jnp.max, which would divide the gradient among equal maxima.
    first = jnp.argmax(x, axis=1, keepdims=True)  # [batch, 1, channel]
    y = jnp.take_along_axis(x, first, axis=1)
    return y.reshape(_pooled_shape(inputs, keepdims))


def global_avg_pool(inputs: ArrayLike, keepdims: bool = False) -> Array:
    """The mean of each channel over all positions.

    Source: Lin, Chen and Yan, "Network in network", arXiv:1312.4400, section 3.2.

    Args:
      inputs: [batch, *space, channel] with at least one spatial axis; real, complex or integer.
      keepdims: whether the spatial axes stay, with size 1.

    Returns:
      [batch, channel], or [batch, 1, ..., 1, channel] with `keepdims`; of the dtype of `inputs`, or the default float
      for integers. bfloat16 and float16 are summed in float32.

    Raises:
      InputError: `inputs` has no spatial axis or no positions.
      TypeError: boolean inputs, which have no mean.
    """
    inputs = as_array("inputs", inputs)
    if inputs.dtype == jnp.bool_:
        raise TypeError(f"inputs must hold numbers: got {inputs.dtype}")
    space = _space(inputs)
    result = inputs.dtype if jnp.issubdtype(inputs.dtype, jnp.inexact) else jnp.result_type(float)
    x = inputs.astype(accumulator(result))
    y = jnp.sum(x, axis=tuple(range(1, x.ndim - 1))) / math.prod(space)
    return y.astype(result).reshape(_pooled_shape(inputs, keepdims))


def _space(inputs: Array) -> tuple[int, ...]:
    """The spatial shape."""
    space = inputs.shape[1:-1]
    if not space or 0 in space:
        raise InputError(
            f"inputs must be [batch, *space, channel] with at least one position: got shape {inputs.shape}"
        )
    return space


def _pooled_shape(inputs: Array, keepdims: bool) -> tuple[int, ...]:
    batch, *space, channels = inputs.shape
    return (batch, *([1] * len(space) if keepdims else []), channels)
