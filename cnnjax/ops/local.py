"""Local convolution: windows as those of a convolution, but each output position has a kernel of its own.

Without the sharing of weights the layer no longer commutes with shifts of its input, and it has as many more weights as
there are positions. It suits inputs whose statistics depend on the place, such as aligned faces. Also called locally
connected or unshared convolution.
Source: LeCun, "Generalization and network design strategies", 1989, whose Net-3 and Net-4 compare the two; Taigman,
Yang, Ranzato and Wolf, "DeepFace", CVPR 2014.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from cnnjax.ops import layout, sizes
from cnnjax.ops.conv_spec import ConvSpec, conv_spec, dimension_numbers_of
from cnnjax.ops.errors import InputError, as_array
from cnnjax.ops.windows import seen_by


def conv_local(
    lhs: ArrayLike,
    rhs: ArrayLike,
    window_strides: Sequence[int],
    padding: str | Sequence[sizes.Pair],
    filter_shape: Sequence[int],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    precision: Any = None,
) -> Array:
    """Local (unshared) convolution: a drop-in for `jax.lax.conv_general_dilated_local`.

    In one dimension, with x the input after dilation and padding, w the kernels, s the stride and d their dilation,

        y[n, p, f] = sum over channels c and taps k of  x[n, p s + k d, c] w[p, (c, k), f].

    It is computed as one product of matrices for each position, with no convolution, so that loops (`lax.scan`) and
    gradients are as fast as anything else on CPU.

    Args:
      lhs: input, rank 2 + n for n spatial axes, real or complex floating point.
      rhs: kernels, of the same rank and dtype. Along the spatial axes are the output positions; the axis of input
        channels holds channels times taps, channel by channel, and in each the taps row by row in the order of the
        kernel's spatial axes. With "HWIO": [height, width of the output, (channel, height, width of the window),
        feature].
      window_strides: n positive ints, the distance between neighbouring windows.
      padding: "VALID", "SAME" or "SAME_LOWER", or n (low, high) pairs, applied after `lhs_dilation`; negative crops.
      filter_shape: n positive ints, how many taps the window has along each spatial axis, in the order of the kernel's
        axes.
      lhs_dilation: None or n positive ints; the distance between neighbouring input elements, with zeros between.
      rhs_dilation: None or n positive ints; the distance between neighbouring taps.
      dimension_numbers: as `conv_general_dilated` takes them; None for batch, channel, *space (kernel: feature,
        channel, *space).
      precision: of the products, as `lax` takes it.

    Returns:
      The output, of the operands' dtype; its axes are as `dimension_numbers` says. Sums are in float32 at least.

    Raises:
      InputError: an argument is out of range or does not agree with the shapes.
      TypeError: integer operands, or operands of two dtypes.
    """
    lhs, rhs = as_array("lhs", lhs), as_array("rhs", rhs)
    numbers = dimension_numbers_of(dimension_numbers, lhs.shape, rhs.shape)
    filter_shape = sizes.per_axis("filter_shape", filter_shape, lhs.ndim - 2)
    feature, channel, *space = numbers.rhs_spec
    # The shape of the kernel that would be shared. The window's axes stand in it as they stand in filter_shape.
    shared = list(rhs.shape)
    shared[channel] = lhs.shape[numbers.lhs_spec[1]]
    for axis, taps in zip(sorted(space), filter_shape, strict=True):
        shared[axis] = taps
    spec = conv_spec(
        lhs,
        jax.ShapeDtypeStruct(tuple(shared), rhs.dtype),
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        numbers,
        precision=precision,
    )
    w = lax.transpose(rhs, (*space, channel, feature))  # [*output_space, (channel tap), feature]
    allowed = (*spec.output_space, shared[channel] * math.prod(filter_shape))
    if w.shape[:-1] != allowed:
        raise InputError(
            "rhs must have the output positions along its spatial axes and channels times taps along that of input "
            f"channels: got {w.shape[:-1]}, allowed: {allowed}"
        )

    accumulator = layout.accumulator_dtype(lhs, spec)
    batch, channel, *axes = numbers.lhs_spec
    # Positions come first, so that neither operand of the product has to be moved, nor in its gradient.
    x = lax.transpose(lhs, (*axes, batch, channel))
    # In the accumulator's dtype and back: an element's gradient is a sum over the windows that see it.
    order = sorted(range(len(space)), key=space.__getitem__)  # of the spatial axes in filter_shape
    patches = _patches(x.astype(accumulator), filter_shape, order, spec).astype(lhs.dtype)
    y = jnp.einsum("...ni,...if->...nf", patches, w, precision=precision, preferred_element_type=accumulator)
    batch, feature, *space = numbers.out_spec
    return jnp.moveaxis(y, range(y.ndim), (*space, batch, feature)).astype(lhs.dtype)


def _patches(x: Array, filter_shape: Sequence[int], order: Sequence[int], spec: ConvSpec) -> Array:
    """What each window holds: [*output_space, batch, (channel tap)].

    Args:
      x: [*space, batch, channel], neither dilated nor padded.
      filter_shape: how many taps there are.
      order: along which spatial axis each of its entries is.
      spec: the convolution.
    """
    dilated = [(low, high, d - 1) for (low, high), d in zip(spec.padding, spec.lhs_dilation, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [*dilated, (0, 0, 0), (0, 0, 0)])
    for taps, axis in zip(filter_shape, order, strict=True):
        stride, dilation, outputs = spec.window_strides[axis], spec.rhs_dilation[axis], spec.output_space[axis]
        x = jnp.stack([seen_by(k * dilation, x, axis, stride, outputs) for k in range(taps)], axis=-1)
    return lax.collapse(x, len(order) + 1)  # channels, then taps
