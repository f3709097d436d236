"""Our convolution layers against Flax's: the same variables, bit for bit, and the same outputs."""

import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cnnjax.models import conv_layers
from cnnjax.ops import InputError, conv_general_dilated, conv_implementation


def normal(*shape, dtype=np.float32):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


def shapes(module, x):
    """The variables' names, shapes and dtypes."""
    return jax.eval_shape(module.init, jax.random.key(0), x)


def draw(module, x):
    """Variables that are not at their initial values, which hide what zeros hide."""
    return jax.tree.map(lambda v: jnp.asarray(normal(*v.shape), v.dtype), shapes(module, x))


def close(actual, expected, rtol=1e-5, atol=1e-4):
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    np.testing.assert_allclose(np.asarray(actual, np.float64), np.asarray(expected, np.float64), rtol=rtol, atol=atol)


def same(ours, theirs, x, rtol=1e-5, atol=1e-4):
    """The same variables, and the same outputs but for rounding."""
    assert shapes(ours, x) == shapes(theirs, x)
    variables = draw(ours, x)
    actual, expected = jax.jit(lambda variables, x: [m.apply(variables, x) for m in (ours, theirs)])(variables, x)
    close(actual, expected, rtol, atol)


# --- Transposed convolution -----------------------------------------------------------------------------------------

# (input, kernel_size, fields); 3 features.
TRANSPOSED = {
    "1-D": ((2, 5, 2), 3, {"strides": (2,)}),
    "stride 1": ((2, 5, 2), (4,), {}),
    "2-D": ((2, 4, 3, 2), (3, 4), {"strides": (2, 3)}),
    "valid": ((2, 4, 3, 2), (3, 2), {"strides": (2, 3), "padding": "VALID"}),
    "int stride": ((1, 4, 3, 2), (3, 3), {"strides": 2}),
    "int padding": ((1, 4, 3, 2), (3, 3), {"strides": (2, 2), "padding": 1}),
    "ints": ((1, 4, 3, 2), (3, 3), {"strides": (2, 2), "padding": [1, 2]}),
    "pairs": ((1, 4, 3, 2), (3, 3), {"strides": (2, 2), "padding": ((1, 2), 0)}),
    "dilated": ((1, 4, 3, 2), (3, 2), {"strides": (2, 1), "kernel_dilation": (2, 3)}),
    "transposed kernel": ((1, 4, 3, 2), (4, 3), {"strides": (2, 2), "transpose_kernel": True}),
    "no bias": ((1, 4, 3, 2), (3, 3), {"use_bias": False}),
    "3-D": ((1, 3, 2, 2, 2), (3, 2, 3), {"strides": (2, 1, 2)}),
    "no batch": ((4, 3, 2), (3, 3), {"strides": (2, 2)}),
    "batch of two axes": ((2, 3, 4, 3, 2), (3, 3), {"strides": (2, 2)}),
    "mask": ((1, 4, 2), (3,), {"mask": np.tril(np.ones((3, 2, 3), np.float32))}),
    "circular": ((2, 4, 5, 2), (3, 4), {"strides": (2, 1), "padding": "CIRCULAR"}),
    "circular, transposed": (
        (2, 4, 5, 2),
        (3, 4),
        {"strides": (2, 1), "padding": "CIRCULAR", "transpose_kernel": True},
    ),
    "circular, dilated": ((1, 4, 2), (3,), {"strides": (2,), "kernel_dilation": 2, "padding": "CIRCULAR"}),
    "circular, no batch": ((4, 2), (5,), {"strides": (2,), "padding": "CIRCULAR"}),
    "initializers": (
        (1, 4, 2),
        (3,),
        {"kernel_init": nn.initializers.ones, "bias_init": nn.initializers.normal(), "precision": "highest"},
    ),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_conv_transpose(name):
    shape, kernel_size, fields = TRANSPOSED[name]
    make = lambda module: module(3, kernel_size, **fields)
    same(make(conv_layers.ConvTranspose), make(nn.ConvTranspose), normal(*shape))


def test_circular_of_every_size():
    """Windows that are shorter than the stride, and that go round more than once."""
    cases = [(1, 1, 3), (2, 1, 3), (2, 3, 2), (3, 4, 1), (5, 1, 2), (6, 2, 3), (9, 1, 3), (9, 2, 2), (8, 3, 1)]

    @jax.jit
    def outputs():
        pairs = []
        for (k, s, n), transpose_kernel in itertools.product(cases, (False, True)):
            make = lambda module, k=k, s=s, t=transpose_kernel: module(
                2, (k,), (s,), padding="CIRCULAR", transpose_kernel=t
            )
            ours, theirs, x = make(conv_layers.ConvTranspose), make(nn.ConvTranspose), normal(1, n, 2)
            variables = draw(ours, x)
            pairs.append([m.apply(variables, x) for m in (ours, theirs)])
        return pairs

    for actual, expected in outputs():
        close(actual, expected)


def test_circular_commutes_with_shifts():
    x = normal(1, 5, 6, 2)
    module = conv_layers.ConvTranspose(3, (3, 4), (2, 3), padding="CIRCULAR")
    apply = functools.partial(jax.jit(module.apply), draw(module, x))
    close(apply(np.roll(x, (1, 2), (1, 2))), np.roll(apply(x), (2, 6), (1, 2)))


def test_grouped_conv_transpose():
    """Groups are layers side by side, each on its own channels."""
    x = normal(2, 4, 3, 4)
    module, stock = (
        conv_layers.ConvTranspose(6, (3, 3), (2, 2), feature_group_count=2),
        nn.ConvTranspose(3, (3, 3), (2, 2)),
    )
    variables = draw(module, x)
    assert jax.tree.map(jnp.shape, variables) == {"params": {"kernel": (3, 3, 2, 6), "bias": (6,)}}
    part = lambda g: jax.tree.map(lambda v: v[..., 3 * g : 3 * g + 3], variables)
    stock_apply = jax.jit(stock.apply)
    parts = [stock_apply(part(g), x[..., 2 * g : 2 * g + 2]) for g in range(2)]
    close(jax.jit(module.apply)(variables, x), np.concatenate(parts, -1))

    transposed = conv_layers.ConvTranspose(6, (3, 3), (2, 2), feature_group_count=2, transpose_kernel=True)
    assert shapes(transposed, x)["params"]["kernel"].shape == (3, 3, 3, 4)


# --- Local convolution ----------------------------------------------------------------------------------------------

LOCAL = {
    "1-D": ((2, 5, 2), 3, {}),
    "2-D": ((2, 5, 4, 2), (3, 2), {"strides": (2, 1)}),
    "valid": ((2, 5, 4, 2), (3, 2), {"padding": "VALID", "strides": 2}),
    "int padding": ((1, 5, 4, 2), (3, 2), {"padding": 1}),
    "pairs": ((1, 5, 4, 2), (3, 2), {"padding": ((1, 0), 2)}),
    "dilated": ((1, 5, 6, 2), (3, 2), {"kernel_dilation": (2, 3)}),
    "input dilation": ((1, 4, 3, 2), (3, 2), {"input_dilation": (2, 3), "padding": ((1, 1), (0, 0))}),
    "no bias": ((1, 4, 2), (3,), {"use_bias": False, "strides": None}),
    "3-D": ((1, 3, 2, 3, 2), (2, 2, 3), {}),
    "no batch": ((4, 3, 2), (3, 3), {}),
    "batch of two axes": ((2, 3, 4, 2), (3,), {}),
    "mask": ((1, 3, 2), (3,), {"mask": np.tril(np.ones((3, 6, 3), np.float32))}),
    "circular": ((1, 5, 4, 2), (3, 2), {"padding": "CIRCULAR", "strides": (2, 1)}),
    "reflect": ((1, 5, 4, 2), (3, 2), {"padding": "REFLECT", "kernel_dilation": (1, 2)}),
    "causal": ((1, 5, 2), (3,), {"padding": "CAUSAL", "kernel_dilation": 2}),
}


@pytest.mark.parametrize("name", LOCAL)
def test_conv_local(name):
    shape, kernel_size, fields = LOCAL[name]
    make = lambda module: module(3, kernel_size, **fields)
    same(make(conv_layers.ConvLocal), make(nn.ConvLocal), normal(*shape))


# --- Both -----------------------------------------------------------------------------------------------------------

PAIRS = [(conv_layers.ConvTranspose, nn.ConvTranspose), (conv_layers.ConvLocal, nn.ConvLocal)]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_fields_are_flaxs(ours, theirs):
    """The same fields in the same order, with the same defaults; then ours. What Flax deprecates is left out."""
    names = lambda module: [
        f.name for f in dataclasses.fields(module) if not f.name.startswith("conv_general_dilated") and f.init
    ]
    expected = [name for name in names(theirs) if name not in ("parent", "name")]
    assert [name for name in names(ours) if name not in ("parent", "name")][: len(expected)] == expected
    defaults = lambda module: {f.name: f.default for f in dataclasses.fields(module) if f.name in expected}
    initializers = {"kernel_init", "bias_init"}  # functions, compared by what they make
    ours, theirs = ({n: d for n, d in defaults(m).items() if n not in initializers} for m in (ours, theirs))
    assert ours == theirs


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_initialisation_is_flaxs(ours, theirs):
    """From the same key the same numbers, bit for bit."""
    x = normal(1, 4, 2)
    for fields in ({}, {"bias_init": nn.initializers.normal(), "param_dtype": jnp.bfloat16}):
        variables, expected = (jax.jit(m(3, (3,), **fields).init)(jax.random.key(0), x) for m in (ours, theirs))
        jax.tree.map(np.testing.assert_array_equal, variables, expected)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_dtypes(ours, theirs):
    x = normal(2, 6, 2)
    half = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    for fields in (half, {"dtype": jnp.bfloat16}):
        same(ours(3, (3,), **fields), theirs(3, (3,), **fields), x, rtol=2**-7, atol=2**-7)
    with jax.enable_x64(True):
        double = {"param_dtype": jnp.float64}
        same(ours(3, (3,), **double), theirs(3, (3,), **double), x.astype(np.float64), rtol=1e-12, atol=1e-12)
    same(ours(3, (3,)), theirs(3, (3,)), jnp.arange(24).reshape(2, 6, 2))  # integers become floating-point numbers


def test_preferred_element_type():
    x = normal(1, 4, 2)
    make = lambda module: module(3, (3,), (2,), dtype=jnp.bfloat16, preferred_element_type=jnp.float32)
    same(make(conv_layers.ConvTranspose), make(nn.ConvTranspose), x)
    assert (
        jax.eval_shape(make(conv_layers.ConvTranspose).init_with_output, jax.random.key(0), x)[0].dtype == jnp.float32
    )


def test_promote_dtype_is_used():
    """A function of the caller's own, which here keeps everything in float16."""
    calls = []

    def promote(*arrays, dtype=None):
        calls.append(dtype)
        return [a if a is None else a.astype(jnp.float16) for a in arrays]

    for module in (conv_layers.ConvTranspose, conv_layers.ConvLocal):
        y, _ = module(3, (3,), use_bias=False, promote_dtype=promote).init_with_output(
            jax.random.key(0), normal(1, 4, 2)
        )
        assert y.dtype == jnp.float16
    assert calls == [None, None]


def test_in_a_network_the_names_are_flaxs():
    """Checkpoints move: the default names of the layers are those of Flax's classes."""

    class Net(nn.Module):
        transpose: type
        local: type

        @nn.compact
        def __call__(self, x):
            return self.local(2, (3,))(self.transpose(3, (3,), (2,))(x))

    ours, theirs = Net(conv_layers.ConvTranspose, conv_layers.ConvLocal), Net(nn.ConvTranspose, nn.ConvLocal)
    x = normal(1, 4, 2)
    same(ours, theirs, x)
    gradients = jax.jit(lambda v, x: [jax.grad(lambda v, m=m: (m.apply(v, x) ** 2).sum())(v) for m in (ours, theirs)])
    jax.tree.map(close, *gradients(draw(ours, x), x))


# --- nn.Conv on our convolution -------------------------------------------------------------------------------------

CONV = {
    "plain": (conv_layers.Conv, (3, (3, 3)), {}, (2, 5, 4, 2), nn.Conv(3, (3, 3))),
    "strided": (conv_layers.Conv, (3, (3, 3), 2), {}, (2, 5, 4, 2), nn.Conv(3, (3, 3), 2)),
    "dilated": (
        conv_layers.Conv,
        (3, (3, 3)),
        {"kernel_dilation": 2},
        (1, 6, 5, 2),
        nn.Conv(3, (3, 3), kernel_dilation=2),
    ),
    "grouped": (
        conv_layers.Conv,
        (6, (3, 3)),
        {"feature_group_count": 2},
        (1, 5, 4, 4),
        nn.Conv(6, (3, 3), feature_group_count=2),
    ),
    "causal": (
        conv_layers.CausalConv1d,
        (3, 3),
        {"kernel_dilation": 2},
        (2, 6, 2),
        nn.Conv(3, 3, kernel_dilation=2, padding="CAUSAL"),
    ),
    "depthwise": (
        conv_layers.DepthwiseConv,
        ((3, 3),),
        {},
        (2, 5, 4, 3),
        nn.Conv(3, (3, 3), feature_group_count=3),
    ),
    "multiplier": (
        conv_layers.DepthwiseConv,
        ((3, 2), 2),
        {"conv": functools.partial(conv_layers.Conv, strides=2, use_bias=False, dtype=jnp.float32)},
        (2, 5, 4, 3),
        nn.Conv(6, (3, 2), 2, feature_group_count=3, use_bias=False),
    ),
    "depthwise, 1-D": (conv_layers.DepthwiseConv, (3, 2), {}, (2, 5, 3), nn.Conv(6, 3, feature_group_count=3)),
}


@pytest.mark.parametrize("name", CONV)
def test_conv(name):
    constructor, args, fields, shape, stock = CONV[name]
    same(constructor(*args, **fields), stock, normal(*shape))


def test_depthwise_initialisation_is_flaxs():
    x = normal(1, 4, 4, 3)
    stock = nn.Conv(6, (3, 3), feature_group_count=3)
    variables, expected = (jax.jit(m.init)(jax.random.key(0), x) for m in (conv_layers.DepthwiseConv((3, 3), 2), stock))
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_causal_sees_only_the_past():
    x = normal(1, 8, 2)
    module = conv_layers.CausalConv1d(3, 3)
    apply = functools.partial(jax.jit(module.apply), draw(module, x))
    later = x.copy()
    later[:, 5:] += 1
    y, changed = apply(x), apply(later)
    np.testing.assert_array_equal(y[:, :5], changed[:, :5])
    assert (np.abs(y - changed)[:, 5:] > 0).all()


def test_depthwise_in_a_network():
    """Depthwise separable: a scope of its own, without another inside."""
    net = nn.Sequential([conv_layers.DepthwiseConv((3, 3)), nn.relu, conv_layers.Conv(5, (1, 1))])
    y, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), normal(1, 4, 4, 3))
    assert y.shape == (1, 4, 4, 5)
    assert jax.tree.map(lambda v: v.shape, variables["params"]) == {
        "layers_0": {"kernel": (3, 3, 1, 3), "bias": (3,)},
        "layers_2": {"kernel": (1, 1, 3, 5), "bias": (5,)},
    }


def primitives(module, x):
    return str(jax.make_jaxpr(lambda x: module.init_with_output(jax.random.key(0), x)[0])(x))


def test_the_convolution_is_the_one_in_the_field():
    reference = conv_implementation("reference")
    calls = []

    def counted(*args, **kwargs):
        calls.append(1)
        return lax.conv_general_dilated(*args, **kwargs)

    for make in (
        lambda conv: conv_layers.ConvTranspose(3, (3,), (2,), conv=conv),
        lambda conv: conv_layers.Conv(3, (3,), conv_general_dilated=conv),
        lambda conv: conv_layers.DepthwiseConv((3,), conv=functools.partial(nn.Conv, conv_general_dilated=conv)),
    ):
        x = normal(1, 4, 2)
        assert "conv_general_dilated" not in primitives(make(reference), x)
        assert "conv_general_dilated" in primitives(make(counted), x)
    assert len(calls) == 3
    assert conv_layers.Conv(3, (3,)).conv_general_dilated is conv_general_dilated
    assert "conv_general_dilated" not in primitives(conv_layers.ConvLocal(3, (3,)), x)


# --- Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (conv_layers.ConvTranspose(3, (3, 3)), (4, 2), "inputs: received shape .4, 2.; allowed: .* 2 spatial axes"),
        (conv_layers.ConvTranspose(3, (3, 0)), (1, 4, 4, 2), "kernel_size must be .*: got .3, 0."),
        (conv_layers.ConvTranspose(3, (3, 3), (2,)), (1, 4, 4, 2), "strides must be .* 2 in all: got .2,."),
        (conv_layers.ConvTranspose(3, 3, padding="CAUSAL"), (1, 4, 2), "unknown padding 'CAUSAL': .*CIRCULAR"),
        (conv_layers.ConvTranspose(3, 3, padding=(1, 1)), (1, 4, 2), "padding: received .1, 1.; allowed: .* 1 axes"),
        (conv_layers.ConvTranspose(3, 3, padding=((1, 2, 3),)), (1, 4, 2), "padding: received ..1, 2, 3.,.; allowed"),
        (conv_layers.ConvTranspose(3, 3, padding=None), (1, 4, 2), "padding: received None; allowed"),
        (
            conv_layers.ConvTranspose(3, 3, mask=np.ones((3, 3))),
            (1, 4, 2),
            "mask: received shape .3, 3.; allowed: .3, 2, 3.",
        ),
        (
            conv_layers.ConvTranspose(3, 3, feature_group_count=2),
            (1, 4, 2),
            "feature_group_count: received 2; .* 3 features",
        ),
        (conv_layers.ConvLocal(3, (3, 3)), (4, 2), "inputs: received shape .4, 2.; allowed"),
        (conv_layers.ConvLocal(3, 3, kernel_dilation=0), (1, 4, 2), "kernel_dilation must be .*: got 0"),
        (conv_layers.ConvLocal(3, (3, 3), padding="CAUSAL"), (1, 4, 4, 2), "padding: received 'CAUSAL' with 2 spatial"),
        (conv_layers.ConvLocal(3, 3, padding="MIRROR"), (1, 4, 2), "unknown padding 'MIRROR': .*REFLECT"),
        (conv_layers.ConvLocal(3, 3, input_dilation=2), (1, 4, 2), "padding must be explicit"),
        (conv_layers.ConvLocal(3, 3, feature_group_count=3), (1, 4, 3), "feature_group_count: received 3; allowed: 1"),
    ],
)
def test_bad_input(module, shape, message):
    with pytest.raises(InputError, match=message) as caught:
        module.init(jax.random.key(0), np.zeros(shape, np.float32))
    assert "\n" not in str(caught.value)
