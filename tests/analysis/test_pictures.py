"""Pictures of runs and of data: drawn whatever the classes are called, and in bounded time."""

import numpy as np
import pytest
from PIL import Image

from cnnjax.analysis import pictures

# A formula to matplotlib, one that is none, escape sequences, scripts that fonts lack, what is no Unicode, nothing.
NAMES = ["$x$", "$\\frac{", "a_b^c $", "\x1b[2J", "\u202egnp", "狗", "\U00013000", "caf\udce9", "x" * 300, ""]


def noise(n, *shape):
    return np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)


def dark(path) -> int:
    """How many pixels of a picture are not white: images and text."""
    with Image.open(path) as picture:
        return int((np.asarray(picture.convert("L")) < 128).sum())


def test_names_of_classes_are_drawn_as_they_are(tmp_path):
    """Without a warning, of matplotlib or of ours."""
    images, labels = noise(20, 8, 8, 1), np.arange(20) % 10
    pictures.examples(images, labels, NAMES, tmp_path / "examples.png")
    logits = np.eye(10)[(labels + (labels < 5)) % 10] * 5
    pictures.predictions(images, labels, logits, logits / 5, NAMES, tmp_path / "predictions.png")
    pictures.curves([{"step": 1, "split": "train", "loss": 1.0}], tmp_path / "curves.png", title="$ {x}, seed 0\x1b")
    for file in ("examples", "predictions", "curves"):
        assert dark(tmp_path / f"{file}.png") > 500


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("$x$", "$x$"),
        ("\x1b[2J", r"\x1b[2J"),
        ("Käse", "Käse"),
        ("\U00013000", "class 0"),  # an Egyptian hieroglyph: a box would say less than the number
        ("", "class 0"),
        ("a" * 20 + "b" * 20, "aaaaaaaaa…bbbbbbbb"),
    ],
)
def test_a_name_that_can_be_read(name, drawn):
    assert pictures._class_name([name], 0, 18) == drawn


@pytest.mark.parametrize(("count", "limit", "most"), [(450, 1000, 16e6), (450, 60, 3e6)])
def test_hundreds_of_classes(count, limit, most, tmp_path, monkeypatch):
    """A picture of 450 classes took minutes: it is one image now, about square, and of so many classes at the most."""
    monkeypatch.setattr(pictures, "_MOST_CLASSES", limit)
    pictures.examples(noise(count, 8, 6, 3), np.arange(count), [f"c{i}" for i in range(count)], tmp_path / "many.png")
    with Image.open(tmp_path / "many.png") as picture:
        width, height = picture.size
    assert width * height < most
    assert 0.5 < width / height < 2


def test_pixels_are_shown_as_they_are(tmp_path):
    """White on black stays white on black."""
    image = np.zeros((1, 8, 8, 1), np.uint8)
    image[:, 2:6, 2:6] = 255
    pictures.examples(image, np.array([0]), ["a"], tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    rows, columns = np.nonzero(pixels[:, 40:] == 0)
    top, left, bottom, right = rows.min(), columns.min() + 40, rows.max(), columns.max() + 40
    assert pixels[(top + bottom) // 2, (left + right) // 2] == 255  # the middle
    assert pixels[top, left] == pixels[bottom, right] == 0  # the edge


@pytest.mark.parametrize("loss", [0.0, 1e-9, 3.0, 1e12])
@pytest.mark.parametrize("accuracy", [None, 0.0, 0.999, 1.0])
def test_curves_of_any_values(loss, accuracy, tmp_path):
    values = {"loss": loss} | ({} if accuracy is None else {"accuracy": accuracy})
    rows = [{"step": step, "split": split, **values} for step in (1, 50) for split in ("train", "validation")]
    options = {"steps_per_epoch": 20.2, "learning_rate": lambda step: 0.1 * step}
    pictures.curves(rows, tmp_path / "curves.png", **options)
    assert dark(tmp_path / "curves.png") > 500
