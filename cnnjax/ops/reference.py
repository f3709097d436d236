"""The oracle: convolution and pooling in NumPy, straight from their definitions.

Everything in `cnnjax.ops` is tested against this page, so it trades speed for being easy to check by eye. It shares no
arithmetic with the JAX implementations: the padding rule, the reading of the dimension numbers and the loops are its
own. (It does use the same check of the arguments, whose result it throws away.)
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cnnjax.ops.conv_spec import conv_spec
from cnnjax.ops.pool_spec import pool_spec


def conv_general_dilated(
    lhs: ArrayLike,
    rhs: ArrayLike,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> np.ndarray:
    """Convolution (cross-correlation) with the signature and the semantics of `lax.conv_general_dilated`.

    The input is dilated, padded or cropped; then, for every output position p,

        y[n, f, p] = sum over channels c and taps k of  x[n, c, p stride + k dilation] w[f, c, k].

    Args:
      lhs: input, rank 2 + n for n spatial axes, real or complex floating point.
      rhs: kernel, of the same rank and dtype.
      window_strides, ..., batch_group_count: see `cnnjax.ops.conv_general_dilated`.
      precision: has no effect; sums are in float64 (or complex128) always.
      preferred_element_type: dtype of the result; None for that of the operands.
      out_sharding: must be None.

    Returns:
      The output as a NumPy array; float64 if given float64.

    Raises:
      InputError, TypeError: as `cnnjax.ops.conv_general_dilated`.
    """
    lhs, rhs = np.asarray(lhs), np.asarray(rhs)
    conv_spec(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        batch_group_count,
        precision,
        preferred_element_type,
        out_sharding,
    )
    result = np.dtype(lhs.dtype if preferred_element_type is None else preferred_element_type)
    wide = _wide(lhs.dtype)
    lhs_axes, rhs_axes, out_axes = axes_of(dimension_numbers, lhs.ndim)
    x = lhs.astype(wide).transpose(lhs_axes)  # [n, c, *space]
    w = rhs.astype(wide).transpose(rhs_axes)  # [f, c, *tap]
    ones = [1] * (lhs.ndim - 2)
    lhs_dilation = ones if lhs_dilation is None else lhs_dilation
    rhs_dilation = ones if rhs_dilation is None else rhs_dilation
    extent = [(taps - 1) * d + 1 for taps, d in zip(w.shape[2:], rhs_dilation, strict=True)]
    x = _dilate(x, lhs_dilation)
    x = _pad_or_crop(x, _pairs(padding, x.shape[2:], extent, window_strides), 0, first=2)

    # Group g of the channels, or of the batch, meets the g-th run of output features only.
    groups = max(feature_group_count, batch_group_count)
    xs = np.split(x, groups, axis=1 if feature_group_count > 1 else 0)
    ws = np.split(w, groups, axis=0)
    parts = [_correlate(*pair, window_strides, rhs_dilation) for pair in zip(xs, ws, strict=True)]
    y = np.concatenate(parts, axis=1)  # [n, f, *space]
    return y.transpose(np.argsort(out_axes)).astype(result)


def _correlate(x: np.ndarray, w: np.ndarray, strides: Sequence[int], dilations: Sequence[int]) -> np.ndarray:
    """y[n, f, p] = sum over c, k of x[n, c, p stride + k dilation] w[f, c, k], for x as it stands."""
    extent = [(taps - 1) * d + 1 for taps, d in zip(w.shape[2:], dilations, strict=True)]
    y = np.zeros((x.shape[0], w.shape[0], *_positions(x.shape[2:], extent, strides)), x.dtype)
    everything = tuple(range(1, x.ndim))  # c and k
    for p in np.ndindex(y.shape[2:]):
        window = x[:, :, *_window(p, strides, extent, dilations)]  # [n, c, *tap]
        y[:, :, *p] = np.tensordot(window, w, axes=(everything, everything))
    return y


def conv_gradients(x: np.ndarray, w: np.ndarray, c: np.ndarray, **options) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of <y, c> in x and w: the loop over output positions p, run backwards.

    Where y[n, f, p] takes x[n, c, p s + k d] w[f, c, k], they take c[n, f, p] w[f, c, k] and c[n, f, p] x[n, c, ...].

    Args:
      x, w: operands, float64.
      c: of the shape of the output.
      options: of `lax.conv_general_dilated`, all of them but the last three.

    Returns:
      Two arrays of the shapes of x and w.
    """
    lhs_axes, rhs_axes, out_axes = axes_of(options["dimension_numbers"], x.ndim)
    x, w, c = (
        x.transpose(lhs_axes),
        w.transpose(rhs_axes),
        c.transpose(out_axes),
    )  # [n, c, ...], [f, c, ...], [n, f, ...]
    strides, dilation = options["window_strides"], options["rhs_dilation"]
    extent = [(taps - 1) * d + 1 for taps, d in zip(w.shape[2:], dilation, strict=True)]

    def prepared(x):
        x = _dilate(x, options["lhs_dilation"])
        return _pad_or_crop(x, _pairs(options["padding"], x.shape[2:], extent, strides), 0, first=2)

    source = prepared(1 + np.arange(math.prod(x.shape)).reshape(x.shape))  # where each number came from; 0 for a zero
    padded = prepared(x)
    to_padded, to_w = np.zeros_like(padded), np.zeros_like(w)
    groups = max(options["feature_group_count"], options["batch_group_count"])
    axis = 1 if options["feature_group_count"] > 1 else 0
    for x_g, dx_g, w_g, dw_g, c_g in zip(  # views
        *(np.split(a, groups, axis) for a in (padded, to_padded)),
        *(np.split(a, groups, 0) for a in (w, to_w)),
        np.split(c, groups, 1),
        strict=True,
    ):
        for p in np.ndindex(c.shape[2:]):
            window = (slice(None), slice(None), *_window(p, strides, extent, dilation))
            c_p = c_g[:, :, *p]  # [n, f]
            dx_g[window] += np.tensordot(c_p, w_g, (1, 0))
            dw_g += np.tensordot(c_p, x_g[window], (0, 0))
    dx = np.zeros(x.size)
    dx[source[source > 0] - 1] = to_padded[source > 0]
    return dx.reshape(x.shape).transpose(np.argsort(lhs_axes)), to_w.transpose(np.argsort(rhs_axes))


def max_pool(
    inputs: ArrayLike,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    window_dilation: Sequence[int] | None = None,
) -> np.ndarray:
    """The maximum of each window, each channel by itself.

    Args:
      inputs: [..., *space, channel], with as many spatial axes as `window_shape` has entries.
      window_shape: size of the window along each.
      strides: distance between neighbouring windows along each; 1 by default.
      padding: "VALID", "SAME", "SAME_LOWER" or a (low, high) pair for each; padding is less than every number.
      window_dilation: distance between neighbouring elements of a window along each; 1 by default.

    Returns:
      [..., *space, channel], of the dtype of `inputs`.

    Raises:
      InputError: as `cnnjax.ops.max_pool`.
    """
    inputs = np.asarray(inputs)
    arguments = window_shape, strides, padding, window_dilation
    x, positions, window = _pool_input(inputs, *arguments, fill=_lowest(inputs.dtype))
    y = np.zeros((*positions, *x.shape[len(positions) :]), x.dtype)
    for p in np.ndindex(*positions):
        y[p] = x[window(p)].max(axis=tuple(range(len(positions))))
    return _space_back(y, len(positions))


def avg_pool(
    inputs: ArrayLike,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    count_include_pad: bool = True,
    window_dilation: Sequence[int] | None = None,
) -> np.ndarray:
    """The mean of each window, each channel by itself.

    Args:
      inputs: [..., *space, channel], with as many spatial axes as `window_shape` has entries.
      window_shape: size of the window along each.
      strides: distance between neighbouring windows along each; 1 by default.
      padding: "VALID", "SAME", "SAME_LOWER" or a (low, high) pair for each; padding is zero.
      count_include_pad: whether the padding counts as elements of the window. If not, the mean of a window with nothing
        but padding is NaN.
      window_dilation: distance between neighbouring elements of a window along each; 1 by default.

    Returns:
      [..., *space, channel], of the dtype of `inputs`, or float64 for integers. Sums are in float64 (or complex128).

    Raises:
      InputError: as `cnnjax.ops.avg_pool`.
    """
    inputs = np.asarray(inputs)
    result = np.dtype(np.float64) if np.issubdtype(inputs.dtype, np.integer) else inputs.dtype
    inputs = inputs.astype(_wide(inputs.dtype))
    arguments = window_shape, strides, padding, window_dilation
    x, positions, window = _pool_input(inputs, *arguments, fill=0)
    inside, _, _ = _pool_input(np.ones_like(inputs), *arguments, fill=int(count_include_pad))
    y = np.zeros((*positions, *x.shape[len(positions) :]), x.dtype)
    for p in np.ndindex(*positions):
        axes = tuple(range(len(positions)))
        with np.errstate(invalid="ignore"):  # 0/0 where there is only padding
            y[p] = x[window(p)].sum(axis=axes) / inside[window(p)].sum(axis=axes)
    return _space_back(y, len(positions)).astype(result)


def adaptive_avg_pool(inputs: ArrayLike, output_space: Sequence[int]) -> np.ndarray:
    """The means of windows that cover the input, from floor(i n / m) to ceil((i + 1) n / m) for output i of m.

    Args:
      inputs: [..., *space, channel], with as many spatial axes as `output_space` has entries; floating point.
      output_space: how many outputs there are along each.

    Returns:
      [..., *output_space, channel], of the dtype of `inputs`. Sums are in float64 (or complex128).
    """
    inputs = np.asarray(inputs)
    return _adaptive(inputs.astype(_wide(inputs.dtype)), output_space, np.mean).astype(inputs.dtype)


def adaptive_max_pool(inputs: ArrayLike, output_space: Sequence[int]) -> np.ndarray:
    """The maxima of these windows; arguments as for `adaptive_avg_pool`, but that the inputs may be any real numbers.

    Returns:
      [..., *output_space, channel], of the dtype of `inputs`.
    """
    return _adaptive(np.asarray(inputs), output_space, np.max)


def _adaptive(inputs: np.ndarray, output_space: Sequence[int], reduce: Callable[..., np.ndarray]) -> np.ndarray:
    """What `reduce` makes of each window."""
    n = len(output_space)
    x = np.moveaxis(inputs, range(-n - 1, -1), range(n))
    y = np.zeros((*output_space, *x.shape[n:]), x.dtype)
    for p in np.ndindex(*output_space):
        ends = [
            (i * size // m, math.ceil((i + 1) * size / m))
            for i, size, m in zip(p, x.shape[:n], output_space, strict=True)
        ]
        y[p] = reduce(x[tuple(slice(first, last) for first, last in ends)], axis=tuple(range(n)))
    return _space_back(y, n)


def _pool_input(
    inputs: np.ndarray,
    window_shape: Sequence[int],
    strides: Sequence[int] | None,
    padding: str | Sequence[tuple[int, int]],
    window_dilation: Sequence[int] | None,
    fill: Any,
) -> tuple[np.ndarray, list[int], Callable[[Sequence[int]], tuple[slice, ...]]]:
    """The padded input with its spatial axes first, the number of windows along each, and where the window at p is."""
    pool_spec(inputs.shape, window_shape, strides, padding, window_dilation)  # raises; its result is not used
    n = len(window_shape)
    steps = [1] * n if strides is None else strides
    dilations = [1] * n if window_dilation is None else window_dilation
    extent = [(k - 1) * d + 1 for k, d in zip(window_shape, dilations, strict=True)]
    x = np.moveaxis(inputs, range(-n - 1, -1), range(n))
    x = _pad_or_crop(x, _pairs(padding, x.shape[:n], extent, steps), fill)
    return x, _positions(x.shape[:n], extent, steps), lambda p: _window(p, steps, extent, dilations)


def _space_back(y: np.ndarray, n: int) -> np.ndarray:
    """[*space, ..., channel] as [..., *space, channel]."""
    return np.moveaxis(y, range(n), range(-n - 1, -1))


def axes_of(dimension_numbers: Any, rank: int) -> list[tuple[int, ...]]:
    """Where (n, c, *space) are in the input, (f, c, *tap) in the kernel and (n, f, *space) in the output."""
    if dimension_numbers is None:
        return [tuple(range(rank))] * 3
    if not all(isinstance(layout, str) for layout in dimension_numbers):
        return [tuple(spec) for spec in dimension_numbers]  # a ConvDimensionNumbers says so itself
    space = [letter for letter in dimension_numbers[1] if letter not in "OI"]  # the kernel's order counts
    letters = [["N", "C", *space], ["O", "I", *space], ["N", "C", *space]]
    return [
        tuple(layout.index(letter) for letter in wanted)
        for layout, wanted in zip(dimension_numbers, letters, strict=True)
    ]


def _wide(dtype: Any) -> type:
    """The dtype to compute in."""
    return np.complex128 if np.issubdtype(dtype, np.complexfloating) else np.float64


def _lowest(dtype: Any) -> Any:
    """What padding is to a maximum: less than every number of `dtype`."""
    if dtype == np.bool_:
        return False
    return np.iinfo(dtype).min if np.issubdtype(dtype, np.integer) else -np.inf


def _pairs(
    padding: Any, inputs: Sequence[int], windows: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """The (low, high) padding of each axis."""
    if not isinstance(padding, str):
        return [(low, high) for low, high in padding]
    if padding.upper() == "VALID":
        return [(0, 0)] * len(inputs)
    pairs = []
    for size, window, stride in zip(inputs, windows, strides, strict=True):
        # ceil(size / stride) windows, the last of which starts at start; what it lacks is added, half on each side.
        start = stride * (math.ceil(size / stride) - 1)
        lacking = max(0, start + window - size)
        half, rest = lacking // 2, lacking - lacking // 2
        pairs.append((half, rest) if padding.upper() == "SAME" else (rest, half))
    return pairs


def _dilate(x: np.ndarray, dilation: Sequence[int]) -> np.ndarray:
    """[n, c, *space] with dilation - 1 zeros between neighbours along each spatial axis."""
    size = [(s - 1) * d + 1 if s else 0 for s, d in zip(x.shape[2:], dilation, strict=True)]
    dilated = np.zeros((*x.shape[:2], *size), x.dtype)
    dilated[:, :, *(slice(None, None, d) for d in dilation)] = x
    return dilated


def _pad_or_crop(x: np.ndarray, pairs: Sequence[tuple[int, int]], fill: Any, first: int = 0) -> np.ndarray:
    """Adds `fill` before and after each axis from `first` on, or takes elements away where a number is negative."""
    for axis, (low, high) in enumerate(pairs, first):
        # Element i of the result is element i - low of x, or fill where there is none.
        source = np.arange(x.shape[axis] + low + high) - low
        inside = (source >= 0) & (source < x.shape[axis])
        shape = list(x.shape)
        shape[axis] = len(source)
        y = np.full(shape, fill, x.dtype)
        at = (slice(None),) * axis
        y[(*at, inside)] = x[(*at, source[inside])]
        x = y
    return x


def _positions(inputs: Sequence[int], windows: Sequence[int], strides: Sequence[int]) -> list[int]:
    """How many windows fit along each axis: those whose end, p stride + window, is still inside."""
    return [len(range(0, size - window + 1, s)) for size, window, s in zip(inputs, windows, strides, strict=True)]


def _window(
    p: Sequence[int], strides: Sequence[int], extent: Sequence[int], dilations: Sequence[int]
) -> tuple[slice, ...]:
    """What output position p looks at: elements p stride + k dilation along each axis."""
    return tuple(slice(i * s, i * s + e, d) for i, s, e, d in zip(p, strides, extent, dilations, strict=True))
