"""Folding columns into channels: the arrays by hand, values and gradients against the plain convolution."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.ops import dense, folded
from cnnjax.ops.dense import Geometry


def test_by_hand():
    """Two outputs at a time of a kernel of 3 taps: [1 2 3 0] gives the first, [0 1 2 3] the second."""
    g = Geometry((4,), (3,), (1,), ((1, 1),), (1,))
    x, w = jnp.arange(1.0, 5).reshape(1, 4, 1), jnp.arange(1.0, 4).reshape(3, 1, 1)
    within = folded.folded(g, 2)
    assert within == Geometry((3,), (2,), (1,), ((0, 0),), (1,))
    np.testing.assert_array_equal(folded.fold_input(x, g, 2)[0], [[0, 1], [2, 3], [4, 0]])
    kernel = folded.fold_kernel(w, g, 2)
    assert kernel.shape == (2, 2, 2)  # [tap, column, output]
    np.testing.assert_array_equal(kernel.reshape(4, 2).T, [[1, 2, 3, 0], [0, 1, 2, 3]])
    np.testing.assert_array_equal(dense.by_patches(folded.fold_input(x, g, 2), kernel, within)[0], [[8, 14], [20, 11]])


# (input, kernel, strides, padding, dilation)
CASES = {
    "1-D": ((2, 11, 1), (3, 1, 2), (1,), ((1, 1),), (1,)),
    "2-D": ((2, 5, 9, 3), (3, 5, 3, 10), (1, 1), ((1, 1), (2, 2)), (1, 1)),
    "4 at once": ((2, 5, 13, 2), (2, 5, 2, 3), (1, 1), ((0, 1), (0, 0)), (1, 1)),
    "strides": ((2, 7, 21, 1), (3, 4, 1, 5), (2, 3), ((1, 0), (3, 4)), (1, 1)),
    "taps fewer than the stride": ((2, 7, 20, 1), (3, 2, 1, 5), (1, 3), ((0, 0), (0, 1)), (1, 1)),
    "columns nobody looks at": ((1, 3, 15, 2), (1, 2, 2, 2), (1, 4), ((0, 0), (0, 0)), (1, 1)),
    "cropped": ((2, 6, 14, 2), (3, 3, 2, 4), (1, 1), ((0, -1), (-2, -1)), (1, 1)),
    "dilated rows": ((2, 9, 10, 1), (3, 3, 1, 4), (1, 1), ((2, 2), (1, 1)), (2, 1)),
    "dilated columns": ((2, 6, 10, 1), (3, 3, 1, 4), (1, 1), ((1, 1), (2, 2)), (1, 2)),
    "3-D": ((1, 4, 3, 9, 2), (2, 1, 3, 2, 3), (1, 2, 1), ((1, 0), (0, 0), (1, 1)), (1, 1, 1)),
    "one output": ((2, 5, 3, 2), (3, 3, 2, 3), (1, 1), ((1, 1), (0, 0)), (1, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name):
    """As those of XLA's convolution, for as many outputs as are taken together and for 1, 2, 3 and 4."""
    shape, kernel, *rest = CASES[name]
    g = Geometry(shape[1:-1], kernel[:-2], *rest)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, w = jnp.asarray(rng.normal(size=shape)), jnp.asarray(rng.normal(size=kernel))
        y = dense.by_xla(x, w, g)
        dy = jnp.asarray(rng.normal(size=y.shape))
        np.testing.assert_allclose(folded.by_folding(x, w, g), y, rtol=0, atol=1e-12)
        np.testing.assert_allclose(
            folded.kernel_by_folding(x, dy, g), dense.kernel_by_xla(x, dy, g), rtol=0, atol=1e-11
        )
        if g.dilation[-1] > 1:
            return
        for outputs in (1, 2, 3, 4):
            within = folded.folded(g, outputs)
            fold = functools.partial(folded.fold_input, g=g, outputs=outputs)
            of_folded = dense.by_xla(fold(x), folded.fold_kernel(w, g, outputs), within)
            assert of_folded.shape[1:-1] == within.outputs
            of_folded = of_folded.reshape(*y.shape[:-2], -1, y.shape[-1])
            np.testing.assert_allclose(of_folded[..., : y.shape[-2], :], y, rtol=0, atol=1e-12)


def test_how_many_together():
    """None where it would not pay or cannot be: many channels, few outputs, dilated columns."""
    g = Geometry((8, 8), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    together = functools.partial(folded.outputs_together, g=g)
    assert [together(1, 6), together(3, 16), together(3, 64), together(16, 16)] == [4, 2, 1, 1]
    narrow = dataclasses.replace(g, space=(8, 4))
    assert [folded.outputs_together(1, 6, narrow), folded.outputs_together(3, 16, narrow)] == [2, 2]
    dilated = dataclasses.replace(g, dilation=(1, 2))
    assert folded.outputs_together(1, 6, dilated) == 1
