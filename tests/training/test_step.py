"""One update: auxiliary heads, microbatches, batch norm by groups, the moving average, several steps in one call."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnnjax.training import metrics
from cnnjax.training.state import init_state
from cnnjax.training.step import Preprocess, Update, moving_average, repeated, train_step


class TwoHeads(nn.Module):
    """A head at the end and, in training, two at the side."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = x.reshape(len(x), -1)
        for i in (1, 2):
            logits = nn.Dense(3, name=f"head{i}")(x)
            if train:
                self.sow("aux_logits", f"aux{i}", logits)
        return nn.Dense(3, name="output")(x)


def test_auxiliary_heads_count_three_tenths():
    """The gradient of loss + 0.3 (loss of head 1 + loss of head 2), in one step of rate 1."""
    model, optimizer = TwoHeads(), optax.sgd(1.0)
    loss = metrics.make_loss("cross_entropy", 0.0)
    state = init_state(jax.random.key(0), model=model, optimizer=optimizer, image_shape=(4, 4, 1))
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (6, 4, 4, 1), dtype=np.uint8), "label": np.arange(6) % 3}
    preprocess = Preprocess((0.5,), (0.25,))
    after, _ = jax.jit(
        lambda state, batch: train_step(
            state, batch, model=model, optimizer=optimizer, loss=loss, preprocess=preprocess
        )
    )(state, batch)
    x = preprocess(batch["image"]).reshape(6, -1)

    def objective(params):
        cross_entropy = lambda head: loss(x @ params[head]["kernel"] + params[head]["bias"], batch["label"]).mean()
        return cross_entropy("output") + 0.3 * (cross_entropy("head1") + cross_entropy("head2"))

    expected = jax.tree.map(jnp.subtract, state.params, jax.grad(objective)(state.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after.params, expected)


class ConvNormDense(nn.Module):
    """A convolution, batch norm and a dense layer."""

    norm: bool = True

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Conv(4, (3, 3), param_dtype=x.dtype)(x)
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, param_dtype=x.dtype)(x)
        return nn.Dense(3, param_dtype=x.dtype)(jnp.tanh(x).reshape(len(x), -1))


def one_step(model, update, batch=12):
    """The state before and after a step in float64, and the batch's metrics."""
    optimizer = optax.sgd(0.1, momentum=0.9)
    preprocess = Preprocess((0.5,), (0.25,), flip=True, shift=1, dtype=jnp.float64)
    before = init_state(
        jax.random.key(0), model=model, optimizer=optimizer, image_shape=(6, 6, 1), average=update.ema is not None
    )
    rng = np.random.default_rng(0)
    examples = {"image": rng.integers(0, 256, (batch, 6, 6, 1), dtype=np.uint8), "label": np.arange(batch) % 3}
    step = functools.partial(
        train_step,
        model=model,
        optimizer=optimizer,
        loss=metrics.cross_entropy,
        preprocess=preprocess,
        update=update,
    )
    after, sums = jax.jit(step)(before, examples)
    return before, after, sums, (preprocess, examples)


def assert_close(a, b, tolerance=1e-9):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), a, b)


@pytest.mark.parametrize("parts", [4, pytest.param(12, marks=pytest.mark.slow)])
def test_microbatches_are_the_large_batch(x64, parts):
    """Without batch norm: parameters, optimizer's state and metrics, augmentation on."""
    _, whole, sums, _ = one_step(ConvNormDense(norm=False), Update())
    _, in_parts, sums_of_parts, _ = one_step(ConvNormDense(norm=False), Update(microbatches=parts))
    assert_close((in_parts.params, in_parts.opt_state), (whole.params, whole.opt_state))
    assert_close(sums_of_parts, sums)


def test_microbatches_move_the_statistics_on_one_after_the_other(x64):
    model = ConvNormDense()
    before, after, _, (preprocess, batch) = one_step(model, Update(microbatches=3))
    augment_key, _ = jax.random.split(jax.random.fold_in(before.key, 0))
    images = preprocess.augmented(augment_key, batch["image"])
    variables = before.variables
    apply = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    for part in range(3):
        _, updated = apply(variables, images[part::3])
        variables = variables | updated
    assert_close(after.batch_stats, variables["batch_stats"], 1e-6)  # Flax keeps them in float32


@pytest.mark.parametrize("size", [4, pytest.param(12, marks=pytest.mark.slow)])
def test_batch_norm_by_groups(x64, size):
    """The gradient of the mean over groups of neighbours, each normalised alone; statistics follow the groups' mean."""
    model = ConvNormDense()
    before, after, _, (preprocess, batch) = one_step(model, Update(norm_batch=size))
    augment_key, _ = jax.random.split(jax.random.fold_in(before.key, 0))
    images = preprocess.augmented(augment_key, batch["image"])
    groups = [slice(start, start + size) for start in range(0, 12, size)]

    def objective(params):
        losses, statistics = [], []
        for group in groups:
            variables = before.variables | {"params": params}
            outputs, updated = model.apply(variables, images[group], train=True, mutable=["batch_stats"])
            losses.append(metrics.cross_entropy(outputs, batch["label"][group]))
            statistics.append(updated["batch_stats"])
        return jnp.concatenate(losses).mean(), jax.tree.map(lambda *rows: jnp.stack(rows).mean(0), *statistics)

    gradients, statistics = jax.grad(objective, has_aux=True)(before.params)
    assert_close(after.params, jax.tree.map(lambda p, g: p - 0.1 * g, before.params, gradients))
    assert_close(after.batch_stats, statistics, 1e-6)


def test_the_moving_average_starts_quickly(x64):
    """After the first step its decay is (1 + 1) / (10 + 1), however large the one asked for; later that one."""
    before, after, _, _ = one_step(ConvNormDense(), Update(ema=0.99))
    expected = jax.tree.map(lambda a, b: 2 / 11 * a + 9 / 11 * b, before.variables, after.variables)
    assert_close(after.ema, expected, 1e-6)
    late = moving_average({"w": jnp.zeros(2)}, {"w": jnp.ones(2)}, jnp.int32(100_000), 0.99)
    np.testing.assert_allclose(late["w"], 0.01, rtol=1e-7)
    assert after.evaluated is after.ema
    assert before.evaluated is before.ema


def test_several_steps_in_one_call(x64):
    """As many as asked for, with the scalars of each; the batches beyond them are not touched."""

    def step(state, batch):
        return state * 2 + batch["x"], {"sum": state + batch["x"]}

    batches = {"x": jnp.array([1.0, 2.0, 3.0, jnp.nan])}
    state, rows = jax.jit(repeated(step))(jnp.float64(1), batches, 3)
    assert state == ((1 * 2 + 1) * 2 + 2) * 2 + 3
    np.testing.assert_array_equal(rows["sum"], [1 + 1, 3 + 2, 8 + 3, 0])
