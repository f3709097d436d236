"""Decoded data sets, kept as arrays on disk so that the second start takes a fraction of a second."""

import hashlib
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import BinaryIO

import numpy as np

from cnnjax.data.arrays import Arrays, Dataset

_FORMAT = 1  # part of every key: raise it when what is stored, or how a source decodes, changes


def cache_directory(cache_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Where decoded sets and downloads are kept: `cache_dir`, else $CNNJAX_CACHE, else ~/.cache/cnnjax/data."""
    return pathlib.Path(cache_dir or os.environ.get("CNNJAX_CACHE") or "~/.cache/cnnjax/data").expanduser()


def cached(
    name: str,
    identity: dict[str, object],
    build: Callable[[], Dataset],
    cache_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """The data set that `build()` gives, from the cache if it is there, else built and put there.

    A damaged cache file is rebuilt with a note, and one that cannot be written costs a warning: both on standard error.

    Args:
      name: the data set's name; begins the file's name.
      identity: everything the result depends on, such as the raw files' sha256 and the size; JSON-able.
      build: makes the data set; called only if it is not in the cache.
      cache_dir: see `cache_directory`.
    """
    key = json.dumps({"format": _FORMAT, "name": name, **identity}, sort_keys=True)
    stem = "".join(c if c.isalnum() else "_" for c in name)
    path = cache_directory(cache_dir) / f"{stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    try:
        return _read(path, key)
    except FileNotFoundError:
        pass
    except Exception as error:  # damage can surface as almost any exception of zipfile, numpy or json
        print(f"cnnjax: the cached data set {path} is damaged ({error}); building it again", file=sys.stderr)
    dataset = build()
    write_atomically(path, lambda file: _write(file, dataset, key))
    return dataset


def write_atomically(path: pathlib.Path, write: Callable[[BinaryIO], object]) -> bool:
    """Write `path` by `write(file)` so that it is either complete or absent; a warning and False where it can't be."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            write(file)
        os.replace(temporary, path)
        return True
    except OSError as error:
        print(f"cnnjax: warning: {path} could not be written ({error}); going on without it", file=sys.stderr)
        return False
    finally:
        if temporary is not None and os.path.exists(temporary):  # the write or the replacement failed
            os.unlink(temporary)


def _write(file: BinaryIO, dataset: Dataset, key: str) -> None:
    about = {
        "key": key,
        "name": dataset.name,
        "classes": dataset.classes,
        "provenance": dataset.provenance,
        "splits": list(dataset.splits()),  # so that a split whose name in the zip is damaged is missed
    }
    arrays = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
    for name, split in dataset.splits().items():
        arrays |= {f"{name}_image": split.image, f"{name}_label": split.label}
    np.savez(file, allow_pickle=False, **arrays)


def _read(path: pathlib.Path, key: str) -> Dataset:
    # zipfile checks each array's CRC as it is read. Opened here because np.load leaks a damaged file it opened itself.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        about = json.loads(stored["about"].tobytes())
        if about["key"] != key:
            raise ValueError("it holds something else")
        splits = {name: Arrays(stored[f"{name}_image"], stored[f"{name}_label"]) for name in about["splits"]}
    return Dataset(
        about["name"],
        splits["train"],
        splits.get("test"),
        splits.get("validation"),
        tuple(about["classes"]),
        about["provenance"],
    )
