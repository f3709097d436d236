"""Anyone's images: `<split>/<class>/<image>`, in a folder or in tar archives."""

import dataclasses
import hashlib
import os
import pathlib
import stat
from collections.abc import Iterable, Sequence

import numpy as np

from cnnjax.data.archive import read_members
from cnnjax.data.arrays import Arrays, Dataset
from cnnjax.data.cache import cached
from cnnjax.data.images import Size, decode_all, pillow_version
from cnnjax.data.originals import Path, existing_directory
from cnnjax.ops.errors import InputError

# What a split may be called, and the field of Dataset it becomes.
SPLITS = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_LAYOUT = "<split>/<class>/<image>, as a folder or a tar, with splits train, test and validation"


def load_folder(
    *,
    raw_dir: Path | None = None,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    size: Size | None = None,
) -> Dataset:
    """A set of image files, `<split>/<class>/<image>`: split train, and optionally test and validation (valid, val).

    Classes are numbered by the names of train's folders, sorted; examples are sorted by class and file name. The images
    are grey if all of them are, else RGB. Hidden files and links within archives are passed over.

    Args:
      raw_dir: a folder of that layout; or a tar (`.tar`, `.tar.gz`, …) of it; or a folder with such a tar per split
        (`train.tar.gz`, `test.tar.gz`).
      data_dir: not used.
      cache_dir: see `cnnjax.data.cache.cache_directory`. A folder counts as unchanged while its files' names, sizes and
        modification times are the same; a tar while its sha256 is.
      size: (height, width) to resize to; without it all images must have one size.

    Raises:
      InputError: naming what is wrong, and in which file: no images, one class only, an unreadable image, differing
        sizes, a class of another split that train doesn't have.
    """
    if raw_dir is None:
        raise InputError(f"data set 'folder' needs raw_dir (--data.raw-dir): {_LAYOUT}")
    root, tars = _find(raw_dir)
    files = files_below(root) if not tars else {}
    source = {tar.name: _sha256(tar) for tar in tars} if tars else {"files": listing_digest(files)}

    def build() -> Dataset:
        contents = _read_tars(tars) if tars else {name: _read(path) for name, path in files.items()}
        provenance = {"sha256 of names and contents": _contents_digest(contents), "decoder": pillow_version()}
        return _decode(str(raw_dir), contents, size, provenance | (source if tars else {}))

    return cached("folder", {"source": source, "size": size, "decoder": pillow_version()}, build, cache_dir)


def files_below(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Every file below `root` that isn't hidden, by its path relative to `root` with "/" between the parts, sorted.

    Raises:
      InputError: if a folder can't be read.
    """

    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}")

    found = {}
    for directory, subdirectories, file_names in os.walk(root, followlinks=True, onerror=fail):
        subdirectories[:] = [name for name in subdirectories if not name.startswith(".")]
        for file_name in file_names:
            path = pathlib.Path(directory, file_name)
            if not file_name.startswith("."):
                found[path.relative_to(root).as_posix()] = path
    return dict(sorted(found.items()))


def listing_digest(files: dict[str, pathlib.Path]) -> str:
    """A digest over files' names, sizes and times of change: another if one is added, removed, renamed or rewritten.

    Args:
      files: as from `files_below`.

    Raises:
      InputError: if a file isn't there, as behind a dangling link.
    """
    digest = hashlib.sha256()
    for name, path in files.items():
        found = _stat(path)
        # Unpacking and copying keep names, sizes and times; the folder, the inode and its change time tell sets apart.
        identity = (path.resolve(), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        digest.update(f"{name}\0{identity}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _stat(path: pathlib.Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def _find(raw_dir: Path) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """(the path, the tars to read): no tars means that the path is a folder of images."""
    path = pathlib.Path(raw_dir).expanduser()
    if path.is_file():
        if not path.name.endswith(_TARS):
            raise InputError(f"raw_dir {str(raw_dir)!r} is neither a folder nor a tar; it must hold {_LAYOUT}")
        return path, [path]
    folder = existing_directory(raw_dir, _LAYOUT)
    tars = sorted(folder / (split + end) for split in SPLITS for end in _TARS if (folder / (split + end)).is_file())
    folders = sorted(split for split in SPLITS if (folder / split).is_dir())
    if tars and folders:
        raise InputError(f"raw_dir {str(raw_dir)!r} holds both {folders[0]}/ and {tars[0].name}: which is meant?")
    return folder, tars


def _read_tars(tars: list[pathlib.Path]) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    for tar in tars:
        with tar.open("rb") as file:
            members = dict(read_members(file, str(tar)))
        # `tar czf pets.tgz pets` puts everything below one folder, which says nothing.
        tops = {name.split("/")[0] for name in members}
        if len(tops) == 1 and not tops & SPLITS.keys():
            members = {name.partition("/")[2]: content for name, content in members.items()}
        contents |= members
    return contents


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"image {path} cannot be read: {error}") from None


def _sha256(path: pathlib.Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _contents_digest(contents: dict[str, bytes]) -> str:
    lines = [f"{name}\0{hashlib.sha256(content).hexdigest()}\n" for name, content in sorted(contents.items())]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _layout(where: str, files: Iterable[str]) -> tuple[dict[str, dict[str, list[str]]], tuple[str, ...]]:
    """(names of images by split, as a field of Dataset, and class; the classes), of files named relative to `where`."""
    by_split: dict[str, dict[str, list[str]]] = {}
    spelt: dict[str, str] = {}
    for name in sorted(files):
        split, *rest = name.split("/")
        if not rest:
            continue  # a README or a licence beside the splits
        if split not in SPLITS:
            raise InputError(f"{where}: unknown split {split!r} ({name}); allowed: {', '.join(SPLITS)}")
        if len(rest) != 2:
            raise InputError(f"{where}: {name} is not <split>/<class>/<image>")
        if spelt.setdefault(SPLITS[split], split) != split:
            raise InputError(f"{where}: two validation splits, {spelt[SPLITS[split]]!r} and {split!r}")
        by_split.setdefault(SPLITS[split], {}).setdefault(rest[0], []).append(name)
    if not by_split:
        raise InputError(f"{where} holds no images; it must hold {_LAYOUT}")
    if "train" not in by_split:
        raise InputError(f"{where} has no split 'train', only {', '.join(spelt.values())}; it must hold {_LAYOUT}")
    classes = tuple(sorted(by_split["train"]))
    if len(classes) < 2:
        raise InputError(f"{where}: train has one class only, {classes[0]!r}; at least 2 are needed")
    for split, names in by_split.items():
        for surplus in sorted(names.keys() - set(classes)):
            raise InputError(f"{where}: class {surplus!r} of {split} is not in train ({names[surplus][0]})")
    return by_split, classes


def _names(by_class: dict[str, list[str]], classes: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """(names, labels): the images of one split, by class."""
    names = [name for kind in classes for name in by_class.get(kind, [])]
    label = np.repeat(np.arange(len(classes), dtype=np.int32), [len(by_class.get(kind, [])) for kind in classes])
    return names, label


def _decode(where: str, contents: dict[str, bytes], size: Size | None, provenance: dict[str, str]) -> Dataset:
    """The set whose image files are `contents`, by name."""
    by_split, classes = _layout(where, contents)
    splits = {split: _names(by_split[split], classes) for split in ("train", "test", "validation") if split in by_split}
    # All splits are decoded at once: they must agree in size and in being grey.
    image = decode_all([(name, contents[name]) for names, _ in splits.values() for name in names], size)
    arrays, start = {}, 0
    for split, (_, label) in splits.items():
        arrays[split] = Arrays(image[start : start + len(label)], label)
        start += len(label)
    return Dataset("folder", arrays["train"], arrays.get("test"), arrays.get("validation"), classes, provenance)


@dataclasses.dataclass(frozen=True)
class Files:
    """The encoded images of a split of a folder: `files[i]` is (bytes, label), read when asked for.

    Attributes:
      root: the folder.
      names: of the files, relative to it.
      label: int32 `[len(names)]`.
    """

    root: pathlib.Path
    names: Sequence[str]
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[bytes, int]:
        return _read(self.root / self.names[i]), int(self.label[i])

    def where(self, i: int) -> str:
        """What to call example `i` in an error: its number and its file name."""
        return f"example {i} ({self.root / self.names[i]})"


def open_files(raw_dir: Path) -> tuple[dict[str, Files], tuple[str, ...], dict[str, str]]:
    """(the encoded images by split, the classes' names, where they came from) of a folder, ordered as by `load_folder`.

    Args:
      raw_dir: a folder with `<split>/<class>/<image>`; tars can't be read at random.

    Raises:
      InputError: if the folder isn't of that layout.
    """
    root, tars = _find(raw_dir)
    if tars:
        raise InputError(f"raw_dir {str(raw_dir)!r}: images are streamed from folders only; unpack {tars[0].name}")
    found = files_below(root)
    by_split, classes = _layout(str(raw_dir), found)
    splits = {split: Files(root, *_names(names, classes)) for split, names in by_split.items()}
    return splits, classes, {"sha256 of names and sizes": _sizes_digest(found)}


def _sizes_digest(files: dict[str, pathlib.Path]) -> str:
    """Of a folder too large to be read for a checksum: the same in every copy of it."""
    digest = hashlib.sha256()
    for name, path in files.items():
        found = _stat(path)
        size = found.st_size
        if not stat.S_ISREG(found.st_mode) or size == 0:
            raise InputError(f"{path} is {'empty' if size == 0 else 'no file'}")
        digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
