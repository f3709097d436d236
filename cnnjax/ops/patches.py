"""What each window of a convolution sees, laid out side by side: the "im2col" of matrix-product convolutions."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax


def patches(x: Array, taps: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> Array:
    """P[n, p, k, c] = x[n, p s + k d, c] for every window p that fits and every tap k.

    Args:
      x: [batch, *space, channel], padded.
      taps: how many there are along each spatial axis; at least one window fits.
      strides: s, from window to window.
      dilation: d, from tap to tap.

    Returns:
      [batch, *output_space, *taps, channel].
    """
    batch, *space, channels = x.shape
    fits = [(size - (k - 1) * d - 1) // s + 1 for size, k, d, s in zip(space, taps, dilation, strides, strict=True)]
    for axis in reversed(range(len(space))):
        limit = (fits[axis] - 1) * strides[axis] + 1
        starts = [k * dilation[axis] for k in range(taps[axis])]
        seen = [lax.slice_in_dim(x, a, a + limit, strides[axis], axis + 1) for a in starts]
        x = jnp.concatenate(seen, axis=-1)  # the taps of this axis go before those of the axes after it
    return x.reshape(batch, *fits, *taps, channels)


def matrix_of_patches(x: Array, taps: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> Array:
    """`patches` as a matrix: a row for each window, [batch x output_space, taps x channel]."""
    p = patches(x, taps, strides, dilation)
    return p.reshape(-1, math.prod(taps) * x.shape[-1])
