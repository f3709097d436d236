"""Convolution as one matrix product: what each window sees becomes a row, the kernel a matrix.

With P[n p, k c] = x[n, p s + k d, c], a row for each window and a column for each tap and channel, y = P w. So is each
gradient: dw = P^T dy, and dx is a convolution of dy itself. P is as many times larger than the input as the windows
overlap.
Source: Chellapilla, Puri and Simard, "High Performance Convolutional Neural Networks for Document Processing", 2006.
"""

from jax import Array

from cnnjax.ops import dense
from cnnjax.ops.bilinear import bilinear
from cnnjax.ops.conv_spec import ConvSpec
from cnnjax.ops.group import by_group

_convolve = bilinear(dense.by_patches, dense.input_gradient(dense.by_patches), dense.kernel_by_patches)


def conv_im2col(lhs: Array, rhs: Array, spec: ConvSpec) -> Array:
    """The convolution that `spec` describes, as one matrix product for each group; arguments as for `conv_direct`."""
    return by_group(_convolve, lhs, rhs, spec)
