"""Photographs streamed from disk: a function of (seed, position) alone, and the pixels that PIL gives."""

import gc
import hashlib
import io
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cnnjax.data import order, synthetic
from cnnjax.data import photos as streams
from cnnjax.ops.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]
BILINEAR = Image.Resampling.BILINEAR


@pytest.fixture(scope="module")
def made():
    """24 training and 7 validation images, (file name, JPEG, label)."""
    examples = synthetic.photographs(31, longest=120)
    return {"train": examples[:24], "validation": examples[24:]}


@pytest.fixture(scope="module")
def prepared(made, tmp_path_factory):
    """A data_dir in which they are prepared as imagenet2012."""
    root = tmp_path_factory.mktemp("prepared")
    synthetic.write_imagenet(made, root)
    return root


@pytest.fixture(scope="module")
def train(prepared):
    return streams.open_photos("tfds:imagenet2012", "train", data_dir=prepared)


class Held:
    """Encoded images in memory, as a source."""

    def __init__(self, *contents, label=0):
        self.contents, self.label = contents, label

    def __len__(self):
        return len(self.contents)

    def __getitem__(self, i):
        return self.contents[i], self.label

    def where(self, i):
        return f"example {i} (file{i}.JPEG)"


def held(*contents, label=0):
    return streams.Photos(Held(*contents, label=label), ("a", "b"))


def encode(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def digest(batches):
    """A digest of batches, byte by byte."""
    total = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            total.update(batch[name].tobytes())
    return total.hexdigest()


def by_hand(made, seed, step, batch_size, crop):
    """What a plain PIL loop makes of a training step."""
    images, labels = [], []
    for row, i in enumerate(order.batch_indices(len(made), batch_size, step, seed)):
        _, content, label = made[i]
        image = Image.open(io.BytesIO(content)).convert("RGB")
        rng = np.random.default_rng((seed, step * batch_size + row, 1))
        top, left, height, width = streams.random_crop(rng, image.height, image.width)
        part = image.crop((left, top, left + width, top + height))
        images.append(np.asarray(part.resize((crop, crop), BILINEAR)))
        labels.append(label)
    return np.stack(images), np.array(labels, np.int32)


def torchvision_eval(content, crop, resize):
    """`Resize(resize)` and `CenterCrop(crop)` of torchvision 0.x on a PIL image, written out."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    width, height = image.size
    short, long = sorted((width, height))
    new_short, new_long = resize, int(resize * long / short)
    new_width, new_height = (new_short, new_long) if width <= height else (new_long, new_short)
    image = image.resize((new_width, new_height), BILINEAR)
    top, left = int(round((new_height - crop) / 2.0)), int(round((new_width - crop) / 2.0))  # noqa: RUF046
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


def test_order_and_values_are_those_of_a_plain_loop(train, made):
    # Crops of at least 96 from pictures of at most 180 pixels: nothing is decoded at a smaller scale, all is equal.
    batches = list(streams.train_batches(train, seed=3, start=0, stop=7, batch_size=8, crop=96))
    assert len(batches) == 7  # two epochs and a part
    for step, batch in enumerate(batches):
        image, label = by_hand(made["train"], 3, step, 8, 96)
        assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)
        assert np.array_equal(batch["label"], label)
        assert np.array_equal(batch["image"], image)


def test_smaller_scales_are_near_a_plain_loop(train, made):
    """Crops of up to 180 pixels to 16: decoded at 1/2, 1/4 or 1/8."""
    images = next(streams.train_batches(train, seed=0, start=0, stop=1, batch_size=24, crop=16))["image"]
    expected, _ = by_hand(made["train"], 0, 0, 24, 16)
    difference = np.abs(images.astype(int) - expected).mean((1, 2, 3))
    assert 0 < difference.mean() < 4
    assert difference.max() < 8


def test_the_smallest_scale_that_covers_the_crop_is_decoded(monkeypatch):
    asked = []
    decode = simplejpeg.decode_jpeg

    def spy(*args, **options):
        pixels = decode(*args, **options)
        asked.append(round(333 / pixels.shape[0]))
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    photo = held(synthetic.jpeg(synthetic.photograph(np.random.default_rng(0), 333, 401)))
    for crop, reduced in ((300, 1), (167, 1), (166, 2), (84, 2), (83, 4), (42, 4), (41, 8), (5, 8)):
        whole = {"scale": (1, 1), "ratio": (401 / 333, 401 / 333)}
        batch = next(streams.train_batches(photo, seed=0, start=0, stop=1, batch_size=1, crop=crop, **whole))
        assert batch["image"].shape == (1, crop, crop, 3)
        assert asked.pop() == reduced, crop
        next(streams.eval_batches(photo, batch_size=1, crop=crop, resize=crop))
        assert asked.pop() == 1


def test_evaluation_is_torchvisions(prepared, made):
    validation = streams.open_photos("tfds:imagenet2012", "validation", data_dir=prepared)
    for crop, resize in ((64, 73), (64, 64), (33, 50), (224, 256)):
        batches = list(streams.eval_batches(validation, batch_size=4, crop=crop, resize=resize))
        assert np.concatenate([b["mask"] for b in batches]).tolist() == [True] * 7 + [False]
        image = np.concatenate([b["image"] for b in batches])
        label = np.concatenate([b["label"] for b in batches])
        assert label.tolist() == [label for _, _, label in made["validation"]] + [0]
        assert (image[7] == 0).all()
        expected = np.stack([torchvision_eval(content, crop, resize) for _, content, _ in made["validation"]])
        assert np.array_equal(image[:7], expected)


@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 64), st.data())
def test_central_crop_has_torchvisions_sizes(height, width, crop, draw):
    resize = draw.draw(st.integers(crop, 80))
    new_height, new_width, top, left = streams.central_crop(height, width, crop=crop, resize=resize)
    short, long = min(height, width), max(height, width)
    assert min(new_height, new_width) == resize
    assert max(new_height, new_width) == int(resize * long / short)
    assert (new_height <= new_width) == (height <= width) or new_height == new_width
    assert (top, left) == (int(round((new_height - crop) / 2.0)), int(round((new_width - crop) / 2.0)))  # noqa: RUF046


def test_a_folder_streams_as_records_do(prepared, train, made, tmp_path, files):
    # The folder's order is by class and name: compared example by example.
    members = {f"train/{synthetic.CLASSES[k]}/{name}": content for name, content, k in made["train"]}
    members |= {f"val/{synthetic.CLASSES[k]}/{name}": content for name, content, k in made["validation"]}
    folder = streams.open_photos("folder", "train", raw_dir=files.tree(tmp_path / "f", members))
    assert folder.classes == train.classes == synthetic.CLASSES
    assert len(folder) == len(train) == 24
    assert sorted(folder.source[i] for i in range(24)) == sorted(train.source[i] for i in range(24))
    for split in ("validation", "val", "valid"):
        assert len(streams.open_photos("folder", split, raw_dir=tmp_path / "f")) == 7
    arguments = {"seed": 0, "start": 0, "stop": 3, "batch_size": 5, "crop": 32}
    assert digest(streams.train_batches(folder, **arguments)) == digest(
        streams.train_batches(pickle.loads(pickle.dumps(folder)), **arguments)
    )


def same_bytes_however_made(photos, steps, workers, batch_size=6, crop=32):
    """Asserts that hashes agree over threads, workers, processes and resuming."""

    def batches(start=0, stop=steps, **options):
        return streams.train_batches(
            photos, seed=5, start=start, stop=stop, batch_size=batch_size, crop=crop, **options
        )

    expected = digest(batches(threads=1))
    assert expected == digest(batches(threads=7))
    for count in workers:
        assert expected == digest(batches(workers=count)), count
    middle = steps // 2 - 1
    resumed = [*batches(stop=middle), *batches(start=middle, workers=max(workers))]
    assert expected == digest(resumed)
    rows = [list(range(0, batch_size, 2)), list(range(1, batch_size, 2))]  # two processes share each batch
    shares = zip(batches(rows=rows[0]), batches(rows=rows[1], workers=1), strict=True)

    def whole(pair):
        joined = {name: np.empty((batch_size, *pair[0][name].shape[1:]), pair[0][name].dtype) for name in pair[0]}
        for name, array in joined.items():
            for mine, part in zip(rows, pair, strict=True):
                array[mine] = part[name]
        return joined

    assert expected == digest(map(whole, shares))
    assert expected != digest(streams.train_batches(photos, seed=6, start=0, stop=steps, batch_size=6, crop=crop))


def test_workers_processes_and_resuming_change_no_byte(train):
    same_bytes_however_made(train, steps=10, workers=(1, 2))


@pytest.mark.slow
def test_workers_processes_and_resuming_change_no_byte_in_1000_batches(train):
    same_bytes_however_made(train, steps=1000, workers=(1, 2))


def test_evaluation_by_workers_and_processes(train):
    arguments = {"batch_size": 10, "crop": 32, "resize": 40}
    whole = list(streams.eval_batches(train, **arguments))
    assert digest(whole) == digest(streams.eval_batches(train, workers=2, **arguments))
    for rows in ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [9]):
        for batch, part in zip(whole, streams.eval_batches(train, rows=rows, **arguments), strict=True):
            assert all(np.array_equal(part[name], batch[name][rows]) for name in batch)
    assert sum(b["mask"].sum() for b in whole) == 24


@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 2**40))
def test_random_crops_lie_within(height, width, seed):
    top, left, h, w = streams.random_crop(np.random.default_rng(seed), height, width)
    assert top >= 0
    assert left >= 0
    assert h >= 1
    assert w >= 1
    assert top + h <= height
    assert left + w <= width


@given(st.integers(100, 600), st.integers(100, 600), st.integers(0, 2**40))
def test_random_crops_have_the_area_and_proportion(height, width, seed):
    _, _, h, w = streams.random_crop(np.random.default_rng(seed), height, width)
    if (h, w) == streams.random_crop(np.random.default_rng(seed), height, width, scale=(1, 1), ratio=(9, 9))[2:]:
        return
    side = 0.5 / np.sqrt(0.08 * height * width * 3 / 4)  # sides are rounded: the relative error of the shortest
    assert 0.08 * (1 - side) ** 2 <= h * w / (height * width) <= (1 + side) ** 2
    fallback = max(height / width, width / height) > 4 / 3 and (h == height or w == width)
    assert fallback or 3 / 4 * (1 - side) / (1 + side) <= w / h <= 4 / 3 * (1 + side) / (1 - side)


def test_random_crops_are_spread_as_published():
    rng = np.random.default_rng(0)
    crops = np.array([streams.random_crop(rng, 1000, 1000, scale=(0.08, 0.5)) for _ in range(4000)])
    top, left, h, w = crops.T
    area = h * w / 1e6
    assert abs(area.mean() - 0.29) < 0.01  # uniform from 0.08 to 0.5
    assert abs(area.std() - 0.42 / 12**0.5) < 0.01
    assert abs(np.log(w / h).mean()) < 0.01  # uniform in the logarithm
    assert abs(np.log(w / h).std() - 2 * np.log(4 / 3) / 12**0.5) < 0.01
    for corner, side in ((top, h), (left, w)):
        assert abs((corner / (1000 - side + 1)).mean() - 0.5) < 0.02


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (1, 1)])
def test_the_fallback_is_the_largest_central_crop(height, width):
    top, left, h, w = streams.random_crop(np.random.default_rng(0), height, width, scale=(1, 1))
    assert min(h, w) == min(height, width)
    assert max(h, w) == round(min(height, width) * (4 / 3 if height != width else 1))
    assert (top, left) == ((height - h) // 2, (width - w) // 2)


def test_crops_differ_between_epochs_and_examples():
    pixels = synthetic.photograph(np.random.default_rng(0), 60, 80)
    photos = held(*[synthetic.jpeg(pixels)] * 4)
    batches = streams.train_batches(photos, seed=0, start=0, stop=3, batch_size=4, crop=16)
    assert len({image.tobytes() for batch in batches for image in batch["image"]}) == 12


def test_splits_of_a_set(made, prepared, tmp_path, capsys):
    """ImageNet's test images have no labels; sizes and numbers tell sets apart, wherever they are."""
    found = streams.open_photo_set("tfds:imagenet2012", data_dir=prepared)
    assert (len(found.train), len(found.validation), found.test) == (24, 7, None)
    unlabelled = [(name, content, -1) for name, content, _ in made["validation"]]
    synthetic.write_imagenet({"train": made["train"], "test": unlabelled}, tmp_path / "a")
    capsys.readouterr()
    other = streams.open_photo_set("tfds:imagenet2012", data_dir=tmp_path / "a")
    assert (len(other.train), other.validation, other.test) == (24, None, None)
    assert "'test' of 'tfds:imagenet2012' has no labels (-1) and is left out" in capsys.readouterr().err
    assert other.sha256 != found.sha256
    (tmp_path / "a").rename(tmp_path / "b")
    assert streams.open_photo_set("tfds:imagenet2012", data_dir=tmp_path / "b").sha256 == other.sha256
    with pytest.raises(InputError, match="holds an imagenet2012 already"):
        synthetic.write_imagenet(made, tmp_path / "b")


@pytest.mark.parametrize("index", [slice(3, 9), [5, 5, 0], np.arange(24) % 2 == 0])
def test_taking_some(train, index):
    some = train.take(index)
    chosen = np.arange(24)[index]
    assert len(some) == len(chosen)
    assert [some.source[i] for i in range(len(some))] == [train.source[int(i)] for i in chosen]
    assert some.source.where(0) == train.source.where(int(chosen[0]))
    assert len(some.take(slice(2))) == 2


def test_greys_cmyk_png_and_odd_jpegs():
    pixels = Image.fromarray(synthetic.photograph(np.random.default_rng(0), 60, 80))
    kinds = {
        "grey": encode(pixels.convert("L"), quality=95),
        "cmyk": encode(pixels.convert("CMYK"), quality=95),
        "png": encode(pixels, "PNG"),
        "palette": encode(pixels.convert("P"), "PNG"),
        "alpha": encode(pixels.convert("RGBA"), "PNG"),
        "progressive": encode(pixels, quality=95, progressive=True),
        "4:4:4": encode(pixels, quality=95, subsampling=0),
        "trailing": encode(pixels, quality=95) + b"more",
    }
    photos = held(*kinds.values())
    batch = next(streams.eval_batches(photos, batch_size=len(kinds), crop=40, resize=48))
    for name, image, content in zip(kinds, batch["image"], kinds.values(), strict=True):
        expected = torchvision_eval(content, 40, 48)
        assert np.array_equal(image, expected), name
    assert (
        next(streams.train_batches(photos, seed=0, start=0, stop=1, batch_size=8, crop=8))["image"].any((1, 2, 3)).all()
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_images_are_named(workers):
    good = synthetic.jpeg(synthetic.photograph(np.random.default_rng(0), 60, 80))
    for bad in (good[: len(good) // 2], good[:30], b"", b"hello", encode(Image.new("RGB", (9, 9)), "PNG")[:40]):
        batches = streams.eval_batches(held(good, good, bad), batch_size=2, crop=8, resize=8, workers=workers)
        assert next(batches)["mask"].all()
        with pytest.raises(InputError, match=r"image example 2 \(file2.JPEG\) cannot be read") as error:
            list(batches)
        assert "\n" not in str(error.value)
        if workers:
            return  # processes take a second to start; one kind of damage is enough


def test_records_name_a_damaged_image(made, tmp_path):
    damaged = [made["train"][0], ("n01440764_9.JPEG", made["train"][1][1][:500], 1)]
    synthetic.write_imagenet({"train": damaged}, tmp_path)
    photos = streams.open_photos("tfds:imagenet2012", data_dir=tmp_path)
    with pytest.raises(InputError, match=r"'tfds:imagenet2012', split 'train', example 1 \(n01440764_9.JPEG\) cannot"):
        list(streams.eval_batches(photos, batch_size=2, crop=8, resize=8))


def test_missing_file_and_label_without_class(tmp_path, files, pictures):
    photos = streams.open_photos("folder", raw_dir=files.tree(tmp_path / "f", pictures))
    (tmp_path / "f/train/dog/1.png").unlink()
    with pytest.raises(InputError, match=r"train/dog/1.png cannot be read"):
        list(streams.eval_batches(photos, batch_size=2, crop=2, resize=2))
    with pytest.raises(InputError, match=r"example 0 \(file0.JPEG\) has label -1; allowed: 0 to 1"):
        list(streams.eval_batches(held(b"", label=-1), batch_size=1, crop=2, resize=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 0}, "crop=0: at least 1"),
        ({"batch_size": 0}, "batch_size=0: at least 1"),
        ({"batch_size": 25}, "batch_size=25 is larger than the split, which has 24"),
        ({"workers": -1}, "workers=-1: at least 0"),
        ({"threads": 0}, "threads=0: at least 1"),
        ({"seed": -1}, "seed=-1"),
        ({"start": 3, "stop": 2}, "start=3, stop=2"),
        ({"start": -1}, "start=-1"),
        ({"scale": (0, 1)}, "scale="),
        ({"scale": (0.5, 0.1)}, "scale="),
        ({"ratio": (2, 1)}, "ratio="),
        ({"rows": []}, r"rows=\[\]"),
        ({"rows": [0, 4]}, r"rows=\[0, 4\]: positions are from 0 to 3"),
        ({"rows": [0.5]}, "rows="),
    ],
)
def test_bad_arguments_of_training(train, change, message):
    with pytest.raises(InputError, match=message) as error:
        streams.train_batches(train, **{"seed": 0, "start": 0, "stop": 1, "batch_size": 4} | change)
    assert "\n" not in str(error.value)


def test_bad_arguments_of_evaluation_and_opening(train, prepared, tmp_path, files, pictures):
    with pytest.raises(InputError, match="resize=8 is smaller than crop=9"):
        streams.eval_batches(train, batch_size=4, crop=9, resize=8)
    with pytest.raises(InputError, match="the split is empty"):
        streams.eval_batches(held(), batch_size=4)
    with pytest.raises(InputError, match="unknown set of photographs 'foldr': did you mean 'folder'"):
        streams.open_photos("foldr")
    with pytest.raises(InputError, match="need raw_dir"):
        streams.open_photos("folder")
    with pytest.raises(InputError, match="takes no raw_dir"):
        streams.open_photos("tfds:imagenet2012", raw_dir=tmp_path)
    with pytest.raises(InputError, match=r"unknown split .* 'validatio': did you mean 'validation'"):
        streams.open_photos("tfds:imagenet2012", "validatio", data_dir=prepared)
    with pytest.raises(InputError, match="is not prepared"):
        streams.open_photos("tfds:imagenet2012", data_dir=tmp_path)
    with pytest.raises(InputError, match=r"unknown split .* 'validation': .*allowed: test, train"):
        streams.open_photos("folder", "validation", raw_dir=files.tree(tmp_path / "f", pictures))
    files.tar(tmp_path / "t.tar.gz", pictures)
    with pytest.raises(InputError, match=r"unpack t.tar.gz"):
        streams.open_photos("folder", raw_dir=tmp_path / "t.tar.gz")


def test_no_steps_are_no_batches(train):
    assert list(streams.train_batches(train, seed=0, start=4, stop=4, batch_size=4)) == []


SCRIPT = """
import multiprocessing, os, sys
from cnnjax.data import photos as streams

def main():
    photos = streams.open_photos("tfds:imagenet2012", "train", data_dir=sys.argv[1])
    for workers in (0, 2):
        batches = streams.train_batches(
            photos, seed=0, start=0, stop=10**6, batch_size=4, crop=8, workers=workers)
        globals()[f"kept{workers}"] = batches  # still open when the interpreter exits
        next(batches)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    if sys.argv[2] == "wait":
        sys.stdin.read()

if __name__ == "__main__":
    main()
    heavy = {"tensorflow", "torch"} & set(sys.modules)
    assert not heavy, heavy
    import jax
    assert not jax._src.xla_bridge._backends, "a backend was initialised"
"""


def start(prepared, tmp_path, then):
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(tmp_path / "script.py"), str(prepared), then],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for_end(pids, seconds=20):
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if alive(pid)]


def test_stopping_early_leaves_nothing_and_says_nothing(prepared, tmp_path):
    process = start(prepared, tmp_path, "exit")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err == ""
    pids = out.split()
    assert len(pids) == 2
    wait_for_end(pids)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_workers_die_with_a_killed_parent(prepared, tmp_path):
    with start(prepared, tmp_path, "wait") as process:
        pids = process.stdout.readline().split()
        assert len(pids) == 2
        assert all(map(alive, pids))
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_for_end(pids)


def test_dropping_the_iterator_stops_its_workers(train):
    import multiprocessing

    before = {child.pid for child in multiprocessing.active_children()}
    batches = streams.train_batches(train, seed=0, start=0, stop=10**6, batch_size=4, crop=8, workers=1)
    next(batches)
    pids = {child.pid for child in multiprocessing.active_children()} - before
    assert len(pids) == 1
    del batches
    gc.collect()
    wait_for_end(pids)


def test_files_of_a_prepared_set_that_are_not_whole(made, tmp_path):
    """Missing, cut off, of another set, or without a description that can be read: found when it is opened."""
    synthetic.write_imagenet(made, tmp_path)
    directory = tmp_path / "imagenet2012" / "5.1.0"
    (validation,) = directory.glob("*validation*")
    (train,) = directory.glob("*train*")
    content, other = validation.read_bytes(), train.read_bytes()
    wrong = {
        "missing": (validation.unlink, "no readable"),
        "cut off": (lambda: validation.write_bytes(content[: len(content) // 2]), "no readable"),
        "of another": (lambda: validation.write_bytes(other), "24 examples, but 7 were prepared"),
    }
    for damage, message in wrong.values():
        damage()
        with pytest.raises(InputError, match=f"split 'validation': .*{message}"):
            streams.open_photo_set("tfds:imagenet2012", data_dir=tmp_path)
    validation.write_bytes(content)
    assert len(streams.open_photo_set("tfds:imagenet2012", data_dir=tmp_path).train) == 24
    (directory / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match=r"'tfds:imagenet2012' in .* cannot be read"):
        streams.open_photo_set("tfds:imagenet2012", data_dir=tmp_path)


def test_odd_files_in_folders(tmp_path, files, pictures):
    files.tree(tmp_path / "f", pictures)
    odd = next((tmp_path / "f" / "train").iterdir()) / "zz.png"
    os.mkfifo(odd)
    with pytest.raises(InputError, match=r"zz.png is no file|zz.png is empty"):
        streams.open_photos("folder", raw_dir=tmp_path / "f")
    odd.unlink()
    odd.touch()
    with pytest.raises(InputError, match=r"zz.png is empty"):
        streams.open_photos("folder", raw_dir=tmp_path / "f")


def test_a_strip_takes_no_memory_beyond_its_centre(tmp_path):
    """Resized whole, these 3,000 pixels would be 2 million rows."""
    strip = np.zeros((3000, 1, 3), np.uint8)
    strip[1400:1600] = 200
    Image.fromarray(strip).save(tmp_path / "strip.png")
    image = streams.open_photo(tmp_path / "strip.png", crop=600, resize=700)
    assert (image == 200).all()


def test_sixteen_bits_become_eight(tmp_path):
    ramp = np.linspace(0, 65535, 40 * 40).astype(np.uint16).reshape(40, 40)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    image = streams.open_photo(tmp_path / "ramp.png", crop=40, resize=40)
    np.testing.assert_array_equal(image, np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, -1))
