"""The smallest and a deep network of each family, run: they learn, and how they are computed changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnnjax import models, ops

pytestmark = pytest.mark.slow

# Name, fields, and the side of the images: 32, or the least that leaves something to classify.
NETWORKS = [
    ("fully_connected", {}, 28),
    ("locally_connected", {}, 28),
    ("alexnet_torchvision", {}, 63),
    ("alexnet", {}, 67),
    ("zfnet", {}, 53),
    ("vgg11", {}, 32),
    ("vgg19_bn", {}, 32),
    ("googlenet", {"aux": False}, 32),
    ("googlenet_torchvision", {"aux": False}, 32),
    ("resnet18", {}, 32),
    ("resnet101", {}, 32),
    ("resnet50_v1", {}, 32),
    ("resnet18_v2", {}, 32),
    ("resnet101_v2", {}, 32),
    ("resnext50_32x4d", {}, 32),
    ("wide_resnet50_2", {}, 32),
    ("cifar_resnet20", {}, 32),
    ("cifar_resnet110", {}, 32),
    ("cifar_preact_resnet110", {}, 32),
    ("cifar_wide16_4", {}, 32),
    ("cifar_wide28_10", {}, 32),
    ("densenet121", {}, 32),
    ("densenet201", {}, 32),
    ("cifar_densenet40_12", {}, 32),
    ("cifar_densenet_bc100_12", {}, 32),
]
EVERY = pytest.mark.parametrize(("name", "fields", "side"), NETWORKS, ids=[name for name, _, _ in NETWORKS])
BASELINES = ("fully_connected", "locally_connected")


def images(name, side, batch):
    channels = models.ABOUT[name].input[-1]
    return np.random.default_rng(0).normal(size=(batch, side, side, channels))


@EVERY
def test_overfits_sixteen_images(name, fields, side):
    """Four random classes of noise, learnt by heart: all are right when evaluated, after at most 500 steps.

    Most need 20 to 60. ZFNet, whose weights start small, takes 340.
    """
    model = models.create(name, num_classes=4, **fields)
    x, y = jnp.asarray(images(name, side, 16), jnp.float32), jnp.arange(16) % 4
    variables = jax.jit(model.init)(jax.random.key(0, impl="unsafe_rbg"), x)
    optimizer = optax.adam(3e-4)

    def loss(params, stats, key):
        logits, changed = model.apply(
            {"params": params, **stats}, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), dict(changed)

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params, stats, state, key):
        (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(params, stats, key)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), stats, state, value

    evaluate = jax.jit(lambda params, stats: (model.apply({"params": params, **stats}, x).argmax(-1) == y).mean())
    params = variables.pop("params")
    stats, state = dict(variables), optimizer.init(params)
    stats = {name: value for name, value in stats.items() if name == "batch_stats"}
    for i in range(500):
        params, stats, state, value = step(params, stats, state, jax.random.key(i))
        if i % 10 == 9 and evaluate(params, stats) > 0.95:
            break
    assert np.isfinite(value)
    assert evaluate(params, stats) > 0.95


@EVERY
def test_one_function_however_it_is_computed(name, fields, side, draw, x64):
    """In float64: by three implementations of convolution, compiled or not, in a batch or one by one, with remat."""
    fields = {"num_classes": 7, "dtype": "float64", "param_dtype": "float64", **fields}
    x = images(name, side, 3)
    model = models.create(name, **fields)
    variables = draw(model, x[:1])
    expected = np.asarray(jax.jit(model.apply)(variables, x))
    assert expected.std() > 0
    others = {"not compiled": model.apply(variables, x)}
    alone = jax.jit(model.apply)
    others["one by one"] = np.concatenate([alone(variables, image[None]) for image in x])
    if name in BASELINES:
        others["remat"] = jax.jit(jax.checkpoint(model.apply))(variables, x)
    else:
        others["remat"] = jax.jit(models.create(name, **fields, remat=True).apply)(variables, x)
        for conv in ("xla", "shift", "winograd"):
            by = models.create(name, **fields, conv=ops.conv_implementation(conv, otherwise="xla"))
            others[conv] = jax.jit(by.apply)(variables, x)
    for how, got in others.items():
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9 * np.abs(expected).max(), err_msg=how)


@EVERY
def test_gradients_in_bfloat16_are_finite(name, fields, side, draw):
    """Computed in bfloat16, of parameters in float32."""
    model = models.create(name, num_classes=7, dtype="bfloat16", **fields)
    x = jnp.asarray(images(name, side, 2), jnp.float32)
    variables = draw(model, x)

    def energy(params):
        logits, _ = model.apply(
            {**variables, "params": params}, x, train=True, rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"]
        )
        assert logits.dtype == jnp.float32
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(2)).mean()

    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(energy))(variables["params"])):
        assert gradient.dtype == jnp.float32
        assert np.isfinite(gradient).all(), path
