"""Max pooling that remembers where each maximum was, and the unpooling that puts values back there.

A switch is the position of the maximum of a window within the input's spatial axes, flattened row by row: what a
deconvnet records on the way up and follows on the way down.
Source: Zeiler and Fergus, "Visualizing and understanding convolutional networks", arXiv:1311.2901, section 2.1.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.export import is_symbolic_dim
from jax.typing import ArrayLike

from cnnjax.ops import primitives, sizes
from cnnjax.ops.dtypes import accumulator
from cnnjax.ops.errors import InputError, as_array, unknown
from cnnjax.ops.pool import reduce_windows
from cnnjax.ops.pool_spec import pool_spec
from cnnjax.ops.windows import combine_windows, lowest, pad_to_windows

OVERLAPS = ("sum", "last")


def max_pool_with_switches(
    inputs: ArrayLike,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    window_dilation: Sequence[int] | None = None,
) -> tuple[Array, Array]:
    """The maximum of each window, each channel by itself, and where it was.

    The maximum is that of `max_pool`, and its gradient goes to the switch. Among equal elements the first in row-major
    order is the maximum; a NaN is larger than every number, and than a NaN before it; padding is never the maximum of a
    window that holds an element of the input. The switches are those of PyTorch's
    `max_pool2d(..., return_indices=True)` with the channel axis last.

    Args:
      inputs: [..., *space, channel], with as many spatial axes as `window_shape` has entries and any number of axes, or
        none, before them; real or integer.
      window_shape: size of the window along each spatial axis.
      strides: distance between neighbouring windows along each; 1 by default.
      padding: "VALID", "SAME", "SAME_LOWER" or a (low, high) pair for each; what is added is less than every number.
      window_dilation: distance between neighbouring elements of a window along each; 1 by default.

    Returns:
      Two arrays [..., *output_space, channel]: the maxima, of the dtype of `inputs`, and the switches, int32: the
      position of each maximum among the prod(space) positions of `inputs`, or -1 where a window holds only padding.

    Raises:
      InputError: an argument is out of range or does not agree with the shape of `inputs`, or there are more positions
        than int32 can count.
      TypeError: complex inputs, which have no order.
    """
    inputs = as_array("inputs", inputs)
    if jnp.issubdtype(inputs.dtype, jnp.complexfloating):
        raise TypeError(f"inputs must hold real numbers: got {inputs.dtype}")
    spec = pool_spec(inputs.shape, window_shape, strides, padding, window_dilation)
    space = [inputs.shape[axis] for axis in spec.axes]
    if not is_symbolic_dim(math.prod(space)) and math.prod(space) > np.iinfo(np.int32).max:
        raise InputError(
            f"inputs must have no more than 2^31 - 1 positions: got {math.prod(space)}, shape {inputs.shape}"
        )
    if 0 in spec.output_space:
        empty = (*inputs.shape[: spec.axes[0]], *spec.output_space, inputs.shape[-1])
        return jnp.zeros(empty, inputs.dtype), jnp.zeros(empty, jnp.int32)
    # As in `max_pool`, one axis at a time and the last one first; a maximum takes its position along.
    positions = jnp.arange(math.prod(space), dtype=jnp.int32).reshape(*[1] * spec.axes[0], *space, 1)
    switches = positions + jnp.zeros_like(inputs, jnp.int32)  # sharded as the inputs are
    best = pad_to_windows(inputs, spec, lowest(inputs.dtype)), pad_to_windows(switches, spec, jnp.int32(-1))
    for along in reversed(spec.along):
        best = combine_windows(_first_of_the_larger, best, along)
    if primitives.wanted():
        return reduce_windows(inputs, spec, lowest(inputs.dtype), lax.max), best[1]
    return best


def _first_of_the_larger(best: tuple[Array, Array], candidate: tuple[Array, Array]) -> tuple[Array, Array]:
    """The larger of two (value, position) pairs, the earlier where they are equal; anything beats padding."""
    (x, i), (y, j) = best, candidate
    later = (y > x) | (i < 0)
    if jnp.issubdtype(x.dtype, jnp.inexact):
        later |= jnp.isnan(y)
    return jnp.where(later, y, x), jnp.where(later, j, i)


def max_unpool(pooled: ArrayLike, switches: ArrayLike, output_space: Sequence[int], *, overlap: str = "sum") -> Array:
    """Each value at its switch, and zero everywhere else: a partial inverse of `max_pool_with_switches`.

    Where windows overlap, several values can have one switch. In what was pooled they were one number, but not in what
    a deconvnet brings down from the layer above, so there is a choice (PyTorch's `max_unpool2d` leaves it undefined):

        "sum" adds them. This is the transpose of the selection, hence the gradient of max pooling, and linear; but
        `max_unpool(*max_pool_with_switches(x, ...), space)` is a multiple of x at a switch that windows share.

        "last" places one of them, that of the last window in row-major order. No value is counted twice, and unpooling
        what was pooled puts exactly the maxima back.

    The two are equal where no switches coincide, in particular where windows do not overlap.

    "last" is deterministic on every backend. "sum" adds by a scatter: on GPU its rounding may vary from run to run
    where three or more values meet, unless XLA runs with --xla_gpu_deterministic_ops=true.

    Source: Zeiler and Fergus, arXiv:1311.2901, section 2.1 ("place the reconstructions"); that the sum is the gradient:
    Simonyan, Vedaldi and Zisserman, "Deep inside convolutional networks", arXiv:1312.6034, section 4.

    Args:
      pooled: [..., *pooled_space, channel], with as many spatial axes as `output_space` has entries.
      switches: integers of the same shape: positions among the prod(output_space) of the output, flattened row by row;
        a value whose switch is negative or beyond the last position goes nowhere.
      output_space: spatial shape of the output, that of the input that was pooled.
      overlap: "sum" or "last".

    Returns:
      [..., *output_space, channel], of the dtype of `pooled`. bfloat16 and float16 are summed in float32.

    Raises:
      InputError: shapes do not agree, `overlap` is unknown, or there are more positions than int32 can count.
      TypeError: switches that are not integers, or boolean `pooled`.
    """
    pooled, switches = as_array("pooled", pooled), as_array("switches", switches)
    space = sizes.per_axis("output_space", output_space, sizes.number_of_axes("output_space", output_space))
    if pooled.dtype == jnp.bool_:
        raise TypeError(f"pooled must hold numbers: got {pooled.dtype}")
    if not jnp.issubdtype(switches.dtype, jnp.integer):
        raise TypeError(f"switches must hold integers: got {switches.dtype}")
    if pooled.ndim < len(space) + 1:
        raise InputError(
            f"pooled must have {len(space)} spatial axes and then one of channels for output_space {space}: "
            f"got shape {pooled.shape}"
        )
    if switches.shape != pooled.shape:
        raise InputError(f"switches must have the shape of pooled, {pooled.shape}: got {switches.shape}")
    if overlap not in OVERLAPS:
        raise unknown("overlap", overlap, OVERLAPS)

    positions = math.prod(space)
    if positions > np.iinfo(np.int32).max:
        raise InputError(f"output_space must have no more than 2^31 - 1 positions: got {positions}, {space}")
    place = functools.partial({"sum": _sum_at, "last": _last_at}[overlap], positions=positions)
    batch, channels = pooled.shape[: -len(space) - 1], pooled.shape[-1]
    of_windows = (*batch, math.prod(pooled.shape[len(batch) : -1]), channels)
    for _ in batch:  # an axis of its own each, so that a batch that is sharded stays where it is
        place = jax.vmap(place)
    return place(pooled.reshape(of_windows), switches.reshape(of_windows)).reshape(*batch, *space, channels)


def _sum_at(values: Array, to: Array, positions: int) -> Array:
    """y[to[w, c], c] += values[w, c]: [position, channel]."""
    dtype = accumulator(values.dtype) if jnp.issubdtype(values.dtype, jnp.inexact) else values.dtype
    zeros = jnp.zeros((positions, values.shape[1]), dtype)
    return zeros.at[_places(to, positions)].add(values.astype(dtype), mode="drop").astype(values.dtype)


def _last_at(values: Array, to: Array, positions: int) -> Array:
    """y[i, c] = values[w, c] for the last w with to[w, c] = i: [position, channel]."""
    number_of_windows, channels = values.shape
    if number_of_windows == 0:
        return jnp.zeros((positions, channels), values.dtype)
    # Which window wins is a maximum, which has no order to depend on; and as each wins in one place at most, nothing
    # is added to anything, here or in the gradient.
    nobody = jnp.full((positions, channels), -1, jnp.int32)
    window = jnp.arange(number_of_windows, dtype=jnp.int32)[:, None]
    winner = nobody.at[_places(to, positions)].max(window, mode="drop")
    return jnp.where(winner < 0, 0, jnp.take_along_axis(values, jnp.maximum(winner, 0), axis=0))


def _places(to: Array, positions: int) -> tuple[Array, Array]:
    """Indices [window, channel] of what goes where; a negative one, which would count from the end, is moved beyond
    the last."""
    if to.dtype.itemsize < 4:
        to = to.astype(jnp.int32)  # `positions` may be more than it can hold
    return jnp.where(to < 0, positions, to), jnp.arange(to.shape[1])
