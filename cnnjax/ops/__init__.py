"""Array operations, array in and array out: no parameters, no state, no Flax.

`conv_general_dilated`, `max_pool` and `avg_pool` are drop-ins for those of `jax.lax` and `flax.linen`; the module
`reference` holds the same three in NumPy, from their definitions, to test against.
"""

from cnnjax.ops import reference
from cnnjax.ops.conv import CONV_IMPLEMENTATIONS, conv_general_dilated, conv_implementation
from cnnjax.ops.errors import InputError
from cnnjax.ops.pool import avg_pool, max_pool
from cnnjax.ops.sizes import output_size

__all__ = [
    "CONV_IMPLEMENTATIONS",
    "InputError",
    "avg_pool",
    "conv_general_dilated",
    "conv_implementation",
    "max_pool",
    "output_size",
    "reference",
]
