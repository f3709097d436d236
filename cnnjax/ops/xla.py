"""XLA's own convolution."""

import jax.numpy as jnp
from jax import Array, lax
from jax.export import is_symbolic_dim

from cnnjax.ops.conv_spec import ConvSpec
from cnnjax.ops.layout import accumulator_dtype


def conv_xla(lhs: Array, rhs: Array, spec: ConvSpec) -> Array:
    """`lax.conv_general_dilated` with the arguments that `spec` describes."""
    if jnp.iscomplexobj(lhs):  # of which `lax` makes real convolutions of the operands' width
        dtype = accumulator_dtype(lhs, spec)
        lhs, rhs = lhs.astype(dtype), rhs.astype(dtype)
    padding = spec.padding
    if any(is_symbolic_dim(n) for pair in padding for n in pair):  # "SAME" with a stride; lax takes numbers alone
        edges = [(0, 0, 0)] * lhs.ndim
        for axis, (low, high) in zip(spec.dimension_numbers.lhs_spec[2:], padding, strict=True):
            edges[axis] = (low, high, 0)
        lhs, padding = lax.pad(lhs, jnp.zeros((), lhs.dtype), edges), ((0, 0),) * len(padding)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        spec.window_strides,
        padding,
        lhs_dilation=spec.lhs_dilation,
        rhs_dilation=spec.rhs_dilation,
        dimension_numbers=spec.dimension_numbers,
        feature_group_count=spec.feature_group_count,
        batch_group_count=spec.batch_group_count,
        precision=spec.precision,
        preferred_element_type=spec.preferred_element_type,
    )
