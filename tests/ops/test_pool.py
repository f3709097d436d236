"""Pooling against flax.linen, the NumPy oracle and, for its gradient, XLA: ties included."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.test_util import check_grads
from pools import POOLS, tied

from cnnjax.ops import InputError, avg_pool, max_pool, max_pool_with_switches, max_unpool, reference


@pytest.fixture(params=POOLS)
def pool(request):
    return POOLS[request.param]


def first_maximum_gradient(x, dy, window, strides, padding):
    """The gradient of max pooling by its definition: each dy goes to the first maximum of its window, row by row."""
    n = len(window)
    strides = strides or (1,) * n
    batch = np.prod(x.shape[: -n - 1], dtype=int)
    flat, flat_dy = x.reshape(batch, *x.shape[-n - 1 :]), dy.reshape(batch, *dy.shape[-n - 1 :])
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[-n - 1 : -1], window, strides, padding)
    gradient = np.zeros_like(flat)
    for b, *p, c in np.ndindex(flat_dy.shape):
        best = None
        for tap in np.ndindex(*window):
            at = [i * s + t - low for i, s, t, (low, _) in zip(p, strides, tap, padding, strict=True)]
            inside = all(0 <= a < size for a, size in zip(at, x.shape[-n - 1 : -1], strict=True))
            if inside and (best is None or flat[b, *at, c] > flat[b, *best, c]):
                best = at
        if best is not None:
            gradient[b, *best, c] += flat_dy[b, *p, c]
    return gradient.reshape(x.shape)


def gradient_of(pool, arguments):
    """The gradient of a pooling as a function of its input and of the gradient of its output."""
    return jax.jit(lambda x, dy: jax.vjp(lambda x: pool(x, *arguments), x)[1](dy)[0])


def flax_can(shape, arguments) -> bool:
    """Whether flax can: with more than one batch axis its padding does not fit."""
    return len(shape) <= len(arguments[0]) + 2


# --- Values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.int32])
def test_max_is_that_of_flax_and_of_the_oracle(pool, dtype):
    shape, *arguments = pool
    x = (10 * np.random.default_rng(0).normal(size=shape)).astype(dtype)
    pools = [max_pool, nn.max_pool] if flax_can(shape, arguments) else [max_pool]
    for y in jax.jit(lambda x: [pool(x, *arguments) for pool in pools])(x):
        assert y.dtype == dtype
        np.testing.assert_array_equal(np.asarray(y), reference.max_pool(x, *arguments))


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.usefixtures("promoting")
def test_average_is_that_of_flax_and_of_the_oracle(pool, count_include_pad):
    shape, *arguments = pool
    x = np.random.default_rng(0).normal(size=shape)
    expected = reference.avg_pool(x, *arguments, count_include_pad=count_include_pad)
    assert np.isnan(expected).any() == (not count_include_pad and pool == POOLS["wide padding"])
    pools = [avg_pool, nn.avg_pool] if flax_can(shape, arguments) else [avg_pool]
    with jax.enable_x64(True):
        for y in jax.jit(lambda x: [pool(x, *arguments, count_include_pad=count_include_pad) for pool in pools])(x):
            assert y.dtype == expected.dtype
            np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-14)


def test_max_worked_by_hand():
    x = jnp.array([[1.0, 5, 2], [7, 3, 0], [4, 4, 8]])[..., None]
    np.testing.assert_array_equal(max_pool(x, (2, 2))[..., 0], [[7, 5], [7, 8]])
    np.testing.assert_array_equal(max_pool(-x, (2, 2), (2, 2), "SAME")[..., 0], [[-1, 0], [-4, -8]])


def test_average_of_other_dtypes():
    x = jnp.arange(16).reshape(1, 4, 4, 1)
    expected = nn.avg_pool(x, (2, 2), (2, 2))
    y = avg_pool(x, (2, 2), (2, 2))
    assert y.dtype == expected.dtype == jnp.float32
    np.testing.assert_array_equal(y, expected)
    ones = jnp.full((1, 64, 64, 1), 1.0, jnp.bfloat16)  # 4,096 ones: summed in bfloat16 they would stop at 256
    for count in (True, False):
        y = avg_pool(ones, (64, 64), count_include_pad=count)
        assert y.dtype == jnp.bfloat16
        assert float(y.item()) == 1.0
    assert avg_pool(jnp.ones((4, 4, 1), jnp.complex64) * 1j, (2, 2)).tolist()[0][0] == [1j]


def test_booleans_and_integers_have_a_least_element():
    """Padding never wins, whatever the dtype."""
    for x in (jnp.zeros((2, 2, 1), bool), jnp.full((2, 2, 1), -128, jnp.int8), jnp.zeros((2, 2, 1), jnp.uint8)):
        y = max_pool(x, (3, 3), padding="SAME")
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_floats_of_8_bits(dtype):
    """With and without infinities; what they don't promote to is nevertheless what they are summed in."""
    x = -jnp.ones((1, 4, 4, 1), dtype)
    for y in (max_pool(x, (3, 3), padding="SAME"), max_pool_with_switches(x, (3, 3), padding="SAME")[0]):
        assert y.dtype == dtype
        np.testing.assert_array_equal(y.astype(np.float32), -1)
    assert float(avg_pool(x, (4, 4)).astype(np.float32).item()) == -1
    placed = max_unpool(-jnp.ones((1, 2, 1, 1), dtype), jnp.ones((1, 2, 1, 1), int), (2, 2))
    np.testing.assert_array_equal(placed.astype(np.float32).ravel(), [0, -2, 0, 0])


@pytest.mark.parametrize("at", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_nan_propagates(at):
    x = jnp.array([[1.0, 2], [3, 4]]).at[at].set(jnp.nan)[..., None]
    assert jnp.isnan(max_pool(x, (2, 2))).all()
    x = jnp.array([[1.0, 2, 0], [3, 4, 0], [5, 6, 0]]).at[at].set(jnp.nan)[..., None]
    expected = nn.max_pool(x, (2, 2), padding="SAME")
    np.testing.assert_array_equal(max_pool(x, (2, 2), padding="SAME"), expected)
    assert 0 < jnp.isnan(expected).sum() < 9


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ((4, 40, 1, 64), ((3, 3), (2, 2), ((1, 1), (1, 1)))),  # one window across
        ((2, 28, 28, 64), ((7, 7), (7, 7))),
        ((2, 28, 28, 64), ((3, 3), (3, 3))),
        ((2, 30, 30, 64), ((3, 3), (2, 2))),
        ((2, 30, 30, 64), ((2, 2), (2, 2))),
    ],
)
def test_no_nan_is_lost_among_many_channels(shape, arguments):
    """XLA's own maximum along an axis loses some where it is vectorized."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    x[rng.random(shape) < 0.01] = np.nan
    np.testing.assert_array_equal(jax.jit(lambda x: max_pool(x, *arguments))(x), reference.max_pool(x, *arguments))


# --- Derivatives ----------------------------------------------------------------------------------------------------


def test_max_gradient_goes_to_the_first_maximum(pool):
    """With ties everywhere: the definition's gradient and XLA's, exactly (all numbers are small integers)."""
    shape, *arguments = pool
    x = tied(shape)
    with jax.enable_x64(True):
        dy = np.random.default_rng(1).integers(1, 10, jax.eval_shape(lambda: max_pool(x, *arguments)).shape) * 1.0
        expected = first_maximum_gradient(x, dy, *arguments)
        # lax cannot differentiate a pooling that crops, nor one without windows.
        cropping = arguments == list(POOLS["cropping"][1:])
        pools = [max_pool, nn.max_pool] if flax_can(shape, arguments) and dy.size and not cropping else [max_pool]
        for pool in pools:
            np.testing.assert_array_equal(gradient_of(pool, arguments)(x, dy), expected)


@pytest.mark.parametrize("value", [-np.inf, -1e300, 0.0, np.inf])
def test_max_gradient_where_a_window_is_constant(value):
    """As XLA's, in windows that overhang; those of -inf, which equals the padding, included."""
    x, arguments = np.full((1, 4, 5, 1), value), ((3, 3), (2, 2), ((1, 1), (2, 2)))
    with jax.enable_x64(True):
        dy = 1.0 + np.arange(8).reshape(1, 2, 4, 1)
        ours, xla = (gradient_of(pool, arguments)(x, dy) for pool in (max_pool, nn.max_pool))
        np.testing.assert_array_equal(ours, xla)
        if value > -np.inf:
            np.testing.assert_array_equal(ours, first_maximum_gradient(x, dy, *arguments))


@pytest.mark.parametrize("name", ["2x2/2", "3x3/2 pad 1", "three dimensions"])
def test_max_forward_mode_picks_the_same_elements(name):
    """A tangent arrives from the element that the gradient goes to; under vmap as well."""
    shape, *arguments = POOLS[name]
    with jax.enable_x64(True):
        x = jnp.asarray(tied(shape))
        dx = jnp.asarray(np.random.default_rng(2).normal(size=(2, *shape)))
        f = lambda x: max_pool(x, *arguments)
        dy = jnp.asarray(np.random.default_rng(3).normal(size=(2, *jax.eval_shape(f, x).shape)))
        pushed = jax.jit(jax.vmap(lambda dx: jax.jvp(f, (x,), (dx,))[1]))(dx)
        pulled = jax.jit(jax.vmap(lambda dy: jax.vjp(f, x)[1](dy)[0]))(dy)
        np.testing.assert_allclose((pushed * dy).sum(), (pulled * dx).sum(), rtol=1e-12)
        assert np.isin(pushed, dx).all()  # a selection, not a mixture


@pytest.mark.parametrize("name", ["2x2/2", "3x3/2 pad 1", "2x3/(3, 1)", "one dimension"])
@pytest.mark.parametrize("function", [max_pool, avg_pool])
def test_derivatives_by_differences(function, name):
    """First and second, forward and reverse, where all elements differ (a maximum has no derivative at ties)."""
    shape, *arguments = POOLS[name]
    with jax.enable_x64(True):
        x = np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape) / 10
        check_grads(
            jax.jit(lambda x: function(x, *arguments) ** 2), (x,), order=2, modes=("fwd", "rev"), rtol=1e-5, atol=1e-5
        )


def test_vmap_and_jit():
    shape, *arguments = POOLS["3x3/2 pad 1"]
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    for ours, oracle in ((max_pool, reference.max_pool), (avg_pool, reference.avg_pool)):
        y = jax.jit(jax.vmap(lambda x, f=ours: f(x, *arguments), in_axes=3))(np.moveaxis(x, 0, 3))
        np.testing.assert_allclose(y, np.stack([oracle(one, *arguments) for one in x]), rtol=1e-6, atol=1e-6)


def test_max_needs_no_select_and_scatter():
    """What has no deterministic form on GPU does not occur, forward or backward."""
    step = jax.jit(jax.grad(lambda x: max_pool(x, (3, 3), (2, 2), "SAME").sum()))
    text = step.lower(jnp.ones((2, 8, 8, 2))).as_text()
    assert "select_and_scatter" not in text
    assert "reduce_window" not in text
    stock = jax.jit(jax.grad(lambda x: nn.max_pool(x, (3, 3), (2, 2), "SAME").sum()))
    assert "select_and_scatter" in stock.lower(jnp.ones((2, 8, 8, 2))).as_text()  # what is looked for has that name


@pytest.mark.parametrize("name", ["2x2/2", "3x3/2", "3x3/3", "7x5/1 same"])
def test_max_gradient_of_nan(name):
    """Of several NaN in a window the gradient goes to the last, as if it were the largest number."""
    shape, *arguments = POOLS[name]
    marked = np.random.default_rng(0).uniform(size=shape) < 0.4
    larger_and_larger = np.where(marked, 1.0 + np.arange(marked.size).reshape(shape), 0)
    dy = np.ones(jax.eval_shape(lambda: max_pool(larger_and_larger, *arguments)).shape)
    with jax.enable_x64(True):
        got = gradient_of(max_pool, arguments)(np.where(marked, np.nan, 0), dy)
    np.testing.assert_array_equal(got, first_maximum_gradient(larger_and_larger, dy, *arguments))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", ["2x2/2", "3x3/2 same", "3x3/3", "7x5/1 same", "one window"])
def test_a_sharded_batch_stays_where_it_is(name, axis_type):
    """On 8 devices nothing moves: pooling, its gradient, switches and unpooling by them."""
    (_, *shape), *arguments = POOLS[name]
    x = np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)

    def everything(x):
        y, back = jax.vjp(lambda x: max_pool(x, *arguments), x)
        pooled, switches = max_pool_with_switches(x, *arguments)
        unpooled = [max_unpool(pooled, switches, shape[:-1], overlap=overlap) for overlap in ("sum", "last")]
        return y, back(y), avg_pool(x, *arguments), pooled, switches, unpooled

    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    by_batch = jax.NamedSharding(mesh, jax.P("data"))
    with jax.set_mesh(mesh):
        compiled = jax.jit(everything, out_shardings=by_batch).lower(jax.device_put(x, by_batch)).compile()
    for moves in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert moves not in compiled.as_text()
    got, alone = compiled(jax.device_put(x, by_batch)), jax.jit(everything)(x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, alone)


# --- Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [max_pool, avg_pool, reference.max_pool, reference.avg_pool])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((2, 2, 2, 2),), "inputs must have 4 spatial axes and then one of channels.*got shape .2, 6, 6, 3."),
        ((2,), "window_shape must be positive integers, one for each axis: got 2"),
        (((2, 0),), "window_shape must be a positive integer for each axis, 2 in all: got .2, 0."),
        (((2, 2), 2), "strides must be a positive integer for each axis, 2 in all: got 2"),
        (((2, 2), (2,)), "strides must be .* 2 in all: got .2,."),
        (((2, 2), (2, -1)), "strides must be .*: got .2, -1."),
        (((2, 2), None, "SAEM"), "unknown padding 'SAEM'.*allowed: VALID, SAME, SAME_LOWER"),
        (((2, 2), None, 1), "padding must be one of VALID, .*: got 1"),
        (((2, 2), None, ((1, 1),)), "pair of integers for each of 2 axes"),
        (((2, 2), None, ((-4, -4), (0, 0))), "padding must not crop more than there is"),
    ],
)
def test_bad_input(function, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        function(np.ones((2, 6, 6, 3), np.float32), *arguments)
    assert "\n" not in str(caught.value)


def test_bad_dtypes():
    with pytest.raises(TypeError, match="inputs must hold real numbers: got complex64"):
        max_pool(np.ones((4, 4, 1), np.complex64), (2, 2))
    with pytest.raises(TypeError, match="inputs must hold numbers: got bool"):
        avg_pool(np.ones((4, 4, 1), bool), (2, 2))
    for nothing in (None, "image", [[1.0, 2.0], [3.0]], [np.ones((3, 3)), np.ones(2)], 2**80):
        with pytest.raises(TypeError, match="inputs must be an array of numbers, not ragged: got ") as caught:
            max_pool(nothing, (2, 2))
        assert "\n" not in str(caught.value)
