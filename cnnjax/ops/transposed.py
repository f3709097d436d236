"""Transposed convolution: the way back from the output's shape to the input's, upsampling by its stride.

A convolution is a matrix product y = M x; the transposed convolution of the same kernel, stride and padding is M^T y.
It does not undo the convolution, only the change of shape, and is the gradient of the convolution with respect to its
input. Each element of its input puts a copy of the kernel, times itself, into the output, `stride` apart, and copies
that overlap add up. In one dimension, a kernel (w0, w1, w2) and stride 2:

    input  (a, b)  ->  a w0    a w1    a w2 + b w0    b w1    b w2

Each output is a window of the input with stride - 1 zeros between its elements and k - 1 around them, under the flipped
kernel (w2, w1, w0):

    0 0 a 0 b 0 0

That is how it is computed here. Other names are fractionally strided convolution and, wrongly, deconvolution.
Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285, chapter 4.
"""

import numbers
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from cnnjax.ops import sizes
from cnnjax.ops.conv import ConvImplementation, conv_general_dilated
from cnnjax.ops.conv_spec import channels_last_numbers, dimension_numbers_of
from cnnjax.ops.errors import InputError, as_array, unknown


def conv_transpose(
    lhs: ArrayLike,
    rhs: ArrayLike,
    strides: Sequence[int],
    padding: str | Sequence[sizes.Pair],
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    transpose_kernel: bool = False,
    precision: Any = None,
    preferred_element_type: Any = None,
    use_consistent_padding: bool = False,
    *,
    feature_group_count: int = 1,
    implementation: str | ConvImplementation = "auto",
) -> Array:
    """Transposed convolution: a drop-in for `jax.lax.conv_transpose`, with groups.

    With stride s, and a kernel of k taps that span k' = (k - 1) d + 1 elements at dilation d, n inputs become

        (n - 1) s + max(k', s)               with padding "VALID"
        n s                                  with padding "SAME"
        (n - 1) s + 2 + low + high - k'      with pairs (low, high)
        (n - 1) s + k' - low - high          with pairs and `use_consistent_padding`

    PyTorch's `conv_transpose1d`, `2d` and `3d` (x, w, stride=s, padding=p, output_padding=o, groups=g, dilation=d) are,
    in two dimensions, for the same arrays,

        conv_transpose(x, w, (s, s), [(p, p - o)] * 2, (d, d), ("NCHW", "OIHW", "NCHW"), transpose_kernel=True,
                       use_consistent_padding=True, feature_group_count=g)

    or with [(k' - 1 - p, k' - 1 - p + o)] * 2 and without `use_consistent_padding`: p is the padding of the convolution
    that is transposed, so the output is cropped by it, and by o less at the end (PyTorch's `output_padding`). Keras's
    `Conv2DTranspose` is `transpose_kernel=True` with "SAME" or "VALID".

    Args:
      lhs: input, rank 2 + n for n spatial axes, real or complex floating point.
      rhs: kernel, of the same rank and dtype.
      strides: n positive ints, by which the output is upsampled.
      padding: "SAME", "VALID" or n (low, high) pairs. A string is the padding of the convolution that is transposed.
        Pairs pad the input once it is dilated, so that k' - 1 crops nothing, and a larger `high` than `low` is what
        others call output padding.
      rhs_dilation: None or n positive ints; the distance between neighbouring kernel taps.
      dimension_numbers: None for batch, *space, channel (kernel: *space, channel, feature), which is not the default of
        `conv_general_dilated`; three strings such as ("NCHW", "OIHW", "NCHW"); or a `lax.ConvDimensionNumbers`.
      transpose_kernel: whether `rhs` is the kernel of the convolution that is transposed: it is flipped along its
        spatial axes and its channels are swapped, so that its features are the input's channels. If not, `rhs` is
        applied as it is, as that of the convolution over the dilated input.
      precision: of the products, as `lax` takes it.
      preferred_element_type: dtype to accumulate in and return; None for that of the operands.
      use_consistent_padding: whether pairs, too, are the padding of the convolution that is transposed.
      feature_group_count: number of groups of input channels, each with its own output features. With
        `transpose_kernel` it is that of the convolution that is transposed.
      implementation: one of `CONV_IMPLEMENTATIONS` or what `conv_implementation` gave.

    Returns:
      The output; its axes are as `dimension_numbers` says.

    Raises:
      InputError: an argument is out of range or does not agree with the shapes, or `implementation` is unknown.
      TypeError: integer operands, operands of two dtypes, or a `preferred_element_type` that cannot hold the result.
    """
    lhs, rhs = as_array("lhs", lhs), as_array("rhs", rhs)
    kernel, arguments = as_dilated_convolution(
        lhs,
        rhs,
        strides,
        padding,
        rhs_dilation,
        dimension_numbers,
        transpose_kernel,
        use_consistent_padding,
        feature_group_count,
    )
    return conv_general_dilated(
        lhs,
        kernel,
        **arguments,
        precision=precision,
        preferred_element_type=preferred_element_type,
        implementation=implementation,
    )


def as_dilated_convolution(
    lhs: Array,
    rhs: Array,
    strides: Sequence[int],
    padding: str | Sequence[sizes.Pair],
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    transpose_kernel: bool = False,
    use_consistent_padding: bool = False,
    feature_group_count: int = 1,
) -> tuple[Array, dict[str, Any]]:
    """The convolution that a transposed convolution is, for any function with `lax.conv_general_dilated`'s signature.

        kernel, arguments = as_dilated_convolution(lhs, rhs, strides, padding)
        y = conv(lhs, kernel, **arguments)

    Args:
      lhs, ..., feature_group_count: as `conv_transpose` takes them; only the rank and channels of `lhs` are looked at.

    Returns:
      The kernel, and the other arguments by name: `window_strides`, all 1; `padding`, pairs; `lhs_dilation`,
      `rhs_dilation`, `dimension_numbers` and `feature_group_count`.

    Raises:
      InputError: as `conv_transpose`, for what it has to look at; the convolution checks the rest.
    """
    if dimension_numbers is None:
        dimension_numbers = channels_last_numbers(lhs.ndim - 2)
    layout = dimension_numbers_of(dimension_numbers, lhs.shape, rhs.shape)
    axes = lhs.ndim - 2
    strides = sizes.per_axis("strides", strides, axes)
    rhs_dilation = sizes.per_axis("rhs_dilation", (1,) * axes if rhs_dilation is None else rhs_dilation, axes)
    spans = [sizes.dilated(rhs.shape[axis], d) for axis, d in zip(layout.rhs_spec[2:], rhs_dilation, strict=True)]
    if transpose_kernel:
        rhs = _transposed_kernel(rhs, layout.rhs_spec, lhs.shape[layout.lhs_spec[1]], feature_group_count)
    return rhs, {
        "window_strides": (1,) * axes,
        "padding": _padding(padding, spans, strides, use_consistent_padding),
        "lhs_dilation": strides,
        "rhs_dilation": rhs_dilation,
        "dimension_numbers": layout,
        "feature_group_count": feature_group_count,
    }


def _padding(
    padding: str | Sequence[sizes.Pair], spans: Sequence[int], strides: Sequence[int], consistent: bool
) -> tuple[sizes.Pair, ...]:
    """The (low, high) padding of the dilated input along each axis."""
    if isinstance(padding, str):
        forward = tuple(_named_padding(padding, *axis) for axis in zip(spans, strides, strict=True))
    else:
        forward = _pairs(padding, len(spans))
        if not consistent:
            return forward
    # Padded by k - 1 the input has every window that meets any of it; the padding that is transposed crops the output.
    return tuple((k - 1 - low, k - 1 - high) for k, (low, high) in zip(spans, forward, strict=True))


def _named_padding(name: str, span: int, stride: int) -> sizes.Pair:
    """The padding of the convolution, one axis of it, that has n windows on an input of the transposed one's output.

    n windows cover (n - 1) stride + span elements. An input of n stride elements ("SAME") lacks span - stride of them;
    where that is negative, it has so many at its end that no window reads, and those count as padding below zero. With
    "VALID" the input is never too short.
    """
    if name == "VALID":
        return 0, min(span - stride, 0)
    if name == "SAME":
        low = max(span - stride, 0) // 2
        return low, span - stride - low
    raise unknown("padding", name, ("SAME", "VALID"))  # "same" would mean something else to lax at stride 1


def _pairs(padding: Sequence[sizes.Pair], axes: int) -> tuple[sizes.Pair, ...]:
    try:
        return sizes.padding_pairs(padding, (1,) * axes, (1,) * axes, (1,) * axes)
    except InputError:
        raise InputError(
            f"padding must be 'SAME', 'VALID' or a (low, high) pair of ints for each of {axes} axes: got {padding!r}"
        ) from None


def _transposed_kernel(rhs: Array, spec: Sequence[int], channels: int, groups: int) -> Array:
    """The kernel flipped along its spatial axes, its channels and features swapped within each group.

    Args:
      rhs: that of the convolution, with C features in `groups` groups and F channels in each.
      spec: where its axes (feature, channel, *space) are.
      channels: C, the channels of the transposed convolution's input.
      groups: how many groups.

    Returns:
      That of the transposed convolution: groups F features, and C / groups channels, in place of them.
    """
    feature, channel, *space = spec
    features = rhs.shape[feature]
    if features != channels:
        raise InputError(
            "rhs must have as many output features as lhs has channels where transpose_kernel is true: "
            f"got {features}, allowed: {channels}"
        )
    if not isinstance(groups, numbers.Integral) or groups < 1 or features % groups:
        raise InputError(
            f"feature_group_count must be a positive integer that divides the {features} output features of rhs: "
            f"got {groups!r}"
        )
    w = jnp.moveaxis(jnp.flip(rhs, space), (feature, channel), (0, 1))  # [C, F, *tap]
    w = w.reshape(groups, channels // groups, *w.shape[1:]).swapaxes(1, 2)  # [group, F, C / groups, *tap]
    return jnp.moveaxis(lax.collapse(w, 0, 2), (0, 1), (feature, channel))
