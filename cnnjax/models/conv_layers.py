"""Flax's convolution layers on our convolution, with Flax's parameters: checkpoints move either way.

`flax.linen.Conv` takes the convolution as a field, and `Conv` fills it in; with the fields of `nn.Conv`,

    Conv(64, (3, 3), kernel_dilation=2)               dilated, or atrous
    Conv(64, (3, 3), feature_group_count=4)           grouped
    CausalConv1d(64, 3)                               no output sees what comes after it
    DepthwiseConv((3, 3))                             each channel by itself
    Conv(64, (1, 1))                                  pointwise; after a depthwise one, depthwise separable

`flax.linen.ConvTranspose` and `ConvLocal` have no such field (the latter uses it for shapes alone), so these two are
written here. Their `conv` and `Conv`'s `conv_general_dilated` take what `cnnjax.ops.conv_implementation` makes.
"""

import functools
import math
import numbers
import operator
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from cnnjax.models.layers import like
from cnnjax.ops import conv_general_dilated, sizes
from cnnjax.ops.conv_spec import channels_last_numbers, conv_spec
from cnnjax.ops.errors import InputError, unknown
from cnnjax.ops.local import conv_local
from cnnjax.ops.transposed import as_dilated_convolution

Padding = str | int | Sequence[int | sizes.Pair]

Conv = functools.partial(nn.Conv, conv_general_dilated=conv_general_dilated)
"""`flax.linen.Conv` on our convolution."""

CausalConv1d = functools.partial(Conv, padding="CAUSAL")
"""`Conv` along one axis, of time, padded in front alone: output t depends on inputs 0 to t.

Source: van den Oord et al., "WaveNet", arXiv:1609.03499, section 2.1.
"""


class DepthwiseConv(nn.Module):
    """[..., *space, channel] -> [..., *space, channel multiplier]: every channel has `multiplier` kernels of its own.

    The parameters are those of `flax.linen.Conv(channel * multiplier, kernel_size, feature_group_count=channel)`,
    under the same names: "kernel" [*kernel_size, 1, channel multiplier] and "bias". The features of a channel stand
    side by side.
    Source: Chollet, "Xception: deep learning with depthwise separable convolutions", arXiv:1610.02357.
    """

    kernel_size: int | Sequence[int]
    """How many taps the kernel has along each spatial axis; an int for one axis."""
    multiplier: int = 1
    """How many features each channel has."""
    conv: Callable[..., nn.Module] = Conv
    """The convolution module, with whatever else it needs: `functools.partial(Conv, strides=2, use_bias=False)`."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        channels = inputs.shape[-1]
        conv = self.conv(channels * self.multiplier, self.kernel_size, feature_group_count=channels)
        nn.share_scope(self, conv)  # its parameters are ours, and not one level down
        return conv(inputs)


class ConvTranspose(nn.Module):
    """`flax.linen.ConvTranspose` on our convolution: [..., *space, channel] -> [..., *space, features].

    "kernel" is [*kernel_size, channel / groups, features], or with `transpose_kernel` that of the convolution that is
    transposed, [*kernel_size, features / groups, channel]; "bias" is [features]. `cnnjax.ops.conv_transpose` says what
    is computed, and how it compares with PyTorch's.

    All axes of the input before the spatial ones are taken for one batch; there may be none.
    """

    features: int
    """How many channels the output has."""
    kernel_size: int | Sequence[int]
    """How many taps the kernel has along each spatial axis; an int for one axis."""
    strides: int | Sequence[int] | None = None
    """By how much the output is upsampled along each axis, or along all; None is 1."""
    padding: Padding = "SAME"
    """"SAME", "VALID" or "CIRCULAR"; or an int, an int for each axis or a (low, high) pair for each, which pad the
    dilated input. "CIRCULAR" is as "SAME", but the input goes on periodically where "SAME" has zeros; with
    `transpose_kernel` the odd element of its crop is at the start, as in Flax."""
    kernel_dilation: int | Sequence[int] | None = None
    """Distance between neighbouring taps of the kernel, along each axis or along all; None is 1."""
    use_bias: bool = True
    """Whether a bias is added."""
    mask: jax.Array | None = None
    """What the kernel is multiplied by, of its shape."""
    dtype: Any = None
    """What to compute in; None for the wider of the input's type and the parameters'."""
    param_dtype: Any = jnp.float32
    """The type of the parameters."""
    precision: Any = None
    """The precision of the products, as `jax.lax` takes it."""
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
    """The initializer of the kernel."""
    bias_init: Callable[..., Any] = nn.initializers.zeros_init()
    """The initializer of the bias."""
    transpose_kernel: bool = False
    """Whether the kernel is that of the convolution that is transposed."""
    promote_dtype: Callable[..., Any] = promote_dtype
    """What brings input, kernel and bias to one type: a function as `flax.linen.dtypes.promote_dtype`."""
    preferred_element_type: Any = None
    """The type to accumulate in and return; None for that of input and kernel."""
    conv: Callable[..., Any] = conv_general_dilated
    """What computes the convolution: a function with the signature of `jax.lax.conv_general_dilated`."""
    feature_group_count: int = 1
    """How many groups of input channels there are, each with its own features."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        kernel_size = _kernel_size(self.kernel_size)
        axes = len(kernel_size)
        strides = _per_axis("strides", self.strides, axes)
        dilation = _per_axis("kernel_dilation", self.kernel_dilation, axes)
        padding = _padding(self.padding, axes, named=("SAME", "VALID", "CIRCULAR"))
        batch, inputs = _one_batch(inputs, axes)

        channels, groups = inputs.shape[-1], self.feature_group_count
        _check_groups(groups, channels, self.features)
        ends = (self.features // groups, channels) if self.transpose_kernel else (channels // groups, self.features)
        kernel = _masked(self.param("kernel", self.kernel_init, (*kernel_size, *ends), self.param_dtype), self.mask)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        inputs, kernel, bias = self.promote_dtype(inputs, kernel, bias, dtype=self.dtype)

        if padding == "CIRCULAR":
            inputs, padding = _periodic(
                inputs, tuple(map(sizes.dilated, kernel_size, dilation)), strides, self.transpose_kernel
            )
        kernel, arguments = as_dilated_convolution(
            inputs,
            kernel,
            strides,
            padding,
            dilation,
            transpose_kernel=self.transpose_kernel,
            feature_group_count=groups,
        )
        y = self.conv(
            inputs,
            kernel,
            **arguments,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
        )
        y = y if bias is None else y + like(y, bias)
        return y.reshape(*batch, *y.shape[1:])


class ConvLocal(nn.Module):
    """`flax.linen.ConvLocal` without a convolution: every output position has a kernel and a bias of its own.

    [..., *space, channel] -> [..., *output_space, features]. "kernel" is [*output_space, channel taps, features], the
    taps of the window row by row within each channel; "bias" is [*output_space, features]. So the layer is for inputs
    of one size. `cnnjax.ops.conv_local` says what is computed.

    All axes of the input before the spatial ones are taken for one batch; there may be none.
    """

    features: int
    """How many channels the output has."""
    kernel_size: int | Sequence[int]
    """How many taps the window has along each spatial axis; an int for one axis."""
    strides: int | Sequence[int] | None = 1
    """Distance between neighbouring windows, along each axis or along all."""
    padding: Padding = "SAME"
    """"SAME", "SAME_LOWER", "VALID", "CIRCULAR" (the input goes on periodically), "REFLECT" (mirrored at its border) or
    "CAUSAL" (along one axis, in front alone); or an int, an int for each axis or a (low, high) pair for each."""
    input_dilation: int | Sequence[int] | None = 1
    """Distance between neighbouring input elements, with zeros between, along each axis or along all."""
    kernel_dilation: int | Sequence[int] | None = 1
    """Distance between neighbouring taps of the window, along each axis or along all."""
    feature_group_count: int = 1
    """Must be 1, as in Flax."""
    use_bias: bool = True
    """Whether a bias is added."""
    mask: jax.Array | None = None
    """What the kernel is multiplied by, of its shape."""
    dtype: Any = None
    """What to compute in; None for the wider of the input's type and the parameters'."""
    param_dtype: Any = jnp.float32
    """The type of the parameters."""
    precision: Any = None
    """The precision of the products, as `jax.lax` takes it."""
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
    """The initializer of the kernel."""
    bias_init: Callable[..., Any] = nn.initializers.zeros_init()
    """The initializer of the bias."""
    promote_dtype: Callable[..., Any] = promote_dtype
    """What brings input, kernel and bias to one type: a function as `flax.linen.dtypes.promote_dtype`."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        if self.feature_group_count != 1:
            raise InputError(f"feature_group_count: received {self.feature_group_count!r}; allowed: 1")
        kernel_size = _kernel_size(self.kernel_size)
        axes = len(kernel_size)
        strides = _per_axis("strides", self.strides, axes)
        input_dilation = _per_axis("input_dilation", self.input_dilation, axes)
        kernel_dilation = _per_axis("kernel_dilation", self.kernel_dilation, axes)
        padding = _padding(self.padding, axes, named=(*sizes.PADDINGS, *_CONTINUED))
        batch, inputs = _one_batch(inputs, axes)
        if padding in _CONTINUED:
            inputs, padding = _continued(inputs, padding, tuple(map(sizes.dilated, kernel_size, kernel_dilation)))

        channels = inputs.shape[-1]
        layout = channels_last_numbers(axes)
        shared = conv_spec(  # a convolution with these windows
            jax.ShapeDtypeStruct(inputs.shape, jnp.float32),
            jax.ShapeDtypeStruct((*kernel_size, channels, self.features), jnp.float32),
            strides,
            padding,
            input_dilation,
            kernel_dilation,
            layout,
        )
        shape = (*shared.output_space, channels * math.prod(kernel_size), self.features)
        kernel = _masked(self.param("kernel", self.kernel_init, shape, self.param_dtype), self.mask)
        shape = (*shared.output_space, self.features)
        bias = self.param("bias", self.bias_init, shape, self.param_dtype) if self.use_bias else None
        inputs, kernel, bias = self.promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        y = conv_local(
            inputs, kernel, strides, padding, kernel_size, input_dilation, kernel_dilation, layout, self.precision
        )
        y = y if bias is None else y + like(y, bias)
        return y.reshape(*batch, *y.shape[1:])


def _kernel_size(size: Any) -> tuple[int, ...]:
    size = (size,) if isinstance(size, numbers.Integral) else size
    return sizes.per_axis("kernel_size", size, sizes.number_of_axes("kernel_size", size))


def _per_axis(name: str, value: int | Sequence[int] | None, axes: int) -> tuple[int, ...]:
    return sizes.per_axis(name, 1 if value is None else value, axes, scalar=True)


def _padding(padding: Any, axes: int, named: Sequence[str]) -> str | tuple[sizes.Pair, ...]:
    """One of the names, or a (low, high) pair for each axis."""
    if isinstance(padding, str):
        if padding not in named:
            raise unknown("padding", padding, named)
        return padding
    try:
        pairs = tuple(map(_pair, (padding,) * axes if isinstance(padding, numbers.Integral) else padding))
    except (TypeError, ValueError):
        pairs = None
    if pairs is None or len(pairs) != axes:
        raise InputError(
            f"padding: received {padding!r}; allowed: one of {', '.join(named)}, an int, or an int or a (low, high) "
            f"pair of ints for each of {axes} axes"
        )
    return pairs


def _pair(padding: Any) -> sizes.Pair:
    low, high = (padding, padding) if isinstance(padding, numbers.Integral) else padding
    return operator.index(low), operator.index(high)


def _one_batch(inputs: jax.Array, axes: int) -> tuple[tuple[int, ...], jax.Array]:
    """The shape of what stands before the spatial axes, and the input with one axis in its place."""
    if inputs.ndim < axes + 1:
        raise InputError(
            f"inputs: received shape {inputs.shape}; allowed: [..., *space, channel] with {axes} spatial axes, as many "
            "as kernel_size has entries"
        )
    batch = inputs.shape[: -axes - 1]
    return batch, inputs.reshape(math.prod(batch), *inputs.shape[len(batch) :])


def _check_groups(groups: int, channels: int, features: int) -> None:
    if not isinstance(groups, numbers.Integral) or groups < 1 or channels % groups or features % groups:
        raise InputError(
            f"feature_group_count: received {groups!r}; allowed: a positive integer that divides the {channels} "
            f"channels of the input and the {features} features"
        )


def _masked(kernel: jax.Array, mask: jax.Array | None) -> jax.Array:
    if mask is None:
        return kernel
    if mask.shape != kernel.shape:
        raise InputError(f"mask: received shape {mask.shape}; allowed: {kernel.shape}, that of the kernel")
    return kernel * mask


_CONTINUED = {"CIRCULAR": "wrap", "REFLECT": "reflect", "CAUSAL": "constant"}
"""How `jnp.pad` calls what these paddings put around the input."""


def _continued(inputs: jax.Array, padding: str, spans: tuple[int, ...]) -> tuple[jax.Array, str]:
    """The input [batch, *space, channel] with as much around it as keeps its size at stride 1, and what to pad then."""
    if padding == "CAUSAL" and len(spans) != 1:
        raise InputError(f"padding: received 'CAUSAL' with {len(spans)} spatial axes; allowed: with one, of time")
    around = [(k - 1, 0) if padding == "CAUSAL" else ((k - 1) // 2, k // 2) for k in spans]
    return jnp.pad(inputs, [(0, 0), *around, (0, 0)], _CONTINUED[padding]), "VALID"


def _periodic(
    inputs: jax.Array, spans: tuple[int, ...], strides: tuple[int, ...], odd_at_start: bool
) -> tuple[jax.Array, tuple[sizes.Pair, ...]]:
    """The input of a transposed convolution continued periodically, and the padding that leaves one period of output.

    Along one axis, n inputs dilated by the stride s have the period n s, and so has the output. Output q is a window of
    k elements of the dilated input, from q - (k - 1) + crop on, where `crop` is what "SAME" crops at the start.
    """
    around, padding = [], []
    for k, s in zip(spans, strides, strict=True):
        crop = (max(k - s, 0) + odd_at_start) // 2
        before, after = k - 1 - crop, s - 1 + crop  # of the first element, and of the last
        around.append((before // s, after // s))
        padding.append((before % s, after % s))
    return jnp.pad(inputs, [(0, 0), *around, (0, 0)], "wrap"), tuple(padding)
