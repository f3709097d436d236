"""What each window of a convolution sees, laid out side by side: the "im2col" of matrix-product convolutions."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

SHORT = 8
"""Runs of fewer numbers than this are not worth a gather."""


def patches(x: Array, taps: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> Array:
    """P[n, p, k, c] = x[n, p s + k d, c] for every window p that fits and every tap k.

    Without dilation the taps of a window's last axis and their channels are neighbours in memory, and XLA copies them
    whole: one gather of runs costs half of what stacking slices does on CPU, unless they are short.

    Args:
      x: [batch, *space, channel], padded.
      taps: how many there are along each spatial axis; at least one window fits.
      strides: s, from window to window.
      dilation: d, from tap to tap.

    Returns:
      [batch, *output_space, *taps, channel].
    """
    batch, *space, channels = x.shape
    rank = len(space)
    fits = [(size - (k - 1) * d - 1) // s + 1 for size, k, d, s in zip(space, taps, dilation, strides, strict=True)]
    if not rank or any(d > 1 for d in dilation) or taps[-1] * channels < SHORT:
        for axis in reversed(range(rank)):
            limit = (fits[axis] - 1) * strides[axis] + 1
            starts = [k * dilation[axis] for k in range(taps[axis])]
            seen = [lax.slice_in_dim(x, a, a + limit, strides[axis], axis + 1) for a in starts]
            x = jnp.concatenate(seen, axis=-1)  # the taps of this axis go before those of the axes after it
        return x.reshape(batch, *fits, *taps, channels)
    starts = [np.arange(count) * s for count, s in zip(fits, strides, strict=True)]
    starts[-1] = starts[-1] * channels
    indices = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).astype(np.int32)
    runs = lax.gather(
        x.reshape(batch, *space[:-1], space[-1] * channels),
        jnp.asarray(indices),
        lax.GatherDimensionNumbers(
            offset_dims=(0, *range(rank + 1, 2 * rank + 1)),
            collapsed_slice_dims=(),
            start_index_map=tuple(range(1, rank + 1)),
        ),
        (batch, *taps[:-1], taps[-1] * channels),
        mode="promise_in_bounds",
    )  # [batch, *output_space, *taps[:-1], taps[-1] x channel]
    return runs.reshape(batch, *fits, *taps, channels)


def matrix_of_patches(x: Array, taps: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> Array:
    """`patches` as a matrix: a row for each window, [batch x output_space, taps x channel]."""
    p = patches(x, taps, strides, dilation)
    return p.reshape(-1, math.prod(taps) * x.shape[-1])
