"""Pooling by the p-norm of each window: the sum of magnitudes at p = 1, their maximum in the limit of large p."""

import math
import numbers
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from cnnjax.ops import primitives
from cnnjax.ops.dtypes import accumulator
from cnnjax.ops.errors import InputError, as_array
from cnnjax.ops.pool import max_pool, reduce_windows
from cnnjax.ops.pool_spec import pool_spec
from cnnjax.ops.windows import windows


@jax.named_scope("cnnjax_lp_pool")
def lp_pool(
    inputs: ArrayLike,
    p: float,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    window_dilation: Sequence[int] | None = None,
) -> Array:
    """The p-norm of each window, each channel by itself:

        y = (sum over the window of |x|^p)^(1/p),    or the maximum of |x| for p = inf.

    It is a sum, not a mean: divide by (elements of the window)^(1/p) for the power mean, which p = 1 makes the average
    of magnitudes. PyTorch's `lp_pool2d` sums x^p instead of |x|^p, which is the same for even p and for inputs that are
    not negative; for odd p its terms cancel and its root of a negative sum is NaN. The paper weights the window with a
    Gaussian; here all weights are 1.

    Numbers are divided by the largest of their window before the power is taken, so that no p overflows or underflows.
    Where there is no derivative, in a window of zeros and at p = 1 at each zero, the gradient is zero. The gradient of
    p = inf goes to the first maximum of |x|.

    Source: Sermanet, Chintala and LeCun, "Convolutional neural networks applied to house numbers digit
    classification", arXiv:1204.3968, section 2.2.

    Args:
      inputs: [..., *space, channel], with as many spatial axes as `window_shape` has entries and any number of axes, or
        none, before them; real or integer.
      p: a Python number, 1 or more; `math.inf` for the maximum.
      window_shape: size of the window along each spatial axis.
      strides: distance between neighbouring windows along each; 1 by default.
      padding: "VALID", "SAME", "SAME_LOWER" or a (low, high) pair for each; what is added is zero.
      window_dilation: distance between neighbouring elements of a window along each; 1 by default.

    Returns:
      [..., *space, channel], of the dtype of `inputs`, or the default float for integers. bfloat16 and float16 are
      summed in float32. A window with nothing but padding gives 0.

    Raises:
      InputError: an argument is out of range or does not agree with the shape of `inputs`.
      TypeError: boolean or complex inputs.
    """
    inputs = as_array("inputs", inputs)
    if inputs.dtype == jnp.bool_ or jnp.issubdtype(inputs.dtype, jnp.complexfloating):
        raise TypeError(f"inputs must hold real numbers: got {inputs.dtype}")
    if not isinstance(p, numbers.Real) or not p >= 1:
        raise InputError(f"p must be a number, 1 or more, or math.inf: got {p!r}")
    spec = pool_spec(inputs.shape, window_shape, strides, padding, window_dilation)
    result = inputs.dtype if jnp.issubdtype(inputs.dtype, jnp.inexact) else jnp.result_type(float)
    x = inputs.astype(accumulator(result))
    if p == math.inf:
        largest = max_pool(_magnitude(x), window_shape, strides, padding, window_dilation)
        return jnp.where(largest == -jnp.inf, 0, largest).astype(result)  # the maximum of nothing
    if primitives.wanted():
        total = reduce_windows(_power_of_magnitude(x, p), spec, np.zeros((), x.dtype), lax.add)
        return (total ** (1 / p)).astype(result)

    taps = windows(x, spec)  # [tap, ..., *output_space, channel]
    # The norm is scale * norm(taps / scale) whatever the scale, so no derivative goes through it.
    largest = lax.stop_gradient(jnp.max(jnp.abs(taps), axis=0))
    scale = jnp.where((largest > 0) & (largest < jnp.inf), largest, 1)
    ratio = lax.optimization_barrier(taps / scale[None])  # or XLA may square numerator and denominator after all
    total = jnp.sum(_power_of_magnitude(ratio, p), axis=0)
    # Both branches of a select are differentiated, and the root has no finite derivative at 0.
    root = jnp.where(total == 0, 0, jnp.where(total == 0, 1, total) ** (1 / p))
    return (scale * root).astype(result)


def _power_of_magnitude(x: Array, p: float) -> Array:
    """|x|^p, for even p without the kink of the magnitude at 0, where second derivatives would be lost."""
    if p == int(p):
        return x ** int(p) if p % 2 == 0 else _magnitude(x) ** int(p)
    return _magnitude(x) ** p


def _magnitude(x: Array) -> Array:
    """|x| with derivative 0 at 0, where that of `jnp.abs` is 1."""
    return x * jnp.sign(x)
