"""Schedules and optimizers by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cnnjax import models
from cnnjax.ops.errors import InputError
from cnnjax.ops.primitives import as_primitives
from cnnjax.training import Optimizer
from cnnjax.training.optimizer import OPTIMIZERS, is_weight, make_optimizer, schedule


def rates(config, steps):
    course = schedule(config, steps)
    return [float(course(step)) for step in range(steps)]


def test_steps_as_in_the_residual_networks_paper():
    """0.1, divided by 10 at 32,000 and at 48,000 of 64,000."""
    course = schedule(Optimizer(learning_rate=0.1, schedule="steps", milestones=(0.5, 0.75)), 64_000)
    np.testing.assert_allclose([course(s) for s in (0, 31_999, 32_000, 47_999, 48_000)], [0.1, 0.1, 0.01, 0.01, 0.001])


def test_steps_with_a_factor_each_as_in_lenet5():
    """5e-4 (2 passes), 2e-4 (3), 1e-4 (3), 5e-5 (4), 1e-5 (the other 8 of 20)."""
    config = Optimizer(
        learning_rate=5e-4, schedule="steps", milestones=(0.1, 0.25, 0.4, 0.6), factors=(0.4, 0.5, 0.5, 0.2)
    )
    expected = [5e-4] * 2 + [2e-4] * 3 + [1e-4] * 3 + [5e-5] * 4 + [1e-5] * 8
    np.testing.assert_allclose(rates(config, 20), expected, rtol=1e-5)


def test_milestones_stay_where_they_are_with_a_warmup():
    config = Optimizer(learning_rate=1.0, schedule="steps", milestones=(0.5,), warmup=0.2)
    np.testing.assert_allclose(rates(config, 10), [0, 0.5, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.1], rtol=1e-6)


def test_cosine_and_linear():
    np.testing.assert_allclose(rates(Optimizer(learning_rate=2.0, schedule="linear"), 4), [2, 1.5, 1, 0.5])
    half = np.sqrt(0.5)
    np.testing.assert_allclose(
        rates(Optimizer(learning_rate=2.0, schedule="cosine"), 4), [2, 1 + half, 1, 1 - half], rtol=1e-6
    )


PARAMS = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "scale": jnp.ones(2)}


def test_weight_decay_skips_biases_and_norms():
    assert is_weight(PARAMS) == {"kernel": True, "bias": False, "scale": False}
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    for name in OPTIMIZERS:
        optimizer = make_optimizer(Optimizer(name, learning_rate=0.1, weight_decay=0.5), 10)
        updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
        assert (updates["kernel"] < 0).all(), name
        assert (updates["bias"] == 0).all(), name
        assert (updates["scale"] == 0).all(), name


FAMILIES = (
    "fully_connected", "locally_connected", "lenet5", "lenet5_modern", "convnetjs_mnist", "alexnet", "vgg11_bn",
    "cifar_resnet20", "cifar_densenet40_12",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAMILIES else pytest.mark.slow) for name in models.names()]
)
def test_kernels_and_nothing_else_decay(name):
    """In every network: all of its kernels, and no bias, scale or coefficient, whatever the rank."""
    x = jax.ShapeDtypeStruct((1, *models.ABOUT[name].input), jnp.float32)
    with as_primitives():
        params = jax.eval_shape(models.create(name).init, jax.random.key(0), x)["params"]
    decayed = {path[-1] for path, it in flatten_dict(is_weight(params)).items() if it}
    left = {path[-1] for path, it in flatten_dict(is_weight(params)).items() if not it}
    assert decayed == {"kernel"}
    assert left <= {"bias", "scale", "coefficient"}


def test_what_decays_in_layers_of_other_kinds():
    """Norms over several axes, biases of several axes, boxed parameters; embeddings and unnamed matrices decay."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.LayerNorm(reduction_axes=(1, 2, 3), feature_axes=(1, 2, 3))(x)
            x = nn.BatchNorm(use_running_average=False, axis=(1, 2, 3))(x)
            x = nn.DenseGeneral((2, 3), axis=(1, 2, 3))(x)
            x = nn.WeightNorm(nn.Dense(4))(x.reshape(len(x), -1))
            with_names = nn.with_partitioning(nn.initializers.ones, (None, "model"))
            x = nn.Dense(4, kernel_init=with_names)(x)
            x = x @ self.param("mixture", nn.initializers.ones, (4, 4))
            return x + nn.Embed(3, 4)(jnp.zeros(len(x), int))

    params = jax.eval_shape(Net().init, jax.random.key(0), jnp.ones((2, 3, 3, 2)))["params"]
    leaves = {
        "/".join(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)): it
        for path, it in jax.tree_util.tree_leaves_with_path(is_weight(params))
    }
    assert leaves == {
        "LayerNorm_0/scale": False,
        "LayerNorm_0/bias": False,
        "BatchNorm_0/scale": False,
        "BatchNorm_0/bias": False,
        "DenseGeneral_0/kernel": True,
        "DenseGeneral_0/bias": False,
        "Dense_0/kernel": True,
        "Dense_0/bias": False,
        "WeightNorm_0/Dense_0/kernel/scale": False,
        "Dense_1/kernel": True,
        "Dense_1/bias": False,
        "mixture": True,
        "Embed_0/embedding": True,
    }


def test_sgd_with_momentum_and_decay_by_hand():
    """v = 0.9 v + (g + 0.5 w), w = w - 0.1 v, twice."""
    optimizer = make_optimizer(Optimizer("sgd", learning_rate=0.1, weight_decay=0.5), 10)
    params, state = {"w": jnp.full((1, 1), 2.0)}, None
    state = optimizer.init(params)
    w, v = 2.0, 0.0
    for g in (1.0, -3.0):
        updates, state = optimizer.update({"w": jnp.full((1, 1), g)}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        v = 0.9 * v + g + 0.5 * w
        w = w - 0.1 * v
    np.testing.assert_allclose(params["w"], [[w]], rtol=1e-6)


def test_clipping():
    optimizer = make_optimizer(Optimizer("sgd", learning_rate=1.0, momentum=0.0, clip_norm=1.0), 10)
    params = {"w": jnp.zeros((2, 1))}
    updates, _ = optimizer.update({"w": jnp.array([[3.0], [4.0]])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], [[-0.6], [-0.8]], rtol=1e-6)


def test_adadelta_by_hand():
    """ConvNetJS: g2 = .95 g2 + .05 g^2, dx = -sqrt((x2 + eps) / (g2 + eps)) g, with x2 one step behind."""
    optimizer = make_optimizer(Optimizer("adadelta", learning_rate=1.0), 10)
    params = {"w": jnp.zeros((1, 1))}
    state = optimizer.init(params)
    g2 = x2 = 0.0
    for g in (2.0, -1.0):
        updates, state = optimizer.update({"w": jnp.full((1, 1), g)}, state, params)
        g2 = 0.95 * g2 + 0.05 * g * g
        dx = -np.sqrt((x2 + 1e-8) / (g2 + 1e-8)) * g
        x2 = 0.95 * x2 + 0.05 * dx * dx
        np.testing.assert_allclose(updates["w"], [[dx]], rtol=1e-4)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(InputError, match="unknown optimizer 'adan': did you mean 'adam'"):
        make_optimizer(Optimizer("adan"), 10)
