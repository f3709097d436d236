"""What the arguments of a pooling say, checked once for every implementation."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from cnnjax.ops import sizes
from cnnjax.ops.errors import InputError


class Along(NamedTuple):
    """A pooling along one axis of its input, for the methods that are written by hand."""

    axis: int
    """The axis."""
    window: int
    """How many elements a window has."""
    dilation: int
    """Distance between neighbouring elements of a window."""
    step: int
    """Distance between neighbouring windows; where there is one alone, its span, whatever the stride."""
    low: int
    """The padding before the first element; a negative number crops."""
    outputs: int
    """Number of windows."""

    @property
    def span(self) -> int:
        """From the first element of a window to the last, both included."""
        return sizes.dilated(self.window, self.dilation)


@dataclasses.dataclass(frozen=True)
class PoolSpec:
    """A pooling without its input: valid, with every default and every string resolved.

    Attributes:
      axes: the axes of the input that the window moves along, all but the last and those before.
      window: number of elements of the window along each.
      strides: distance between neighbouring windows along each.
      padding: a (low, high) pair along each; a negative number crops.
      window_dilation: distance between neighbouring elements of a window along each.
      output_space: number of windows along each.
    """

    axes: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[sizes.Pair, ...]
    window_dilation: tuple[int, ...]
    output_space: tuple[int, ...]

    @property
    def along(self) -> tuple[Along, ...]:
        """The same axis by axis."""
        return tuple(
            Along(axis, window, dilation, sizes.dilated(window, dilation) if outputs == 1 else stride, low, outputs)
            for axis, window, stride, (low, _), dilation, outputs in zip(
                self.axes,
                self.window,
                self.strides,
                self.padding,
                self.window_dilation,
                self.output_space,
                strict=True,
            )
        )


def pool_spec(
    shape: Sequence[int],
    window_shape: Sequence[int],
    strides: Sequence[int] | None,
    padding: str | Sequence[sizes.Pair],
    window_dilation: Sequence[int] | None = None,
) -> PoolSpec:
    """Checks the arguments of a pooling and resolves them.

    Args:
      shape: of the input, [..., *space, channel].
      window_shape, strides, padding, window_dilation: as `cnnjax.ops.max_pool` takes them.

    Returns:
      The `PoolSpec` they stand for.

    Raises:
      InputError: an argument is out of its range or does not agree with `shape`.
    """
    rank = sizes.number_of_axes("window_shape", window_shape)
    window = sizes.per_axis("window_shape", window_shape, rank)
    strides = sizes.per_axis("strides", (1,) * rank if strides is None else strides, rank)
    dilation = sizes.per_axis("window_dilation", (1,) * rank if window_dilation is None else window_dilation, rank)
    if len(shape) < rank + 1:
        raise InputError(
            f"inputs must have {rank} spatial axes and then one of channels for window_shape {window}: "
            f"got shape {tuple(shape)}"
        )
    space = tuple(shape[-rank - 1 : -1])
    spans = tuple(map(sizes.dilated, window, dilation))
    pairs = sizes.padding_pairs(padding, space, spans, strides)
    sizes.check_crop(space, pairs)
    return PoolSpec(
        axes=tuple(range(len(shape) - rank - 1, len(shape) - 1)),
        window=window,
        strides=strides,
        padding=pairs,
        window_dilation=dilation,
        output_space=tuple(map(sizes.number_of_windows, space, spans, strides, pairs)),
    )
