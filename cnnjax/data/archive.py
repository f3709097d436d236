"""Reading tar archives, without ever extracting one to disk.

A tar has no checksum over all of it, and Python's `tarfile` takes a damaged header for the end of the archive. So here
every header must be good, the archive must end as tars end, and nothing may follow; a compressed one is read to its
end, where gzip, bzip2 and xz keep their checksums. The contents of the members of a plain tar have no checksum, nor
have names where they are longer than 100 characters or beyond ASCII: those stand in a member of their own, and are held
to what the header has of them.
"""

import bz2
import gzip
import lzma
import sys
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Self

from cnnjax import terminal
from cnnjax.data.images import LARGEST_FILE, check_length
from cnnjax.ops.errors import InputError

_BOMB = 2**30  # a compressed archive may expand to so many bytes in any case, beyond that
_EXPANSION = 200  # only so many times; images, being compressed themselves, expand little
_CHUNK = 2**20
# What tarfile and the decompressors raise on damaged archives.
_DAMAGE = (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, RecursionError, zlib.error, lzma.LZMAError)


class _Strict(tarfile.TarInfo):
    """A member whose header must be good: `tarfile` passes over some damage."""

    in_header: str | None = None
    """The name in the header itself, which its checksum covers."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:  # ty: ignore[lost-keyword-for-regular-parameter]
        """The next member; where its header is bad, a `tarfile.ReadError`.

        `tarfile` calls this again for the header that follows a name, and only then takes the name.
        """
        try:
            member = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # ty: ignore[missing-attribute]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no good header {archive.offset:,} bytes in: {error}") from None
        if member.in_header is None:
            member.in_header = member.name
        elif not _begins(member.name, member.in_header):
            raise tarfile.ReadError(f"a member is called {member.name!r}, and {member.in_header!r} in its header")
        return member


def _begins(name: str, in_header: str) -> bool:
    """Whether a header has the beginning of a name; for a character beyond ASCII it may have "?", or a part of it."""
    cut = len(in_header.encode(errors="surrogateescape")) >= tarfile.LENGTH_NAME - 3  # or less, before a character
    stands_for = lambda there, here: here == there or (not there.isascii() and (here == "?" or not here.isascii()))
    return (cut or len(in_header) == len(name)) and all(map(stands_for, name, in_header))


class _Forward:
    """A file that is read once from its beginning to its end, as `tarfile` reads it, and not without bounds."""

    def __init__(self, compressed: BinaryIO, content: Any):
        """`content`, to be read, is what `compressed` decompresses to, or the same file."""
        self._compressed, self._content, self._position = compressed, content, 0

    def tell(self) -> int:
        """How much has been read."""
        return self._position

    def seek(self, position: int) -> int:
        """Reads up to `position`, which must not lie behind."""
        if position < self._position:
            raise tarfile.ReadError("a header points back into what was read")
        while self._position < position and self.read(min(_CHUNK, position - self._position)):
            pass
        return self._position

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, fewer only at the end."""
        if size > LARGEST_FILE + tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        parts = []
        while size and (part := self._content.read(min(size, _CHUNK))):
            parts.append(part)
            size -= len(part)
            self._position += len(part)
            if self._position > _BOMB and self._content is not self._compressed:
                packed = self._compressed.tell()
                if self._position > _EXPANSION * packed:
                    raise tarfile.ReadError(f"{packed:,} bytes expand to over {self._position:,}, which no images do")
        return b"".join(parts)


def _decompressed(file: BinaryIO) -> Any:
    """What a compressed file holds, by how it begins; the file itself where it is not compressed."""
    head = file.read(6)
    file.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)
    if head.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if head.startswith((b"\xfd7zXZ\x00", b"\x5d\x00\x00")):
        return lzma.LZMAFile(file)
    return file


def read_members(file: BinaryIO, where: str) -> Iterator[tuple[str, bytes]]:
    """The regular files of a tar archive, in its order; directories and hidden files are passed over.

    So are links and devices, with a line on standard error. The archive is known to be good only after the last member:
    what is done with the ones before should wait for that.

    Args:
      file: the archive, plain or compressed (gzip, bzip2, xz), open for reading.
      where: its name, for errors.

    Yields:
      (name, content); a name has neither a leading "./" nor ".." in it, and comes once.

    Raises:
      InputError: if the archive is damaged or cut short, something follows its end, a name leads out of it or comes
        twice, or a member is sparse or beyond measure.
    """
    seen, links = set(), []
    try:
        stream = _Forward(file, _decompressed(file))
        with tarfile.TarFile(fileobj=stream, tarinfo=_Strict) as archive:  # ty: ignore[invalid-argument-type]
            while (member := archive.next()) is not None:
                parts = [part for part in member.name.split("/") if part not in ("", ".")]
                if ".." in parts:
                    raise InputError(f"{where}: the member {member.name!r} leads out of the archive")
                if member.isdir() or any(part.startswith(".") for part in parts):
                    continue
                if member.issparse():
                    raise InputError(f"{where}: the member {member.name!r} is sparse, which no image is")
                if not member.isfile():
                    links.append(member.name)
                    continue
                check_length(member.size, f"{where}: the member {member.name!r}")
                name = "/".join(parts)
                if name in seen:
                    raise InputError(f"{where}: the member {name!r} comes twice")
                seen.add(name)
                content = archive.extractfile(member)
                assert content is not None  # it is a regular file
                yield name, content.read()
        _check_end(stream)
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(f"{where}: the archive is damaged or cut short ({error})") from None
    if links:
        terminal.say(
            f"cnnjax: {where}: {len(links):,} links or devices are passed over, such as {links[0]!r}", sys.stderr
        )


def _check_end(stream: _Forward) -> None:
    """After the first of the blocks of zeros that end a tar: at least one follows, and nothing else does."""
    length = 0
    while chunk := stream.read(_CHUNK):
        if chunk.strip(b"\0"):
            raise tarfile.ReadError("something is left over after its end: several archives in one file?")
        length += len(chunk)
    if length < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("its end is missing")
