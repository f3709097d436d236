"""Pictures of a run: how it learned, and what it says about images."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

_COLOURS = {"train": "#4c78a8", "validation": "#f58518", "test": "#54a24b"}


def _new_figure(width: float, height: float, rows: int, columns: int, **spacing: float):
    """A figure and its axes [rows, columns], drawn without a display and without touching pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=spacing)


def _grid(width: float, height: float, rows: int, columns: int):
    """A figure for images: rows x columns axes without ticks, with room for a title over each and one over all."""
    # Spacing by hand: matplotlib's layout engines take seconds for fifty axes.
    top = 1 - 0.75 / height
    figure, axes = _new_figure(
        width, height, rows, columns, left=0.01, right=0.99, bottom=0.01, top=top, wspace=0.08, hspace=0.45
    )
    for axis in axes.flat:
        axis.axis("off")
    return figure, axes


def curves(rows: Sequence[dict[str, Any]], path: pathlib.Path, *, title: str = "") -> None:
    """Draws loss, and accuracy where there is one, against the step.

    Args:
      rows: of `metrics.jsonl`: `step`, `split` and metrics.
      path: of the PNG to write.
      title: above both panels.
    """
    panels = ["loss"] + ["accuracy"] * any("accuracy" in row for row in rows)
    width = 5.5 * len(panels)
    figure, axes = _new_figure(
        width, 4.2, 1, len(panels), left=0.75 / width, right=1 - 0.2 / width, bottom=0.13, top=0.9, wspace=0.22
    )
    for axis, metric in zip(axes[0], panels, strict=True):
        for split, colour in _COLOURS.items():
            points = [(row["step"], row[metric]) for row in rows if row["split"] == split and metric in row]
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            marker = "*" if split == "test" else "o"
            # A long curve is a line; a few points, and the one of the test set, are seen only as marks.
            size = 11 if split == "test" else 3 if len(points) < 40 else 0
            axis.plot(steps, values, marker, ls="-", ms=size, lw=1.3, color=colour, label=f"{split} {values[-1]:.4f}")
        if metric == "loss" and axis.lines and min(line.get_ydata().min() for line in axis.lines) > 0:
            axis.set_yscale("log")
        axis.set_xlabel("step")
        axis.set_ylabel(metric)
        axis.grid(alpha=0.3)
        axis.legend(title="last value", fontsize=8, title_fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def predictions(
    images: np.ndarray,
    labels: np.ndarray,
    logits: np.ndarray,
    classes: Sequence[str],
    path: pathlib.Path,
    *,
    rows: int = 5,
    columns: int = 10,
) -> None:
    """Draws images with what the network says of them: mistakes first, then what it is least sure of.

    Args:
      images: uint8 [n, height, width, channels].
      labels: [n] true class numbers.
      logits: [n, outputs].
      classes: names of the classes.
      path: of the PNG to write.
      rows: of images, at the most.
      columns: of images.
    """
    logits = logits.astype(np.float64)
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    predicted, confidence = probabilities.argmax(-1), probabilities.max(-1)
    wrong = predicted != labels
    order = np.lexsort((np.where(wrong, -confidence, confidence), ~wrong))[: rows * columns]
    rows = -(-len(order) // columns)

    def name(index: int) -> str:
        text = classes[index] if index < len(classes) else str(index)
        return text.encode(errors="replace").decode()  # names of folders need not be proper text

    figure, axes = _grid(1.25 * columns, 1.6 * rows + 0.75, rows, columns)
    for axis, i in zip(axes.flat, order, strict=False):
        image = images[i]
        axis.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray_r")
        text = f"{name(predicted[i])} {confidence[i]:.0%}"
        if wrong[i]:
            text += f"\ntrue: {name(labels[i])}"
        axis.set_title(text, fontsize=7, color="#c1121f" if wrong[i] else "#386641")
    figure.suptitle(f"{wrong.sum():,} mistakes in {len(labels):,} test images ({1 - wrong.mean():.2%} right)")
    figure.savefig(path, dpi=120)


def examples(
    images: np.ndarray, labels: np.ndarray, classes: Sequence[str], path: pathlib.Path, *, columns: int = 10
) -> None:
    """Draws the first images of each class, a class a row.

    Args:
      images: uint8 [n, height, width, channels].
      labels: [n] class numbers.
      classes: their names.
      path: of the PNG to write.
      columns: images of a class.
    """
    figure, axes = _grid(0.9 * columns, 1.25 * len(classes) + 0.4, len(classes), columns)
    for label, row in enumerate(axes):
        for axis, image in zip(row, images[labels == label][:columns], strict=False):
            axis.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray_r")
        row[0].set_title(classes[label], fontsize=8, loc="left")
    figure.savefig(path, dpi=120)
