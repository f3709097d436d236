"""Every model by name: counts, shapes, types, substitutes by argument, names of layers, and errors."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models
from cnnjax.models import conv_stacks, resnet
from cnnjax.ops.errors import InputError
from cnnjax.ops.primitives import as_primitives

# Small enough to run, one of each kind: name, fields, input.
SMALL = [
    ("lenet5", {}, (28, 28, 1)),
    ("lenet5_modern", {}, (28, 28, 1)),
    ("cs231n_cifar10", {}, (8, 8, 3)),
    ("convnetjs_mnist", {}, (12, 12, 1)),
    ("geron_fashion", {"stages": (conv_stacks.Stage((4,), 7, 2), conv_stacks.Stage((4, 4), 3, 2))}, (8, 8, 1)),
    ("cifar_resnet20", {"stage_sizes": (1, 1, 1)}, (8, 8, 3)),
    ("resnet50", {"stage_sizes": (1, 1), "widths": (4, 8)}, (16, 16, 3)),
]
SMALL_IDS = [name for name, _, _ in SMALL]


def shapes(name, shape=None, **fields):
    """The variables of a model as shapes, allocating nothing."""
    x = jax.ShapeDtypeStruct((1, *(shape or models.ABOUT[name].input)), jnp.float32)
    return jax.eval_shape(models.create(name, **fields).init, jax.random.key(0), x)


def images(shape, batch=3):
    return np.random.default_rng(7).normal(size=(batch, *shape))


def test_names_are_sorted():
    assert models.names() == tuple(sorted(models.names()))


@pytest.mark.parametrize("name", ["lenet5", "lenet5_modern"])
def test_lenets_count_the_same_at_28_and_32(name):
    assert models.count_parameters(shapes(name, (28, 28, 1))) == models.count_parameters(shapes(name, (32, 32, 1)))


@pytest.mark.parametrize("name", ["resnet18", "cifar_resnet20"])
def test_fully_convolutional_counts_do_not_depend_on_the_size(name):
    assert models.count_parameters(shapes(name, (40, 56, 3))) == models.count_parameters(shapes(name))


def test_count_is_of_trainable_leaves_only():
    variables = shapes("resnet18")
    assert set(variables) == {"params", "batch_stats"}
    assert models.count_parameters(variables["params"]) == 11_689_512
    assert models.count_parameters({"params": {"w": np.ones((2, 3))}, "constants": {"c": np.ones(9)}}) == 6
    assert models.count_parameters({}) == 0


@pytest.mark.parametrize(
    "name",
    [
        "fully_connected", "locally_connected", "lenet5", "lenet5_modern", "cs231n_cifar10", "convnetjs_cifar10",
        "convnetjs_mnist", "geron_fashion", "alexnet", "zfnet", "vgg11", "googlenet", "resnet18", "resnet50",
        "resnet18_v2", "resnext50_32x4d", "cifar_resnet20", "cifar_wide16_4", "densenet121",
    ],
)  # fmt: skip
def test_logits_have_a_row_for_each_image_and_a_column_for_each_class(name):
    model = models.create(name, num_classes=7)
    x = jax.ShapeDtypeStruct((5, *models.ABOUT[name].input), jnp.float32)
    with as_primitives():  # which are quick to trace
        variables = jax.eval_shape(model.init, jax.random.key(0), x)
        y = jax.eval_shape(functools.partial(model.apply, train=False), variables, x)
    assert (y.shape, y.dtype) == ((5, 7), jnp.float32)


@pytest.mark.parametrize(("name", "fields", "shape"), SMALL, ids=SMALL_IDS)
def test_logits_depend_on_neither_the_batch_nor_the_implementation_of_convolution(name, fields, shape, draw, x64):
    """XLA's convolution on a batch of 3, and the reference's on its first image alone."""
    x = images(shape)
    fields = {**fields, "dtype": "float64", "param_dtype": "float64"}
    xla, reference = (models.create(name, **fields, conv=conv) for conv in ("xla", "reference"))
    variables = draw(xla, x)
    alone = jax.jit(reference.apply)(variables, x[:1])
    np.testing.assert_allclose(jax.jit(xla.apply)(variables, x)[:1], alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "fields", "shape"), SMALL, ids=SMALL_IDS)
def test_float64_is_float64_throughout(name, fields, shape, x64):
    model = models.create(name, **fields, dtype="float64", param_dtype="float64")
    x = images(shape)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = jax.eval_shape(model.init, rngs, x)

    def step(variables, x):
        return model.apply(variables, x, train=True, mutable=["batch_stats", "intermediates"],
                           rngs={"dropout": jax.random.key(1)}, capture_intermediates=True)  # fmt: skip

    every = jax.tree.leaves((variables, jax.eval_shape(step, variables, x)))
    assert {leaf.dtype for leaf in every} == {jnp.dtype("float64")}


@pytest.mark.parametrize(("name", "fields", "shape"), SMALL, ids=SMALL_IDS)
def test_bfloat16_compute_with_float32_parameters_gives_finite_gradients(name, fields, shape, draw):
    model = models.create(name, **fields, dtype="bfloat16")
    x = images(shape).astype(np.float32)
    variables = draw(model, x)

    @jax.jit
    def gradient(params, x):
        def loss(params):
            logits, _ = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"],
                                    rngs={"dropout": jax.random.key(1)})  # fmt: skip
            return jax.nn.logsumexp(logits, axis=-1).sum(), logits

        return jax.grad(loss, has_aux=True)(params)

    gradients, logits = gradient(variables["params"], x)
    assert logits.dtype == jnp.float32
    for leaf in jax.tree.leaves(gradients):
        assert leaf.dtype == jnp.float32
        assert jnp.isfinite(leaf).all()


def test_networks_need_no_implicit_promotion():
    """Gradients and evaluation where JAX broadcasts ranks and promotes dtypes no more."""
    networks = {"lenet5": {}, "locally_connected": {}, "cifar_resnet20": {"norm": "none"}, "alexnet": {}}
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        for name, fields in networks.items():
            model, image = (
                models.create(name, **fields),
                jax.ShapeDtypeStruct((2, *models.ABOUT[name].input), jnp.float32),
            )
            variables = jax.eval_shape(model.init, rngs, image)

            def loss(params, rest, x, model=model):
                outputs, _ = model.apply({**rest, "params": params}, x, train=True, rngs=rngs, mutable=True)
                return jnp.mean(jax.tree.leaves(outputs)[0])

            rest = {kind: values for kind, values in variables.items() if kind != "params"}
            jax.eval_shape(jax.grad(loss), variables["params"], rest, image)
            jax.eval_shape(functools.partial(model.apply, train=False), variables, image)


@pytest.mark.parametrize(
    ("name", "fields", "count"),
    [
        ("lenet5", {"act": "relu", "pool": "max"}, 60_000 - 12 - 32),
        ("lenet5_modern", {"act": "tanh", "pool": "avg"}, 61_706),
        ("cs231n_cifar10", {"pool": "avg", "act": "gelu"}, 6_440),
        ("cifar_resnet20", {"norm": "group"}, 269_722),
        ("cifar_resnet20", {"norm": "group8"}, 269_722),
        ("cifar_resnet20", {"norm": "layer"}, 269_722),
        # A bias is half of a batch norm: 16 x 7 + 32 x 6 + 64 x 6 scales are gone.
        ("cifar_resnet20", {"norm": "none"}, 269_722 - 688),
        ("cifar_resnet20", {"norm": functools.partial(nn.GroupNorm, num_groups=4)}, 269_722),
        ("cifar_resnet20", {"norm": lambda **fields: nn.InstanceNorm()}, 269_722),
        # From 7x7 to 3x3 in the stem.
        ("resnet18", {"stem": "cifar", "num_classes": 10}, 11_689_512 - 40 * 3 * 64 - 990 * 513),
        ("resnet18", {"shortcut": "A"}, 11_689_512 - sum(c * 2 * c + 4 * c for c in (64, 128, 256))),
        ("resnet50", {"block": functools.partial(resnet.BottleneckBlock, stride_on="1x1")}, 25_557_032),
    ],
)
def test_one_line_ablations(name, fields, count):
    assert models.count_parameters(shapes(name, **fields)) == count


def test_group_norm_by_the_number_of_groups(x64):
    """ "group32" is PyTorch's GroupNorm(32, channels); "group" has 16 channels a group, which is another function."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 3, 64)))

    class Net(nn.Module):
        norm: str

        @nn.compact
        def __call__(self, x):
            return models._by_name("norm", self.norm, None)(name="norm")(x)

    def normalized(name):
        return Net(name).apply(Net(name).init(jax.random.key(0), x), x)

    def by_hand(groups):
        parts = np.asarray(x).reshape(2, 9, groups, -1)
        centred = parts - parts.mean((1, 3), keepdims=True)
        return (centred / np.sqrt(parts.var((1, 3), keepdims=True) + 1e-5)).reshape(x.shape)

    np.testing.assert_allclose(normalized("group32"), by_hand(32), atol=1e-6)
    np.testing.assert_allclose(normalized("group"), by_hand(4), atol=1e-6)
    with pytest.raises(InputError, match="unknown norm 'group0': did you mean 'group'"):
        models.create("resnet18", norm="group0")


def test_users_add_a_model_by_putting_it_in_the_dict(monkeypatch):
    class Linear(nn.Module):
        num_classes: int = 10

        @nn.compact
        def __call__(self, x, *, train=False):
            return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))

    monkeypatch.setitem(models.MODELS, "linear", Linear)
    assert "linear" in models.names()
    assert models.count_parameters(shapes("linear", (4, 4, 1), num_classes=3)) == 51


LENET = ["C1", "S2", "C3", "S4", "C5", "F6", "output"]
CIFAR = ["conv1", "norm1"] + [f"stage{s}_block{b}" for s in (1, 2, 3) for b in (1, 2, 3)] + ["output"]
CIFAR += ["stem", "last_map", "pooled"]  # what is no module
STAGES = ["stage1", "stage2", "stage3"]  # neither


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("lenet5", LENET),
        ("lenet5_modern", ["C1", "C3", "C5", "F6", "output"]),
        ("cs231n_cifar10", [f"conv{i}" for i in range(1, 7)] + STAGES + ["output"]),
        (
            "geron_fashion",
            [f"conv{i}" for i in range(1, 6)] + STAGES + ["dense1", "dropout1", "dense2", "dropout2", "output"],
        ),
        ("cifar_resnet20", CIFAR),
    ],
)
def test_intermediates_have_the_names_of_the_paper(name, layers):
    model = models.create(name)
    x = jax.ShapeDtypeStruct((1, *models.ABOUT[name].input), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    capture = functools.partial(model.apply, capture_intermediates=True, mutable=["intermediates"])
    logits, captured = jax.eval_shape(capture, variables, x)
    seen = captured["intermediates"]
    assert set(seen) == {*layers, "__call__"}
    assert seen["output"]["__call__"][0].shape == logits.shape
    assert set(variables["params"]) <= set(layers)


def test_intermediates_of_resnet50_have_the_published_shapes():
    model = models.create("resnet50")
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    capture = functools.partial(model.apply, capture_intermediates=True, mutable=["intermediates"])
    seen = jax.eval_shape(capture, variables, x)[1]["intermediates"]
    table = {
        "conv1": (112, 64),
        "stage1_block1": (56, 256),
        "stage1_block3": (56, 256),
        "stage2_block4": (28, 512),
        "stage3_block6": (14, 1024),
        "stage4_block3": (7, 2048),
    }
    for layer, (side, channels) in table.items():
        assert seen[layer]["__call__"][0].shape == (1, side, side, channels)
    inside = seen["stage2_block1"]
    # v1.5: the 3x3 convolution has the stride.
    assert [inside[f"conv{i}"]["__call__"][0].shape[1] for i in (1, 2, 3)] == [56, 28, 28]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: models.create("lenet"), "unknown model 'lenet': did you mean 'lenet5'?"),
        (lambda: models.create("cifar_resnet21"), "did you mean 'cifar_resnet"),
        (lambda: models.create("resnext"), "unknown model 'resnext': did you mean 'resnext50_32x4d'?"),
        (lambda: models.create("efficientnet_b0"), "unknown model 'efficientnet_b0': allowed: alexnet"),
        (lambda: models.create("vit_b_16"), "unknown model 'vit_b_16': allowed: alexnet"),
        (lambda: models.create("lenet5", act="mish"), "unknown activation 'mish': allowed: elu"),
        (
            lambda: models.create("lenet5", acct="relu"),
            "unknown field of lenet5 'acct': did you mean 'act'? allowed: num_",
        ),
        (lambda: models.create("resnet18", stems="cifar"), "unknown field of resnet18 'stems': did you mean 'stem'?"),
        (lambda: models.create("lenet5", parent=None), "unknown field of lenet5 'parent'"),
        (lambda: models.create("lenet5", act="rleu"), "unknown activation 'rleu': did you mean 'relu'? allowed: elu"),
        (lambda: models.create("lenet5", act=3), "unknown activation 3"),
        (lambda: models.create("lenet5", act=None), "unknown activation None"),
        (lambda: models.create("lenet5", pool="maxx"), "unknown pooling 'maxx': did you mean 'max'?"),
        (lambda: models.create("lenet5_modern", pool=None), "unknown pooling None"),
        (lambda: models.create("resnet18", norm="bach"), "unknown norm 'bach': did you mean 'batch'?"),
        (lambda: models.create("resnet18", norm=None), "unknown norm None"),
        (lambda: models.create("lenet5", conv="referense"), "did you mean 'reference'?"),
        (lambda: models.create("lenet5", dtype="bfloat1"), "unknown dtype 'bfloat1': did you mean 'bfloat16'?"),
        (lambda: models.create("resnet18", stem="imagnet"), "unknown stem 'imagnet': did you mean 'imagenet'?"),
        (lambda: models.create("resnet18", shortcut="C"), "unknown shortcut 'C': allowed: A, B"),
        (lambda: models.create("resnet18", stage_sizes=(2, 2)), "widths: received (64, 128, 256, 512)"),
        (lambda: models.create("resnet18", norm="none", zero_init_residual=True), "zero_init_residual"),
        (
            lambda: models.create("lenet5", num_classes=11),
            "num_classes: received 11; allowed: 0 (for features), or 1 to 10",
        ),
        (lambda: models.create("resnet18", num_classes=-1), "num_classes: received -1"),
        (lambda: models.create("resnet18", num_classes="ten"), "num_classes: received 'ten'"),
        (lambda: models.create("googlenet", aux="false"), "aux: received 'false'; allowed: True or False"),
        (lambda: models.create("resnet18", remat=1), "remat: received 1; allowed: True, False, 'convolutions'"),
        (lambda: models.create("vgg11", remat="conv"), "remat: received 'conv'; allowed: True, False, 'convolutions'"),
        (lambda: models.create("googlenet", remat=None), "remat: received None; allowed: True, False"),
        (lambda: models.create("densenet121", remat="True"), "remat: received 'True'; allowed: True, False"),
        (lambda: models.create("resnet18", num_classes=True), "num_classes: received True"),
        (lambda: models.create("resnet18", stage_sizes=5), "stage_sizes: received 5; allowed: a tuple, each an"),
        (lambda: models.create("googlenet", stem="cifar"), "stem: received 'cifar'; allowed: a function"),
        (lambda: models.create("geron_fashion", dropout=1.5), "dropout: received 1.5"),
        (lambda: shapes("lenet5", (28, 28)), "received shape (1, 28, 28); allowed: 4 axes"),
        (lambda: shapes("lenet5", (28, 28, 3)), "received 3 channels"),
        (
            lambda: shapes("lenet5", (30, 30, 1)),
            "received 30x30 images (shape (1, 30, 30, 1)); allowed: 28x28 or 32x32",
        ),
        (lambda: shapes("lenet5_modern", (28, 32, 1)), "allowed: 28x28 or 32x32"),
        (lambda: shapes("cs231n_cifar10", (7, 32, 3)), "allowed: 8x8 or larger"),
        (lambda: shapes("convnetjs_mnist", (5, 5, 1)), "allowed: 6x6 or larger"),
        (lambda: shapes("cifar_resnet20", (32, 32)), "allowed: 4 axes"),
        (
            lambda: shapes("cifar_resnet20", (32, 32, 3), widths=(16, 8, 64)),
            "widths: received 8 features after 16; allowed with shortcuts A",
        ),
        (lambda: models.create("lenet5").init(jax.random.key(0), jnp.ones((1, 28, 28, 1), "uint8")), "received uint8"),
    ],
)
def test_bad_input_gets_one_line_that_names_it(call, says):
    with pytest.raises(InputError) as error:
        call()
    assert says in str(error.value)
    assert "\n" not in str(error.value)
