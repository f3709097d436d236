"""How many windows fit along an axis: the arithmetic that convolution and pooling share.

One axis of size W, padded by P on both sides, is covered by windows of F elements, S apart:

    (W - F + 2P)/S + 1

windows fit, rounded down. A dilation D spreads the window's F taps over (F - 1) D + 1 elements. Every axis goes by
itself. An axis may have a symbolic size, as in `jax.export`: then so does what is made of it.
Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285.
"""

import operator
from collections.abc import Iterable, Sequence, Sized
from typing import overload

from jax.core import max_dim

from cnnjax.ops.errors import InputError, unknown

PADDINGS = ("VALID", "SAME", "SAME_LOWER")

Pair = tuple[int, int]


@overload
def output_size(
    input: int,
    window: int,
    stride: int = 1,
    padding: int | Pair | str = 0,
    dilation: int = 1,
    *,
    exact: bool = False,
) -> int: ...


@overload
def output_size(
    input: Sequence[int],
    window: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int | Pair] | str = 0,
    dilation: int | Sequence[int] = 1,
    *,
    exact: bool = False,
) -> tuple[int, ...]: ...


def output_size(input, window, stride=1, padding=0, dilation=1, *, exact=False):
    """How many outputs a convolution or a pooling has along each axis.

    Args:
      input: size W of the input, an int for one axis or a sequence of ints, one per axis. If it is a sequence, each of
        the other arguments is a sequence of the same length, or one value for all axes.
      window: size F of the kernel or pooling window.
      stride: step S from one window to the next.
      padding: elements added: an int for both sides, a (low, high) pair, or one of "VALID" (none), "SAME" (as many as
        make the output ceil(W / S), an odd one at the end) and "SAME_LOWER" (an odd one at the start). In the form with
        sequences: one int or pair per axis, or one int or string for all.
      dilation: distance D between neighbouring taps of the window.
      exact: whether a window that does not fit without a remainder is an error. By default the size is rounded down, as
        every library does, and the elements left over at the end are never read.

    Returns:
      An int if `input` is one, else a tuple of ints. It is 0 where the window is larger than the padded input.

    Raises:
      InputError: a size, stride or dilation that is not a positive integer, a negative padding, lengths that differ, an
        unknown padding, or with `exact=True` an axis on which (W - F + 2P)/S is not a whole number or is negative.
    """
    single = _is_int(input)
    axes = 1 if single else number_of_axes("input", input)
    inputs, windows, strides, dilations = (
        per_axis(name, value, axes, scalar=True)
        for name, value in [("input", input), ("window", window), ("stride", stride), ("dilation", dilation)]
    )
    spans = tuple(map(dilated, windows, dilations))
    pairs = padding_pairs(_paddings(padding, axes, single), inputs, spans, strides)
    if any(p < 0 for pair in pairs for p in pair):
        raise InputError(f"padding must not be negative: got {padding!r}, allowed: 0 or more on each side")
    if exact:
        for axis in zip(inputs, spans, strides, pairs, strict=True):
            _require_fit(*axis)
    sizes = tuple(map(number_of_windows, inputs, spans, strides, pairs))
    return sizes[0] if single else sizes


def _paddings(padding: object, axes: int, single: bool) -> object:
    """`padding` with an int wherever one stands for both sides turned into a pair; the rest as it is."""
    if isinstance(padding, str):
        return padding
    if single:
        padding = (padding,)
    elif _is_int(padding):
        padding = (padding,) * axes
    return [(p, p) if _is_int(p) else p for p in padding] if isinstance(padding, Iterable) else padding


def _require_fit(input: int, span: int, stride: int, pair: Pair) -> None:
    room = input - span + sum(pair)
    if room < 0 or room % stride:
        fault = "the window is larger than the padded input" if room < 0 else "not a whole number"
        raise InputError(
            f"window {span} with stride {stride} does not fit input {input} with padding {pair}: "
            f"({input} - {span} + {sum(pair)})/{stride} + 1 = {room / stride + 1:.2f}, {fault}"
        )


def dilated(size: int, dilation: int) -> int:
    """Elements that `size` taps span when they stand `dilation` apart; no taps span none."""
    return max_dim((size - 1) * dilation + 1, 0)


def number_of_windows(input: int, span: int, stride: int, pair: Pair) -> int:
    """How many windows of `span` elements, `stride` apart, fit into `input` elements padded by `pair`; 0 if none."""
    return max_dim((input + sum(pair) - span) // stride + 1, 0)


def padding_pairs(
    padding: object, inputs: Sequence[int], spans: Sequence[int], strides: Sequence[int]
) -> tuple[Pair, ...]:
    """The (low, high) padding of each axis that a string or a sequence of pairs stands for.

    Args:
      padding: "VALID", "SAME" or "SAME_LOWER" in either case, or a sequence of a (low, high) pair per axis; a negative
        number crops.
      inputs: size of each axis.
      spans: size of the window along each axis, dilation included.
      strides: step of the window along each axis.

    Returns:
      A (low, high) pair of ints per axis.

    Raises:
      InputError: another string, something that is not pairs of integers, or a wrong number of them.
    """
    axes = len(inputs)
    if isinstance(padding, str):
        name = padding.upper()
        if name not in PADDINGS:
            raise unknown("padding", padding, PADDINGS)
        if name == "VALID":
            return ((0, 0),) * axes
        return tuple(_same(*axis, extra_low=name == "SAME_LOWER") for axis in zip(inputs, spans, strides, strict=True))
    try:
        pairs = tuple((operator.index(low), operator.index(high)) for low, high in padding)  # ty: ignore[not-iterable]
    except (TypeError, ValueError):
        pairs = None
    if pairs is None or len(pairs) != axes:
        raise InputError(
            f"padding must be one of {', '.join(PADDINGS)} or a (low, high) pair of integers for each of {axes} axes: "
            f"got {padding!r}"
        )
    return pairs


def _same(input: int, span: int, stride: int, *, extra_low: bool) -> Pair:
    """The padding that makes ceil(input / stride) windows fit, halved between the sides."""
    total = max_dim((-(-input // stride) - 1) * stride + span - input, 0)
    less, more = total // 2, total - total // 2
    return (more, less) if extra_low else (less, more)


def check_crop(inputs: Sequence[int], pairs: Sequence[Pair]) -> None:
    """Refuses a padding that crops more than there is; of a symbolic size that can't be known.

    Args:
      inputs: size of each axis.
      pairs: its (low, high) padding.
    """
    if any(isinstance(size, int) and size + low + high < 0 for size, (low, high) in zip(inputs, pairs, strict=True)):
        raise InputError(
            f"padding must not crop more than there is: got {tuple(pairs)} for spatial sizes {tuple(inputs)}"
        )


def per_axis(name: str, value: object, axes: int, *, scalar: bool = False) -> tuple[int, ...]:
    """`value` as a tuple of `axes` positive ints; with `scalar=True` an int stands for all axes.

    Raises:
      InputError: `value` is anything else; the message calls it `name`.
    """
    values = (value,) * axes if scalar and _is_int(value) else value
    try:
        numbers = tuple(operator.index(v) for v in values)  # ty: ignore[not-iterable]
    except TypeError:
        numbers = None
    if numbers is None or len(numbers) != axes or min(numbers, default=1) < 1:
        integer = "a positive integer or one" if scalar else "a positive integer"
        raise InputError(f"{name} must be {integer} for each axis, {axes} in all: got {value!r}")
    return numbers


def _is_int(value: object) -> bool:
    try:
        operator.index(value)  # ty: ignore[invalid-argument-type]
    except TypeError:
        return False
    return True


def number_of_axes(name: str, value: object) -> int:
    """The length of a sequence that has an entry per axis.

    Raises:
      InputError: `value` is no such sequence; the message calls it `name`.
    """
    try:
        length = 0 if isinstance(value, str) or not isinstance(value, Sized) else len(value)
    except TypeError:  # an array without axes has a length, and has none
        length = 0
    if length == 0:
        raise InputError(f"{name} must be positive integers, one for each axis: got {value!r}")
    return length
