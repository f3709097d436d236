"""Convolution as a drop-in for `jax.lax.conv_general_dilated`, with the implementation chosen by name."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes
from jax.typing import ArrayLike

from cnnjax.ops import primitives, winograd
from cnnjax.ops.auto import conv_auto
from cnnjax.ops.conv_spec import ConvSpec, conv_spec
from cnnjax.ops.direct import conv_direct
from cnnjax.ops.errors import InputError, as_array, unknown
from cnnjax.ops.fft import conv_fft
from cnnjax.ops.im2col import conv_im2col
from cnnjax.ops.shift import conv_shift
from cnnjax.ops.winograd import conv_winograd
from cnnjax.ops.xla import conv_xla


class Implementation(NamedTuple):
    """One way to compute convolutions."""

    convolve: Callable[[Array, Array, ConvSpec], Array]
    """Takes operands that `conv_spec` has accepted, and what it made of the other arguments."""
    refusal: Callable[[tuple[int, ...], ConvSpec], str | None] = lambda taps, spec: None
    """Why it can't do a convolution with a kernel of that spatial shape, in one phrase; None where it can."""


_IMPLEMENTATIONS: dict[str, Implementation] = {
    "auto": Implementation(conv_auto),
    "xla": Implementation(conv_xla),
    "reference": Implementation(conv_direct),
    "im2col": Implementation(conv_im2col),
    "shift": Implementation(conv_shift),
    "winograd": Implementation(conv_winograd, winograd.refusal),
    "fft": Implementation(conv_fft),
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
    implementation: "str | ConvImplementation" = "auto",
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
      implementation: what `conv_implementation` gave, or one of `CONV_IMPLEMENTATIONS`:
        "auto": the fastest for the backend and the shape, safe in loops (`cnnjax.ops.auto`);
        "xla": `lax.conv_general_dilated`;
        "reference": written by hand from the definition (`cnnjax.ops.direct`), differentiable, slow;
        "im2col": one product with the matrix of patches (`cnnjax.ops.im2col`);
        "shift": a sum over kernel taps (`cnnjax.ops.shift`);
        "winograd": fewer multiplications, for kernels of 3 or 5 taps and stride 1 (`cnnjax.ops.winograd`);
        "fft": a product in the frequency domain, for large kernels (`cnnjax.ops.fft`).

    Returns:
      The output; its axes are as `dimension_numbers` says. It has no elements where the batch is empty or the kernel is
      larger than the padded input.

    Raises:
      InputError: an argument is out of range or does not agree with the shapes, or `implementation` is unknown or
        cannot do this convolution.
      TypeError: integer operands, operands of two dtypes, or a `preferred_element_type` that cannot hold the result.
    """
    choice = implementation if isinstance(implementation, ConvImplementation) else conv_implementation(implementation)
    lhs, rhs = as_array("lhs", lhs), as_array("rhs", rhs)
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
    return _by(choice.name, choice.otherwise, lhs, rhs, spec)


def _in_explicit_mesh(convolve: Callable[..., Array], lhs: Array, rhs: Array, spec: ConvSpec) -> Array:
    """The convolution, also where types say how arrays are sharded: on a mesh with axes of type Explicit.

    Not every reshape and every product over a sharded batch that a convolution is made of has a rule there. So the
    compiler is left to find the sharding, as it does with axes of type Auto, but for the output's: it is sharded as the
    batch of `lhs` and the features of `rhs` are.

    An operand that is sharded along space is not taken so (the compiler of jaxlib 0.10.2 makes wrong gradients of some,
    on a mesh with an axis of copies), nor one inside a `shard_map` of some of the axes: JAX then says what it lacks.
    """
    of_lhs, of_rhs = (jax.typeof(array).sharding for array in (lhs, rhs))
    meshes = [s.mesh for s in (of_lhs, of_rhs) if AxisType.Explicit in s.mesh.axis_types]
    numbers = spec.dimension_numbers
    along_space = [of_lhs.spec[i] for i in numbers.lhs_spec[2:]] + [of_rhs.spec[i] for i in numbers.rhs_spec[2:]]
    if not meshes or AxisType.Manual in meshes[0].axis_types or any(axes is not None for axes in along_space):
        return convolve(lhs, rhs, spec)
    batch, feature = of_lhs.spec[numbers.lhs_spec[0]], of_rhs.spec[numbers.rhs_spec[0]]
    if spec.batch_group_count > 1:
        batch = feature = None
    elif set(jax.tree.leaves(batch)) & set(jax.tree.leaves(feature)):  # each is a name, several, or None
        feature = None
    axes: list[Any] = [None] * lhs.ndim
    axes[numbers.out_spec[0]], axes[numbers.out_spec[1]] = batch, feature
    sharding = NamedSharding(meshes[0], PartitionSpec(*axes))
    return auto_axes(functools.partial(convolve, spec=spec), out_sharding=sharding)(lhs, rhs)


def _by(name: str, otherwise: str | None, lhs: Array, rhs: Array, spec: ConvSpec) -> Array:
    """The convolution by the implementation `name`, or by `otherwise` where that can't do it."""
    taps = tuple(rhs.shape[axis] for axis in spec.dimension_numbers.rhs_spec[2:])
    refusal = _IMPLEMENTATIONS[name].refusal(taps, spec)
    if refusal is None:
        if primitives.wanted():
            with jax.named_scope(primitives.BY + name):
                return conv_xla(lhs, rhs, spec)
        convolve = _IMPLEMENTATIONS[name].convolve
        # XLA's convolution has JAX's own rules.
        return convolve(lhs, rhs, spec) if name == "xla" else _in_explicit_mesh(convolve, lhs, rhs, spec)
    if otherwise is not None:
        return _by(otherwise, None, lhs, rhs, spec)
    able = ", ".join(other for other, it in _IMPLEMENTATIONS.items() if it.refusal(taps, spec) is None)
    raise InputError(
        f"convolution implementation {name!r} cannot do this convolution: got {refusal}. Those that can: {able} "
        f'(conv_implementation({name!r}, otherwise="xla") takes another for what {name!r} cannot do)'
    )


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

    def __post_init__(self) -> None:
        for name in (self.name,) if self.otherwise is None else (self.name, self.otherwise):
            if name not in CONV_IMPLEMENTATIONS:
                raise unknown("convolution implementation", name, CONV_IMPLEMENTATIONS)

    @_with_signature_of_lax
    def __call__(self, *args, **kwargs) -> Array:
        """`conv_general_dilated(*args, **kwargs)` by this implementation."""
        return conv_general_dilated(*args, **kwargs, implementation=self)


def conv_implementation(name: str, otherwise: str | None = None) -> ConvImplementation:
    """The implementation of convolution called `name`, as a function like `lax.conv_general_dilated`.

    For instance `flax.linen.Conv(..., conv_general_dilated=conv_implementation("reference"))`.

    Args:
      name: one of `CONV_IMPLEMENTATIONS`.
      otherwise: another of them, for the convolutions that `name` cannot do; None makes those an error. Only "winograd"
        refuses any.

    Returns:
      A callable with exactly the signature of `lax.conv_general_dilated`; equal for equal arguments, and hashable.

    Raises:
      InputError: `name` or `otherwise` is unknown; the message suggests the nearest.
    """
    return ConvImplementation(name, otherwise)
