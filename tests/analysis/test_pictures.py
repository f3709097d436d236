"""Pictures of runs and of data: drawn whatever the classes are called, and in bounded time."""

import contextlib
import itertools

import numpy as np
import pytest
from matplotlib.text import Text
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
    ],
)
def test_a_name_that_can_be_read(name, drawn):
    assert pictures._class_name([name], 0) == drawn


FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
SETS = {
    "one": ["cat"],
    "digits": list("0123456789"),
    "short": ["cat", "dog"],
    "four": ["Golden retriever", "Ankle boot of leather", "cat", "dog"],
    "Fashion-MNIST": FASHION,
    "letters": ["abcdefghij" * 3, "W" * 30, "i" * 30, "W" * 300],
    "CJK": ["黄金猎犬", "皮革短靴" * 8, "狗", "ゴールデン・レトリバー"],
    "drawn as they are": NAMES,
    "a thousand": [f"number {i} of a thousand" for i in range(1000)],
}


@pytest.fixture
def drawn(monkeypatch):
    """All text of the figures that are drawn, each with its box in pixels, and the size of the figure."""
    texts, figure_of = [], pictures._figure

    @contextlib.contextmanager
    def examined(*arguments, **options):
        with figure_of(*arguments, **options) as figure:
            yield figure
            figure.canvas.draw()
            visible = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
            texts.extend((text.get_text(), text.get_window_extent(), figure.bbox) for text in visible)

    monkeypatch.setattr(pictures, "_figure", examined)
    return texts


@pytest.fixture
def every_letter(monkeypatch):
    """As if fonts for all scripts were installed: the last resort of newer matplotlibs draws a box for any letter."""
    caches = (pictures._fonts, pictures._characters, pictures._width)
    monkeypatch.setattr(pictures, "_FONTS", (*pictures._FONTS, "Last Resort High-Efficiency"))
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def assert_readable(texts):
    """No text leaves its figure, and none lies over another."""
    for words, box, figure in texts:
        assert figure.x0 <= box.x0 < box.x1 <= figure.x1, words
        assert figure.y0 <= box.y0 < box.y1 <= figure.y1, words
    for (words, box, _), (others, other, _) in itertools.combinations(texts, 2):
        assert not box.overlaps(other), (words, others)


@pytest.mark.parametrize("name", SETS)
def test_labels_of_predictions_keep_apart(name, drawn, every_letter, tmp_path):
    """They stay in the cells of their images, whose left edges they share."""
    classes, n = SETS[name], 24
    labels = np.arange(n) % len(classes)
    logits = np.eye(len(classes))[np.where(np.arange(n) < n // 2, labels, labels - 1)]
    pictures.predictions(noise(n, 8, 8, 1), labels, logits, logits, classes, tmp_path / "predictions.png")
    assert len(drawn) == n + 4  # and the title and a legend of three
    assert_readable(drawn)
    for place, (words, box, figure) in enumerate(drawn[:n]):
        right = figure.x1 if place % 8 == 7 else drawn[place + 1][1].x0
        assert box.x1 < right, words


@pytest.mark.parametrize("name", SETS)
def test_names_of_examples_keep_apart(name, drawn, every_letter, tmp_path):
    classes = SETS[name][:60]
    pictures.examples(noise(len(classes), 8, 8, 1), np.arange(len(classes)), classes, tmp_path / "examples.png")
    assert len(drawn) == len(classes)
    assert_readable(drawn)


def test_names_are_cut_only_where_a_line_of_their_own_is_too_short(drawn, tmp_path):
    labels, logits = np.array([0, 0, 1]), np.eye(3)[[1, 2, 1]]
    classes = ["Golden retriever", "Ankle boot", "Ankle boot of the softest leather"]
    pictures.predictions(noise(3, 8, 8, 1), labels, logits, logits, classes, tmp_path / "predictions.png")
    whole, long, right = (words for words, _, _ in drawn[:3])
    assert whole == "is Golden retriever\nsaid Ankle boot\n(100 %)"
    assert right == "Ankle boot (100 %)"
    assert long.startswith("is Golden retriever\nsaid Ankle b")
    assert long.endswith("leather\n(100 %)")


@pytest.mark.parametrize("panels", [1, 3])
def test_a_long_title_of_curves_is_cut(panels, drawn, tmp_path):
    rows = [{"step": 1, "split": "train", "loss": 1.0} | ({"accuracy": 0.5} if panels == 3 else {})]
    rate = {"learning_rate": lambda step: 0.1} if panels == 3 else {}
    pictures.curves(rows, tmp_path / "curves.png", title="an experiment of a long name " * 9 + "seed 7", **rate)
    title = next(each for each in drawn if each[0].startswith("an experiment"))
    assert title[0].endswith("seed 7")
    assert_readable([title])


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
