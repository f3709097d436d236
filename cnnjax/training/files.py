"""The files of a run's folder: regular ones alone are read, all are written by rename, and records carry a seal.

So a named pipe never makes a reader wait, nothing is written through a link to a file elsewhere, and a record that was
damaged or edited is noticed.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import pathlib
import stat
from collections.abc import Generator
from typing import Any


@contextlib.contextmanager
def open_regular(path: pathlib.Path) -> Generator[io.BufferedReader]:
    """Opens a regular file for reading.

    Raises:
      OSError: it is missing, unreadable, or a folder, a pipe, a device or a loop of links.
    """
    # A pipe without a writer would wait for one; O_NONBLOCK opens it, and then it is seen for what it is.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read(path: pathlib.Path) -> bytes:
    """The content of a regular file; an `OSError` as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def sha256(path: pathlib.Path) -> str:
    """The sha256 of a regular file's content, in hexadecimal; an `OSError` as `open_regular`."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file that holds either its old content or all of the new, whenever the process is killed.

    A link of that name is replaced by the file; what it points to is left alone.

    Raises:
      OSError: it can't be written; a folder stands in its place, or in that of the file that is written first.
    """
    temporary = path.with_name(path.name + ".tmp")
    for place in (path, temporary):
        if place.is_dir() and not place.is_symlink():
            raise OSError(errno.EISDIR, "a folder stands where a file is to be written: move it away", str(place))
    temporary.unlink(missing_ok=True)  # of a process that was killed, or a link
    with temporary.open("xb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def version_of(record: dict[str, Any]) -> str | None:
    """The version of cnnjax that last wrote a run's record; None where the record doesn't say."""
    history = record.get("history")
    last = history[-1] if isinstance(history, list) and history else None
    versions = last.get("versions") if isinstance(last, dict) else None
    version = versions.get("cnnjax") if isinstance(versions, dict) else None
    return version if isinstance(version, str) else None


def earlier_version(record: dict[str, Any]) -> str:
    """Says that an earlier version of cnnjax wrote a run's record, and which, where the record says so."""
    version = version_of(record)
    return "an earlier version of cnnjax" + (f" (recorded as {version})" if version else "")


def seal(content: Any) -> str:
    """The sha256 of what JSON can hold, keys sorted: equal exactly when all of it is."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
