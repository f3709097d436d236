"""Convolutions of one group on channels-last arrays, each with the gradients that suit a CPU.

    y[n, p, f] = sum over taps k and channels c of  x[n, p s + k d - lo, c] w[k, c, f]

with stride s, dilation d and padding lo. Its gradients are convolutions too:

    dx[n, a, c] = sum over p, k, f with p s + k d - lo = a of  dy[n, p, f] w[k, c, f]
    dw[k, c, f] = sum over n, p of  x[n, p s + k d - lo, c] dy[n, p, f]

XLA compiles a convolution well on CPU only where it reads [batch, *space, channel] and [*tap, channel, feature] and
writes [batch, *space, feature]. It brings others to that form, but not inside loops (`lax.scan`, `cond`), where the
gradients that JAX derives then run up to a hundred times slower. Everything here is written in that form, or as matrix
products, to begin with.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.export import is_symbolic_dim

from cnnjax.ops.conv_spec import channels_last_numbers
from cnnjax.ops.patches import matrix_of_patches, patches
from cnnjax.ops.sizes import Pair, dilated


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What a convolution of one group does along each spatial axis.

    Attributes:
      space: spatial shape of the input.
      taps: spatial shape of the kernel.
      strides: s, from window to window.
      padding: (low, high) pairs of zeros around the input; a negative number crops.
      dilation: d, from tap to tap.
      precision: of the products, as `lax` takes it.
    """

    space: tuple[int, ...]
    taps: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[Pair, ...]
    dilation: tuple[int, ...]
    precision: Any = None

    @property
    def outputs(self) -> tuple[int, ...]:
        """How many windows fit along each axis."""
        return tuple(
            (size + low + high - dilated(k, d)) // s + 1
            for size, (low, high), k, d, s in zip(
                self.space, self.padding, self.taps, self.dilation, self.strides, strict=True
            )
        )


Convolution = Callable[[Array, Array, Geometry], Array]


def pad(x: Array, padding: Any, interior: Any = 0) -> Array:
    """[batch, *space, channel] with (low, high) zeros around, or cropped, and `interior` zeros between neighbours."""
    rank = x.ndim - 2
    between = (interior,) * rank if isinstance(interior, int) else interior
    space = [(low, high, gap) for (low, high), gap in zip(padding, between, strict=True)]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *space, (0, 0, 0)])


# --- y ----------------------------------------------------------------------------------------------------------------


def by_xla(x: Array, w: Array, g: Geometry) -> Array:
    """XLA's convolution, in its canonical form: [batch, *output_space, feature]."""
    # XLA pads for nothing while it convolves. But it is slow to crop; and with jaxlib 0.10.2 it reads beyond its input
    # where it crops on one side and pads on the other, as the transpose of padding by more than k - 1 would have it do.
    first, padding = [], []
    for size, (low, high), k, d in zip(x.shape[1:-1], g.padding, g.taps, g.dilation, strict=True):
        crop = min(low, 0), min(high, 0)
        if size + sum(crop) < 0 or max(low, high) >= dilated(k, d):  # or the crop on one side is of padding
            first.append((low, high))
            padding.append((0, 0))
        else:
            first.append(crop)
            padding.append((max(low, 0), max(high, 0)))
    if any(map(any, first)):
        x = pad(x, first)
    strides, dilation = list(g.strides), list(g.dilation)
    single = len(g.space) == 1  # XLA's CPU backend has fast convolutions in two and three dimensions
    if single:
        x, w = x[:, None], w[None]
        strides, padding, dilation = [1, *strides], [(0, 0), *padding], [1, *dilation]
    y = lax.conv_general_dilated(
        x,
        w,
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=channels_last_numbers(len(strides)),
        precision=g.precision,
    )
    return y[:, 0] if single else y


def by_patches(x: Array, w: Array, g: Geometry) -> Array:
    """One product of the matrix of patches and the kernel as a matrix."""
    if any(map(is_symbolic_dim, x.shape)):  # whose product JAX may not know to be positive, as a matrix's height
        p = patches(pad(x, g.padding), g.taps, g.strides, g.dilation)
        return jnp.tensordot(p, w, len(g.taps) + 1, precision=g.precision)
    p = matrix_of_patches(pad(x, g.padding), g.taps, g.strides, g.dilation)
    y = jnp.dot(p, w.reshape(-1, w.shape[-1]), precision=g.precision)
    return y.reshape(x.shape[0], *g.outputs, w.shape[-1])


def by_channel(x: Array, w: Array, g: Geometry) -> Array:
    """Each channel by itself: the sum over taps k of x[n, p s + k d, c] w[k, c], for a kernel [*tap, channel]."""
    x = pad(x, g.padding)
    of_tap = lambda tap: lax.expand_dims(w[tap], range(x.ndim - 1))
    terms = [seen_by(tap, x, g) * of_tap(tap) for tap in itertools.product(*map(range, g.taps))]
    return sum(terms[1:], terms[0])


def seen_by(tap: tuple[int, ...], x: Array, g: Geometry) -> Array:
    """What a tap meets in each window: x[n, p s + k d, c] for every p, of a padded x."""
    start = [k * d for k, d in zip(tap, g.dilation, strict=True)]
    limit = [a + (p - 1) * s + 1 for a, p, s in zip(start, g.outputs, g.strides, strict=True)]
    return lax.slice(x, (0, *start, 0), (x.shape[0], *limit, x.shape[-1]), (1, *g.strides, 1))


# --- dx ---------------------------------------------------------------------------------------------------------------


def input_gradient(convolve: Convolution) -> Convolution:
    """dx as a function of (dy, w, g): the convolution of dy, spread by the stride, with the kernel turned around."""

    def gradient(dy: Array, w: Array, g: Geometry) -> Array:
        turned = jnp.swapaxes(lax.rev(w, tuple(range(len(g.taps)))), -1, -2)
        low = [dilated(k, d) - 1 - lo for k, d, (lo, _) in zip(g.taps, g.dilation, g.padding, strict=True)]
        return spread(convolve, dy, turned, g.strides, low, g.dilation, g.space, g.precision)

    return gradient


def spread(
    convolve: Convolution,
    x: Array,
    w: Array,
    factors: Any,
    low: Any,
    dilation: Any,
    outputs: Any,
    precision: Any,
) -> Array:
    """The convolution, with stride 1, of an input with zeros between its elements, without touching the zeros.

    With the elements f apart, output q = f t + r and tap k meet the element t + u if f u = r + k d - low, and a zero if
    there is no such u. So a remainder r has taps of its own, k = f u + low - r for d = 1; with those of all remainders
    side by side, as features, it is one small convolution of stride 1, whose outputs [t, r] are then put in a row.

    Args:
      convolve: computes the small convolution.
      x: [batch, *space, channel].
      w: [*tap, channel, feature].
      factors: f, the distance between neighbouring elements, along each axis.
      low: the zeros before the first element; a negative number crops.
      dilation: d, the distance between taps.
      outputs: how many outputs there are; what lies beyond the last element is zero.
      precision: of the products.

    Returns:
      [batch, *outputs, feature].
    """
    rank, features = x.ndim - 2, w.shape[-1]
    counts = [-(-q // f) for q, f in zip(outputs, factors, strict=True)]
    if all(k == 1 for k in w.shape[:-2]):  # each element meets one output
        y = convolve(x, w, Geometry(x.shape[1:-1], (1,) * rank, (1,) * rank, ((0, 0),) * rank, (1,) * rank, precision))
        sizes = [dilated(size, f) for size, f in zip(x.shape[1:-1], factors, strict=True)]
        edges = [(lo, q - lo - size) for lo, q, size in zip(low, outputs, sizes, strict=True)]
        return pad(y, edges, [f - 1 for f in factors])
    padding, steps = [], []
    for axis, (f, lo, d, size, count) in enumerate(zip(factors, low, dilation, x.shape[1:-1], counts, strict=True)):
        span = dilated(w.shape[axis], d)
        if f == 1:
            padding.append((lo, count + span - 1 - size - lo))
            steps.append(d)
            continue
        first, last = -(lo // f), (span + f - 2 - lo) // f  # the u of all remainders
        edges = [(0, 0, 0)] * w.ndim
        edges[axis] = (f - 1 - lo - f * first, f * last + lo - span + 1, d - 1)
        w = lax.pad(w, jnp.zeros((), w.dtype), edges)
        w = w.reshape(*w.shape[:axis], -1, f, *w.shape[axis + 1 :])  # [.., u, f - 1 - r, ..]
        w = jnp.moveaxis(lax.rev(w, (axis + 1,)), axis + 1, -2)  # [.., u, .., channel, r, feature]
        w = w.reshape(*w.shape[:-2], -1)
        padding.append((-first, count + last - size))
        steps.append(1)
    y = convolve(x, w, Geometry(x.shape[1:-1], w.shape[:-2], (1,) * rank, tuple(padding), tuple(steps), precision))
    y = y.reshape(x.shape[0], *counts, *reversed(factors), features)
    order = [axis for i in range(rank) for axis in (1 + i, 2 * rank - i)]
    y = y.transpose(0, *order, 2 * rank + 1)
    y = y.reshape(x.shape[0], *(c * f for c, f in zip(counts, factors, strict=True)), features)
    return lax.slice(y, (0,) * y.ndim, (x.shape[0], *outputs, features))


# --- dw ---------------------------------------------------------------------------------------------------------------


def to_last_window(g: Geometry) -> tuple[Pair, ...]:
    """The padding of g, made to end where the last window does."""
    ends = [(p - 1) * s + dilated(k, d) for p, s, k, d in zip(g.outputs, g.strides, g.taps, g.dilation, strict=True)]
    return tuple((low, end - size - low) for end, size, (low, _) in zip(ends, g.space, g.padding, strict=True))


def kernel_by_xla(x: Array, dy: Array, g: Geometry) -> Array:
    """dw as a convolution: of x with channels for batch and examples for channels, by dy, spread out by the stride."""
    x = jnp.moveaxis(x, (-1, 0), (0, -1))  # [channel, *space, batch]
    dy = jnp.moveaxis(dy, 0, -2)  # [*output_space, batch, feature]
    turned = Geometry(g.space, g.outputs, g.dilation, to_last_window(g), g.strides, g.precision)
    return jnp.moveaxis(by_xla(x, dy, turned), 0, -2)


def kernel_by_patches(x: Array, dy: Array, g: Geometry) -> Array:
    """dw as one product: the matrix of patches transposed, times dy as a matrix."""
    p = matrix_of_patches(pad(x, to_last_window(g)), g.taps, g.strides, g.dilation)
    dy = dy.reshape(-1, dy.shape[-1])
    channels, features = x.shape[-1], dy.shape[-1]
    over_rows = (((0,), (0,)), ((), ()))
    if features < p.shape[-1]:  # up to three times as fast with the narrower one first
        dw = lax.dot_general(dy, p, over_rows, precision=g.precision)
        # Transposed in this shape, since XLA would swap the operands for the transpose of the matrix.
        return jnp.moveaxis(dw.reshape(features, *g.taps, channels), 0, -1)
    return lax.dot_general(p, dy, over_rows, precision=g.precision).reshape(*g.taps, channels, features)
