"""Average pooling to a size that is given, whatever the input's."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from cnnjax.ops import sizes
from cnnjax.ops.dtypes import accumulator
from cnnjax.ops.errors import InputError, as_array


@jax.named_scope("cnnjax_adaptive_avg_pool")
def adaptive_avg_pool(inputs: ArrayLike, output_space: Sequence[int]) -> Array:
    """The means of windows that are as equal as they can be and cover the input: PyTorch's `AdaptiveAvgPool`.

    Along an axis of n elements the window of output i of m goes from floor(i n / m) to ceil((i + 1) n / m):
    neighbouring ones may share elements, and do where m > n. For m = n the input stays as it is.

    Args:
      inputs: [..., *space, channel], with as many spatial axes as `output_space` has entries; floating point.
      output_space: how many outputs there are along each.

    Returns:
      [..., *output_space, channel], of the dtype of `inputs`. bfloat16 and float16 are summed in float32.

    Raises:
      InputError: there are too few axes, one has no elements, or `output_space` is not positive.
      TypeError: inputs that are not floating point.
    """
    inputs = as_array("inputs", inputs)
    if not jnp.issubdtype(inputs.dtype, jnp.inexact):
        raise TypeError(f"inputs must hold floating-point numbers: got {inputs.dtype}")
    space = sizes.per_axis("output_space", output_space, sizes.number_of_axes("output_space", output_space))
    first = inputs.ndim - 1 - len(space)
    if first < 0 or 0 in inputs.shape[first:-1]:
        raise InputError(
            f"inputs must have {len(space)} spatial axes with elements, and then one of channels, for output_space "
            f"{space}: got shape {inputs.shape}"
        )
    y = inputs.astype(accumulator(inputs.dtype))
    for axis, m in zip(itertools.count(first), space, strict=False):
        n = y.shape[axis]
        if n != m:
            windows = [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]
            y = jnp.stack([lax.slice_in_dim(y, a, b, axis=axis).mean(axis) for a, b in windows], axis)
    return y.astype(inputs.dtype)
