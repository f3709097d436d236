"""Convolution as the matrix it multiplies by: a fully connected layer most of whose weights are zero, the rest shared.

A convolution of a given kernel is linear in its input, so there is a matrix M with y = M x for the flattened x and y.
In one dimension, one channel in and one out, the kernel w = (w0, w1, w2) on an input of 5 has

    M = | w0 w1 w2  0  0 |
        |  0 w0 w1 w2  0 |
        |  0  0 w0 w1 w2 |

with the same numbers along every diagonal: a Toeplitz matrix. Each row is one output, and holds the weights of the
fully connected unit that computes it: 3 of 5 are not zero, and all rows share them. Padding by 1 adds the rows
(w1 w2 0 0 0) and (0 0 0 w0 w1); stride 2 keeps every other row; a dilation of 2 puts a zero between the weights.

In two dimensions, with an input of 3x3 and a kernel of 2x2 whose rows are (a, b) and (c, d),

    M = | T0 T1  0 |        T0 = | a b 0 |        T1 = | c d 0 |
        |  0 T0 T1 |             | 0 a b |             | 0 c d |

is Toeplitz in its blocks, one for each row of the kernel, and each block is Toeplitz: doubly blocked. In three
dimensions the entries of that are blocks once more. With C channels in and F features out, each number is a block of
its own, F x C, the transpose of w[tap]: channels are the last axis of x and of y.

The transpose of M takes y back to the shape of x: it is the transposed convolution, and the gradient with respect to x.
Source: Goodfellow, Bengio and Courville, "Deep Learning", section 9.1; Dumoulin and Visin, "A guide to convolution
arithmetic for deep learning", arXiv:1603.07285, section 4.1.
"""

import math
import numbers
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from numpy.typing import ArrayLike

from cnnjax.ops import sizes
from cnnjax.ops.conv_spec import ConvSpec, channels_last_numbers, conv_spec
from cnnjax.ops.errors import InputError

if TYPE_CHECKING:
    import scipy.sparse


@overload
def convolution_matrix(
    kernel: ArrayLike,
    input_space: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[sizes.Pair] = "VALID",
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    feature_group_count: int = 1,
    *,
    sparse: Literal[False] = False,
) -> np.ndarray: ...


@overload
def convolution_matrix(
    kernel: ArrayLike,
    input_space: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[sizes.Pair] = "VALID",
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    feature_group_count: int = 1,
    *,
    sparse: Literal[True],
) -> "scipy.sparse.csr_array": ...


def convolution_matrix(
    kernel,
    input_space,
    strides=None,
    padding="VALID",
    lhs_dilation=None,
    rhs_dilation=None,
    feature_group_count=1,
    *,
    sparse=False,
):
    """The matrix M of a convolution: `M @ x.reshape(-1)` is `y.reshape(-1)` for one example x and its convolution y.

    Args:
      kernel: [*tap, channel, feature] with the input's channels divided by `feature_group_count`; numbers, not traced.
      input_space: spatial shape of x, which is [*space, channel].
      strides: distance between neighbouring windows along each spatial axis; 1 by default.
      padding: "VALID", "SAME", "SAME_LOWER" or a (low, high) pair for each, applied after `lhs_dilation`; negative
        crops. Pairs alone where `lhs_dilation` is not 1.
      lhs_dilation: distance between neighbouring input elements along each, with zeros between; 1 by default.
      rhs_dilation: distance between neighbouring kernel taps along each; 1 by default.
      feature_group_count: number of groups of input channels, each with its own features.
      sparse: whether M is a `scipy.sparse.csr_array`, which stores only the weights that meet the input; a dense M has
        prod(output_space) feature prod(space) channel numbers, nearly all of them zero.

    Returns:
      M, [prod(output_space) feature, prod(space) channel], of the kernel's dtype (float32 for bfloat16 and float16): a
      NumPy array or a `scipy.sparse.csr_array`. y is [*output_space, feature].

    Raises:
      InputError: an argument is out of its range or does not agree with the kernel's shape.
      TypeError: the kernel does not hold numbers.
    """
    kernel = _kernel(kernel)
    *tap_shape, group_channels, features = kernel.shape
    space = sizes.per_axis("input_space", input_space, len(tap_shape))
    strides = sizes.per_axis("strides", (1,) * len(space) if strides is None else strides, len(space))
    if not isinstance(feature_group_count, numbers.Integral) or feature_group_count < 1:
        raise InputError(f"feature_group_count must be a positive integer: got {feature_group_count!r}")
    channels = group_channels * feature_group_count
    spec = conv_spec(
        jax.ShapeDtypeStruct((1, *space, channels), jnp.float32),
        jax.ShapeDtypeStruct(kernel.shape, jnp.float32),
        strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        channels_last_numbers(len(space)),
        feature_group_count,
    )

    position, inside = _meetings(space, tuple(tap_shape), spec)  # [output, tap] each
    output, tap = np.nonzero(inside)
    position = position[output, tap]  # from here on, an entry for each tap that meets an input element
    feature = np.arange(features)
    # The first channel that a feature reads, then the rest of its group.
    channel = (feature // (features // feature_group_count) * group_channels)[None, :] + np.arange(group_channels)[
        :, None
    ]
    row = output[:, None, None] * features + feature  # [meeting, 1, feature]
    column = position[:, None, None] * channels + channel  # [meeting, channel, feature]
    weight = kernel.reshape(-1, group_channels, features)[tap]  # [meeting, channel, feature]
    row, column, weight = (a.reshape(-1) for a in np.broadcast_arrays(row, column, weight))

    shape = (math.prod(spec.output_space) * features, math.prod(space) * channels)
    if sparse:
        import scipy.sparse  # here alone: it is slow to import

        return scipy.sparse.csr_array((weight, (row, column)), shape=shape)
    matrix = np.zeros(shape, kernel.dtype)
    matrix[row, column] = weight
    return matrix


def _kernel(kernel: ArrayLike) -> np.ndarray:
    if isinstance(kernel, Tracer):
        raise TypeError("kernel must be numbers that are known, not traced: compute the matrix outside jit and grad")
    try:
        kernel = np.asarray(kernel)
    except ValueError:
        raise TypeError("kernel must be an array of numbers, not ragged") from None
    if not jnp.issubdtype(kernel.dtype, jnp.number):
        raise TypeError(f"kernel must hold numbers: got {kernel.dtype}")
    if kernel.ndim < 2 or 0 in kernel.shape:
        raise InputError(f"kernel must be [*tap, channel, feature], none of them 0: got shape {kernel.shape}")
    if jnp.issubdtype(kernel.dtype, jnp.floating) and kernel.dtype.itemsize < 4:
        return kernel.astype(np.float32)  # SciPy has no sparse arrays of half precision
    return kernel


def _meetings(space: tuple[int, ...], tap_shape: tuple[int, ...], spec: ConvSpec) -> tuple[np.ndarray, np.ndarray]:
    """Which input position each tap of each window meets, and whether it meets one at all: [output, tap] both.

    Along one axis, output p and tap k meet element p stride + k dilation - low of the dilated input. It is an element
    of the input, and not padding or one of the zeros between, if it is a multiple of the input's dilation and inside.
    """
    positions, insides = [], []
    for size, taps, stride, (low, _), between, dilation, outputs in zip(
        space,
        tap_shape,
        spec.window_strides,
        spec.padding,
        spec.lhs_dilation,
        spec.rhs_dilation,
        spec.output_space,
        strict=True,
    ):
        dilated = np.arange(outputs)[:, None] * stride + np.arange(taps) * dilation - low  # [output, tap]
        positions.append(dilated // between)
        insides.append((dilated % between == 0) & (positions[-1] >= 0) & (positions[-1] < size))
    # All axes together, flattened row by row: position = (position of the axes before) size + position of this one.
    position, inside = np.zeros((1, 1), int), np.ones((1, 1), bool)
    for size, along, inside_along in zip(space, positions, insides, strict=True):
        position = _each_with_each(np.add, position * size, along)
        inside = _each_with_each(np.logical_and, inside, inside_along)
    return position, inside


def _each_with_each(combine: np.ufunc, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """combine(a[p, k], b[q, l]) at [p q, k l], both flattened row by row."""
    both = combine(a[:, None, :, None], b[None, :, None, :])
    return both.reshape(len(a) * len(b), a.shape[1] * b.shape[1])
