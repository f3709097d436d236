"""CIFAR-10, from the original binary archive or from an edition of JPEG files.

A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009.
"""

import io
import pathlib

import numpy as np

from cnnjax.data.archive import read_members
from cnnjax.data.arrays import Arrays, Dataset
from cnnjax.data.cache import cached, originals_directory
from cnnjax.data.images import Size, decode_all, pillow_version, resize_dataset, resize_identity
from cnnjax.data.originals import ORIGINALS, Path, existing_directory, fetch_originals, read_originals
from cnnjax.ops.errors import InputError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_EDITIONS = {
    "cifar10": "original binary version",
    "cifar10_jpeg": "lossy JPEG re-encoding (4:2:0, quality 75): not comparable with results on the original",
}
_RECORD = 1 + 3 * 32 * 32  # the label, then the red, green and blue planes


def load_cifar10(
    *,
    raw_dir: Path | None = None,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    size: Size | None = None,
) -> Dataset:
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32, RGB, ten classes.

    Args:
      raw_dir: a folder with `cifar-10-binary.tar.gz`; or with `train.tar.gz` and `test.tar.gz`, the known edition of
        JPEG files. Either is verified each time, and `provenance["edition"]` says which it was. Without it the
        original: from the cache, else by download.
      data_dir: not used by this set.
      cache_dir: see `cnnjax.data.cache.cache_directory`.
      size: (height, width) to resize to.

    Raises:
      InputError: if the files are missing, not the known ones, or cannot be downloaded.
    """
    edition = "cifar10" if raw_dir is None else _edition(raw_dir)
    contents = read_originals(edition, raw_dir) if raw_dir is not None else None

    def build() -> Dataset:
        files = contents or fetch_originals(edition, originals_directory(edition, cache_dir))
        train, test = _decode_binary(files) if edition == "cifar10" else _decode_jpegs(files)
        provenance = {"edition": _EDITIONS[edition]} | {file.name: file.sha256 for file in ORIGINALS[edition]}
        if edition == "cifar10_jpeg":
            provenance["decoder"] = pillow_version()
        return resize_dataset(Dataset("cifar10", train, test, None, CLASSES, provenance), size)

    identity: dict[str, object] = {"files": [file.sha256 for file in ORIGINALS[edition]], **resize_identity(size)}
    if edition == "cifar10_jpeg":
        identity["decoder"] = pillow_version()
    return cached("cifar10", identity, build, cache_dir)


def _edition(raw_dir: Path) -> str:
    """Which of the editions (keys of `_EDITIONS`) `raw_dir` holds."""
    wanted = "cifar-10-binary.tar.gz, or train.tar.gz and test.tar.gz of the JPEG edition"
    folder = existing_directory(raw_dir, wanted)
    if (folder / "cifar-10-binary.tar.gz").exists():
        return "cifar10"
    if (folder / "train.tar.gz").exists() or (folder / "test.tar.gz").exists():
        return "cifar10_jpeg"
    pickled = (folder / "cifar-10-python.tar.gz").exists()
    hint = " (the Python version is pickled: unpickling runs what the file says, so it isn't read)" if pickled else ""
    raise InputError(f"raw_dir {str(raw_dir)!r} lacks {wanted}{hint}")


def _decode_binary(contents: dict[str, bytes]) -> tuple[Arrays, Arrays]:
    """(train, test) of the binary version: batches of records of 3,073 bytes."""
    (archive,) = contents.values()
    members = {pathlib.PurePosixPath(name).name: data for name, data in read_members(io.BytesIO(archive), "cifar10")}

    def batch(file_name: str) -> Arrays:
        if file_name not in members:
            raise InputError(f"cifar-10-binary.tar.gz lacks {file_name}")
        if not members[file_name] or len(members[file_name]) % _RECORD:
            length = len(members[file_name])
            raise InputError(f"{file_name}: {length} bytes are no whole number of {_RECORD}-byte records")
        records = np.frombuffer(members[file_name], np.uint8).reshape(-1, _RECORD)
        image = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return Arrays(np.ascontiguousarray(image), records[:, 0].astype(np.int32))

    batches = [batch(f"data_batch_{i}.bin") for i in range(1, 6)]
    train = Arrays(np.concatenate([b.image for b in batches]), np.concatenate([b.label for b in batches]))
    return train, batch("test_batch.bin")


def _decode_jpegs(contents: dict[str, bytes]) -> tuple[Arrays, Arrays]:
    """(train, test) of the JPEG edition, in the archives' order, in which the classes alternate."""

    def part(split: str) -> Arrays:
        members = list(read_members(io.BytesIO(contents[f"{split}.tar.gz"]), f"{split}.tar.gz"))
        label = np.array([CLASSES.index(name.split("/")[1]) for name, _ in members], np.int32)
        return Arrays(decode_all(members, None).image, label)

    return part("train"), part("test")
