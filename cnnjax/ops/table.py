"""Which method `auto` takes on CPU for which convolution.

Chosen by hand from timings of single convolutions and of whole training steps, in which what stands around a
convolution counts too; `python benchmarks/ops.py --tune` times the single ones again, and prints a table to compare.

A convolution belongs to the first class below that fits it; the table names, for each class, the functions of
`cnnjax.ops.dense` and `cnnjax.ops.folded` for its value, for the gradient of its input and for that of its kernel.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from cnnjax.ops.dense import Geometry
from cnnjax.ops.folded import FEW_CHANNELS


class Methods(NamedTuple):
    """The ways to compute a convolution and its gradients."""

    forward: str
    """"xla", "patches" or "folded"."""
    input: str
    """"xla", "patches" or "folded"."""
    kernel: str
    """"xla", "patches" or "folded"."""
    keep: bool = False
    """Whether the input and the output's gradient are kept in memory for the gradients (`cnnjax.ops.bilinear`)."""


CLASSES = {
    "pointwise": "one tap",
    "three taps": "3 taps along an axis, 3 or 1 along others, stride 1, at least 16 channels and features, not both 16",
    "five taps": "5 taps along one or two axes, 1 along the others, stride 1, 12 channels and 12 features or more",
    "narrow": "one input channel, or at most 36 numbers in a window",
    "few channels": "at most 15 input channels",
    "strided": "a stride of 2 or more, or a dilated kernel",
    "small": "at most 4 windows along an axis",
    "many channels": "everything else",
}

FLOAT32 = {
    "pointwise": Methods("xla", "xla", "patches"),
    "three taps": Methods("winograd", "winograd", "winograd"),
    "five taps": Methods("winograd", "winograd", "winograd"),
    "narrow": Methods("folded", "folded", "folded"),
    "few channels": Methods("folded", "folded", "xla"),
    "strided": Methods("xla", "xla", "patches", keep=True),
    "small": Methods("xla", "xla", "patches"),
    "many channels": Methods("xla", "xla", "xla", keep=True),
}

FLOAT64 = dict.fromkeys(CLASSES, Methods("patches", "patches", "patches"))
"""XLA's CPU backend has a fast convolution for float32 alone."""


def shape_class(w: Array, g: Geometry) -> str:
    """The name in `CLASSES` of a convolution by a kernel [*tap, channel, feature]."""
    channels, features = w.shape[-2:]
    if all(k == 1 for k in g.taps):
        return "pointwise"
    plain = all(n == 1 for n in (*g.strides, *g.dilation))
    if plain and set(g.taps) <= {1, 3} and min(channels, features) >= 16 and max(channels, features) > 16:
        return "three taps"
    if plain and set(g.taps) <= {1, 5} and g.taps.count(5) <= 2 and min(channels, features) >= 12:
        return "five taps"
    if channels == 1 or math.prod(g.taps) * channels <= 36:
        return "narrow"
    if channels <= FEW_CHANNELS:
        return "few channels"
    if not plain:
        return "strided"
    return "small" if min(g.outputs) <= 4 else "many channels"


LARGE = 2**30
"""Bytes of a matrix of patches beyond which it is not made."""


def methods(x: Array, w: Array, g: Geometry) -> Methods:
    """The methods for a convolution of [batch, *space, channel] by [*tap, channel, feature], float32 or float64.

    Winograd's costs digits (`cnnjax.ops.winograd`), so that it is not taken where `precision`, or
    `jax.default_matmul_precision`, asks for more than the default.
    """
    found = (FLOAT64 if w.dtype == jnp.float64 else FLOAT32)[shape_class(w, g)]
    if found.forward == "winograd":
        return found if is_default(g.precision) else FLOAT32["many channels"]
    of_an_example = math.prod(g.outputs) * math.prod(g.taps) * w.shape[-2] * w.dtype.itemsize
    examples = x.shape[0] if isinstance(x.shape[0], int) else 1  # it may be a symbol
    return Methods("xla", "xla", "xla", found.keep) if examples * of_an_example > LARGE else found


def is_default(precision: Any) -> bool:
    """Whether nobody asks for more digits than the backend's fastest products have."""
    if precision is None:
        precision = jax.config.jax_default_matmul_precision  # ty: ignore[missing-attribute]
    each = precision if isinstance(precision, tuple) else (precision,)
    return all(p in (None, lax.Precision.DEFAULT, "default", "fastest", "bfloat16") for p in each)
