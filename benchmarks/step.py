"""Milliseconds per training step: cnnjax against the same networks in plain Flax and in PyTorch.

    python benchmarks/step.py [--networks NAME ...] [--rounds 7] [--seconds 1] [--no-torch] [--batch-size N] [--fresh]
        [--precision float32|tf32|bfloat16] [--channels-last]
    python benchmarks/step.py --profile NETWORK

Every contestant trains the same network, from the same parameters (this is checked: equal shapes, equal logits), on
one fixed batch of float images that is already on the device: forward, cross entropy, backward, SGD with momentum.
cnnjax and plain Flax share the step around the network, so that only the network and its operations differ. PyTorch
runs as its users do, eager and compiled, in both memory layouts; where torch isn't installed, the rest runs without.
On CPU all compute in float32. On a GPU they compute in bfloat16 with float32 parameters, in larger batches, or as
`--precision` says: in float32, or with float32 arrays whose products are rounded to TF32. `--channels-last` leaves out
PyTorch's other layout.

Rounds are interleaved in one process (`timing.py`); what counts is the ratio of each round. At the end come the
geometric means over the networks, and everything as one line of JSON. Progress goes to stderr. The first run is minutes
longer than the next: PyTorch's compiler keeps what it compiled.

Freed memory is kept for all contestants, as cnnjax's commands do for themselves (`cnnjax.memory`); with `--fresh` the C
library does what it does by default, and gives large blocks back to the system.

`--profile` shows instead where the time of cnnjax's step goes, by XLA's operations, and what the arithmetic of its
convolutions and dense layers would take at the speed of a large matrix product.
"""

# ruff: noqa: E402
import argparse
import collections
import contextlib
import functools
import glob
import gzip
import importlib.metadata
import json
import math
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cnnjax.memory import keep_freed_memory

KEPT = "--fresh" not in sys.argv and keep_freed_memory()  # before NumPy is imported, and starts its threads

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain_flax
import timing
from flax.traverse_util import flatten_dict, unflatten_dict

from cnnjax import models
from cnnjax.doctor.machine import processor
from cnnjax.training.setup import versions

LEARNING_RATE, MOMENTUM = 0.01, 0.9
CLASSES = 10

Train = Callable[[int], float]
"""Takes that many steps, waits until they are done and returns the last loss."""


class Network(NamedTuple):
    """What a network is called by each contestant, and the batches it is timed on."""

    cnnjax: Callable[..., nn.Module]
    flax: Callable[..., nn.Module]
    torch: str  # the name in plain_torch
    image: tuple[int, int, int]  # height, width, channels
    cpu_batch: int = 128
    gpu_batch: int = 1024


def _cnnjax(name: str, **fields: Any) -> Callable[..., nn.Module]:
    return functools.partial(models.create, name, **fields)


NETWORKS = {
    "lenet5_modern": Network(_cnnjax("lenet5_modern"), plain_flax.LeNet5Modern, "LeNet5Modern", (28, 28, 1)),
    "convnetjs_cifar10": Network(_cnnjax("convnetjs_cifar10"), plain_flax.ConvNetJS, "ConvNetJS", (32, 32, 3)),
    "geron_fashion": Network(_cnnjax("geron_fashion"), plain_flax.GeronFashion, "GeronFashion", (28, 28, 1)),
    "cifar_resnet20": Network(_cnnjax("cifar_resnet20"), plain_flax.cifar_resnet20, "cifar_resnet20", (32, 32, 3)),
    "resnet18": Network(
        _cnnjax("resnet18", stem="cifar", num_classes=CLASSES), plain_flax.resnet18, "resnet18", (32, 32, 3), 64, 512
    ),
}

# The same parameters for all.


def in_order(variables: Mapping[str, Any], collection: str) -> list[np.ndarray]:
    """The arrays of a collection in the order of creation, which `init` keeps where it is not jitted."""
    return [np.asarray(value) for value in flatten_dict(variables.get(collection, {})).values()]


def transplant(source: Mapping[str, Any], target: Mapping[str, Any]) -> dict[str, Any]:
    """`source`'s arrays under `target`'s names, matched by the order of creation.

    Raises:
      ValueError: there are more in one than in the other, or two that meet have different shapes.
    """
    result = {}
    for collection in target:
        values, names = in_order(source, collection), flatten_dict(target[collection])
        shapes, expected = [v.shape for v in values], [v.shape for v in names.values()]
        if shapes != expected:
            raise ValueError(f"{collection}: not the same network: {shapes} and {expected}")
        result[collection] = unflatten_dict(dict(zip(names, map(jnp.asarray, values), strict=True)))
    return result


def check_logits(name: str, logits: Any, expected: np.ndarray) -> None:
    """Refuses a contestant that computes something else than cnnjax's network does."""
    error = np.abs(np.asarray(logits) - expected).max() / np.abs(expected).max()
    if not error < 1e-4:
        raise ValueError(f"{name} is not the same network: its logits differ by {error:.1e} of the largest")


# The contestants.


class State(NamedTuple):
    """What a step changes."""

    params: Any
    batch_stats: Any
    opt_state: Any
    step: jax.Array


def initial_state(variables: Mapping[str, Any]) -> State:
    """The state before the first step; its arrays are copies, since steps donate theirs."""
    params, batch_stats = jax.tree.map(jnp.copy, (variables["params"], variables.get("batch_stats", {})))
    return State(params, batch_stats, optax.sgd(LEARNING_RATE, MOMENTUM).init(params), jnp.zeros((), jnp.int32))


def make_step(module: nn.Module) -> Any:
    """The jitted step(state, images, labels) -> (state, loss), which donates the state."""
    optimizer = optax.sgd(LEARNING_RATE, MOMENTUM)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: State, images: jax.Array, labels: jax.Array) -> tuple[State, jax.Array]:
        dropout = jax.random.fold_in(jax.random.key(1), state.step)

        def objective(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updated = module.apply(
                variables, images, train=True, rngs={"dropout": dropout}, mutable=["batch_stats"]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updated.get("batch_stats", {})

        (loss, batch_stats), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), batch_stats, opt_state, state.step + 1), loss

    return step


def jax_contestant(module: nn.Module, variables: Mapping[str, Any], images: jax.Array, labels: jax.Array) -> Train:
    """Training of a Flax module from these variables."""
    step = make_step(module)
    state = initial_state(variables)

    def train(steps: int) -> float:
        nonlocal state
        loss = jnp.nan
        for _ in range(steps):
            state, loss = step(state, images, labels)
        jax.block_until_ready(state)
        return float(loss)

    return train


TORCH = {  # what a contestant is called: (whether it is compiled, whether its channels come last in memory)
    "torch eager NCHW": (False, False),
    "torch eager channels_last": (False, True),
    "torch compiled NCHW": (True, False),
    "torch compiled channels_last": (True, True),
}


def torch_contestant(
    module: Any, images: np.ndarray, labels: np.ndarray, precision: str, compiled: bool, channels_last: bool
) -> Train:
    """Training of a `torch.nn.Module`, on a GPU if JAX uses one; bfloat16 is by autocast.

    Args:
      module: the network, with its initial parameters; training changes them.
      images: float32 [batch, height, width, channels].
      labels: integer [batch].
      precision: one of `PRECISIONS`.
      compiled: whether `torch.compile` compiles the network.
      channels_last: whether arrays lie in memory as [batch, height, width, channels].
    """
    import torch

    device = "cuda" if on_gpu() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    module = module.to(device=device, memory_format=memory_format).train()
    x = torch.from_numpy(images.transpose(0, 3, 1, 2)).to(device).contiguous(memory_format=memory_format)
    y = torch.from_numpy(labels.astype(np.int64)).to(device)
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    # All shapes are fixed. Without `dynamic` the second layout of a network would be compiled for any strides.
    network = torch.compile(module, dynamic=False) if compiled else module

    def train(steps: int) -> float:
        loss = torch.tensor(torch.nan)
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                loss = torch.nn.functional.cross_entropy(network(x), y)
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    return train


def on_gpu() -> bool:
    """Whether JAX computes on a GPU."""
    return jax.default_backend() == "gpu"


def torch_missing(wanted: bool) -> str | None:
    """Why PyTorch doesn't take part, or None if it does."""
    if not wanted:
        return "left out"
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return "not installed"
    return "not installed for the GPU" if on_gpu() and not torch.cuda.is_available() else None


PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default"}
"""What is computed in, and JAX's name for how exact products of float32 arrays then are."""


def contestants(
    network: Network, images: np.ndarray, labels: np.ndarray, precision: str, torches: Sequence[str]
) -> dict[str, Train]:
    """All contestants for a network, checked to start as the same function.

    Args:
      network: one of `NETWORKS`.
      images: float32 [batch, height, width, channels].
      labels: int32 [batch].
      precision: one of `PRECISIONS`.
      torches: those of `TORCH` that take part.

    Raises:
      ValueError: one of them is another network.
    """
    dtype = jnp.bfloat16 if precision == "bfloat16" else None
    few = images[:4]
    variables = network.cnnjax().init(jax.random.key(0), few)
    plain = transplant(variables, network.flax().init(jax.random.key(0), few))
    with jax.default_matmul_precision("highest"):
        expected = np.asarray(jax.jit(network.cnnjax().apply)(variables, few))
        check_logits("plain Flax", jax.jit(network.flax().apply)(plain, few), expected)
    batch = jax.device_put((images, labels))
    result = {
        "cnnjax": jax_contestant(network.cnnjax(dtype=dtype), variables, *batch),
        "plain Flax": jax_contestant(network.flax(dtype=dtype), plain, *batch),
    }
    if torches:
        import plain_torch
        import torch

        for name in torches:
            compiled, channels_last = TORCH[name]
            module = getattr(plain_torch, network.torch)()
            plain_torch.copy_parameters(module, in_order(variables, "params"))
            with torch.no_grad():
                check_logits(name, module.eval()(torch.from_numpy(few.transpose(0, 3, 1, 2).copy())), expected)
            result[name] = torch_contestant(module, images, labels, precision, compiled, channels_last)
    return result


# Timing.


def say(text: str) -> None:
    """Progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


def synthetic_batch(network: Network, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of normal noise, float32 [size, height, width, channels], and labels, int32 [size]."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((size, *network.image), np.float32)
    return images, rng.integers(0, CLASSES, size).astype(np.int32)


def timed_calls(
    racers: Mapping[str, Train], seconds: float
) -> tuple[dict[str, Callable[[], None]], dict[str, int], dict[str, str]]:
    """What to time: each contestant taking as many steps as make about four calls fill a turn of `seconds`.

    Returns:
      By name: the functions, the steps that a call of each takes, and for those that can't run why not, which only a
      compiled one may (`torch.compile` needs a C++ compiler).
    """
    functions: dict[str, Callable[[], None]] = {}
    steps: dict[str, int] = {}
    failed: dict[str, str] = {}

    def call(name: str) -> None:
        loss = racers[name](steps[name])
        if not math.isfinite(loss):
            raise FloatingPointError(f"{name}: the loss became {loss}")

    for name, train in racers.items():
        started = time.perf_counter()
        try:
            train(1)
        except Exception as error:
            if "compiled" not in name:
                raise
            failed[name] = f"failed: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
            say(f"  {name}: {error}")
            continue
        compiled = time.perf_counter()
        train(1)
        once = time.perf_counter() - compiled
        say(f"  {name}: first step {compiled - started:.1f} s, second {once:.3f} s")
        steps[name] = max(1, round(seconds / 4 / once))
        functions[name] = functools.partial(call, name)
    return functions, steps, failed


def measure(
    name: str,
    batch_size: int | None,
    rounds: int,
    seconds: float,
    missing: str | None,
    precision: str,
    torches: Sequence[str],
) -> dict[str, Any]:
    """Times a network's contestants and prints what came of it; what goes into the JSON."""
    network = NETWORKS[name]
    batch_size = batch_size or (network.gpu_batch if on_gpu() else network.cpu_batch)
    say(f"{name}: checking and compiling")
    images, labels = synthetic_batch(network, batch_size)
    racers = contestants(network, images, labels, precision, torches if missing is None else ())
    functions, steps, absent = timed_calls(racers, seconds)
    if missing is not None:
        absent = dict.fromkeys(torches, missing)

    def progress(number: int, contestant: str, passed: float) -> None:
        say(f"  round {number + 1} of {rounds}, {contestant}: {1e3 * passed / steps[contestant]:.2f} ms a step")

    parameters = models.count_parameters(jax.eval_shape(network.flax().init, jax.random.key(0), images[:1]))
    times = timing.interleave(functions, rounds, seconds, progress)
    times = {contestant: [t / steps[contestant] for t in values] for contestant, values in times.items()}

    print(f"{name}, {parameters:,} parameters, batch {batch_size}, rounds: {rounds}")
    for contestant in ("cnnjax", "plain Flax", *torches):
        if contestant in absent:
            print(f"  {contestant:30} {absent[contestant]}")
        else:
            ms = [1e3 * t for t in times[contestant]]
            print(f"  {contestant:30} {statistics.median(ms):9.2f} ms a step ({min(ms):.2f} to {max(ms):.2f})")
    ratios = {"plain Flax": timing.ratio(times["plain Flax"], times["cnnjax"])}
    of_torch = [contestant for contestant in torches if contestant in times]
    best = min(of_torch, key=lambda contestant: statistics.median(times[contestant]), default=None)
    if best is not None:
        ratios["best torch"] = timing.ratio(times[best], times["cnnjax"])
    for peer, ratio in ratios.items():
        print(f"  {peer + ' / cnnjax':30} {ratio}", flush=True)
    return {
        "batch_size": batch_size,
        "parameters": parameters,
        "seconds_per_step": times,
        "absent": absent,
        "best_torch": best,
        "ratios": {peer: ratio._asdict() for peer, ratio in ratios.items()},
    }


def machine() -> dict[str, Any]:
    """What the numbers were measured on, and with."""
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = None
    return {
        "versions": {**versions(), "torch": torch},
        "device": jax.devices()[0].device_kind,
        "cpu": processor(),
        "cores": os.cpu_count(),
        "peak_device_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
        "freed_memory_kept": KEPT,
    }


# The profile.


class Operation(NamedTuple):
    """An operation of a compiled program, as its text has it."""

    shape: str
    """Of what it computes, such as "f32[128,32,32,16]"."""
    source: str
    """The call that it came from, such as "jvp(ResNet)/Conv_0/conv_general_dilated"; empty where XLA keeps none."""


def operations(program: str) -> dict[str, Operation]:
    """The operations of a compiled program (`compiled.as_text()`) by name."""
    result: dict[str, Operation] = {}
    sources: dict[str, str] = {}  # of computations: that of their last operation
    computation = ""
    for line in program.splitlines():
        if line and not line[0].isspace():
            computation = line.removeprefix("ENTRY ").split(" ")[0].lstrip("%")
        found = re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) [\w-]+\(", line)
        if not found:
            continue
        source = re.search(r'op_name="([^"]*)"', line)
        called = re.search(r"calls=%?([\w.-]+)", line)
        text = source[1] if source else sources.get(called[1], "") if called else ""
        text = re.sub(r"^jit\(\w*\)/", "", text)
        sources[computation] = text or sources.get(computation, "")
        result[found[1]] = Operation(re.sub(r"\{[^}]*\}", "", found[2]), text)
    return result


def layer_of(source: str) -> tuple[str, str]:
    """The layer that an operation's source names, such as "stage1_block1/conv1", and "forward" or "backward"."""
    within = dict.fromkeys(part for part in source.split("/")[:-1] if "(" not in part)  # some name it twice
    backward = source.startswith("transpose(")
    return "/".join(within) or "between layers", "backward" if backward else "forward"


def own_times(events: Iterable[Mapping[str, Any]]) -> collections.Counter[str]:
    """Microseconds by operation, those of the operations that it runs within itself (the body of a loop) left out.

    Args:
      events: complete events ("ph": "X") of a Chrome trace; those of XLA's operations say `hlo_op` in their `args`.
    """
    own: collections.Counter[str] = collections.Counter()
    running: dict[Any, list[tuple[float, str]]] = collections.defaultdict(
        list
    )  # by thread: (end, name), outermost first
    ours = [e for e in events if e.get("ph") == "X" and "hlo_op" in e.get("args", {})]
    for event in sorted(ours, key=lambda e: (e["ts"], -e["dur"])):
        name, stack = event["args"]["hlo_op"], running[event["pid"], event["tid"]]
        while stack and stack[-1][0] <= event["ts"]:
            stack.pop()
        if stack:
            own[stack[-1][1]] -= event["dur"]
        own[name] += event["dur"]
        stack.append((event["ts"] + event["dur"], name))
    return own


def arithmetic(module: nn.Module, images: jax.Array) -> int:
    """Floating-point operations of a training step in convolutions and dense layers, by their definition.

    A layer multiplies and adds once for every entry of its kernel at every position of its output (padding included),
    and as often again for the gradient of its kernel and for that of its input, which the first layer has no need of.
    """
    products: list[int] = []

    def count(call, arguments, keywords, context):
        y = call(*arguments, **keywords)
        if context.method_name == "__call__" and isinstance(context.module, nn.Conv | nn.Dense):
            kernel = context.module.get_variable("params", "kernel")
            products.append(y.size // y.shape[-1] * kernel.size)
        return y

    with nn.intercept_methods(count):
        jax.eval_shape(module.init, jax.random.key(0), images)
    return 2 * (3 * sum(products) - products[0])


def matmul_rate(size: int, dtype: Any) -> float:
    """Floating-point operations per second of a square matrix product, the best of ten."""
    product = jax.jit(jnp.dot)
    a = jnp.ones((size, size), dtype)
    product(a, a).block_until_ready()
    best = math.inf
    for _ in range(10):
        started = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def profile(name: str, batch_size: int | None, steps: int = 5, top: int = 25) -> None:
    """Prints where the time of cnnjax's step goes, and the limit that arithmetic sets."""
    network = NETWORKS[name]
    dtype = jnp.bfloat16 if on_gpu() else None
    module = network.cnnjax(dtype=dtype)
    batch_size = batch_size or (network.gpu_batch if on_gpu() else network.cpu_batch)
    images, labels = jax.device_put(synthetic_batch(network, batch_size))
    state = initial_state(module.init(jax.random.key(0), images[:4]))
    step = make_step(module).lower(state, images, labels).compile()

    def take(state: State) -> State:
        for _ in range(steps):
            state, _ = step(state, images, labels)
        return jax.block_until_ready(state)

    state = take(state)
    rounds = []
    for _ in range(5):
        started = time.perf_counter()
        state = take(state)
        rounds.append((time.perf_counter() - started) / steps)
    wall = statistics.median(rounds)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            take(state)
        (trace,) = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)
        with gzip.open(trace, "rt") as file:
            events = json.load(file)["traceEvents"]
    own = {op: microseconds / 1e3 / steps for op, microseconds in own_times(events).items()}
    if not own:
        raise SystemExit("the profiler recorded no operations on this backend")

    about = operations(step.as_text())
    total = sum(own.values())
    print(f"{name}, batch {batch_size}: {1e3 * wall:.2f} ms a step without the profiler")
    print(f"operations under the profiler: {total:.2f} ms a step, summed over threads")
    kinds: collections.Counter[str] = collections.Counter()
    numbers: collections.Counter[str] = collections.Counter()
    for op, ms in own.items():
        kind = re.sub(r"[.\d]+$", "", op)
        kinds[kind] += ms  # ty: ignore[invalid-assignment]
        numbers[kind] += 1
    print("\n  ms a step  share  operations  kind")
    for kind, ms in kinds.most_common(top):
        print(f"  {ms:9.3f}  {ms / total:5.1%}  {numbers[kind]:10}  {kind}")
    print("\n  ms a step  share  operation, its result and the call it came from")
    for op, ms in sorted(own.items(), key=lambda item: -item[1])[:top]:
        shape, source = about.get(op, Operation("", ""))
        print(f"  {ms:9.3f}  {ms / total:5.1%}  {op}  {shape}  {source}")

    layers: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for op, ms in own.items():
        layer, direction = layer_of(about[op].source) if op in about and about[op].source else ("optimizer, copies", "")
        layers[layer][direction] += ms  # ty: ignore[invalid-assignment]
    print("\n  ms a step  share    forward   backward  layer")
    for layer, both in sorted(layers.items(), key=lambda item: -item[1].total())[:top]:
        ms = both.total()
        print(f"  {ms:9.3f}  {ms / total:5.1%}  {both['forward']:9.3f}  {both['backward']:9.3f}  {layer}")

    needed = arithmetic(network.flax(), images)
    size = 8192 if on_gpu() else 2048
    rate = matmul_rate(size, dtype or jnp.float32)
    print(
        f"\nconvolutions and dense layers: {needed / 1e9:.2f} GFLOP a step; at the {rate / 1e9:.0f} GFLOP/s of a"
        f" {size} x {size} x {size} matrix product {1e3 * needed / rate:.2f} ms, {needed / rate / wall:.0%} of the step"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Times the networks, or profiles one; `arguments` as on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a contestant's turn in a round")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--batch-size", type=int, help="128, and 64 of resnet18; 1024 and 512 on a GPU")
    parser.add_argument("--fresh", action="store_true", help="leave freed memory to the C library")
    parser.add_argument("--precision", choices=PRECISIONS, help="float32; bfloat16 on a GPU")
    parser.add_argument("--channels-last", action="store_true", help="leave out PyTorch's other layout")
    parser.add_argument("--profile", choices=NETWORKS, metavar="NAME", help="where the time of cnnjax's step goes")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or (options.batch_size is not None and options.batch_size < 1):
        parser.error("--rounds and --batch-size: allowed: at least 1")
    if options.profile:
        profile(options.profile, options.batch_size)
        return
    missing = torch_missing(not options.no_torch)
    precision = options.precision or ("bfloat16" if on_gpu() else "float32")
    torches = [name for name, (_, last) in TORCH.items() if last or not options.channels_last]
    report: dict[str, Any] = {"precision": precision}
    if missing is None:
        import torch

        report["torch_threads"] = torch.get_num_threads()
    # On a CPU every product is exact, and cnnjax takes "highest" for a wish to do without Winograd's algorithm.
    with jax.default_matmul_precision(PRECISIONS[precision]) if on_gpu() else contextlib.nullcontext():
        measured = {
            name: measure(name, options.batch_size, options.rounds, options.seconds, missing, precision, torches)
            for name in options.networks
        }
    report = machine() | report
    if report["peak_device_bytes"]:
        print(f"largest use of the device's memory by JAX: {report['peak_device_bytes'] / 2**20:,.0f} MiB")
    report["networks"] = measured
    report["geometric_means"] = {}
    for peer in ("plain Flax", "best torch"):
        ratios = [m["ratios"][peer]["median"] for m in measured.values() if peer in m["ratios"]]
        if len(ratios) == len(measured):
            report["geometric_means"][peer] = mean = statistics.geometric_mean(ratios)
            print(f"{peer} / cnnjax, geometric mean over {len(ratios)} networks: {mean:.2f}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
