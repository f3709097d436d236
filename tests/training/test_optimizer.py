"""Schedules and optimizers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.ops.errors import InputError
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
