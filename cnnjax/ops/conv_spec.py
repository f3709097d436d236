"""What the arguments of a convolution say, checked once for every implementation."""

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnnjax.ops import sizes
from cnnjax.ops.errors import InputError


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """A convolution without its operands: valid, with every default and every string resolved.

    The fields are those of `lax.conv_general_dilated`; what goes by spatial axis is a tuple of one entry for each.

    Attributes:
      window_strides: distance between neighbouring windows.
      padding: (low, high) pairs, applied after `lhs_dilation`; a negative number crops.
      lhs_dilation: distance between neighbouring input elements, with zeros between.
      rhs_dilation: distance between neighbouring kernel taps.
      dimension_numbers: axes of (batch, channel, *space) in the input, of (feature, channel, *space) in the kernel and
        of (batch, feature, *space) in the output.
      feature_group_count: groups into which input channels and output features are split.
      batch_group_count: groups into which the batch and output features are split.
      precision: as `lax` takes it.
      preferred_element_type: dtype of the result, or None for that of the operands.
      output_space: spatial shape of the output.
    """

    window_strides: tuple[int, ...]
    padding: tuple[sizes.Pair, ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    dimension_numbers: lax.ConvDimensionNumbers
    feature_group_count: int
    batch_group_count: int
    precision: Any
    preferred_element_type: Any
    output_space: tuple[int, ...]


def conv_spec(
    lhs: Any,
    rhs: Any,
    window_strides: Sequence[int],
    padding: str | Sequence[sizes.Pair],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> ConvSpec:
    """Checks the arguments of a convolution and resolves them.

    Args:
      lhs, rhs: anything with a `shape` and a `dtype`; only those are looked at.
      window_strides, ..., out_sharding: as `lax.conv_general_dilated` takes them.

    Returns:
      The `ConvSpec` they stand for.

    Raises:
      InputError: an argument is out of its range or does not agree with the shapes.
      TypeError: the operands are not both real or complex floating-point numbers of one dtype, or
        `preferred_element_type` cannot hold their products.
    """
    if out_sharding is not None:
        raise InputError(
            f"out_sharding is not supported: got {out_sharding}, allowed: None "
            "(constrain the result: jax.lax.with_sharding_constraint, or jax.reshard on Explicit axes)"
        )
    _check_dtypes(lhs.dtype, rhs.dtype, preferred_element_type)
    precision = _check_precision(precision)
    lhs_shape, rhs_shape = tuple(lhs.shape), tuple(rhs.shape)
    numbers = dimension_numbers_of(dimension_numbers, lhs_shape, rhs_shape)
    axes = len(lhs_shape) - 2
    lhs_space = tuple(lhs_shape[i] for i in numbers.lhs_spec[2:])
    rhs_space = tuple(rhs_shape[i] for i in numbers.rhs_spec[2:])
    if 0 in rhs_space:
        raise InputError(f"rhs must have at least one tap along each spatial axis: got shape {rhs_shape}")

    strides = sizes.per_axis("window_strides", window_strides, axes)
    lhs_dilation = sizes.per_axis("lhs_dilation", (1,) * axes if lhs_dilation is None else lhs_dilation, axes)
    rhs_dilation = sizes.per_axis("rhs_dilation", (1,) * axes if rhs_dilation is None else rhs_dilation, axes)
    if isinstance(padding, str) and padding.upper() in sizes.PADDINGS and any(d > 1 for d in lhs_dilation):
        raise InputError(
            f"padding must be explicit (low, high) pairs where lhs_dilation is not 1: got {padding!r} with "
            f"lhs_dilation {lhs_dilation}"
        )
    dilated_space = tuple(map(sizes.dilated, lhs_space, lhs_dilation))
    spans = tuple(map(sizes.dilated, rhs_space, rhs_dilation))
    pairs = sizes.padding_pairs(padding, dilated_space, spans, strides)
    sizes.check_crop(dilated_space, pairs)
    feature_group_count, batch_group_count = _check_groups(
        feature_group_count,
        batch_group_count,
        batch=lhs_shape[numbers.lhs_spec[0]],
        lhs_channels=lhs_shape[numbers.lhs_spec[1]],
        rhs_channels=rhs_shape[numbers.rhs_spec[1]],
        features=rhs_shape[numbers.rhs_spec[0]],
    )
    return ConvSpec(
        window_strides=strides,
        padding=pairs,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        output_space=tuple(map(sizes.number_of_windows, dilated_space, spans, strides, pairs)),
    )


def _check_dtypes(lhs: Any, rhs: Any, preferred: Any) -> None:
    for name, dtype in (("lhs", lhs), ("rhs", rhs)):
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(f"{name} must hold real or complex floating-point numbers: got {dtype}")
    if lhs != rhs:
        raise TypeError(f"lhs and rhs must have one dtype: got {lhs} and {rhs}")
    if preferred is None:
        return
    try:
        np.dtype(preferred)
    except TypeError:
        raise TypeError(f"preferred_element_type must be None or a dtype: got {preferred!r}") from None
    kind = jnp.complexfloating if jnp.issubdtype(lhs, jnp.complexfloating) else jnp.floating
    if not jnp.issubdtype(preferred, kind) or np.dtype(preferred).itemsize < np.dtype(lhs).itemsize:
        raise TypeError(
            f"preferred_element_type must be a {kind.__name__} dtype no narrower than {lhs}, that of lhs and rhs: "
            f"got {np.dtype(preferred)}"
        )


def _check_precision(precision: Any) -> Any:
    """The precision, in a form that is hashable."""
    precision = tuple(precision) if isinstance(precision, list) else precision
    if precision is None:
        return None
    one = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    try:
        jax.eval_shape(lambda a: lax.conv_general_dilated(a, a, (), "VALID", precision=precision), one)
    except (ValueError, TypeError, KeyError):
        raise InputError(
            "precision must be None, a lax.Precision, a name such as 'default', 'high' or 'highest', or two of them: "
            f"got {precision!r}"
        ) from None
    return precision


def channels_last_numbers(axes: int) -> lax.ConvDimensionNumbers:
    """Input and output [batch, *space, channel], kernel [*tap, channel, feature], with that many spatial axes."""
    images = (0, axes + 1, *range(1, axes + 1))
    return lax.ConvDimensionNumbers(images, (axes + 1, axes, *range(axes)), images)


def dimension_numbers_of(
    given: Any, lhs_shape: tuple[int, ...], rhs_shape: tuple[int, ...]
) -> lax.ConvDimensionNumbers:
    """The axes that `dimension_numbers` names, as `lax.conv_general_dilated` reads them.

    Raises:
      InputError: the ranks differ, or it is none of None, three strings and a `ConvDimensionNumbers`, or does not fit
        the shapes.
    """
    rank = len(lhs_shape)
    if rank != len(rhs_shape) or rank < 2:
        raise InputError(
            "lhs and rhs must have the same rank, 2 plus the number of spatial axes: "
            f"got shapes {lhs_shape} and {rhs_shape}"
        )
    if isinstance(given, lax.ConvDimensionNumbers):
        if all(sorted(spec) == list(range(rank)) for spec in given):
            return given
        raise InputError(f"dimension_numbers must be three permutations of the {rank} axes: got {given}")
    if given is not None:
        _check_layouts(given, rank)
        given = tuple(given)
    return lax.conv_dimension_numbers(lhs_shape, rhs_shape, given)


def _check_layouts(given: Any, rank: int) -> None:
    """Refuses anything but three strings such as ("NHWC", "HWIO", "NHWC")."""
    if not isinstance(given, tuple | list) or len(given) != 3 or not all(isinstance(s, str) for s in given):
        raise InputError(
            "dimension_numbers must be None, a ConvDimensionNumbers or three strings such as ('NHWC', 'HWIO', 'NHWC'): "
            f"got {given!r}"
        )
    for layout, (first, second) in zip(given, ("NC", "OI", "NC"), strict=True):
        if len(layout) != rank or len(set(layout)) != rank or not {first, second} <= set(layout):
            raise InputError(
                f"dimension_numbers must name each of {rank} axes once, {first!r} and {second!r} among them: "
                f"got {layout!r} in {tuple(given)}"
            )
    lhs, rhs, out = given
    if not set(lhs) - set("NC") == set(rhs) - set("OI") == set(out) - set("NC"):
        raise InputError(f"dimension_numbers must use the same letters for the spatial axes: got {tuple(given)}")


def _check_groups(
    feature_groups: Any, batch_groups: Any, *, batch: int, lhs_channels: int, rhs_channels: int, features: int
) -> tuple[int, int]:
    counts = {"feature_group_count": feature_groups, "batch_group_count": batch_groups}
    for name, count in counts.items():
        try:
            counts[name] = operator.index(count)
        except TypeError:
            counts[name] = 0
        if counts[name] < 1:
            raise InputError(f"{name} must be a positive integer: got {count!r}")
        if features % counts[name]:
            raise InputError(f"{name} must divide the {features} output features of rhs: got {count}")
    feature_groups, batch_groups = counts.values()
    if feature_groups > 1 and batch_groups > 1:
        raise InputError(
            "at most one of feature_group_count and batch_group_count may be more than 1: "
            f"got {feature_groups} and {batch_groups}"
        )
    if lhs_channels % feature_groups:
        raise InputError(f"feature_group_count must divide the {lhs_channels} channels of lhs: got {feature_groups}")
    if lhs_channels // feature_groups != rhs_channels:
        raise InputError(
            f"rhs must have as many input channels as lhs has per group: got {rhs_channels}, "
            f"allowed: {lhs_channels // feature_groups} ({lhs_channels} channels in {feature_groups} groups)"
        )
    if batch_groups > 1 and batch % batch_groups:  # a symbolic batch size is never divided by 1
        raise InputError(f"batch_group_count must divide the batch size of lhs, {batch}: got {batch_groups}")
    return feature_groups, batch_groups
