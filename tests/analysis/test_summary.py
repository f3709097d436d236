"""What `summarize` says of networks, against published numbers, hand counts and the networks themselves."""

import functools
import json
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from cnnjax import models, ops
from cnnjax.analysis.summary import as_json, summarize
from cnnjax.models import conv_layers, resnet
from cnnjax.ops import InputError


@functools.cache
def summary_of(name, **fields):
    return summarize(models.create(name, **fields), models.ABOUT[name].input, name=name)


# Billions of multiply-adds of one 224x224 image, as torchvision's metadata of its weights has them ("_ops").
PUBLISHED = {
    "alexnet_torchvision": 0.714, "vgg11": 7.609, "vgg13": 11.308, "vgg16": 15.47, "vgg16_bn": 15.47, "vgg19": 19.632,
    "googlenet_torchvision": 1.498, "resnet18": 1.814, "resnet34": 3.664, "resnet50": 4.089, "resnet101": 7.801,
    "resnet152": 11.514, "resnext50_32x4d": 4.23, "resnext101_32x8d": 16.414, "resnext101_64x4d": 15.46,
    "wide_resnet50_2": 11.398, "wide_resnet101_2": 22.753,
    "densenet121": 2.834, "densenet161": 7.728, "densenet169": 3.36, "densenet201": 4.291,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_multiply_adds(name):
    assert models.ABOUT[name].multiply_adds == pytest.approx(PUBLISHED[name] * 1e9, rel=0.01)


def test_lenet5_by_hand():
    """Layer by layer as in the paper; multiply-adds are its connections without biases, but that C3 is computed with
    a kernel that has zeros where its table has no connection."""
    found = summary_of("lenet5")
    rows = {
        layer.name: (layer.output, layer.window, layer.strides, layer.parameters, layer.receptive_field)
        for layer in found.layers
    }
    assert rows == {
        "C1": ((28, 28, 6), (5, 5), (1, 1), 156, (5, 5)),
        "S2": ((14, 14, 6), (2, 2), (2, 2), 12, (6, 6)),
        "C3": ((10, 10, 16), (5, 5), (1, 1), 1_516, (14, 14)),
        "S4": ((5, 5, 16), (2, 2), (2, 2), 32, (16, 16)),
        "C5": ((1, 1, 120), (5, 5), (1, 1), 48_120, (32, 32)),
        "F6": ((84,), (), (), 10_164, (32, 32)),
        "output": ((10,), (), (), 0, (32, 32)),
    }
    adds = {layer.name: layer.multiply_adds for layer in found.layers}
    assert adds == {
        "C1": 122_304 - 28 * 28 * 6, "S2": 0, "C3": 100 * 25 * 6 * 16, "S4": 0, "C5": 48_000, "F6": 10_080, "output": 0,
    }  # fmt: skip
    assert [layer.inputs for layer in found.layers] == [(i,) for i in range(-1, 6)]
    assert (found.layers[0].memory, found.output) == (28 * 28 * 6 * 4, (6,))


def test_resnet50_as_published():
    """Table 1 of the paper: sizes 112, 56, 28, 14 and 7, and what each stage ends with."""
    found = summary_of("resnet50")
    parts = {layer.name: layer for layer in found.at_depth(1).layers}
    assert parts["conv1"].output == (112, 112, 64)
    assert (parts["conv1"].window, parts["conv1"].strides) == ((7, 7), (2, 2))
    assert parts["max pool"].output == (56, 56, 64)
    assert (parts["max pool"].window, parts["max pool"].strides) == ((3, 3), (2, 2))
    assert parts["max pool"].padding == ((1, 1), (1, 1))
    for stage, (blocks, side, width) in enumerate([(3, 56, 256), (4, 28, 512), (6, 14, 1024), (3, 7, 2048)], 1):
        names = [name for name in parts if name.startswith(f"stage{stage}_")]
        assert names == [f"stage{stage}_block{i}" for i in range(1, blocks + 1)]
        assert {parts[name].output for name in names} == {(side, side, width)}
    assert parts["global average"].output == (2048,)
    assert parts["output"].output == (1000,)
    assert found.receptive_field == (427, 427)
    assert parts["stage4_block3"].jump == (32, 32)
    block = {layer.name.split("/")[1]: layer for layer in found.layers if layer.name.startswith("stage2_block1/")}
    assert [block[f"conv{i}"].output for i in (1, 2, 3)] == [(56, 56, 128), (28, 28, 128), (28, 28, 512)]
    assert [found.layers[i].name for i in block["add"].inputs] == [
        "stage2_block1/norm3", "stage2_block1/shortcut_norm",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "field"),
    [("alexnet", 195), ("vgg16", 212), ("resnet18", 435), ("resnet50", 427), ("densenet121", 2071)],
)
def test_known_receptive_fields(name, field):
    """Of the last layer before global pooling or dense layers."""
    assert summary_of(name).receptive_field == (field, field)


@pytest.mark.parametrize("name", ["lenet5", "googlenet", "densenet121", "resnext50_32x4d"])
@pytest.mark.parametrize("depth", [1, 2])
def test_modules_add_up(name, depth):
    whole = summary_of(name)
    parts = whole.at_depth(depth)
    for total in ("parameters", "multiply_adds", "memory", "receptive_field"):
        assert getattr(parts, total) == getattr(whole, total)
    assert len(parts.layers) <= len(whole.layers)
    assert len({layer.name for layer in parts.layers if layer.kind == "module"}) == len(
        [layer for layer in parts.layers if layer.kind == "module"]
    )


def test_heads_of_training_alone_are_counted_and_said_to_be():
    found = summary_of("googlenet")
    aside = {layer.name: layer.parameters for layer in found.layers if layer.kind == "training only"}
    assert set(aside) == {"aux1_head", "aux2_head"}
    assert found.parameters - sum(aside.values()) == 6_998_552


def test_groups_and_implementations():
    """Which implementation each convolution goes to, where one is asked for that can't do all."""
    found = summary_of("alexnet", conv=ops.conv_implementation("winograd", otherwise="im2col"))
    by = {layer.name: (layer.groups, layer.implementation) for layer in found.layers if layer.name.startswith("conv")}
    assert by == {
        "conv1": (1, "im2col"), "conv2": (2, "winograd"), "conv3": (1, "winograd"), "conv4": (2, "winograd"),
        "conv5": (2, "winograd"),
    }  # fmt: skip
    assert {layer.implementation for layer in summary_of("lenet5_modern").layers} == {"", "auto"}


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_densenet40_12", "googlenet", "vgg11_bn"])
def test_remat_is_no_other_network(name):
    strip = lambda found: [(row["name"], row["kind"], row["output"], row["multiply_adds"]) for row in found["layers"]]
    assert strip(as_json(summary_of(name, remat=True))) == strip(as_json(summary_of(name)))


class PlainFlax(nn.Module):
    """A network without anything of cnnjax's, with a layer that is used twice and a parameter of its own."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.max_pool(nn.relu(nn.Conv(8, (3, 3), name="first")(x)), (2, 2), (2, 2))
        twice = nn.Conv(8, (3, 3), name="twice")
        y = twice(nn.relu(twice(x)))
        x = (x + y) * self.param("scale", nn.initializers.ones, (8,))
        x = nn.ConvTranspose(4, (2, 2), (2, 2), name="up")(nn.avg_pool(x, (3, 3), (1, 1), "SAME"))
        x = nn.Dropout(0.5, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(3, name="output")(x)


def test_anyones_network():
    found = summarize(PlainFlax(), (16, 12, 3))
    variables = jax.eval_shape(PlainFlax().init, jax.random.key(0), jnp.ones((1, 16, 12, 3)))
    assert found.parameters == models.count_parameters(variables)
    assert [(layer.name, layer.kind) for layer in found.layers] == [
        ("first", "Conv"), ("max pool", "max pool"), ("twice", "Conv"), ("twice", "Conv"), ("add", "add"),
        ("average pool", "average pool"), ("up", "ConvTranspose"), ("global average", "global average"),
        ("output", "Dense"), ("scale", "parameters"),
    ]  # fmt: skip
    by = {layer.name: layer for layer in found.layers}
    assert by["max pool"].output == (8, 6, 8)
    assert by["up"].multiply_adds == 8 * 6 * 4 * 8 * 4  # each input element meets each tap once
    assert by["add"].inputs == (1, 3)
    assert by["add"].receptive_field == (4 + 4 * 2, 4 + 4 * 2)
    assert by["scale"].parameters == 8


class Block(nn.Module):
    """A 3x3 convolution beside an identity."""

    @nn.compact
    def __call__(self, x):
        return x + nn.Conv(x.shape[-1], (3, 3), name="conv")(x)


class Repeated(nn.Module):
    """Three blocks, one after another, as `how` makes them."""

    how: str

    @nn.compact
    def __call__(self, x):
        if self.how == "jit":
            for i in range(3):
                x = nn.jit(Block)(name=f"block{i}")(x)
        elif self.how == "scan":
            step = lambda block, x, _: (block(x), None)
            scan = nn.scan(step, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            x, _ = scan(Block(name="block"), x, None)
        else:
            for i in range(3):
                x = Block(name=f"block{i}")(x)
        return x


@pytest.mark.parametrize("how", ["python", "jit", "scan"])
def test_blocks_that_jax_traces_once(how):
    """Each counts, with its own place; a model without a keyword `train` is called without."""
    found = summarize(Repeated(how), (16, 16, 4))
    assert found.multiply_adds == 3 * 16 * 16 * 9 * 4 * 4
    assert found.parameters == 3 * (9 * 4 * 4 + 4)
    assert found.receptive_field == (7, 7)
    assert [layer.kind for layer in found.layers] == ["Conv", "add"] * 3
    assert [layer.inputs for layer in found.layers] == [(-1,), (-1, 0), (1,), (1, 2), (3,), (3, 4)]


def test_a_summary_leaves_no_trace():
    """What was traced in between computes as it did, and what was traced before is seen none the less."""
    pool = jax.jit(lambda x: ops.max_pool(x, (3, 3), (2, 2)))

    class Pooled(nn.Module):
        def __call__(self, x):
            return pool(x).mean((1, 2))

    x = jnp.ones((1, 8, 8, 3))
    for _ in range(2):
        assert [layer.kind for layer in summarize(Pooled(), (8, 8, 3)).layers] == ["max pool", "global average"]
        assert "reduce_window" not in str(jax.make_jaxpr(pool)(x))


class Unusual(nn.Module):
    """A dilated, a transposed and a fixed convolution, products of activations, a method, a print, metadata."""

    def setup(self):
        partitioned = nn.with_partitioning(nn.initializers.lecun_normal(), (None,) * 4)
        self.wide = nn.Conv(4, (3, 3), kernel_dilation=2, kernel_init=partitioned)
        self.up = nn.ConvTranspose(4, (3, 3), (2, 2), padding="VALID")
        self.words = nn.Embed(7, 4)
        self.head = Block(name="max pool")
        self.drop = nn.Dropout(0.5, deterministic=False)

    def __call__(self, x, *, train):
        x = self.up(self.wide(x))
        jax.debug.print("{}", x.sum())
        x = self.head(nn.max_pool(x, (2, 2), (2, 2)))
        x = jax.image.resize(x, (1, 8, 8, 4), "bilinear").reshape(1, 64, 4)
        attention = nn.softmax(jnp.einsum("nqc,nkc->nqk", x, x))
        x = self.drop(jnp.einsum("nqk,nkc->nqc", attention, x))
        return self.words.attend(x.mean(1))


def test_unusual_layers():
    found = summarize(Unusual(), (16, 16, 3))
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    init = functools.partial(Unusual().init, train=False)
    variables = nn.meta.unbox(jax.eval_shape(init, rngs, jnp.ones((1, 16, 16, 3))))
    rows = {layer.name: layer for layer in found.layers}
    assert found.parameters == models.count_parameters(variables)
    assert rows["wide"].dilation == (2, 2)
    assert rows["up"].multiply_adds == 16 * 16 * 9 * 4 * 4  # each pixel meets each tap
    assert rows["max pool"].parameters == 0  # the pooling's row, not that of the module of that name
    assert rows["max pool/conv"].parameters == 9 * 4 * 4 + 4
    assert [layer.multiply_adds for layer in found.layers if layer.kind == "product"] == [64 * 64 * 4] * 2
    assert (rows["words"].kind, rows["words"].multiply_adds, rows["words"].parameters) == ("Embed", 28, 28)


@pytest.mark.parametrize("transposed", [nn.ConvTranspose, conv_layers.ConvTranspose])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (5, 4)])
def test_multiply_adds_of_transposed_convolutions(transposed, stride, dilation, size):
    """Each element of the input meets each tap once, whatever the stride."""

    class Up(nn.Module):
        @nn.compact
        def __call__(self, x):
            return transposed(7, (3, 2), (stride,) * 2, "VALID", kernel_dilation=dilation, name="up")(x)

    (layer,) = summarize(Up(), (*size, 5)).layers
    assert layer.multiply_adds == math.prod(size) * 3 * 2 * 5 * 7


def test_multiply_adds_of_a_transposed_convolution_that_is_cropped():
    """At stride 1, "SAME" has the outputs of a convolution, and what a convolution counts."""

    class Same(nn.Module):
        layer: Any

        @nn.compact
        def __call__(self, x):
            return self.layer(7, (3, 3))(x)

    for module in (nn.Conv, nn.ConvTranspose):
        (layer,) = summarize(Same(module), (5, 4, 2)).layers
        assert layer.multiply_adds == 20 * 9 * 2 * 7


def test_what_is_not_looked_into_is_a_layer():
    class Loop(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(3, (3, 3), name="conv")(x)
            return jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: 2 * y, x)

    found = summarize(Loop(), (8, 8, 3))
    assert (found.layers[0].kind, found.layers[0].whole) == ("Conv", False)
    assert (found.layers[-1].kind, found.layers[-1].whole) == ("while loop", True)


def test_group_norm_makes_the_network_see_all():
    found = summary_of("cifar_resnet20", norm="group")
    assert found.local.whole
    assert summary_of("cifar_resnet20").receptive_field == (81, 81)


def test_memory_goes_with_the_type():
    fields = {"dtype": "bfloat16", "norm": "none"}
    half, whole = summary_of("cifar_resnet20", **fields), summary_of("cifar_resnet20", norm="none")
    first = [next(layer for layer in found.layers if layer.name == "conv1").memory for found in (half, whole)]
    assert first == [32 * 32 * 16 * 2, 32 * 32 * 16 * 4]


def test_any_size_without_allocating_it():
    """A gigapixel image."""
    found = summarize(models.create("resnet18", conv="xla"), (32_768, 32_768, 3))
    assert found.layers[0].output == (16_384, 16_384, 64)
    assert found.memory > 2**38


def test_json():
    rows = json.loads(json.dumps(as_json(summary_of("cifar_resnet20"))))
    assert rows["parameters"] == 269_722
    first = rows["layers"][0]
    assert (first["name"], first["inputs"], first["receptive_field"]) == ("conv1", [-1], [3, 3])
    assert all(math.prod(layer["output"]) * 4 == layer["memory"] for layer in rows["layers"])


def test_own_blocks_and_shortcuts_are_followed():
    found = summary_of("cifar_resnet20", shortcut=resnet.project)
    assert found.parameters == 272_474
    assert any(layer.name == "stage2_block1/shortcut_conv" for layer in found.layers)


@pytest.mark.parametrize("image", [(32, 32), (0, 32, 3), (32, 32, 3.0), (1, 32, 32, 3), "abc", 5, (2**40, 3, 3)])
def test_bad_images(image):
    with pytest.raises(InputError, match=r"input: received .*; allowed: height, width and channels"):
        summarize(models.create("resnet18"), image)


def test_an_image_too_small_for_the_network():
    with pytest.raises(InputError, match="allowed: 32x32 or larger"):
        summarize(models.create("vgg11"), (31, 31, 3))
