"""From a convolution as `lax` takes it to convolutions of one group on channels-last arrays, and back."""

import jax
import jax.numpy as jnp
from jax import Array

from cnnjax.ops import dense, layout
from cnnjax.ops.conv_spec import ConvSpec
from cnnjax.ops.dense import Convolution, Geometry


def by_group(convolve: Convolution, lhs: Array, rhs: Array, spec: ConvSpec) -> Array:
    """The convolution that `spec` describes, each group by `convolve`, all at once.

    Args:
      convolve: of one group, with stride 1 or more and without input dilation.
      lhs: input, floating point, axes as `spec.dimension_numbers` says.
      rhs: kernel, of the same dtype.
      spec: what `conv_spec` made of the arguments.

    Returns:
      The output in `spec.preferred_element_type`, or the dtype of the operands. Sums are in float32 at least.
    """
    accumulator = layout.accumulator_dtype(lhs, spec)
    x = layout.input_by_group(lhs.astype(accumulator), spec)  # [group, batch, *space, channel]
    w = layout.kernel_by_group(rhs.astype(accumulator), spec)  # [group, *tap, channel, feature]
    if 0 in (*x.shape, *w.shape, *spec.output_space):  # there is nothing to sum
        y = jnp.zeros((*x.shape[:2], *spec.output_space, w.shape[-1]), accumulator)
    elif len(x) == 1:
        y = one_group(convolve, x[0], w[0], spec)[None]
    else:
        y = jax.vmap(lambda x, w: one_group(convolve, x, w, spec))(x, w)
    return layout.output(y, spec).astype(layout.result_dtype(lhs, spec))


def one_group(convolve: Convolution, x: Array, w: Array, spec: ConvSpec) -> Array:
    """[batch, *space, channel] and [*tap, channel, feature] to [batch, *output_space, feature], by `convolve`.

    An input with zeros between its elements is dealt with here: `dense.spread`.
    """
    padding = spec.padding
    if any(d > 1 for d in spec.lhs_dilation):
        if all(s == 1 for s in spec.window_strides):
            low = [low for low, _ in padding]
            return dense.spread(
                convolve, x, w, spec.lhs_dilation, low, spec.rhs_dilation, spec.output_space, spec.precision
            )
        x = dense.pad(x, padding, [d - 1 for d in spec.lhs_dilation])
        padding = ((0, 0),) * len(padding)
    space, taps = x.shape[1:-1], w.shape[:-2]
    return convolve(x, w, Geometry(space, taps, spec.window_strides, padding, spec.rhs_dilation, spec.precision))


def is_depthwise(lhs: Array, spec: ConvSpec) -> bool:
    """Whether there are several groups, of one input channel each."""
    return 1 < spec.feature_group_count == lhs.shape[spec.dimension_numbers.lhs_spec[1]]


def depthwise(lhs: Array, rhs: Array, spec: ConvSpec) -> Array:
    """One channel a group: the sum over taps, element by element; arguments as for `by_group`."""
    accumulator = layout.accumulator_dtype(lhs, spec)
    x, w = layout.channels_last(lhs.astype(accumulator), rhs.astype(accumulator), spec)
    features = w.shape[-1]
    if 0 in (*x.shape, *w.shape, *spec.output_space):
        y = jnp.zeros((len(x), *spec.output_space, features), accumulator)
    else:
        x = dense.pad(x, spec.padding, [d - 1 for d in spec.lhs_dilation])
        x = jnp.repeat(x, features // x.shape[-1], axis=-1)
        none = ((0, 0),) * len(spec.padding)
        g = Geometry(x.shape[1:-1], w.shape[:-2], spec.window_strides, none, spec.rhs_dilation)
        y = dense.by_channel(x, w[..., 0, :], g)
    return layout.to_output(y, spec).astype(layout.result_dtype(lhs, spec))
