"""Decoded data sets, kept as arrays on disk so that the second start takes a fraction of a second."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import secrets
import stat
import sys
import time
from collections.abc import Callable
from typing import BinaryIO

import numpy as np

from cnnjax import terminal
from cnnjax.data.arrays import Arrays, Dataset, NoSplit
from cnnjax.ops.errors import InputError

_FORMAT = 1  # part of every key: raise it when what is stored, or how a source decodes, changes
_UNFINISHED = ".unfinished"
_YOUNG = 10  # seconds


def cache_directory(cache_dir: str | os.PathLike[str] | None = None) -> pathlib.Path | None:
    """Where decoded sets and downloads are kept: `cache_dir`, else $CNNJAX_CACHE, else ~/.cache/cnnjax/data.

    None where this user has no home folder, as in containers: nothing is kept then.

    Raises:
      InputError: if `cache_dir` or $CNNJAX_CACHE begins with the home folder of a user who has none.
    """
    given = cache_dir or os.environ.get("CNNJAX_CACHE")
    try:
        return pathlib.Path(given or "~/.cache/cnnjax/data").expanduser()
    except RuntimeError as error:
        if given:
            raise InputError(f"cache_dir {str(given)!r}: {error}") from None
        return None


def originals_directory(name: str, cache_dir: str | os.PathLike[str] | None = None) -> pathlib.Path | None:
    """Where the downloaded files of the set `name` are kept; None where nothing is kept."""
    folder = cache_directory(cache_dir)
    return None if folder is None else folder / "originals" / name


def cached(
    name: str,
    identity: dict[str, object],
    build: Callable[[], Dataset],
    cache_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """The data set that `build()` gives, from the cache if it is there, else built and put there.

    A damaged cache file is rebuilt with a note; one that cannot be read or written costs a warning: all on standard
    error. What was left behind by a process that was killed while it wrote is removed.

    Args:
      name: the data set's name; begins the file's name.
      identity: everything the result depends on, such as the raw files' sha256 and the size; JSON-able.
      build: makes the data set; called only if it is not in the cache.
      cache_dir: see `cache_directory`.
    """
    folder = cache_directory(cache_dir)
    if folder is None:
        terminal.say(
            f"cnnjax: this user has no home folder, so {name} is decoded at each start; --data.cache-dir or"
            " CNNJAX_CACHE names a folder to keep it in",
            sys.stderr,
        )
        return build()
    remove_abandoned(folder)
    key = json.dumps({"format": _FORMAT, "name": name, **identity}, sort_keys=True)
    stem = "".join(c if c.isalnum() else "_" for c in name)
    path = folder / f"{stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    try:
        return _read(path, key)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except PermissionError as error:  # another user's, who let nobody read it
        terminal.say(f"cnnjax: {path} cannot be read ({error.strerror}); going on without it", sys.stderr)
        return build()
    except Exception as error:  # damage can surface as almost any exception of zipfile, numpy or json
        terminal.say(f"cnnjax: the cached data set {path} is damaged ({error}); building it again", sys.stderr)
    dataset = build()
    write_atomically(path, lambda file: _write(file, dataset, key))
    return dataset


def cached_for(
    needed: str,
    name: str,
    identity: dict[str, object],
    build: Callable[[str], Callable[[], Dataset]],
    cache_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """As `cached`, of a set of which only the split `needed` is needed, where it has no "train".

    Args:
      needed: the split.
      name: as for `cached`, as are `identity` and `cache_dir`.
      build: gives for a split what builds the set, or raises `NoSplit` where it has neither that nor "train".
    """
    try:
        return cached(name, identity, build("train"), cache_dir)
    except NoSplit:
        if needed == "train":
            raise
        return cached(name, identity | {"needed": needed}, build(needed), cache_dir)


def write_atomically(path: pathlib.Path, write: Callable[[BinaryIO], object]) -> bool:
    """Write `path` by `write(file)` so that it is either complete or absent; a warning and False where it can't be.

    Until it is complete it is a hidden file, which this process holds locked: see `remove_abandoned`.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}{_UNFINISHED}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:  # with the rights that the umask gives, for other users of the cache
            with contextlib.suppress(OSError):  # where files can't be locked
                fcntl.flock(file, fcntl.LOCK_EX)
            write(file)
            file.flush()
            os.replace(temporary, path)
        return True
    except OSError as error:
        terminal.say(f"cnnjax: warning: {path} could not be written ({error}); going on without it", sys.stderr)
        return False
    finally:
        with contextlib.suppress(OSError):  # it is there where the write or the replacement failed
            temporary.unlink()


def remove_abandoned(folder: pathlib.Path) -> None:
    """Removes what processes that were killed while they wrote into `folder` left there: files that nobody locks."""
    for path in folder.glob(f".*{_UNFINISHED}"):
        with contextlib.suppress(OSError), _open(path) as file:
            if time.time() - path.stat().st_mtime > _YOUNG:  # a newer one may be about to be locked
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _open(path: pathlib.Path) -> BinaryIO:
    """A file to read; anything else, such as a pipe, which would be waited for, is an `OSError`."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path} is no file")
    return path.open("rb")


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
    with _open(path) as file, np.load(file, allow_pickle=False) as stored:
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
