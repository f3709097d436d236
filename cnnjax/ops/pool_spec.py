"""What the arguments of a pooling say, checked once for every implementation."""

import dataclasses
from collections.abc import Sequence

from cnnjax.ops import sizes
from cnnjax.ops.errors import InputError


@dataclasses.dataclass(frozen=True)
class PoolSpec:
    """A pooling without its input: valid, with every default and every string resolved.

    Attributes:
      axes: the axes of the input that the window moves along, all but the last and those before.
      window: size of the window along each.
      strides: distance between neighbouring windows along each; the window's size where there is one alone.
      padding: a (low, high) pair along each; a negative number crops.
      output_space: number of windows along each.
    """

    axes: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[sizes.Pair, ...]
    output_space: tuple[int, ...]


def pool_spec(
    shape: Sequence[int],
    window_shape: Sequence[int],
    strides: Sequence[int] | None,
    padding: str | Sequence[sizes.Pair],
) -> PoolSpec:
    """Checks the arguments of a pooling and resolves them.

    Args:
      shape: of the input, [..., *space, channel].
      window_shape, strides, padding: as `cnnjax.ops.max_pool` takes them.

    Returns:
      The `PoolSpec` they stand for.

    Raises:
      InputError: an argument is out of its range or does not agree with `shape`.
    """
    rank = sizes.number_of_axes("window_shape", window_shape)
    window = sizes.per_axis("window_shape", window_shape, rank)
    strides = sizes.per_axis("strides", (1,) * rank if strides is None else strides, rank)
    if len(shape) < rank + 1:
        raise InputError(
            f"inputs must have {rank} spatial axes and then one of channels for window_shape {window}: "
            f"got shape {tuple(shape)}"
        )
    space = tuple(shape[-rank - 1 : -1])
    pairs = sizes.padding_pairs(padding, space, window, strides)
    if any(size + low + high < 0 for size, (low, high) in zip(space, pairs, strict=True)):
        raise InputError(f"padding must not crop more than there is: got {pairs} for spatial sizes {space}")
    counts = tuple(map(sizes.number_of_windows, space, window, strides, pairs))
    return PoolSpec(
        axes=tuple(range(len(shape) - rank - 1, len(shape) - 1)),
        window=window,
        strides=tuple(k if count == 1 else s for count, k, s in zip(counts, window, strides, strict=True)),
        padding=pairs,
        output_space=counts,
    )
