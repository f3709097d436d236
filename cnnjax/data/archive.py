"""Reading tar archives, without ever extracting one to disk."""

import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from cnnjax.ops.errors import InputError


def read_members(file: BinaryIO, where: str) -> Iterator[tuple[str, bytes]]:
    """The regular files of a tar archive, in its order; links, devices, directories and hidden files are passed over.

    Args:
      file: the archive, plain or compressed (gzip, bzip2, xz), open for reading.
      where: its name, for errors.

    Yields:
      (name, content); a name has neither a leading "./" nor ".." in it.

    Raises:
      InputError: if the archive is damaged or cut short, or a name leads out of it.
    """
    try:
        with tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                parts = [part for part in member.name.split("/") if part not in ("", ".")]
                if ".." in parts:
                    raise InputError(f"{where}: the member {member.name!r} leads out of the archive")
                if not member.isfile() or any(part.startswith(".") for part in parts):
                    continue
                content = archive.extractfile(member)
                assert content is not None  # it is a regular file
                yield "/".join(parts), content.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InputError(f"{where}: the archive is damaged or cut short ({error})") from None
