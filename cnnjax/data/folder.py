"""Anyone's images: `<split>/<class>/<image>`, in a folder or in tar archives."""

import dataclasses
import functools
import hashlib
import os
import pathlib
import stat
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from cnnjax import terminal
from cnnjax.data.archive import read_members
from cnnjax.data.arrays import Arrays, Dataset, NoSplit
from cnnjax.data.cache import cached_for
from cnnjax.data.class_names import check_class_names, composed
from cnnjax.data.images import (
    LARGEST_FILE,
    Fit,
    Size,
    decode_all,
    decoder,
    is_image,
    is_image_name,
    read_whole,
    stretched_provenance,
)
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
_DEEPEST = 4  # folders below one another: more than any layout has, and few enough for links that lead around


def load_folder(
    *,
    raw_dir: Path | None = None,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    size: Size | None = None,
    fit: Fit = "stretch",
    needed: str = "train",
) -> Dataset:
    """A set of image files, `<split>/<class>/<image>`: split train, and optionally test and validation (valid, val).

    `<class>/<image>` without splits is a training set. Classes are numbered by the names of train's folders, sorted;
    examples are sorted by class and file name. The images are grey if all of them are, else RGB. Hidden files, links
    within archives and files that are no images are passed over; a line on standard error says so, and how many images
    and classes there are.

    Args:
      raw_dir: a folder of that layout; or a tar (`.tar`, `.tar.gz`, …) of it; or a folder with such a tar per split
        (`train.tar.gz`, `test.tar.gz`).
      data_dir: not used.
      cache_dir: see `cnnjax.data.cache.cache_directory`. A folder counts as unchanged while its files' names, sizes and
        modification times are the same; a tar while its sha256 is.
      size: (height, width) to resize to; without it all images must have one size.
      fit: what happens to images of other proportions.
      needed: the split without which the set is of no use; "test" and "validation" may come without "train", and stand
        in its place then.

    Raises:
      InputError: naming what is wrong, and in which file: no images, one class only, an unreadable image, differing
        sizes, a class of another split that train doesn't have.
    """
    if raw_dir is None:
        raise InputError(f"data set 'folder' needs raw_dir (--data.raw-dir): {_LAYOUT}")
    root, tars = _find(raw_dir)
    listing = walk(root) if not tars else Listing({}, 0)
    source = {tar.name: _sha256(tar) for tar in tars} if tars else {"files": listing_digest(listing.files)}
    identity: dict[str, object] = {"source": source, "size": size, "decoder": decoder()} | (
        {} if fit == "stretch" else {"fit": fit}
    )

    def build(needed: str) -> Callable[[], Dataset]:
        def found() -> Dataset:
            contents: dict[str, Callable[[], bytes]]
            if tars:
                members = _read_tars(tars)
                contents = {name: functools.partial(_same, content) for name, content in members.items()}
                opens = lambda name: is_image(members[name])
            else:
                contents = {name: functools.partial(_read, path) for name, path in listing.files.items()}
                opens = lambda name: _is_image(listing.files[name])
            return _decode(str(raw_dir), contents, listing.hidden, opens, size, fit, needed, source if tars else {})

        return found

    dataset = cached_for(needed, "folder", identity, build, cache_dir)
    images = {name: len(arrays) for name, arrays in dataset.splits().items()}
    if _STANDS_IN in dataset.provenance:
        del images["train"]
    _say(str(raw_dir), dataset.classes, images)
    _say_notes(str(raw_dir), dataset.provenance)
    return dataset


# Keys of a set's provenance: what was made of its files.
_FLAT, _SKIPPED, _RENAMED, _STANDS_IN = "layout", "passed over", "classes renamed", "in place of train"


def _same(content: bytes) -> bytes:
    return content


def _say(where: str, classes: Sequence[str], images: Mapping[str, int]) -> None:
    counts = ", ".join(f"{images[split]:,} in {split}" for split in dict.fromkeys(SPLITS.values()) if split in images)
    terminal.say(f"cnnjax: {where} holds images of {len(classes):,} classes: {counts}", sys.stderr)


def _say_notes(where: str, notes: Mapping[str, str]) -> None:
    for key in (_FLAT, _SKIPPED, _RENAMED):
        if key in notes:
            terminal.say(f"cnnjax: {where}: {f'{key}: ' if key == _SKIPPED else ''}{notes[key]}", sys.stderr)


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files below a folder.

    Attributes:
      files: those that aren't hidden, by their paths relative to it with "/" between the parts, sorted.
      hidden: how many others there are; what lies in hidden folders is not counted.
    """

    files: dict[str, pathlib.Path]
    hidden: int


def walk(root: pathlib.Path) -> Listing:
    """Every file below `root`.

    Raises:
      InputError: if a folder can't be read, is a link to one that it lies in, or lies deeper than images do.
    """
    files, hidden = {}, 0

    def visit(folder: pathlib.Path, above: tuple[tuple[int, int], ...]) -> None:
        nonlocal hidden
        try:
            found = folder.stat()
            here = (found.st_dev, found.st_ino)
            if here in above:
                raise InputError(f"{folder} is a link to a folder that it lies in")
            if len(above) > _DEEPEST:
                raise InputError(f"{folder} lies {len(above)} folders deep in {root}; allowed: {_LAYOUT}")
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir():
                        if not entry.name.startswith("."):
                            visit(folder / entry.name, (*above, here))
                    elif entry.name.startswith("."):
                        hidden += 1
                    else:
                        path = folder / entry.name
                        files[path.relative_to(root).as_posix()] = path
        except OSError as error:
            raise InputError(f"{error.filename or folder} cannot be read: {error.strerror}") from None

    visit(root, ())
    return Listing(dict(sorted(files.items())), hidden)


def listing_digest(files: dict[str, pathlib.Path]) -> str:
    """A digest over files' names, sizes and times of change: another if one is added, removed, renamed or rewritten.

    Args:
      files: as `walk` finds them.

    Raises:
      InputError: if one isn't there, as behind a dangling link, or is a pipe or a device.
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
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is no file, but a pipe or a device")
    return found


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
        if twice := sorted(contents.keys() & members.keys()):
            raise InputError(f"{tar}: {twice[0]} is in another of these archives too: {', '.join(map(str, tars))}")
        contents |= members
    return contents


def _read(path: pathlib.Path) -> bytes:
    try:
        return read_whole(path, f"image {path}")
    except OSError as error:
        raise InputError(f"image {path} cannot be read: {error}") from None


def _is_image(path: pathlib.Path) -> bool:
    """Whether a file without an image's name is an image; one too large to be one is not read."""
    return _stat(path).st_size <= LARGEST_FILE and is_image(_read(path))


def _sha256(path: pathlib.Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _contents_digest(contents: dict[str, bytes]) -> str:
    lines = [f"{name}\0{hashlib.sha256(content).hexdigest()}\n" for name, content in sorted(contents.items())]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


@dataclasses.dataclass(frozen=True)
class _Layout:
    """What the files of a set are.

    Attributes:
      splits: names of images by split, as a field of Dataset, and class.
      classes: the classes' names, by label.
      notes: what was made of files and names, by `_FLAT`, `_SKIPPED` and `_RENAMED`, for the user.
    """

    splits: dict[str, dict[str, list[str]]]
    classes: tuple[str, ...]
    notes: dict[str, str]


def _layout(
    where: str, files: Iterable[str], hidden: int, opens: Callable[[str], bool], needed: str = "train"
) -> _Layout:
    """What the files of a set are.

    Args:
      where: the set, for errors.
      files: their names relative to it.
      hidden: how many were passed over before.
      opens: whether a file opens as an image, asked for names that don't end as those of images.
      needed: the split without which the set is of no use.
    """
    images, others = [], []
    for name in sorted(files):
        # An image beside the splits belongs to none, as a README does.
        (images if "/" in name and (is_image_name(name) or opens(name)) else others).append(name)
    notes = {}
    if others or hidden:
        few = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        kinds = [f"{len(others):,} files that are no images of a class ({few})"] if others else []
        kinds += [f"{hidden:,} hidden files"] if hidden else []
        notes[_SKIPPED] = " and ".join(kinds)
    tops = {name.split("/")[0] for name in images}
    if not images:
        raise InputError(f"{where} holds no images; it must hold {_LAYOUT}")
    flat = not tops & SPLITS.keys() and all(name.count("/") == 1 for name in images)
    by_split: dict[str, dict[str, list[str]]] = {}
    spelt: dict[str, str] = {}
    for name in images:
        split, *rest = ("train", *name.split("/")) if flat else name.split("/")
        if split not in SPLITS:
            raise InputError(f"{where}: unknown split {split!r} ({name}); allowed: {', '.join(SPLITS)}")
        if len(rest) != 2:
            raise InputError(f"{where}: {name} is not <split>/<class>/<image>")
        if spelt.setdefault(SPLITS[split], split) != split:
            raise InputError(f"{where}: two validation splits, {spelt[SPLITS[split]]!r} and {split!r}")
        by_split.setdefault(SPLITS[split], {}).setdefault(rest[0], []).append(name)
    for name in others:  # a class must not be lost because its images are in a format that isn't read
        split, *rest = ("train", *name.split("/")) if flat else name.split("/")
        if len(rest) == 2 and SPLITS.get(split) in by_split and rest[0] not in by_split[SPLITS[split]]:
            raise InputError(f"{where}: class {rest[0]!r} of {split} has no images, only files such as {name}")
    if flat:
        notes[_FLAT] = (
            "<class>/<image> without splits: all are training images, of which --data.validation and --data.split-seed"
            " hold some out; there is no test set"
        )
    if "train" not in by_split and needed not in by_split:
        raise NoSplit(f"{where} has no split {needed!r}, only {', '.join(spelt.values())}; it must hold {_LAYOUT}")
    numbered = by_split["train" if "train" in by_split else needed]
    classes = tuple(sorted(numbered))
    check_class_names(where, classes)
    if len(classes) < 2 and "train" in by_split:
        raise InputError(f"{where}: train has one class only, {classes[0]!r}; at least 2 are needed")
    alike = {composed(name): name for name in classes}
    for split, names in by_split.items():
        for name in sorted(names.keys() - set(classes)):
            if (own := alike.get(composed(name))) is None:
                raise InputError(f"{where}: class {name!r} of {split} is not in train ({names[name][0]})")
            names.setdefault(own, []).extend(names.pop(name))
            names[own].sort()
            notes[_RENAMED] = f"class {name!a} of {split} is taken for {own!a}, which looks alike"
    return _Layout(by_split, classes, notes)


def _names(by_class: dict[str, list[str]], classes: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """(names, labels): the images of one split, by class."""
    names = [name for kind in classes for name in by_class.get(kind, [])]
    label = np.repeat(np.arange(len(classes), dtype=np.int32), [len(by_class.get(kind, [])) for kind in classes])
    return names, label


def _decode(
    where: str,
    contents: Mapping[str, Callable[[], bytes]],
    hidden: int,
    opens: Callable[[str], bool],
    size: Size | None,
    fit: Fit,
    needed: str,
    provenance: dict[str, str],
) -> Dataset:
    """The set whose image files are `contents`, by name; each is read when it is called. `opens` is as in `_layout`."""
    layout = _layout(where, contents, hidden, opens, needed)
    splits = {
        split: _names(layout.splits[split], layout.classes)
        for split in ("train", "test", "validation")
        if split in layout.splits
    }
    # All splits are decoded at once: they must agree in size and in being grey.
    encoded = {name: contents[name]() for names, _ in splits.values() for name in names}
    decoded = decode_all(list(encoded.items()), size, fit)
    arrays, start = {}, 0
    for split, (_, label) in splits.items():
        arrays[split] = Arrays(decoded.image[start : start + len(label)], label)
        start += len(label)
    about = {"sha256 of names and contents": _contents_digest(encoded), "decoder": decoder()} | provenance
    about |= layout.notes | stretched_provenance(decoded.stretched, len(encoded), size, fit)
    if "train" not in arrays:  # see `cnnjax.data.load`
        about |= {_STANDS_IN: needed}
        arrays["train"] = arrays[needed]
    return Dataset("folder", arrays["train"], arrays.get("test"), arrays.get("validation"), layout.classes, about)


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


def open_files(raw_dir: Path, needed: str = "train") -> tuple[dict[str, Files], tuple[str, ...], dict[str, str]]:
    """(the encoded images by split, the classes' names, where they came from) of a folder, ordered as by `load_folder`.

    Args:
      raw_dir: a folder with `<split>/<class>/<image>`; tars can't be read at random.
      needed: the split without which the set is of no use.

    Raises:
      InputError: if the folder isn't of that layout.
    """
    root, tars = _find(raw_dir)
    if tars:
        raise InputError(f"raw_dir {str(raw_dir)!r}: images are streamed from folders only; unpack {tars[0].name}")
    listing = walk(root)
    found = listing.files
    layout = _layout(str(raw_dir), found, listing.hidden, lambda name: _is_image(found[name]), needed)
    splits = {split: Files(root, *_names(names, layout.classes)) for split, names in layout.splits.items()}
    _say(str(raw_dir), layout.classes, {split: len(names) for split, names in splits.items()})
    _say_notes(str(raw_dir), layout.notes)
    # What lies beside the splits has always counted; what is passed over within them does not.
    images = {name for source in splits.values() for name in source.names}
    counted = {name: path for name, path in found.items() if name in images or "/" not in name}
    return splits, layout.classes, {"sha256 of names and sizes": _sizes_digest(counted)}


def _sizes_digest(files: dict[str, pathlib.Path]) -> str:
    """Of a folder too large to be read for a checksum: the same in every copy of it."""
    digest = hashlib.sha256()
    for name, path in files.items():
        size = _stat(path).st_size
        if size == 0 and "/" in name:
            raise InputError(f"{path} is empty")
        digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
