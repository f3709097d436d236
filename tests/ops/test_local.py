"""Local convolution: by hand, against a loop in NumPy and against lax, values and gradients."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cnnjax.ops import InputError, reference
from cnnjax.ops.local import conv_local


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def normal(*shape, seed=0):
    return np.random.default_rng(seed + sum(shape)).normal(size=shape)


def close(actual, expected):
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)


# --- By hand --------------------------------------------------------------------------------------------------------


def test_every_position_has_its_own_kernel():
    x = np.array([1.0, 2, 3, 4]).reshape(1, 4, 1)
    w = np.array([[1.0, 0], [0, 1], [10, 100]])[..., None]  # [position, tap, feature]
    nhc = ("NHC", "HIO", "NHC")
    y = conv_local(x, w, (1,), "VALID", (2,), dimension_numbers=nhc)
    np.testing.assert_array_equal(y[0, :, 0], [1, 3, 10 * 3 + 100 * 4])
    # Padded by one in front, every second window.
    y = conv_local(x, w[1:], (2,), [(1, 0)], (2,), dimension_numbers=nhc)
    np.testing.assert_array_equal(y[0, :, 0], [1, 10 * 2 + 100 * 3])


def test_the_order_of_channels_and_taps():
    """One window of 2x2 over two channels: the axis of inputs runs through the taps of a channel, then the next's."""
    x = np.arange(8.0).reshape(1, 2, 2, 2)  # [n, h, w, c]
    y = conv_local(x, np.eye(8)[None, None], (1, 1), "VALID", (2, 2), dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_array_equal(y[0, 0, 0], [0, 2, 4, 6, 1, 3, 5, 7])
    y = conv_local(x, np.eye(8)[None, None], (1, 1), "VALID", (2, 2), dimension_numbers=("NHWC", "WHIO", "NHWC"))
    np.testing.assert_array_equal(y[0, 0, 0], [0, 4, 2, 6, 1, 5, 3, 7])


# --- Against a loop, and against lax --------------------------------------------------------------------------------


def by_loop(x, w, strides, padding, filter_shape, lhs_dilation=None, rhs_dilation=None, axes=None):
    """Channels last: for each position the convolution by its kernel, of which only that position is kept."""
    *out, _, features = w.shape
    kernels = w.reshape(*out, x.shape[-1], *filter_shape, features)  # [*position, channel, *tap, feature]
    letters = "DHW"[: len(out)]
    layout = (f"N{letters}C", f"I{letters}O", f"N{letters}C")
    y = np.zeros((len(x), *out, features), x.dtype)
    for p in np.ndindex(*out):
        shared = reference.conv_general_dilated(
            x, kernels[p], strides, padding, lhs_dilation, rhs_dilation, dimension_numbers=layout
        )
        y[:, *p] = shared[:, *p]
    return y


# (input, filters, strides, padding, options), all channels last; 3 features.
CASES = {
    "1-D": ((2, 6, 3), (3,), (1,), "VALID", {}),
    "1-D strided": ((2, 7, 2), (4,), (2,), "SAME", {}),
    "2-D": ((2, 5, 4, 2), (3, 2), (1, 1), "SAME", {}),
    "2-D strided": ((1, 6, 5, 2), (2, 3), (2, 3), [(1, 0), (2, 1)], {}),
    "same lower": ((1, 5, 4, 2), (2, 2), (2, 1), "SAME_LOWER", {}),
    "cropping": ((1, 6, 5, 1), (2, 2), (1, 1), ((-1, 0), (1, -2)), {}),
    "dilation": ((1, 7, 6, 2), (3, 2), (1, 2), "SAME", {"rhs_dilation": (2, 3)}),
    "input dilation": ((1, 3, 4, 2), (3, 2), (1, 2), ((1, 1), (2, 0)), {"lhs_dilation": (2, 3)}),
    "3-D": ((2, 3, 4, 3, 2), (2, 3, 2), (1, 2, 1), "SAME", {}),
    "no batch": ((0, 4, 4, 2), (2, 2), (1, 1), "VALID", {}),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name):
    """Forward against the loop; forward and backward against lax."""
    shape, filter_shape, strides, padding, options = CASES[name]
    letters = "DHW"[: len(filter_shape)]
    layout = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    shared = jax.ShapeDtypeStruct((*filter_shape, shape[-1], 3), np.float64)
    out = jax.eval_shape(
        lambda x, w: lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=layout, **options),
        jax.ShapeDtypeStruct(shape, np.float64),
        shared,
    ).shape[1:-1]
    x, w = normal(*shape), normal(*out, shape[-1] * np.prod(filter_shape), 3, seed=1)

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradients(function, x, w):
        f = lambda x, w: function(x, w, strides, padding, filter_shape, dimension_numbers=layout, **options)
        y, pull = jax.vjp(f, x, w)
        return y, *pull(jnp.cos(y))

    ours = value_and_gradients(conv_local, x, w)
    close(ours[0], by_loop(x, w, strides, padding, filter_shape, **options))
    for a, b in zip(ours, value_and_gradients(lax.conv_general_dilated_local, x, w), strict=True):
        close(a, b)


@pytest.mark.parametrize(
    "layout",
    [
        None,
        ("NCHW", "OIHW", "NCHW"),
        ("NHWC", "WHIO", "CWNH"),
        ("WCHN", "OWIH", "HNCW"),
        lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 1, 0), (1, 0, 3, 2)),
    ],
    ids=["default", "channels first", "mixed", "other", "numbers"],
)
def test_layouts_are_those_of_lax(layout):
    """Different sizes everywhere, so that no two axes can be mixed up; window 2 by 3 in the order of the kernel's."""
    numbers = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, layout)
    features, channels, space = 4, 5, (6, 7)
    lhs = np.zeros(4, int)
    lhs[list(numbers.lhs_spec)] = (3, channels, *space)
    shared = [0] * 4
    shared[numbers.rhs_spec[0]], shared[numbers.rhs_spec[1]] = features, channels
    first, second = sorted(numbers.rhs_spec[2:])
    shared[first], shared[second] = 2, 3
    x = normal(*lhs)
    y = lax.conv_general_dilated(x, normal(*shared), (1, 2), "VALID", dimension_numbers=layout)
    rhs = np.zeros(4, int)
    rhs[list(numbers.rhs_spec)] = (features, channels * 6, *(y.shape[axis] for axis in numbers.out_spec[2:]))
    w = normal(*rhs)
    run = lambda f: jax.jit(lambda x, w: f(x, w, (1, 2), "VALID", (2, 3), dimension_numbers=layout))(x, w)
    close(run(conv_local), run(lax.conv_general_dilated_local))


def test_the_same_kernel_everywhere_is_a_convolution():
    x, w = normal(2, 5, 5, 2), normal(2, 3, 3, 3)  # [channel, *tap, feature]
    tiled = np.broadcast_to(w.reshape(-1, 3), (3, 3, 18, 3))
    layout = ("NHWC", "IHWO", "NHWC")
    expected = reference.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=layout)
    close(conv_local(x, tiled, (1, 1), "VALID", (3, 3), dimension_numbers=("NHWC", "HWIO", "NHWC")), expected)


def test_no_convolution_in_value_or_gradient():
    f = lambda x, w: conv_local(x, w, (1,), "SAME", (3,)).sum()
    jaxpr = str(jax.make_jaxpr(jax.grad(f, (0, 1)))(normal(1, 2, 4), normal(3, 6, 4)))
    assert "conv_general_dilated" not in jaxpr
    assert "dot_general" in jaxpr


def test_signature_is_that_of_lax():
    parameters = lambda f: [(p.name, p.default, p.kind) for p in inspect.signature(f).parameters.values()]
    assert parameters(conv_local) == parameters(lax.conv_general_dilated_local)


@pytest.mark.usefixtures("promoting")
def test_dtypes():
    """Half precision is summed in float32, forward and in the gradient; complex numbers are not conjugated."""
    half = lambda a: jnp.asarray(a, jnp.bfloat16)
    x, w = half(normal(3, 200, 4)), half(normal(2, 400, 3))  # 400 products to a sum
    y = conv_local(x, w, (1,), "VALID", (2,))
    exact = conv_local(np.asarray(x, np.float64), np.asarray(w, np.float64), (1,), "VALID", (2,))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=2**-8)
    # The element in the middle is seen by 16 windows. One by one in bfloat16 that would be 16.75. (Not under jit, where
    # XLA may keep more precision of its own accord.)
    x, w = half(np.zeros((1, 1, 31))), half(np.full((1, 16, 16), 1 + 5 * 2**-7))
    dx = jax.grad(lambda x: conv_local(x, w, (1,), "VALID", (16,)).sum())(x)
    assert dx.dtype == jnp.bfloat16
    assert dx[0, 0, 15] == 16.625
    x, w = normal(1, 2, 4), normal(3, 4, 3)
    close(conv_local(x * 1j, w + 0j, (1,), "VALID", (2,)), 1j * conv_local(x, w, (1,), "VALID", (2,)))


def test_no_window_fits():
    y = conv_local(np.ones((2, 3, 4)), np.ones((5, 15, 0)), (1,), "VALID", (5,))
    assert y.shape == (2, 5, 0)


def test_forward_mode_and_vmap():
    x, w = normal(2, 2, 5), normal(3, 6, 3)
    f = lambda x, w: conv_local(x, w, (1,), "VALID", (3,))
    _, tangent = jax.jvp(f, (x, w), (x, w))
    close(tangent, 2 * f(x, w))  # bilinear
    close(jax.vmap(f, (0, None))(x[:, None], w)[:, 0], f(x, w))


# --- Bad input ------------------------------------------------------------------------------------------------------

X, W = np.zeros((1, 3, 5, 5)), np.zeros((2, 12, 4, 4))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X, W[0], (1, 1), "VALID", (2, 2)), {}, "lhs and rhs must have the same rank.*got shapes"),
        (
            (X, W, (1, 1), "VALID", (2,)),
            {},
            "filter_shape must be a positive integer for each axis, 2 in all: got .2,.",
        ),
        ((X, W, (1, 1), "VALID", (2, 0)), {}, "filter_shape must be .*: got .2, 0."),
        ((X, W, (1, 0), "VALID", (2, 2)), {}, "window_strides must be .*: got .1, 0."),
        ((X, W, (1, 1), "SAEM", (2, 2)), {}, "unknown padding 'SAEM'"),
        ((X, W, (1, 1), "SAME", (2, 2)), {}, "rhs must have the output positions.*got .4, 4, 12., allowed: .5, 5, 12."),
        ((X, W[:, :8], (1, 1), "VALID", (2, 2)), {}, "rhs must have .*got .4, 4, 8., allowed: .4, 4, 12."),
        ((X, W, (1, 1), "SAME", (2, 2)), {"lhs_dilation": (2, 2)}, "padding must be explicit"),
        ((X, W, (1, 1), "VALID", (2, 2)), {"rhs_dilation": (0, 1)}, "rhs_dilation must be .*: got .0, 1."),
        ((X, W, (1, 1), "VALID", (2, 2)), {"dimension_numbers": "NCHW"}, "dimension_numbers must be None"),
    ],
)
def test_bad_input(arguments, options, message):
    with pytest.raises(InputError, match=message) as caught:
        conv_local(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_bad_dtypes():
    with pytest.raises(TypeError, match="lhs must hold real or complex floating-point numbers: got int"):
        conv_local(X.astype(int), W, (1, 1), "VALID", (2, 2))
    with pytest.raises(TypeError, match="lhs and rhs must have one dtype"):
        conv_local(X, W.astype(np.float32), (1, 1), "VALID", (2, 2))
