"""Convolution as a sum over kernel taps: each a slice of the input times a matrix, or a number.

    y[n, p, f] = sum over taps k of (x[n, p s + k d, :] times w[k])[f]

It needs no more memory than input and output. Where a group is one channel (depthwise) the products are element by
element, and the whole is one loop. JAX's own derivatives of it are sums of the same kind. Source: the definition; for
its use on its own, Wu et al., "Shift: A Zero FLOP, Zero Parameter Alternative to Spatial Convolutions", 2018.
"""

import itertools

import jax.numpy as jnp
from jax import Array

from cnnjax.ops import dense
from cnnjax.ops.conv_spec import ConvSpec
from cnnjax.ops.dense import Geometry
from cnnjax.ops.group import by_group, depthwise, is_depthwise


def conv_shift(lhs: Array, rhs: Array, spec: ConvSpec) -> Array:
    """The convolution that `spec` describes, as a sum over taps; arguments as for `conv_direct`."""
    return depthwise(lhs, rhs, spec) if is_depthwise(lhs, spec) else by_group(_convolve, lhs, rhs, spec)


def _convolve(x: Array, w: Array, g: Geometry) -> Array:
    """[batch, *space, channel] and [*tap, channel, feature] to [batch, *output_space, feature]."""
    x = dense.pad(x, g.padding)
    taps = itertools.product(*map(range, g.taps))
    terms = [jnp.dot(dense.seen_by(tap, x, g), w[tap], precision=g.precision) for tap in taps]
    return sum(terms[1:], terms[0])
