"""Which part of the input an array sees: intervals carried through a traced function, one equation at a time.

Along one axis of the input, the element with index i = (i_1, ..., i_n) of an array sees positions from a.i + low to
a.i + high. For a convolution of window k, stride s and left padding p along the axis with coefficient a, the output's
coefficient is a s, low becomes low - a p, and high becomes high + a (k - 1 - p): the recurrence for receptive fields
of A. Araujo, W. Norris, J. Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill, 2019, for every
equation that a network is traced to, and with any way there from input to output. What an equation sees is never less
than what it depends on; it is more where this form can't say it: the union of what neighbours see, or everything.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

Shape = Sequence[int]


class Reach(NamedTuple):
    """What the elements of an array see along one axis of the input."""

    step: tuple[Fraction, ...]
    """By how many positions that moves from one element to the next, along each axis of the array."""
    low: Fraction
    """The first position that element 0 sees; may lie in the padding."""
    high: Fraction
    """The last one."""

    @property
    def size(self) -> int:
        """How many positions an element sees, those in the padding included: the most, where elements differ."""
        # Behind a transposed convolution an element may be half a position from the next.
        phases = math.lcm(*(step.denominator for step in self.step))
        ends = ((self.low + Fraction(i, phases), self.high + Fraction(i, phases)) for i in range(phases))
        return max(math.floor(high) - math.ceil(low) + 1 for low, high in ends)

    def interval(self, index: Sequence[int], positions: int) -> range:
        """The positions that an element sees, of an input with so many."""
        start = sum((step * i for step, i in zip(self.step, index, strict=True)), Fraction(0))
        first, last = math.ceil(start + self.low), math.floor(start + self.high)
        return range(max(first, 0), min(last + 1, positions))

    def is_everything(self, positions: int) -> bool:
        """Whether each element sees all of an input with so many positions."""
        return not any(self.step) and self.low <= 0 and self.high >= positions - 1


Seen = Reach | None
"""None for what sees nothing of the input, such as the parameters."""


def of_input(shape: Shape, axis: int) -> Reach:
    """Of the input itself, along one of its axes: each element sees its own position."""
    return _tidy(shape, [Fraction(i == axis) for i in range(len(shape))], Fraction(0), Fraction(0))


def everything(shape: Shape, positions: int) -> Reach:
    """Of an array each element of which may see the whole input."""
    return Reach((Fraction(0),) * len(shape), Fraction(0), Fraction(positions - 1))


def through(eqn: Any, operands: Sequence[Seen], positions: int) -> list[Seen]:
    """What the outputs of an equation see.

    Args:
      eqn: an equation of a jaxpr, without a jaxpr of its own.
      operands: what each of its inputs sees.
      positions: how many there are along the axis of the input.
    """
    if all(seen is None for seen in operands):
        return [None] * len(eqn.outvars)
    name, shapes = eqn.primitive.name, [tuple(var.aval.shape) for var in eqn.invars]
    outs = [tuple(var.aval.shape) for var in eqn.outvars]
    if name in _ELEMENTWISE:
        return [_together(operands, out, positions) for out in outs]
    rule = _RULES.get(name)
    found = None if rule is None else rule(eqn.params, list(zip(operands, shapes, strict=True)), outs, positions)
    return [everything(out, positions) for out in outs] if found is None else found


# ---- Pieces of rules -------------------------------------------------------------------------------------------------


def _tidy(shape: Shape, step: Sequence[Fraction], low: Fraction, high: Fraction) -> Reach:
    """Along an axis of one element there is no next one."""
    return Reach(tuple(s if n > 1 else Fraction(0) for n, s in zip(shape, step, strict=True)), low, high)


def _over(reach: Reach, step: Fraction, first: int, last: int) -> Reach:
    """What is seen by all of the elements first to last along an axis that moves by `step`; the axis itself stays."""
    ends = step * first, step * last
    return reach._replace(low=reach.low + min(ends), high=reach.high + max(ends))


def _without(reach: Reach, shape: Shape, axes: Sequence[int]) -> Reach:
    """What a reduction over axes sees; they are gone."""
    for axis in axes:
        reach = _over(reach, reach.step[axis], 0, max(0, shape[axis] - 1))
    return reach._replace(step=tuple(s for i, s in enumerate(reach.step) if i not in axes))


def _together(seen: Sequence[Seen], shape: Shape, positions: int) -> Seen:
    """What elements see that are made of those of several arrays, of the same shape or scalars."""
    found = [
        reach if len(reach.step) == len(shape) else reach._replace(step=(Fraction(0),) * len(shape))
        for reach in seen
        if reach is not None
    ]
    if not found:
        return None
    if len({reach.step for reach in found}) > 1:
        return everything(shape, positions)
    return Reach(found[0].step, min(r.low for r in found), max(r.high for r in found))


def _window(reach: Reach, axis: int, size: int, stride: int, low: int, base: int, dilation: int) -> Reach:
    """What windows see along an axis: `low` elements of padding, `base` - 1 holes between elements, `dilation` - 1
    between taps."""
    step = reach.step[axis] / base
    reach = _over(reach, step, -low, -low + max(0, size - 1) * dilation)
    return reach._replace(step=(*reach.step[:axis], step * stride, *reach.step[axis + 1 :]))


# ---- Rules -----------------------------------------------------------------------------------------------------------
# Each takes the equation's parameters, what its operands see with their shapes, the shapes of its outputs and the
# number of positions; None stands for everything.

Operands = list[tuple[Seen, tuple[int, ...]]]


def _alone(change: Callable[[dict, Reach, tuple[int, ...], tuple[int, ...]], Reach]) -> Callable[..., Any]:
    """The rule of a primitive with one output, of whose operands the first alone may see the input."""

    def rule(params: dict, operands: Operands, outs: list[tuple[int, ...]], positions: int) -> list[Seen] | None:
        (reach, shape), *rest = operands
        if len(outs) > 1 or reach is None or any(seen is not None for seen, _ in rest):
            return None
        changed = change(params, reach, shape, outs[0])
        return [_tidy(outs[0], *changed)]

    return rule


def _conv(params: dict, operands: Operands, outs: list[tuple[int, ...]], positions: int) -> list[Seen] | None:
    (reach, shape), (of_kernel, kernel) = operands
    if reach is None or of_kernel is not None:  # kernels that the input makes
        return None
    numbers = params["dimension_numbers"]
    batch, feature, *space = numbers.lhs_spec
    summed = [feature] if params["batch_group_count"] == 1 else [feature, batch]
    for axis in summed:
        reach = _over(reach, reach.step[axis], 0, max(0, shape[axis] - 1))
    step = [Fraction(0)] * len(outs[0])
    step[numbers.out_spec[0]] = Fraction(0) if batch in summed else reach.step[batch]
    for axis, tap, out, stride, (low, _), base, dilation in zip(
        space,
        numbers.rhs_spec[2:],
        numbers.out_spec[2:],
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        params["rhs_dilation"],
        strict=True,
    ):
        reach = _window(reach, axis, kernel[tap], stride, low, base, dilation)
        step[out] = reach.step[axis]
    return [_tidy(outs[0], step, reach.low, reach.high)]


def _reduce_window(params: dict, reach: Reach, shape: tuple[int, ...], out: tuple[int, ...]) -> Reach:
    for axis, (size, stride, (low, _), base, dilation) in enumerate(
        zip(
            params["window_dimensions"],
            params["window_strides"],
            params["padding"],
            params["base_dilation"],
            params["window_dilation"],
            strict=True,
        )
    ):
        reach = _window(reach, axis, size, stride, low, base, dilation)
    return reach


def _dot(params: dict, operands: Operands, outs: list[tuple[int, ...]], positions: int) -> list[Seen]:
    contracted, batched = params["dimension_numbers"]
    found = []
    free = [
        [i for i in range(len(shape)) if i not in (*contracted[side], *batched[side])]
        for side, (_, shape) in enumerate(operands)
    ]
    for side, (reach, shape) in enumerate(operands):
        if reach is not None:
            for axis in contracted[side]:
                reach = _over(reach, reach.step[axis], 0, max(0, shape[axis] - 1))
            step = [reach.step[i] for i in batched[side]]
            for other in (0, 1):
                step += [reach.step[i] if other == side else Fraction(0) for i in free[other]]
            found.append(_tidy(outs[0], step, reach.low, reach.high))
    return [_together(found, outs[0], positions)]


def _broadcast(params: dict, reach: Reach, shape: tuple[int, ...], out: tuple[int, ...]) -> Reach:
    step = [Fraction(0)] * len(out)
    for axis, i in enumerate(params["broadcast_dimensions"]):
        step[i] = reach.step[axis] if shape[axis] == out[i] else Fraction(0)
    return reach._replace(step=tuple(step))


def _reshape(params: dict, reach: Reach, shape: tuple[int, ...], out: tuple[int, ...]) -> Reach:
    """Axes are split and merged within groups of the same number of elements."""
    step = [Fraction(0)] * len(out)
    if 0 in shape:  # no element sees anything
        return reach._replace(step=tuple(step))
    for before, after in _groups(shape, out):
        steps = [(shape[i], reach.step[i]) for i in before if shape[i] > 1]
        # In row-major order the next element is as far away as the last axis says, where the others agree.
        nexts = itertools.pairwise(steps)
        if all(outer == inner * n for (_, outer), (n, inner) in nexts):
            stride = steps[-1][1] if steps else Fraction(0)
            for i in reversed(after):
                step[i] = stride
                stride *= out[i]
        else:
            for i in before:
                reach = _over(reach, reach.step[i], 0, shape[i] - 1)
    return reach._replace(step=tuple(step))


def _groups(shape: Shape, out: Shape) -> list[tuple[list[int], list[int]]]:
    """The smallest groups of neighbouring axes with as many elements before a reshape as after."""
    groups, i, j = [], 0, 0
    while i < len(shape) or j < len(out):
        before, after, m, n = [], [], 1, 1
        while (not before and not after) or m != n:
            if i < len(shape) and (m <= n or j == len(out)):
                before.append(i)
                m *= shape[i]
                i += 1
            elif j < len(out):
                after.append(j)
                n *= out[j]
                j += 1
        groups.append((before, after))
    return groups


def _transpose(params: dict, reach: Reach, shape: tuple[int, ...], out: tuple[int, ...]) -> Reach:
    return reach._replace(step=tuple(reach.step[i] for i in params["permutation"]))


def _squeeze(params: dict, reach: Reach, shape: tuple[int, ...], out: tuple[int, ...]) -> Reach:
    return reach._replace(step=tuple(s for i, s in enumerate(reach.step) if i not in params["dimensions"]))


def _slice(params: dict, reach: Reach, shape: tuple[int, ...], out: tuple[int, ...]) -> Reach:
    strides = params["strides"] or (1,) * len(shape)
    for axis, (start, stride) in enumerate(zip(params["start_indices"], strides, strict=True)):
        reach = _window(reach, axis, 1, stride, -start, 1, 1)
    return reach


def _pad(params: dict, reach: Reach, shape: tuple[int, ...], out: tuple[int, ...]) -> Reach:
    for axis, (low, _, interior) in enumerate(params["padding_config"]):
        reach = _window(reach, axis, 1, 1, low, interior + 1, 1)
    return reach


def _rev(params: dict, reach: Reach, shape: tuple[int, ...], out: tuple[int, ...]) -> Reach:
    for axis in params["dimensions"]:
        reach = _over(reach, reach.step[axis], shape[axis] - 1, shape[axis] - 1)
        reach = reach._replace(step=tuple(-s if i == axis else s for i, s in enumerate(reach.step)))
    return reach


def _reduce(params: dict, reach: Reach, shape: tuple[int, ...], out: tuple[int, ...]) -> Reach:
    return _without(reach, shape, params["axes"])


def _concatenate(params: dict, operands: Operands, outs: list[tuple[int, ...]], positions: int) -> list[Seen]:
    axis, offset, found = params["dimension"], 0, []
    for reach, shape in operands:
        if reach is not None:
            found.append(_over(reach, reach.step[axis], -offset, -offset))
        offset += shape[axis]
    return [_together(found, outs[0], positions)]


def _split(params: dict, operands: Operands, outs: list[tuple[int, ...]], positions: int) -> list[Seen] | None:
    ((reach, _),) = operands
    if reach is None:
        return None
    axis, offset, found = params["axis"], 0, []
    for out in outs:
        found.append(_tidy(out, *_over(reach, reach.step[axis], offset, offset)))
        offset += out[axis]
    return found


def _stack(params: dict, operands: Operands, outs: list[tuple[int, ...]], positions: int) -> list[Seen]:
    axis = params["axis"]
    found = [
        None if reach is None else reach._replace(step=(*reach.step[:axis], Fraction(0), *reach.step[axis:]))
        for reach, _ in operands
    ]
    return [_together(found, outs[0], positions)]


def _unstack(params: dict, operands: Operands, outs: list[tuple[int, ...]], positions: int) -> list[Seen] | None:
    ((reach, _),) = operands
    if reach is None:
        return None
    axis = params["axis"]
    rest = (*reach.step[:axis], *reach.step[axis + 1 :])
    return [_tidy(out, rest, *_over(reach, reach.step[axis], i, i)[1:]) for i, out in enumerate(outs)]


def _barrier(params: dict, operands: Operands, outs: list[tuple[int, ...]], positions: int) -> list[Seen]:
    return [reach for reach, _ in operands]


_RULES: dict[str, Callable[..., list[Seen] | None]] = {
    "conv_general_dilated": _conv,
    "dot_general": _dot,
    "broadcast_in_dim": _alone(_broadcast),
    "reshape": _alone(_reshape),
    "transpose": _alone(_transpose),
    "squeeze": _alone(_squeeze),
    "slice": _alone(_slice),
    "pad": _alone(_pad),
    "rev": _alone(_rev),
    "concatenate": _concatenate,
    "split": _split,
    "stack": _stack,
    "unstack": _unstack,
    "optimization_barrier": _barrier,
    **dict.fromkeys(
        ("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum"), _alone(_reduce_window)
    ),
    **dict.fromkeys(
        (
            "reduce_sum",
            "reduce_max",
            "reduce_min",
            "reduce_prod",
            "reduce_and",
            "reduce_or",
            "reduce_xor",
            "argmax",
            "argmin",
        ),
        _alone(_reduce),
    ),
}

_ELEMENTWISE = frozenset({
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e",
    "bessel_i1e", "cbrt", "ceil", "clamp", "clz", "complex", "conj", "convert_element_type", "copy", "copy_p",
    "cos", "cosh", "digamma", "div", "eq", "eq_to", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor",
    "ge", "gt", "igamma", "igammac", "imag", "integer_pow", "is_finite", "le", "le_to", "lgamma", "log", "log1p",
    "logistic", "lt", "lt_to", "max", "min", "mul", "mulhi", "name", "ne", "neg", "nextafter", "not", "or",
    "polygamma", "population_count", "pow", "real", "reduce_precision", "rem", "round", "rsqrt", "select_n",
    "shift_left", "shift_right_arithmetic", "shift_right_logical", "sharding_constraint", "sign", "sin", "sinh",
    "sqrt", "square", "sub", "tan", "tanh", "xor", "zeta",
})  # fmt: skip
