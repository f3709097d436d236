"""The lectures' stacks: dropout, borders, and the published initialisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models
from cnnjax.models.conv_stacks import Stage

KEY = jax.random.key(0, impl="unsafe_rbg")  # compiles in a fraction of the default generator's time
SMALL = {"stages": (Stage((4,), 7, 2), Stage((8,), 3, 2)), "dense": (32, 16)}


def test_dropout_is_active_only_in_training(draw):
    model = models.create("geron_fashion", **SMALL)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    variables = draw(model, x)
    train = jax.jit(lambda seed: model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(seed)}))
    assert (train(0) != train(1)).any()
    np.testing.assert_array_equal(train(0), train(0))
    none = models.create("geron_fashion", **SMALL, dropout=0.0)
    evaluated = jax.jit(model.apply)(variables, x)  # with no key: an active dropout would ask for one
    np.testing.assert_allclose(jax.jit(functools.partial(none.apply, train=True))(variables, x), evaluated, rtol=1e-6)


def test_geron_flattens_2304_values_after_pooling_7_to_3():
    model = models.create("geron_fashion")
    x = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    assert params["dense1"]["kernel"].shape == (2304, 128)
    counts = [models.count_parameters(params[f"conv{i}"]) for i in range(1, 6)]
    counts += [models.count_parameters(params[layer]) for layer in ("dense1", "dense2", "output")]
    assert counts == [3_200, 73_856, 147_584, 295_168, 590_080, 295_040, 8_256, 650]


def test_convnetjs_layer_by_layer():
    def counts(name, shape):
        x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        params = jax.eval_shape(models.create(name).init, jax.random.key(0), x)["params"]
        return [models.count_parameters(params[layer]) for layer in sorted(params)]

    assert counts("convnetjs_cifar10", (32, 32, 3)) == [1_216, 8_020, 10_020, 3_210]
    assert counts("convnetjs_mnist", (24, 24, 1)) == [208, 3_216, 2_570]


def test_what_is_left_over_at_the_border_is_dropped():
    model = models.create("cs231n_cifar10", stages=(Stage((3,), 3, 2),))
    x = jax.ShapeDtypeStruct((1, 5, 5, 1), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    assert params["output"]["kernel"].shape == (2 * 2 * 3, 10)


@pytest.mark.parametrize(
    ("name", "variance", "bias"),
    [("convnetjs_cifar10", 1, 0.1), ("cs231n_cifar10", 2, 0.0), ("geron_fashion", 2, 0.0)],
)
def test_published_initialisation(name, variance, bias):
    model = models.create(name, stages=(Stage((64,), 5, 2),))
    params = jax.jit(model.init)(KEY, jnp.ones((1, 8, 8, 16)))["params"]
    np.testing.assert_allclose(params["conv1"]["kernel"].var(), variance / (25 * 16), rtol=0.05)
    np.testing.assert_array_equal(params["conv1"]["bias"], np.float32(bias))
    np.testing.assert_array_equal(params["output"]["bias"], 0)
