"""Convolution: every implementation against PyTorch, under every transformation and in Flax; errors.

Against the NumPy oracle they are held by `test_equivalence.py`.
"""

import functools
import inspect
import pickle
import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import AxisType

from cnnjax.ops import CONV_IMPLEMENTATIONS, InputError, conv_general_dilated, conv_implementation, reference

HAND_WRITTEN = [name for name in CONV_IMPLEMENTATIONS if name not in ("auto", "xla")]
OURS = ["auto", *HAND_WRITTEN]  # "xla" is lax itself
ANY = [name for name in OURS if name != "winograd"]  # those that can do any convolution; test_winograd.py has its own
NHWC = ("NHWC", "HWIO", "NHWC")


def unlimited(name):
    """The implementation called `name`; what Winograd's algorithm cannot do is done from the definition."""
    return conv_implementation(name, otherwise="reference" if name == "winograd" else None)


# --- Values ---------------------------------------------------------------------------------------------------------


# Most of the time goes to compiling; this halves it, where it makes no difference.
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


def assert_close(actual, expected, tolerance=1e-12):
    """Equal to `tolerance` of the largest number."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    scale = max(1.0, float(np.max(np.abs(expected), initial=0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", ANY)
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


GROUPS = [{}, {"feature_group_count": 2}, {"feature_group_count": 4}, {"batch_group_count": 2}]  # of 4 channels


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_no_convolution_primitive(name, groups):
    strides, rhs_dilation = ((1, 1), (1, 1)) if name == "winograd" else ((2, 1), (1, 2))
    options = dict(lhs_dilation=(2, 1), rhs_dilation=rhs_dilation, dimension_numbers=NHWC, **groups)
    x = jnp.ones((2, 6, 6, 4))
    w = jnp.ones((3, 3, 4 // groups.get("feature_group_count", 1), 4))
    for kind, function in derivatives(
        lambda x, w: conv_implementation(name)(x, w, strides, [(1, 1), (2, 0)], **options)
    ).items():
        operands = (x, w[None]) if "vmap" in kind else (x, w)
        found = primitives(jax.make_jaxpr(function)(*operands))
        assert found & {"dot_general", "mul"}
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


@pytest.mark.parametrize("groups", [{}, {"feature_group_count": 2}])
def test_second_derivatives(groups):
    """Forward and reverse mode over reverse mode, through something that is not linear: as lax's."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(1, 4, 4, 2)), rng.normal(size=(3, 1, 2 // groups.get("feature_group_count", 1), 2))

    def second(convolve):
        f = lambda x, w: convolve(jnp.tanh(x), w, (1, 1), "SAME", dimension_numbers=NHWC, **groups)
        return [derivatives(f)[kind] for kind in ("second", "second, reverse")]

    with jax.enable_x64(True):
        run = quick_jit(
            lambda x, w: [[g(x, w) for g in second(f)] for f in (lax.conv_general_dilated, *map(unlimited, OURS))]
        )
        theirs, *others = run(x, w)
    for ours in others:
        jax.tree.map(lambda a, b: assert_close(a, b, 1e-11), ours, theirs)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("name", OURS)
def test_vmap(name, groups):
    """Over either operand and over both: as a loop gives."""
    rng = np.random.default_rng(0)
    strides = (1, 1) if name == "winograd" else (2, 1)
    with jax.enable_x64(True):
        xs = jnp.asarray(rng.normal(size=(3, 2, 4, 5, 4)))
        ws = jnp.asarray(rng.normal(size=(3, 3, 1, 4 // groups.get("feature_group_count", 1), 4)))
        f = lambda x, w: conv_general_dilated(
            x, w, strides, "SAME", dimension_numbers=NHWC, **groups, implementation=name
        )
        oracle = lambda x, w: reference.conv_general_dilated(x, w, strides, "SAME", dimension_numbers=NHWC, **groups)
        for axes in ((0, None), (None, 0), (1, 3)):
            operands = [
                a[0] if axis is None else jnp.moveaxis(a, 0, axis) for a, axis in zip((xs, ws), axes, strict=True)
            ]
            expected = [
                oracle(xs[i if axes[0] is not None else 0], ws[i if axes[1] is not None else 0]) for i in range(3)
            ]
            assert_close(quick_jit(jax.vmap(f, axes))(*operands), np.stack(expected))


@pytest.mark.parametrize("name", OURS)
def test_inside_scan_and_with_static_implementation(name):
    """In a loop, recomputed for the gradient; the implementation as a static argument, which must not trace twice."""
    traces = []

    @jax.jit(static_argnames="convolve")
    def run(x, w, convolve):
        traces.append(convolve)
        step = jax.checkpoint(lambda x, _: (convolve(x, w, (1, 1), "SAME", dimension_numbers=NHWC), None))
        return lax.scan(step, x, None, length=2)[0]

    x, w = jnp.ones((1, 4, 4, 1)), jnp.full((3, 3, 1, 1), 0.5)
    y = run(x, w, conv_implementation(name))
    run(x, w, conv_implementation(name))
    assert len(traces) == 1
    once = reference.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC)
    twice = reference.conv_general_dilated(once, w, (1, 1), "SAME", dimension_numbers=NHWC)
    assert_close(y, twice, 1e-6)
    weight = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
    ours, theirs = (
        jax.grad(lambda x, w: (run(x, w, f) * weight).sum(), (0, 1))(x, w)  # noqa: B023
        for f in (conv_implementation(name), lax.conv_general_dilated)
    )
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), ours, theirs)


@pytest.mark.parametrize("name", OURS)
def test_batch_of_unknown_size(name):
    """`jax.export` with a symbolic batch size."""
    f = jax.jit(lambda x, w: conv_implementation(name)(x, w, (1, 1), "SAME", dimension_numbers=NHWC))
    (batch,) = jax.export.symbolic_shape("batch")
    x, w = operands_of([(3, 5, 6, 2), (3, 3, 2, 3)])
    exported = jax.export.export(f)(jax.ShapeDtypeStruct((batch, 5, 6, 2), jnp.float32), w)
    assert_close(exported.call(x, w), f(x, w), 1e-6)


# --- Loops and devices ------------------------------------------------------------------------------------------------


def energy_and_gradients(convolve: Callable, strides, padding, **options) -> Callable:
    """A number that depends on every output in its own way, and its gradients in both operands."""

    def energy(x, w):
        y = convolve(x, w, strides, padding, dimension_numbers=NHWC, **options)
        return (y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)).sum()

    return jax.value_and_grad(energy, (0, 1))


# Shapes of x and w, strides, padding, options.
CONVOLUTIONS = {
    "dense": ((8, 8, 8, 8), (3, 3, 8, 16), (1, 1), "SAME", {}),
    "many channels": ((8, 8, 8, 16), (3, 3, 16, 16), (1, 1), "SAME", {}),
    "strided": ((8, 9, 8, 8), (3, 3, 8, 16), (2, 2), "SAME", {}),
    "one tap, strided": ((8, 8, 8, 8), (1, 1, 8, 16), (2, 2), "SAME", {}),
    "2 groups": ((8, 8, 8, 8), (3, 3, 4, 8), (1, 1), "SAME", {"feature_group_count": 2}),
    "4 groups": ((8, 8, 8, 8), (3, 3, 2, 8), (2, 1), "SAME", {"feature_group_count": 4}),
    "16 groups": ((8, 6, 5, 32), (3, 3, 2, 16), (2, 1), "SAME", {"feature_group_count": 16}),
    "depthwise": ((8, 8, 8, 8), (3, 3, 1, 8), (1, 1), "SAME", {"feature_group_count": 8}),
    "dilated": ((8, 8, 8, 8), (3, 3, 8, 8), (1, 1), "SAME", {"rhs_dilation": (2, 2)}),
    "transposed": ((8, 4, 4, 8), (3, 3, 8, 8), (1, 1), ((2, 1), (2, 1)), {"lhs_dilation": (2, 2)}),
}


def operands_of(shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_sharded_batch_is_not_gathered(name, axis_type):
    """On 8 devices, an eighth of the batch on each, `auto` moves nothing about but the gradient of the kernel."""
    *shapes, strides, padding, options = CONVOLUTIONS[name]
    x, w = operands_of(shapes)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    by_batch, everywhere = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("data",), ()))
    sharded = jax.device_put(x, by_batch), jax.device_put(w, everywhere)

    def compiled(convolve):
        run = jax.jit(
            energy_and_gradients(convolve, strides, padding, **options),
            out_shardings=(everywhere, (by_batch, everywhere)),
        )
        return run.lower(*sharded).compile()

    ours = compiled(conv_implementation("auto"))
    assert "all-reduce" in ours.as_text()
    assert "all-gather" not in ours.as_text()
    if "groups" in name:
        assert "all-gather" in compiled(lax.conv_general_dilated).as_text()
    alone = jax.jit(energy_and_gradients(conv_implementation("auto"), strides, padding, **options))(x, w)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), ours(*sharded), alone)


@pytest.mark.parametrize("name", ANY)
@pytest.mark.parametrize("batch_groups", [1, 2])
def test_explicit_mesh_axes(name, batch_groups):
    """Types say how the output is sharded, as batch and features are; values and gradients are those of one device."""
    x, w = operands_of([(8, 5, 6, 3), (3, 3, 3, 16)])
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    place = lambda array, *axes: jax.device_put(array, jax.NamedSharding(mesh, jax.P(*axes)))
    sharded = place(x, "data"), place(w, None, None, None, "model")
    run = energy_and_gradients(unlimited(name), (2, 1), "SAME", batch_group_count=batch_groups)
    alone = quick_jit(run)(x, w)
    convolve = lambda x, w: conv_general_dilated(
        x, w, (2, 1), "SAME", None, None, NHWC, 1, batch_groups, implementation=unlimited(name)
    )
    with jax.set_mesh(mesh):
        jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), quick_jit(run)(*sharded), alone)
        kind = jax.typeof(quick_jit(convolve)(*sharded))
    axes = ("data", None, None, "model") if batch_groups == 1 else (None,) * 4
    assert tuple(kind.sharding.spec) == axes


def test_explicit_mesh_axes_along_space():
    """XLA's convolution keeps them, as lax does; others say that they can't, rather than compute something else."""
    x, w = operands_of([(4, 8, 6, 8), (3, 3, 8, 8)])
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    x = jax.device_put(x, jax.NamedSharding(mesh, jax.P("a", "b")))
    by = lambda name: lambda x: conv_implementation(name)(x, w, (1, 1), "SAME", dimension_numbers=NHWC)
    with jax.set_mesh(mesh):
        assert tuple(jax.typeof(jax.jit(by("xla"))(x)).sharding.spec) == ("a", "b", None, None)
        with pytest.raises(Exception, match="reshape is not supported"):
            jax.jit(by("auto"))(x)


@pytest.mark.parametrize("name", ["auto", "xla"])
def test_inside_partial_shard_map(name):
    """By hand over one axis of a mesh whose other axis is of type Explicit."""
    x, w = operands_of([(8, 6, 6, 8), (3, 3, 8, 16)])
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    run = lambda x, w: conv_implementation(name)(x, w, (1, 1), "SAME", dimension_numbers=NHWC)
    specs = (jax.P("a"), jax.P())
    with jax.set_mesh(mesh):
        by_hand = jax.jit(jax.shard_map(run, in_specs=specs, out_specs=jax.P("a"), axis_names={"a"}))
        x_sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("a")))
        assert_close(by_hand(x_sharded, jax.device_put(w, jax.NamedSharding(mesh, jax.P()))), run(x, w), 1e-5)


@pytest.mark.parametrize("channels", [1, 3, 5, 16, 17])
@pytest.mark.parametrize("name", OURS)
def test_inside_shard_map(name, channels):
    """Gradients by hand on 8 devices, of a batch in parts and of a kernel that all have, are those of the whole."""
    x, w = operands_of([(8, 5, 6, channels), (3, 3, channels, 16)])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    energy = lambda x, w: (unlimited(name)(x, w, (1, 1), "SAME", dimension_numbers=NHWC) ** 2).sum()
    gradients = jax.grad(energy, (0, 1))
    specs = (jax.P("data"), jax.P())
    by_hand = quick_jit(jax.shard_map(gradients, mesh=mesh, in_specs=specs, out_specs=specs))
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), by_hand(x, w), quick_jit(gradients)(x, w))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_auto_is_safe_in_loops(name):
    """Inside a loop XLA's CPU backend is fast for convolutions in its canonical form alone: `auto` has no others."""
    *shapes, strides, padding, options = CONVOLUTIONS[name]
    operands = operands_of(shapes)

    def forms(convolve):
        run = energy_and_gradients(convolve, strides, padding, **options)
        step = lambda carry, _: (jax.tree.map(lambda a, g: a - 0.1 * g, carry, run(*carry)[1]), None)
        loop = jax.jit(lambda carry: lax.scan(step, carry, None, length=3)[0])
        return set(re.findall(r"dim_labels=([\w>-]+)", loop.lower(tuple(operands)).compile().as_text()))

    assert forms(conv_implementation("auto")) <= {"b01f_01io->b01f"}
    assert forms(lax.conv_general_dilated) - {"b01f_01io->b01f"}


# --- Edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "padding", "y_shape", "groups"),
    [
        ((0, 5, 5, 2), (3, 3, 2, 4), "SAME", (0, 5, 5, 4), 1),  # empty batch
        ((2, 3, 3, 2), (5, 5, 2, 4), "VALID", (2, 0, 0, 4), 1),  # kernel larger than the input
        ((2, 3, 9, 2), (5, 5, 2, 4), "VALID", (2, 0, 5, 4), 1),  # along one axis
        ((2, 0, 5, 2), (3, 3, 2, 4), [(2, 2), (0, 0)], (2, 2, 3, 4), 1),  # only padding along one axis
        ((2, 0, 5, 2), (3, 3, 2, 4), "SAME", (2, 0, 5, 4), 1),
        ((2, 5, 5, 0), (3, 3, 0, 4), "SAME", (2, 5, 5, 4), 1),  # no channels: a sum of nothing
        ((2, 5, 5, 2), (3, 3, 2, 0), "SAME", (2, 5, 5, 0), 1),  # no features
        ((2, 5, 5, 4), (3, 3, 2, 0), "SAME", (2, 5, 5, 0), 2),
        ((2, 5, 5, 0), (3, 3, 0, 4), "SAME", (2, 5, 5, 4), 2),
    ],
)
def test_empty(name, x_shape, w_shape, padding, y_shape, groups):
    """Shapes as lax makes them, zeros where there is nothing to sum, and gradients of the right shape."""
    x, w = jnp.ones(x_shape), jnp.ones(w_shape)
    options = {"dimension_numbers": NHWC, "feature_group_count": groups}
    f = lambda x, w: conv_general_dilated(x, w, (1, 1), padding, **options, implementation=unlimited(name))
    y, (gx, gw) = quick_jit(lambda x, w: (f(x, w), jax.vjp(f, x, w)[1](jnp.ones(y_shape))))(x, w)
    assert y.shape == y_shape
    assert reference.conv_general_dilated(x, w, (1, 1), padding, **options).shape == y_shape
    if 0 in x_shape:
        assert not y.any()
    assert (gx.shape, gw.shape) == (x_shape, w_shape)
    if y.size == 0:
        assert not gx.any()
        assert not gw.any()


@pytest.mark.parametrize("name", ANY)
def test_float8(name):
    """Numbers of 8 bits, which do not promote to others: the sum is rounded once."""
    x, w = (a.astype(jnp.float8_e4m3fn) for a in operands_of([(2, 6, 3), (3, 3, 5)]))
    y = conv_general_dilated(x, w, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"), implementation=name)
    exact = reference.conv_general_dilated(
        *(a.astype(np.float32) for a in (x, w)), (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )
    assert y.dtype == jnp.float8_e4m3fn
    np.testing.assert_allclose(y.astype(np.float32), exact, rtol=2.0**-4 + 1e-6, atol=2.0**-10)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ANY)
def test_half_precision_accumulates_in_float32(name, dtype):
    """4,096 ones, over channels and over taps: summed in bfloat16 they would stop at 256, in float16 at 2,048."""
    convolve = quick_jit(conv_implementation(name), static_argnums=(2, 3), static_argnames="preferred_element_type")
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


@pytest.mark.parametrize(("narrow", "wide"), [(np.float32, np.float64), (np.complex64, np.complex128)])
@pytest.mark.parametrize("name", CONV_IMPLEMENTATIONS)
def test_a_wider_result_is_summed_in_its_dtype(name, narrow, wide):
    """With `preferred_element_type`, and under the strictest promotion, as all tests here."""
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=s).astype(narrow) for s in ((1, 8, 7, 32), (3, 3, 32, 4)))
    if narrow is np.complex64:
        x, w = x + np.complex64(1j) * x[:, ::-1], w - np.complex64(1j) * w[::-1]
    expected = reference.conv_general_dilated(x.astype(wide), w.astype(wide), (1, 1), "SAME", dimension_numbers=NHWC)
    with jax.enable_x64(True):
        y = quick_jit(
            lambda x, w: conv_implementation(name)(
                x, w, (1, 1), "SAME", dimension_numbers=NHWC, preferred_element_type=wide
            )
        )(x, w)
    assert_close(y, expected, 1e-13)


@pytest.mark.parametrize("name", ANY)
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
def test_flax_conv(options):
    """`flax.linen.Conv` with our convolution is the stock layer: same parameters, same output."""
    rank = len(options["kernel_size"])
    rng = np.random.default_rng(0)
    fields = {"dtype": jnp.float64, "param_dtype": jnp.float64} | options
    layers = [nn.Conv(6, **fields)]
    layers += [nn.Conv(6, **fields, conv_general_dilated=unlimited(name)) for name in OURS]
    assert hash(layers[1]) == hash(nn.Conv(6, **fields, conv_general_dilated=unlimited(OURS[0])))
    with jax.enable_x64(True):
        x = rng.normal(size=(2, *(7, 6, 5)[:rank], 4))
        shapes = [jax.eval_shape(layer.init, jax.random.key(0), x) for layer in layers]
        variables = jax.tree.map(lambda s: rng.normal(size=s.shape), shapes[0])
        stock, *others = quick_jit(lambda v, x: [layer.apply(v, x) for layer in layers])(variables, x)
    tolerance = 2**-7 if stock.dtype == jnp.bfloat16 else 1e-11
    for shape, y in zip(shapes[1:], others, strict=True):
        assert shape == shapes[0]
        assert y.dtype == stock.dtype == fields["dtype"]
        y, expected = (np.asarray(a, np.float64) for a in (y, stock))
        np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)


class ResidualNetwork(nn.Module):
    """A small residual network in plain Flax; whoever passes `conv` knows nothing of it."""

    conv: Callable = nn.Conv

    @nn.compact
    def __call__(self, x):
        x = self.conv(4, (3, 3), use_bias=False)(x)
        y = nn.relu(nn.GroupNorm(2)(x))
        shortcut = self.conv(8, (1, 1), 2)(y)
        y = self.conv(8, (3, 3), 2, padding=((1, 1), (1, 1)))(y)
        y = self.conv(8, (3, 3), feature_group_count=8)(nn.relu(y))  # depthwise
        x = shortcut + self.conv(8, (1, 3), kernel_dilation=2)(y)
        return nn.Dense(3)(nn.relu(x).mean((1, 2)))


@pytest.mark.usefixtures("promoting")
def test_flax_network():
    """With any implementation in place of Flax's convolution, anyone's network is the same: logits and gradients."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(2, 8, 8, 3)), np.eye(3)[[0, 2]]
    networks = [ResidualNetwork()] + [
        ResidualNetwork(functools.partial(nn.Conv, conv_general_dilated=conv_implementation(name, otherwise="xla")))
        for name in CONV_IMPLEMENTATIONS
    ]
    with jax.enable_x64(True):
        shapes = [jax.eval_shape(network.init, jax.random.key(0), x) for network in networks]
        variables = jax.tree.map(lambda s: 0.3 * rng.normal(size=s.shape), shapes[0])

        @quick_jit
        def run(variables, x):
            def loss(network, variables, x):
                logits = network.apply(variables, x)
                return -(nn.log_softmax(logits) * labels).sum(), logits

            return [jax.value_and_grad(loss, (1, 2), has_aux=True)(n, variables, x) for n in networks]

        stock, *others = run(variables, x)
    for shape, ours in zip(shapes[1:], others, strict=True):
        assert shape == shapes[0]
        jax.tree.map(lambda a, b: assert_close(a, b, 1e-10), ours, stock)


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
    "no lhs": ({"lhs": None}, TypeError, "lhs must .*: got (None|object)"),
    "text": ({"rhs": "3x3"}, TypeError, "rhs must .*: got ('3x3'|<U3)"),
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
def test_bad_input(convolve):
    for change, error, message in BAD.values():
        with pytest.raises(error, match=message) as caught:
            convolve(**(GOOD | change))
        assert "\n" not in str(caught.value)
    assert convolve(**GOOD).shape == (2, 5, 5, 6)  # it was the change


NOT_BY_WINOGRAD = {
    "strides": ({"window_strides": (2, 1)}, "window_strides (2, 1); allowed: 1 along every axis"),
    "dilation": ({"rhs_dilation": (1, 2)}, "rhs_dilation (1, 2); allowed: 1 along every axis"),
    "large kernel": (
        {"rhs": np.ones((3, 4, 4, 6), np.float32)},
        "kernel of (3, 4) taps; allowed: 1, 3 or 5 along each axis, more than 1 along at least one",
    ),
    "one tap": (
        {"rhs": np.ones((1, 1, 4, 6), np.float32)},
        "kernel of (1, 1) taps; allowed: 1, 3 or 5 along each axis, more than 1 along at least one",
    ),
}


@pytest.mark.parametrize("case", NOT_BY_WINOGRAD)
def test_refusal(case):
    """What an implementation cannot do it says in a line, with those that can; or another does it, by request."""
    change, reason = NOT_BY_WINOGRAD[case]
    arguments = GOOD | change
    for convolve in (conv_implementation("winograd"), conv_implementation("winograd", otherwise="winograd")):
        with pytest.raises(InputError) as caught:
            convolve(**arguments)
        assert str(caught.value) == (
            f"convolution implementation 'winograd' cannot do this convolution: got {reason}. "
            "Those that can: auto, xla, reference, im2col, shift, fft "
            "(conv_implementation('winograd', otherwise=\"xla\") takes another for what 'winograd' cannot do)"
        )
    by_xla = conv_implementation("winograd", otherwise="xla")
    np.testing.assert_array_equal(by_xla(**arguments), lax.conv_general_dilated(**arguments))
    inside = lambda arguments: primitives(jax.make_jaxpr(lambda lhs: by_xla(**(arguments | {"lhs": lhs})))(GOOD["lhs"]))
    assert "conv_general_dilated" in inside(arguments)
    assert "conv_general_dilated" not in inside(GOOD)


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
