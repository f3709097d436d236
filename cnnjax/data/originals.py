"""The published files of each data set: their names, sizes, checksums and addresses; reading and downloading them."""

import dataclasses
import hashlib
import os
import pathlib
import sys
import urllib.error
import urllib.request

from cnnjax.data.cache import write_atomically
from cnnjax.data.images import read_whole
from cnnjax.ops.errors import InputError

Path = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Original:
    """One published file.

    Attributes:
      name: its file name.
      size: its length in bytes.
      sha256: its checksum, in hexadecimal.
      url: where it can be downloaded; None if nowhere.
    """

    name: str
    size: int
    sha256: str
    url: str | None = None


_MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist/"
_FASHION = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"

# Sizes and checksums as TensorFlow Datasets 4.9.10 registers them; for cifar10_jpeg, those of the archives.
ORIGINALS: dict[str, tuple[Original, ...]] = {
    "mnist": tuple(
        Original(name, size, sha256, _MNIST + name)
        for name, size, sha256 in [
            (
                "train-images-idx3-ubyte.gz",
                9912422,
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            ("train-labels-idx1-ubyte.gz", 28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            ("t10k-images-idx3-ubyte.gz", 1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            ("t10k-labels-idx1-ubyte.gz", 4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ]
    ),
    "fashion_mnist": tuple(
        Original(name, size, sha256, _FASHION + name)
        for name, size, sha256 in [
            (
                "train-images-idx3-ubyte.gz",
                26421880,
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            ("train-labels-idx1-ubyte.gz", 29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            ("t10k-images-idx3-ubyte.gz", 4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            ("t10k-labels-idx1-ubyte.gz", 5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ]
    ),
    "cifar10": (
        Original(
            "cifar-10-binary.tar.gz",
            170052171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        ),
    ),
    "cifar10_jpeg": (
        Original("train.tar.gz", 16370272, "555441d8641d8263990f459367b201dfbfaa3a90b1467912e78b9c5f92b325d4"),
        Original("test.tar.gz", 3276510, "8c34a68adf8122920b1e64bd93bb416fde65099efdedac4776f80fcde248efe0"),
    ),
}


def existing_directory(raw_dir: Path, holding: str) -> pathlib.Path:
    """`raw_dir` as a path, after checking that it is a directory with something in it.

    Args:
      raw_dir: the directory the user named.
      holding: what it must hold, for the error.

    Raises:
      InputError: if it is missing, is not a directory, cannot be read or is empty.
    """
    try:
        folder = pathlib.Path(raw_dir).expanduser()
        if not folder.exists():
            raise InputError(f"raw_dir {str(raw_dir)!r} does not exist; it must hold {holding}")
        if not folder.is_dir():
            raise InputError(f"raw_dir {str(raw_dir)!r} is a file; it must be a folder that holds {holding}")
        if not any(folder.iterdir()):
            raise InputError(f"raw_dir {str(raw_dir)!r} is empty; it must hold {holding}")
    except (OSError, RuntimeError, ValueError) as error:  # also of ~nobody, and of names that hold a zero byte
        if isinstance(error, InputError):
            raise
        raise InputError(f"raw_dir {str(raw_dir)!r} cannot be read: {error}") from None
    return folder


def read_originals(name: str, raw_dir: Path) -> dict[str, bytes]:
    """The original files of the set `name` (a key of `ORIGINALS`) in `raw_dir`: contents by file name, verified.

    Raises:
      InputError: if `raw_dir` is missing, a file or empty, or a file in it is missing, truncated, altered, or another
        set's.
    """
    originals = ORIGINALS[name]
    wanted = ", ".join(original.name for original in originals)
    folder = existing_directory(raw_dir, f"the original files of {name}: {wanted}")
    for original in originals:
        if not (folder / original.name).is_file():
            unpacked = original.name.removesuffix(".gz")
            hint = f" (found {unpacked}: leave the files compressed)" if (folder / unpacked).exists() else ""
            raise InputError(f"raw_dir {str(raw_dir)!r} lacks {original.name}{hint}; {name} needs {wanted}")
    return {original.name: _read_original(name, original, folder / original.name) for original in originals}


def _read_original(name: str, original: Original, path: pathlib.Path) -> bytes:
    try:
        content = read_whole(path, str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    verify(name, original, content, str(path))
    return content


def verify(name: str, original: Original, content: bytes, where: str) -> None:
    """Check that `content`, found at `where`, is the file `original` of the set `name`.

    Raises:
      InputError: saying whether it is another set's file, truncated, or altered.
    """
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 == original.sha256:
        return
    for other, files in ORIGINALS.items():
        for file in files:
            if file.sha256 == sha256:
                raise InputError(
                    f"{where} is {file.name} of {other}, not {original.name} of {name}: another set's files?"
                )
    if len(content) < original.size:
        raise InputError(f"{where} is truncated: {len(content)} bytes of {original.size}")
    raise InputError(
        f"{where} has been altered: sha256 {sha256}, {len(content)} bytes; the original file of {name} has"
        f" {original.sha256}, {original.size} bytes"
    )


def fetch_originals(name: str, folder: pathlib.Path | None) -> dict[str, bytes]:
    """The original files of the set `name`: from `folder` where it has good copies, else downloaded into it.

    Progress is printed to standard error. A folder that cannot be written to costs a warning, no more; None keeps none.

    Returns:
      contents by file name, verified.

    Raises:
      InputError: if a file cannot be downloaded or is not the published one.
    """
    contents = {}
    for original in ORIGINALS[name]:
        path = folder / original.name if folder is not None else None
        try:
            if path is None:
                raise FileNotFoundError
            content = read_whole(path, str(path))
            verify(name, original, content, str(path))
        except (OSError, InputError):  # absent or damaged: download it (again)
            content = _download(name, original)
            if path is not None:
                write_atomically(path, lambda file, content=content: file.write(content))
        contents[original.name] = content
    return contents


def _download(name: str, original: Original) -> bytes:
    assert original.url is not None, f"{original.name} of {name} has no address"
    content = bytearray()
    try:
        with urllib.request.urlopen(original.url, timeout=30) as response:
            while chunk := response.read(1 << 18):
                content += chunk
                done = f"{len(content) / 1e6:.1f} of {original.size / 1e6:.1f} MB"
                print(f"\rdownloading {original.name} of {name}: {done}", end="", file=sys.stderr, flush=True)
    except (OSError, ValueError) as error:  # URLError is an OSError
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise InputError(
            f"{name} is not on this machine and {original.url} could not be downloaded ({reason}); with the original"
            f" files in a folder, name it by --data.raw-dir"
        ) from None
    finally:
        if content:
            print(file=sys.stderr)
    verify(name, original, bytes(content), original.url)
    return bytes(content)
