"""A network's architecture as a drawing, for a paper: from the image at the top to the logits at the bottom.

What a summary found is a graph of layers. Between two layers that every path goes through, the others are branches side
by side, each drawn the same way in turn. Layers of one module are framed, and modules of the same form that follow each
other are drawn once, with their number. Norms and activations belong to the convolution before them and are left out.
"""

import html
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cnnjax.analysis.summary import MERGES, Layer, Summary

# ---- Structure -------------------------------------------------------------------------------------------------------


class Box(NamedTuple):
    """One layer."""

    number: int
    """Which layer of the summary."""


class Tangle(NamedTuple):
    """Layers that are neither one after another nor side by side."""

    numbers: tuple[int, ...]
    """Which layers, in the order of computation."""
    edges: tuple[tuple[int, int], ...]
    """From which to which of them data flow; `BEFORE` and `AFTER` stand for the layers around."""


class Parallel(NamedTuple):
    """Branches side by side, between one layer and another; an empty one passes on what comes."""

    branches: tuple["Series", ...]


class Frame(NamedTuple):
    """The layers of a module, so many times."""

    names: tuple[str, ...]
    """What the modules are called."""
    inside: "Series"
    """Of the last of them."""


Part = Box | Tangle | Parallel | Frame
Series = tuple[Part, ...]

IMAGE, RESULT, BEFORE, AFTER = -1, -2, -3, -4
HIDDEN = ("BatchNorm", "GroupNorm", "LayerNorm", "InstanceNorm", "RMSNorm", "Bias", "Dropout")
"""The kinds of layers that are not drawn."""


def structure(summary: Summary) -> Series:
    """The layers of a network that are drawn, as series and branches."""
    inputs = _inputs(summary)
    return _repeated(_framed(_series(sorted(set(inputs) - {RESULT}), inputs, IMAGE, RESULT), summary), summary)


def _inputs(summary: Summary) -> dict[int, set[int]]:
    """The layers that are drawn and the result, each with those it takes, as far as they lead to the result."""
    layers = summary.layers

    def drawn(numbers: Sequence[int]) -> set[int]:
        found: set[int] = set()
        for number in numbers:
            hidden = number != IMAGE and layers[number].kind in HIDDEN
            found |= drawn(layers[number].inputs) if hidden else {number}
        return found

    inputs, waiting = {RESULT: drawn(summary.output)}, [RESULT]
    while waiting:
        for number in inputs[waiting.pop()]:
            if number != IMAGE and number not in inputs:
                inputs[number] = drawn(layers[number].inputs)
                waiting.append(number)
    return inputs


def _series(numbers: Sequence[int], inputs: Mapping[int, set[int]], first: int, last: int) -> Series:
    """What lies between two layers, in the order of computation."""
    position = {number: i for i, number in enumerate([first, *numbers, last])}
    furthest = dict.fromkeys(position, 0)  # where the edges from a layer go
    for number in [*numbers, last]:
        for source in inputs[number] & position.keys():
            furthest[source] = max(furthest[source], position[number])
    # A layer that no edge passes by is on every path: the order of computation goes with the edges.
    reached, alone = furthest[first], []
    for number in numbers:
        if reached <= position[number]:
            alone.append(number)
        reached = max(reached, furthest[number])
    parts: list[Part] = []
    for a, b in itertools.pairwise([first, *alone, last]):
        between = numbers[position[a] : position[b] - 1]
        if between:
            parts.append(_parallel(between, inputs, a, b))
        if b != last:
            parts.append(Box(b))
    return tuple(parts)


def _parallel(numbers: Sequence[int], inputs: Mapping[int, set[int]], first: int, last: int) -> Part:
    """Layers between two, none of which is on every path."""
    straight = first in inputs[last]
    inputs = {**inputs, last: inputs[last] - {first}}
    components = _components(numbers, inputs)
    if len(components) == 1 and not straight:
        names = {first: BEFORE, last: AFTER}
        edges = [(u, v) for v in [*numbers, last] for u in sorted(inputs[v]) if u == first or u in numbers]
        return Tangle(tuple(numbers), tuple((names.get(u, u), names.get(v, v)) for u, v in edges))
    branches = [_series(members, inputs, first, last) for members in components]
    return Parallel((*branches, *([()] if straight else [])))


def _components(numbers: Sequence[int], inputs: Mapping[int, set[int]]) -> list[list[int]]:
    """The layers by which of them hang together, each in the order of computation."""
    component = {number: {number} for number in numbers}
    for number in numbers:
        for source in inputs[number] & component.keys():
            together = component[number] | component[source]
            component |= dict.fromkeys(together, together)
    found = {min(members): sorted(members) for members in component.values()}
    return [found[least] for least in sorted(found)]


def layers_of(part: Part | Series) -> Iterator[int]:
    """The numbers of the layers in a part, from first to last."""
    match part:
        case Box(number):
            yield number
        case Tangle(numbers, _):
            yield from numbers
        case Parallel(branches):
            for branch in branches:
                yield from layers_of(branch)
        case Frame(_, inside):
            yield from layers_of(inside)
        case _:
            for inner in part:
                yield from layers_of(inner)


def _framed(series: Series, summary: Summary) -> Series:
    """Neighbouring parts of one module in a frame."""
    framed: list[Part] = []
    for part in series:
        modules = {_module(summary.layers[number]) for number in layers_of(part)}
        module = modules.pop() if len(modules) == 1 else None
        if module is not None and framed and isinstance(framed[-1], Frame) and framed[-1].names == (module,):
            framed[-1] = Frame((module,), (*framed[-1].inside, part))
        else:
            framed.append(part if module is None else Frame((module,), (part,)))
    # One layer needs no frame.
    return tuple(p.inside[0] if isinstance(p, Frame) and len([*layers_of(p)]) == 1 else p for p in framed)


def _module(layer: Layer) -> str | None:
    """The part of the network that a layer is in; None if it is one by itself."""
    return layer.name.split("/")[0] if "/" in layer.name else None


def _repeated(series: Series, summary: Summary) -> Series:
    """Neighbouring frames of one form as one."""
    parts: list[Part] = []
    for part in series:
        last = parts[-1] if parts else None
        if isinstance(part, Frame) and isinstance(last, Frame) and _form(part, summary) == _form(last, summary):
            parts[-1] = Frame((*last.names, *part.names), part.inside)
        else:
            parts.append(part)
    return tuple(parts)


def _form(part: Part | Series, summary: Summary) -> object:
    """What two parts have in common that are drawn alike."""
    match part:
        case Box(number):
            return label(summary.layers[number])
        case Tangle(numbers, edges):
            place = {number: i for i, number in enumerate(numbers)}
            labels = [label(summary.layers[number]) for number in numbers]
            return ("tangle", *labels, *((place.get(u, u), place.get(v, v)) for u, v in edges))
        case Parallel(branches):
            return ("parallel", *(_form(branch, summary) for branch in branches))
        case Frame(_, inside):
            return _form(inside, summary)
        case _:
            return tuple(_form(inner, summary) for inner in part)


# ---- Words -----------------------------------------------------------------------------------------------------------


def size(numbers: Sequence[int]) -> str:
    """3 and 3 as 3×3."""
    return "×".join(map(str, numbers))


def label(layer: Layer) -> str:
    """What stands in a layer's box: "3×3 conv, 64, /2"."""
    if layer.kind in MERGES:
        return MERGES[layer.kind]
    kind = {"Conv": "conv", "Dense": "dense", "convolution": "conv"}.get(layer.kind, layer.kind)
    words = [f"{size(layer.window)} {kind}" if layer.window else kind]
    if layer.multiply_adds or (not layer.window and len(layer.output) == 1 and not layer.kind.startswith("global")):
        words.append(str(layer.output[-1]))
    if layer.window and max(layer.strides) > 1:
        strides = set(layer.strides)
        words.append(f"/{strides.pop()}" if len(strides) == 1 else f"/{size(layer.strides)}")
    if layer.window and layer.dilation and max(layer.dilation) > 1:
        words.append(f"dilated {size(sorted(set(layer.dilation)))}")
    if layer.groups > 1:
        words.append(f"{layer.groups} groups")
    return ", ".join(words)


def _color(layer: Layer) -> tuple[str, str]:
    """What a box is filled with, and its edge."""
    if layer.kind in MERGES:
        return "#ffffff", "#555555"
    if layer.multiply_adds:
        return ("#cfe2f3", "#3d78b0") if layer.window else ("#d5e8d4", "#5a9650")
    if layer.window or layer.kind.startswith("global"):
        return "#ffe6cc", "#c98a2b"
    return "#eeeeee", "#888888"


# ---- Geometry --------------------------------------------------------------------------------------------------------

_HEIGHT, _MERGE, _GAP, _COLUMN, _FORK, _PAD, _MARGIN = 24, 18, 14, 18, 18, 12, 24
_FONT, _LETTER = 12, 6.7  # the size of the letters, and about how wide one is


@dataclass(frozen=True)
class _Canvas:
    """Where a drawing is made; x and y in pixels, from the upper left."""

    summary: Summary
    lines: list[str]

    def width(self, part: Part | Series) -> float:
        match part:
            case Box(number):
                words = label(self.summary.layers[number])
                return _MERGE if len(words) == 1 else _LETTER * len(words) + 18
            case Tangle(numbers, edges):
                return max(self.width(Box(n)) for n in numbers) + 2 * _COLUMN * len(edges)
            case Parallel(branches):
                return sum(self.width(branch) for branch in branches) + _COLUMN * (len(branches) - 1)
            case Frame(_, inside):
                return self.width(inside) + 2 * _PAD
            case _:
                return max((self.width(inner) for inner in part), default=_COLUMN)

    def height(self, part: Part | Series) -> float:
        match part:
            case Box(number):
                return _MERGE if self.summary.layers[number].kind in MERGES else _HEIGHT
            case Tangle(numbers, _):
                return sum(self.height(Box(n)) + _GAP for n in numbers) + _GAP
            case Parallel(branches):
                return max(self.height(branch) for branch in branches) + 2 * _FORK
            case Frame(_, inside):
                return self.height(inside) + 2 * _PAD
            case _:
                return sum(self.height(inner) for inner in part) + _GAP * max(0, len(part) - 1)

    def draw(self, part: Part | Series, x: float, y: float) -> None:
        """Draws a part whose middle is at x, from y down."""
        match part:
            case Box():
                self._box(part, x, y)
            case Tangle():
                self._tangle(part, x, y)
            case Parallel(branches):
                self._parallel(branches, x, y)
            case Frame(names, inside):
                self._frame(part, names, inside, x, y)
            case _:
                for i, inner in enumerate(part):
                    if i:
                        self.line(x, y - _GAP, x, y, arrow=not isinstance(inner, Parallel | Frame))
                    self.draw(inner, x, y)
                    y += self.height(inner) + _GAP

    def _box(self, box: Box, x: float, y: float) -> None:
        layer = self.summary.layers[box.number]
        width, height, (fill, edge) = self.width(box), self.height(box), _color(layer)
        round_ = height / 2 if layer.kind in MERGES else 4
        self.lines.append(
            f'<rect x="{x - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" rx="{round_}" '
            f'fill="{fill}" stroke="{edge}"/>'
        )
        self.text(label(layer), x, y + height / 2 + 4, "middle")

    def _parallel(self, branches: Sequence[Series], x: float, y: float) -> None:
        total = self.height(Parallel(tuple(branches)))
        left, inner = x - self.width(Parallel(tuple(branches))) / 2, total - 2 * _FORK
        for branch in branches:
            width, height = self.width(branch), self.height(branch)
            middle, top = left + width / 2, y + _FORK + (inner - height) / 2
            self.curve(x, y, middle, y + _FORK)
            self.line(middle, y + _FORK, middle, top, arrow=bool(branch))
            self.draw(branch, middle, top)
            self.line(middle, top + height, middle, y + total - _FORK)
            self.curve(middle, y + total - _FORK, x, y + total)
            left += width + _COLUMN

    def _frame(self, part: Frame, names: Sequence[str], inside: Series, x: float, y: float) -> None:
        width, height = self.width(part), self.height(part)
        self.lines.append(
            f'<rect x="{x - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="8" '
            f'fill="#fafafa" stroke="#aaaaaa" stroke-dasharray="4 3"/>'
        )
        self.line(x, y, x, y + _PAD, arrow=not isinstance(inside[0], Parallel))
        self.draw(inside, x, y + _PAD)
        self.line(x, y + height - _PAD, x, y + height)

    def _tangle(self, tangle: Tangle, x: float, y: float) -> None:
        """A column, with the edges that don't go to the next layer at its side."""
        order = [BEFORE, *tangle.numbers, AFTER]
        ends = {BEFORE: (y, y), AFTER: (y + self.height(tangle),) * 2}
        for number in tangle.numbers:
            y += _GAP
            ends[number] = (y, y + self.height(Box(number)))
            self.draw(Box(number), x, y)
            y = ends[number][1]
        aside = max(self.width(Box(n)) for n in tangle.numbers) / 2
        for u, v in tangle.edges:
            start, end = ends[u][1], ends[v][0]
            if order.index(v) == order.index(u) + 1:
                self.line(x, start, x, end, arrow=v != AFTER)
                continue
            aside += _COLUMN
            middle = aside * 4 / 3  # the curve comes as near as three quarters to what pulls it
            self.lines.append(
                f'<path d="M{x:.1f},{start:.1f} C{x + middle:.1f},{start:.1f} {x + middle:.1f},{end:.1f} '
                f'{x:.1f},{end:.1f}" fill="none" stroke="#555555"/>'
            )

    def line(self, x: float, y: float, to_x: float, to_y: float, arrow: bool = False) -> None:
        if to_y - y > 0.5:
            head = ' marker-end="url(#arrow)"' if arrow else ""
            self.lines.append(
                f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="#555555"{head}/>'
            )

    def curve(self, x: float, y: float, to_x: float, to_y: float) -> None:
        middle = (y + to_y) / 2
        self.lines.append(
            f'<path d="M{x:.1f},{y:.1f} C{x:.1f},{middle:.1f} {to_x:.1f},{middle:.1f} {to_x:.1f},{to_y:.1f}" '
            'fill="none" stroke="#555555"/>'
        )

    def text(self, words: str, x: float, y: float, anchor: str = "start", style: str = "") -> None:
        self.lines.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{html.escape(words)}</text>')


_GREY = ' fill="#666666" font-size="11"'


def svg(summary: Summary) -> str:
    """The drawing, as the text of an SVG file.

    Beside the spine stand the names of the modules, how often each form comes, and the shape of what leaves it.
    """
    series = structure(summary)
    canvas = _Canvas(summary, [])
    names = [f"{_names(part.names)}" if isinstance(part, Frame) else "" for part in series]
    left = max([_LETTER * len(name) for name in names] + [60]) + _MARGIN
    wide = max(canvas.width(series), 200)
    x, y = left + 16 + wide / 2, 92.0
    canvas.text(summary.model, _MARGIN, 30, style=' font-size="17" font-weight="bold"')
    facts = f"{summary.parameters:,} parameters, {summary.multiply_adds:,} multiply-adds"
    canvas.text(facts, _MARGIN, 50, style=_GREY)
    canvas.text(f"image {size(summary.input)}", x, 80, "middle", _GREY)
    edge = x + wide / 2 + 16
    for part, name in zip(series, names, strict=True):
        height = canvas.height(part)
        canvas.line(x, y - _GAP + (4 if part is series[0] else 0), x, y, arrow=not isinstance(part, Parallel | Frame))
        canvas.draw(part, x, y)
        last = summary.layers[[*layers_of(part)][-1]]
        if last.kind not in MERGES or isinstance(part, Frame):
            canvas.text(size(last.output), edge, y + height / 2 + 4, style=_GREY)
        if isinstance(part, Frame):
            canvas.text(name, left, y + height / 2 + 4, "end", _GREY)
            if len(part.names) > 1:
                bold = ' font-size="15" font-weight="bold" fill="#444444"'
                canvas.text(f"× {len(part.names)}", edge, y + height / 2 + 22, style=bold)
        y += height + _GAP
    aside = [layer.name for layer in summary.layers if layer.kind == "training only"]
    note = f"Evaluated in training only, and not drawn: {', '.join(aside)}" if aside else ""
    if note:
        y += 12
        canvas.text(note, _MARGIN, y, style=_GREY)
    width = max(edge + 110, _MARGIN * 2 + 7 * max(len(facts), len(note)), _MARGIN * 2 + 10 * len(summary.model))
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{y + 12:.0f}" '
        f'viewBox="0 0 {width:.0f} {y + 12:.0f}" font-family="Helvetica, Arial, sans-serif" font-size="{_FONT}">',
        f"<title>{html.escape(summary.model)}</title>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#555555"/></marker></defs>',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        *canvas.lines,
        "</svg>",
        "",
    ])  # fmt: skip


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
