"""Convolution written by hand in JAX, from its definition and without any library's convolution.

In one dimension and one group, with x the input after dilation and padding, w the kernel, s the stride and d the
kernel's dilation,

    y[n, p, f] = sum over taps k and channels c of  x[n, p s + k d, c] w[k, c, f].

The sum over channels is a matrix product, and the x that a tap meets as p runs is a strided slice. So the whole is a
sum over taps of a slice times a matrix; autodiff turns it into sums of the same kind.
"""

import functools
import itertools
import operator

import jax
import jax.numpy as jnp
from jax import Array, lax

from cnnjax.ops.conv_spec import ConvSpec


def conv_direct(lhs: Array, rhs: Array, spec: ConvSpec) -> Array:
    """The convolution that `spec` describes, as a sum over kernel taps.

    Args:
      lhs: input, floating point, axes as `spec.dimension_numbers` says.
      rhs: kernel, of the same dtype.
      spec: what `conv_spec` made of the arguments.

    Returns:
      The output in `spec.preferred_element_type`, or the dtype of the operands. Sums are in float32 at least.
    """
    result = lhs.dtype if spec.preferred_element_type is None else spec.preferred_element_type
    result = jax.dtypes.canonicalize_dtype(result)
    accumulator = jnp.promote_types(jnp.promote_types(lhs.dtype, result), jnp.float32)

    x = _input_by_group(lhs.astype(accumulator), spec)  # [group, batch, *space, channel]
    w = _kernel_by_group(rhs.astype(accumulator), spec)  # [group, *tap, channel, feature]
    x = _dilate_and_pad(x, spec)
    taps = [range(size) for size in w.shape[1:-2]]
    if 0 in spec.output_space:  # no window fits: there is nothing to sum
        y = jnp.zeros((*x.shape[:2], *spec.output_space, w.shape[-1]), accumulator)
    else:
        # y[g, n, p, f] = sum_k sum_c x[g, n, p s + k d, c] w[g, k, c, f]
        y = functools.reduce(
            operator.add,
            (
                jnp.einsum("gn...c,gcf->gn...f", _seen_by(tap, x, spec), w[:, *tap], precision=spec.precision)
                for tap in itertools.product(*taps)
            ),
        )
    return _output(y, spec).astype(result)


def _input_by_group(lhs: Array, spec: ConvSpec) -> Array:
    """The input as [group, batch, *space, channel]: groups of channels, or of the batch, on an axis of their own."""
    batch, channel, *space = spec.dimension_numbers.lhs_spec
    x = lax.transpose(lhs, (batch, *space, channel))
    n, *size, c = x.shape
    if spec.batch_group_count > 1:
        return x.reshape(spec.batch_group_count, n // spec.batch_group_count, *size, c)
    x = x.reshape(n, *size, spec.feature_group_count, c // spec.feature_group_count)
    return jnp.moveaxis(x, -2, 0)


def _kernel_by_group(rhs: Array, spec: ConvSpec) -> Array:
    """The kernel as [group, *tap, channel, feature]: either kind of group owns a run of output features."""
    feature, channel, *space = spec.dimension_numbers.rhs_spec
    w = lax.transpose(rhs, (*space, channel, feature))
    groups = spec.feature_group_count * spec.batch_group_count  # one of them is 1
    w = w.reshape(*w.shape[:-1], groups, w.shape[-1] // groups)
    return jnp.moveaxis(w, -2, 0)


def _dilate_and_pad(x: Array, spec: ConvSpec) -> Array:
    """Puts dilation - 1 zeros between neighbours, then pads with zeros, or crops where the padding is negative."""
    space = [(low, high, d - 1) for (low, high), d in zip(spec.padding, spec.lhs_dilation, strict=True)]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *space, (0, 0, 0)])


def _seen_by(tap: tuple[int, ...], x: Array, spec: ConvSpec) -> Array:
    """What the tap k = `tap` of the kernel meets in each window: x[..., p s + k d, :] for every output position p."""
    start = [k * d for k, d in zip(tap, spec.rhs_dilation, strict=True)]
    limit = [a + (p - 1) * s + 1 for a, p, s in zip(start, spec.output_space, spec.window_strides, strict=True)]
    groups, batch, *_, channels = x.shape
    return lax.slice(x, (0, 0, *start, 0), (groups, batch, *limit, channels), (1, 1, *spec.window_strides, 1))


def _output(y: Array, spec: ConvSpec) -> Array:
    """From [group, batch, *space, feature] to the output's own axes, groups side by side in the features."""
    y = jnp.moveaxis(y, 0, -2)
    y = y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1])
    batch, feature, *space = spec.dimension_numbers.out_spec
    return jnp.moveaxis(y, range(y.ndim), (batch, *space, feature))
