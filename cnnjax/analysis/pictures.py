"""Pictures of a run: how it learned, and what it says about images."""

import contextlib
import functools
import pathlib
import warnings
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np

from cnnjax.terminal import printable

_COLOURS = {"train": "#4c78a8", "validation": "#f58518", "test": "#54a24b"}
_RIGHT, _WRONG, _GREY = "#386641", "#c1121f", "#6c757d"
_DPI = 120
_MOST_CLASSES = 1000
"""What `examples` draws, at the most; more can't be told apart any more."""

# For scripts that matplotlib's own font lacks; those that are installed are used.
_FONTS = (
    "DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "PingFang SC", "Microsoft YaHei",
    "Malgun Gothic", "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai", "Arial Unicode MS",
)  # fmt: skip


@contextlib.contextmanager
def _figure(width: int, height: int, path: pathlib.Path, canvas: np.ndarray | None = None) -> Generator[Any]:
    """A figure of that size in pixels, written to `path` at the end; without a display or pyplot's global state.

    Text is drawn as it is: a "$" in the name of a class begins no formula. `canvas` (uint8 [height, width, 3]) holds
    images on white, which are laid over the figure: thousands of them take no time that way.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    style: dict[Any, Any] = {"text.parse_math": False, "text.usetex": False, "font.family": _fonts(), "font.size": 9}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        agg = FigureCanvasAgg(figure)
        yield figure
        agg.draw()
        drawn = np.asarray(agg.buffer_rgba())[..., :3]
        Image.fromarray(drawn if canvas is None else np.minimum(drawn, canvas)).save(path)


@functools.cache
def _fonts() -> list[str]:
    """Those of `_FONTS` that are installed."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in _FONTS if name in installed]


@functools.cache
def _characters() -> frozenset[int]:
    """The characters that the installed ones of `_FONTS` can draw."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    files = {font.name: font.fname for font in font_manager.fontManager.ttflist if font.name in _FONTS}
    return frozenset().union(*(FT2Font(file).get_charmap() for file in files.values()))


def _class_name(classes: Sequence[str], number: int) -> str:
    """The name of a class; its number where it has none that can be drawn."""
    text = printable(classes[number]) if number < len(classes) else ""
    if not text or any(ord(character) not in _characters() for character in text):
        return f"class {number}"
    return text


@functools.lru_cache(4 * _MOST_CLASSES)
def _width(text: str, points: float) -> float:
    """The width in pixels of one line of text, in letters of that size."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    font = FontProperties(family=_fonts(), size=points)
    return RendererAgg(1, 1, _DPI).get_text_width_height_descent(text, font, ismath=False)[0]


def _fit(text: str, points: float, width: float, before: str = "") -> str:
    """`before` and `text` on one line of at most `width` pixels; of a longer text the middle is left out."""
    line, most = before + text, len(text)
    while (wide := _width(line, points)) > width and most > 1:
        most = min(most - 1, int(most * width / wide))
        head = most // 2
        line = f"{before}{text[:head]}…{text[len(text) - (most - 1 - head) :]}"
    return line


# ---- curves --------------------------------------------------------------------------------------------------------


def curves(
    rows: Sequence[dict[str, Any]],
    path: pathlib.Path,
    *,
    title: str = "",
    steps_per_epoch: float | None = None,
    learning_rate: Callable[[int], float] | None = None,
) -> None:
    """Draws loss, error (where there is an accuracy) and learning rate against the step.

    Args:
      rows: of `metrics.jsonl`: `step`, `split` and metrics.
      path: of the PNG to write.
      title: above the panels.
      steps_per_epoch: for a second axis, in epochs.
      learning_rate: the schedule, a function of the step.
    """
    panels = ["loss"] + ["error"] * any("accuracy" in row for row in rows)
    panels += ["learning rate"] * (learning_rate is not None)
    width, height = 550 * len(panels), 528
    last = max((row["step"] for row in rows), default=1)
    with _figure(width, height, path) as figure:
        grid = {"left": 90 / width, "right": 1 - 30 / width, "bottom": 0.12, "top": 0.73, "wspace": 0.28}
        axes = figure.subplots(1, len(panels), squeeze=False, gridspec_kw=grid)[0]
        for axis, panel in zip(axes, panels, strict=True):
            if panel == "learning rate":
                assert learning_rate is not None
                _learning_rate(axis, learning_rate, last)
            else:
                _metric(axis, rows, panel)
            _dress(axis, panel, last, steps_per_epoch)
        figure.suptitle(_fit(printable(title), 12, width - 120), fontsize=12, x=90 / width, ha="left")


def _metric(axis: Any, rows: Sequence[dict[str, Any]], panel: str) -> None:
    """The curve of each split in one panel; errors are on a scale that shows the last percent as well as the first."""
    value = (lambda row: 1 - row["accuracy"]) if panel == "error" else lambda row: row["loss"]
    needed = "accuracy" if panel == "error" else "loss"
    lowest = []
    for split, colour in _COLOURS.items():
        points = [(row["step"], value(row)) for row in rows if row["split"] == split and needed in row]
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        text = f"{values[-1] * 100:.2f} %" if panel == "error" else f"{values[-1]:.4f}"
        # A long curve is a line; a few points, and the one of the test set, are seen only as marks.
        size = 12 if split == "test" else 3.5 if len(points) < 40 else 0
        axis.plot(
            steps, values, marker="*" if split == "test" else "o", ms=size, lw=1.5, color=colour,
            label=f"{split}  {text}", zorder=3 if split == "test" else 2, clip_on=False,
        )  # fmt: skip
        lowest += [v for v in values if v > 0]
    if panel == "error" and lowest:
        # Logarithmic down to the least error there was, or to 0.1 %, and linear from there to none at all.
        linear = max(min(lowest), 1e-3)
        axis.set_yscale("symlog", linthresh=linear, linscale=0.4)
        ticks = [tick for tick in (0.001, 0.01, 0.1) if tick >= linear]
        marks = [0, *(m * t for t in ticks for m in (1, 2, 5) if m * t < 1), 1]
        axis.set_yticks(marks, [f"{mark * 100:g} %" for mark in marks], minor=False)
        axis.set_yticks([], minor=True)
        axis.set_ylim(0, min(1, 1.5 * max(lowest)))
    elif lowest and len(lowest) == sum(len(line.get_ydata()) for line in axis.lines):
        axis.set_yscale("log")
        _plain_ticks(axis, min(lowest), max(float(max(line.get_ydata())) for line in axis.lines))
    if axis.lines:
        axis.legend(title="last value", fontsize=8, title_fontsize=8, framealpha=0.85)


def _plain_ticks(axis: Any, low: float, high: float) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5 times the powers of ten, written as they are read: 0.05, not 5e-2."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axis.set_yticks([], minor=True)
    axis.set_ylim(low / 1.3, high * 1.3)


def _learning_rate(axis: Any, schedule: Callable[[int], float], last: int) -> None:
    steps = np.unique(np.linspace(0, max(last - 1, 0), 400).astype(int))
    axis.plot(steps, [schedule(int(step)) for step in steps], color=_GREY, lw=1.5)
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter("{x:g}")


def _dress(axis: Any, panel: str, last: int, steps_per_epoch: float | None) -> None:
    """What all panels share: what they show, a grid, steps below and epochs above."""
    axis.set_title(panel, loc="left", fontsize=10, fontweight="bold", pad=8)
    axis.set_xlim(0, last)
    axis.set_xlabel("step")
    axis.grid(alpha=0.25)
    axis.spines[["right"]].set_visible(False)
    if steps_per_epoch:
        epochs = axis.secondary_xaxis("top", functions=(lambda x: x / steps_per_epoch, lambda x: x * steps_per_epoch))
        epochs.set_xlabel("epoch", fontsize=8, labelpad=2)
        epochs.tick_params(labelsize=8)
    else:
        axis.spines[["top"]].set_visible(False)


# ---- images --------------------------------------------------------------------------------------------------------


def _place(canvas: np.ndarray, image: np.ndarray, x: int, y: int, side: int) -> None:
    """Puts an image (uint8 [height, width, 1 or 3]) into a square of a canvas [rows, columns, 3], as large as fits."""
    from PIL import Image

    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).convert("RGB")
    drawn = np.asarray(picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX))
    top, left = y + (side - size[1]) // 2, x + (side - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = drawn


def _label(true: str | None, said: str, percent: str, points: float, width: float) -> str:
    """What is written under an image, on as few lines as fit into `width` pixels; `true` is None where `said` is right.

    Only a name that is too long for a line of its own is cut.
    """
    if true is None:
        said = _fit(said, points, width)
        choices = [f"{said} {percent}", f"{said}\n{percent}"]
    else:
        true, said = _fit(true, points, width, "is "), _fit(said, points, width, "said ")
        choices = [f"{true}, {said} {percent}", f"{true}\n{said} {percent}", f"{true}\n{said}\n{percent}"]
    fitting = (text for text in choices if max(_width(line, points) for line in text.split("\n")) <= width)
    return next(fitting, choices[-1])


def predictions(
    images: np.ndarray,
    labels: np.ndarray,
    outputs: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    path: pathlib.Path,
    *,
    split: str = "test",
    rows: int = 5,
    columns: int = 8,
) -> None:
    """Draws images with what the network says of them: mistakes first, then what it is least sure of.

    Args:
      images: uint8 [n, height, width, channels], drawn as they are.
      labels: [n] true class numbers.
      outputs: [n, outputs]; the largest is what the network says.
      probabilities: [n, outputs], by the loss that it was trained with.
      classes: names of the classes.
      path: of the PNG to write.
      split: where the images are from.
      rows: of images, at the most.
      columns: of images.
    """
    predicted = outputs.argmax(-1)  # of small probabilities many are 0
    confidence = np.take_along_axis(probabilities, predicted[:, None], -1)[:, 0]
    wrong = predicted != labels
    order = np.lexsort((np.where(wrong, -confidence, confidence), ~wrong))[: rows * columns]
    rows = -(-len(order) // columns)

    margin, side, gap, head, points = 24, 140, 16, 84, 7.5  # in pixels, and of the letters
    words = []
    for i in order:
        true, said = (_class_name(classes, int(number)) for number in (labels[i], predicted[i]))
        percent = f"({np.floor(confidence[i] * 100):.0f} %)"  # 99.9 is not yet sure
        words.append(_label(true if wrong[i] else None, said, percent, points, side))
    text = 14 + 16 * max(label.count("\n") + 1 for label in words)
    width = 2 * margin + columns * (side + gap) - gap
    height = head + rows * (side + text)
    canvas = np.full((height, width, 3), 255, np.uint8)
    with _figure(width, height, path, canvas) as figure:

        def write(x: float, y: float, words: str, **how: Any) -> None:
            figure.text(x / width, 1 - y / height, words, va="top", **how)

        for place, i in enumerate(order):
            x, y = margin + place % columns * (side + gap), head + place // columns * (side + text)
            _place(canvas, images[i], x, y, side)
            colour = _WRONG if wrong[i] else _RIGHT
            write(x, y + side + 3, words[place], fontsize=points, color=colour, linespacing=1.15)
        count = int(wrong.sum())
        write(
            margin, 16, f"{count:,} mistake{'s' * (count != 1)} in {len(labels):,} {split} images, "
            f"{100 - wrong.mean() * 100:.2f} % right", fontsize=12,
        )  # fmt: skip
        write(margin, 50, "red: mistakes, the surest first", fontsize=8.5, color=_WRONG)
        write(margin + 250, 50, "green: right, the least sure first", fontsize=8.5, color=_RIGHT)
        write(margin + 515, 50, "in brackets: how sure the network is of what it said", fontsize=8.5, color=_GREY)


def examples(
    images: np.ndarray, labels: np.ndarray, classes: Sequence[str], path: pathlib.Path, *, columns: int = 10
) -> None:
    """Draws the first images of each class, a class a row; of many classes fewer images each, in blocks side by side.

    Args:
      images: uint8 [n, height, width, channels], drawn as they are.
      labels: [n] class numbers.
      classes: their names; the first thousand are drawn.
      path: of the PNG to write.
      columns: images of a class, at the most.
    """
    shown = min(len(classes), _MOST_CLASSES)
    each = columns if shown <= 20 else min(columns, 5)
    words = [_fit(_class_name(classes, label), 8, 190) for label in range(shown)]
    margin, side, gap = 24, 84 if shown <= 100 else 56, 4  # in pixels
    name = 16 + round(max(_width(word, 8) for word in words))
    block = name + each * (side + gap) + margin
    # As many blocks as make the picture about as wide as it is high.
    blocks = max(1, round(float(np.sqrt(shown * (side + gap) / block)))) if shown > 20 else 1
    rows = -(-shown // blocks)
    head = 24 + 24 * (shown < len(classes))
    width, height = margin + blocks * block, head + rows * (side + gap) + margin
    canvas = np.full((height, width, 3), 255, np.uint8)
    first = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[first], np.arange(shown + 1))
    with _figure(width, height, path, canvas) as figure:
        for label in range(shown):
            x, y = margin + label // rows * block, head + label % rows * (side + gap)
            at = ((x + name - 10) / width, 1 - (y + side / 2) / height)
            figure.text(*at, words[label], ha="right", va="center", fontsize=8)
            for k, i in enumerate(first[starts[label] : starts[label + 1]][:each]):
                _place(canvas, images[i], x + name + k * (side + gap), y, side)
        if shown < len(classes):
            text = f"the first {shown:,} of {len(classes):,} classes"
            figure.text(margin / width, 1 - 12 / height, text, va="top", fontsize=10)
