"""Convolution as a drop-in for `jax.lax.conv_general_dilated`, with the implementation chosen by name."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from cnnjax.ops.conv_spec import ConvSpec, conv_spec
from cnnjax.ops.direct import conv_direct
from cnnjax.ops.errors import unknown


def _conv_xla(lhs: Array, rhs: Array, spec: ConvSpec) -> Array:
    """XLA's own convolution."""
    return lax.conv_general_dilated(
        lhs,
        rhs,
        spec.window_strides,
        spec.padding,
        lhs_dilation=spec.lhs_dilation,
        rhs_dilation=spec.rhs_dilation,
        dimension_numbers=spec.dimension_numbers,
        feature_group_count=spec.feature_group_count,
        batch_group_count=spec.batch_group_count,
        precision=spec.precision,
        preferred_element_type=spec.preferred_element_type,
    )


def _conv_auto(lhs: Array, rhs: Array, spec: ConvSpec) -> Array:
    """A matrix product where the kernel covers the whole input, XLA's convolution elsewhere."""
    return _whole_window(lhs, rhs, spec) if _is_whole_window(lhs, rhs, spec) else _conv_xla(lhs, rhs, spec)


def _is_whole_window(lhs: Array, rhs: Array, spec: ConvSpec) -> bool:
    """Whether there is one window, which is the input as it stands: C5 of LeNet-5, and dense layers as convolutions."""
    space = [lhs.shape[axis] for axis in spec.dimension_numbers.lhs_spec[2:]]
    return (
        space == [rhs.shape[axis] for axis in spec.dimension_numbers.rhs_spec[2:]]
        and spec.feature_group_count == spec.batch_group_count == 1
        and all(pair == (0, 0) for pair in spec.padding)
        and all(d == 1 for d in (*spec.lhs_dilation, *spec.rhs_dilation))
    )


def _whole_window(lhs: Array, rhs: Array, spec: ConvSpec) -> Array:
    """y[n, f] = sum over channels and taps of x[n, c, k] w[f, c, k].

    As a convolution XLA computes its gradient on CPU with the whole kernel at every position of a padded input, k^2
    times the arithmetic.
    """
    result = lhs.dtype if spec.preferred_element_type is None else spec.preferred_element_type
    summed, taps = spec.dimension_numbers.lhs_spec[1:], spec.dimension_numbers.rhs_spec[1:]  # channels, then space
    y = lax.dot_general(
        lhs,
        rhs,
        ((summed, taps), ((), ())),
        precision=spec.precision,
        preferred_element_type=jnp.promote_types(jnp.promote_types(lhs.dtype, result), jnp.float32),
    )  # [n, f]
    out_batch, out_feature, *out_space = spec.dimension_numbers.out_spec
    if out_batch > out_feature:
        y = y.T
    return lax.expand_dims(y.astype(jax.dtypes.canonicalize_dtype(result)), out_space)


# Each takes operands that `conv_spec` has accepted, and what it made of the other arguments.
_IMPLEMENTATIONS: dict[str, Callable[[Array, Array, ConvSpec], Array]] = {
    "auto": _conv_auto,
    "xla": _conv_xla,
    "reference": conv_direct,
}

CONV_IMPLEMENTATIONS: tuple[str, ...] = tuple(_IMPLEMENTATIONS)
"""Names that `conv_general_dilated(..., implementation=)` and `conv_implementation` take."""


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
    *,
    implementation: str = "auto",
) -> Array:
    """Convolution (cross-correlation) in any number of dimensions: a drop-in for `jax.lax.conv_general_dilated`.

    Args:
      lhs: input, rank 2 + n for n spatial axes, real or complex floating point.
      rhs: kernel, of the same rank and dtype.
      window_strides: n positive ints, the distance between neighbouring windows.
      padding: "VALID", "SAME" or "SAME_LOWER", or n (low, high) pairs, applied after `lhs_dilation`; negative crops.
      lhs_dilation: None or n positive ints; the distance between neighbouring input elements, with zeros between.
      rhs_dilation: None or n positive ints; the distance between neighbouring kernel taps.
      dimension_numbers: None for batch, channel, *space (kernel: feature, channel, *space); three strings such as
        ("NHWC", "HWIO", "NHWC"); or a `lax.ConvDimensionNumbers`.
      feature_group_count: number of groups of input channels, each with its own output features.
      batch_group_count: number of groups of the batch, each with its own output features; the output's batch is that
        many times smaller.
      precision: of the products, as `lax` takes it.
      preferred_element_type: dtype to accumulate in and return; None for that of the operands (bfloat16 and float16 are
        accumulated in float32 all the same).
      out_sharding: must be None.
      implementation: one of `CONV_IMPLEMENTATIONS`:
        "auto": a matrix product where the kernel covers the whole input, else as "xla";
        "xla": `lax.conv_general_dilated`;
        "reference": written by hand from the definition (`cnnjax.ops.direct`), differentiable, slow.

    Returns:
      The output; its axes are as `dimension_numbers` says. It has no elements where the batch is empty or the kernel is
      larger than the padded input.

    Raises:
      InputError: an argument is out of range or does not agree with the shapes, or `implementation` is unknown.
      TypeError: integer operands, operands of two dtypes, or a `preferred_element_type` that cannot hold the result.
    """
    _check_name(implementation)
    lhs, rhs = jnp.asarray(lhs), jnp.asarray(rhs)
    spec = conv_spec(
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
    return _IMPLEMENTATIONS[implementation](lhs, rhs, spec)


def _check_name(name: object) -> None:
    if name not in CONV_IMPLEMENTATIONS:
        raise unknown("convolution implementation", name, CONV_IMPLEMENTATIONS)


def _with_signature_of_lax(method: Callable) -> Callable:
    """Shows `lax.conv_general_dilated`'s signature, after self, to whoever asks: Flax, `help` and editors."""
    signature = inspect.signature(lax.conv_general_dilated)
    self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = signature.replace(parameters=[self, *signature.parameters.values()])  # ty: ignore
    return method


@dataclasses.dataclass(frozen=True)
class ConvImplementation:
    """One implementation of convolution, callable as `lax.conv_general_dilated` is.

    A value, not a closure: equal for equal fields, hashable and picklable, so that it can be a field of a Flax module,
    a static argument of `jax.jit` and part of a configuration.

    Attributes:
      name: one of `CONV_IMPLEMENTATIONS`.
      otherwise: None, or the name of the implementation for the convolutions that `name` cannot do.
    """

    name: str
    otherwise: str | None = None

    @_with_signature_of_lax
    def __call__(self, *args, **kwargs) -> Array:
        """`conv_general_dilated(*args, **kwargs)` by this implementation."""
        return conv_general_dilated(*args, **kwargs, implementation=self.name)


def conv_implementation(name: str, otherwise: str | None = None) -> ConvImplementation:
    """The implementation of convolution called `name`, as a function like `lax.conv_general_dilated`.

    For instance `flax.linen.Conv(..., conv_general_dilated=conv_implementation("reference"))`.

    Args:
      name: one of `CONV_IMPLEMENTATIONS`.
      otherwise: another of them, for the convolutions that `name` cannot do; None makes those an error. The
        implementations there are today can do every convolution, so that it is never called on.

    Returns:
      A callable with exactly the signature of `lax.conv_general_dilated`; equal for equal arguments, and hashable.

    Raises:
      InputError: `name` or `otherwise` is unknown; the message suggests the nearest.
    """
    _check_name(name)
    if otherwise is not None:
        _check_name(otherwise)
    return ConvImplementation(name, otherwise)
