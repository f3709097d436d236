"""Upsampling by transposed convolution."""

import numbers

import numpy as np

from cnnjax.ops.errors import InputError


def bilinear_kernel(factor: int, channels: int | None = None, *, depthwise: bool = False) -> np.ndarray:
    """The kernel with which a transposed convolution of stride `factor` interpolates bilinearly.

    A separable tent of k = 2 factor - factor % 2 taps a side, as wide as two steps of the coarse grid: along each axis

        w[i] = 1 - |i - (k - 1)/2| / factor,    for factor 2:  1/4 3/4 3/4 1/4.

    Every output is then a mean of its up to four nearest inputs, weighted by nearness: the weights sum to 1 everywhere
    but in a border of the output, where inputs are missing and count as zero. For an x of shape [batch, height, width,
    channel] and m = k - 1 - factor // 2,

        lax.conv_general_dilated(x, bilinear_kernel(factor, channel), (1, 1), [(m, m)] * 2,
                                 lhs_dilation=(factor, factor), dimension_numbers=("NHWC", "HWIO", "NHWC"))

    is `factor` times as large as x, and each pixel's tent stands over the middle of its factor x factor block, as in
    `jax.image.resize` and in PyTorch's `interpolate(align_corners=False)`. FCN instead pads k - 1 on each side
    (`lax.conv_transpose` with padding "VALID") and crops at an offset.

    FCN's kernels of 4, 16, 32 and 64 taps are those of factors 2, 8, 16 and 32. In the paper the last layer is fixed to
    them, and those before start from them.

    Source: Long, Shelhamer and Darrell, "Fully convolutional networks for semantic segmentation", CVPR 2015, section
    3.3.

    Args:
      factor: how many times larger the output is along each axis, which is the transposed convolution's stride.
      channels: number C of channels, or None for the two-dimensional tent alone.
      depthwise: whether the kernel is for a convolution with `feature_group_count=channels`, without the zeros between
        different channels.

    Returns:
      A NumPy array, float64: [k, k] without `channels`, and with it [k, k, C, C], each channel to itself and zero
      elsewhere, or [k, k, 1, C] with `depthwise`.

    Raises:
      InputError: `factor` or `channels` is not a positive integer, or `depthwise` comes without `channels`.
    """
    factor = int(factor) if isinstance(factor, numbers.Integral) else factor  # NumPy's small integers overflow
    if not isinstance(factor, numbers.Integral) or factor < 1:
        raise InputError(f"factor must be a positive integer: got {factor!r}")
    if channels is None and depthwise:
        raise InputError("channels must be a positive integer where depthwise is true: got None")
    if channels is not None and (not isinstance(channels, numbers.Integral) or channels < 1):
        raise InputError(f"channels must be None or a positive integer: got {channels!r}")
    size = 2 * factor - factor % 2
    tent = 1 - np.abs(np.arange(size) - (size - 1) / 2) / factor
    tent = np.outer(tent, tent)  # [k, k]
    if channels is None:
        return tent
    return tent[:, :, None, None] * (np.ones((1, channels)) if depthwise else np.eye(channels))
