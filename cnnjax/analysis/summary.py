"""What a network is, layer by layer: shapes, windows, parameters, multiply-adds, receptive fields, memory.

The real model is traced for one image, which allocates nothing and takes any size, and its equations are read: every
convolution, product and pooling counts, whoever wrote it, but for those inside a `while` loop or a branch of `cond`,
which are layers that are not looked into. Arrays are taken to be [batch, height, width, channels].

A multiply-add is one product of a convolution or a matrix product, and its addition; as in the papers, normalisation,
pooling, activations and biases count none, and taps in the padding do, but those of transposed convolutions. Products
with constants (interpolation, shifts) count none.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.ad_checkpoint import checkpoint_name

from cnnjax.analysis import reach
from cnnjax.analysis.reach import Seen
from cnnjax.models.layers import accepts
from cnnjax.ops.errors import InputError
from cnnjax.ops.primitives import BY, as_primitives


@dataclasses.dataclass
class Layer:
    """One module without modules inside, or one pooling, sum or concatenation, for one image."""

    name: str
    """Its path in the variables, such as "stage1_block1/conv1"; for what is no module, that of the module it is in and
    what it is."""
    kind: str
    """The class of the module, or "max pool", "average pool", "global average", "add", "concatenate" and the like."""
    output: tuple[int, ...] = ()
    """The shape of its output, without the batch; () for what is not evaluated."""
    window: tuple[int, ...] = ()
    """The spatial shape of its kernel or pooling window; () for none."""
    strides: tuple[int, ...] = ()
    """The distance between neighbouring windows along each axis."""
    padding: tuple[tuple[int, int], ...] = ()
    """What is added before and after, along each axis."""
    dilation: tuple[int, ...] = ()
    """The distance between neighbouring taps of the kernel or pooling window along each axis."""
    groups: int = 1
    """How many groups the channels are in."""
    parameters: int = 0
    """How many numbers training changes."""
    multiply_adds: int = 0
    """How many products with weights, for one image."""
    implementation: str = ""
    """The implementation of convolution, where it is one of `cnnjax.ops.CONV_IMPLEMENTATIONS`."""
    memory: int = 0
    """Bytes of its output, for one image."""
    seen: tuple[Seen, ...] = (None, None)
    """What an output sees of the image's height and width."""
    whole: bool = False
    """Whether an output sees the whole image."""
    inputs: tuple[int, ...] = ()
    """The numbers of the layers whose outputs it takes; -1 is the image."""

    @property
    def receptive_field(self) -> tuple[int, int] | None:
        """Height and width of what an output sees, padding included; None if nothing."""
        height, width = self.seen
        return None if height is None or width is None else (height.size, width.size)

    @property
    def jump(self) -> tuple[float, float] | None:
        """By how many pixels of the image neighbouring outputs are apart, down and across; None where they stand for
        no places."""
        if len(self.output) != 3 or any(seen is None for seen in self.seen):
            return None
        down, across = (float(seen.step[axis]) for axis, seen in enumerate(self.seen, 1) if seen is not None)
        return down, across


@dataclasses.dataclass(frozen=True)
class Summary:
    """A network, traced for one image."""

    model: str
    """What it is called."""
    input: tuple[int, int, int]
    """Height, width and channels of the image."""
    layers: tuple[Layer, ...]
    """In the order of computation."""
    output: tuple[int, ...]
    """The numbers of the layers that the network's result comes from."""
    seen: tuple[Seen, ...]
    """What the result sees of the image's height and width."""

    @property
    def parameters(self) -> int:
        """How many numbers training changes, those of heads that only training evaluates included."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """How many products with weights an evaluation takes, for one image."""
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def memory(self) -> int:
        """Bytes of the outputs of all layers, for one image."""
        return sum(layer.memory for layer in self.layers)

    def at_depth(self, depth: int) -> "Summary":
        """The same with each module at that depth as one layer: 1 for the parts that the network names itself.

        Parameters, multiply-adds and memory are added up; the rest is that of the module's last layer.
        """
        parts: list[Layer] = []
        for layer in self.layers:
            *path, _ = layer.name.split("/")
            name = "/".join(path[:depth])
            inside = len(path) >= depth
            if inside and layer.kind in ASIDE:  # a parameter of the module's own
                same = [i for i, part in enumerate(parts) if part.name == name]
            else:
                same = [len(parts) - 1] if inside and parts and parts[-1].name == name else []
            if same:
                parts[same[0]] = _one(parts[same[0]], layer, name)
            else:
                parts.append(dataclasses.replace(layer, name=name if inside else layer.name, inputs=()))
        return dataclasses.replace(self, layers=tuple(parts), output=())

    @property
    def local(self) -> Layer | None:
        """The last layer whose outputs stand for places: before global pooling and dense layers."""
        return next(
            (layer for layer in reversed(self.layers) if len(layer.output) == 3 and math.prod(layer.output[:2]) > 1),
            None,
        )

    @property
    def receptive_field(self) -> tuple[int, int] | None:
        """That of the last layer whose outputs stand for places."""
        return self.local.receptive_field if self.local else None


ASIDE = ("parameters", "training only")
"""The kinds of layers that are not computed: parameters of a module that has others inside, and of modules that an
evaluation does not call."""


def as_json(summary: Summary) -> dict[str, Any]:
    """A summary in numbers, strings and lists: what `cnnjax summary --json` prints."""
    layers = []
    for layer in summary.layers:
        row = {f.name: getattr(layer, f.name) for f in dataclasses.fields(layer) if f.name != "seen"}
        layers.append({**row, "receptive_field": layer.receptive_field, "jump": layer.jump})
    totals = ("model", "input", "parameters", "multiply_adds", "memory", "receptive_field")
    return {**{name: getattr(summary, name) for name in totals}, "layers": layers}


def _one(first: Layer, last: Layer, name: str) -> Layer:
    """Two layers of a module as one."""
    if last.kind in ASIDE:
        return dataclasses.replace(first, parameters=first.parameters + last.parameters)
    implementations = [it for it in dict.fromkeys((*first.implementation.split(", "), last.implementation)) if it]
    return Layer(
        name,
        "module",
        last.output,
        parameters=first.parameters + last.parameters,
        multiply_adds=first.multiply_adds + last.multiply_adds,
        implementation=", ".join(implementations),
        memory=first.memory + last.memory,
        seen=last.seen,
        whole=last.whole,
    )


def summarize(model: nn.Module, image: Sequence[int], *, name: str = "") -> Summary:
    """Traces a model for one image, as it is evaluated, and reads off what it consists of.

    Args:
      model: maps [batch, height, width, channels] to logits, with a keyword `train`.
      image: [height, width, channels].
      name: what to call it; its class by default.

    Returns:
      The `Summary`. Nothing is allocated and nothing compiled.

    Raises:
      InputError: the image is no shape, or not one for the model.
    """
    height, width, channels = _checked(image)
    x = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    calls: list[_Call] = []
    evaluated = {"train": False} if accepts(model.__call__, "train") else {}
    apply = functools.partial(model.apply, rngs=rngs, **evaluated)
    # Without jit a module is traced each time it is called, and a scan is unrolled.
    with as_primitives(), jax.disable_jit():
        variables = jax.eval_shape(functools.partial(model.init, **evaluated), rngs, x)
        with nn.intercept_methods(functools.partial(_mark, calls, [])):
            traced = jax.make_jaxpr(apply)(variables, x)
    variables = nn.meta.unbox(variables)
    reader = _Reader(calls, (height, width))
    learnt = [_Value(learnt=True)] * len(jax.tree.leaves(variables))
    seen = tuple(reach.of_input(x.shape, axis) for axis in (1, 2))
    outputs = reader.read(traced.jaxpr, [_Value()] * len(traced.consts), [*learnt, _Value(seen, frozenset([-1]))])
    layers = reader.layers + _count(variables.get("params", {}), reader.modules(), calls)
    sources = sorted(frozenset().union(*(value.sources for value in outputs)))
    sees = outputs[0].seen if outputs else (None, None)
    return Summary(name or type(model).__name__, (height, width, channels), tuple(layers), tuple(sources), sees)


def _checked(image: Sequence[int]) -> tuple[int, int, int]:
    try:
        height, width, channels = (operator.index(n) for n in image)
    except (TypeError, ValueError):
        height = width = channels = 0
    if min(height, width, channels) < 1 or max(height, width, channels) >= 2**31:
        received = tuple(image) if isinstance(image, Sequence) and not isinstance(image, str) else image
        raise InputError(f"input: received {received}; allowed: height, width and channels, positive integers")
    return height, width, channels


# ---- Tracing ---------------------------------------------------------------------------------------------------------

_MARK = "cnnjax_call_"


class _Call(NamedTuple):
    """A module's method while the model was traced, called from outside of the module."""

    path: tuple[str, ...]
    """Where its variables are."""
    kind: str
    """Its class."""
    parent: int | None
    """The number of the call it was made in."""


def _mark(calls: list[_Call], within: list[int], call, args, kwargs, context):
    """Puts what a module computes under a scope with the number of the call, and names its outputs so.

    `within` are the numbers of the calls that are going on.
    """
    path = context.module.path
    if context.method_name == "setup" or (within and calls[within[-1]].path == path):
        return call(*args, **kwargs)
    number = len(calls)
    calls.append(_Call(path, type(context.module).__name__, within[-1] if within else None))
    within.append(number)
    try:
        with jax.named_scope(f"{_MARK}{number}"):
            outputs = call(*args, **kwargs)
    finally:
        within.pop()
    return jax.tree.map(lambda y: checkpoint_name(y, f"{_MARK}{number}") if isinstance(y, jax.Array) else y, outputs)


# ---- Reading ---------------------------------------------------------------------------------------------------------


class _Value(NamedTuple):
    """What is known of an array in a traced function."""

    seen: tuple[Seen, ...] = (None, None)
    """What it sees of the image's height and width."""
    sources: frozenset[int] = frozenset()
    """The layers it comes from, with nothing between that is a layer itself; -1 for the image."""
    learnt: bool = False
    """Whether it comes from parameters or statistics."""

    @property
    def constant(self) -> bool:
        """Whether it comes from neither the image nor the parameters."""
        return not self.learnt and not self.sources


# Primitives that are calls: the parameter with the function, to whose inputs theirs go one by one.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
_PRODUCTS = {"conv_general_dilated": "convolution", "dot_general": "product"}
_POOLS = {
    "reduce_window_max": "max pool",
    "reduce_window_min": "min pool",
    "reduce_window_sum": "average pool",
    "reduce_window": "pool",
}
_GLOBAL = {"reduce_sum": "global average", "reduce_max": "global max"}
_MERGES = {"add": "add", "add_any": "add", "mul": "multiply", "concatenate": "concatenate"}
MERGES = {"add": "+", "multiply": "×", "concatenate": "concat"}
"""The kinds of layers that put others together, with what stands for each in a drawing."""
_OPAQUE = {"while": "while loop", "cond": "branches", "scan": "loop"}
# Functions of `cnnjax.ops` that are traced under a scope of their name.
_FUNCTIONS = {
    "cnnjax_local_response_norm": "response norm",
    "cnnjax_adaptive_avg_pool": "adaptive average pool",
    "cnnjax_adaptive_max_pool": "adaptive max pool",
    "cnnjax_lp_pool": "LP pool",
}


class _Reader:
    """Goes through a traced model's equations in order, and makes layers of them."""

    def __init__(self, calls: Sequence[_Call], positions: tuple[int, int]):
        self.layers: list[Layer] = []
        self._calls = calls
        self._positions = positions
        parents = {call.parent for call in calls}
        # The network itself is no layer, even if it calls no module.
        self._leaves = {i for i, call in enumerate(calls) if i not in parents and call.parent is not None}
        self._of_scope: dict[tuple[int | None, str], int] = {}  # the layer that a scope's equations belong to
        self._before: dict[int, tuple[Seen, ...]] = {}  # what a layer's first operand sees

    def read(
        self, jaxpr: Any, consts: Sequence[_Value], inputs: Sequence[_Value], outer: tuple[str, ...] = ()
    ) -> list[_Value]:
        """What is known of the outputs of a function, from what is known of its inputs; `outer` are the scopes it is
        called in."""
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))
        look_up = lambda var: _Value() if hasattr(var, "val") else known[var]
        for eqn in jaxpr.eqns:
            scopes = outer + tuple(getattr(scope, "name", "") for scope in eqn.source_info.name_stack.stack)
            operands = [look_up(var) for var in eqn.invars]
            inside = eqn.params.get(_CALLS.get(eqn.primitive.name, ""))
            if inside is None:
                outputs = self._equation(eqn, operands, scopes)
            else:
                body = getattr(inside, "jaxpr", inside)
                outputs = self.read(body, [_Value()] * len(body.constvars), operands, scopes)
            known |= dict(zip(eqn.outvars, outputs, strict=True))
        return [look_up(var) for var in jaxpr.outvars]

    def _equation(self, eqn: Any, operands: list[_Value], scopes: tuple[str, ...]) -> list[_Value]:
        sources = frozenset().union(*(value.sources for value in operands))
        learnt = any(value.learnt for value in operands)
        if not sources or not eqn.outvars:
            return [_Value(learnt=learnt)] * len(eqn.outvars)
        seen = [
            reach.through(eqn, [value.seen[axis] for value in operands], positions)
            for axis, positions in enumerate(self._positions)
        ]
        outputs = [_Value(pair, sources, learnt) for pair in zip(*seen, strict=True)]
        number = self._layer_of(eqn, operands, scopes)
        if number is None:
            return outputs
        layer = self.layers[number]
        if not layer.inputs:
            self._before[number] = next(value.seen for value in operands if value.sources)
        layer.inputs = tuple(sorted({*layer.inputs, *sources} - {number}))
        if not any(value.constant for value in operands[:2]) or eqn.primitive.name not in _PRODUCTS:
            _measure(layer, eqn, scopes)
        aval = eqn.outvars[0].aval
        layer.output, layer.memory = tuple(aval.shape[1:]), aval.size * aval.dtype.itemsize
        layer.seen = outputs[0].seen
        layer.whole = all(
            s is not None and s.is_everything(n) for s, n in zip(layer.seen, self._positions, strict=True)
        )
        if eqn.primitive.name == "name" and not layer.window and not layer.multiply_adds:  # a module without a kernel
            layer.window, layer.strides = _window_by_reach(self._before[number], layer.seen)
        return [value._replace(sources=frozenset([number])) for value in outputs]

    def modules(self) -> dict[str, Layer]:
        """The layers that are modules, by their paths; of one that is called twice, the first."""
        found: dict[str, Layer] = {}
        for (call, function), number in self._of_scope.items():
            if call is not None and not function:
                found.setdefault("/".join(self._calls[call].path), self.layers[number])
        return found

    def _layer_of(self, eqn: Any, operands: list[_Value], scopes: Sequence[str]) -> int | None:
        """The number of the layer that an equation belongs to, which may be new; None if it is none's."""
        primitive = eqn.primitive.name
        if primitive == "name" and eqn.params["name"].startswith(_MARK):  # the end of a module
            return self._of_scope.get((int(eqn.params["name"].removeprefix(_MARK)), ""))
        marks = [int(scope.removeprefix(_MARK)) for scope in scopes if scope.startswith(_MARK)]
        call = marks[-1] if marks else None
        path = "/".join(self._calls[call].path) if call is not None else ""
        if call in self._leaves:
            return self._in_scope((call, ""), path, self._calls[call].kind)
        function = next((scope for scope in scopes if scope in _FUNCTIONS), None)
        if function is not None:
            return self._in_scope((call, function), _joined(path, _FUNCTIONS[function]), _FUNCTIONS[function], True)
        kind = _kind(eqn, operands)
        return None if kind is None else self._new(_joined(path, kind), kind)

    def _in_scope(self, scope: tuple[int | None, str], name: str, kind: str, last: bool = False) -> int:
        """The layer of a scope, made when its first equation comes; with `last`, only if no layer came since."""
        number = self._of_scope.get(scope)
        if number is None or (last and number != len(self.layers) - 1):
            number = self._of_scope[scope] = self._new(name, kind)
        return number

    def _new(self, name: str, kind: str) -> int:
        self.layers.append(Layer(name, kind))
        return len(self.layers) - 1


def _joined(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _kind(eqn: Any, operands: list[_Value]) -> str | None:
    """What an equation is that makes a layer by itself; None if it makes none."""
    primitive = eqn.primitive.name
    if primitive in _PRODUCTS:
        return None if any(value.constant for value in operands[:2]) else _PRODUCTS[primitive]
    if primitive in _OPAQUE:
        return _OPAQUE[primitive]
    if primitive in _POOLS:
        return _POOLS[primitive] if any(n > 1 for n in eqn.params["window_dimensions"][1:-1]) else None
    if primitive in _GLOBAL:
        shape = eqn.invars[0].aval.shape
        over_space = len(shape) == 4 and {1, 2} <= set(eqn.params["axes"]) and shape[1] * shape[2] > 1
        return _GLOBAL[primitive] if over_space else None
    if primitive in _MERGES:
        return _MERGES[primitive] if len({value.sources for value in operands if value.sources}) > 1 else None
    return None


def _measure(layer: Layer, eqn: Any, scopes: Sequence[str]) -> None:
    """Adds what an equation says of its layer: window, stride, multiply-adds, implementation."""
    primitive, params, output = eqn.primitive.name, eqn.params, eqn.outvars[0].aval.shape
    if primitive == "conv_general_dilated":
        kernel, numbers = eqn.invars[1].aval.shape, params["dimension_numbers"]
        window = tuple(kernel[i] for i in numbers.rhs_spec[2:])
        another = bool(layer.multiply_adds)  # in the same module: then no window stands for all
        layer.window, layer.strides, layer.padding, layer.dilation = (
            ((), (), (), ())
            if another
            else (window, params["window_strides"], params["padding"], params["rhs_dilation"])
        )
        layer.groups = 1 if another else max(params["feature_group_count"], params["batch_group_count"])
        features = output[numbers.out_spec[0]] * output[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]]
        layer.multiply_adds += features * _meetings(eqn.invars[0].aval.shape, kernel, output, params)
        by = (scope.removeprefix(BY) for scope in reversed(scopes) if scope.startswith(BY))
        layer.implementation = next(by, "")
    elif primitive == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        layer.multiply_adds += math.prod(output) * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
    elif primitive in _POOLS:
        spatial = slice(1, -1)
        layer.window, layer.strides = params["window_dimensions"][spatial], params["window_strides"][spatial]
        layer.padding, layer.dilation = params["padding"][spatial], params["window_dilation"][spatial]


def _meetings(shape: Sequence[int], kernel: Sequence[int], output: Sequence[int], params: dict[str, Any]) -> int:
    """How many pairs of a position of the input and a tap of the kernel make the positions of the output.

    Taps in the padding count, but not in a transposed convolution: there those count that meet elements of the input,
    and neither the zeros that `lhs_dilation` puts between them nor those around. One with stride 1 has none between,
    but it may have more outputs than inputs, which no convolution has that is padded to keep its size.
    """
    numbers, count = params["dimension_numbers"], 1
    for i, axis in enumerate(numbers.out_spec[2:]):
        taps, positions = kernel[numbers.rhs_spec[2 + i]], output[axis]
        holes, size = params["lhs_dilation"][i], shape[numbers.lhs_spec[2 + i]]
        if holes == 1 and (positions <= size or params["window_strides"][i] > 1):
            count *= taps * positions
            continue
        starts = np.arange(positions) * params["window_strides"][i] - params["padding"][i][0]
        met = starts[:, None] + np.arange(taps) * params["rhs_dilation"][i]
        inside = (met >= 0) & (met <= (size - 1) * holes)
        count *= int((inside & (met % holes == 0)).sum())
    return count


def _window_by_reach(before: tuple[Seen, ...], after: tuple[Seen, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Window and strides of a layer without a kernel, such as LeNet's subsampling: by how much more its outputs see."""
    window, strides = [], []
    for axis, (old, new) in enumerate(zip(before, after, strict=True), 1):
        if old is None or new is None or len(old.step) != 4 or len(new.step) != 4 or not old.step[axis]:
            return (), ()
        if not new.step[axis]:
            return (), ()
        window.append(int((new.high - new.low - old.high + old.low) / abs(old.step[axis])) + 1)
        strides.append(int(abs(new.step[axis] / old.step[axis])))
    return (tuple(window), tuple(strides)) if max(*window, *strides) > 1 else ((), ())


def _count(params: dict[str, Any], modules: dict[str, Layer], calls: Sequence[_Call]) -> list[Layer]:
    """Gives each module its parameters; those that are no layer's make layers of their own, which are returned."""
    called = {call.path for call in calls}
    rest: dict[str, Layer] = {}
    for path, leaf in flatten_dict(params).items():
        names = ["/".join(path[:n]) for n in range(len(path) - 1, 0, -1)]
        layer = next((modules[name] for name in names if name in modules), None)
        if layer is None:
            own = path[:-1] in called  # by a module with others inside
            name = "/".join(path if own else path[:1])
            layer = rest.setdefault(name, Layer(name, "parameters" if own else "training only"))
        layer.parameters += sum(array.size for array in jax.tree.leaves(leaf))
    return list(rest.values())
