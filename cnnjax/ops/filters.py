"""The filters of classical image processing, each channel by itself, and their kernels.

Every kernel here is written as a convolutional network applies it, as correlation: the number at the right of the
kernel multiplies the pixel at the right. In two dimensions, with the kernel h centred at (0, 0),

    correlate:  y[i, j] = sum over k, l of  u[i + k, j + l] h[k, l]      what this module, networks and `lax` do
    convolve:   y[i, j] = sum over k, l of  u[i - k, j - l] h[k, l]      true convolution: the kernel is flipped first

The two agree for kernels that a half turn leaves as they are. Textbooks that mean true convolution print the gradient
kernels flipped, such as [[1, 0, -1]] * 3 for `KERNELS["prewitt_x"]`.

The image is continued beyond its border as `mode` says, with the names of `scipy.ndimage` (whose default is ours too):

    "reflect"    d c b a | a b c d | d c b a      `jnp.pad` calls it "symmetric"
    "mirror"       d c b | a b c d | c b a        "reflect"
    "nearest"    a a a a | a b c d | d d d d      "edge"
    "wrap"       a b c d | a b c d | a b c d      "wrap"
    "constant"   0 0 0 0 | a b c d | 0 0 0 0      "constant": the zero padding of networks

Images are [..., height, width, channel]. Floating-point images keep their dtype; integers become the default float.
"""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from cnnjax.ops import sizes
from cnnjax.ops.conv import conv_general_dilated
from cnnjax.ops.dtypes import accumulator
from cnnjax.ops.errors import InputError, as_array, unknown
from cnnjax.ops.pool_spec import pool_spec
from cnnjax.ops.windows import windows

_MODES_OF_PAD = {
    "reflect": "symmetric",
    "mirror": "reflect",
    "nearest": "edge",
    "wrap": "wrap",
    "constant": "constant",
}
MODES: tuple[str, ...] = tuple(_MODES_OF_PAD)
"""How an image goes on beyond its border; see above."""

# A derivative and the smoothing across it, along one axis.
_DIFFERENCE, _SOBEL_SMOOTHING, _PREWITT_SMOOTHING = np.array([-1, 0, 1]), np.array([1, 2, 1]), np.array([1, 1, 1])


def _constant(values: Any) -> np.ndarray:
    array = np.array(values, np.float64)
    array.setflags(write=False)
    return array


KERNELS: dict[str, np.ndarray] = {
    name: _constant(rows)
    for name, rows in {
        "identity": [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
        "box": np.full((3, 3), 1 / 9),
        "plus": np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]) / 5,
        "binomial": np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16,
        "sharpen": [[0, -1, 0], [-1, 5, -1], [0, -1, 0]],
        "edges": [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]],
        "laplacian": [[0, 1, 0], [1, -4, 1], [0, 1, 0]],
        "emboss": [[-2, -1, 0], [-1, 1, 1], [0, 1, 2]],
        "sobel_y": np.outer(_DIFFERENCE, _SOBEL_SMOOTHING),
        "sobel_x": np.outer(_SOBEL_SMOOTHING, _DIFFERENCE),
        "prewitt_y": np.outer(_DIFFERENCE, _PREWITT_SMOOTHING),
        "prewitt_x": np.outer(_PREWITT_SMOOTHING, _DIFFERENCE),
    }.items()
}
"""3x3 kernels [height, width], float64, for correlation: to look at, and to put into a convolution
(`kernel[:, :, None, None]` is HWIO for one channel).

box: mean of the window. plus: mean of a pixel and its four neighbours. binomial: the smallest Gaussian. laplacian: sum
of the two second derivatives. sharpen: the image less its Laplacian. edges: each pixel against its eight neighbours.
emboss: relief, the image plus prewitt_y plus prewitt_x. sobel_y, prewitt_y: derivative along the height, positive where
the image gets brighter downwards. sobel_x, prewitt_x: along the width, positive where it gets brighter to the right.
"""


def box_kernel(size: int | Sequence[int]) -> np.ndarray:
    """The kernel of `box`: [height, width], equal numbers that sum to 1; float64.

    Args:
      size: a positive int for both sides, or one for each of height and width.

    Raises:
      InputError: `size` is anything else.
    """
    height, width = sizes.per_axis("size", size, 2, scalar=True)
    return np.full((height, width), 1 / (height * width))


def gaussian_kernel(sigma: float | Sequence[float], truncate: float = 4.0) -> np.ndarray:
    """The kernel of `gaussian`: [height, width], both odd, numbers that sum to 1; float64.

    Args:
      sigma, truncate: as `gaussian` takes them.

    Raises:
      InputError: as `gaussian`.
    """
    return np.outer(*_gaussian_profiles(sigma, truncate))


def correlate(image: ArrayLike, kernel: ArrayLike, mode: str = "reflect") -> Array:
    """Correlation with any kernel, each channel by itself: what networks call convolution.

        y[i, j] = sum over k, l of  u[i + k - height // 2, j + l - width // 2] h[k, l]

    with k and l counted from 0 and height and width those of the kernel, as `scipy.ndimage.correlate`.

    Args:
      image: [..., height, width, channel], real.
      kernel: [height, width], real; it is taken to the dtype of the image.
      mode: what is beyond the border; one of `MODES`.

    Returns:
      The filtered image, of the same shape. Sums are in float32 at least.

    Raises:
      InputError: a shape that is none of the above, or an unknown mode.
      TypeError: boolean or complex numbers.
    """
    image, kernel = _image(image), _kernel(kernel)
    before = [size // 2 for size in kernel.shape]
    return _correlate(_continued(image, kernel.shape, before, mode), kernel)


def convolve(image: ArrayLike, kernel: ArrayLike, mode: str = "reflect") -> Array:
    """True convolution with any kernel, each channel by itself: correlation with the kernel flipped along both axes.

        y[i, j] = sum over k, l of  u[i - k + height // 2, j - l + width // 2] h[k, l]

    with k and l counted from 0 and height and width those of the kernel, as `scipy.ndimage.convolve`. Arguments, result
    and errors are those of `correlate`.
    """
    image, kernel = _image(image), _kernel(kernel)
    before = [size - 1 - size // 2 for size in kernel.shape]  # flipped, the centre of an even side is one to the left
    return _correlate(_continued(image, kernel.shape, before, mode), kernel[::-1, ::-1])


def box(image: ArrayLike, size: int | Sequence[int] = 3, mode: str = "reflect") -> Array:
    """The mean of the window around each pixel: a low-pass filter.

    Args:
      image: [..., height, width, channel], real.
      size: of the window, a positive int for both sides or one for each of height and width. An even one reaches one
        pixel further up and left than down and right.
      mode: what is beyond the border; one of `MODES`.

    Returns:
      The filtered image, of the same shape; `scipy.ndimage.uniform_filter`.

    Raises:
      InputError, TypeError: as `correlate`, or `size` is not as above.
    """
    height, width = sizes.per_axis("size", size, 2, scalar=True)
    return _separable(image, np.full(height, 1 / height), np.full(width, 1 / width), mode)


def gaussian(image: ArrayLike, sigma: float | Sequence[float], truncate: float = 4.0, mode: str = "reflect") -> Array:
    """Smoothing with a Gaussian, sampled at the pixels, cut off and made to sum to 1.

    Args:
      image: [..., height, width, channel], real.
      sigma: standard deviation in pixels, a number for both axes or one for each of height and width; 0 leaves an axis
        as it is.
      truncate: how many standard deviations to each side the kernel reaches, rounded to whole pixels.
      mode: what is beyond the border; one of `MODES`.

    Returns:
      The filtered image, of the same shape; `scipy.ndimage.gaussian_filter`.

    Raises:
      InputError, TypeError: as `correlate`, or `sigma` or `truncate` is negative or not a finite number.
    """
    return _separable(image, *_gaussian_profiles(sigma, truncate), mode)


def sobel(image: ArrayLike, mode: str = "reflect") -> tuple[Array, Array]:
    """The gradient by Sobel's kernels: differences across a pixel, smoothed with weights 1, 2, 1.

    On a linear ramp it is 8 times the slope. `magnitude(*sobel(image))` is the strength of the edges.

    Args:
      image: [..., height, width, channel], real.
      mode: what is beyond the border; one of `MODES`.

    Returns:
      (vertical, horizontal), two arrays like the image: the derivative along the height, positive where the image gets
      brighter downwards, and that along the width, positive where it gets brighter to the right; `scipy.ndimage.sobel`
      along these axes.

    Raises:
      InputError, TypeError: as `correlate`.
    """
    return _gradient(image, _SOBEL_SMOOTHING, mode)


def prewitt(image: ArrayLike, mode: str = "reflect") -> tuple[Array, Array]:
    """The gradient by Prewitt's kernels: differences across a pixel, smoothed with weights 1, 1, 1.

    On a linear ramp it is 6 times the slope. Arguments, result and errors are those of `sobel`.
    """
    return _gradient(image, _PREWITT_SMOOTHING, mode)


def magnitude(vertical: ArrayLike, horizontal: ArrayLike) -> Array:
    """The length sqrt(vertical^2 + horizontal^2) of a gradient vector, with derivative zero where it is zero.

    Args:
      vertical, horizontal: the gradient's components, real arrays of one shape.

    Returns:
      An array of that shape, floating point; squares are taken in float32 at least.

    Raises:
      InputError: two shapes.
      TypeError: complex or boolean arrays.
    """
    parts = {"vertical": as_array("vertical", vertical), "horizontal": as_array("horizontal", horizontal)}
    for name, part in parts.items():
        if part.dtype == jnp.bool_ or jnp.issubdtype(part.dtype, jnp.complexfloating):
            raise TypeError(f"{name} must hold real numbers: got {part.dtype}")
    y, x = parts.values()
    if y.shape != x.shape:
        raise InputError(f"vertical and horizontal must have one shape: got {y.shape} and {x.shape}")
    result = jnp.result_type(y, x)
    result = result if jnp.issubdtype(result, jnp.inexact) else jnp.result_type(float)
    square = sum(jnp.square(part.astype(accumulator(result))) for part in (y, x))
    # Both branches of a select are differentiated, and the root has no finite derivative at 0.
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square))).astype(result)


def laplacian(image: ArrayLike, mode: str = "reflect") -> Array:
    """The sum of the second differences along height and width: the four neighbours less 4 times the pixel.

    Args:
      image: [..., height, width, channel], real.
      mode: what is beyond the border; one of `MODES`.

    Returns:
      The filtered image, of the same shape; `scipy.ndimage.laplace`.

    Raises:
      InputError, TypeError: as `correlate`.
    """
    return correlate(image, KERNELS["laplacian"], mode)


def sharpen(image: ArrayLike, amount: ArrayLike = 1.0, mode: str = "reflect") -> Array:
    """The image less `amount` times its Laplacian; with amount 1, correlation with `KERNELS["sharpen"]`.

    Args:
      image: [..., height, width, channel], real.
      amount: how much; 0 changes nothing.
      mode: what is beyond the border; one of `MODES`.

    Returns:
      The filtered image, of the same shape.

    Raises:
      InputError, TypeError: as `correlate`.
    """
    image = _image(image)
    amount = as_array("amount", amount)
    if jnp.issubdtype(amount.dtype, jnp.complexfloating):
        raise TypeError(f"amount must hold real numbers: got {amount.dtype}")
    return image - amount.astype(image.dtype) * laplacian(image, mode)


def emboss(image: ArrayLike, mode: str = "reflect") -> Array:
    """The image as a relief: itself plus both its Prewitt derivatives, lit from the lower right. Flat areas stay.

    Correlation with `KERNELS["emboss"]`, which is that of the GIMP manual ("Convolution Matrix").

    Args:
      image: [..., height, width, channel], real.
      mode: what is beyond the border; one of `MODES`.

    Returns:
      The filtered image, of the same shape.

    Raises:
      InputError, TypeError: as `correlate`.
    """
    return correlate(image, KERNELS["emboss"], mode)


def median(image: ArrayLike, size: int | Sequence[int] = 3, mode: str = "reflect") -> Array:
    """The median of the window around each pixel, which is not a linear filter: it drops specks and keeps edges.

    It holds all windows at once, the image as often as a window has pixels.

    Args:
      image: [..., height, width, channel], real.
      size: of the window, a positive int for both sides or one for each of height and width. An even one reaches one
        pixel further up and left than down and right; of an even number of pixels, the larger of the middle two counts.
      mode: what is beyond the border; one of `MODES`.

    Returns:
      The filtered image, of the same shape; `scipy.ndimage.median_filter`. The gradient goes to the pixel that is the
      median. NaN counts as larger than every number.

    Raises:
      InputError, TypeError: as `correlate`, or `size` is not as above.
    """
    image = _image(image)
    size = sizes.per_axis("size", size, 2, scalar=True)
    continued = _continued(image, size, [s // 2 for s in size], mode)
    taps = windows(continued, pool_spec(continued.shape, size, None, "VALID"))  # [tap, ..., height, width, channel]
    return jnp.sort(taps, axis=0)[len(taps) // 2]


def _image(image: ArrayLike) -> Array:
    """The image in floating point, once it has been looked at."""
    image = as_array("image", image)
    if image.dtype == jnp.bool_ or jnp.issubdtype(image.dtype, jnp.complexfloating):
        raise TypeError(f"image must hold real numbers: got {image.dtype}")
    if image.ndim < 3 or 0 in image.shape[-3:]:
        raise InputError(f"image must be [..., height, width, channel], none of these three 0: got shape {image.shape}")
    return image if jnp.issubdtype(image.dtype, jnp.inexact) else image.astype(jnp.result_type(float))


def _kernel(kernel: ArrayLike) -> Array:
    kernel = as_array("kernel", kernel)
    if kernel.dtype == jnp.bool_ or jnp.issubdtype(kernel.dtype, jnp.complexfloating):
        raise TypeError(f"kernel must hold real numbers: got {kernel.dtype}")
    if kernel.ndim != 2 or kernel.size == 0:
        raise InputError(f"kernel must be [height, width], neither of them 0: got shape {kernel.shape}")
    return kernel


def _continued(image: Array, window: Sequence[int], before: Sequence[int], mode: str) -> Array:
    """The image with `before` pixels above and to the left, and as many on the other sides as the window needs."""
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    around = [(low, size - 1 - low) for size, low in zip(window, before, strict=True)]
    return jnp.pad(image, [(0, 0)] * (image.ndim - 3) + [*around, (0, 0)], _MODES_OF_PAD[mode])


def _correlate(continued: Array, kernel: ArrayLike) -> Array:
    """y[..., i, j, c] = sum over k, l of u[..., i + k, j + l, c] h[k, l]: a depthwise convolution without padding."""
    *batch, height, width, channels = continued.shape
    kernel = jnp.asarray(kernel, continued.dtype)[:, :, None, None]  # HWIO
    y = conv_general_dilated(
        continued.reshape(math.prod(batch), height, width, channels),
        jnp.broadcast_to(kernel, (*kernel.shape[:3], channels)),
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
        precision=lax.Precision.HIGHEST,
    )
    return y.reshape(*batch, *y.shape[1:])


def _separable(image: ArrayLike, column: np.ndarray, row: np.ndarray, mode: str) -> Array:
    """Correlation with the outer product of two vectors, down the columns and then along the rows."""
    image = _image(image)
    window = (len(column), len(row))
    continued = _continued(image, window, [size // 2 for size in window], mode)
    return _correlate(_correlate(continued, column[:, None]), row[None, :])


def _gradient(image: ArrayLike, smoothing: np.ndarray, mode: str) -> tuple[Array, Array]:
    """The derivatives along height and width, each smoothed across."""
    return _separable(image, _DIFFERENCE, smoothing, mode), _separable(image, smoothing, _DIFFERENCE, mode)


def _gaussian_profiles(sigma: float | Sequence[float], truncate: float) -> tuple[np.ndarray, np.ndarray]:
    """The Gaussian along the height and along the width."""
    pair = sigma if isinstance(sigma, Sequence) else (sigma, sigma)
    if len(pair) != 2 or not all(map(_is_finite_and_not_negative, pair)):
        raise InputError(
            f"sigma must be a finite number, 0 or more, or one for each of height and width: got {sigma!r}"
        )
    if not _is_finite_and_not_negative(truncate):
        raise InputError(f"truncate must be a finite number, 0 or more: got {truncate!r}")
    height, width = (_gaussian_profile(s, truncate) for s in pair)
    return height, width


def _gaussian_profile(sigma: float, truncate: float) -> np.ndarray:
    radius = int(truncate * sigma + 0.5)
    x = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (x / sigma) ** 2) if radius else np.ones(1)  # a sigma of 0 has no pixel but its own
    return weights / weights.sum()


def _is_finite_and_not_negative(value: object) -> bool:
    return isinstance(value, numbers.Real) and 0 <= float(value) < math.inf
