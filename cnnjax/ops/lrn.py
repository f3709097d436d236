"""Local response normalization: lateral inhibition between neighbouring channels."""

import numbers

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from cnnjax.ops.dtypes import accumulator
from cnnjax.ops.errors import InputError, as_array


@jax.named_scope("cnnjax_local_response_norm")
def local_response_norm(x: ArrayLike, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> Array:
    """Each channel divided by a power of the energy of the channels around it, at each position by itself.

    With N channels, and n/2 rounded down,

        b[i] = a[i] / (k + alpha * sum over j from max(0, i - n/2) to min(N - 1, i + n/2) of a[j]^2)^beta.

    That is the paper's formula, and its constants. An odd n sums n channels; an even one, by the same formula, n + 1.
    Other libraries, for odd n:

        PyTorch, Caffe and cuda-convnet divide alpha by n: pass `alpha=alpha / n`. PyTorch's and Caffe's k is 1 by
        default (Caffe's trained AlexNet and GoogLeNet: size=5, k=1, alpha=1e-4 / 5, beta=0.75);
        TensorFlow does not divide, and takes n/2 as `depth_radius` and k as `bias`.

    Source: Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural networks", NIPS
    2012, section 3.3.

    Args:
      x: [..., channel], real floating point; after the ReLU, in AlexNet.
      size: n, how many neighbouring channels are summed.
      k: what keeps the denominator from zero; positive.
      alpha: weight of the sum; not negative.
      beta: exponent; not negative.

    Returns:
      An array like `x`. bfloat16 and float16 are computed in float32.

    Raises:
      InputError: `size`, `k`, `alpha` or `beta` is out of range, or `x` is a scalar.
      TypeError: `x` does not hold real floating-point numbers.
    """
    x = as_array("x", x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must hold real floating-point numbers: got {x.dtype}")
    if x.ndim == 0:
        raise InputError("x must have a last axis of channels: got a scalar")
    _check_constants(size, k, alpha, beta)
    a = x.astype(accumulator(x.dtype))
    energy = _sum_of_neighbours(a * a, size // 2)
    return (a * (k + alpha * energy) ** -beta).astype(x.dtype)


def _sum_of_neighbours(x: Array, radius: int) -> Array:
    """y[..., i] = sum of x[..., j] over |j - i| <= radius, as far as there are channels."""
    channels = x.shape[-1]
    radius = min(radius, max(0, channels - 1))  # there is nobody further away
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(radius, radius)])
    # Few slices, not a running sum whose differences would lose digits.
    return sum(
        (lax.slice_in_dim(padded, i, i + channels, axis=-1) for i in range(2 * radius + 1)), start=jnp.zeros_like(x)
    )


def _check_constants(size: int, k: float, alpha: float, beta: float) -> None:
    if not isinstance(size, numbers.Integral) or size < 1:
        raise InputError(f"size must be a positive integer: got {size!r}")
    if not isinstance(k, numbers.Real) or not k > 0:
        raise InputError(f"k must be a positive number: got {k!r}")
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not isinstance(value, numbers.Real) or not value >= 0:
            raise InputError(f"{name} must be a number, 0 or more: got {value!r}")
