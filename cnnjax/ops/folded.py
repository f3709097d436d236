"""Convolutions of few channels or features, with neighbouring columns as channels.

Processors multiply vectors of 8 or 16 numbers at once, and a convolution of one channel to six features has none that
long. Take B neighbouring outputs along the last spatial axis together. With stride s they see the same (B - 1) s + k
columns, and the next B outputs see those B s further on. So call B s columns one, with B s times the channels, and B
outputs one, with B times the features:

    y[n, p, B t + j, f] = sum over k', c' of  x'[n, p + .., t + k', c'] w'[.., k', c', (j, f)]

where x'[n, a, t, (i, c)] = x[n, a, B s t + i, c] is the same memory in another shape, and w' is the kernel B times,
each time s columns further to the right, zero elsewhere. That is a convolution of stride 1, with some
((B - 1) s + k) / k times the arithmetic, in vectors B times as long. (With B = 1, along both axes, it is "space to
depth", which MLPerf's entries for TPUs did to the first layer of ResNet-50: Ying et al., "Image Classification at
Supercomputer Scale", 2018.)

Arrays and `Geometry` are those of `cnnjax.ops.dense`.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array, lax

from cnnjax.ops import dense
from cnnjax.ops.dense import Geometry

FEW_CHANNELS = 15
"""Up to how many input channels folding pays, whatever the features."""


def by_folding(x: Array, w: Array, g: Geometry) -> Array:
    """y of XLA's convolution, of as many outputs together as pay."""
    outputs = outputs_together(*w.shape[-2:], g)
    if outputs == 1:
        return dense.by_xla(x, w, g)
    y = dense.by_xla(fold_input(x, g, outputs), fold_kernel(w, g, outputs), folded(g, outputs))
    y = y.reshape(*y.shape[:-2], -1, w.shape[-1])
    return lax.slice_in_dim(y, 0, g.outputs[-1], axis=-2)


def kernel_by_folding(x: Array, dy: Array, g: Geometry) -> Array:
    """dw by one product with the patches, those of two outputs together where there are two."""
    outputs = 2
    if g.dilation[-1] > 1 or g.outputs[-1] < outputs:
        return dense.kernel_by_patches(x, dy, g)
    within = folded(g, outputs)
    beyond = within.outputs[-1] * outputs - g.outputs[-1]
    dy = dense.pad(dy, [(0, 0)] * (len(g.taps) - 1) + [(0, beyond)])
    channels, features = x.shape[-1], dy.shape[-1]
    dy = dy.reshape(*dy.shape[:-2], within.outputs[-1], -1)
    dw = dense.kernel_by_patches(fold_input(x, g, outputs), dy, within)
    dw = dw.reshape(*g.taps[:-1], -1, channels, outputs, features)  # as `fold_kernel` puts them together
    starts = [j * g.strides[-1] for j in range(outputs)]
    terms = [lax.slice_in_dim(dw[..., j, :], a, a + g.taps[-1], axis=-3) for j, a in enumerate(starts)]
    return sum(terms[1:], terms[0])


def outputs_together(channels: int, features: int, g: Geometry) -> int:
    """How many outputs to take together: 4, 2 or 1, by measurement (jaxlib 0.10.2, AVX-512).

    XLA hands convolutions of up to 16 features to a library that is slow for few of them, and those of 3 channels to
    another that is slow for these up to 32 features.
    """
    if (channels > FEW_CHANNELS and features > 8) or g.dilation[-1] > 1:
        return 1
    if (features <= 3 or (features <= 8 and channels <= 4)) and g.outputs[-1] >= 8:
        return 4
    return 2 if features <= (32 if channels == 3 else 20) and g.outputs[-1] >= 4 else 1


def folded(g: Geometry, outputs: int) -> Geometry:
    """The convolution of the folded arrays; that of g has no dilation along the last axis."""
    block = outputs * g.strides[-1]
    blocks = -(-g.outputs[-1] // outputs)
    taps = -(-((outputs - 1) * g.strides[-1] + g.taps[-1]) // block)
    return dataclasses.replace(
        g,
        space=(*g.space[:-1], blocks + taps - 1),
        taps=(*g.taps[:-1], taps),
        strides=(*g.strides[:-1], 1),
        padding=(*g.padding[:-1], (0, 0)),
    )


def fold_input(x: Array, g: Geometry, outputs: int) -> Array:
    """x': [batch, *space, channel] with its padding along the last axis, in blocks of columns."""
    columns = folded(g, outputs).space[-1] * outputs * g.strides[-1]
    low, _ = g.padding[-1]
    x = dense.pad(x, [(0, 0)] * (len(g.taps) - 1) + [(low, columns - x.shape[-2] - low)])
    return x.reshape(*x.shape[:-2], -1, outputs * g.strides[-1] * x.shape[-1])


def fold_kernel(w: Array, g: Geometry, outputs: int) -> Array:
    """w': the kernel [*tap, channel, feature] once for each of the outputs, further and further to the right."""
    columns = folded(g, outputs).taps[-1] * outputs * g.strides[-1]
    *_, taps, channels, _ = w.shape
    edges = [(j * g.strides[-1], columns - taps - j * g.strides[-1], 0) for j in range(outputs)]
    rest = [(0, 0, 0)] * (w.ndim - 3)
    w = jnp.concatenate([lax.pad(w, jnp.zeros((), w.dtype), [*rest, e, (0, 0, 0), (0, 0, 0)]) for e in edges], -1)
    return w.reshape(*w.shape[:-3], -1, columns // folded(g, outputs).taps[-1] * channels, w.shape[-1])
