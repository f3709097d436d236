"""Parts of a network by name; a cnnjax model inside an NNX module; heads that are replaced."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cnnjax import models
from cnnjax.ops import InputError

FIELDS = {"stage_sizes": (1, 1, 1), "conv": "xla"}


def small(draw, **fields):
    model = models.create("cifar_resnet20", **FIELDS, **fields)
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    return model, draw(model, x), x


def test_parts_by_name(draw):
    """What the network itself computes: the head, applied to the pooled last block, gives its logits."""
    model, variables, x = small(draw)
    run = jax.jit(lambda x: models.features(model, variables, x, ["stage3_block1", "stage2_block1/conv1", "output"]))
    found = run(x)
    assert set(found) == {"stage3_block1", "stage2_block1/conv1", "output"}
    assert found["stage2_block1/conv1"].shape == (4, 4, 4, 32)
    head = variables["params"]["output"]
    np.testing.assert_allclose(found["output"], model.apply(variables, x), rtol=1e-5, atol=1e-5)
    pooled = found["stage3_block1"].mean((1, 2))
    np.testing.assert_allclose(pooled @ head["kernel"] + head["bias"], found["output"], rtol=1e-5, atol=1e-5)


def test_all_parts_and_only_what_is_needed(draw):
    model, variables, x = small(draw)
    every = models.features(model, variables, x)
    assert {"conv1", "norm1", "stage1_block1", "stage1_block1/conv2", "output"} <= set(every)
    first = jax.jit(lambda x: models.features(model, variables, x, ["conv1"])).lower(x).compile().as_text()
    whole = jax.jit(lambda x: models.features(model, variables, x)).lower(x).compile().as_text()
    assert first.count("convolution(") == 1 < whole.count("convolution(")


def test_training_drops_what_it_changes(draw):
    model, variables, x = small(draw, drop_path=0.5)
    run = functools.partial(models.features, model, variables, x, ["stage3_block1"], train=True)
    a, b = (run(rngs={"dropout": jax.random.key(seed)})["stage3_block1"] for seed in (0, 1))
    assert (a != b).any()


def test_maps_that_are_no_modules(draw):
    """What is pooled, by stage; and one name alone."""
    model = models.create("vgg11", num_classes=3, conv="xla", dense=())
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    variables = draw(model, x)
    stages = jax.jit(lambda x: models.features(model, variables, x, [f"stage{i}" for i in range(1, 6)]))(x)
    assert [stages[f"stage{i}"].shape[1:] for i in range(1, 6)] == [
        (16, 16, 64), (8, 8, 128), (4, 4, 256), (2, 2, 512), (1, 1, 512),
    ]  # fmt: skip
    assert all((stage >= 0).all() for stage in stages.values())
    model, variables, x = small(draw)
    whole = models.features(model, variables, x)
    assert list(models.features(model, variables, x, "pooled")) == ["pooled"]
    np.testing.assert_allclose(whole["last_map"].mean((1, 2)), whole["pooled"], rtol=1e-6)
    assert whole["stem"].shape == (4, 8, 8, 16)


def test_an_unknown_part_is_named(draw):
    model, variables, x = small(draw)
    with pytest.raises(InputError, match="unknown part of the network 'stage3_blok1': did you mean 'stage3_block1'"):
        models.features(model, variables, x, ["stage3_blok1"])


def test_another_head_on_the_same_features(draw):
    """Features for one task, a head for another: the parameters of the body carry over by name."""
    _, variables, x = small(draw)
    body = models.create("cifar_resnet20", **FIELDS, num_classes=0)
    other = models.create("cifar_resnet20", **FIELDS, num_classes=3)
    params = variables["params"]
    shared = {**variables, "params": {name: leaf for name, leaf in params.items() if name != "output"}}
    pooled = body.apply(shared, x)
    head = {"kernel": jnp.ones((64, 3)), "bias": jnp.arange(3.0)}
    logits = other.apply({**variables, "params": {**params, "output": head}}, x)
    np.testing.assert_allclose(logits, pooled @ head["kernel"] + head["bias"], rtol=1e-5)


class Detector(nnx.Module):
    """An NNX module with a cnnjax network inside and a layer of its own."""

    def __init__(self, x, rngs):
        network = models.create("cifar_resnet20", **FIELDS, num_classes=0)
        self.body = nnx.bridge.ToNNX(network, rngs=rngs).lazy_init(x)
        self.head = nnx.Linear(64, 2, rngs=rngs)

    def __call__(self, x, train):
        return self.head(self.body(x, train=train, mutable=["batch_stats"] if train else False))


def test_inside_an_nnx_module():
    """Its parameters and statistics are the module's; a step changes both; the output is the network's own."""
    x = jax.random.normal(jax.random.key(0), (8, 8, 8, 3))
    y = jnp.arange(8) % 2
    module = Detector(x, nnx.Rngs(0))
    optimizer = nnx.Optimizer(module, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer, x, y):
        def loss(module):
            return optax.softmax_cross_entropy_with_integer_labels(module(x, train=True), y).mean()

        value, gradients = nnx.value_and_grad(loss)(module)
        optimizer.update(module, gradients)
        return value

    before = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(module)))
    losses = [float(step(module, optimizer, x, y)) for _ in range(10)]
    assert losses[-1] < losses[0]
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, nnx.to_pure_dict(nnx.state(module)))
    block = changed["body"]["stage1_block1"]
    assert block["conv1"]["kernel"]
    assert block["norm1"]["mean"]
    assert changed["head"]["kernel"]
    body = module.body
    variables = {
        "params": nnx.to_pure_dict(nnx.state(body, nnx.Param)),
        "batch_stats": nnx.to_pure_dict(nnx.state(body, nnx.BatchStat)),
    }
    expected = models.create("cifar_resnet20", **FIELDS, num_classes=0).apply(variables, x)
    np.testing.assert_allclose(body(x, train=False), expected, rtol=1e-5, atol=1e-5)
