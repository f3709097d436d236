"""Switches of max pooling and unpooling by them, against their definitions and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from pools import POOLS, tied

from cnnjax.ops import InputError, max_pool, reference
from cnnjax.ops.unpool import max_pool_with_switches, max_unpool


@pytest.fixture(params=POOLS)
def pool(request):
    return POOLS[request.param]


# Compiled once for each shape, not operation by operation.
pool_with_switches = jax.jit(max_pool_with_switches, static_argnums=(1, 2, 3))
unpool = jax.jit(max_unpool, static_argnums=2, static_argnames="overlap")


def space_of(shape, window):
    return shape[-len(window) - 1 : -1]


def switches_by_definition(x, window, strides, padding):
    """The first maximum of each window: the oracle pools ranks, among which an earlier equal element counts more."""
    space = space_of(x.shape, window)
    positions = np.broadcast_to(np.arange(np.prod(space)).reshape(*space, 1), x.shape)
    # Integers, and padding less than all of them: value first, then earliness; where only padding is left, -1.
    ranks = (x.astype(np.int64) + 100) * 10_000 - positions
    best = reference.max_pool(ranks, window, strides, padding)
    return np.where(best < 0, -1, -best % 10_000).astype(np.int32)


def unpooled_by_definition(values, switches, space, overlap):
    n = len(space)
    batch, windows = values.shape[: -n - 1], values.shape[-n - 1 : -1]
    y = np.zeros((*batch, np.prod(space), values.shape[-1]), values.dtype)
    for *b, c in np.ndindex(*batch, values.shape[-1]):
        for p in np.ndindex(*windows):
            to = switches[*b, *p, c]
            if to >= 0:
                y[*b, to, c] = values[*b, *p, c] + (y[*b, to, c] if overlap == "sum" else 0)
    return y.reshape(*batch, *space, values.shape[-1])


# --- Switches -------------------------------------------------------------------------------------------------------


def test_the_maximum_is_that_of_max_pool_and_the_switch_the_first(pool):
    shape, *arguments = pool
    both = jax.jit(lambda x: (max_pool_with_switches(x, *arguments), max_pool(x, *arguments)))
    for dtype in (np.float32, np.int32):
        x = tied(shape, dtype)
        (maximum, switches), expected = both(x)
        assert maximum.dtype == dtype
        assert switches.dtype == jnp.int32
        np.testing.assert_array_equal(maximum, expected)
        np.testing.assert_array_equal(switches, switches_by_definition(x, *arguments))
    assert (np.asarray(switches) == -1).any() == (pool == POOLS["wide padding"])


def test_switches_worked_by_hand():
    x = jnp.array([[1.0, 5, 2], [7, 5, 0], [4, 8, 8]])[..., None]
    maximum, switches = pool_with_switches(x, (2, 2))
    np.testing.assert_array_equal(maximum[..., 0], [[7, 5], [8, 8]])
    np.testing.assert_array_equal(switches[..., 0], [[3, 1], [7, 7]])  # the first 5 and the first 8
    _, switches = pool_with_switches(x, (2, 2), (2, 2), ((1, 0), (1, 0)))
    np.testing.assert_array_equal(switches[..., 0], [[0, 1], [3, 7]])


def test_padding_is_never_a_maximum():
    """Also not where the window's own elements are the least there are."""
    for x in (jnp.full((2, 2, 1), -jnp.inf), jnp.full((2, 2, 1), -128, jnp.int8), jnp.zeros((2, 2, 1), bool)):
        maximum, switches = pool_with_switches(x, (2, 2), None, ((1, 1), (1, 1)))
        np.testing.assert_array_equal(switches[..., 0], [[0, 0, 1], [0, 0, 1], [2, 2, 3]])
        np.testing.assert_array_equal(maximum, max_pool(x, (2, 2), padding=((1, 1), (1, 1))))
        maximum, switches = pool_with_switches(x, (1, 1), None, ((0, 0), (1, 0)))
        np.testing.assert_array_equal(switches[..., 0], [[-1, 0, 1], [-1, 2, 3]])
        np.testing.assert_array_equal(maximum, max_pool(x, (1, 1), padding=((0, 0), (1, 0))))


def test_nan_is_the_maximum():
    x = jnp.array([[1.0, jnp.nan, 2], [jnp.inf, 5, 0], [4, jnp.nan, 8]])[..., None]
    maximum, switches = pool_with_switches(x, (3, 2))
    np.testing.assert_array_equal(switches[..., 0], [[7, 7]])  # the last of two
    assert jnp.isnan(maximum).all()
    maximum, switches = pool_with_switches(x[:, ::-1], (2, 2), None, "SAME")
    np.testing.assert_array_equal(switches[..., 0], [[1, 1, 5], [7, 7, 5], [7, 7, 8]])
    np.testing.assert_array_equal(maximum, max_pool(x[:, ::-1], (2, 2), padding="SAME"))


def test_the_gradient_goes_to_the_switch(pool):
    """It is that of max pooling, which is unpooling by "sum"; a tangent comes from the switch; under vmap as well."""
    shape, *arguments = pool
    with jax.enable_x64(True):
        x = jnp.asarray(tied(shape))
        rng = np.random.default_rng(1)
        dy = rng.integers(1, 10, (2, *jax.eval_shape(lambda: max_pool(x, *arguments)).shape)) * 1.0
        dx = rng.normal(size=(2, *shape))

        @jax.jit
        def run(x, dx, dy):
            value = lambda x: max_pool_with_switches(x, *arguments)[0]
            _, switches = max_pool_with_switches(x, *arguments)
            pulls = [
                jax.vmap(lambda dy, f=f: jax.vjp(f, x)[1](dy)[0])(dy)
                for f in (value, lambda x: max_pool(x, *arguments))
            ]
            placed = jax.vmap(lambda dy: max_unpool(dy, switches, space_of(shape, arguments[0])))(dy)
            return *pulls, placed, jax.vmap(lambda dx: jax.jvp(value, (x,), (dx,))[1])(dx)

        pulled, expected, placed, pushed = run(x, dx, dy)
        np.testing.assert_array_equal(pulled, expected)
        np.testing.assert_array_equal(placed, expected)
        np.testing.assert_allclose((pushed * dy).sum(), (pulled * dx).sum(), rtol=1e-12)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 3)])
def test_as_pytorch(window, stride, padding):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = np.where(rng.uniform(size=(2, 7, 8, 3)) < 0.2, np.nan, rng.normal(size=(2, 7, 8, 3))).astype(np.float32)
    theirs, indices = torch.nn.functional.max_pool2d(
        torch.tensor(x).permute(0, 3, 1, 2), window, stride, padding, return_indices=True
    )
    maximum, switches = pool_with_switches(x, (window,) * 2, (stride,) * 2, ((padding, padding),) * 2)
    np.testing.assert_array_equal(maximum, theirs.permute(0, 2, 3, 1))
    np.testing.assert_array_equal(switches, indices.permute(0, 2, 3, 1))
    back = torch.nn.functional.max_unpool2d(theirs, indices, window, stride, padding, output_size=(7, 8))
    for overlap in ("sum", "last"):
        np.testing.assert_array_equal(unpool(maximum, switches, (7, 8), overlap=overlap), back.permute(0, 2, 3, 1))


def test_overlapping_switches_as_pytorch():
    torch = pytest.importorskip("torch")
    x = tied((2, 9, 8, 3), np.float32)
    _, indices = torch.nn.functional.max_pool2d(torch.tensor(x).permute(0, 3, 1, 2), 3, 2, 1, return_indices=True)
    _, switches = pool_with_switches(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    np.testing.assert_array_equal(switches, indices.permute(0, 2, 3, 1))


# --- Unpooling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", ["sum", "last"])
def test_unpooling_is_its_definition(pool, overlap):
    shape, *arguments = pool
    space = space_of(shape, arguments[0])
    with jax.enable_x64(True):
        switches = switches_by_definition(tied(shape), *arguments)
        values = np.random.default_rng(1).integers(-9, 10, switches.shape) * 1.0
        y = jax.jit(lambda v, s: max_unpool(v, s, space, overlap=overlap))(values, switches)
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, unpooled_by_definition(values, switches, space, overlap))


def test_unpooling_worked_by_hand():
    """Three of four windows share the 8 in the middle."""
    x = jnp.array([[9.0, 0, 0], [0, 8, 0], [0, 0, 0]])[..., None]
    maximum, switches = pool_with_switches(x, (2, 2))
    np.testing.assert_array_equal(switches[..., 0], [[0, 4], [4, 4]])
    middle = lambda top_left, value: [[top_left, 0, 0], [0, value, 0], [0, 0, 0]]
    np.testing.assert_array_equal(unpool(maximum, switches, (3, 3))[..., 0], middle(9, 24))
    np.testing.assert_array_equal(unpool(maximum, switches, (3, 3), overlap="last")[..., 0], middle(9, 8))
    other = jnp.array([[1.0, 2], [-3, 4]])[..., None]
    np.testing.assert_array_equal(unpool(other, switches, (3, 3))[..., 0], middle(1, 3))
    np.testing.assert_array_equal(unpool(other, switches, (3, 3), overlap="last")[..., 0], middle(1, 4))


def test_placing_restores_the_maxima():
    """Unpooling by "last" puts every maximum back exactly, and pooling again finds it there."""
    x = np.abs(np.random.default_rng(0).normal(size=(2, 9, 8, 3))).astype(np.float32)
    arguments = ((3, 3), (2, 2), "SAME")
    maximum, switches = pool_with_switches(x, *arguments)
    y = unpool(maximum, switches, (9, 8), overlap="last")
    kept = np.asarray(y) != 0
    assert 0.1 < kept.mean() < 0.9
    np.testing.assert_array_equal(np.asarray(y)[kept], x[kept])
    np.testing.assert_array_equal(max_pool(y, *arguments), maximum)
    assert (unpool(maximum, switches, (9, 8)) > y).any()


@pytest.mark.parametrize("overlap", ["sum", "last"])
def test_derivatives_of_unpooling(overlap):
    with jax.enable_x64(True):
        switches = switches_by_definition(tied((2, 6, 5, 2)), (3, 3), (2, 2), "SAME")
        values = np.random.default_rng(1).normal(size=switches.shape)
        f = jax.jit(lambda v: max_unpool(v, switches, (6, 5), overlap=overlap) ** 2)
        check_grads(f, (values,), order=2, modes=("fwd", "rev"), rtol=1e-6, atol=1e-6)
        batched = jax.vmap(f)(np.stack([values, 2 * values]))  # of the values alone
        np.testing.assert_allclose(batched, np.stack([f(values), f(2 * values)]), rtol=1e-12)


def test_switches_out_of_range_go_nowhere():
    values, switches = jnp.array([[1.0], [2], [3], [4]]), jnp.array([[-1], [3], [1], [-3]])
    for overlap in ("sum", "last"):
        np.testing.assert_array_equal(unpool(values, switches, (3,), overlap=overlap), [[0], [3], [0]])
        y = unpool(values, switches.astype(jnp.int8), (1000,), overlap=overlap)  # more positions than int8 counts
        np.testing.assert_array_equal(y[:4, 0], [0, 3, 0, 2])
        assert y.sum() == 5


def test_sums_of_half_precision():
    """300 ones at one position: added one by one in bfloat16 they would stop at 256."""
    ones = jnp.ones((300, 1), jnp.bfloat16)
    y = max_unpool(ones, jnp.zeros((300, 1), jnp.int32), (1,))
    assert y.dtype == jnp.bfloat16
    assert float(y.item()) == 300


def test_placing_only_by_maximum_of_integers():
    """What a GPU may add in any order does not occur in "last", forward, nor with equal places in its gradient."""
    values, switches = jnp.ones((1, 4, 4, 2)), jnp.zeros((1, 4, 4, 2), jnp.int32)
    scatters = lambda overlap: [
        (equation.primitive.name, equation.invars[0].aval.dtype)
        for equation in jax.make_jaxpr(lambda v: max_unpool(v, switches, (9, 9), overlap=overlap))(values).eqns
        if equation.primitive.name.startswith("scatter")
    ]
    assert scatters("last") == [("scatter-max", jnp.int32)]
    assert scatters("sum") == [("scatter-add", jnp.float32)]


# --- Bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((2, 2, 2, 2),), "inputs must have 4 spatial axes and then one of channels.*got shape .2, 6, 6, 3."),
        (((2, 2), (2,)), "strides must be .* 2 in all: got .2,."),
        (((2, 2), None, "SAEM"), "unknown padding 'SAEM'.*allowed: VALID, SAME, SAME_LOWER"),
    ],
)
def test_bad_pooling(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        max_pool_with_switches(np.ones((2, 6, 6, 3), np.float32), *arguments)
    assert "\n" not in str(caught.value)


def test_too_many_positions():
    pool = lambda x: max_pool_with_switches(x, (2, 2, 2))
    with pytest.raises(InputError, match=r"inputs must have no more than 2\^31 - 1 positions: got 2197000000"):
        jax.eval_shape(pool, jax.ShapeDtypeStruct((1300, 1300, 1300, 1), jnp.int8))


def test_bad_unpooling():
    values, switches = np.ones((2, 3, 3, 1), np.float32), np.zeros((2, 3, 3, 1), np.int32)
    for arguments, options, message in [
        ((values, switches, 6), {}, "output_space must be positive integers, one for each axis: got 6"),
        ((values, switches, (6, 0)), {}, "output_space must be a positive integer for each axis, 2 in all: got .6, 0."),
        (
            (values[0, 0], switches[0, 0], (6, 6)),
            {},
            "pooled must have 2 spatial axes and then one of channels.*.3, 1.",
        ),
        ((values, switches[:1], (6, 6)), {}, "switches must have the shape of pooled, .2, 3, 3, 1.: got .1, 3, 3, 1."),
        ((values, switches, (6, 6)), {"overlap": "lats"}, "unknown overlap 'lats': did you mean 'last'.*: sum, last"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            max_unpool(*arguments, **options)
        assert "\n" not in str(caught.value)


def test_bad_dtypes():
    x = np.ones((4, 4, 1))
    with pytest.raises(TypeError, match="inputs must hold real numbers: got complex64"):
        max_pool_with_switches(x.astype(np.complex64), (2, 2))
    with pytest.raises(TypeError, match="switches must hold integers: got float32"):
        max_unpool(x.astype(np.float32), x.astype(np.float32), (8, 8))
    with pytest.raises(TypeError, match="pooled must hold numbers: got bool"):
        max_unpool(x.astype(bool), x.astype(np.int32), (8, 8))
