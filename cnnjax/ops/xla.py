"""XLA's own convolution."""

from jax import Array, lax

from cnnjax.ops.conv_spec import ConvSpec


def conv_xla(lhs: Array, rhs: Array, spec: ConvSpec) -> Array:
    """`lax.conv_general_dilated` with the arguments that `spec` describes."""
    return lax.conv_general_dilated(
        lhs,
        rhs,
        spec.window_strides,
        spec.padding,
        lhs_dilation=spec.lhs_dilation,
        rhs_dilation=spec.rhs_dilation,
        dimension_numbers=spec.dimension_numbers,
        feature_group_count=spec.feature_group_count,
        batch_group_count=spec.batch_group_count,
        precision=spec.precision,
        preferred_element_type=spec.preferred_element_type,
    )
