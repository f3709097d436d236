"""Convolution by the fast Fourier transform: the cost hardly depends on the size of the kernel.

A correlation on a circle of L elements is a product in the frequency domain. With F the discrete Fourier transform,

    y = F^-1 [F x * conj(F conj(w))],     y[p] = sum over k of x[(p + k) mod L] w[k],

and for a kernel of K taps, padded with zeros, the outputs p <= L - K do not go round. Overlap-save cuts a longer input
into tiles of L elements that overlap by K - 1, and keeps from each the V = L - K + 1 outputs that are right. Channels
are summed between the transforms: one matrix product [tiles, channels] x [channels, features] for each frequency. Real
operands need half of the frequencies.

Everything else comes down to that. Groups, layouts, padding and dilation of the input are done before, dilation of the
kernel puts zeros between its taps. A stride s splits input and kernel into phases, x_q[i] = x[i s + q] and
w_q[j] = w[j s + q] for 0 <= q < s, which become channels of a convolution without stride:

    y[p] = sum over k of x[p s + k] w[k] = sum over q, j of x_q[p + j] w_q[j].

Where digits are lost. Every transform mixes all elements of a tile, so that the error goes with the largest of them,
not with the output at hand: in the tile of an input of 1e6, outputs of 1e-3 have no digit left in float32, and an
infinity or NaN spreads to all outputs of its tile. With u the unit roundoff of the dtype computed in (float32 for half
precision, whose one rounding at the end comes on top), real operands, max |x| over the input and S the largest sum of
|w| over the taps and channels of one output feature,

    |y - exact| <= error_factor(terms, tile) u max|x| S,

where the factor is sqrt(N) (30 (log2 N + 1) + 2 sqrt(2) terms) for tiles of N elements in all. The logarithm counts
the steps of a transform. The square root stands for the case that the errors of all frequencies meet in one output;
they rather go their own ways, and for inputs of one size the error is in practice about that of a direct sum. Where the
backend rounds the factors of a product (bfloat16 on TPUs, TF32 on GPUs, unless `precision` says otherwise), u is that
of the rounded factors.

Sources: Mathieu, Henaff and LeCun, "Fast Training of Convolutional Networks through FFTs", arXiv:1312.5851; tiles:
Vasilache et al., "Fast Convolutional Nets With fbfft", arXiv:1412.7580; overlap-save: Oppenheim and Schafer,
"Discrete-Time Signal Processing", section 8.7; rounding: Higham, "Accuracy and Stability of Numerical Algorithms", 2nd
edition, chapter 24.
"""

import functools
import itertools
import math
import operator

import jax.numpy as jnp
from jax import Array, lax
from jax.export import is_symbolic_dim
from jax.typing import DTypeLike

from cnnjax.ops import layout
from cnnjax.ops.conv_spec import ConvSpec
from cnnjax.ops.errors import InputError

OUTPUTS = 32
"""For how many outputs along an axis a tile is chosen where their number is symbolic."""


def conv_fft(lhs: Array, rhs: Array, spec: ConvSpec, *, tile: tuple[int, ...] | None = None) -> Array:
    """The convolution that `spec` describes, by overlap-save with fast Fourier transforms.

    Args:
      lhs: input, floating point, axes as `spec.dimension_numbers` says.
      rhs: kernel, of the same dtype.
      spec: what `conv_spec` made of the arguments.
      tile: size of the transform along each axis, no less than the span of the kernel (its taps and the zeros between
        them, divided by the stride and rounded up); None leaves it to `choose_tile`.

    Returns:
      The output in `spec.preferred_element_type`, or the dtype of the operands. Sums are in float32 at least.

    Raises:
      InputError: `tile` is too small, or is not one integer for each axis.
    """
    accumulator = layout.accumulator_dtype(lhs, spec)
    x = layout.input_by_group(lhs.astype(accumulator), spec)  # [group, batch, *space, channel]
    w = layout.kernel_by_group(rhs.astype(accumulator), spec)  # [group, *tap, channel, feature]
    x = layout.dilate_and_pad(x, spec)
    w = _pad(w, {i: (0, 0, d - 1) for i, d in enumerate(spec.rhs_dilation, 1)})
    if 0 in spec.output_space:  # no window fits: there is nothing to sum
        y = jnp.zeros((*x.shape[:2], *spec.output_space, w.shape[-1]), accumulator)
    else:
        for i, (stride, outputs) in enumerate(zip(spec.window_strides, spec.output_space, strict=True)):
            if stride > 1:
                x, w = _phases_as_channels(x, w, i, stride, outputs)
        spans = w.shape[1:-2]
        if tile is None:
            batch = x.shape[1] if isinstance(x.shape[1], int) else 1  # it may be symbolic
            outputs = tuple(OUTPUTS if is_symbolic_dim(p) else p for p in spec.output_space)
            tile = choose_tile(outputs, spans, batch, *w.shape[-2:])
        y = _overlap_save(x, w, spec, _check_tile(tile, spans))
    return layout.output(y, spec).astype(layout.result_dtype(lhs, spec))


def _check_tile(tile: tuple[int, ...], spans: tuple[int, ...]) -> tuple[int, ...]:
    try:
        sizes = tuple(map(operator.index, tile))
    except TypeError:
        sizes = ()
    if len(sizes) != len(spans) or any(size < span for size, span in zip(sizes, spans, strict=True)):
        raise InputError(f"tile must be None or an integer for each axis, no less than {spans}: got {tile!r}")
    return sizes


def _pad(x: Array, config: dict[int, tuple[int, int, int]]) -> Array:
    """`lax.pad` with zeros, by (low, high, interior) of the axes in `config`."""
    return lax.pad(x, jnp.zeros((), x.dtype), [config.get(i, (0, 0, 0)) for i in range(x.ndim)])


def _phases_as_channels(x: Array, w: Array, i: int, stride: int, outputs: int) -> tuple[Array, Array]:
    """A convolution with stride 1 along spatial axis i in place of one with `stride`: x_q and w_q, q beside channel.

    Args:
      x: [group, batch, *space, channel], dilated and padded.
      w: [group, *tap, channel, feature], with the zeros between taps.
      i: the axis.
      stride: distance between neighbouring windows along it.
      outputs: number of windows along it, at least one.

    Returns:
      x with outputs + ceil(taps / stride) - 1 elements along the axis, w with ceil(taps / stride), and both with
      min(stride, taps) times as many channels: the kernel has no more phases than taps.
    """
    taps = w.shape[i + 1]
    rows, phases = -(-taps // stride), min(stride, taps)
    x = _fold(x, i + 2, outputs + rows - 1, stride)
    x = lax.slice_in_dim(x, 0, phases, axis=i + 3)
    w = _fold(w, i + 1, rows, phases)
    x, w = jnp.moveaxis(x, i + 3, -2), jnp.moveaxis(w, i + 2, -3)
    x = x.reshape(*x.shape[:-2], phases * x.shape[-1])
    return x, w.reshape(*w.shape[:-3], phases * w.shape[-2], w.shape[-1])


def _fold(x: Array, axis: int, rows: int, columns: int) -> Array:
    """`axis` as [rows, columns], row by row: cut off where it is longer, filled up with zeros where it is shorter."""
    x = _pad(x, {axis: (0, rows * columns - x.shape[axis], 0)})
    return x.reshape(*x.shape[:axis], rows, columns, *x.shape[axis + 1 :])


def _overlap_save(x: Array, w: Array, spec: ConvSpec, tile: tuple[int, ...]) -> Array:
    """y[g, n, p, f] = sum over k, c of x[g, n, p + k, c] w[g, k, c, f], by tiles.

    Args:
      x: [group, batch, *space, channel], dilated and padded, without stride.
      w: [group, *tap, channel, feature], with the zeros between taps.
      spec: the convolution; at least one window fits.
      tile: size L of the transform along each axis.

    Returns:
      [group, batch, *output_space, feature].
    """
    axes = range(len(tile))
    valid = [size - span + 1 for size, span in zip(tile, w.shape[1:-2], strict=True)]  # V
    counts = [-(-outputs // v) for outputs, v in zip(spec.output_space, valid, strict=True)]
    for i in axes:
        x = _overlapping_tiles(x, 2 * i + 2, counts[i], tile[i], valid[i])
    # [group, batch, tile_0, element_0, tile_1, element_1, ..., channel]; a transform wants the elements last.
    elements, last = [2 * i + 3 for i in axes], [i - len(tile) for i in axes]
    x = jnp.moveaxis(x, elements, last)  # [group, batch, *tile, channel, *element]
    w = jnp.moveaxis(w, [i + 1 for i in axes], last)  # [group, channel, feature, *tap]
    y = _backward(_sum_over_channels(_forward(x, tile), _forward(w.conj(), tile).conj(), spec), tile, x.dtype)
    y = y[..., *(slice(v) for v in valid)]  # the other outputs went round
    y = jnp.moveaxis(y, last, elements)
    y = y.reshape(*y.shape[:2], *map(operator.mul, counts, valid), y.shape[-1])
    return lax.slice(y, (0,) * y.ndim, (*y.shape[:2], *spec.output_space, y.shape[-1]))


def _overlapping_tiles(x: Array, axis: int, count: int, size: int, step: int) -> Array:
    """`axis` as [tile, element]: element j of tile t is x[t step + j], or zero beyond the end of x."""
    if count == 1:
        return _fold(x, axis, 1, size)
    pieces = -(-size // step)  # a tile is that many rows of `step` elements, or a little less
    x = _fold(x, axis, count + pieces - 1, step)
    tiles = jnp.concatenate([lax.slice_in_dim(x, i, i + count, axis=axis) for i in range(pieces)], axis + 1)
    return lax.slice_in_dim(tiles, 0, size, axis=axis + 1)


def _forward(x: Array, tile: tuple[int, ...]) -> Array:
    """The Fourier transform over the last axes, filled up with zeros to `tile`; half of it for real numbers."""
    if not tile:
        return x
    transform = jnp.fft.fftn if jnp.iscomplexobj(x) else jnp.fft.rfftn
    return transform(x, s=tile, axes=range(-len(tile), 0))


def _backward(y: Array, tile: tuple[int, ...], dtype: DTypeLike) -> Array:
    """The inverse of `_forward` for numbers of `dtype`."""
    if not tile:
        return y
    transform = jnp.fft.ifftn if jnp.issubdtype(dtype, jnp.complexfloating) else jnp.fft.irfftn
    return transform(y, s=tile, axes=range(-len(tile), 0))


def _sum_over_channels(x: Array, w: Array, spec: ConvSpec) -> Array:
    """A matrix product for each group and frequency.

    Args:
      x: [group, batch, *tile, channel, *frequency].
      w: [group, channel, feature, *frequency].
      spec: the convolution.

    Returns:
      [group, batch, *tile, feature, *frequency].
    """
    features, *frequencies = w.shape[2:]
    *tiles, channels = x.shape[1 : x.ndim - len(frequencies)]
    x = x.reshape(x.shape[0], math.prod(tiles), channels, math.prod(frequencies))
    w = w.reshape(*w.shape[:3], math.prod(frequencies))
    y = jnp.einsum("gtcq,gcfq->gtfq", x, w, precision=spec.precision)
    return y.reshape(x.shape[0], *tiles, features, *frequencies)


@functools.lru_cache(maxsize=1024)
def choose_tile(
    outputs: tuple[int, ...], spans: tuple[int, ...], batch: int, channels: int, features: int
) -> tuple[int, ...]:
    """The size of the transform along each axis: the cheapest of some, by `cost`.

    An axis is covered by 1, 2, 3, 4, 6, 8, 12, ... tiles, each as short as it can be and of a size 2^a 3^b 5^c.

    Args:
      outputs: number of outputs along each axis.
      spans: size of the kernel along each axis, with the zeros between its taps, without stride.
      batch: number of examples per group.
      channels, features: per group, channels times phases.
    """
    candidates = [_sizes(*axis) for axis in zip(outputs, spans, strict=True)]
    return min(itertools.product(*candidates), key=lambda tile: cost(tile, outputs, spans, batch, channels, features))


def cost(
    tile: tuple[int, ...],
    outputs: tuple[int, ...],
    spans: tuple[int, ...],
    batch: int,
    channels: int,
    features: int,
) -> float:
    """What overlap-save with `tile` costs, in floating-point operations of a matrix product; arguments as there.

    With real operands, N elements in a tile and T tiles in the batch, there are T times (channels + features)
    transforms of input and output and channels times features transforms of the kernel, of 2.5 N log2 N operations
    each; and T times channels times features times N / 2 products, of 8 operations each. An operation in a transform
    takes as long as about four in a matrix product (0.07 and 0.02 ns on one core of a CPU).
    """
    n = math.prod(tile)
    tiles = batch * math.prod(-(-p // (size - k + 1)) for p, k, size in zip(outputs, spans, tile, strict=True))
    transforms = tiles * (channels + features) + channels * features
    return 4 * transforms * 2.5 * n * math.log2(n) + tiles * channels * features * 4 * n


def _sizes(outputs: int, span: int) -> list[int]:
    """Sizes of transforms that cover `outputs` with 2^i or 3 2^i tiles."""
    counts = [c for i in range(outputs.bit_length()) for c in (2**i, 3 * 2**i) if c <= outputs]
    return sorted({next_size(-(-outputs // count) + span - 1) for count in counts})


def next_size(n: int) -> int:
    """The least 2^a 3^b 5^c that is not less than n: the sizes for which every FFT is fast."""
    return next(size for size in itertools.count(n) if _without_small_factors(size) == 1)


def _without_small_factors(n: int) -> int:
    for p in (2, 3, 5):
        while n % p == 0:
            n //= p
    return n


def error_factor(terms: int, tile: tuple[int, ...]) -> float:
    """How far the result may be from the exact one, in units of u max|x| S; see the top of this module.

    For a tile of N elements and a channel, |x|_2 <= sqrt(N) max|x| and |w|_2 <= |w|_1. A transform errs by no more than
    e |F x|_2 in the 2-norm, e = 10 u (log2 N + 1): 6.7 u for each factor 2 of N (Higham, theorem 24.2), and by the same
    argument 14 u for each 3 and 21 u for each 5. By Cauchy and Schwarz over the frequencies, the errors of F x and F w
    reach an output as e |x|_2 |w|_2 each, and that of the products, 2 sqrt(2) terms u for a sum of complex products in
    any order, likewise; that of the inverse as e |x|_2 |w|_1. Summed over channels,

        |y - exact| <= sqrt(N) (3 e + 2 sqrt(2) terms u) max|x| S,

    and 1 per cent more for products of errors, while all is well below 1.

    Args:
      terms: number of products in an output by definition: channels per group times taps.
      tile: size of the transform along each axis, of the form 2^a 3^b 5^c.
    """
    n = math.prod(tile)
    return 1.01 * math.sqrt(n) * (30 * (math.log2(n) + 1) + 2 * math.sqrt(2) * terms)
