"""Eight devices train to what one trains to, however they share the work."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models
from cnnjax.data import Arrays
from cnnjax.ops.errors import InputError
from cnnjax.training import Optimizer, metrics
from cnnjax.training import mesh as meshes
from cnnjax.training.feed import ResidentFeed
from cnnjax.training.optimizer import make_optimizer
from cnnjax.training.state import init_state
from cnnjax.training.step import PLAIN, Preprocess, Update, train_step

STEPS, BATCH = 20, 16


def run(model_name, devices, dtype, steps, axes=None, update=PLAIN, **fields):
    """The losses of each step and the final state, on that mesh; everything random is switched on."""
    mesh = meshes.make_mesh(devices, axes)
    rng = np.random.default_rng(0)
    shape = (32, 32, 3) if model_name.startswith("cifar") else (28, 28, 1)
    arrays = Arrays(rng.integers(0, 256, (64, *shape)).astype(np.uint8), rng.integers(0, 10, 64).astype(np.int32))
    model = models.create(model_name, dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype), **fields)
    optimizer = make_optimizer(Optimizer("sgd", learning_rate=0.1, weight_decay=1e-4), steps)
    preprocess = Preprocess((0.5,), (0.25,), shift=2, pad_crop=2, flip=True, dtype=jnp.dtype(dtype))
    init = functools.partial(
        init_state, model=model, optimizer=optimizer, image_shape=shape, average=update.ema is not None
    )
    key = jax.random.key(0)
    placement = meshes.state_shardings(jax.eval_shape(init, key), mesh)
    state = jax.jit(init, out_shardings=placement)(key)
    step = functools.partial(
        train_step,
        model=model,
        optimizer=optimizer,
        loss=metrics.cross_entropy,
        preprocess=preprocess,
        update=dataclasses.replace(update, layout=meshes.Layout(mesh)),
    )
    take = ResidentFeed(arrays, mesh).compile(step, state, BATCH, donate=True)
    losses = []
    for i in range(steps):
        donated = state
        state, sums = take(state, np.arange(i * BATCH, (i + 1) * BATCH, dtype=np.int32) % 64)
        losses.append(float(sums["loss"]))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(donated.params))  # the memory was really given back
    assert divided(state) == divided(donated) == (mesh.shape["fsdp"] > 1)
    return losses, jax.device_get(dataclasses.replace(state, key=jax.random.key_data(state.key)))


def divided(state):
    """Whether the large parameters, and the optimizer's state with them, are in parts on the devices."""
    large = [leaf for leaf in jax.tree.leaves((state.params, state.opt_state)) if leaf.size >= meshes.LEAST_DIVIDED]
    assert large
    whole = {leaf.sharding.is_fully_replicated for leaf in large}
    assert len(whole) == 1
    return whole == {False}


RESNET8 = {"stage_sizes": (1, 1, 1)}  # a stage of ResNet-20 has three blocks


MESHES = {
    "data": {},
    "fsdp": {"fsdp": 8},
    "space": {"space": 8},
    "data and space": {"data": 4, "space": 2},
    "all three": {"data": 2, "fsdp": 2, "space": 2},
}


def assert_equal_on_eight(name, meshes_, update=PLAIN, **fields):
    with jax.enable_x64(True):
        one_losses, one = run(name, 1, "float64", STEPS, update=update, **fields)
        for axes in meshes_:
            losses, many = run(name, 8, "float64", STEPS, MESHES[axes], update, **fields)
            np.testing.assert_allclose(losses, one_losses, rtol=1e-9, err_msg=axes)
            close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9, err_msg=axes)
            jax.tree.map(close, many.variables, one.variables)
            jax.tree.map(close, many.ema, one.ema)
    assert jax.tree.leaves(one.params)[0].dtype == np.float64


def test_twenty_steps_in_float64():
    """A network with batch norm: parameters and statistics to 1e-9."""
    assert_equal_on_eight("cifar_resnet20", ["all three"], **RESNET8)


@pytest.mark.slow
@pytest.mark.parametrize("axes", MESHES)
@pytest.mark.parametrize("name", ["cifar_resnet20", "geron_fashion"])
def test_twenty_steps_on_each_mesh(name, axes):
    """ResNet-20, and a network with dropout."""
    assert_equal_on_eight(name, [axes])


@pytest.mark.slow
def test_twenty_steps_with_everything():
    """Microbatches, batch norm by groups of two devices' images, and a moving average."""
    update = Update(microbatches=2, norm_batch=2, ema=0.9)
    assert_equal_on_eight("cifar_resnet20", ["data", "all three"], update, **RESNET8)


@pytest.mark.slow
def test_the_first_loss_in_float32():
    (one,), _ = run("cifar_resnet20", 1, "float32", 1, **RESNET8)
    (eight,), _ = run("cifar_resnet20", 8, "float32", 1, **RESNET8)
    assert eight == pytest.approx(one, rel=1e-5)


def test_a_batch_that_does_not_divide_and_devices_that_are_not_there():
    with pytest.raises(InputError, match=r"train.batch-size: received 20, allowed: a multiple of the 8 devices"):
        meshes.check_batch(20, meshes.make_mesh(8))
    with pytest.raises(InputError, match=r"train.batch-size: received 24, .* the 8 devices .* times 2 microbatches"):
        meshes.check_batch(24, meshes.make_mesh(8), 2)
    with pytest.raises(InputError, match=r"run.devices: received 9, allowed: 1 to 8"):
        meshes.make_mesh(9)


@pytest.mark.parametrize(
    ("axes", "shape"), [({}, (8, 1, 1)), ({"space": 2}, (4, 1, 2)), ({"data": 2, "fsdp": 4}, (2, 4, 1))]
)
def test_data_takes_what_the_other_axes_leave(axes, shape):
    assert tuple(meshes.make_mesh(8, axes).shape.values()) == shape


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"fsdp": 3}, "received fsdp=3, allowed: axes that multiply to the 8 devices"),
        ({"data": 4}, "received data=4, allowed: axes that multiply to the 8 devices"),
        ({"model": 2}, "received model=2, allowed: axes named data, fsdp, space"),
        ({"space": 0}, "received space=0, allowed: a whole number of 1 or more"),
        ({"space": "two"}, "received space=two, allowed: a whole number of 1 or more"),
    ],
)
def test_meshes_that_can_not_be(axes, message):
    with pytest.raises(InputError, match=message):
        meshes.make_mesh(8, axes)


def test_a_whole_run_on_eight_devices(tiny_config, tiny_data, tmp_path):
    """And moved from eight to one in the middle: the restored state is the same, bit for bit."""
    from cnnjax.training import load_run, train

    on_eight = dataclasses.replace(tiny_config.run, devices=8, mesh={"fsdp": 2, "space": 2})
    cfg = dataclasses.replace(tiny_config, run=on_eight)
    eight = train(cfg, tmp_path / "eight", dataset=tiny_data)
    one = train(tiny_config, tmp_path / "one", dataset=tiny_data)
    assert eight["devices"]["count"] == 8
    assert eight["test_loss"] == pytest.approx(one["test_loss"], rel=1e-3)

    run = load_run(tmp_path / "eight")
    assert run.step == 24
    (tmp_path / "eight" / "result.json").unlink()  # as if killed before it was written
    moved = train(tiny_config, tmp_path / "eight", dataset=tiny_data)
    assert moved["fingerprint"] == eight["fingerprint"]
