"""What `cnnjax doctor` checks: that this machine computes what the definitions say, and repeats its bits.

Each check is a function without arguments that computes something at training size on the default backend, compares it
with NumPy, and says how it went in a line.
"""

import contextlib
import dataclasses
import functools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cnnjax import ops, releases
from cnnjax.doctor import exact, fused
from cnnjax.training import config as configs
from cnnjax.training import mesh as meshes
from cnnjax.training import setup
from cnnjax.training.optimizer import make_optimizer
from cnnjax.training.step import Preprocess

Status = Literal["right", "wrong", "known", "skipped"]


class Outcome(NamedTuple):
    """How a check went."""

    status: Status
    """"known": the machine computes something wrong that cnnjax does not use."""
    detail: str
    """A short line: what was found, or what is wrong and what to do."""


class Check(NamedTuple):
    """One line of the doctor's report."""

    name: str
    run: Callable[[], Outcome]


def all_checks() -> Iterator[Check]:
    """Every check, in the order of the report."""
    yield Check("release of jaxlib", release)
    for name in ops.CONV_IMPLEMENTATIONS:
        yield Check(f"convolution {name}", functools.partial(convolution, name))
    yield Check("default precision", default_precision)
    for name in ops.CONV_IMPLEMENTATIONS:
        yield Check(f"fused with {name}", functools.partial(fused_programs, name))
    yield from (
        Check(f"probe {name.replace('convolution ', '')}", functools.partial(known_miscompilation, name))
        for name in fused.PROBES
    )
    yield from (Check(f"pooling {name}", functools.partial(pooling, name)) for name in POOLS)
    yield Check("batch norm, sharded", sharded_batch_norm)
    yield Check("max pooling, sharded", sharded_max_pool)
    yield Check("groups, with copies", functools.partial(grouped_on_copies, "auto"))
    yield Check("XLA's groups, with copies", functools.partial(grouped_on_copies, "xla"))
    yield Check("training step repeated", repeated_step)
    yield Check("training step's time", step_time)


def release() -> Outcome:
    """What is known of the installed jaxlib on this backend, and whether the settings that it needs are in force."""
    version, backend = releases.installed(), jax.default_backend()
    known = releases.RELEASES.get(version or "")
    if known is None:
        return Outcome("known", f"{version} was not admitted (docs/releases.md): trust what follows")
    missing = releases.set_flags(dict(os.environ), version, too_late=True)
    if missing is not None and backend == "cpu":
        return Outcome("wrong", missing)
    defects = [defect for defect in known.defects if defect.backend == backend]
    open_ = [defect.text for defect in defects if not defect.cured]
    if open_:
        return Outcome("known", f"{version}: {'; '.join(open_)}")
    cured = f", {len(defects)} fault{'s' * (len(defects) > 1)} cured by XLA_FLAGS" if defects else ""
    return Outcome("right", f"{version}, admitted{cured}")


# --- Convolutions against the oracle ----------------------------------------------------------------------------------


class Convolution(NamedTuple):
    """A convolution of training size: 147,456 rows (batch times places) of output."""

    image: tuple[int, int, int, int]
    kernel: tuple[int, int, int, int]
    stride: int = 1
    groups: int = 1

    @property
    def options(self) -> dict[str, Any]:
        """As `lax.conv_general_dilated` takes them; padded so that the output is the input over the stride."""
        pads = tuple(((k - 1) // 2, k // 2) for k in self.kernel[:2])
        return {
            "window_strides": (self.stride,) * 2,
            "padding": pads,
            "lhs_dilation": (1, 1),
            "rhs_dilation": (1, 1),
            "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
            "feature_group_count": self.groups,
            "batch_group_count": 1,
        }


CONVOLUTIONS = {
    "5x5 of one channel": Convolution((64, 48, 48, 1), (5, 5, 1, 6)),
    "3x3": Convolution((144, 32, 32, 16), (3, 3, 16, 32)),
    "3x3 with stride 2": Convolution((144, 64, 64, 3), (3, 3, 3, 16), stride=2),
    "3x3 in 4 groups": Convolution((144, 32, 32, 16), (3, 3, 4, 16), groups=4),
}
"""One for each way in which `auto` computes convolutions on CPU, but for pointwise ones, which are products."""

HALF = ("5x5 of one channel", "3x3")
"""Those that are also done in bfloat16."""

LARGEST_RMS = {"float32": 2e-4, "bfloat16": 1e-2}
"""Root mean square errors beyond which a result is wrong, as a part of the result's. The bounds by theory grow with
the number of terms, 147,456 in a kernel's gradient, far beyond real errors."""


class _Operands(NamedTuple):
    x: np.ndarray
    w: np.ndarray
    c: np.ndarray
    exact: list[exact.Exact]


@functools.cache
def _operands(name: str, dtype: str) -> _Operands:
    """Normal numbers of a dtype, for the image, the kernel and the weights of the output, and what comes of them."""
    layer = CONVOLUTIONS[name]
    rng = np.random.default_rng(0)
    draw = lambda *shape: np.asarray(jnp.asarray(rng.standard_normal(shape), dtype))
    batch, height, width, _ = layer.image
    x, w = draw(*layer.image), draw(*layer.kernel)
    c = draw(batch, height // layer.stride, width // layer.stride, layer.kernel[-1])
    wide = [np.asarray(a, np.float64) for a in (x, w, c)]
    return _Operands(x, w, c, exact.oracle(wide[0], wide[1], wide[2], **layer.options))


def _value_and_gradients(convolve: Callable, x: Any, w: Any, c: Any) -> tuple:
    y, pull = jax.vjp(convolve, x, w)
    return y, *pull(c)


def as_exact_as_float32() -> contextlib.AbstractContextManager:
    """Makes products of float32 numbers as exact as their dtype, on devices where they are not.

    On a CPU they are, and `auto` takes the same wish for one to do without Winograd's algorithm.
    """
    return contextlib.nullcontext() if jax.default_backend() == "cpu" else jax.default_matmul_precision("highest")


def convolution(implementation: str) -> Outcome:
    """One implementation's value and both gradients, each within its stated bound (docs/equivalence.md)."""
    share, rms = 0.0, {"float32": 0.0, "bfloat16": 0.0}
    for dtype, names in (("float32", CONVOLUTIONS), ("bfloat16", HALF)):
        for name in names:
            layer, it = CONVOLUTIONS[name], _operands(name, dtype)
            if implementation == "winograd" and layer.stride > 1:
                continue  # which it refuses
            convolve = functools.partial(ops.conv_implementation(implementation), **layer.options)
            with as_exact_as_float32():
                found = jax.jit(functools.partial(_value_and_gradients, convolve))(it.x, it.w, it.c)
            for quantity, got, expected in zip(exact.QUANTITIES, found, it.exact, strict=False):
                got = np.asarray(got, np.float64)
                error = np.abs(got - expected.exact)
                allowed = exact.bound(implementation, quantity, expected, dtype, it.x, it.w, layer.options)
                part, relative = float((error / allowed).max()), _rms(error) / _rms(expected.exact)
                if not part <= 1 or not relative <= LARGEST_RMS[dtype]:
                    return Outcome(
                        "wrong",
                        f"{quantity} of {name} in {dtype}: off by {relative:.1%} (root mean square), at worst "
                        f"{part:.3g} times the bound",
                    )
                share, rms[dtype] = max(share, part), max(rms[dtype], relative)
    return Outcome(
        "right",
        f"error {rms['float32']:.0e}, bfloat16 {rms['bfloat16']:.0e}; {share:.0%} of bound",
    )


def _rms(values: np.ndarray) -> float:
    return math.sqrt(float(np.square(values).mean()))


def default_precision() -> Outcome:
    """How exact float32 convolutions are by default: GPUs and TPUs round the operands unless told otherwise."""
    if jax.default_backend() == "cpu":
        return Outcome("skipped", "float32 is float32 on a CPU")
    it, layer = _operands("3x3", "float32"), CONVOLUTIONS["3x3"]
    found = jax.jit(functools.partial(ops.conv_general_dilated, **layer.options))(it.x, it.w)
    relative = _rms(np.asarray(found, np.float64) - it.exact[0].exact) / _rms(it.exact[0].exact)
    return Outcome("right", f'error {relative:.0e} in float32 (jax.default_matmul_precision("highest") has less)')


# --- Programs of several operations -----------------------------------------------------------------------------------

EVERY = {"auto": 10, "xla": 30}
"""Every k-th of the programs of `fused.cases` is checked here; of the other implementations every 60th."""


def fused_programs(implementation: str) -> Outcome:
    """One implementation under one `jit` with what networks put behind it, on whole numbers."""
    every = EVERY.get(implementation, 60)
    chosen = [case for case in fused.cases(sizes=(2**16,)) if implementation in fused.implementations(case)][::every]
    for case in chosen:
        with as_exact_as_float32():
            difference = fused.check(case, implementation)
        if difference is not None:
            return Outcome("wrong", difference.text)
    return Outcome("right", f"{len(chosen)} programs of 65,536 rows")


def known_miscompilation(name: str) -> Outcome:
    """A program that some release compiled wrongly."""
    with as_exact_as_float32():
        wrong = fused.probe(name)
    return Outcome("right", "compiled right") if wrong is None else Outcome("wrong", wrong)


# --- Pooling ----------------------------------------------------------------------------------------------------------


class Pool(NamedTuple):
    """A pooling of [144, 32, 32, 16]."""

    apply: Callable[..., jax.Array]
    oracle: Callable[..., np.ndarray]
    window: int
    stride: int


POOLS = {
    "max 2x2/2": Pool(ops.max_pool, ops.reference.max_pool, 2, 2),
    "max 3x3/2": Pool(ops.max_pool, ops.reference.max_pool, 3, 2),
    "average 2x2/2": Pool(ops.avg_pool, ops.reference.avg_pool, 2, 2),
}


def pooling(name: str) -> Outcome:
    """Value and gradient, on small whole numbers (so with many ties), where both are exact."""
    pool = POOLS[name]
    rng = np.random.default_rng(0)
    x = rng.integers(-8, 8, (144, 32, 32, 16)).astype(np.float32)
    shape, strides = (pool.window,) * 2, (pool.stride,) * 2
    expected = pool.oracle(x, shape, strides)
    c = rng.integers(-8, 8, expected.shape).astype(np.float32)

    @jax.jit
    def value_and_gradient(x, c):
        y, pull = jax.vjp(lambda x: pool.apply(x, shape, strides), x)
        return y, *pull(c)

    y, dx = value_and_gradient(x, c)
    for what, got, right in (("value", y, expected), ("gradient", dx, pool_gradient(x, c, pool))):
        if not np.array_equal(got, right):
            return Outcome("wrong", f"{what}: {np.mean(np.asarray(got) != right):.1%} of the numbers are not exact")
    return Outcome("right", "value and gradient exact")


def pool_gradient(x: np.ndarray, c: np.ndarray, pool: Pool) -> np.ndarray:
    """The gradient of <pool(x), c> in x, window by window: to the first maximum, or to all alike.

    Args:
      x: [batch, height, width, channel].
      c: of the shape of the output.
      pool: which.
    """
    dx = np.zeros_like(x)
    n, channel = np.indices((x.shape[0], x.shape[-1]), sparse=True)
    for i, j in np.ndindex(c.shape[1:3]):
        top, left = i * pool.stride, j * pool.stride
        window = x[:, top : top + pool.window, left : left + pool.window]
        if pool.apply is ops.avg_pool:
            dx[:, top : top + pool.window, left : left + pool.window] += c[:, i, j][:, None, None] / pool.window**2
        else:
            first = window.reshape(len(x), -1, x.shape[-1]).argmax(1)  # [batch, channel]
            np.add.at(dx, (n, top + first // pool.window, left + first % pool.window, channel), c[:, i, j])
    return dx


# --- Several devices --------------------------------------------------------------------------------------------------


def _mesh(copies: int = 1) -> Mesh | None:
    """All devices: the batch is divided along "data", and each part is there `copies` times; None where it can't be."""
    devices = jax.devices()
    if len(devices) < 2 or len(devices) % copies:
        return None
    shape = np.array(devices).reshape(-1, copies)
    return Mesh(shape, ("data", "copies"), axis_types=(AxisType.Auto,) * 2)


_ONE = Outcome("skipped", "one device")


def _on_mesh(function: Callable, mesh: Mesh, divided: tuple[Any, ...], whole: tuple[Any, ...]) -> Any:
    """A function of arrays of which the first are divided along their first axis, and the others copied."""
    put = lambda value, spec: jax.device_put(value, NamedSharding(mesh, spec))
    return jax.jit(function)(*(put(a, P("data")) for a in divided), *(put(a, P()) for a in whole))


def _sizes(mesh: Mesh) -> int:
    """About 144 images, a multiple of the devices."""
    return -(-144 // mesh.size) * mesh.size


def sharded_batch_norm() -> Outcome:
    """Batch norm's output, statistics and gradients are those of the whole batch, over all devices."""
    mesh = _mesh()
    if mesh is None:
        return _ONE
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, (_sizes(mesh), 32, 32, 16)).astype(np.float32)
    c = rng.standard_normal(x.shape, np.float32)
    norm = nn.BatchNorm(use_running_average=False, momentum=0.9)
    variables = jax.jit(norm.init)(jax.random.key(0), x[:2])

    def everything(x, c, params):
        def weighted(x, params):
            y, updated = norm.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return (nn.relu(y) * c).sum(), updated["batch_stats"]

        gradients, statistics_ = jax.grad(weighted, (0, 1), has_aux=True)(x, params)
        return gradients, statistics_

    alone = jax.jit(everything)(x, c, variables["params"])
    spread = _on_mesh(everything, mesh, (x, c), (variables["params"],))
    errors = [
        np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(a)).max()
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True)
    ]
    worst = float(np.max(errors))  # NaN where any is
    what = f"{mesh.size} devices as one, to {worst:.0e}"
    return Outcome("right" if worst < 1e-3 else "wrong", what)


def sharded_max_pool() -> Outcome:
    """The gradient of max pooling over all devices, on whole numbers."""
    mesh = _mesh()
    if mesh is None:
        return _ONE
    pool = POOLS["max 3x3/2"]
    rng = np.random.default_rng(0)
    x = rng.integers(-8, 8, (_sizes(mesh), 32, 32, 16)).astype(np.float32)
    c = rng.integers(-8, 8, (len(x), 15, 15, 16)).astype(np.float32)
    gradient = jax.grad(lambda x, c: (ops.max_pool(x, (3, 3), (2, 2)) * c).sum())
    same = np.array_equal(_on_mesh(gradient, mesh, (x, c), ()), pool_gradient(x, c, pool))
    return Outcome("right" if same else "wrong", f"gradient on {mesh.size} devices {'exact' if same else 'not exact'}")


def grouped_on_copies(implementation: str) -> Outcome:
    """Gradients of a grouped convolution where parts of the batch are held twice: exact on whole numbers, or not.

    jaxlib 0.10.2 computes wrong kernel gradients of XLA's own there, which `auto` does not use.
    """
    mesh = _mesh(copies=2)
    if mesh is None:
        return _ONE if len(jax.devices()) < 2 else Outcome("skipped", "an odd number of devices")
    layer = CONVOLUTIONS["3x3 in 4 groups"]
    rng = np.random.default_rng(0)
    small = lambda *shape: rng.integers(-2, 3, shape).astype(np.float32)
    x, c, w = small(_sizes(mesh), 16, 16, 16), small(_sizes(mesh), 16, 16, 16), small(*layer.kernel)
    convolve = functools.partial(ops.conv_implementation(implementation), **layer.options)
    found = _on_mesh(lambda x, c, w: _value_and_gradients(convolve, x, w, c), mesh, (x, c), (w,))
    y = ops.reference.conv_general_dilated(x, w, **layer.options)
    right = (y, *ops.reference.conv_gradients(*(a.astype(np.float64) for a in (x, w, c)), **layer.options))
    wrong = [q for q, a, b in zip(exact.QUANTITIES, found, right, strict=False) if not np.array_equal(a, b)]
    if not wrong:
        return Outcome("right", f"value and gradients exact on {mesh.shape['data']} x 2 devices")
    return Outcome(
        "wrong" if implementation == "auto" else "known",
        f"wrong: {' and '.join(wrong)}" + ("" if implementation == "auto" else "; auto does not use it"),
    )


# --- A training step --------------------------------------------------------------------------------------------------

BATCH = 128


class _Step(NamedTuple):
    """A compiled training step of ResNet-20."""

    call: Callable
    state: Any
    batch: dict[str, jax.Array]
    bytes: int
    """What the program takes: arguments, results and what it keeps in between."""


@functools.cache
def _resnet20(conv: str) -> _Step:
    """The step that `cnnjax run cifar_resnet20` makes, with the given implementation of convolution."""
    config = configs.Config(
        model=configs.Model("cifar_resnet20", {"conv": conv}),
        data=configs.Data("cifar10", pad_crop=4, flip=True),
        optimizer=configs.Optimizer("sgd", learning_rate=0.1, weight_decay=1e-4),
    )
    model = setup.make_model(config, 10)
    optimizer = make_optimizer(config.optimizer, 1000)
    preprocess = Preprocess.of(config.data, (0.5,) * 3, (0.25,) * 3, jnp.float32)
    mesh = meshes.make_mesh(1)
    if conv == "auto":
        state = jax.jit(setup.make_init(config, model, optimizer, (32, 32, 3)))(jax.random.key(0))
    else:
        state = _resnet20("auto").state  # the same parameters, compiled once
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (BATCH, 32, 32, 3), np.uint8)),
        "label": jnp.asarray(rng.integers(0, 10, BATCH), jnp.int32),
    }
    step = setup.make_step(config, model, optimizer, preprocess, mesh)
    compiled = jax.jit(step).lower(state, batch).compile()
    memory = compiled.memory_analysis()
    used = 0 if memory is None else memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return _Step(compiled, state, batch, used)


def repeated_step() -> Outcome:
    """Two steps of ResNet-20 made twice from one state have the same bits."""
    step = _resnet20("auto")

    def twice() -> list[bytes]:
        state = step.state
        for _ in range(2):
            state, _ = step.call(state, step.batch)
        leaves = jax.tree.leaves(dataclasses.replace(state, key=jax.random.key_data(state.key)))
        return [np.asarray(leaf).tobytes() for leaf in leaves]

    if twice() == twice():
        return Outcome("right", "ResNet-20: the same bits")
    remedy = "; XLA_FLAGS=--xla_gpu_deterministic_ops=true repeats them" * (jax.default_backend() == "gpu")
    return Outcome("wrong", f"ResNet-20: other bits from the same state, so runs don't resume exactly{remedy}")


def step_time() -> Outcome:
    """Time and memory of a ResNet-20 step beside the same with Flax's own convolutions; the first losses agree."""
    steps = {"cnnjax": _resnet20("auto"), "plain Flax": _resnet20("xla")}
    losses = {name: float(step.call(step.state, step.batch)[1]["loss"]) for name, step in steps.items()}
    if not math.isclose(*losses.values(), rel_tol=1e-2):
        return Outcome("wrong", f"the first loss is {losses['cnnjax']:.4f}, plain Flax's {losses['plain Flax']:.4f}")
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(3):
        for name, step in steps.items():
            started = time.perf_counter()
            jax.block_until_ready(step.call(step.state, step.batch))
            times[name].append(time.perf_counter() - started)
    ms = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    memory = {name: f"{step.bytes / 2**20:,.0f} MiB" for name, step in steps.items()}
    return Outcome(
        "right",
        f"ResNet-20, batch {BATCH}: {ms['cnnjax']:.1f} ms, {memory['cnnjax']} "
        f"(plain Flax {ms['plain Flax']:.1f} ms, {memory['plain Flax']})",
    )
