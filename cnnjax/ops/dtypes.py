"""Which dtype to sum in."""

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


def accumulator(dtype: DTypeLike) -> np.dtype:
    """The dtype in which numbers of an inexact `dtype` are summed: float32 for all that are narrower."""
    return jnp.dtype(jnp.float32) if jnp.dtype(dtype).itemsize < 4 else jnp.dtype(dtype)
