"""What the tests of the models share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture
def x64():
    """float64 is float64 for the length of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def draw():
    """`draw(model, x)`: variables of a model for images x, without compiling its initialisation.

    Kernels have variance 1 / fan_in; scales, biases and statistics are away from 0 and 1, so that none can be mixed up.
    """

    def variables(model, x, seed=0):
        rng = np.random.default_rng(seed)
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}

        def leaf(path, shape):
            kind = path[-1].key
            if kind in ("scale", "var"):
                values = rng.uniform(0.5, 1.5, shape.shape)
            elif kind == "kernel":
                values = rng.normal(size=shape.shape) / np.sqrt(np.prod(shape.shape[:-1]))
            else:
                values = 0.1 * rng.normal(size=shape.shape)
            return jnp.asarray(values, shape.dtype)

        return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(model.init, rngs, x))

    return variables
