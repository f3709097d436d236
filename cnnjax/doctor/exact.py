"""What a convolution and its gradients are exactly, and how far from it each implementation may be.

The bounds are those of docs/equivalence.md. `tests/ops/equivalence.py` holds every implementation to them on small
arrays in all kinds of options, and `cnnjax doctor` at training sizes on the machine at hand.
"""

import functools
import math
import unittest.mock
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.ops import auto, conv_implementation, fft, reference, winograd
from cnnjax.ops.conv_spec import conv_spec
from cnnjax.ops.dtypes import accumulator

# --- The oracle -------------------------------------------------------------------------------------------------------

QUANTITIES = ("value", "input gradient", "kernel gradient", "jvp", "second in input", "second in kernel")
"""y(x, w); the gradients of <y, c>; the derivative of y along (tx, tw); and those of the two gradients."""


class Exact(NamedTuple):
    """What one of `QUANTITIES` is, and what its rounding error goes by.

    Attributes:
      exact: the number itself, for every element.
      scale: the sum of the absolute values of the products in it.
      largest: the largest number on one side times the largest sum on the other: max|x| S, no less than any `scale`.
      terms: how many products are in an element, at most.
    """

    exact: np.ndarray
    scale: np.ndarray
    largest: float
    terms: int


def oracle(
    x: np.ndarray,
    w: np.ndarray,
    c: np.ndarray,
    tangents: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    dimension_numbers: Any,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
) -> list[Exact]:
    """The first three of `QUANTITIES`, in float64 and NumPy; all six where tangents are given.

    Args:
      x, w: operands of the convolution, float64.
      c: weights of the output, of its shape.
      tangents: (tx, tw), of the shapes of the operands.
      window_strides, ...: as `lax.conv_general_dilated` takes them.
    """
    options: dict[str, Any] = {
        "window_strides": window_strides,
        "padding": padding,
        "lhs_dilation": lhs_dilation,
        "rhs_dilation": rhs_dilation,
        "dimension_numbers": dimension_numbers,
        "feature_group_count": feature_group_count,
        "batch_group_count": batch_group_count,
    }
    y = functools.partial(reference.conv_general_dilated, **options)
    gradients = functools.partial(reference.conv_gradients, **options)
    _, rhs_axes, out_axes = reference.axes_of(dimension_numbers, x.ndim)
    groups = feature_group_count * batch_group_count
    out = c.transpose(out_axes)  # [n, f, *space]
    features, channels, *taps = w.transpose(rhs_axes).shape
    of_y, of_gx, of_gw = math.prod(taps) * channels, math.prod(taps) * features // groups, out.size // max(1, features)

    def by_group(w):
        return w.transpose(rhs_axes).reshape(groups, features // groups, channels, -1)

    def largest(x):
        return x.max(initial=0)

    def by_feature(w):
        return largest(by_group(w).sum((2, 3)))

    def by_channel(w):
        return largest(by_group(w).sum((1, 3)))

    weight = largest(np.abs(out).sum(axis=tuple({*range(out.ndim)} - {1})))
    ax, aw, ac = map(np.abs, (x, w, c))
    (gx, gw), (agx, agw) = gradients(x, w, c), gradients(ax, aw, ac)
    first = [
        Exact(y(x, w), y(ax, aw), largest(ax) * by_feature(aw), of_y),
        Exact(gx, agx, largest(ac) * by_channel(aw), of_gx),
        Exact(gw, agw, largest(ax) * weight, of_gw),
    ]
    if tangents is None:
        return first
    tx, tw = tangents
    atx, atw = map(np.abs, tangents)
    (sx, sw), (asx, asw) = gradients(tx, tw, c), gradients(atx, atw, ac)
    along, scale = y(tx, w) + y(x, tw), y(atx, aw) + y(ax, atw)
    return [
        *first,
        Exact(along, scale, largest(atx) * by_feature(aw) + largest(ax) * by_feature(atw), 2 * of_y),
        Exact(sx, asx, largest(ac) * by_channel(atw), of_gx),
        Exact(sw, asw, largest(atx) * weight, of_gw),
    ]


# --- The bounds -------------------------------------------------------------------------------------------------------


def unit_roundoff(dtype: Any) -> float:
    """u: half of the distance from 1 to the next number of a dtype."""
    return float(jnp.finfo(dtype).eps) / 2


def gamma(terms: float, u: float) -> float:
    """gamma_n = n u / (1 - n u): what n roundings amount to, at the most (Higham 2002, lemma 3.1)."""
    return terms * u / (1 - terms * u)


def bound(name: str, quantity: str, it: Exact, dtype: str, lhs: Any, rhs: Any, options: dict[str, Any]) -> np.ndarray:
    """How far from `it.exact` each element may be; the rules are in docs/equivalence.md.

    Args:
      name: of the implementation.
      quantity: one of `QUANTITIES`.
      it: what the oracle says.
      dtype: of the operands and the result.
      lhs, rhs: the operands, or anything with their shapes and dtypes.
      options: of `lax.conv_general_dilated`.
    """
    u = unit_roundoff(accumulator(dtype))  # of what is computed in
    spec = conv_spec(lhs, rhs, **options)
    taps = [rhs.shape[axis] for axis in spec.dimension_numbers.rhs_spec[2:]]
    direct = gamma(it.terms, u) * it.scale
    if name == "winograd":
        error = error_by_winograd(quantity, it, u, tuple(taps))
    elif name == "auto":
        tiled = tiled_by_auto(lhs.shape, rhs.shape, dtype, **options)
        error = functools.reduce(np.maximum, (error_by_winograd(quantity, it, u, t) for t in tiled), direct)
    elif name == "fft":
        tile, overlap = fft_tiles(lhs, rhs, taps, spec)
        factor = fft.error_factor(it.terms, tile) * (overlap if "input" in quantity else 1)
        error = factor * u * it.largest
    else:
        error = direct
    # To half precision at the end; and a jvp may be a sum of two results.
    roundings = 0 if u == unit_roundoff(dtype) else 2 if quantity == "jvp" else 1
    rounded = (1 + unit_roundoff(dtype)) ** roundings - 1
    by_oracle = gamma(it.terms, unit_roundoff("float64")) * it.scale
    return error + rounded * (it.scale + error) + by_oracle


def error_by_winograd(quantity: str, it: Exact, u: float, taps: tuple[int, ...]) -> float:
    """How far from `it.exact` Winograd's algorithm may be with a kernel of these taps."""
    terms = (it.terms + len(taps)) * math.prod(taps) if "kernel" in quantity else it.terms
    return winograd.error_factor(terms, taps) * u * it.largest


@functools.lru_cache(maxsize=1)
def tiled_by_auto(lhs: tuple[int, ...], rhs: tuple[int, ...], dtype: str, **options) -> set[tuple[int, ...]]:
    """The taps of the kernels for which `auto` takes Winograd's algorithm, for the value or for a gradient."""
    taps = set()

    def recorded(x, w, g, by_winograd=auto.by_winograd):
        taps.add(g.taps)
        return by_winograd(x, w, g)

    def value_and_gradients(x, w):
        y, pull = jax.vjp(functools.partial(conv_implementation("auto"), **options), x, w)
        return y, pull(y)

    with jax.enable_x64(dtype == "float64"), unittest.mock.patch.object(auto, "by_winograd", recorded):
        jax.eval_shape(value_and_gradients, *(jax.ShapeDtypeStruct(shape, dtype) for shape in (lhs, rhs)))
    return taps


def fft_tiles(lhs: Any, rhs: Any, taps: Sequence[int], spec: Any) -> tuple[tuple[int, ...], int]:
    """The tile that `fft` takes, and how many of them an input element is in."""
    extent = [(k - 1) * d + 1 for k, d in zip(taps, spec.rhs_dilation, strict=True)]
    spans = tuple(-(-e // s) for e, s in zip(extent, spec.window_strides, strict=True))
    phases = math.prod(map(min, extent, spec.window_strides))
    batch = lhs.shape[spec.dimension_numbers.lhs_spec[0]] // spec.batch_group_count
    features, channels = (rhs.shape[axis] for axis in spec.dimension_numbers.rhs_spec[:2])
    features //= spec.feature_group_count * spec.batch_group_count
    if 0 in spec.output_space:
        return spans, 1
    tile = fft.choose_tile(spec.output_space, spans, batch, channels * phases, features)
    overlap = [
        min(-(-size // (size - span + 1)), -(-outputs // (size - span + 1)))
        for size, span, outputs in zip(tile, spans, spec.output_space, strict=True)
    ]
    return tile, math.prod(overlap)
