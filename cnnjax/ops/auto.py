"""The convolution that is fastest for the backend, the dtype and the shape, and safe in loops and under sharding.

What there is to choose from is in `cnnjax.ops.dense` and `cnnjax.ops.folded`; what is chosen, in `cnnjax.ops.table`.
Choices are made while a function is traced, from what is known then: shapes, dtypes and `jax.default_backend()`, or the
backend that `compiling_for` names.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Generator

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.export import is_symbolic_dim

from cnnjax.ops import dense, table, winograd
from cnnjax.ops.bilinear import bilinear
from cnnjax.ops.conv_spec import ConvSpec, channels_last_numbers
from cnnjax.ops.dense import Geometry
from cnnjax.ops.folded import by_folding, kernel_by_folding
from cnnjax.ops.group import by_group, depthwise, is_depthwise, one_group
from cnnjax.ops.layout import (
    accumulator_dtype,
    channels_last,
    input_by_group,
    kernel_by_group,
    output,
    result_dtype,
    to_output,
)
from cnnjax.ops.xla import conv_xla

_COMPILING_FOR: contextvars.ContextVar[str | None] = contextvars.ContextVar("compiling_for", default=None)


@contextlib.contextmanager
def compiling_for(backend: str) -> Generator[None]:
    """`auto` chooses as on `backend` ("cpu", "gpu", "tpu"): for compiling on one machine what another will run."""
    token = _COMPILING_FOR.set(backend)
    try:
        yield
    finally:
        _COMPILING_FOR.reset(token)


def conv_auto(lhs: Array, rhs: Array, spec: ConvSpec) -> Array:
    """The convolution that `spec` describes: see the module.

    On CPU it is computed channels last, in float32 at least; on other backends it is XLA's, but that a grouped
    convolution becomes dense ones, since XLA gathers the whole batch for it where the batch is sharded.
    """
    if is_whole_window(lhs, rhs, spec):
        return whole_window(lhs, rhs, spec)
    if 0 in (*lhs.shape, *rhs.shape, *spec.output_space):
        return by_group(convolve, lhs, rhs, spec)  # which has nothing to compute
    if len(spec.output_space) not in (1, 2, 3) or jnp.issubdtype(lhs.dtype, jnp.complexfloating):
        return conv_xla(lhs, rhs, spec)
    if any(map(is_symbolic_dim, spec.output_space)):  # there is nothing to choose by
        return conv_xla(lhs, rhs, spec)
    on_cpu = (_COMPILING_FOR.get() or jax.default_backend()) == "cpu"
    if not on_cpu and not is_grouped(lhs, spec):
        return conv_xla(lhs, rhs, spec)
    if is_depthwise(lhs, spec):
        return depthwise(lhs, rhs, spec)
    result = result_dtype(lhs, spec)
    dtype = accumulator_dtype(lhs, spec) if on_cpu else lhs.dtype
    lhs, rhs = lhs.astype(dtype), rhs.astype(dtype)
    one = functools.partial(one_group, convolve) if on_cpu else one_group_by_xla
    groups = max(spec.feature_group_count, spec.batch_group_count)
    if on_cpu and groups > MANY_GROUPS:
        y = lax.map(lambda pair: one(*pair, spec), (input_by_group(lhs, spec), kernel_by_group(rhs, spec)))
        return output(y, spec).astype(result)
    x, w = channels_last(lhs, rhs, spec)
    xs = jnp.split(x, groups, axis=-1 if spec.feature_group_count > 1 else 0)
    ws = jnp.split(w, groups, axis=-1)
    y = jnp.concatenate([one(*pair, spec) for pair in zip(xs, ws, strict=True)], axis=-1)
    return to_output(y, spec).astype(result)


MANY_GROUPS = 8
"""How many groups are at most compiled one by one on CPU; of more there is one, in a loop.

ResNeXt-50, of 32 groups, compiles seven times faster so, with gradients five times. A training step takes as long, a
forward pass up to a sixth longer, since the loop takes its groups from an axis of their own.
"""


def is_grouped(lhs: Array, spec: ConvSpec) -> bool:
    """Whether there are groups of several channels each, or of the batch."""
    channels = lhs.shape[spec.dimension_numbers.lhs_spec[1]]
    return 1 < spec.feature_group_count < channels or spec.batch_group_count > 1


def one_group_by_xla(x: Array, w: Array, spec: ConvSpec) -> Array:
    """The same convolution of one group, of [batch, *space, channel] by [*tap, channel, feature], as XLA's."""
    numbers = channels_last_numbers(len(spec.output_space))
    return conv_xla(
        x, w, dataclasses.replace(spec, dimension_numbers=numbers, feature_group_count=1, batch_group_count=1)
    )


def convolve(x: Array, w: Array, g: Geometry) -> Array:
    """y of `cnnjax.ops.dense`, for the gradients too by the methods that the table names."""
    names = table.methods(x, w, g)
    return by_winograd(x, w, g) if names.forward == "winograd" else _methods(names)(x, w, g)


def by_winograd(x: Array, w: Array, g: Geometry) -> Array:
    """y by minimal filtering; JAX derives gradients that share its transforms."""
    tiles = [winograd.choose_tile(p, k, x.dtype) for p, k in zip(g.outputs, g.taps, strict=True)]
    y = winograd.correlate(dense.pad(x, g.padding)[None], w[None], g.outputs, tiles, g.precision)
    return y[0]


@functools.cache
def _methods(names: table.Methods) -> dense.Convolution:
    """The convolution with the given ways to compute it, its input's gradient and its kernel's."""
    return bilinear(FORWARD[names.forward], INPUT[names.input], KERNEL[names.kernel], names.keep)


FORWARD = {"xla": dense.by_xla, "patches": dense.by_patches, "folded": by_folding}
INPUT = {name: dense.input_gradient(convolution) for name, convolution in FORWARD.items()}
KERNEL = {"xla": dense.kernel_by_xla, "patches": dense.kernel_by_patches, "folded": kernel_by_folding}


# --- A kernel over the whole input ------------------------------------------------------------------------------------


def is_whole_window(lhs: Array, rhs: Array, spec: ConvSpec) -> bool:
    """Whether there is one window, which is the input as it stands: C5 of LeNet-5, and dense layers as convolutions."""
    space = [lhs.shape[axis] for axis in spec.dimension_numbers.lhs_spec[2:]]
    return (
        space == [rhs.shape[axis] for axis in spec.dimension_numbers.rhs_spec[2:]]
        and spec.feature_group_count == spec.batch_group_count == 1
        and all(pair == (0, 0) for pair in spec.padding)
        and all(d == 1 for d in (*spec.lhs_dilation, *spec.rhs_dilation))
    )


def whole_window(lhs: Array, rhs: Array, spec: ConvSpec) -> Array:
    """y[n, f] = sum over channels and taps of x[n, c, k] w[f, c, k].

    As a convolution XLA computes its gradient on CPU with the whole kernel at every position of a padded input, k^2
    times the arithmetic.
    """
    summed, taps = spec.dimension_numbers.lhs_spec[1:], spec.dimension_numbers.rhs_spec[1:]  # channels, then space
    y = lax.dot_general(
        lhs,
        rhs,
        ((summed, taps), ((), ())),
        precision=spec.precision,
        preferred_element_type=accumulator_dtype(lhs, spec),
    )  # [n, f]
    out_batch, out_feature, *out_space = spec.dimension_numbers.out_spec
    if out_batch > out_feature:
        y = y.T
    return lax.expand_dims(y.astype(result_dtype(lhs, spec)), out_space)
