"""What arrays see of the input: by hand, by planting a NaN, and by the gradient's support."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from cnnjax import models, ops
from cnnjax.analysis.summary import summarize
from cnnjax.models import conv_layers

KEY = jax.random.key(0, impl="unsafe_rbg")


class Function(nn.Module):
    """A function as a network."""

    function: Callable

    def __call__(self, x, *, train=False):
        return self.function(x)


def seen(function, shape):
    """What the function's output sees along the two spatial axes of images [*shape]."""
    return summarize(Function(function), shape).seen


def dependent(function, shape, axis):
    """For each position along an axis of the input, the indices of the output that a NaN there reaches."""
    positions = shape[axis]
    planted = np.zeros((positions, *shape), np.float32)
    for i in range(positions):
        np.moveaxis(planted[i], axis, 0)[i] = np.nan
    return [
        set(map(tuple, np.argwhere(np.isnan(y)))) for y in np.asarray(jax.vmap(lambda x: function(x[None]))(planted))
    ]


def kernel(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def conv(window, stride=1, pad=0, dilation=1, holes=1, cin=2, cout=2):
    """A convolution along both axes."""
    return lambda x: lax.conv_general_dilated(
        x, kernel(window, window, cin, cout), (stride,) * 2, ((pad, pad),) * 2, (holes,) * 2, (dilation,) * 2,
        ("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def then(*functions):
    return lambda x: functools.reduce(lambda y, f: f(y), functions, x)


@pytest.mark.parametrize(
    ("function", "size", "jump", "low"),
    [
        (conv(7, 2, 3), 7, 2, -3),
        (then(conv(3, 1, 1), conv(3, 1, 1)), 5, 1, -2),  # two 3x3 see what one 5x5 sees
        (then(conv(3, 1, 1), conv(3, 1, 1), conv(3, 1, 1)), 7, 1, -3),  # three, what one 7x7 sees
        (then(conv(7, 2, 3), lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))), 11, 4, -5),
        (conv(3, dilation=4), 9, 1, 0),
        (then(conv(5), lambda x: nn.avg_pool(x, (2, 2), (2, 2)), conv(5), lambda x: ops.max_pool(x, (2, 2), (2, 2))),
         16, 4, 0),  # LeNet's S4
        (lambda x: x[:, 3::2, 1:], 1, 2, 3),
    ],
)  # fmt: skip
def test_by_hand(function, size, jump, low):
    """Size, distance between neighbours and first position, by the recurrence."""
    down, _ = seen(function, (64, 64, 2))
    assert (down.size, down.step, down.low) == (size, (0, jump, 0, 0), low)


@pytest.mark.parametrize(
    "function",
    [
        conv(3), conv(4, 2, 1), conv(3, 3), conv(2, pad=2), conv(3, dilation=2), conv(5, holes=2, pad=3), conv(1),
        conv(3, pad=-1),
        lambda x: lax.conv_transpose(x, kernel(3, 3, 2, 2), (2, 2), "SAME"),
        lambda x: ops.conv_general_dilated(x, kernel(3, 3, 1, 4), (1, 1), "SAME", feature_group_count=2,
                                           dimension_numbers=("NHWC", "HWIO", "NHWC")),
        lambda x: ops.max_pool(x, (3, 2), (2, 1), ((1, 0), (0, 1))),
        lambda x: ops.avg_pool(x, (2, 3), (1, 2), "SAME"),
        lambda x: ops.lp_pool(x, 2, (2, 2), (2, 2)),
        lambda x: ops.adaptive_avg_pool(x, (3, 2)),
        ops.global_avg_pool, ops.global_max_pool, ops.local_response_norm,
        lambda x: x.mean((1, 2)), lambda x: x.max(1), lambda x: x[:, ::-1],
        lambda x: jnp.pad(x, ((0, 0), (2, 1), (0, 3), (0, 0))),
        lambda x: lax.pad(x, 0.0, ((0, 0, 0), (1, 2, 1), (-1, 0, 0), (0, 0, 0))),
        lambda x: x.reshape(x.shape[0], 6, 2, 5, 2, 2).sum((2, 4)),
        lambda x: x.reshape(x.shape[0], -1), lambda x: x.transpose(0, 2, 1, 3), lambda x: x.reshape(-1, 12, 20),
        lambda x: jnp.concatenate([x, x[:, ::-1]], 1), lambda x: jnp.concatenate([x[:, 1:], 2 * x[:, :-1]], -1),
        lambda x: x * x.mean((1, 2), keepdims=True),
        lambda x: lax.conv_transpose(x, kernel(5, 5, 2, 2), (2, 2), "SAME"), lambda x: x,
        lambda x: lax.fori_loop(0, 2, lambda _, y: y + jnp.roll(y, 1, 1), x),
        lambda x: lax.cond(x.sum() > 0, lambda x: x, lambda x: x[:, ::-1], x),
        lambda x: lax.reduce_window((x, x), (-np.inf, -np.inf), lambda a, b: (a[0] + b[0], a[1] + b[1]),
                                    (1, 3, 3, 1), (1, 1, 1, 1), "SAME")[1],
        lambda x: jax.vmap(conv(3), 0)(x[:, None])[:, 0], lambda x: x[:, 1:].at[:, 2].set(0.0),
        lambda x: jnp.cumsum(x, 1), lambda x: jnp.sort(x, 2), lambda x: x[:, jnp.array([3, 0, 3])],
        lambda x: jnp.einsum("nhwc,hd->ndwc", x, kernel(12, 4)), lambda x: jnp.einsum("nhwc,ngwc->nhgc", x, x),
        lambda x: jax.image.resize(x, (x.shape[0], 24, 20, 2), "nearest"),
        lambda x: jax.checkpoint(conv(3))(x), lambda x: jax.jit(conv(3))(x), jax.nn.relu, jax.nn.gelu,
        lambda x: jnp.ones((1, 3)) + 0 * x.shape[1],
    ],
)  # fmt: skip
def test_nothing_is_seen_that_the_interval_leaves_out(function):
    """What a NaN reaches lies in the interval; and fills it, from end to end, where the interval is not everything."""
    shape = (12, 10, 2)
    for axis, reach in enumerate(seen(function, shape)):
        # The channels of one place together: they may see different parts.
        reached = [{index[:3] + (0,) * len(index[3:]) for index in out} for out in dependent(function, shape, axis)]
        indices = set.union(*reached)
        if reach is None:
            assert not indices
            continue
        for index in indices:
            positions = {i for i, out in enumerate(reached) if index in out}
            interval = reach.interval(index, shape[axis])
            assert positions <= set(interval)
            if not reach.is_everything(shape[axis]):
                assert {interval[0], interval[-1]} <= positions or len(interval) == 0


def test_size_is_that_of_the_most_that_an_output_sees():
    """Behind a transposed convolution of stride 2 with 5 taps outputs see 2 and 3 pixels in turn."""
    reach, _ = seen(lambda x: lax.conv_transpose(x, kernel(5, 5, 2, 2), (2, 2), "SAME"), (12, 12, 2))
    assert sorted({len(reach.interval((0, i, 0, 0), 12)) for i in range(6, 18)}) == [2, 3]
    assert reach.size == 3


def test_nothing_sees_nothing():
    """An array without elements, of any shape."""
    summarize(Function(lambda x: x[:, :0].reshape(1, 0, 7, 3).sum((1, 2))), (6, 5, 2))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.stack(jnp.split(x, 2, 1), 1),
        lambda x: lax.scan(lambda c, row: (c + row, c), x[:, 0], x.swapaxes(0, 1))[1],
        lambda x: jnp.concatenate([x[:, 2:], x[:, :2]], 1),
    ],
)
def test_more_is_seen_where_one_step_cannot_say_it(function):
    """Halves beside each other, sums so far, a rotation: the union of what neighbours see."""
    shape = (12, 10, 2)
    for axis, reach in enumerate(seen(function, shape)):
        reached = dependent(function, shape, axis)
        for index in set.union(*reached):
            assert {i for i, out in enumerate(reached) if index in out} <= set(reach.interval(index, shape[axis]))


LAYERS = st.one_of(
    st.builds(
        conv, st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.integers(1, 2)
    ),
    st.builds(
        lambda k, s, p: lambda x: ops.max_pool(x, (k, k), (s, s), ((p, p), (p, p))),
        st.integers(2, 3), st.integers(1, 3), st.integers(0, 1),
    ),
    st.builds(lambda a, s: lambda x: x[:, a::s, a::s], st.integers(0, 2), st.integers(1, 2)),
    st.just(lambda x: x + jnp.flip(x, -1)),
    st.just(lambda x: jnp.concatenate([x, conv(3, pad=1)(x)], -1)[..., 1:3]),
)  # fmt: skip


@settings(deadline=None, max_examples=25)
@given(st.lists(LAYERS, min_size=1, max_size=4))
def test_any_stack_of_layers(layers):
    """The interval holds what a NaN reaches."""
    function, shape = then(*layers), (20, 20, 2)
    if 0 in jax.eval_shape(function, jax.ShapeDtypeStruct((1, *shape), jnp.float32)).shape:
        return
    down, _ = seen(function, shape)
    reached = dependent(function, shape, 0)
    for index in set.union(*reached):
        positions = {i for i, out in enumerate(reached) if index in out}
        assert positions <= set(down.interval(index, shape[0]))


# Network, fields, the part before global pooling, height and width of the strip.
STRIPS = [
    ("alexnet", {}, "conv5", 355, 67),
    ("vgg11", {}, "conv8", 256, 32),
    ("googlenet", {"aux": False}, "inception5b", 1055, 31),
    ("resnet18", {}, "stage4_block2", 640, 1),
    ("cifar_resnet20", {}, "stage3_block3", 160, 1),
    ("cifar_resnet110", {}, "stage3_block18", 640, 1),
    *(
        pytest.param(*row, marks=pytest.mark.slow)
        for row in [
            ("zfnet", {}, "conv5", 353, 53),
            ("vgg16", {}, "conv13", 320, 32),
            ("googlenet_torchvision", {"aux": False}, "inception5b", 1023, 15),
            ("resnet50", {}, "stage4_block3", 640, 1),
            ("resnet50_v1", {}, "stage4_block3", 640, 1),
            ("resnet50_v2", {}, "stage4_block3", 640, 1),
            ("resnext50_32x4d", {}, "stage4_block3", 640, 1),
            ("cifar_wide16_4", {}, "stage3_block2", 160, 1),
            ("cifar_preact_resnet110", {}, "stage3_block18", 640, 1),
            ("cifar_resnet32", {}, "stage3_block5", 240, 1),
            ("cifar_resnet44", {}, "stage3_block7", 280, 1),
            ("cifar_resnet56", {}, "stage3_block9", 360, 1),
            ("cifar_densenet40_12", {}, "block3_layer12", 240, 4),
            ("densenet121", {}, "block4_layer16", 2304, 29),
        ]
    ),
]  # fmt: skip


@pytest.mark.parametrize("axis", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "fields", "part", "long", "thin"), STRIPS)
def test_receptive_field_of_a_network(name, fields, part, long, thin, axis, draw):
    """A NaN planted in a thin strip reaches exactly the outputs whose receptive field it is in.

    (With tanh: on CPU, XLA's maximum, of which ReLU is made, loses NaNs where it is fused with pooling.)
    """
    model = models.create(name, conv="xla", act="tanh", **fields)
    strip = (long, thin, 3) if axis == 0 else (thin, long, 3)
    layer = next(layer for layer in summarize(model, strip).at_depth(1).layers if layer.name == part)
    outputs = layer.output[axis]
    middle = [0, 0, 0, 0]
    middle[axis + 1] = outputs // 2
    field = layer.seen[axis].interval(middle, long)
    assert field[0] > 0  # or there is nothing to see beside it
    assert field[-1] < long - 1
    planted = np.random.default_rng(0).normal(size=(4, *strip)).astype(np.float32)
    rows = (field[0] - 1, field[0], field[-1], field[-1] + 1)
    for image, row in zip(planted, rows, strict=True):
        np.moveaxis(image, axis, 0)[row] = np.nan
    variables = draw(model, planted[:1])
    y = jax.jit(lambda x: models.features(model, variables, x, [part])[part])(planted)
    reached = np.isnan(y).any(axis=(3, 2 - axis))
    for found, row in zip(reached, rows, strict=True):
        expected = []
        for i in range(outputs):
            index = [0, 0, 0, 0]
            index[axis + 1] = i
            expected.append(row in layer.seen[axis].interval(index, long))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("name", "fields", "part"),
    [
        ("lenet5_modern", {"act": "tanh", "pool": "avg"}, "C3"),
        ("cs231n_cifar10", {"act": "tanh", "pool": "avg"}, "conv5"),
        ("cifar_resnet20", {"act": "tanh", "stage_sizes": (1, 1), "widths": (16, 32)}, "stage2_block1"),
    ],
)
def test_support_of_the_inputs_gradient(name, fields, part, draw):
    """The pixels that change one output are those of its receptive field. (Not by Winograd, which rounds zeros.)"""
    model = models.create(name, conv="xla", **fields)
    about = models.ABOUT[name].input
    layer = next(layer for layer in summarize(model, about).at_depth(1).layers if layer.name == part)
    x = np.random.default_rng(0).normal(size=(1, *about)).astype(np.float32)
    variables = draw(model, x)
    at = (0, layer.output[0] // 2, layer.output[1] // 3)
    gradient = jax.jit(jax.grad(lambda x: models.features(model, variables, x, [part])[part][at].sum()))(x)
    support = np.abs(gradient[0]).sum(-1) > 0
    expected = np.zeros_like(support)
    down, across = (reach.interval((*at, 0), n) for reach, n in zip(layer.seen, about, strict=False))
    expected[down.start : down.stop, across.start : across.stop] = True
    np.testing.assert_array_equal(support, expected)


def test_group_norm_sees_the_whole_image():
    """Its statistics are of all positions."""
    for norm, whole in (("batch", False), ("group", True)):
        parts = summarize(models.create("cifar_resnet20", norm=norm), (160, 160, 3)).at_depth(1).layers
        assert next(part for part in parts if part.name == "stage3_block3").whole == whole


def test_local_convolution_sees_what_convolution_sees():
    local, shared = (
        summarize(models.create(name), (28, 28, 1)).layers[2] for name in ("locally_connected", "lenet5_modern")
    )
    assert local.receptive_field == shared.receptive_field == (14, 14)
    assert conv_layers.ConvLocal.__name__ == local.kind
