"""The published networks: parameters by the table, maps on the way, inputs, heads, names of every part."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params

from cnnjax import models
from cnnjax.models import resnet
from cnnjax.models.plain import Conv, Lrn, Pool
from cnnjax.ops import CONV_IMPLEMENTATIONS, InputError

# Model, fields and the parameters of the network as published or as torchvision has it.
COUNTS = [
    ("lenet5", {}, 60_000),
    ("lenet5_modern", {}, 61_706),
    ("cs231n_cifar10", {}, 6_440),
    ("convnetjs_cifar10", {}, 22_466),
    ("convnetjs_mnist", {}, 5_994),
    ("geron_fashion", {}, 1_413_834),
    ("alexnet", {}, 60_965_224),
    ("alexnet_ungrouped", {}, 62_378_344),
    ("alexnet_torchvision", {}, 61_100_840),
    ("zfnet", {}, 62_357_608),
    ("vgg11", {}, 132_863_336),
    ("vgg13", {}, 133_047_848),
    ("vgg16c", {}, 133_638_952),
    ("vgg16", {}, 138_357_544),
    ("vgg19", {}, 143_667_240),
    ("vgg11_bn", {}, 132_868_840),
    ("vgg13_bn", {}, 133_053_736),
    ("vgg16c_bn", {}, 133_647_400),
    ("vgg16_bn", {}, 138_365_992),
    ("vgg19_bn", {}, 143_678_248),
    ("googlenet", {"aux": False}, 6_998_552),
    ("googlenet", {}, 13_378_280),
    ("googlenet_torchvision", {"aux": False}, 6_624_904),
    ("googlenet_torchvision", {}, 13_004_888),
    ("googlenet_torchvision", {"aux": False, "widest": 5}, 7_005_832),
    ("googlenet_torchvision", {"widest": 5}, 13_385_816),
    ("resnet18", {}, 11_689_512),
    ("resnet34", {}, 21_797_672),
    ("resnet50", {}, 25_557_032),
    ("resnet50_v1", {}, 25_557_032),
    ("resnet101", {}, 44_549_160),
    ("resnet152", {}, 60_192_808),
    ("resnet200", {}, 64_673_832),
    ("resnext50_32x4d", {}, 25_028_904),
    ("resnext101_32x8d", {}, 88_791_336),
    ("resnext101_64x4d", {}, 83_455_272),
    ("wide_resnet50_2", {}, 68_883_240),
    ("wide_resnet101_2", {}, 126_886_696),
    ("cifar_wide16_4", {}, 2_748_890),
    ("cifar_wide16_8", {}, 10_961_370),
    ("cifar_wide28_10", {}, 36_479_194),
    ("cifar_wide40_2", {}, 2_243_546),
    ("cifar_wide40_4", {}, 8_949_210),
    *((f"cifar_resnet{depth}", {}, a) for depth, a in zip(
        (20, 32, 44, 56, 110, 1202), (269_722, 464_154, 658_586, 853_018, 1_727_962, 19_421_274), strict=True)),
    *((f"cifar_resnet{depth}", {"shortcut": "B"}, b) for depth, b in zip(
        (20, 32, 44, 56, 110, 1202), (272_474, 466_906, 661_338, 855_770, 1_730_714, 19_424_026), strict=True)),
    ("densenet121", {}, 7_978_856),
    ("densenet161", {}, 28_681_000),
    ("densenet169", {}, 14_149_480),
    ("densenet201", {}, 20_013_928),
    ("cifar_densenet40_12", {}, 1_019_722),
    ("cifar_densenet100_12", {}, 6_979_642),
    ("cifar_densenet100_24", {}, 27_249_082),
    ("cifar_densenet_bc100_12", {}, 769_162),
    ("cifar_densenet_bc250_24", {}, 15_324_406),
    ("cifar_densenet_bc190_40", {}, 25_624_430),
]  # fmt: skip


def create(name, **fields):
    """The model with XLA's convolution, which is the quickest to trace."""
    return models.create(name, **fields) if name == "locally_connected" or name == "fully_connected" else models.create(
        name, conv=lax.conv_general_dilated, **fields
    )  # fmt: skip


def variables_of(model, image):
    """Shapes of the variables, for one image [height, width, channels]."""
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    return jax.eval_shape(model.init, rngs, jax.ShapeDtypeStruct((1, *image), jnp.float32))


def maps(name, image, **fields):
    """The shape of every part's output, [height, width, channels], by its name."""
    model = create(name, **fields)
    x = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    capture = functools.partial(model.apply, capture_intermediates=True, mutable=["intermediates"])
    seen = jax.eval_shape(capture, variables_of(model, image), x)[1]["intermediates"]
    return {part: outputs["__call__"][0].shape[1:] for part, outputs in seen.items() if "__call__" in outputs}


@pytest.mark.parametrize(("name", "fields", "parameters"), COUNTS)
def test_parameters(name, fields, parameters):
    variables = variables_of(create(name, **fields), models.ABOUT[name].input)
    assert models.count_parameters(variables) == parameters


def test_the_listing_says_the_same():
    assert set(models.ABOUT) == set(models.MODELS)
    for name, fields, parameters in COUNTS:
        if not fields:
            assert models.describe(name)["parameters"] == parameters


def test_alexnets_maps():
    """55, 27, 13 and 6 on a side; the dense layers see 9,216 numbers."""
    seen = maps("alexnet", (227, 227, 3))
    assert [seen[f"conv{i}"] for i in range(1, 6)] == [
        (55, 55, 96), (27, 27, 256), (13, 13, 384), (13, 13, 384), (13, 13, 256)
    ]  # fmt: skip
    assert variables_of(create("alexnet"), (227, 227, 3))["params"]["dense1"]["kernel"].shape == (9216, 4096)
    seen = maps("zfnet", (224, 224, 3))
    assert [seen[f"conv{i}"][0] for i in range(1, 6)] == [110, 26, 13, 13, 13]


def test_googlenets_maps():
    """Channels after each module, and 28, 14 and 7 on a side, of images whose maps are odd on the way too."""
    channels = [256, 480, 512, 512, 512, 528, 832, 832, 1024]
    for name in ("googlenet", "googlenet_torchvision"):
        seen = maps(name, (224, 224, 3))
        inceptions = [seen[f"inception{stage}"] for stage in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")]
        assert [c for _, _, c in inceptions] == channels
        assert [side for side, _, _ in inceptions] == [28, 28, 14, 14, 14, 14, 14, 7, 7]
        assert "aux1_head" not in seen


def test_auxiliary_heads_are_sown_in_training_alone():
    model = create("googlenet", num_classes=7)
    variables = variables_of(model, (224, 224, 3))
    params = {"params": variables["params"]}
    x = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    train = functools.partial(model.apply, train=True, mutable=["aux_logits"], rngs={"dropout": jax.random.key(0)})
    logits, sown = jax.eval_shape(train, params, x)
    assert logits.shape == (2, 7)
    assert {name: values[0].shape for name, values in sown["aux_logits"].items()} == {"aux1": (2, 7), "aux2": (2, 7)}
    _, sown = jax.eval_shape(functools.partial(model.apply, mutable=["aux_logits"]), params, x)
    assert not sown
    assert set(variables) == {"params"}  # none of `init`'s images are left in it
    with pytest.raises(InputError, match=r"79x79 or larger with auxiliary heads \(aux=False"):
        variables_of(model, (64, 64, 3))
    assert not any("head" in part for part in variables_of(create("googlenet", aux=False), (224, 224, 3))["params"])


def test_densenets_maps():
    seen = maps("densenet121", (224, 224, 3))
    assert [seen[f"block{i}_layer{n}"] for i, n in enumerate((6, 12, 24, 16), 1)] == [
        (56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 1024)
    ]  # fmt: skip
    assert [seen[f"transition{i}"] for i in (1, 2, 3)] == [(28, 28, 128), (14, 14, 256), (7, 7, 512)]


def test_a_dense_layer_keeps_what_it_sees(draw):
    """The first channels of a layer's output are the outputs of the layers before it, unchanged."""
    model = models.create("cifar_densenet_bc100_12", block_sizes=(3, 1, 1), growth=4, stem_features=8)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    capture = jax.jit(functools.partial(model.apply, capture_intermediates=True, mutable=["intermediates"]))
    parts = capture(draw(model, x), x)[1]["intermediates"]
    seen = {name: parts[name]["__call__"][0] for name in ("conv1", "block1_layer2", "block1_layer3")}
    last = seen["block1_layer3"]
    assert last.shape[-1] == 8 + 3 * 4
    np.testing.assert_array_equal(last[..., :8], seen["conv1"])
    np.testing.assert_array_equal(last[..., :16], seen["block1_layer2"])


@pytest.mark.parametrize("version", ["resnet50", "resnet50_v1", "resnet50_v2"])
def test_where_the_stride_is(version):
    """v1 has it on the first 1x1 convolution of a stage, v1.5 and v2 on the 3x3."""
    model = create(version)
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    capture = functools.partial(model.apply, capture_intermediates=True, mutable=["intermediates"])
    block = jax.eval_shape(capture, variables_of(model, (224, 224, 3)), x)[1]["intermediates"]["stage2_block1"]
    sides = [block[f"conv{i}"]["__call__"][0].shape[1] for i in (1, 2, 3)]
    assert sides == ([28, 28, 28] if version == "resnet50_v1" else [56, 28, 28])


SMALL = {
    "alexnet": 67, "alexnet_torchvision": 63, "zfnet": 53, "vgg11": 32, "vgg16_bn": 32, "googlenet": 79,
    "googlenet_torchvision": 15, "resnet18": 1, "resnet50_v2": 1, "densenet121": 29, "cifar_densenet40_12": 4,
    "cifar_wide16_4": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_the_smallest_image(name):
    """One pixel less leaves nothing to classify, and the error says so; at that size there are logits."""
    side, model = SMALL[name], create(name, num_classes=3)
    shape = jax.eval_shape(
        lambda x: model.init_with_output({"params": jax.random.key(0), "dropout": jax.random.key(0)}, x)[0],
        jax.ShapeDtypeStruct((2, side, side + 1, 3), jnp.float32),
    )
    assert shape.shape == (2, 3)
    if side > 1:
        with pytest.raises(InputError, match=f"allowed: {side}x{side} or larger"):
            variables_of(model, (side - 1, side, 3))


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "none"])
@pytest.mark.parametrize(
    "name",
    [
        "alexnet", "zfnet", "vgg11", "googlenet", "googlenet_torchvision", "resnet18", "resnet50_v2",
        "resnext50_32x4d", "cifar_wide16_4", "densenet121", "cifar_densenet40_12",
    ],
)  # fmt: skip
def test_every_norm_in_every_family(name, norm):
    """Whatever the number of channels."""
    variables = variables_of(create(name, norm=norm), models.ABOUT[name].input)
    assert ("batch_stats" in variables) == (norm == "batch")


def test_vgg_without_norm_is_vgg():
    assert models.count_parameters(variables_of(create("vgg11_bn", norm="none"), (224, 224, 3))) == 132_863_336


@pytest.mark.parametrize(
    "name", ["lenet5_modern", "fully_connected", "geron_fashion", "vgg11", "resnet18", "densenet121"]
)
def test_features_instead_of_logits(name):
    """`num_classes=0` leaves the last layer out, and gives what it saw."""
    about = models.ABOUT[name]
    model, whole = create(name, num_classes=0), variables_of(create(name, num_classes=3), about.input)["params"]
    variables = variables_of(model, about.input)
    assert set(whole) - set(variables["params"]) == {"output"}
    features = jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct((2, *about.input), jnp.float32))
    assert features.shape == (2, whole["output"]["kernel"].shape[0])


@pytest.mark.parametrize("remat", [False, True])
def test_stochastic_depth(draw, remat):
    """In training each example loses whole branches, by the key; what is left is scaled; evaluation has them all."""
    fields = {"stage_sizes": (1, 1, 2), "norm": "none", "remat": remat}
    model = create("cifar_resnet20", drop_path=0.5, **fields)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 8, 8, 3)), jnp.float32)
    variables = draw(model, x)
    run = jax.jit(lambda key: model.apply(variables, x, train=True, rngs={"dropout": key}))
    first, second = run(jax.random.key(1)), run(jax.random.key(2))
    np.testing.assert_array_equal(first, run(jax.random.key(1)))
    assert 0 < (np.abs(first - second).max(1) > 1e-6).mean() < 1
    plain = create("cifar_resnet20", **fields)
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, x), jax.jit(plain.apply)(variables, x))
    with pytest.raises(InputError, match=r"drop_path: received 1.0; allowed: at least 0 and less than 1"):
        models.create("cifar_resnet20", drop_path=1.0)


def test_remat_changes_nothing_but_memory(draw):
    """Same parameters, same gradients; the blocks are computed again."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    for name, fields in {
        "cifar_resnet20": {"stage_sizes": (1, 1, 1)},
        "cifar_densenet_bc100_12": {"block_sizes": (2, 1), "growth": 4, "stem_features": 8},
        "vgg11": {
            "layers": (Conv(4, 3, pad=1), Pool(2, 2), Lrn(), Conv(4, 3), Pool(2, 2)),
            "grid": (1, 1),
            "dense": (5,),
        },
    }.items():
        kept = create(name, **fields)
        variables = draw(kept, x)
        gradient = lambda model: jax.grad(lambda v: (model.apply(v, x) ** 2).sum())
        assert "remat" not in str(jax.make_jaxpr(gradient(kept))(variables))
        expected = jax.jit(gradient(kept))(variables)
        for remat in (True, "convolutions"):
            again = create(name, remat=remat, **fields)
            assert jax.tree.structure(draw(again, x)) == jax.tree.structure(variables)
            close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5, err_msg=f"{name} {remat}")
            jax.tree.map(close, jax.jit(gradient(again))(variables), expected)
            assert "remat" in str(jax.make_jaxpr(gradient(again))(variables))


def loss_of_resnet8(draw, **fields):
    """A loss of a network with a block of two convolutions a stage, and the parameters it is a function of."""
    model = models.create("cifar_resnet20", stage_sizes=(1, 1, 1), **fields)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)
    variables = draw(model, x)

    def loss(params):
        outputs, updated = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return (outputs**2).sum(), updated

    return loss, variables["params"]


@pytest.mark.parametrize("conv", [f"{name}:xla" for name in CONV_IMPLEMENTATIONS])
def test_what_convolutions_give_is_kept(conv, draw):
    """Products of the gradient, whatever they are made by: with "convolutions" as many as without remat."""

    def products(jaxpr):
        total = 0
        for eqn in jaxpr.eqns:
            total += eqn.primitive in (lax.conv_general_dilated_p, lax.dot_general_p)
            total += sum(map(products, jaxprs_in_params(eqn.params)))
        return total

    def count(remat):
        loss, params = loss_of_resnet8(draw, conv=conv, remat=remat)
        return products(jax.make_jaxpr(jax.grad(loss, has_aux=True))(params).jaxpr)

    assert count("convolutions") == count(False)
    assert count(True) >= count(False) + 6  # the convolutions of the blocks, each at least one product


def test_what_is_kept_of_a_block(draw, capsys):
    """Of the second stage's maps: with True what the block gives alone, with "convolutions" two more."""

    def kept(remat):
        loss, params = loss_of_resnet8(draw, conv="xla", remat=remat)
        jax.ad_checkpoint.print_saved_residuals(lambda p: loss(p)[0], params)
        return [line for line in capsys.readouterr().out.splitlines() if "[2,8,8,32]" in line]

    assert len(kept(True)) == 1
    assert ["named 'convolution'" in line for line in kept("convolutions")] == [True, True, False]
    assert len(kept(False)) > 3


def test_branches_that_end_in_a_convolution_do_not_start_at_zero():
    """Behind a scale and an offset of zero, ReLU has no gradient: the branch would never train."""
    for name in ("resnet18_v2", "cifar_preact_resnet164", "cifar_wide16_4"):
        with pytest.raises(InputError, match="zero_init_residual: received True; allowed: False, since branches"):
            create(name, zero_init_residual=True)


def test_the_first_preactivated_block_passes_on_what_is_activated(draw):
    """Its shortcut begins after the first norm and activation (appendix), those of the others before."""
    model = create("cifar_preact_resnet110", stage_sizes=(2, 1, 1))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    variables = draw(model, x)
    params = dict(variables["params"])
    for name in ("stage1_block1", "stage1_block2"):  # no branches
        params[name] = {**params[name], "conv2": {"kernel": jnp.zeros_like(params[name]["conv2"]["kernel"])}}
    seen = jax.jit(lambda v: models.features(model, v, x))({**variables, "params": params})
    norm = seen["stage1_block1/norm1"]
    np.testing.assert_array_equal(seen["stage1_block1"], np.maximum(norm, 0))
    np.testing.assert_array_equal(seen["stage1_block2"], seen["stage1_block1"])
    assert (seen["conv1"] < 0).any()


def dropouts(name, **fields):
    """How many maps lose elements in training."""
    model = create(name, **fields)
    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    variables = variables_of(model, (8, 8, 3))
    run = lambda v, x: model.apply(v, x, train=True, rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"])
    with jax.disable_jit():  # or functions that are called several times would stand there once
        return str(jax.make_jaxpr(run)(variables, x)).count("random_bits[")


def test_dropout_where_the_papers_have_it():
    """In dense networks after every convolution but the first; in wide ones inside each block."""
    dense = {"block_sizes": (1, 1, 1), "growth": 4, "stem_features": 8}
    assert dropouts("cifar_densenet_bc100_12", dropout=0.2, **dense) == 8
    assert dropouts("cifar_densenet40_12", dropout=0.2, **dense) == 5
    assert dropouts("cifar_wide16_4", dropout=0.3, widths=(4, 8, 8)) == 6
    assert dropouts("cifar_wide16_4", widths=(4, 8, 8)) == 0
    with pytest.raises(InputError, match=r"dropout: received 0\.3; allowed: 0, since"):
        create("resnet18", dropout=0.3)


def test_shortcuts_and_stems_can_be_ones_own():
    """A function with their signature does."""
    seen = maps("resnet18", (32, 32, 3), stem=resnet.cifar_stem, shortcut=resnet.pad_channels)
    assert seen["stage4_block2"] == (4, 4, 512)
