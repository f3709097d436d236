"""Eight devices train to what one trains to, batch norm included."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models
from cnnjax.data import Arrays
from cnnjax.ops.errors import InputError
from cnnjax.training import Optimizer, metrics
from cnnjax.training import mesh as meshes
from cnnjax.training.feed import Feed
from cnnjax.training.optimizer import make_optimizer
from cnnjax.training.state import init_state
from cnnjax.training.step import Preprocess, train_step

STEPS, BATCH = 20, 16


def run(model_name, devices, dtype, steps, **fields):
    """The losses of each step and the final state, on that many devices; everything random is switched on."""
    mesh = meshes.make_mesh(devices)
    rng = np.random.default_rng(0)
    shape = (32, 32, 3) if model_name.startswith("cifar") else (28, 28, 1)
    arrays = Arrays(rng.integers(0, 256, (64, *shape)).astype(np.uint8), rng.integers(0, 10, 64).astype(np.int32))
    model = models.create(model_name, dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype), **fields)
    optimizer = make_optimizer(Optimizer("sgd", learning_rate=0.1, weight_decay=1e-4), steps)
    preprocess = Preprocess((0.5,), (0.25,), shift=2, pad_crop=2, flip=True, dtype=jnp.dtype(dtype))
    state = jax.jit(
        lambda key: init_state(key, model=model, optimizer=optimizer, image_shape=shape),
        out_shardings=meshes.replicated(mesh),
    )(jax.random.key(0))

    def step(state, batch):
        return train_step(
            state, batch, model=model, optimizer=optimizer, loss=metrics.cross_entropy, preprocess=preprocess
        )

    take = Feed(arrays, mesh=mesh, limit=1e9).compile(step, state, BATCH, donate=True)
    losses = []
    for i in range(steps):
        donated = state
        state, sums = take(state, np.arange(i * BATCH, (i + 1) * BATCH, dtype=np.int32) % 64)
        losses.append(float(sums["loss"]))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(donated.params))  # the memory was really given back
    return losses, jax.device_get(dataclasses.replace(state, key=jax.random.key_data(state.key)))


RESNET8 = {"stage_sizes": (1, 1, 1)}  # a stage of ResNet-20 has three blocks


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        pytest.param("cifar_resnet20", RESNET8, id="ResNet-8"),
        pytest.param("cifar_resnet20", {}, id="ResNet-20", marks=pytest.mark.slow),
        pytest.param("geron_fashion", {}, id="dropout", marks=pytest.mark.slow),
    ],
)
def test_twenty_steps_in_float64(name, fields):
    """Networks with batch norm and one with dropout; parameters and statistics to 1e-9."""
    with jax.enable_x64(True):
        one_losses, one = run(name, 1, "float64", STEPS, **fields)
        eight_losses, eight = run(name, 8, "float64", STEPS, **fields)
    np.testing.assert_allclose(eight_losses, one_losses, rtol=1e-9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), eight.variables, one.variables)
    first = jax.tree.leaves(one.params)[0]
    assert first.dtype == np.float64


def test_the_first_loss_in_float32():
    (one,), _ = run("cifar_resnet20", 1, "float32", 1, **RESNET8)
    (eight,), _ = run("cifar_resnet20", 8, "float32", 1, **RESNET8)
    assert eight == pytest.approx(one, rel=1e-5)


def test_a_batch_that_does_not_divide_and_devices_that_are_not_there():
    with pytest.raises(InputError, match=r"train.batch-size: received 20, allowed: a multiple of the 8 devices"):
        meshes.check_batch(20, meshes.make_mesh(8))
    with pytest.raises(InputError, match=r"run.devices: received 9, allowed: 1 to 8"):
        meshes.make_mesh(9)


def test_a_whole_run_on_eight_devices(tiny_config, tiny_data, tmp_path):
    """And moved from eight to one in the middle: the restored state is the same, bit for bit."""
    from cnnjax.training import load_run, train

    cfg = dataclasses.replace(tiny_config, run=dataclasses.replace(tiny_config.run, devices=8))
    eight = train(cfg, tmp_path / "eight", dataset=tiny_data)
    one = train(tiny_config, tmp_path / "one", dataset=tiny_data)
    assert eight["devices"]["count"] == 8
    assert eight["test_loss"] == pytest.approx(one["test_loss"], rel=1e-3)

    run = load_run(tmp_path / "eight")
    assert run.step == 24
    (tmp_path / "eight" / "result.json").unlink()  # as if killed before it was written
    moved = train(tiny_config, tmp_path / "eight", dataset=tiny_data)
    assert moved["fingerprint"] == eight["fingerprint"]
