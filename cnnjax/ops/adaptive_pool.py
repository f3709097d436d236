"""Pooling to a size that is given, whatever the input's: PyTorch's adaptive pooling.

The windows are as equal as they can be and cover the input. Along an axis of n elements that of output i of m goes from
floor(i n / m) to ceil((i + 1) n / m): neighbouring ones may share elements, and do where m > n. For m = n the input
stays as it is.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.export import is_symbolic_dim
from jax.typing import ArrayLike

from cnnjax.ops import sizes
from cnnjax.ops.dtypes import accumulator
from cnnjax.ops.errors import InputError, as_array
from cnnjax.ops.pool import max_along


@jax.named_scope("cnnjax_adaptive_avg_pool")
def adaptive_avg_pool(inputs: ArrayLike, output_space: Sequence[int]) -> Array:
    """The means of windows that are as equal as they can be and cover the input: PyTorch's `AdaptiveAvgPool`.

    The windows are those of the top of `cnnjax.ops.adaptive_pool`.

    Args:
      inputs: [..., *space, channel], with as many spatial axes as `output_space` has entries; floating point.
      output_space: how many outputs there are along each.

    Returns:
      [..., *output_space, channel], of the dtype of `inputs`. bfloat16 and float16 are summed in float32.

    Raises:
      InputError: there are too few axes, one has no elements or a symbolic size, or `output_space` is not positive.
      TypeError: inputs that are not floating point.
    """
    inputs = as_array("inputs", inputs)
    if not jnp.issubdtype(inputs.dtype, jnp.inexact):
        raise TypeError(f"inputs must hold floating-point numbers: got {inputs.dtype}")
    y = inputs.astype(accumulator(inputs.dtype))
    for axis, windows in _windows(inputs, output_space):
        y = jnp.stack([lax.slice_in_dim(y, a, b, axis=axis).mean(axis) for a, b in windows], axis)
    return y.astype(inputs.dtype)


@jax.named_scope("cnnjax_adaptive_max_pool")
def adaptive_max_pool(inputs: ArrayLike, output_space: Sequence[int]) -> Array:
    """The maxima of windows that are as equal as they can be and cover the input: PyTorch's `AdaptiveMaxPool`.

    The windows are those of the top of `cnnjax.ops.adaptive_pool`. The gradient goes to the first maximum of each
    window in row-major order, or to its last NaN, as that of `max_pool`.

    Args:
      inputs: [..., *space, channel], with as many spatial axes as `output_space` has entries; real or integer.
      output_space: how many outputs there are along each.

    Returns:
      [..., *output_space, channel], of the dtype of `inputs`.

    Raises:
      InputError: there are too few axes, one has no elements or a symbolic size, or `output_space` is not positive.
      TypeError: complex inputs, which have no order.
    """
    inputs = as_array("inputs", inputs)
    if jnp.issubdtype(inputs.dtype, jnp.complexfloating):
        raise TypeError(f"inputs must hold real numbers: got {inputs.dtype}")
    y = inputs
    # As in `max_pool` the last axis first, so that the first maximum in row-major order is found.
    for axis, windows in reversed(_windows(inputs, output_space)):
        y = jnp.stack([max_along(lax.slice_in_dim(y, a, b, axis=axis), axis) for a, b in windows], axis)
    return y


def _windows(x: Array, output_space: Sequence[int]) -> list[tuple[int, list[sizes.Pair]]]:
    """Each axis whose size is to change, and where its windows begin and end."""
    outputs = sizes.per_axis("output_space", output_space, sizes.number_of_axes("output_space", output_space))
    first = x.ndim - 1 - len(outputs)
    space = x.shape[max(first, 0) : -1]
    if first < 0 or 0 in space or any(map(is_symbolic_dim, space)):
        raise InputError(
            f"inputs must have {len(outputs)} spatial axes with elements, of which the number is known, and then one "
            f"of channels, for output_space {outputs}: got shape {x.shape}"
        )
    return [
        (axis, [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)])
        for axis, (n, m) in enumerate(zip(space, outputs, strict=True), first)
        if n != m
    ]
