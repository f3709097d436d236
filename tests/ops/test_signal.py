"""True convolution and correlation: by hand, against SciPy and NumPy, and the algebra."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from cnnjax.ops import InputError
from cnnjax.ops.signal import MODES, convolve, correlate


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def normal(*shape, seed=0, kind=float):
    rng = np.random.default_rng(seed + sum(shape))
    return rng.normal(size=shape) + (1j * rng.normal(size=shape) if kind is complex else 0)


def close(actual, expected):
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)


# --- By hand --------------------------------------------------------------------------------------------------------


def test_the_example_of_the_docstring():
    u, h = np.array([1.0, 2, 3]), np.array([0, 1, 0.5])
    np.testing.assert_array_equal(convolve(u, h), [0, 1, 2.5, 4, 1.5])
    np.testing.assert_array_equal(convolve(u, h, "same"), [1, 2.5, 4])
    np.testing.assert_array_equal(convolve(u, h, "valid"), [2.5])
    np.testing.assert_array_equal(correlate(u, h), [0.5, 2, 3.5, 3, 0])
    np.testing.assert_array_equal(correlate(u, h, "same"), [2, 3.5, 3])
    np.testing.assert_array_equal(correlate(u, h, "valid"), [3.5])


def test_an_impulse_shows_the_kernel():
    h = np.arange(1.0, 7).reshape(2, 3)
    np.testing.assert_array_equal(convolve(np.ones((1, 1)), h), h)
    np.testing.assert_array_equal(correlate(np.ones((1, 1)), h), h[::-1, ::-1])


def test_products_of_polynomials():
    """(1 + x)^4, coefficient by coefficient."""
    y = np.ones(1)
    for _ in range(4):
        y = convolve(y, np.ones(2))
    np.testing.assert_array_equal(y, [1, 4, 6, 4, 1])


def test_no_axes():
    close(convolve(np.float64(3), np.float64(2)), np.float64(6))


# --- Against SciPy and NumPy ----------------------------------------------------------------------------------------

SHAPES = {
    "1-D": ((7,), (3,)),
    "even": ((6,), (4,)),
    "kernel larger": ((3,), (6,)),
    "equal": ((4,), (4,)),
    "2-D": ((5, 6), (3, 2)),
    "2-D kernel larger": ((2, 3), (4, 3)),
    "3-D": ((4, 3, 5), (2, 3, 4)),
}


@pytest.mark.parametrize(
    "kinds", [(float, float), (complex, complex), (float, complex)], ids=["real", "complex", "mixed"]
)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.usefixtures("promoting")
def test_against_scipy_and_numpy(name, kinds):
    shape, kernel = SHAPES[name]
    u, h = normal(*shape, kind=kinds[0]), normal(*kernel, seed=1, kind=kinds[1])
    run = jax.jit(lambda u, h: [{mode: f(u, h, mode) for mode in MODES} for f in (convolve, correlate)])
    convolved, correlated = run(u, h)
    for mode in MODES:
        close(convolved[mode], scipy.signal.convolve(u, h, mode, method="direct"))
        close(correlated[mode], scipy.signal.correlate(u, h, mode, method="direct"))
        if u.ndim == 2:
            close(convolved[mode], scipy.signal.convolve2d(u, h, mode))
        if u.ndim == 1 and (mode != "same" or len(u) >= len(h)):  # NumPy's "same" is as long as the longer of the two
            close(convolved[mode], np.convolve(u, h, mode))
            if len(u) >= len(h):
                close(correlated[mode], np.correlate(u, h, mode))


# --- The algebra ----------------------------------------------------------------------------------------------------

DIGITS = st.integers(-9, 9).map(float)
ARRAYS = st.lists(DIGITS, min_size=1, max_size=4).map(np.array)
SETTINGS = hypothesis.settings(max_examples=15, derandomize=True, deadline=None, database=None)


@SETTINGS
@hypothesis.given(ARRAYS, ARRAYS, ARRAYS)
def test_commutative_associative_distributive(u, g, h):
    """Small integers, so that equality is exact."""
    np.testing.assert_array_equal(convolve(u, h), convolve(h, u))
    np.testing.assert_array_equal(convolve(u, h, "valid"), convolve(h, u, "valid"))
    np.testing.assert_array_equal(convolve(convolve(u, g), h), convolve(u, convolve(g, h)))
    np.testing.assert_array_equal(convolve(u, 2 * h) + convolve(u, h), convolve(u, 3 * h))
    np.testing.assert_array_equal(correlate(u, h), correlate(h, u)[::-1])  # turns round instead


def test_correlation_is_neither_commutative_nor_associative():
    u, g, h = np.array([1.0, 2]), np.array([1.0, 3]), np.array([1.0, 5])
    assert not np.array_equal(correlate(u, h), correlate(h, u))
    assert not np.array_equal(correlate(correlate(u, g), h), correlate(u, correlate(g, h)))


def test_the_fourier_transform_makes_it_a_product():
    u, h = normal(4, 5), normal(3, 2)
    product = np.fft.fft2(u, (6, 6)) * np.fft.fft2(h, (6, 6))
    close(convolve(u, h), np.fft.ifft2(product).real)


def test_the_gradient_of_a_convolution_is_a_correlation():
    u, h, dy = normal(4, 3), normal(2, 3, seed=1), normal(5, 5)
    _, pull = jax.vjp(convolve, u, h)
    for actual, expected in zip(pull(dy), (correlate(dy, h, "valid"), correlate(dy, u, "valid")), strict=True):
        close(actual, expected)
    _, tangent = jax.jvp(lambda h: correlate(u, h, "same"), (h,), (dy[:2, :3],))
    close(tangent, correlate(u, dy[:2, :3], "same"))  # linear


# --- Dtypes, implementations, bad input -----------------------------------------------------------------------------


@pytest.mark.usefixtures("promoting")
def test_dtypes():
    u, h = normal(5).astype(np.float32), normal(3)
    assert convolve(u, u).dtype == jnp.float32
    assert convolve(u, h).dtype == convolve(h, u).dtype == jnp.float64
    assert convolve(jnp.asarray(u, jnp.bfloat16), jnp.asarray(h, jnp.bfloat16)).dtype == jnp.bfloat16
    assert correlate(u, h * 1j).dtype == jnp.complex128


def test_implementation():
    u, h = normal(5, 4), normal(3, 2)
    text = lambda name: str(jax.make_jaxpr(lambda u: correlate(u, h, implementation=name))(u))
    assert "conv_general_dilated" in text("xla")
    assert "conv_general_dilated" not in text("reference")
    close(convolve(u, h, implementation="reference"), convolve(u, h))


@pytest.mark.parametrize("function", [convolve, correlate])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones(3), np.ones((3, 1))), "kernel must have as many axes as image: got shapes .3, 1. and .3,."),
        ((np.ones(0), np.ones(3)), "image must have at least one element: got shape .0,."),
        ((np.ones((3, 3)), np.ones((3, 0))), "kernel must have at least one element: got shape .3, 0."),
        ((np.ones(3), np.ones(3), "smae"), "unknown mode 'smae': did you mean 'same'"),
        ((np.ones((2, 5)), np.ones((3, 3)), "valid"), "image must be as large as kernel.*got shapes .2, 5. and .3, 3."),
    ],
)
def test_bad_input(function, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", [convolve, correlate])
def test_integers_are_refused(function):
    with pytest.raises(TypeError, match="image must hold real or complex floating-point numbers: got int64"):
        function([1, 2, 3], [0.0, 1.0])
    with pytest.raises(TypeError, match=r"kernel must hold .*: got bool"):
        function([1.0, 2.0], [True])
    with pytest.raises(InputError, match="unknown convolution implementation"):
        function([1.0, 2.0], [1.0], implementation="slow")
