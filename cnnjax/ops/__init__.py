"""Array operations, array in and array out: no parameters, no state, no Flax.

`conv_general_dilated`, `conv_transpose`, `conv_local`, `max_pool` and `avg_pool` are drop-ins for those of `jax.lax`
and `flax.linen`; the module `reference` holds convolution and pooling in NumPy, from their definitions, to test by.
`convolve` and `correlate` are those of signal processing; the module `filters` has the classical filters of images.
"""

from cnnjax.ops import filters, reference
from cnnjax.ops.adaptive_pool import adaptive_avg_pool, adaptive_max_pool
from cnnjax.ops.conv import CONV_IMPLEMENTATIONS, ConvImplementation, conv_general_dilated, conv_implementation
from cnnjax.ops.errors import InputError
from cnnjax.ops.global_pool import global_avg_pool, global_max_pool
from cnnjax.ops.local import conv_local
from cnnjax.ops.lp_pool import lp_pool
from cnnjax.ops.lrn import local_response_norm
from cnnjax.ops.matrix import convolution_matrix
from cnnjax.ops.pool import avg_pool, max_pool
from cnnjax.ops.signal import convolve, correlate
from cnnjax.ops.sizes import output_size
from cnnjax.ops.transposed import conv_transpose
from cnnjax.ops.unpool import max_pool_with_switches, max_unpool
from cnnjax.ops.upsample import bilinear_kernel

__all__ = [
    "CONV_IMPLEMENTATIONS",
    "ConvImplementation",
    "InputError",
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "avg_pool",
    "bilinear_kernel",
    "conv_general_dilated",
    "conv_implementation",
    "conv_local",
    "conv_transpose",
    "convolution_matrix",
    "convolve",
    "correlate",
    "filters",
    "global_avg_pool",
    "global_max_pool",
    "local_response_norm",
    "lp_pool",
    "max_pool",
    "max_pool_with_switches",
    "max_unpool",
    "output_size",
    "reference",
]
