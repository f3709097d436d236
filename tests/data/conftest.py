"""Small data sets in the published formats, and a cache of their own for the tests."""

import gzip
import hashlib
import io
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image

from cnnjax.data import originals


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("CNNJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def idx(array: np.ndarray) -> bytes:
    """A uint8 array as a gzipped idx file."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


@pytest.fixture
def small_idx(tmp_path, monkeypatch):
    """`small_idx(name)`: a folder with a small set in the four files of `name`, made known as the originals."""

    def make(name: str, seed: int = 0):
        rng = np.random.default_rng(seed)
        folder = tmp_path / f"{name}_{seed}"
        folder.mkdir()
        for part, n in (("train", 50), ("t10k", 20)):
            (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(rng.integers(0, 256, (n, 28, 28))))
            (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(rng.integers(0, 10, n)))
        files = [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]
        known = tuple(
            originals.Original(file, len(content), hashlib.sha256(content).hexdigest(), f"http://0.0.0.0:9/{file}")
            for file, content in files
        )
        monkeypatch.setitem(originals.ORIGINALS, name, known)
        return folder

    return make


def png(array: np.ndarray) -> bytes:
    """A uint8 array `[h, w]` or `[h, w, 3]` as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def tar(path, members: dict[str, bytes]) -> None:
    """Write a gzipped tar with these members."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def pictures():
    """A small set of image files, by name: 2 classes, 5 training, 3 test images of 6x5, RGB."""
    rng = np.random.default_rng(0)
    names = [f"train/cat/{i}.png" for i in range(3)] + ["train/dog/0.png", "train/dog/1.png"]
    names += ["test/dog/0.png", "test/cat/1.png", "test/cat/0.png"]
    return {name: png(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)) for name in names}


@pytest.fixture
def files():
    """Helpers to write the formats."""

    class Files:
        idx = staticmethod(idx)
        png = staticmethod(png)
        tar = staticmethod(tar)

        @staticmethod
        def tree(root, members: dict[str, bytes]):
            for name, content in members.items():
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            return root

    return Files
