"""Pooling by p-norms against the definition in NumPy and PyTorch; extreme numbers; derivatives."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from pools import POOLS

from cnnjax.ops import InputError, avg_pool, reference
from cnnjax.ops.lp_pool import lp_pool

POWERS = [1, 1.5, 2, 3, 7.25, math.inf]


@pytest.mark.parametrize("name", POOLS)
def test_values(name):
    """The oracle's averages, times their count, of powers; its maxima for p = inf."""
    shape, window, *arguments = POOLS[name]
    x = np.random.default_rng(0).normal(size=shape)
    with jax.enable_x64(True):
        run = jax.jit(lambda x: [lp_pool(x, p, window, *arguments) for p in POWERS])
        for p, y in zip(POWERS, run(x), strict=True):
            if p == math.inf:
                expected = np.maximum(0, reference.max_pool(np.abs(x), window, *arguments))
            else:
                total = reference.avg_pool(np.abs(x) ** p, window, *arguments) * math.prod(window)
                expected = total ** (1 / p)
            assert y.dtype == np.float64
            np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-14, err_msg=f"p = {p}")


def test_worked_by_hand():
    x = jnp.array([[3.0, -4], [0, 12], [0, 0]])[..., None]
    expected = {
        (2, (1, 2)): [5, 12, 0],
        (2, (2, 2)): [13, 12],
        (1, (2, 2)): [19, 12],
        (3, (1, 2)): [91 ** (1 / 3), 12, 0],  # 27 + 64: signs do not cancel
        (math.inf, (2, 2)): [12, 12],
    }
    for y, by_hand in zip(jax.jit(lambda: [lp_pool(x, *a) for a in expected])(), expected.values(), strict=True):
        np.testing.assert_allclose(y[:, 0, 0], by_hand, rtol=1e-6)


def test_between_the_average_and_the_maximum():
    """The power mean of a window grows with p, from the average to the maximum of magnitudes."""
    x = jnp.abs(jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 6, 2)).astype(np.float32)))
    run = jax.jit(lambda: [lp_pool(x, p, (3, 3), (3, 3)) / 9 ** (1 / p) for p in (1, 2, 4, 16, 64, 1000)])
    means = np.stack(run())
    np.testing.assert_allclose(means[0], avg_pool(x, (3, 3), (3, 3)), rtol=1e-6)
    np.testing.assert_allclose(means[-1], reference.max_pool(x, (3, 3), (3, 3)), rtol=1e-2)
    assert (np.diff(means, axis=0) > 0).all()


@pytest.mark.parametrize("p", [2, 3, 4])
def test_as_pytorch(p):
    """Where PyTorch's sum of x^p is that of |x|^p: even p, or nothing negative."""
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 3))
    x = x if p % 2 == 0 else np.abs(x)
    theirs = torch.nn.functional.lp_pool2d(torch.tensor(x).permute(0, 3, 1, 2), p, (3, 2), (2, 2)).permute(0, 2, 3, 1)
    with jax.enable_x64(True):
        ours = jax.jit(lambda x: lp_pool(x, p, (3, 2), (2, 2)))(x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


# --- Extreme numbers ------------------------------------------------------------------------------------------------


def test_no_power_overflows_or_underflows():
    x = jnp.array([1e30, 1e30, 1e-30, 1e-30, 1, 1], jnp.float32)[:, None]
    powers = (1, 2, 10, 333.3)

    def both(p):
        y, pull = jax.vjp(lambda x: lp_pool(x, p, (2,), (2,)), x)
        return y, pull(jnp.arange(3.0)[:, None])[0]

    for p, (y, gradient) in zip(powers, jax.jit(lambda: list(map(both, powers)))(), strict=True):
        np.testing.assert_allclose(y[:, 0], np.array([1e30, 1e-30, 1]) * 2 ** (1 / p), rtol=1e-5)
        np.testing.assert_allclose(gradient[:, 0], np.repeat(np.arange(3), 2) * 2 ** (1 / p - 1), rtol=1e-5)


@pytest.mark.parametrize("p", POWERS)
def test_the_gradient_of_zeros_is_zero(p):
    """In windows of zeros, in those that hold some, and in both modes."""
    x = jnp.array([0.0, 0, 3, 0, 0, 0, -0.0, 5])[:, None]
    f = lambda x: lp_pool(x, p, (2,), (2,), "SAME")
    pulled, pushed = jax.jit(lambda x: (jax.jacrev(f)(x), jax.jacfwd(f)(x)))(x)
    expected = np.zeros((4, 8))
    expected[1, 2] = expected[3, 7] = 1
    np.testing.assert_allclose(pulled[:, 0, :, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(pushed, pulled, rtol=1e-6)


def test_infinity_and_nan():
    x = jnp.array([1, jnp.inf, -jnp.inf, 2, jnp.nan, 1, 3, 4])[:, None]
    for y in jax.jit(lambda: [lp_pool(x, p, (2,), (2,))[:, 0] for p in POWERS])():
        assert jnp.isinf(y).tolist() == [True, True, False, False]
        assert jnp.isnan(y).tolist() == [False, False, True, False]


# --- Derivatives and dtypes -----------------------------------------------------------------------------------------


def test_derivatives_by_differences():
    """First and second, forward and reverse; with a zero among the elements, where even powers are smooth."""
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(1, 5, 4, 2))
        f = jax.jit(lambda x: jnp.stack([lp_pool(x, p, (3, 2), (2, 2), "SAME") for p in (1, 2, 2.5, 3)]))
        check_grads(f, (x,), order=2, modes=("fwd", "rev"), rtol=1e-4, atol=1e-4)
        hessian = jax.jit(jax.hessian(lambda x: lp_pool(x, 2, (2,))[0, 0]))(np.array([[3.0], [0.0]]))
        np.testing.assert_allclose(
            hessian[:, 0, :, 0], [[0, 0], [0, 1 / 3]], atol=1e-12
        )  # of sqrt(a^2 + b^2) at (3, 0)


def test_vmap_is_a_loop():
    x = np.random.default_rng(0).normal(size=(3, 2, 6, 5, 2)).astype(np.float32)
    f = lambda x: lp_pool(x, 3, (3, 2), (2, 1), "SAME")
    batched, one = jax.jit(lambda x: (jax.vmap(f)(x), f(x[1])))(x)
    np.testing.assert_allclose(batched[1], one, rtol=1e-6)


def test_dtypes():
    ones = jnp.ones((32, 32, 1), jnp.bfloat16)  # 1,024 ones: summed in bfloat16 they would stop at 256
    y = jax.jit(lambda x: lp_pool(x, 1, (32, 32)))(ones)
    assert y.dtype == jnp.bfloat16
    assert float(y.item()) == 1024
    y = lp_pool(jnp.array([[3], [-4]]), 2, (2,))
    assert y.dtype == jnp.float32
    assert y.tolist() == [[5.0]]


# --- Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5, (2, 2)), "p must be a number, 1 or more, or math.inf: got 0.5"),
        ((math.nan, (2, 2)), "p must be a number, 1 or more.*: got nan"),
        (("2", (2, 2)), "p must be a number, 1 or more.*: got '2'"),
        ((2, (2, 2, 2, 2)), "inputs must have 4 spatial axes and then one of channels.*got shape .2, 6, 6, 3."),
        ((2, (2, 0)), "window_shape must be a positive integer for each axis, 2 in all: got .2, 0."),
        ((2, (2, 2), None, "SAEM"), "unknown padding 'SAEM'.*allowed: VALID, SAME, SAME_LOWER"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        lp_pool(np.ones((2, 6, 6, 3), np.float32), *arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [bool, np.complex64])
def test_bad_dtypes(dtype):
    with pytest.raises(TypeError, match="inputs must hold real numbers: got"):
        lp_pool(np.ones((4, 4, 1), dtype), 2, (2, 2))
