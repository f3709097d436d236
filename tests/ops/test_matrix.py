"""The matrix of a convolution: by hand, against lax, as its Jacobian, and its transpose."""

import functools
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from lecture_images import A_SHARPENED, A

from cnnjax.ops import InputError, reference
from cnnjax.ops.matrix import convolution_matrix

# (kernel [*tap, channel, feature], channels, space, options)
CASES = {
    "one dimension": ((3, 2, 3), (7,), {}),
    "stride and padding": ((3, 3, 2, 3), (6, 5), {"strides": (2, 1), "padding": ((1, 0), (2, 1))}),
    "same": ((3, 2, 1, 2), (5, 4), {"strides": (2, 2), "padding": "SAME"}),
    "same lower": ((2, 3, 2, 1), (5, 4), {"padding": "SAME_LOWER"}),
    "cropping": ((2, 2, 1, 1), (6, 5), {"padding": ((-1, 0), (1, -2))}),
    "kernel dilation": ((2, 3, 1, 2), (6, 7), {"rhs_dilation": (3, 2)}),
    "input dilation": ((3, 3, 2, 2), (3, 4), {"lhs_dilation": (2, 3), "padding": ((2, 2), (1, 2))}),
    "groups": ((2, 2, 2, 6), (4, 3), {"feature_group_count": 3}),
    "depthwise": ((3, 3, 1, 4), (4, 5), {"feature_group_count": 4, "padding": "SAME"}),
    "three dimensions": ((2, 1, 2, 2, 2), (3, 4, 3), {"strides": (1, 2, 2), "padding": ((0, 1), (0, 0), (1, 0))}),
    "no axes": ((3, 2), (), {}),
    "too large": ((5, 1, 2), (3,), {}),
}


def convolve(x, kernel, options, by=lax.conv_general_dilated):
    """One example x [*space, channel] convolved, [*output_space, feature]."""
    n = x.ndim - 1
    options = dict(options)
    layout = ("N" + "DHW"[:n] + "C", "DHW"[:n] + "IO", "N" + "DHW"[:n] + "C")
    strides, padding = options.pop("strides", (1,) * n), options.pop("padding", "VALID")
    return by(x[None], kernel, strides, padding, dimension_numbers=layout, **options)[0]


def build(name):
    shape, space, options = CASES[name]
    rng = np.random.default_rng(0)
    channels = shape[-2] * options.get("feature_group_count", 1)
    return rng.normal(size=shape), rng.normal(size=(*space, channels)), options


@pytest.mark.parametrize("name", CASES)
def test_multiplies_as_the_convolution_does(name):
    """Dense and sparse, forward as lax and as the oracle, and transposed as the gradient of lax."""
    kernel, x, options = build(name)
    matrix = convolution_matrix(kernel, x.shape[:-1], **options)
    sparse = convolution_matrix(kernel, x.shape[:-1], **options, sparse=True)
    with jax.enable_x64(True):
        f = lambda x: convolve(x, kernel, options)
        y, pull = jax.vjp(jax.jit(f), x)
        dy = np.random.default_rng(1).normal(size=y.shape)
        (dx,) = pull(dy)
    assert matrix.shape == sparse.shape == (y.size, x.size)
    assert matrix.dtype == sparse.dtype == np.float64
    np.testing.assert_array_equal(sparse.toarray(), matrix)
    for m in (matrix, sparse):
        np.testing.assert_allclose((m @ x.reshape(-1)).reshape(y.shape), y, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose((m.T @ dy.reshape(-1)).reshape(x.shape), dx, rtol=1e-12, atol=1e-12)
    if x.ndim > 1:
        oracle = convolve(x, kernel, options, by=reference.conv_general_dilated)
        np.testing.assert_allclose((matrix @ x.reshape(-1)).reshape(y.shape), oracle, rtol=1e-12, atol=1e-12)
    assert np.isin(matrix, [0, *kernel.reshape(-1)]).all()  # shared weights, and no others
    assert sparse.nnz == (matrix != 0).sum()


@hypothesis.settings(max_examples=25, derandomize=True, deadline=None, database=None)
@hypothesis.given(st.data())
def test_any_convolution_in_one_dimension(data):
    """Against the oracle, with every option at once."""
    draw = lambda low, high: data.draw(st.integers(low, high))
    size, taps, groups, between = draw(1, 7), draw(1, 4), draw(1, 2), draw(1, 3)
    options = {
        "strides": (draw(1, 3),),
        "padding": ((draw(0, 4), draw(-1 if size > 1 else 0, 4)),),
        "lhs_dilation": (between,),
        "rhs_dilation": (draw(1, 3),),
        "feature_group_count": groups,
    }
    rng = np.random.default_rng(0)
    kernel, x = rng.normal(size=(taps, draw(1, 2), groups * draw(1, 2))), None
    x = rng.normal(size=(size, kernel.shape[1] * groups))
    y = convolve(x, kernel, options, by=reference.conv_general_dilated)
    matrix = convolution_matrix(kernel, (size,), **options)
    np.testing.assert_allclose((matrix @ x.reshape(-1)).reshape(y.shape), y, rtol=1e-12, atol=1e-12)


# --- By hand --------------------------------------------------------------------------------------------------------


def test_toeplitz_in_one_dimension():
    matrix = functools.partial(convolution_matrix, np.array([1, 2, 3])[:, None, None], (5,))
    valid = [[1, 2, 3, 0, 0], [0, 1, 2, 3, 0], [0, 0, 1, 2, 3]]
    np.testing.assert_array_equal(matrix(), valid)
    assert matrix().dtype == np.array([1]).dtype
    np.testing.assert_array_equal(matrix(padding="SAME"), [[2, 3, 0, 0, 0], *valid, [0, 0, 0, 1, 2]])
    np.testing.assert_array_equal(matrix(strides=(2,)), valid[::2])
    np.testing.assert_array_equal(matrix(rhs_dilation=(2,)), [[1, 0, 2, 0, 3]])
    # Zeros between the inputs: outputs see the weights 1 and 3, or 2 alone.
    dilated = convolution_matrix(np.array([1, 2, 3])[:, None, None], (3,), lhs_dilation=(2,), padding=((0, 0),))
    np.testing.assert_array_equal(dilated, [[1, 3, 0], [0, 2, 0], [0, 1, 3]])


def test_doubly_blocked_in_two_dimensions():
    a, b, c, d = 1, 2, 3, 4
    t0, t1, zero = np.array([[a, b, 0], [0, a, b]]), np.array([[c, d, 0], [0, c, d]]), np.zeros((2, 3))
    matrix = convolution_matrix(np.array([[a, b], [c, d]])[..., None, None], (3, 3))
    np.testing.assert_array_equal(matrix, np.block([[t0, t1, zero], [zero, t0, t1]]))


def test_channels_are_blocks():
    """Two channels in and three features out: each number becomes the 3x2 transpose of w[tap]; groups split it."""
    w = np.arange(1, 13).reshape(2, 2, 3)
    zero = np.zeros((3, 2))
    expected = np.block([[w[0].T, w[1].T, zero], [zero, w[0].T, w[1].T]])
    np.testing.assert_array_equal(convolution_matrix(w, (3,)), expected)
    depthwise = convolution_matrix(np.array([[[5, 6]]]), (2,), feature_group_count=2)
    np.testing.assert_array_equal(depthwise, np.diag([5, 6, 5, 6]))


def test_a_fully_connected_layer_with_most_weights_zero():
    """The lectures' image under their sharpening, and the numbers of weights of a layer of 10 filters of 5x5x3."""
    sharpen = np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]])
    y = (convolution_matrix(sharpen[..., None, None], (5, 5), padding="SAME") @ A.ravel()).reshape(5, 5)
    np.testing.assert_array_equal(y, A_SHARPENED)
    np.testing.assert_array_equal(y[1:4, 1:4], [[89, 111, 101], [85, 111, 101], [98, 117, 113]])

    kernel = np.random.default_rng(0).normal(size=(5, 5, 3, 10))
    layer = convolution_matrix(kernel, (32, 32), padding=((2, 2), (2, 2)), sparse=True)
    assert layer.shape == (32 * 32 * 10, 32 * 32 * 3)  # 31,457,280 weights if it were fully connected
    # Along an axis 32 windows of 5 are 160 taps, of which 2 + 1 at either end meet padding.
    assert layer.nnz == (160 - 6) ** 2 * 3 * 10 == 711_480
    assert len(np.unique(layer.data)) == kernel.size == 750  # all shared


def test_the_transpose_is_the_transposed_convolution():
    """Up from 3x3 to 7x7: lax.conv_transpose with the same kernel, flipped and its channels swapped."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 4)).astype(np.float32)
    y = np.random.default_rng(1).normal(size=(3, 3, 4)).astype(np.float32)
    matrix = convolution_matrix(kernel, (7, 7), (2, 2))
    assert matrix.dtype == np.float32
    up = lax.conv_transpose(
        y[None], kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), transpose_kernel=True
    )
    np.testing.assert_allclose((matrix.T @ y.ravel()).reshape(7, 7, 2), up[0], rtol=1e-5, atol=1e-5)


# --- Dtypes, errors, imports ----------------------------------------------------------------------------------------


def test_dtypes():
    for sparse in (False, True):
        half = convolution_matrix(jnp.ones((2, 1, 1), jnp.bfloat16), (3,), sparse=sparse)
        assert half.dtype == np.float32
        assert convolution_matrix(np.ones((2, 1, 1)) * 1j, (3,), sparse=sparse).dtype == np.complex128


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.ones(3), (5,)), {}, "kernel must be .*tap, channel, feature.*: got shape .3,."),
        ((np.ones((0, 1, 1)), (5,)), {}, "kernel must be .*none of them 0: got shape .0, 1, 1."),
        (
            (np.ones((3, 1, 1)), (5, 5)),
            {},
            "input_space must be a positive integer for each axis, 1 in all: got .5, 5.",
        ),
        ((np.ones((3, 1, 1)), 5), {}, "input_space must be .*: got 5"),
        ((np.ones((3, 1, 1)), (5,)), {"strides": (0,)}, "strides must be a positive integer.*: got .0,."),
        ((np.ones((3, 1, 1)), (5,)), {"rhs_dilation": (1, 1)}, "rhs_dilation must be .* 1 in all: got .1, 1."),
        ((np.ones((3, 1, 1)), (5,)), {"padding": "SAEM"}, "unknown padding 'SAEM'"),
        ((np.ones((3, 1, 1)), (5,)), {"padding": ((-9, 0),)}, "padding must not crop more than there is"),
        (
            (np.ones((3, 1, 1)), (5,)),
            {"feature_group_count": 0},
            "feature_group_count must be a positive integer: got 0",
        ),
        (
            (np.ones((3, 1, 3)), (5,)),
            {"feature_group_count": 2},
            "feature_group_count must divide the 3 output features",
        ),
    ],
)
def test_bad_input(arguments, options, message):
    with pytest.raises(InputError, match=message) as caught:
        convolution_matrix(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_bad_dtype():
    with pytest.raises(TypeError, match="kernel must hold numbers: got bool"):
        convolution_matrix(np.ones((3, 1, 1), bool), (5,))
    with pytest.raises(TypeError, match="kernel must be numbers that are known, not traced"):
        jax.jit(lambda kernel: convolution_matrix(kernel, (5,)))(np.ones((3, 1, 1)))


def test_scipy_is_imported_when_it_is_needed():
    code = (
        "import sys, jax.numpy; before = set(sys.modules)\n"
        "import numpy as np; from cnnjax.ops.matrix import convolution_matrix\n"
        "convolution_matrix(np.ones((3, 1, 1)), (5,))\n"
        "assert not {m for m in set(sys.modules) - before if m.startswith('scipy')}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
