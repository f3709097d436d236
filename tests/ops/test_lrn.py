"""Local response normalization against the paper's formula in NumPy, and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cnnjax.ops import InputError
from cnnjax.ops.lrn import local_response_norm


def by_definition(a, n, k, alpha, beta):
    """b[i] = a[i] / (k + alpha sum of a[j]^2 for j = max(0, i - n/2) ... min(N - 1, i + n/2))^beta."""
    channels, b = a.shape[-1], np.zeros_like(a)
    for i in range(channels):
        total = np.zeros(a.shape[:-1])
        for j in range(max(0, i - n // 2), min(channels - 1, i + n // 2) + 1):
            total += a[..., j] ** 2
        b[..., i] = a[..., i] / (k + alpha * total) ** beta
    return b


@pytest.mark.parametrize("k", [1.0, 2.0])  # Caffe's and the paper's
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 100])
def test_values(size, k):
    x = 10 * np.random.default_rng(0).normal(size=(2, 3, 2, 7))
    with jax.enable_x64(True):
        for alpha, beta in ((1e-4, 0.75), (0.5, 1.3)):
            y = jax.jit(lambda x, a=alpha, b=beta: local_response_norm(x, size, k, a, b))(x)
            np.testing.assert_allclose(y, by_definition(x, size, k, alpha, beta), rtol=1e-12)


def test_the_papers_constants_are_the_defaults():
    x = 100 * np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
    expected = by_definition(x.astype(np.float64), n=5, k=2, alpha=1e-4, beta=0.75)
    np.testing.assert_allclose(local_response_norm(x), expected, rtol=1e-5)
    assert (np.abs(expected) < 0.55 * np.abs(x)).all()  # it does something to numbers of this size


@pytest.mark.usefixtures("promoting")
def test_worked_by_hand():
    x = jnp.array([1.0, 2, 3, 4])
    sums = np.array([1 + 4, 1 + 4 + 9, 4 + 9 + 16, 9 + 16])
    np.testing.assert_allclose(local_response_norm(x, 3, k=1, alpha=1, beta=1), x / (1 + sums), rtol=1e-6)
    np.testing.assert_allclose(local_response_norm(x, 2, k=1, alpha=1, beta=1), x / (1 + sums), rtol=1e-6)  # n/2 each
    np.testing.assert_allclose(local_response_norm(x, 1, k=3, alpha=2, beta=0.5), x / (3 + 2 * x**2) ** 0.5, rtol=1e-6)
    np.testing.assert_array_equal(local_response_norm(x, alpha=0, k=1), x)


@pytest.mark.parametrize("size", [3, 5])
def test_as_pytorch(size):
    """PyTorch, like Caffe, divides alpha by the size."""
    torch = pytest.importorskip("torch")
    x = 5 * np.random.default_rng(0).normal(size=(2, 4, 3, 8))
    theirs = torch.nn.functional.local_response_norm(torch.tensor(x).permute(0, 3, 1, 2), size, 0.1, 0.75, 2.0)
    with jax.enable_x64(True):
        ours = local_response_norm(x, size, k=2.0, alpha=0.1 / size, beta=0.75)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), rtol=1e-12)


def test_derivatives():
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(2, 3, 6))
        f = jax.jit(lambda x: local_response_norm(x, 3, 1.0, 0.5, 0.75))
        check_grads(f, (x,), order=2, modes=("fwd", "rev"), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(jax.vmap(f, in_axes=1, out_axes=1)(x), f(x), rtol=1e-12)
        np.testing.assert_allclose(jax.grad(lambda x: f(x).sum())(np.zeros((1, 4))), np.ones((1, 4)))  # k is 1


def test_half_precision_is_computed_in_float32():
    """400^2 overflows float16."""
    x = np.array([400, 3, -400, 0.5, 7], np.float16)
    y = local_response_norm(x)
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, local_response_norm(x.astype(np.float32)).astype(np.float16))
    assert np.isfinite(np.asarray(y)).all()


def test_empty():
    assert local_response_norm(jnp.zeros((0, 4))).shape == (0, 4)
    assert local_response_norm(jnp.zeros((4, 0))).shape == (4, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be a positive integer: got 0"),
        ({"size": 2.5}, "size must be a positive integer: got 2.5"),
        ({"k": 0.0}, "k must be a positive number: got 0.0"),
        ({"k": "2"}, "k must be a positive number: got '2'"),
        ({"alpha": -1e-4}, "alpha must be a number, 0 or more: got -0.0001"),
        ({"beta": float("nan")}, "beta must be a number, 0 or more: got nan"),
    ],
)
def test_bad_constants(options, message):
    with pytest.raises(InputError, match=message) as caught:
        local_response_norm(np.ones((2, 4), np.float32), **options)
    assert "\n" not in str(caught.value)


def test_bad_arrays():
    with pytest.raises(TypeError, match="x must hold real floating-point numbers: got int32"):
        local_response_norm(np.ones((2, 4), np.int32))
    with pytest.raises(InputError, match="x must have a last axis of channels: got a scalar"):
        local_response_norm(np.float32(1))
