"""The operations against XLA's and Flax's: max pooling, convolutions in loops, grouped ones, those of the models.

    python benchmarks/ops.py [pool] [loop] [grouped] [models] [--rounds 3] [--seconds 0.03]
    python benchmarks/ops.py --tune

    pool      max pooling and its gradient, against `flax.linen.max_pool`
    loop      the convolutions of a training step in `lax.scan`, against the same outside
    grouped   gradients of grouped and depthwise convolutions, and of those with one input channel, against `lax`'s
    models    every convolution of nine models, forward and gradients: implementation "auto" against "xla"

Rounds are interleaved in one process (`timing.py`); figures are medians of the rounds' ratios, with the extremes, and
beside each stands the target that the CPU backend is held to. At the end comes everything as one line of JSON.
Progress goes to stderr. With XLA_FLAGS=--xla_gpu_deterministic_ops=true `pool` shows how reproducible runs on a GPU
fare: there not every gradient of max pooling compiles.

`--tune` measures instead, on a few convolutions of every class, the ways to compute them (`cnnjax.ops.dense`), and
prints the tables of `cnnjax/ops/table.py`: what is fastest in the geometric mean over the class.
"""

# ruff: noqa: I001
from step import machine, say  # first: it has freed memory kept, before NumPy is imported, and starts its threads

import argparse
import collections
import functools
import json
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import timing
from jax import Array, lax

from cnnjax import models
from cnnjax.ops import auto, max_pool, table
from cnnjax.ops.auto import conv_auto
from cnnjax.ops.bilinear import bilinear
from cnnjax.ops.conv_spec import ConvSpec, conv_spec
from cnnjax.ops.dense import Geometry
from cnnjax.ops.xla import conv_xla

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"

Convolve = Callable[[Array, Array, ConvSpec], Array]


class Budget(NamedTuple):
    """How long to measure."""

    rounds: int
    seconds: float
    """Of a function's turn in a round."""

    def race(self, functions: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
        """The seconds per call of each function, which returns what it computes, in every round."""
        waiting = {name: lambda f=f: jax.block_until_ready(f()) for name, f in functions.items()}
        return timing.interleave(waiting, self.rounds, self.seconds)


def normal(*shape: int, dtype: Any = np.float32) -> Array:
    """Normal noise on the device."""
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32), dtype)


def row(
    what: str, ratio: timing.Ratio, *, least: float = 0.0, most: float = math.inf, more: str = ""
) -> dict[str, Any]:
    """Prints a ratio beside its target, at least `least` or at most `most`, and returns both for the report."""
    target = f"at least {least:g}" if least else f"at most {most:g}"
    met = least <= ratio.median <= most
    verdict = ("met" if met else "missed") if jax.default_backend() == "cpu" else "on CPU"
    print(f"  {what:40} {ratio!s:24} target {target:13} {verdict:6} {more}".rstrip(), flush=True)
    return {**ratio._asdict(), "target": target, "met": met}


# --- Convolutions of layers -------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """A convolution and what training needs of it."""

    x: tuple[int, ...]
    """Shape of the input."""
    w: tuple[int, ...]
    """Shape of the kernel, HWIO."""
    spec: ConvSpec
    first: bool = False
    """Whether the input is the images, which need no gradient."""

    @property
    def y(self) -> tuple[int, ...]:
        """Shape of the output."""
        return (self.x[0], *self.spec.output_space, self.w[-1])

    @property
    def geometry(self) -> Geometry:
        """What `cnnjax.ops.dense` takes."""
        return Geometry(self.x[1:-1], self.w[:-2], self.spec.window_strides, self.spec.padding, self.spec.rhs_dilation)

    def __str__(self) -> str:
        size = lambda shape: "x".join(map(str, shape))
        stride = self.spec.window_strides[0]
        return f"{size(self.x)} * {size(self.w)}" + (f" /{stride}" if stride > 1 else "")


def layer(batch: int, size: int, channels: int, features: int, window: int, stride=1, pad=None, groups=1) -> Layer:
    """A square convolution, NHWC; by default padded to keep the size at stride 1."""
    pad = window // 2 if pad is None else pad
    x, w = (batch, size, size, channels), (window, window, channels // groups, features)
    lhs, rhs = (jax.ShapeDtypeStruct(shape, np.float32) for shape in (x, w))
    numbers = ("NHWC", "HWIO", "NHWC")
    return Layer(x, w, conv_spec(lhs, rhs, (stride,) * 2, ((pad, pad),) * 2, None, None, numbers, groups))


NETWORKS: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {  # image, batch size and fields of the model
    "lenet5": ((28, 28, 1), 128, {}),
    "lenet5_modern": ((28, 28, 1), 128, {}),
    "cs231n_cifar10": ((32, 32, 3), 128, {}),
    "convnetjs_cifar10": ((32, 32, 3), 128, {}),
    "convnetjs_mnist": ((24, 24, 1), 128, {}),
    "geron_fashion": ((28, 28, 1), 128, {}),
    "cifar_resnet20": ((32, 32, 3), 128, {}),
    "resnet18": ((32, 32, 3), 64, {"stem": "cifar", "num_classes": 10}),
    "resnet50": ((64, 64, 3), 8, {}),
}


def layers_of(name: str) -> list[Layer]:
    """The convolutions of one of `NETWORKS` in its order, found by tracing it."""
    image, batch, fields = NETWORKS[name]
    found: list[Layer] = []

    def record(lhs, rhs, *args, **kwargs):
        spec = conv_spec(lhs, rhs, *args, **kwargs)
        found.append(Layer(lhs.shape, rhs.shape, spec, first=not found))
        return conv_xla(lhs, rhs, spec)

    model = models.create(name, **fields, conv=record)
    jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((batch, *image), jnp.float32))
    return found


def differentiate(convolve: Callable[..., Array], x: Array, w: Array, dy: Array | None = None, first=False) -> Any:
    """y, dx and dw; dy is y unless given, and dx is left out for the first layer."""
    y, back = jax.vjp(functools.partial(convolve, x), w) if first else jax.vjp(convolve, x, w)
    return y, *back(y if dy is None else dy)


def auto_and_xla(it: Layer, budget: Budget, kernel_only: bool = False) -> dict[str, list[float]]:
    """Times of both implementations for y, dx and dw, or for dw alone."""

    def by(convolve: Convolve) -> Callable[[], Any]:
        function = functools.partial(differentiate, lambda x, w: convolve(x, w, it.spec))
        if kernel_only:
            gradient = jax.jit(lambda x, w, dy: function(x, w, dy, first=True)[-1])
        else:
            gradient = jax.jit(functools.partial(function, first=it.first))
        return functools.partial(gradient, *arrays)

    arrays = normal(*it.x), normal(*it.w), normal(*it.y)
    return budget.race({"auto": by(conv_auto), "xla": by(conv_xla)})


# --- Sections ---------------------------------------------------------------------------------------------------------


def pool(budget: Budget) -> dict[str, Any]:
    """Max pooling and its gradient against Flax's: in time, and where the gradient goes."""
    shape = (128, 32, 32, 16)
    print(f"pool: gradient of max pooling on {shape}, flax.linen / cnnjax")
    if jax.default_backend() == "gpu":
        given = DETERMINISTIC in os.environ.get("XLA_FLAGS", "")
        print(f"  deterministic operations: {'on' if given else f'off; set XLA_FLAGS={DETERMINISTIC} for them'}")
    windows = {  # window, stride, padding and target
        "2x2/2 VALID": (2, 2, "VALID", 12),
        "3x3/2 VALID": (3, 2, "VALID", 5),
        "3x3/2 SAME": (3, 2, "SAME", 5),
        "3x3/2 padded by 1": (3, 2, ((1, 1), (1, 1)), 5),
        "3x3/1 SAME": (3, 1, "SAME", 2),
        "3x3/3 VALID": (3, 3, "VALID", 2),
        "7x7/7 VALID": (7, 7, "VALID", 2),
        "13x13/1 SAME": (13, 1, "SAME", 2),
    }
    return {what: _pool_row(what, shape, *case, budget) for what, case in windows.items()}


def _pool_row(
    what: str, shape: Sequence[int], window: int, stride: int, padding: Any, target: float, budget: Budget
) -> Any:
    arguments = {"window_shape": (window,) * 2, "strides": (stride,) * 2, "padding": padding}
    pools = {"cnnjax": functools.partial(max_pool, **arguments), "flax": functools.partial(nn.max_pool, **arguments)}
    gradients = {name: jax.jit(lambda x, dy, f=f: jax.vjp(f, x)[1](dy)[0]) for name, f in pools.items()}
    with_values = {name: jax.jit(functools.partial(_value_and_gradient, f)) for name, f in pools.items()}
    # Whole numbers: windows are full of ties, and sums are exact in any order.
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 4, shape), jnp.float32)
    values = [jax.jit(f)(x) for f in pools.values()]
    dy = jnp.asarray(rng.integers(-8, 8, values[0].shape), jnp.float32)
    try:
        gradients["flax"].lower(x, dy).compile()
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        seconds = budget.race({"cnnjax": lambda: gradients["cnnjax"](x, dy)})["cnnjax"]
        print(f"  {what:40} {1e3 * statistics.median(seconds):.3f} ms; flax's does not compile: {reason}", flush=True)
        return {"seconds": seconds, "flax": reason}
    checks = {
        "values": np.array_equal(*values),
        "positions": np.array_equal(*(gradient(x, dy) for gradient in gradients.values())),
    }
    noise = normal(*shape), normal(*dy.shape)
    functions = gradients | {f"{name} with value": f for name, f in with_values.items()}
    times = budget.race({name: functools.partial(f, *noise) for name, f in functions.items()})
    with_value = timing.ratio(times["flax with value"], times["cnnjax with value"])
    more = ", ".join(f"{'same' if same else 'OTHER'} {name}" for name, same in checks.items())
    more += f"; with the value {with_value.median:.2f}"
    report = {**checks, "with_value": with_value._asdict()}
    return row(what, timing.ratio(times["flax"], times["cnnjax"]), least=target, more=more) | report


def _value_and_gradient(pool: Callable[[Array], Array], x: Array, dy: Array) -> Any:
    y, back = jax.vjp(pool, x)
    return y, back(dy)


def loop(budget: Budget, iterations: int = 3) -> dict[str, Any]:
    """The convolutions of training steps inside `lax.scan`, against as many calls of the compiled step."""
    print(f"loop: convolutions of {iterations} training steps, inside lax.scan / outside")
    report = {}
    for name, with_lax in {"lenet5_modern": True, "convnetjs_cifar10": True, "geron_fashion": False}.items():
        say(f"  {name} in a loop")
        layers = layers_of(name)
        times = budget.race(_inside_and_outside(conv_auto, layers, iterations))
        more, of_lax = f"{1e3 * statistics.median(times['inside']) / iterations:.1f} ms a step inside", None
        if with_lax:  # one round: it is slow
            lax_times = budget._replace(rounds=1).race(_inside_and_outside(conv_xla, layers, iterations))
            of_lax = timing.ratio(lax_times["inside"], lax_times["outside"]).median
            more += f"; lax's ratio {of_lax:.1f}"
        ratio = timing.ratio(times["inside"], times["outside"])
        report[name] = row(name, ratio, most=1.3, more=more) | {"lax": of_lax}
    return report


def _inside_and_outside(convolve: Convolve, layers: Sequence[Layer], iterations: int) -> dict[str, Callable[[], Any]]:
    """Functions that take the same steps; every step depends on the one before, so that nothing can leave the loop."""

    def update(it: Layer, x: Array, w: Array) -> tuple[Array, Array]:
        y, *dx, dw = differentiate(lambda x, w: convolve(x, w, it.spec), x, w, first=it.first)
        rate = 1e-10  # small enough for the numbers to stay as they are
        return x - rate * (dx[0] if dx else y.mean()), w - rate * dw

    def step(state):
        return [update(it, x, w) for it, (x, w) in zip(layers, state, strict=True)]

    def scan(state):
        return lax.scan(lambda state, _: (step(state), None), state, length=iterations)[0]

    def repeated(function: Callable[[Any], Any], calls: int) -> Callable[[], Any]:
        compiled = jax.jit(function, donate_argnums=0)
        state = [(normal(*it.x), normal(*it.w)) for it in layers]

        def call():
            nonlocal state
            for _ in range(calls):
                state = compiled(state)
            return state

        return call

    return {"inside": repeated(scan, 1), "outside": repeated(step, iterations)}


def grouped(budget: Budget) -> dict[str, Any]:
    """Gradients that XLA has no good way to compute on CPU."""
    print("grouped: lax / auto")
    cases = {  # the convolution, whether for dw alone, and the target
        "3x3 in 4 groups, dw": (layer(16, 32, 32, 32, 3, groups=4), True, 10),
        "3x3 in 32 groups, y, dx and dw": (layer(8, 14, 256, 256, 3, groups=32), False, 5),
        "3x3 depthwise, y, dx and dw": (layer(16, 32, 32, 32, 3, groups=32), False, 5),
        "one channel, LeNet-5's C1, dw": (layer(128, 32, 1, 6, 5, pad=0), True, 1.5),
        "one channel, geron_fashion's conv1, dw": (layer(128, 28, 1, 64, 7), True, 1.5),
    }
    report = {}
    for what, (it, kernel_only, target) in cases.items():
        times = auto_and_xla(it, budget, kernel_only)
        report[what] = row(what, timing.ratio(times["xla"], times["auto"]), least=target, more=str(it))
    return report


def whole_models(budget: Budget) -> dict[str, Any]:
    """All convolutions of each model, one at a time, summed as often as they occur."""
    print("models: convolutions, forward and gradients, auto / xla")
    report = {}
    for network, (_, batch, _) in NETWORKS.items():
        total = {name: np.zeros(budget.rounds) for name in ("auto", "xla")}
        ratios: dict[Layer, timing.Ratio] = {}
        for it, count in collections.Counter(layers_of(network)).items():
            times = auto_and_xla(it, budget)
            ratios[it] = timing.ratio(times["auto"], times["xla"])
            say(f"  {network}: {it}: {ratios[it]}")
            for name, seconds in times.items():
                total[name] += count * np.array(seconds)
        worst = max(ratios, key=lambda it: ratios[it].median)
        auto_ms, xla_ms = (1e3 * np.median(seconds) for seconds in total.values())
        more = f"{auto_ms:.1f} and {xla_ms:.1f} ms; worst {ratios[worst].median:.2f}: {worst}"
        ratio = timing.ratio(total["auto"].tolist(), total["xla"].tolist())
        report[network] = row(f"{network}, batch {batch}", ratio, most=1.05, more=more)
        report[network]["convolutions"] = {str(it): r._asdict() for it, r in ratios.items()}
    return report


SECTIONS = {"pool": pool, "loop": loop, "grouped": grouped, "models": whole_models}

# --- The table of methods ---------------------------------------------------------------------------------------------


PASSES = {"forward": (auto.FORWARD, "x w"), "input": (auto.INPUT, "dy w"), "kernel": (auto.KERNEL, "x dy")}
"""The methods of each pass, and what they take."""


def representatives(batch: int) -> list[Layer]:
    """A few convolutions of every class of `table.CLASSES`, most of them of the models above.

    Where a class has some with a stride there is one among them, so that no method is chosen that can't do it.
    """
    at = functools.partial(layer, batch)
    return [
        *(at(32, 64, 128, 1, 2), at(16, 128, 256, 1, 2), at(16, 64, 256, 1), at(16, 256, 64, 1), at(4, 1024, 256, 1)),
        *(at(32, 1, 6, 5, pad=0), at(28, 1, 64, 7), at(24, 1, 8, 5), at(28, 1, 32, 3), at(28, 1, 12, 5, 2)),
        *(at(32, 3, 16, 5), at(32, 3, 16, 3), at(64, 3, 64, 7, 2), at(32, 10, 10, 3), at(14, 6, 16, 5, pad=0)),
        *(at(32, 16, 32, 3, 2), at(32, 64, 128, 3, 2), at(16, 128, 256, 3, 2), at(8, 256, 512, 3, 2)),
        *(at(16, 32, 32, 3), at(8, 64, 64, 3), at(32, 64, 64, 3), at(16, 128, 128, 3), at(8, 256, 256, 3)),
        *(at(14, 64, 128, 3), at(4, 512, 512, 3), at(2, 512, 512, 3)),
        *(at(4, 20, 20, 5), at(4, 64, 64, 5), at(4, 16, 16, 3), at(8, 16, 32, 5, pad=0)),
        *(at(32, 16, 16, 3), at(16, 16, 20, 5), at(8, 20, 20, 5), at(14, 48, 64, 5)),
    ]


def relative(
    functions: Mapping[str, Callable[..., Any]], operands: str, layers: Sequence[Layer], dtype: Any, budget: Budget
) -> dict[str, float]:
    """The time of each function(a, b, geometry) relative to that of the first, the geometric mean over layers.

    `operands` names a and b: "x w", "dy w" or "x dy".
    """
    ratios: dict[str, list[float]] = {name: [] for name in functions}
    for it in layers:
        shapes = {"x": it.x, "w": it.w, "dy": it.y}
        arrays = [normal(*shapes[name], dtype=dtype) for name in operands.split()]
        call = lambda f: functools.partial(jax.jit(f, static_argnums=2), *arrays, it.geometry)  # noqa: B023
        times = budget.race({name: call(f) for name, f in functions.items()})
        first, *_ = times.values()
        for name, seconds in times.items():
            ratios[name].append(timing.ratio(seconds, first).median)
        say(f"  {it}: " + ", ".join(f"{name} {1e3 * statistics.median(s):.2f} ms" for name, s in times.items()))
    return {name: statistics.geometric_mean(values) for name, values in ratios.items()}


def tune(variable: str, dtype: Any, batch: int, budget: Budget) -> dict[str, Any]:
    """Measures one table of `cnnjax/ops/table.py` and prints it as Python source; returns the ratios."""
    classes: dict[str, list[Layer]] = {name: [] for name in table.CLASSES}
    for it in representatives(batch):
        classes[table.shape_class(jnp.empty(it.w), it.geometry)].append(it)
    if not all(classes.values()):
        raise SystemExit(f"no representatives of {[name for name, layers in classes.items() if not layers]}")
    lines, report = [], {}
    for name, layers in classes.items():
        fastest, means = [], {}
        for which, (methods, operands) in PASSES.items():
            say(f"{variable}, {name}, {which}")
            means[which] = relative(methods, operands, layers, dtype, budget)
            fastest.append(min(means[which], key=lambda method: means[which][method]))
        if name in ("three taps", "five taps") and dtype == jnp.float32:  # Winograd's gradients come with it
            say(f"{variable}, {name}, all of it by {fastest} and by Winograd")
            y, dx, dw = (methods[m] for (methods, _), m in zip(PASSES.values(), fastest, strict=True))
            separate = bilinear(y, dx, dw)
            whole = lambda f: lambda x, w, g: differentiate(lambda x, w: f(x, w, g), x, w)
            both = {"separate": whole(separate), "winograd": whole(auto.by_winograd)}
            means["all three"] = relative(both, "x w", layers, dtype, budget)
            if means["all three"]["winograd"] < 1:
                fastest = ["winograd"] * 3
        shown = (f"{p} " + ", ".join(f"{m} {r:.2f}" for m, r in list(rs.items())[1:]) for p, rs in means.items())
        lines += [f"    # {'; '.join(shown)}", f'    "{name}": Methods({", ".join(map(json.dumps, fastest))}),']
        report[name] = means
    print("\n".join([f'{variable} = {{  # comments: time relative to "xla"', *lines, "}"]), flush=True)
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and ends with JSON; `arguments` as on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.03, help="of a function's turn in a round, at least a call")
    parser.add_argument("--tune", action="store_true", help="measure the table of methods instead")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.sections if name not in SECTIONS]
    if unknown or options.rounds < 1:
        parser.error(f"allowed: sections {', '.join(SECTIONS)}; at least 1 round: got {options}")
    budget = Budget(options.rounds, options.seconds)
    report: dict[str, Any] = {**machine(), "dtype": "float32", "rounds": budget.rounds, "seconds": budget.seconds}
    if options.tune:
        report["FLOAT32"] = tune("FLOAT32", jnp.float32, 128, budget)
        with jax.enable_x64(True):
            report["FLOAT64"] = tune("FLOAT64", jnp.float64, 8, budget)  # a small batch: XLA's convolution is slow
    else:
        for name in options.sections or SECTIONS:
            report[name] = SECTIONS[name](budget)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
