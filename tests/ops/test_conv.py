"""Convolution: every implementation against the NumPy oracle, lax and PyTorch; derivatives; errors."""

import functools
import inspect
import itertools
import pickle
import random

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.test_util import check_grads

from cnnjax.ops import CONV_IMPLEMENTATIONS, InputError, conv_general_dilated, conv_implementation, reference

HAND_WRITTEN = [name for name in CONV_IMPLEMENTATIONS if name not in ("auto", "xla")]
OURS = ["auto", *HAND_WRITTEN]  # "xla" is lax itself
NHWC = ("NHWC", "HWIO", "NHWC")

# --- The covering set -----------------------------------------------------------------------------------------------

OPTIONS = {
    "rank": [1, 2, 3],
    "layout": ["channels_last", "channels_first", "mixed", "numbers"],
    "strides": [(1, 1, 1), (2, 2, 2), (3, 1, 2), (1, 3, 2)],
    "padding": ["VALID", "SAME", "SAME_LOWER", ((0, 2), (3, 1), (1, 0)), ((-1, 0), (0, -2), (-1, 1))],
    "lhs_dilation": [(1, 1, 1), (2, 2, 2), (1, 3, 1)],
    "rhs_dilation": [(1, 1, 1), (2, 2, 2), (2, 1, 3)],
    "kernel": [(1, 1, 1), (3, 3, 3), (2, 4, 1)],
    "groups": ["one", "two", "depthwise", "multiplier", "batch"],
}
PER_PAIR = 3  # how often each pair of option values occurs at least


def possible(case) -> bool:
    """lax takes padding strings only without input dilation."""
    return not (isinstance(case["padding"], str) and max(case["lhs_dilation"]) > 1)


def pairs(case) -> set:
    """Every pair of option values in a case."""
    return {(a, case[a], b, case[b]) for a, b in itertools.combinations(OPTIONS, 2)}


def possible_pairs() -> set:
    """Every pair of option values that some case can have."""
    every = {(a, x, b, y) for a, b in itertools.combinations(OPTIONS, 2) for x in OPTIONS[a] for y in OPTIONS[b]}
    harmless = {"padding": OPTIONS["padding"][-1], "lhs_dilation": (1, 1, 1)}
    return {(a, x, b, y) for a, x, b, y in every if possible(harmless | {a: x, b: y})}


def covering_set(seed: int) -> list[dict]:
    """Cases in which every possible pair of values of two options occurs: greedily, the best of some random ones."""
    draw = random.Random(seed)
    missing, cases = possible_pairs(), []
    while missing:
        a, x, b, y = min(missing, key=repr)  # this pair, and as many others as can be
        random_case = lambda: {name: draw.choice(values) for name, values in OPTIONS.items()}
        candidates = [random_case() | {a: x, b: y} for _ in range(100)]
        best = max(filter(possible, candidates), key=lambda case: len(pairs(case) & missing))
        missing -= pairs(best)
        cases.append(best)
    return cases


CASES = [case for seed in range(PER_PAIR) for case in covering_set(seed)]


def build(case):
    """Operands (float64) and options of `lax.conv_general_dilated` for a case."""
    n = case["rank"]
    groups, batch_groups, channels, features = {
        "one": (1, 1, 2, 3),
        "two": (2, 1, 4, 6),
        "depthwise": (3, 1, 3, 3),
        "multiplier": (3, 1, 3, 6),
        "batch": (1, 2, 2, 4),
    }[case["groups"]]
    space = (6, 5, 4)[:n]
    lhs = {"N": 2, "C": channels} | dict(zip("HWD", space, strict=False))
    rhs = {"O": features, "I": channels // groups} | dict(zip("HWD", case["kernel"], strict=False))
    s = "HWD"[:n]
    layouts = {
        "channels_last": (f"N{s}C", f"{s}IO", f"N{s}C"),
        "channels_first": (f"NC{s}", f"OI{s}", f"NC{s}"),
        "mixed": (f"C{s[::-1]}N", f"I{s}O", f"{s[-1:]}NC{s[:-1]}"),
        "numbers": (f"{s}NC", f"O{s}I", f"NC{s}"),
    }[case["layout"]]
    rng = np.random.default_rng(len(repr(case)))
    x = rng.normal(size=[lhs[a] for a in layouts[0]])
    w = rng.normal(size=[rhs[a] for a in layouts[1]])
    numbers = layouts
    if case["layout"] == "numbers":
        numbers = lax.conv_dimension_numbers(x.shape, w.shape, layouts)
    elif case["layout"] == "channels_first":
        numbers = None
    options = {
        "window_strides": case["strides"][:n],
        "padding": case["padding"] if isinstance(case["padding"], str) else case["padding"][:n],
        "lhs_dilation": case["lhs_dilation"][:n],
        "rhs_dilation": case["rhs_dilation"][:n],
        "dimension_numbers": numbers,
        "feature_group_count": groups,
        "batch_group_count": batch_groups,
    }
    return x, w, options


def assert_close(actual, expected, tolerance=1e-12):
    """Equal to `tolerance` of the largest number."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    scale = max(1.0, float(np.max(np.abs(expected), initial=0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def test_the_covering_set_covers():
    assert len(CASES) >= 75
    assert len({repr(case) for case in CASES}) == len(CASES)
    assert set().union(*map(pairs, CASES)) == possible_pairs()
    assert len(possible_pairs()) > 300


@pytest.mark.parametrize("index", range(len(CASES)))
def test_equivalence(index):
    """Values, both gradients and a jvp: hand-written, lax and oracle agree to rounding in float64."""
    x, w, options = build(CASES[index])
    with jax.enable_x64(True):
        expected = reference.conv_general_dilated(x, w, **options)
        rng = np.random.default_rng(index)
        dy, dx, dw = (rng.normal(size=a.shape) for a in (expected, x, w))

        def everything(convolve):
            f = lambda x, w: convolve(x, w, **options)
            y, pull = jax.vjp(f, x, w)
            return y, *pull(dy), jax.jvp(f, (x, w), (dx, dw))[1]

        run = jax.jit(
            lambda: [everything(f) for f in (lax.conv_general_dilated, *map(conv_implementation, HAND_WRITTEN))]
        )
        results = run()
        # The oracle's derivative, by bilinearity; and its adjoint, which must pair as the gradients do.
        along_x, along_w = (reference.conv_general_dilated(*p, **options) for p in ((dx, w), (x, dw)))
        for y, gx, gw, tangent in results:
            assert_close(y, expected)
            assert_close(tangent, along_x + along_w)
            assert_close(np.vdot(gx, dx), np.vdot(dy, along_x), 1e-11)
            assert_close(np.vdot(gw, dw), np.vdot(dy, along_w), 1e-11)
        for result in results[1:]:
            for ours, theirs in zip(result, results[0], strict=True):
                assert_close(ours, theirs)


@st.composite
def convolutions(draw):
    n = draw(st.integers(1, 3))
    axis = lambda elements: tuple(draw(st.lists(elements, min_size=n, max_size=n)))
    groups = draw(st.sampled_from([(1, 1), (2, 1), (3, 1), (1, 2)]))
    lhs_dilation = axis(st.integers(1, 3))
    padding = axis(st.tuples(st.integers(-2, 3), st.integers(-2, 3)))
    if lhs_dilation == (1,) * n:
        padding = draw(st.sampled_from(["VALID", "SAME", "SAME_LOWER", padding]))
    space, taps = axis(st.integers(4, 6)), axis(st.integers(1, 3))
    batch, channels, features = draw(st.integers(0, 2)) * groups[1], draw(st.integers(1, 2)), draw(st.integers(1, 2))
    product = groups[0] * groups[1]
    letters = "HWD"[:n]
    layouts = tuple("".join(draw(st.permutations(a + letters))) for a in ("NC", "OI", "NC"))
    sizes = dict(zip(letters, zip(space, taps, strict=True), strict=True))
    lhs = [sizes[a][0] if a in sizes else {"N": batch, "C": channels * groups[0]}[a] for a in layouts[0]]
    rhs = [sizes[a][1] if a in sizes else {"O": features * product, "I": channels}[a] for a in layouts[1]]
    order = [letters.index(a) for a in layouts[1] if a in letters]
    by_kernel = lambda values: values if isinstance(values, str) else tuple(values[i] for i in order)
    options = {
        "window_strides": axis(st.integers(1, 3)),
        "padding": by_kernel(padding),
        "lhs_dilation": by_kernel(lhs_dilation),
        "rhs_dilation": axis(st.integers(1, 2)),
        "dimension_numbers": layouts,
        "feature_group_count": groups[0],
        "batch_group_count": groups[1],
    }
    return lhs, rhs, options


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True, database=None)
@hypothesis.given(convolutions())
def test_any_convolution(convolution):
    """Whatever is drawn, the hand-written convolution has the oracle's values and shape, and lax its shape."""
    lhs, rhs, options = convolution
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=lhs), rng.normal(size=rhs)
    expected = reference.conv_general_dilated(x, w, **options)
    with jax.enable_x64(True):
        assert jax.eval_shape(lambda x, w: lax.conv_general_dilated(x, w, **options), x, w).shape == expected.shape
        for name in HAND_WRITTEN:
            convolve = jax.jit(functools.partial(conv_general_dilated, **options, implementation=name))
            assert_close(convolve(x, w), expected)


@pytest.mark.parametrize("name", HAND_WRITTEN)
@pytest.mark.parametrize(
    ("rank", "stride", "padding", "dilation", "groups"),
    [(1, 1, 0, 1, 1), (1, 2, 3, 2, 2), (2, 2, 1, 1, 1), (2, 1, 2, 2, 4), (2, 3, (0, 2), (1, 2), 2), (3, 2, 1, 1, 2)],
)
def test_pytorch(name, rank, stride, padding, dilation, groups):
    """PyTorch's convolution in double precision, values and both gradients."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(rank)
    x, w = rng.normal(size=(2, 4, 7, 6, 5)[: 2 + rank]), rng.normal(size=(4, 4 // groups, 3, 3, 2)[: 2 + rank])
    tx, tw = (torch.tensor(a, requires_grad=True) for a in (x, w))
    ty = getattr(torch.nn.functional, f"conv{rank}d")(tx, tw, None, stride, padding, dilation, groups)
    dy = rng.normal(size=tuple(ty.shape))
    ty.backward(torch.tensor(dy))
    per_axis = lambda v: v if isinstance(v, tuple) else (v,) * rank
    options = {
        "window_strides": per_axis(stride),
        "padding": [(p, p) for p in per_axis(padding)],
        "rhs_dilation": per_axis(dilation),
        "feature_group_count": groups,
    }
    with jax.enable_x64(True):
        f = lambda x, w: conv_implementation(name)(x, w, **options)
        y, (gx, gw) = jax.jit(lambda: (f(x, w), jax.vjp(f, x, w)[1](jnp.asarray(dy))))()
    for ours, theirs in [(y, ty.detach()), (gx, tx.grad), (gw, tw.grad)]:
        assert_close(ours, theirs.numpy())
    assert_close(reference.conv_general_dilated(x, w, **options), ty.detach().numpy())


@pytest.mark.parametrize("name", OURS)
def test_pytorch_transposed(name):
    """Input dilation is PyTorch's transposed convolution: flipped kernel, in and out swapped, padding k - 1 - p."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 3, 5, 4)), rng.normal(size=(3, 2, 3, 4))
    expected = torch.nn.functional.conv_transpose2d(*map(torch.tensor, (x, w)), stride=(2, 3), padding=(1, 2))
    with jax.enable_x64(True):
        y = conv_implementation(name)(
            x, np.flip(w, (2, 3)).swapaxes(0, 1), (1, 1), ((1, 1), (1, 1)), lhs_dilation=(2, 3)
        )
    assert_close(y, expected.numpy())


# --- No convolution inside ------------------------------------------------------------------------------------------


def primitives(jaxpr) -> set[str]:
    """Names of all primitives in a jaxpr, those of the jaxprs inside its equations included."""
    if isinstance(jaxpr, ClosedJaxpr):
        jaxpr = jaxpr.jaxpr
    names = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: isinstance(v, Jaxpr | ClosedJaxpr)
        ):
            if isinstance(inner, Jaxpr | ClosedJaxpr):
                names |= primitives(inner)
    return names


def derivatives(f):
    """The function, its gradient in both operands, its jvp and a second derivative, as functions of (x, w)."""
    energy = lambda x, w: (f(x, w) ** 2).sum()
    gradients = jax.grad(energy, (0, 1))
    return {
        "value": f,
        "gradients": gradients,
        "jvp": lambda x, w: jax.jvp(f, (x, w), (w.sum() * x, x.sum() * w)),
        "second": lambda x, w: jax.jvp(gradients, (x, w), (x, w)),
        "second, reverse": jax.grad(lambda x, w: sum((g**2).sum() for g in gradients(x, w)), (0, 1)),
        "jit, vmap, checkpoint": jax.jit(jax.vmap(jax.checkpoint(f), in_axes=(None, 0))),
    }


@pytest.mark.parametrize("groups", [{}, {"feature_group_count": 2}, {"batch_group_count": 2}])
@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_no_convolution_primitive(name, groups):
    options = dict(lhs_dilation=(2, 1), rhs_dilation=(1, 2), dimension_numbers=NHWC, **groups)
    x = jnp.ones((2, 6, 6, 4))
    w = jnp.ones((3, 3, 4 // groups.get("feature_group_count", 1), 4))
    for kind, function in derivatives(
        lambda x, w: conv_implementation(name)(x, w, (2, 1), [(1, 1), (2, 0)], **options)
    ).items():
        operands = (x, w[None]) if "vmap" in kind else (x, w)
        found = primitives(jax.make_jaxpr(function)(*operands))
        assert "dot_general" in found
        assert not [p for p in found if "conv_general" in p or "convolution" in p], kind


def test_the_search_for_primitives_finds_them():
    """The search above sees a convolution wherever it hides: in jit, scan, cond, checkpoint and custom rules."""
    convolve = lambda x: lax.conv_general_dilated(x, jnp.ones((1, 1, 1)), (1,), "VALID")
    ruled = jax.custom_jvp(convolve)
    ruled.defjvps(lambda dx, y, x: dx)
    hiding_places = [
        convolve,
        jax.jit(convolve),
        jax.checkpoint(convolve),
        ruled,
        lambda x: lax.scan(lambda c, _: (convolve(c), None), x, None, length=2)[0],
        lambda x: lax.cond(x.sum() > 0, jax.jit(convolve), lambda x: x, x),
        jax.vmap(jax.grad(lambda x: convolve(x[None]).sum())),
    ]
    for hidden in hiding_places:
        assert "conv_general_dilated" in primitives(jax.make_jaxpr(hidden)(jnp.ones((1, 1, 4))))


# --- Transformations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_second_derivatives(name):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, w = rng.normal(size=(1, 3, 4, 4)), rng.normal(size=(1, 2, 2, 2))
        f = lambda x, w: conv_general_dilated(
            jnp.tanh(x), w, (2, 1), "SAME", dimension_numbers=NHWC, feature_group_count=2, implementation=name
        )
        check_grads(f, (x, w), order=2, modes=("fwd", "rev"), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("groups", [{}, {"feature_group_count": 2}, {"batch_group_count": 2}])
@pytest.mark.parametrize("name", OURS)
def test_vmap(name, groups):
    """Over either operand and over both: as a loop gives."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        xs = jnp.asarray(rng.normal(size=(3, 2, 4, 5, 4)))
        ws = jnp.asarray(rng.normal(size=(3, 2, 2, 4 // groups.get("feature_group_count", 1), 4)))
        f = lambda x, w: conv_general_dilated(
            x, w, (2, 1), "SAME", dimension_numbers=NHWC, **groups, implementation=name
        )
        oracle = lambda x, w: reference.conv_general_dilated(x, w, (2, 1), "SAME", dimension_numbers=NHWC, **groups)
        for axes in ((0, None), (None, 0), (0, 0), (1, 3)):
            operands = [
                a[0] if axis is None else jnp.moveaxis(a, 0, axis) for a, axis in zip((xs, ws), axes, strict=True)
            ]
            expected = [
                oracle(xs[i if axes[0] is not None else 0], ws[i if axes[1] is not None else 0]) for i in range(3)
            ]
            assert_close(jax.jit(jax.vmap(f, axes))(*operands), np.stack(expected))


@pytest.mark.parametrize("name", OURS)
def test_inside_scan_and_with_static_implementation(name):
    """In a loop; and the implementation itself as a static argument of jit, which must not trace twice."""
    traces = []

    @jax.jit(static_argnames="convolve")
    def run(x, w, convolve):
        traces.append(convolve)
        return lax.scan(lambda x, _: (convolve(x, w, (1, 1), "SAME", dimension_numbers=NHWC), None), x, None, length=2)[
            0
        ]

    x, w = jnp.ones((1, 4, 4, 1)), jnp.full((3, 3, 1, 1), 0.5)
    y = run(x, w, conv_implementation(name))
    run(x, w, conv_implementation(name))
    assert len(traces) == 1
    once = reference.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC)
    twice = reference.conv_general_dilated(once, w, (1, 1), "SAME", dimension_numbers=NHWC)
    assert_close(y, twice, 1e-6)


# --- Edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "padding", "y_shape"),
    [
        ((0, 5, 5, 2), (3, 3, 2, 4), "SAME", (0, 5, 5, 4)),  # empty batch
        ((2, 3, 3, 2), (5, 5, 2, 4), "VALID", (2, 0, 0, 4)),  # kernel larger than the input
        ((2, 3, 9, 2), (5, 5, 2, 4), "VALID", (2, 0, 5, 4)),  # along one axis
        ((2, 0, 5, 2), (3, 3, 2, 4), [(2, 2), (0, 0)], (2, 2, 3, 4)),  # only padding along one axis
        ((2, 0, 5, 2), (3, 3, 2, 4), "SAME", (2, 0, 5, 4)),
        ((2, 5, 5, 0), (3, 3, 0, 4), "SAME", (2, 5, 5, 4)),  # no channels: a sum of nothing
        ((2, 5, 5, 2), (3, 3, 2, 0), "SAME", (2, 5, 5, 0)),  # no features
    ],
)
def test_empty(name, x_shape, w_shape, padding, y_shape):
    """Shapes as lax makes them, zeros where there is nothing to sum, and gradients of the right shape."""
    x, w = jnp.ones(x_shape), jnp.ones(w_shape)
    f = lambda x, w: conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=NHWC, implementation=name)
    y, (gx, gw) = jax.jit(lambda x, w: (f(x, w), jax.vjp(f, x, w)[1](jnp.ones(y_shape))))(x, w)
    assert y.shape == y_shape
    assert reference.conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=NHWC).shape == y_shape
    if 0 in x_shape:
        assert not y.any()
    assert (gx.shape, gw.shape) == (x_shape, w_shape)
    if y.size == 0:
        assert not gx.any()
        assert not gw.any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", OURS)
def test_half_precision_accumulates_in_float32(name, dtype):
    """4,096 ones, over channels and over taps: summed in bfloat16 they would stop at 256, in float16 at 2,048."""
    convolve = jax.jit(conv_implementation(name), static_argnums=(2, 3), static_argnames="preferred_element_type")
    for shape in ((1, 4096, 1), (1, 256, 16)):
        ones = jnp.ones(shape, dtype)
        y = convolve(ones, ones, (1,), "VALID")
        assert y.dtype == dtype
        assert float(y.item()) == 4096
        wide = convolve(ones, ones, (1,), "VALID", preferred_element_type=jnp.float32)
        assert wide.dtype == jnp.float32
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=s), dtype) for s in ((2, 16, 16), (4, 16, 5)))
    exact = reference.conv_general_dilated(*(np.asarray(a, np.float64) for a in (x, w)), (1,), "SAME")
    y = convolve(x, w, (1,), "SAME", preferred_element_type=jnp.float32)
    assert_close(np.asarray(y, np.float64), exact, 1e-6)  # nothing lost but float32's rounding
    y = convolve(x, w, (1,), "SAME")
    half_ulp = float(jnp.finfo(dtype).eps) / 2
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=1.01 * half_ulp, atol=1e-5)  # rounded once


def test_half_precision_gradient_is_rounded_once():
    """The hand-written gradient of a bfloat16 input sums over taps and features in float32."""
    rng = np.random.default_rng(0)
    x, w, dy = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in ((2, 8, 16), (8, 8, 5), (2, 8, 16)))
    gradients = jax.jit(lambda f, x, w, dy: jax.vjp(lambda x, w: f(x, w, (1,), "SAME"), x, w)[1](dy), static_argnums=0)
    with jax.enable_x64(True):
        exact = gradients(lax.conv_general_dilated, *(a.astype(jnp.float64) for a in (x, w, dy)))
    for g, e in zip(gradients(conv_implementation("reference"), x, w, dy), exact, strict=True):
        assert g.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(g, np.float64), e, rtol=1.01 * 2**-8, atol=1e-5)


@pytest.mark.parametrize("name", OURS)
def test_complex(name):
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=s) + 1j * rng.normal(size=s) for s in ((2, 2, 6), (3, 2, 3)))
    with jax.enable_x64(True):
        y = conv_implementation(name)(x, w, (2,), "SAME")
    assert_close(y, reference.conv_general_dilated(x, w, (2,), "SAME"))


# --- The interface --------------------------------------------------------------------------------------------------


def test_names():
    assert CONV_IMPLEMENTATIONS[:3] == ("auto", "xla", "reference")
    for name in CONV_IMPLEMENTATIONS:
        assert conv_implementation(name).name == name
        assert name in repr(conv_implementation(name))


@pytest.mark.parametrize("name", CONV_IMPLEMENTATIONS)
def test_a_drop_in_for_lax(name):
    convolve = conv_implementation(name)
    assert inspect.signature(convolve) == inspect.signature(lax.conv_general_dilated)
    parameters = lambda f: [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
    *ours, last = parameters(conv_general_dilated)
    assert ours == parameters(lax.conv_general_dilated)
    assert last == ("implementation", inspect.Parameter.KEYWORD_ONLY, "auto")


def test_implementations_are_values():
    one, same, other = conv_implementation("xla"), conv_implementation("xla"), conv_implementation("reference")
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != conv_implementation("xla", otherwise="reference")
    assert pickle.loads(pickle.dumps(one)) == one


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (3, 3)},
        {"kernel_size": (3, 3), "strides": 2, "padding": "VALID"},
        {"kernel_size": (3, 2), "strides": (2, 1), "padding": ((1, 0), (2, 2)), "use_bias": False},
        {"kernel_size": (3, 3), "kernel_dilation": 2, "padding": "CIRCULAR"},
        {"kernel_size": (3, 3), "feature_group_count": 2},
        {"kernel_size": (3, 3), "input_dilation": 2, "padding": ((1, 1), (1, 1))},
        {"kernel_size": (3, 3), "dtype": jnp.bfloat16},
        {"kernel_size": (3,), "padding": "CAUSAL"},
        {"kernel_size": (2, 2, 2), "strides": 2},
    ],
    ids=str,
)
def test_flax_conv(name, options):
    """`flax.linen.Conv` with our convolution is the stock layer: same parameters, same output."""
    rank = len(options["kernel_size"])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *(7, 6, 5)[:rank], 4)).astype(np.float32)
    stock, ours = nn.Conv(6, **options), nn.Conv(6, **options, conv_general_dilated=conv_implementation(name))
    assert hash(ours) == hash(nn.Conv(6, **options, conv_general_dilated=conv_implementation(name)))
    shapes, same = (jax.eval_shape(layer.init, jax.random.key(0), x) for layer in (stock, ours))
    assert shapes == same
    variables = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(s.dtype), shapes)
    expected, y = jax.jit(lambda v: (stock.apply(v, x), ours.apply(v, x)))(variables)
    tolerance = 2**-7 if y.dtype == jnp.bfloat16 else 1e-5
    assert y.dtype == expected.dtype
    y, expected = (np.asarray(a, np.float32) for a in (y, expected))
    np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)


# --- Bad input ------------------------------------------------------------------------------------------------------

GOOD = {
    "lhs": np.ones((2, 5, 5, 4), np.float32),
    "rhs": np.ones((3, 3, 4, 6), np.float32),
    "window_strides": (1, 1),
    "padding": "SAME",
    "dimension_numbers": NHWC,
}
BAD = {
    "rank of rhs": ({"rhs": np.ones((3, 4, 6), np.float32)}, InputError, "same rank.*2, 5, 5, 4.*3, 4, 6"),
    "rank too small": ({"lhs": np.ones(3, np.float32), "rhs": np.ones(3, np.float32)}, InputError, "same rank, 2 plus"),
    "channels": ({"rhs": np.ones((3, 3, 5, 6), np.float32)}, InputError, "input channels.*got 5, allowed: 4"),
    "channels of groups": ({"feature_group_count": 2}, InputError, "got 4, allowed: 2 .4 channels in 2 groups"),
    "groups and channels": ({"feature_group_count": 3}, InputError, "feature_group_count.*4 channels.*got 3"),
    "groups and features": ({"feature_group_count": 4}, InputError, "feature_group_count.*6 output features.*got 4"),
    "no groups": ({"feature_group_count": 0}, InputError, "feature_group_count must be a positive integer: got 0"),
    "groups as text": ({"feature_group_count": "2"}, InputError, "feature_group_count must be .*: got '2'"),
    "batch groups": ({"batch_group_count": 3}, InputError, "batch_group_count.*batch size of lhs, 2: got 3"),
    "batch groups and features": ({"batch_group_count": 4}, InputError, "batch_group_count.*6 output features.*got 4"),
    "both groups": ({"feature_group_count": 2, "batch_group_count": 2}, InputError, "at most one of .*: got 2 and 2"),
    "padding name": ({"padding": "SMAE"}, InputError, "unknown padding 'SMAE'.*allowed: VALID, SAME, SAME_LOWER"),
    "padding number": ({"padding": 1}, InputError, "padding must be one of VALID.*: got 1"),
    "padding length": ({"padding": [(1, 1)]}, InputError, "pair of integers for each of 2 axes: got .*1, 1"),
    "padding triple": ({"padding": [(1, 1, 1), (0, 0)]}, InputError, "padding must be one of"),
    "padding fraction": ({"padding": [(1, 0.5), (0, 0)]}, InputError, "padding must be one of"),
    "cropping too much": ({"padding": [(-3, -3), (0, 0)]}, InputError, "padding must not crop more than there is"),
    "padding name and dilation": ({"lhs_dilation": (2, 1)}, InputError, "explicit .* where lhs_dilation is not 1"),
    "zero stride": ({"window_strides": (0, 1)}, InputError, "window_strides must be a positive integer .*: got .0, 1."),
    "stride length": ({"window_strides": (1,)}, InputError, "window_strides must be .*, 2 in all: got .1,."),
    "stride number": ({"window_strides": 2}, InputError, "window_strides must be .*: got 2"),
    "fractional stride": ({"window_strides": (1.5, 1)}, InputError, "window_strides must be .*: got .1.5, 1."),
    "negative dilation": ({"rhs_dilation": (-1, 1)}, InputError, "rhs_dilation must be a positive integer"),
    "dilation length": ({"lhs_dilation": (1, 1, 1)}, InputError, "lhs_dilation must be .*, 2 in all"),
    "empty kernel": ({"rhs": np.ones((0, 3, 4, 6), np.float32)}, InputError, "rhs must have at least one tap"),
    "layout length": ({"dimension_numbers": ("NWC", "HWIO", "NHWC")}, InputError, "each of 4 axes once.*'NWC'"),
    "layout letters": ({"dimension_numbers": ("NHWC", "HWIO", "NHWO")}, InputError, "'N' and 'C' among them.*'NHWO'"),
    "layout repeats": ({"dimension_numbers": ("NHHC", "HWIO", "NHWC")}, InputError, "once.*'NHHC'"),
    "layout axes": ({"dimension_numbers": ("NHWC", "HVIO", "NHWC")}, InputError, "same letters for the spatial axes"),
    "two layouts": ({"dimension_numbers": ("NHWC", "HWIO")}, InputError, "None, a ConvDimensionNumbers or three"),
    "one layout": ({"dimension_numbers": "NHWC"}, InputError, "None, a ConvDimensionNumbers or three.*'NHWC'"),
    "numbers": (
        {"dimension_numbers": lax.ConvDimensionNumbers((0, 1, 2, 2), (0, 1, 2, 3), (0, 1, 2, 3))},
        InputError,
        "three permutations of the 4 axes",
    ),
    "out_sharding": ({"out_sharding": jax.P()}, InputError, "out_sharding is not supported.*allowed: None"),
    "integer lhs": ({"lhs": np.ones((2, 5, 5, 4), np.int32)}, TypeError, "lhs must hold.*floating.*got int32"),
    "integer both": (
        {"lhs": np.ones((2, 5, 5, 4), np.int32), "rhs": np.ones((3, 3, 4, 6), np.int32)}, TypeError, "lhs must .*int32"
    ),
    "boolean rhs": ({"rhs": np.ones((3, 3, 4, 6), bool)}, TypeError, "rhs must hold.*got bool"),
    "mixed dtypes": ({"rhs": np.ones((3, 3, 4, 6), np.float16)}, TypeError, "one dtype: got float32 and float16"),
    "narrow result": ({"preferred_element_type": jnp.bfloat16}, TypeError, "no narrower than float32.*got bfloat16"),
    "integer result": ({"preferred_element_type": jnp.int32}, TypeError, "must be a floating dtype.*got int32"),
}  # fmt: skip


@pytest.mark.parametrize("convolve", [*map(conv_implementation, CONV_IMPLEMENTATIONS), reference.conv_general_dilated])
@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, convolve):
    change, error, message = BAD[case]
    with pytest.raises(error, match=message) as caught:
        convolve(**(GOOD | change))
    assert "\n" not in str(caught.value)
    assert convolve(**GOOD).shape == (2, 5, 5, 6)  # it was the change


def test_unknown_implementation():
    for call in (
        lambda name: conv_implementation(name),
        lambda name: conv_implementation("xla", otherwise=name),
        lambda name: conv_general_dilated(**GOOD, implementation=name),
    ):
        with pytest.raises(InputError, match="'referense': did you mean 'reference'\\? allowed: auto, xla, reference"):
            call("referense")
    with pytest.raises(InputError, match="unknown convolution implementation None"):
        conv_implementation(None)


@pytest.mark.parametrize(
    ("layout", "lhs_shape", "rhs_shape"),
    [
        (("NHWC", "HWIO", "NHWC"), (3, 5, 4, 2), (5, 4, 2, 7)),
        (("NCHW", "OIHW", "NCHW"), (3, 2, 5, 4), (7, 2, 5, 4)),
        (("HWNC", "IOHW", "CHWN"), (5, 4, 3, 2), (2, 7, 5, 4)),
        (("NWC", "WIO", "CWN"), (3, 6, 2), (6, 2, 7)),
        (("NDHWC", "DHWIO", "NDHWC"), (2, 3, 2, 4, 2), (3, 2, 4, 2, 3)),
    ],
)
def test_a_kernel_over_the_whole_input_is_a_matrix_product(layout, lhs_shape, rhs_shape):
    """`auto` then uses no convolution; values, layout and both gradients are the oracle's and lax's."""
    rng = np.random.default_rng(0)
    lhs, rhs = rng.normal(size=lhs_shape), rng.normal(size=rhs_shape)
    strides = (2,) * (len(lhs_shape) - 2)  # no matter: there is one window
    with jax.enable_x64(True):
        run = lambda conv: lambda lhs, rhs: conv(lhs, rhs, strides, "VALID", dimension_numbers=layout)
        ours, theirs = run(conv_general_dilated), run(lax.conv_general_dilated)
        y = ours(lhs, rhs)
        np.testing.assert_allclose(y, run(reference.conv_general_dilated)(lhs, rhs), rtol=1e-12)
        weight = rng.normal(size=y.shape)
        gradients = [jax.grad(lambda *a, f=f: (f(*a) * weight).sum(), (0, 1))(lhs, rhs) for f in (ours, theirs)]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), *gradients)
        assert "conv_general_dilated" not in str(jax.make_jaxpr(jax.grad(lambda *a: ours(*a).sum(), (0, 1)))(lhs, rhs))


def test_a_kernel_over_the_whole_padded_or_grouped_input_is_not():
    x, w = jnp.ones((1, 3, 3, 2)), jnp.ones((3, 3, 2, 2))
    layout = ("NHWC", "HWIO", "NHWC")
    for rhs, padding, groups in ((w, "SAME", 1), (w[:, :, :1], "VALID", 2)):
        y = conv_general_dilated(x, rhs, (1, 1), padding, dimension_numbers=layout, feature_group_count=groups)
        expected = lax.conv_general_dilated(
            x, rhs, (1, 1), padding, dimension_numbers=layout, feature_group_count=groups
        )
        np.testing.assert_array_equal(y, expected)


def test_the_matrix_product_accumulates_in_float32():
    """1 + 2047 halves of bfloat16's spacing: lost one by one, kept in a float32 sum."""
    x = jnp.full((1, 2048, 1), 2.0**-9, jnp.bfloat16).at[0, 0, 0].set(1)
    y = conv_general_dilated(
        x, jnp.ones((2048, 1, 1), jnp.bfloat16), (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )
    assert y.dtype == jnp.bfloat16
    assert float(y[0, 0, 0]) == pytest.approx(1 + 2047 * 2.0**-9, rel=2**-8)
