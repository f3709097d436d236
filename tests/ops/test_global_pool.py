"""Pooling over all positions: values, where the gradient goes, and dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cnnjax.ops import InputError, avg_pool, max_pool
from cnnjax.ops.global_pool import global_avg_pool, global_max_pool

SHAPES = [(2, 5, 4, 3), (2, 7, 3), (2, 3, 4, 2, 3), (0, 4, 4, 2), (2, 1, 1, 0)]


@pytest.mark.parametrize("shape", SHAPES)
def test_values(shape):
    """Those of NumPy, and of the window that is the whole image."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    axes, window = tuple(range(1, len(shape) - 1)), shape[1:-1]
    for keep in (False, True):
        maximum, mean = jax.jit(lambda x, keep=keep: (global_max_pool(x, keep), global_avg_pool(x, keepdims=keep)))(x)
        np.testing.assert_array_equal(maximum, x.max(axes, keepdims=keep))
        np.testing.assert_allclose(mean, x.mean(axes, keepdims=keep, dtype=np.float64), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(maximum, max_pool(x, window))
    np.testing.assert_allclose(mean, avg_pool(x, window), rtol=1e-6, atol=1e-6)


def test_the_gradient_of_the_maximum_goes_to_the_first():
    """As that of `max_pool`, where jnp.max would divide it among equals."""
    x = np.random.default_rng(0).integers(-2, 3, (2, 5, 4, 3)).astype(np.float32)
    dy = np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32)
    pull = lambda f: jax.vjp(f, x)[1](dy)[0]
    run = lambda: (pull(global_max_pool), pull(lambda x: max_pool(x, (5, 4))[:, 0, 0]), pull(lambda x: x.max((1, 2))))
    ours, windowed, divided = jax.jit(run)()
    np.testing.assert_array_equal(ours, windowed)
    assert (np.count_nonzero(ours, axis=(1, 2)) == 1).all()
    assert (np.asarray(divided) != ours).any()


@pytest.mark.parametrize("function", [global_max_pool, global_avg_pool])
def test_derivatives_by_differences(function):
    with jax.enable_x64(True):
        x = np.random.default_rng(0).permutation(60).reshape(2, 5, 3, 2) / 10
        f = jax.jit(lambda x: function(x) ** 2)
        check_grads(f, (x,), order=2, modes=("fwd", "rev"), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(jax.vmap(f)(x[:, None])[:, 0], f(x), rtol=1e-12)


@pytest.mark.usefixtures("promoting")
def test_dtypes():
    ones = jnp.ones((1, 64, 64, 1), jnp.bfloat16)  # 4,096 of them: summed in bfloat16 they would stop at 256
    mean = global_avg_pool(ones)
    assert mean.dtype == jnp.bfloat16
    assert mean.tolist() == [[1.0]]
    assert global_avg_pool(jnp.full((1, 64, 64, 1), 60000, jnp.float16)).tolist() == [[60000.0]]  # the sum overflows
    integers = jnp.arange(8).reshape(1, 2, 4, 1)
    assert global_avg_pool(integers).tolist() == [[3.5]]
    assert global_max_pool(integers).dtype == integers.dtype
    assert global_max_pool(integers > 3).tolist() == [[True]]
    assert global_avg_pool(integers * 1j).tolist() == [[3.5j]]


def test_nan_propagates():
    x = jnp.array([[1.0, jnp.nan], [jnp.inf, 2]])[None, ..., None]
    assert jnp.isnan(global_max_pool(x)).all()
    assert jnp.isnan(global_avg_pool(x)).all()


@pytest.mark.parametrize("function", [global_max_pool, global_avg_pool])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 0, 4, 3)])
def test_bad_shapes(function, shape):
    with pytest.raises(
        InputError, match=r"inputs must be .batch, .space, channel. with at least one position: got shape"
    ):
        function(np.ones(shape, np.float32))


def test_bad_dtypes():
    with pytest.raises(TypeError, match="inputs must hold real numbers: got complex64"):
        global_max_pool(np.ones((1, 4, 4, 1), np.complex64))
    with pytest.raises(TypeError, match="inputs must hold numbers: got bool"):
        global_avg_pool(np.ones((1, 4, 4, 1), bool))
