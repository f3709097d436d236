"""How exact a convolution is: operands in which digits are lost in different ways, and the error that they make."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cnnjax.ops import reference

UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}

KINDS = ("normal", "dynamic range", "one large", "last tap")


def operands(kind: str, axes: int, channels: int, size: int, taps: int = 3, dtype: Any = "float32") -> list[Array]:
    """An input [3, channel, *space] of that size along each axis, and a kernel [2, channel, *tap]."""
    rng = np.random.default_rng(0)
    lhs, rhs = (3, channels, *(size,) * axes), (2, channels, *(taps,) * axes)
    if kind == "normal":
        x, w = rng.normal(size=lhs), rng.normal(size=rhs)
    elif kind == "dynamic range":
        x, w = (rng.normal(size=s) * 10.0 ** rng.uniform(-4, 4, s) for s in (lhs, rhs))
    elif kind == "one large":
        x, w = 1e-3 * rng.normal(size=lhs), rng.normal(size=rhs)
        x[:, :, 9] = 1e4
    else:  # "last tap": outputs as large as they can be, and large signs that cancel in Winograd's transforms
        x, w = rng.uniform(0.9, 1, lhs) * rng.choice([-1, 1], lhs), np.zeros(rhs)
        w[(..., *(-1,) * axes)] = rng.uniform(0.5, 1, rhs[:2])
    return [jnp.asarray(a, dtype) for a in (x, w)]


def worst_error(convolve: Callable[..., Array], x: Array, w: Array) -> float:
    """The largest error of an output of a valid convolution, as a multiple of max|x| S.

    S is the largest sum of |w| over the taps and channels of one output feature.
    """
    arguments = ((1,) * (x.ndim - 2), "VALID")
    x64, w64 = np.asarray(x, np.float64), np.asarray(w, np.float64)
    exact = reference.conv_general_dilated(x64, w64, *arguments)
    y = jax.jit(lambda x, w: convolve(x, w, *arguments))(x, w)
    assert y.dtype == x.dtype
    scale = np.abs(x64).max() * np.abs(w64).sum(axis=tuple(range(1, w.ndim))).max()
    return float(np.abs(np.asarray(y, np.float64) - exact).max() / scale)
