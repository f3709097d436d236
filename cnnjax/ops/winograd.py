"""Convolution by minimal filtering: fewer multiplications for kernels of 3 or 5 taps, at the price of some digits.

F(m, r) computes m outputs of a correlation with r taps, y[i] = sum over k of x[i + k] w[k], from n = m + r - 1 inputs
with n multiplications instead of m r:

    y = A^T [(G w) * (B^T x)]          A [n, m], G [n, r], B [n, n], and * element by element.

Where they come from. A product s(t) = w(t) h(t) of polynomials of degrees r - 1 and m - 1 has n coefficients, which
its values at n points fix; the point "infinity" stands for the leading coefficient. Let row j of V_q, q columns, be
1, a_j, ..., a_j^(q - 1) for the point a_j, and 0, ..., 0, 1 for infinity. Then V_n s = (V_r w) * (V_m h), so that

    s = V_n^-1 diag(V_r w) V_m h,      and the transpose      V_m^T diag(V_r w) V_n^-T

maps x to y, because h -> s is the Toeplitz matrix s[i + k] += w[k] h[i] (Toom-Cook transposed). So A = V_m, G = V_r,
B = V_n^-1. Column j of V_n^-1 is the polynomial that is 1 at a_j and 0 at the other points,

    (product over i != j of (t - a_i)) / N_j,    N_j = product over i != j of (a_j - a_i),

and for infinity the product over all finite points. To have short numbers in B, the division by N_j is moved to row j
of G. The points are as many of 0, 1, -1, 2, -2, 1/2, -1/2 as are needed, and infinity: 3 for F(2, 3), 5 for F(4, 3) and
F(2, 5), 7 for F(4, 5).

More axes: the transforms act on one axis after the other, F(m x m, r x r) of the paper; an axis with one tap has
F(1, 1), the identity. Channels are summed between the transforms, so that what remains is one matrix product
[tiles, channels] x [channels, features] for each of the positions in a tile.

Where digits are lost. Intermediate numbers are larger than the result and cancel in A^T. With u the unit roundoff of
the dtype computed in (float32 for half precision, whose one rounding at the end comes on top), real operands, max |x|
over the input and S the largest sum of |w| over the taps and channels of one output feature,

    |y - exact| <= error_factor(terms, taps, tile) u max|x| S.

The factor is the longest chain of roundings, channels + sum over axes of the longest rows of A^T, G and B^T (and 1),
times the product over axes of

    alpha(m, r) = max over i, k of  sum over j of |A[j, i]| |G[j, k]| (sum over l of |B[l, j]|),

which is 4 for F(2, 3), 29.3 for F(4, 3) and F(2, 5), 39.6 for F(4, 5) and 1 for F(1, 1). That is the worst case. With
normal numbers and 64 channels the root mean square error of F(2 x 2, 3 x 3) is that of the direct sum, and of
F(4 x 4, 3 x 3) four times it. The error goes with the largest input, not with the output at hand, and an infinity or
NaN in the input spreads to its tile.

Where the backend rounds the factors of a product (bfloat16 on TPUs, TF32 on GPUs, unless `precision` says otherwise),
u is that of the rounded factors, and the error is 1.7 times (m = 2) and 11 times (m = 4) that of the direct sum: ask
for `Precision.HIGHEST`. The transforms are sums of multiples, not products of matrices, and are never rounded so.

Sources: Winograd, "Arithmetic Complexity of Computations", SIAM 1980; Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks", arXiv:1509.09308, section 4; the bound follows Barabasz, Anderson, Soodhalter and Gregg,
"Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", arXiv:1803.10986.
"""

import functools
import math
import operator
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.export import is_symbolic_dim
from jax.typing import DTypeLike

from cnnjax.ops import layout
from cnnjax.ops.conv_spec import ConvSpec
from cnnjax.ops.errors import InputError

TAPS = (3, 5)
"""r of F(m, r), for the axes that have more than one tap."""

TILES = (2, 4)
"""m of F(m, r), for these axes: outputs in a tile."""

POINTS = tuple(map(Fraction, ("0", "1", "-1", "2", "-2", "1/2", "-1/2")))
"""The finite interpolation points, in the order of Lavin and Gray; for 7 those of F(6, 3) in common use."""

Matrix = tuple[tuple[Fraction, ...], ...]


class Filtering(NamedTuple):
    """The matrices of F(m, r), n = m + r - 1, in exact rationals: y = a_t [(g w) * (b_t x)].

    Attributes:
      a_t: A^T, [m, n], from products to outputs.
      g: G, [n, r], of the kernel.
      b_t: B^T, [n, n], of the input.
    """

    a_t: Matrix
    g: Matrix
    b_t: Matrix


@functools.cache
def minimal_filtering(m: int, r: int) -> Filtering:
    """The matrices of F(m, r), by the derivation at the top of this module.

    Args:
      m: number of outputs.
      r: number of taps; m + r - 2 finite points are needed, and there are 7 in `POINTS`.

    Raises:
      InputError: m or r is less than 1, or there are not enough points.
    """
    if m < 1 or r < 1 or m + r - 2 > len(POINTS):
        raise InputError(f"m and r must be 1 or more, and m + r no more than {len(POINTS) + 2}: got {m} and {r}")
    points = POINTS[: m + r - 2]
    others = [[b for b in points if b != a] for a in points]
    n_j = [math.prod(a - b for b in rest) for a, rest in zip(points, others, strict=True)] + [1]
    return Filtering(
        a_t=tuple(zip(*_vandermonde(points, m), strict=True)),
        g=tuple(tuple(v / n for v in row) for row, n in zip(_vandermonde(points, r), n_j, strict=True)),
        b_t=(*((*_with_roots(rest), Fraction(0)) for rest in others), _with_roots(points)),
    )


def _vandermonde(points: Sequence[Fraction], columns: int) -> Matrix:
    """A row 1, a, a^2, ... for each finite point a, and 0, ..., 0, 1 for infinity."""
    finite = (tuple(a**q for q in range(columns)) for a in points)
    return (*finite, (*[Fraction(0)] * (columns - 1), Fraction(1)))


def _with_roots(roots: Sequence[Fraction]) -> tuple[Fraction, ...]:
    """Coefficients, constant first, of the product of (t - root)."""
    product = [Fraction(1)]
    for root in roots:
        product = [up - root * same for up, same in zip([0, *product], [*product, 0], strict=True)]
    return tuple(product)


def choose_tile(outputs: int, taps: int, dtype: DTypeLike) -> int:
    """The m of F(m, taps) along an axis.

    In float32 and float64 the one with the fewest multiplications, ceil(outputs / m) tiles of m + taps - 1 each, or the
    more accurate 2 where they are equal; for 3 taps that is 4 for 3, 4, 7 and more outputs, for 5 taps 4 from 3 on.
    For a symbolic number of outputs it is 4. In half precision it is 2: the backends that are fast in it round the
    factors of the products to it too, and F(4, 3) makes too much of that.

    Args:
      outputs: number of outputs along the axis.
      taps: number of taps along it, 1 or one of `TAPS`.
      dtype: of the operands.
    """
    if taps == 1:
        return 1
    if jnp.finfo(dtype).bits < 32:
        return min(TILES)
    if is_symbolic_dim(outputs):
        return max(TILES)
    return min(TILES, key=lambda m: -(-outputs // m) * (m + taps - 1))


def error_factor(terms: int, taps: tuple[int, ...], tile: int = max(TILES)) -> float:
    """How far the result may be from the exact one, in units of u max|x| S; see the top of this module.

    In a sum of q products each of them goes through q roundings at most, whatever the order. Such sums are, one after
    the other, G w (where the numbers in G are rounded too) and B^T x, both along every axis, the sum over channels, and
    A^T along every axis. With N roundings in all

        |y - exact| <= N u / (1 - N u)  |A^T| [(|G| |w|) * (|B^T| |x|)],

    in which what follows N u / (1 - N u) is no more than alpha max|x| S. Returned is 1.01 N alpha, right for N u up to
    0.01.

    Args:
      terms: number of products in an output by definition: channels per group times taps.
      taps: size of the kernel along each axis, 1 or one of `TAPS`.
      tile: m along each axis of more than one tap.
    """
    filters = [minimal_filtering(1 if r == 1 else tile, r) for r in taps]
    roundings = terms // math.prod(taps) + sum(1 + sum(map(_longest_row, f)) for f in filters)
    return 1.01 * roundings * math.prod(map(_alpha, filters))


def _longest_row(matrix: Matrix) -> int:
    """The number of elements that are not zero, in the row that has the most of them."""
    return max(sum(v != 0 for v in row) for row in matrix)


def _alpha(f: Filtering) -> float:
    """max over i, k of sum over j of |A[j, i]| |G[j, k]| (sum over l of |B[l, j]|)."""
    inputs = [sum(map(abs, row)) for row in f.b_t]
    return float(
        max(
            sum(abs(a) * abs(g) * b for a, g, b in zip(outputs, kernel, inputs, strict=True))
            for outputs in f.a_t
            for kernel in zip(*f.g, strict=True)
        )
    )


def refusal(rhs_taps: tuple[int, ...], spec: ConvSpec) -> str | None:
    """Why `conv_winograd` cannot do a convolution, such as "window_strides (2, 2); allowed: 1 along every axis".

    Args:
      rhs_taps: size of the kernel along each spatial axis.
      spec: the convolution.

    Returns:
      One phrase, or None where it can.
    """
    if any(stride != 1 for stride in spec.window_strides):
        return f"window_strides {spec.window_strides}; allowed: 1 along every axis"
    if any(dilation != 1 for dilation in spec.rhs_dilation):
        return f"rhs_dilation {spec.rhs_dilation}; allowed: 1 along every axis"
    if not set(rhs_taps) <= {1, *TAPS} or set(rhs_taps) == {1}:
        return f"kernel of {rhs_taps} taps; allowed: 1, 3 or 5 along each axis, more than 1 along at least one"
    return None


def conv_winograd(lhs: Array, rhs: Array, spec: ConvSpec, *, tile: int | None = None) -> Array:
    """The convolution that `spec` describes, by F(m, r) along each axis of r = 3 or 5 taps.

    Args:
      lhs: input, floating point, axes as `spec.dimension_numbers` says.
      rhs: kernel, of the same dtype.
      spec: what `conv_spec` made of the arguments, with nothing in it that `refusal` names.
      tile: m, one of `TILES`; None leaves it to `choose_tile`.

    Returns:
      The output in `spec.preferred_element_type`, or the dtype of the operands. Sums are in float32 at least.

    Raises:
      InputError: `refusal` gives a reason, or `tile` is not one of `TILES`.
    """
    if tile is not None and tile not in TILES:
        raise InputError(f"tile must be None or one of {TILES}: got {tile!r}")
    accumulator = layout.accumulator_dtype(lhs, spec)
    x = layout.input_by_group(lhs.astype(accumulator), spec)  # [group, batch, *space, channel]
    w = layout.kernel_by_group(rhs.astype(accumulator), spec)  # [group, *tap, channel, feature]
    taps = w.shape[1:-2]
    reason = refusal(taps, spec)
    if reason is not None:
        raise InputError(f"the winograd convolution cannot do {reason}")
    x = layout.dilate_and_pad(x, spec)
    if 0 in spec.output_space:  # no window fits: there is nothing to sum
        y = jnp.zeros((*x.shape[:2], *spec.output_space, w.shape[-1]), accumulator)
    else:
        tiles = [
            choose_tile(outputs, r, lhs.dtype) if tile is None or r == 1 else tile
            for outputs, r in zip(spec.output_space, taps, strict=True)
        ]
        y = correlate(x, w, spec.output_space, tiles, spec.precision)
    return layout.output(y, spec).astype(layout.result_dtype(lhs, spec))


def correlate(x: Array, w: Array, outputs: Sequence[int], tiles: Sequence[int], precision: Any) -> Array:
    """y[g, n, p, f] = sum over k, c of x[g, n, p + k, c] w[g, k, c, f], by tiles of m outputs.

    Args:
      x: [group, batch, *space, channel], dilated and padded.
      w: [group, *tap, channel, feature].
      outputs: number of windows along each axis, at least one.
      tiles: m along each axis.
      precision: of the products, as `lax` takes it.

    Returns:
      [group, batch, *output_space, feature].
    """
    filters = [minimal_filtering(m, r) for m, r in zip(tiles, w.shape[1:-2], strict=True)]
    # Axis i, with the positions of those before it already in front: from space to tiles, and from taps to nothing.
    for i, (f, m, count) in enumerate(zip(filters, tiles, outputs, strict=True)):
        x = jnp.stack(_combine(f.b_t, _inputs_of_tiles(x, 2 * i + 2, m, len(f.b_t), count=-(-count // m))))
        w = jnp.stack(_combine(f.g, _along(w, i + 1)))
    # Now x is [*position, group, batch, *tile, channel] and w [*position, group, channel, feature], the position of the
    # last axis first. With one axis for all tiles the gradient is two to four times faster on CPU than by an einsum.
    matrices, tiled = math.prod(w.shape[:-2]), x.shape[:-1]
    x = x.reshape(matrices, math.prod(tiled[len(filters) + 1 :]), x.shape[-1])
    y = jnp.matmul(x, w.reshape(matrices, *w.shape[-2:]), precision=precision)
    y = y.reshape(*tiled, w.shape[-1])
    for i, f in reversed(list(enumerate(filters))):
        y = _join_tiles(_combine(f.a_t, _along(y, 0)), 2 * i + 2)
    return lax.slice(y, (0,) * y.ndim, (*y.shape[:2], *outputs, y.shape[-1]))


def _combine(matrix: Matrix, parts: Sequence[Array]) -> list[Array]:
    """`matrix` times the vector of `parts`: a sum of multiples of them for each row."""
    return [
        functools.reduce(
            operator.add, (part if v == 1 else float(v) * part for v, part in zip(row, parts, strict=True) if v)
        )
        for row in matrix
    ]


def _along(x: Array, axis: int) -> list[Array]:
    """The slices of `x` along `axis`, which they lack: as one split, its gradient is one concatenation."""
    return [lax.squeeze(part, (axis,)) for part in lax.split(x, [1] * x.shape[axis], axis)]


def _inputs_of_tiles(x: Array, axis: int, m: int, n: int, *, count: int) -> list[Array]:
    """For j < n, the j-th element of each tile along `axis`: x[t m + j] for t < count, zero beyond the end of x.

    Those are slices with stride m; with a row of m elements for each t they are plain ones, with faster gradients.
    """
    rows = count + -(-n // m) - 1
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, (i == axis) * (rows * m - x.shape[axis]), 0) for i in range(x.ndim)])
    x = x.reshape(*x.shape[:axis], rows, m, *x.shape[axis + 1 :])
    columns = _along(x, axis + 1)
    return [lax.slice_in_dim(columns[j % m], j // m, j // m + count, axis=axis) for j in range(n)]


def _join_tiles(parts: Sequence[Array], axis: int) -> Array:
    """The inverse for tiles without overlap: element t m + j along `axis` is element t of part j of m."""
    y = jnp.stack(parts, axis + 1)
    return y.reshape(*y.shape[:axis], y.shape[axis] * y.shape[axis + 1], *y.shape[axis + 2 :])
