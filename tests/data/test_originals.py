"""MNIST, Fashion-MNIST and CIFAR-10 from their original files, and everything that can be wrong with those."""

import gzip
import hashlib
import os
import urllib.request

import numpy as np
import pytest

from cnnjax import data
from cnnjax.data import idx, originals
from cnnjax.ops.errors import InputError


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(("name", "labels"), [("mnist", [5, 0, 4, 1, 9]), ("fashion_mnist", [9, 0, 0, 3, 0])])
def test_real_files(name, labels, real_data, shared_cache):
    first = data.load(name, raw_dir=real_data(name), cache_dir=shared_cache)
    second = data.load(name, raw_dir=real_data(name), cache_dir=shared_cache)
    for dataset in (first, second):
        assert dataset.train.image.shape == (60_000, 28, 28, 1)
        assert dataset.test.image.shape == (10_000, 28, 28, 1)
        assert dataset.train.label[:5].tolist() == labels
        assert dataset.validation is None
        assert len(dataset.classes) == 10
        assert len(dataset.provenance) == 4
    assert np.array_equal(first.train.image, second.train.image)
    assert np.array_equal(first.test.label, second.test.label)
    # the usual constants of the training images
    if name == "mnist":
        (mean,), (std,) = data.channel_mean_std(first.train.image)
        assert (round(mean, 4), round(std, 4)) == (0.1307, 0.3081)
    # Known and cached: needs neither raw_dir nor network.
    assert np.array_equal(data.load(name, cache_dir=shared_cache).test.image, first.test.image)


def test_real_cifar10_jpeg(real_data, shared_cache):
    dataset = data.load("cifar10", raw_dir=real_data("cifar10_jpeg"), cache_dir=shared_cache)
    assert dataset.train.image.shape == (50_000, 32, 32, 3)
    assert np.bincount(dataset.train.label).tolist() == [5000] * 10
    assert np.bincount(dataset.test.label).tolist() == [1000] * 10
    assert dataset.classes[:3] == ("airplane", "automobile", "bird")
    assert "JPEG" in dataset.provenance["edition"]
    mean, _ = data.channel_mean_std(dataset.train.image)
    np.testing.assert_allclose(mean, (0.4914, 0.4822, 0.4465), atol=0.002)  # the original's
    again = data.load("cifar10", raw_dir=real_data("cifar10_jpeg"), cache_dir=shared_cache)
    assert np.array_equal(again.train.image, dataset.train.image)
    assert again.provenance == dataset.provenance


def test_digits():
    dataset = data.load("digits")
    assert dataset.train.image.shape == (1437, 8, 8, 1)
    assert dataset.test.image.shape == (360, 8, 8, 1)
    assert dataset.train.image.max() == 255
    everything = np.bincount(dataset.train.label) + np.bincount(dataset.test.label)
    assert (np.abs(np.bincount(dataset.test.label) - everything * 360 / 1797) < 1).all()
    assert np.array_equal(data.load("digits").test.image, dataset.test.image)
    # The split is part of every published number: it must never move.
    assert dataset.provenance["sha256 of the arrays"].startswith("7786b5acf17bc8cf")
    with pytest.raises(InputError, match="raw_dir"):
        data.load("digits", raw_dir="x")


def test_small_set(small_idx):
    folder = small_idx("mnist")
    dataset = data.load("mnist", raw_dir=folder)
    raw = gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes())
    assert dataset.train.image.tobytes() == raw[16:]
    assert dataset.train.label.dtype == np.int32
    resized = data.load("mnist", raw_dir=folder, size=(14, 20))
    assert resized.test.image.shape == (20, 14, 20, 1)


def damage(folder, kind):
    path = folder / "train-images-idx3-ubyte.gz"
    content = path.read_bytes()
    if kind == "lacking":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(content[:1000])
    elif kind == "altered":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif kind == "unpacked":
        path.unlink()
        path.with_suffix("").write_bytes(gzip.decompress(content))
    elif kind == "huge":
        os.truncate(path, 2**30 + 1)  # which takes no room on disk
    elif kind == "cleared":
        for file in folder.iterdir():
            file.unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("lacking", r"lacks train-images-idx3-ubyte\.gz"),
        ("truncated", r"train-images-idx3-ubyte\.gz is truncated: 1000 bytes of \d+"),
        ("altered", r"train-images-idx3-ubyte\.gz has been altered: sha256"),
        ("unpacked", "lacks.*leave the files compressed"),
        ("huge", r"train-images-idx3-ubyte\.gz has 1,073,741,825 bytes, allowed: up to 1,073,741,824"),
        ("cleared", "is empty"),
    ],
)
@pytest.mark.parametrize("loaded_before", [False, True])
def test_wrong_raw_files(kind, message, loaded_before, small_idx):
    folder = small_idx("mnist")
    if loaded_before:  # the cache must not hide what became of the files
        data.load("mnist", raw_dir=folder)
    damage(folder, kind)
    with pytest.raises(InputError, match=message) as error:
        data.load("mnist", raw_dir=folder)
    assert "\n" not in str(error.value)


def test_wrong_raw_dir(tmp_path, small_idx):
    mnist, fashion = small_idx("mnist"), small_idx("fashion_mnist", seed=1)
    with pytest.raises(InputError, match="does not exist"):
        data.load("mnist", raw_dir=tmp_path / "nowhere")
    with pytest.raises(InputError, match="is a file"):
        data.load("mnist", raw_dir=mnist / "t10k-labels-idx1-ubyte.gz")
    with pytest.raises(InputError, match=r"is t10k-images-idx3-ubyte.gz of fashion_mnist, not .* of mnist"):
        data.load("mnist", raw_dir=fashion)


def test_offline(small_idx):
    small_idx("mnist")
    with pytest.raises(InputError, match=r"http://0\.0\.0\.0:9/.*could not be downloaded.*--data\.raw-dir"):
        data.load("mnist")


def test_download(small_idx, tmp_path, monkeypatch, capsys):
    folder = small_idx("mnist")
    opened = []

    def urlopen(url, timeout):
        opened.append(url)
        return (folder / url.rsplit("/", 1)[1]).open("rb")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    dataset = data.load("mnist", cache_dir=tmp_path / "c")
    assert len(opened) == 4
    assert "downloading" in capsys.readouterr().err
    data.load("mnist", cache_dir=tmp_path / "c")
    resized = data.load("mnist", cache_dir=tmp_path / "c", size=(14, 14))  # from the downloaded files
    assert len(opened) == 4
    assert len(resized.train) == len(dataset.train) == 50
    # A download that isn't the published file is refused.
    damage(folder, "truncated")
    with pytest.raises(InputError, match="truncated: 1000 bytes"):
        data.load("mnist", cache_dir=tmp_path / "d")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file.*nothing"),
        (b"\x1f\x8b\x08\x00", "gzip stream is damaged or cut short"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x02ab", mtime=0)[:-9], "gzip stream is damaged or cut short"),
        (b"PNG?", "not an idx file"),
        (b"\0\0\x07\x01\0\0\0\x01a", "not an idx file"),
        (b"\0\0\x08\x03\0\0", "header is cut short"),
        (b"\0\0\x08\x01\0\0\0\x02a", r"states shape \(2,\), 10 bytes; the file has 9"),
        (b"\0\0\x08\x01\0\0\0\x02abc", "the file has 11"),
        (b"\0\0\x08\x02\xff\xff\xff\xff\xff\xff\xff\xffabc", "the file has 15"),
    ],
)
def test_idx_refuses(content, message):
    with pytest.raises(InputError, match=message):
        idx.parse_idx(content, "it")


def test_idx_types():
    assert idx.parse_idx(b"\0\0\x0b\x01\0\0\0\x02\x00\x01\xff\xff", "it").tolist() == [1, -1]
    with pytest.raises(InputError, match="images"):
        idx.parse_images_labels(b"\0\0\x08\x01\0\0\0\x01a", b"\0\0\x08\x01\0\0\0\x01a", "it")
    with pytest.raises(InputError, match="labels"):
        idx.parse_images_labels(b"\0\0\x08\x03\0\0\0\x01\0\0\0\x01\0\0\0\x01a", b"\0\0\x0b\x01\0\0\0\x01aa", "it")
    with pytest.raises(InputError, match="1 images but 2 labels"):
        idx.parse_images_labels(b"\0\0\x08\x03\0\0\0\x01\0\0\0\x01\0\0\0\x01a", b"\0\0\x08\x01\0\0\0\x02aa", "it")


def binary_cifar(folder, files, monkeypatch, cut=0):
    folder.mkdir()
    rng = np.random.default_rng(0)
    label = rng.integers(0, 10, (6, 7), dtype=np.uint8)
    image = rng.integers(0, 256, (6, 7, 32, 32, 3), dtype=np.uint8)
    members = {}
    for i, name in enumerate([*(f"data_batch_{b}" for b in range(1, 6)), "test_batch"]):
        records = [bytes([c]) + x.transpose(2, 0, 1).tobytes() for c, x in zip(label[i], image[i], strict=True)]
        members[f"cifar-10-batches-bin/{name}.bin"] = b"".join(records)[: -cut or None]
    files.tar(folder / "cifar-10-binary.tar.gz", members)
    content = (folder / "cifar-10-binary.tar.gz").read_bytes()
    known = originals.Original("cifar-10-binary.tar.gz", len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(originals.ORIGINALS, "cifar10", (known,))
    return image, label


def test_cifar10_binary(tmp_path, files, monkeypatch):
    image, label = binary_cifar(tmp_path / "raw", files, monkeypatch)
    dataset = data.load("cifar10", raw_dir=tmp_path / "raw")
    assert np.array_equal(dataset.train.image, image[:5].reshape(35, 32, 32, 3))
    assert np.array_equal(dataset.test.image, image[5])
    assert np.array_equal(dataset.train.label, label[:5].ravel())
    assert "original" in dataset.provenance["edition"]


def test_cifar10_errors(tmp_path, files, monkeypatch):
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(InputError, match=r"lacks cifar-10-binary\.tar\.gz, or train\.tar\.gz"):
        data.load("cifar10", raw_dir=tmp_path)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"x")
    with pytest.raises(InputError, match="pickled"):
        data.load("cifar10", raw_dir=tmp_path)
    binary_cifar(tmp_path / "cut", files, monkeypatch, cut=5)
    with pytest.raises(InputError, match=r"data_batch_1\.bin.*no whole number"):
        data.load("cifar10", raw_dir=tmp_path / "cut")


def test_unknown_name():
    with pytest.raises(InputError, match="unknown data set 'minst': did you mean 'mnist'"):
        data.load("minst")
    assert {"digits", "mnist", "fashion_mnist", "cifar10", "folder", "tfds:NAME"} == set(data.names())


def test_a_set_of_ones_own(monkeypatch):
    def load_stripes(**_):
        image = np.zeros((4, 4, 4, 1), np.uint8)
        image[::2, ::2] = 255
        stripes = data.Arrays(image, np.array([1, 0, 1, 0], np.int32))
        return data.Dataset("stripes", stripes, stripes, None, ("no", "yes"), {})

    monkeypatch.setitem(data.DATASETS, "stripes", load_stripes)
    assert data.load("stripes").train.image.shape == (4, 4, 4, 1)
    assert data.load("stripes", size=(8, 8)).test.image.shape == (4, 8, 8, 1)


@pytest.mark.parametrize("size", [(0, 3), (3,), "large", 5, (2, -1)])
def test_bad_size(size):
    with pytest.raises(InputError, match="size"):
        data.load("digits", size=size)
