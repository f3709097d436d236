"""The form that the hand-written convolutions compute in, and the way there and back.

    input  [group, batch, *space, channel]     kernel [group, *tap, channel, feature]

Groups of channels and groups of the batch become an axis of their own, and whatever layout the operands came in becomes
one; what is left to write down is the convolution itself.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from cnnjax.ops.conv_spec import ConvSpec
from cnnjax.ops.dtypes import accumulator


def result_dtype(lhs: Array, spec: ConvSpec) -> jnp.dtype:
    """The dtype of the output: `spec.preferred_element_type`, or that of the operands."""
    return jax.dtypes.canonicalize_dtype(
        lhs.dtype if spec.preferred_element_type is None else spec.preferred_element_type
    )


def accumulator_dtype(lhs: Array, spec: ConvSpec) -> jnp.dtype:
    """The dtype to sum in: that of the output, float32 at least."""
    # The two are of one kind. Not jnp.promote_types, which raises where JAX is to promote nothing by itself.
    return max(accumulator(lhs.dtype), accumulator(result_dtype(lhs, spec)), key=lambda dtype: dtype.itemsize)


def channels_last(lhs: Array, rhs: Array, spec: ConvSpec) -> tuple[Array, Array]:
    """[batch, *space, channel] and [*tap, channel of a group, feature]."""
    return input_channels_last(lhs, spec), kernel_channels_last(rhs, spec)


def input_channels_last(lhs: Array, spec: ConvSpec) -> Array:
    """The input as [batch, *space, channel]."""
    batch, channel, *space = spec.dimension_numbers.lhs_spec
    return lax.transpose(lhs, (batch, *space, channel))


def kernel_channels_last(rhs: Array, spec: ConvSpec) -> Array:
    """The kernel as [*tap, channel of a group, feature]."""
    feature, channel, *taps = spec.dimension_numbers.rhs_spec
    return lax.transpose(rhs, (*taps, channel, feature))


def to_output(y: Array, spec: ConvSpec) -> Array:
    """[batch, *output_space, feature] with the output's own axes."""
    batch, feature, *space = spec.dimension_numbers.out_spec
    return jnp.moveaxis(y, range(y.ndim), (batch, *space, feature))


def input_by_group(lhs: Array, spec: ConvSpec) -> Array:
    """The input as [group, batch, *space, channel], not yet padded."""
    x = input_channels_last(lhs, spec)
    n, *size, c = x.shape
    if spec.batch_group_count > 1:
        return x.reshape(spec.batch_group_count, n // spec.batch_group_count, *size, c)
    x = x.reshape(n, *size, spec.feature_group_count, c // spec.feature_group_count)
    return jnp.moveaxis(x, -2, 0)


def kernel_by_group(rhs: Array, spec: ConvSpec) -> Array:
    """The kernel as [group, *tap, channel, feature]: either kind of group owns a run of output features."""
    w = kernel_channels_last(rhs, spec)
    groups = spec.feature_group_count * spec.batch_group_count  # one of them is 1
    w = w.reshape(*w.shape[:-1], groups, w.shape[-1] // groups)
    return jnp.moveaxis(w, -2, 0)


def dilate_and_pad(x: Array, spec: ConvSpec) -> Array:
    """Puts dilation - 1 zeros between neighbours, then pads with zeros, or crops where the padding is negative.

    Args:
      x: [group, batch, *space, channel].
      spec: the convolution.
    """
    space = [(low, high, d - 1) for (low, high), d in zip(spec.padding, spec.lhs_dilation, strict=True)]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *space, (0, 0, 0)])


def seen_by(tap: tuple[int, ...], x: Array, spec: ConvSpec) -> Array:
    """What the tap k = `tap` of the kernel meets in each window: x[..., p s + k d, :] for every output position p.

    Args:
      tap: an index along each spatial axis of the kernel.
      x: [group, batch, *space, channel], dilated and padded.
      spec: the convolution; at least one window fits.

    Returns:
      [group, batch, *output_space, channel].
    """
    start = [k * d for k, d in zip(tap, spec.rhs_dilation, strict=True)]
    limit = [a + (p - 1) * s + 1 for a, p, s in zip(start, spec.output_space, spec.window_strides, strict=True)]
    groups, batch, *_, channels = x.shape
    return lax.slice(x, (0, 0, *start, 0), (groups, batch, *limit, channels), (1, 1, *spec.window_strides, 1))


def output(y: Array, spec: ConvSpec) -> Array:
    """From [group, batch, *output_space, feature] to the output's own axes, groups side by side in the features."""
    y = jnp.moveaxis(y, 0, -2)
    y = y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1])
    return to_output(y, spec)
