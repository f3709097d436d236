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

import jax.numpy as jnp
from jax import Array

from cnnjax.ops import layout
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
    accumulator = layout.accumulator_dtype(lhs, spec)
    x = layout.input_by_group(lhs.astype(accumulator), spec)  # [group, batch, *space, channel]
    w = layout.kernel_by_group(rhs.astype(accumulator), spec)  # [group, *tap, channel, feature]
    x = layout.dilate_and_pad(x, spec)
    taps = [range(size) for size in w.shape[1:-2]]
    if 0 in spec.output_space:  # no window fits: there is nothing to sum
        y = jnp.zeros((*x.shape[:2], *spec.output_space, w.shape[-1]), accumulator)
    else:
        # y[g, n, p, f] = sum_k sum_c x[g, n, p s + k d, c] w[g, k, c, f]
        y = functools.reduce(
            operator.add,
            (
                jnp.einsum("gn...c,gcf->gn...f", layout.seen_by(tap, x, spec), w[:, *tap], precision=spec.precision)
                for tap in itertools.product(*taps)
            ),
        )
    return layout.output(y, spec).astype(layout.result_dtype(lhs, spec))
