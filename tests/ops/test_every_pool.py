"""Poolings over all small sizes, windows, strides, paddings and dilations: shapes, values, gradients, summaries.

Shapes of maximum and average pooling are compared in all 2,520 cases of an axis, those of the others in some; values in
16 cases of two axes that are drawn for each pooling, gradients in 10, summaries in 16. `make equivalence` compares the
values in all cases of one axis. The oracle is `cnnjax.ops.reference`; gradients and switches are found by pooling what
tells positions apart.
"""

import functools
import itertools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pools import tied

from cnnjax import ops
from cnnjax.analysis.summary import summarize
from cnnjax.ops import InputError, max_pool, max_pool_with_switches, reference

PADDINGS = ["VALID", "SAME", "SAME_LOWER", (0, 1), (2, 1), (-1, 0), (3, -1)]
# Along one axis: padding, size, window, stride, dilation. Axes of an image are padded by one string or by pairs.
AXES = list(itertools.product(PADDINGS, range(1, 7), range(1, 5), range(1, 6), range(1, 4)))


def pooling(*axes):
    """The input's shape and the arguments of the pooling of images along some axes."""
    padding, size, window, strides, dilation = zip(*axes, strict=True)
    padding = padding[0] if isinstance(padding[0], str) else padding
    return (2, *size, 3), (window, strides, padding), {"window_dilation": dilation}


def outputs(axis):
    """How many windows there are along an axis, by the oracle."""
    (_, size, _), arguments, dilated = pooling(axis)
    return len(reference.max_pool(np.zeros((size, 1)), *arguments, **dilated))


def is_lone(axis):
    """Whether one window fits, and another one would with a stride as small as the window."""
    padding, size, window, stride, dilation = axis
    span = (window - 1) * dilation + 1
    return stride > span and outputs(axis) == 1 < outputs((padding, size, window, span, dilation))


LONE = list(filter(is_lone, AXES))


def beside(axis, rng):
    """Another axis that an image can have beside this one."""
    alike = [a for a in AXES if (a[0] if isinstance(axis[0], str) else type(a[0])) in (axis[0], tuple)]
    return alike[rng.integers(len(alike))]


def some(axes, number):
    """A selection of poolings along two axes, of which the first is one of `axes`."""
    rng = np.random.default_rng(0)
    return [pooling(axes[i], beside(axes[i], rng)) for i in rng.choice(len(axes), number, replace=False)]


POOLINGS = {
    "max": (max_pool, reference.max_pool),
    "average": (ops.avg_pool, reference.avg_pool),
    "average inside": tuple(
        functools.partial(pool, count_include_pad=False) for pool in (ops.avg_pool, reference.avg_pool)
    ),
    "LP": (
        lambda x, *args, **kwargs: ops.lp_pool(x, 3, *args, **kwargs),
        lambda x, window, *args, **kwargs: (
            (math.prod(window) * reference.avg_pool(np.abs(x) ** 3, window, *args, **kwargs)) ** (1 / 3)
        ),
    ),
    "largest magnitude": (
        lambda x, *args, **kwargs: ops.lp_pool(x, math.inf, *args, **kwargs),
        lambda x, *args, **kwargs: np.maximum(0, reference.max_pool(np.abs(x), *args, **kwargs)),
    ),
    "switches": (
        lambda *args, **kwargs: max_pool_with_switches(*args, **kwargs)[1],
        lambda *args, **kwargs: switches(*args, **kwargs),
    ),
    "max with switches": (lambda *args, **kwargs: max_pool_with_switches(*args, **kwargs)[0], reference.max_pool),
}


def switches(x, *args, **kwargs):
    """The first maximum of each window: the oracle pools ranks, among which an earlier equal element counts more."""
    positions = np.arange(math.prod(x.shape[1:3])).reshape(1, *x.shape[1:3], 1)
    best = reference.max_pool((x.astype(np.int64) + 100) * 10_000 - positions, *args, **kwargs)
    return np.where(best < 0, -1, -best % 10_000)


def test_there_are_cases():
    assert len(AXES) == 2520
    assert len(LONE) == 260
    assert all(outputs(axis) for axis in LONE)


@functools.cache
def inputs(shape):
    return tied(shape, np.float32)


def test_every_shape():
    """Maximum and average in every case along one axis, two at a time, and the other poolings in turn."""
    rng, rest = np.random.default_rng(0), itertools.cycle([pool for pool, _ in list(POOLINGS.values())[2:]])
    for padding in PADDINGS:
        alike = [AXES[i] for i in rng.permutation(len(AXES)) if AXES[i][0] == padding]
        for i, (first, second) in enumerate(zip(alike[::2], alike[1::2], strict=True)):
            shape, args, kwargs = pooling(first, second)
            pools = [max_pool, ops.avg_pool, *itertools.islice(rest, i % 4 == 0)]
            found = jax.eval_shape(
                lambda x, pools=pools, args=args, kwargs=kwargs: [pool(x, *args, **kwargs) for pool in pools],
                jax.ShapeDtypeStruct(shape, jnp.float32),
            )
            assert {y.shape for y in found} == {(2, outputs(first), outputs(second), 3)}, (first, second)


def compare(pool, oracle, cases):
    """A pooling in several cases, in one program, with the oracle."""
    run = jax.jit(lambda xs: [pool(x, *args, **kwargs) for x, (_, args, kwargs) in zip(xs, cases, strict=True)])
    for y, (shape, args, kwargs) in zip(run([inputs(shape) for shape, _, _ in cases]), cases, strict=True):
        expected = oracle(inputs(shape), *args, **kwargs)
        assert y.shape == expected.shape
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6, err_msg=f"{shape} {args} {kwargs}")


@pytest.mark.parametrize("name", POOLINGS)
def test_values(name):
    """A selection, those with a lone window first."""
    pool, oracle = POOLINGS[name]
    compare(pool, oracle, some(LONE, 8) + some(AXES, 8))


@pytest.mark.parametrize("name", ["max", "average", "average inside", "LP"])
def test_windows_of_one_element_that_are_cropped(name):
    """At which XLA ends the process, as `lax.reduce_window` has them."""
    compare(*POOLINGS[name], [pooling(((-1, 0), 4, 1, 1, 1)), pooling(((3, -1), 4, 1, 2, 1), ((-1, 0), 3, 1, 1, 1))])


@pytest.mark.equivalence
@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("name", ["max", "average", "average inside", "LP", "largest magnitude"])
def test_every_value(name, padding):
    """In every case along one axis."""
    pool, oracle = POOLINGS[name]
    axes = [axis for axis in AXES if axis[0] == padding]
    for start in range(0, len(axes), 50):
        compare(pool, oracle, [pooling(axis) for axis in axes[start : start + 50]])


def test_gradients():
    """Of the maximum, which goes to the first, with and without switches; and of the average, by its linearity."""
    cases = some(LONE, 4) + some(AXES, 6)
    functions = (max_pool, lambda *args, **kwargs: max_pool_with_switches(*args, **kwargs)[0], ops.avg_pool)

    @jax.jit
    def run(xs):
        gradient = jax.grad(lambda x, f, args, kwargs: f(x, *args, **kwargs).sum())
        return [
            [gradient(x, f, args, kwargs) for f in functions] for x, (_, args, kwargs) in zip(xs, cases, strict=True)
        ]

    for gradients, (shape, args, kwargs) in zip(run([inputs(shape) for shape, _, _ in cases]), cases, strict=True):
        first = switches(inputs(shape), *args, **kwargs)
        expected = np.zeros((2, math.prod(shape[1:3]), 3))
        for n, i, j, c in np.argwhere(first >= 0):
            expected[n, first[n, i, j, c], c] += 1
        for gradient in gradients[:2]:
            np.testing.assert_array_equal(gradient, expected.reshape(shape), err_msg=f"{shape} {args} {kwargs}")
        total = reference.avg_pool(inputs(shape), *args, **kwargs).sum(dtype=float)
        np.testing.assert_allclose((gradients[2] * inputs(shape)).sum(dtype=float), total, rtol=1e-4, atol=1e-4)


class Pooled(nn.Module):
    """A pooling and a dense layer."""

    pool: Any

    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Dense(10, name="output")(self.pool(x).reshape(len(x), -1))


KINDS = {
    "max": "max pool",
    "average": "average pool",
    "average inside": "average pool",
    "LP": "LP pool",
    "largest magnitude": "LP pool",
    "max with switches": "max pool",
}


@pytest.mark.parametrize("name", KINDS)
def test_summary(name):
    for shape, args, kwargs in some(LONE, 8) + some(AXES, 8):
        window, strides, _ = args
        expected = POOLINGS[name][1](inputs(shape), *args, **kwargs)
        if max(window) == 1 or not expected.size:
            continue
        found = summarize(Pooled(lambda x: POOLINGS[name][0](x, *args, **kwargs)), shape[1:])  # noqa: B023
        pool, dense = found.layers
        assert (pool.kind, pool.output, pool.window, pool.strides, pool.dilation) == (
            KINDS[name],
            expected.shape[1:],
            window,
            strides,
            kwargs["window_dilation"],
        )
        assert dense.parameters == 10 * expected[0].size + 10


@pytest.mark.usefixtures("promoting")
def test_a_lone_window_by_hand():
    """A stride beyond the window: one window of a 4x4 image, not the four that a stride of 2 would have."""
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    assert ops.avg_pool(x, (2, 2), (3, 3)).tolist() == nn.avg_pool(x, (2, 2), (3, 3)).tolist() == [[[[2.5]]]]
    pool, dense = summarize(Pooled(lambda x: max_pool(x, (2, 2), (3, 3))), (4, 4, 4)).layers
    assert (pool.output, pool.strides, dense.parameters) == ((1, 1, 4), (3, 3), 50)


# --- Dilated windows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "stride", "padding", "dilation"), [((3, 2), (2, 1), (1, 0), (2, 3)), ((2, 2), (4, 3), (0, 1), (3, 2))]
)
def test_dilated_max_is_pytorchs(window, stride, padding, dilation):
    """Value, indices and gradient."""
    torch = pytest.importorskip("torch")
    x = tied((2, 11, 12, 3), np.float32)
    theirs = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    y, indices = torch.nn.functional.max_pool2d(theirs, window, stride, padding, dilation, return_indices=True)
    y.sum().backward()
    args = (window, stride, [(p, p) for p in padding], dilation)

    @jax.jit
    def run(x):
        return max_pool(x, *args), max_pool_with_switches(x, *args)[1], jax.grad(lambda x: max_pool(x, *args).sum())(x)

    for ours, expected in zip(run(x), (y.detach(), indices, theirs.grad), strict=True):
        np.testing.assert_array_equal(ours, expected.permute(0, 2, 3, 1))


def test_dilated_by_hand():
    x = jnp.array([1.0, 5, 2, 4, 3, 0, 7])[:, None]
    pooled = lambda pool, *args: pool(x, *args, window_dilation=(2,))[:, 0].tolist()
    assert pooled(max_pool, (3,)) == [3, 5, 7]  # of 1 2 3, 5 4 0, 2 3 7
    assert pooled(ops.avg_pool, (3,)) == [2, 3, 4]
    assert pooled(ops.avg_pool, (2,), (3,), "SAME") == [2.5, 2.5, 0]  # of _ 5, 2 3, 0 _
    assert pooled(lambda x, *args, **kwargs: max_pool_with_switches(x, *args, **kwargs)[1], (3,)) == [4, 1, 6]
    assert ops.lp_pool(x, 1, (3,), window_dilation=(2,))[:, 0].tolist() == [6, 9, 12]


@pytest.mark.parametrize(
    "pool", [max_pool, ops.avg_pool, max_pool_with_switches, reference.max_pool, reference.avg_pool]
)
@pytest.mark.parametrize("dilation", [(2,), (0, 1), 2, (1, 1.5)])
def test_bad_dilation(pool, dilation):
    with pytest.raises(InputError, match="window_dilation must be a positive integer for each axis, 2 in all: got "):
        pool(np.ones((2, 6, 6, 3), np.float32), (2, 2), window_dilation=dilation)


# --- Global and adaptive ----------------------------------------------------------------------------------------------

ADAPTIVE = {
    "average": (ops.adaptive_avg_pool, reference.adaptive_avg_pool, "adaptive average pool"),
    "max": (ops.adaptive_max_pool, reference.adaptive_max_pool, "adaptive max pool"),
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive(name):
    """From all sizes up to 6 to all up to 6."""
    pool, oracle, _ = ADAPTIVE[name]
    cases = [((n, 3), (m,)) for n, m in itertools.product(range(1, 7), repeat=2)]
    run = jax.jit(lambda xs: [pool(x, outputs) for x, (_, outputs) in zip(xs, cases, strict=True)])
    for y, (shape, outputs) in zip(run([inputs(shape) for shape, _ in cases]), cases, strict=True):
        np.testing.assert_allclose(y, oracle(inputs(shape), outputs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("outputs", [(3, 2), (5, 4), (9, 7), (1, 1), (4, 10)])
def test_adaptive_is_pytorchs(name, outputs):
    """Value and gradient, with ties."""
    torch = pytest.importorskip("torch")
    x = tied((2, 7, 8, 3), np.float32)
    theirs = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    y = getattr(torch.nn.functional, f"adaptive_{'avg' if name == 'average' else 'max'}_pool2d")(theirs, outputs)
    dy = np.random.default_rng(0).integers(1, 9, y.shape).astype(np.float32)
    y.backward(torch.tensor(dy))
    ours, pull = jax.vjp(jax.jit(lambda x: ADAPTIVE[name][0](x, outputs)), x)
    np.testing.assert_allclose(ours, y.detach().permute(0, 2, 3, 1), rtol=1e-6, atol=1e-6)
    (gradient,) = pull(dy.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(gradient, theirs.grad.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("promoting")
def test_adaptive_maximum_of_other_dtypes():
    x = jnp.array([[3, 1, 2], [5, 5, 4]])[..., None]
    assert ops.adaptive_max_pool(x, (1, 2))[..., 0].tolist() == [[5, 5]]
    assert ops.adaptive_max_pool(x, (1, 2)).dtype == x.dtype
    assert jnp.isnan(ops.adaptive_max_pool(jnp.where(x == 1, jnp.nan, x), (2, 2)))[..., 0].tolist() == [
        [True, True],
        [False, False],
    ]
    with pytest.raises(TypeError, match="inputs must hold real numbers: got complex64"):
        ops.adaptive_max_pool(x * 1j, (1, 1))


@pytest.mark.parametrize("name", ADAPTIVE)
def test_bad_adaptive_input(name):
    for shape, outputs, message in [
        ((4, 4, 3), (2, 0), "output_space must be a positive integer for each axis, 2 in all: got .2, 0."),
        ((4, 3), (2, 2, 2), "inputs must have 3 spatial axes with elements.*got shape .4, 3."),
        ((0, 4, 3), (2, 2), "inputs must have 2 spatial axes with elements.*got shape .0, 4, 3."),
    ]:
        with pytest.raises(InputError, match=message):
            ADAPTIVE[name][0](np.ones(shape, np.float32), outputs)


WHOLE = {
    "adaptive average pool": lambda x: ops.adaptive_avg_pool(x, (2, 3)),
    "adaptive max pool": lambda x: ops.adaptive_max_pool(x, (2, 3)),
    "global average": ops.global_avg_pool,
    "global max": ops.global_max_pool,
}


@pytest.mark.parametrize("kind", WHOLE)
def test_summary_of_adaptive_and_global(kind):
    for shape in itertools.product((2, 3, 5), (2, 4)):
        pool, dense = summarize(Pooled(WHOLE[kind]), (*shape, 3)).layers
        expected = WHOLE[kind](np.ones((1, *shape, 3), np.float32))
        assert (pool.kind, pool.output) == (kind, expected.shape[1:])
        assert dense.parameters == 10 * expected.size + 10
