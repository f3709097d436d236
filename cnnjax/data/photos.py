"""Photographs that don't fit in memory: decoded, cropped and batched while the devices compute.

    photos = open_photos("tfds:imagenet2012", "train")
    for batch in train_batches(photos, seed=0, start=0, stop=1000, batch_size=256):
        ...  # batch["image"] is uint8 [256, 224, 224, 3]

The examples of a step are `cnnjax.data.order.batch_indices`, and the crop of one is a function of (seed, its position
in the stream of examples). So neither threads, workers, processes nor resuming elsewhere change a byte. Mirroring and
normalising come later, on the device.

**Pixels.** JPEGs are decoded by libjpeg-turbo (simplejpeg), everything else by Pillow; pictures are resized by Pillow's
bilinear filter, which is antialiased (a triangle as wide as the reduction). Where the whole picture is decoded, as it
always is for evaluation, the result is that of PIL's and torchvision's crop and resize on PIL images, byte for byte.
Where a training crop is at least twice as large as its target, the JPEG is decoded at 1/2, 1/4 or 1/8 of its size by
its own cosine transform, which averages squares of pixels: that differs from resizing the whole by some grey levels
where there is fine texture (a test bounds the mean difference). EXIF orientation is obeyed, which torchvision and TFDS
leave to others, and what is transparent shows white.

**Why simplejpeg.** Measured on photographs of 500x375 and 105 kB, one core (`benchmarks/results/input.md`): it decodes
in 1.0 ms where Pillow takes 1.2, and reads a header in 2 µs. Most of the time is Huffman decoding, which no smaller
scale avoids (0.87 ms at half the size), so all of the work is only some percent faster than with Pillow alone. OpenCV
decodes no faster, and weighs 150 MB to simplejpeg's 1; PyTurboJPEG brings no library of its own. The scales between 1/2
and 1 are slower than the whole: they lack SIMD code.
"""

import atexit
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
import math
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from cnnjax import terminal
from cnnjax.data import order
from cnnjax.data.arrays import NoSplit
from cnnjax.data.class_names import check_class_names
from cnnjax.data.folder import SPLITS, open_files
from cnnjax.data.images import decode_image, decoder, orientation, read_whole
from cnnjax.data.originals import Path
from cnnjax.data.tfds import open_records
from cnnjax.ops.errors import InputError, unknown

Batch = dict[str, np.ndarray]
Box = tuple[int, int, int, int]  # top, left, height, width

_TRIES = 10  # at a random crop, before the central one
_CROP = 1  # keeps the crops' random numbers apart from the epochs' orders, which are drawn from (seed, epoch)
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LONGEST = 64  # times its shorter side: of longer pictures the ends are never resized, which could take any memory
_SCALES = (8, 4, 2)  # by which libjpeg-turbo reduces fast


class Source(Protocol):
    """Random access to encoded images; it can be pickled, and read by several threads."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> tuple[bytes, int]:
        """(the encoded image, its label)."""
        ...

    def where(self, i: int, /) -> str:
        """What to call example `i` in an error."""
        ...


@dataclasses.dataclass(frozen=True)
class Photos:
    """A split of a set of photographs, still encoded.

    Attributes:
      source: `source[i]` is (bytes, label).
      classes: the classes' names, by label.
    """

    source: Source
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.source)

    @property
    def label(self) -> np.ndarray:
        """int32 `[n]`, where the labels are known without reading the photographs.

        Raises:
          InputError: they are not, as in a prepared set.
        """
        label = getattr(self.source, "label", None)
        if label is None:
            raise InputError(
                "data.stratify and train.class-weights: allowed: sets in memory and folders, whose labels are known "
                "beforehand"
            )
        return label

    def take(self, index: Any) -> "Photos":
        """The examples at `index` (integers, a boolean mask or a slice), in that order."""
        return dataclasses.replace(self, source=_Taken(self.source, np.arange(len(self))[index]))

    def relabelled(self, number: np.ndarray, classes: tuple[str, ...]) -> "Photos":
        """The same photographs where class i has become class `number[i]` (int32 `[classes]`) of `classes`."""
        return Photos(_Relabelled(self, number), classes)


@dataclasses.dataclass(frozen=True)
class _Taken:
    """The examples of a source at `index`, int `[n]`."""

    source: Source
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    @property
    def label(self) -> np.ndarray | None:
        label = getattr(self.source, "label", None)
        return None if label is None else label[self.index]

    def __getitem__(self, i: int) -> tuple[bytes, int]:
        return self.source[int(self.index[i])]

    def where(self, i: int) -> str:
        return self.source.where(int(self.index[i]))


@dataclasses.dataclass(frozen=True)
class _Relabelled:
    """Photographs with other labels, by the old ones."""

    photos: Photos
    number: np.ndarray

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, i: int) -> tuple[bytes, int]:
        content, label = _encoded(self.photos, i)
        return content, int(self.number[label])

    def where(self, i: int) -> str:
        return self.photos.source.where(i)


@dataclasses.dataclass(frozen=True)
class PhotoSet:
    """A set of photographs, as `cnnjax.data.Dataset` is one of arrays.

    Attributes:
      name: the name it was opened by.
      train: the training examples.
      test: the test examples, or None where the set has none with labels.
      validation: the validation examples where the set itself has them, else None.
      classes: the class names, by label.
      provenance: where it came from.
      sha256: of what can be known of the set without reading all of it: names, numbers and sizes.
    """

    name: str
    train: Photos
    test: Photos | None
    validation: Photos | None
    classes: tuple[str, ...]
    provenance: dict[str, str]
    sha256: str


def _open(
    name: str, raw_dir: Path | None, data_dir: Path | None, needed: str = "train"
) -> tuple[Mapping[str, Source], tuple[str, ...], dict[str, str]]:
    """(the sources by split, the classes, the provenance) of a set by name."""
    if name.startswith("tfds:"):
        if raw_dir is not None:
            raise InputError(
                f"raw_dir={str(raw_dir)!r}: {name!r} is read as prepared and takes no raw_dir, but data_dir"
            )
        return open_records(name.removeprefix("tfds:"), data_dir)
    if name == "folder":
        if raw_dir is None:
            raise InputError("photographs from a 'folder' need raw_dir: the folder of <split>/<class>/<image>")
        return open_files(raw_dir, needed)
    raise unknown("set of photographs", name, ["folder", "tfds:NAME"])


def open_photos(
    name: str, split: str = "train", *, raw_dir: Path | None = None, data_dir: Path | None = None
) -> Photos:
    """A split of a set by name, read from disk as it is needed.

    Args:
      name: "tfds:NAME[/CONFIG][:VERSION]" for a set of TensorFlow Datasets prepared in array_record format, such as
        "tfds:imagenet2012"; or "folder".
      split: its name in the set; in a folder "train", "test" or "validation".
      raw_dir: for "folder": where `<split>/<class>/<image>` are.
      data_dir: for "tfds:…": where TensorFlow Datasets keeps prepared sets; None for its default.

    Raises:
      InputError: one line that says what is wrong with the name, the split or the files.
    """
    if name == "folder":
        split = SPLITS.get(split, split)
    splits, classes, _ = _open(name, raw_dir, data_dir, split)
    if split not in splits:
        raise unknown(f"split of {name}", split, sorted(splits))
    return Photos(splits[split], classes)


def open_photo_set(
    name: str, *, raw_dir: Path | None = None, data_dir: Path | None = None, needed: str = "train"
) -> PhotoSet:
    """A set by name, all its splits, to be streamed in training. Arguments and errors are those of `open_photos`.

    Args:
      name: as for `open_photos`, as are `raw_dir` and `data_dir`.
      needed: the split without which the set is of no use. Where it is another than "train", the set may lack "train",
        for which it stands.
    """
    splits, classes, provenance = _open(name, raw_dir, data_dir, needed)
    check_class_names(name, classes)
    if "train" not in splits and needed not in splits:
        raise NoSplit(f"{name!r} has no split {needed!r}, only {', '.join(sorted(splits))}")
    photos = {split: Photos(source, classes) for split, source in splits.items() if len(source)}
    for split in {"test", "validation"} & set(photos):
        if photos[split].source[0][1] == -1:  # as of ImageNet's test images
            terminal.say(f"cnnjax: {split!r} of {name!r} has no labels (-1) and is left out", sys.stderr)
            del photos[split]
    train = photos.get("train") or photos.get(needed if "train" not in splits else "train")
    if train is None:
        raise InputError(f"{name!r}, split {needed!r} is empty or has no labels")
    content = json.dumps([name.partition(":")[0], classes, provenance], sort_keys=True)
    return PhotoSet(
        name,
        train,
        photos.get("test"),
        photos.get("validation"),
        classes,
        provenance | {"decoder": f"simplejpeg {importlib.metadata.version('simplejpeg')}, {decoder()}"},
        hashlib.sha256(content.encode()).hexdigest(),
    )


def train_batches(
    photos: Photos,
    *,
    seed: int,
    start: int,
    stop: int,
    batch_size: int,
    rows: Iterable[int] | None = None,
    crop: int = 224,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    workers: int = 0,
    threads: int | None = None,
) -> Generator[Batch]:
    """The batches of training steps `start` to `stop - 1`, each example cropped at random (see `random_crop`).

    Args:
      photos: the training split.
      seed: of the order and of the crops, not negative.
      start: the first step.
      stop: the step after the last.
      batch_size: examples per step, over all processes; at most as many as there are.
      rows: the positions within each batch that this process needs; None for all.
      crop: height and width of the result.
      scale: the least and greatest share of the picture's area that a crop covers.
      ratio: the least and greatest width of a crop over its height.
      workers: processes that make batches; 0 for threads of this one. Scripts that ask for any must start as
        `multiprocessing` demands, with `if __name__ == "__main__":`.
      threads: of this process, where there are no workers; None for one per core.

    Returns:
      an iterator of {"image": uint8 `[len(rows), crop, crop, 3]`, "label": int32 `[len(rows)]`}. Closing it stops what
      runs ahead; so does dropping it.

    Raises:
      InputError: at once for an argument that makes no sense; while iterating for an example that can't be decoded
        or has no class, by its number and file name.
    """
    rows = _check(photos, batch_size, rows, crop, workers, threads)
    if batch_size > len(photos):
        raise InputError(f"batch_size={batch_size} is larger than the split, which has {len(photos)} examples")
    if seed < 0:
        raise InputError(f"seed={seed}: a seed must not be negative")
    if not 0 <= start <= stop:
        raise InputError(f"start={start}, stop={stop}: needed are 0 <= start <= stop")
    if not 0 < scale[0] <= scale[1] <= 1:
        raise InputError(f"scale={scale}: needed are 0 < least <= greatest <= 1")
    if not 0 < ratio[0] <= ratio[1]:
        raise InputError(f"ratio={ratio}: needed are 0 < least <= greatest")
    load = functools.partial(
        _train_example, photos, batch_size=batch_size, seed=seed, crop=crop, scale=scale, ratio=ratio
    )
    positions = _Positions(start, stop - start, batch_size, rows)
    return _stream(positions, load, workers, threads)


def eval_batches(
    photos: Photos,
    *,
    batch_size: int,
    rows: Iterable[int] | None = None,
    crop: int = 224,
    resize: int = 256,
    workers: int = 0,
    threads: int | None = None,
) -> Generator[Batch]:
    """Every example once, in the split's own order: the short side resized to `resize`, then the centre.

    Args:
      photos: the split.
      batch_size: examples per batch, over all processes; the last batch is padded.
      rows: the positions within each batch that this process needs; None for all.
      crop: height and width of the result.
      resize: the length that the shorter side gets before cropping, at least `crop`.
      workers: processes that make batches; 0 for threads of this one.
      threads: of this process, where there are no workers; None for one per core.

    Returns:
      an iterator of {"image": uint8 `[len(rows), crop, crop, 3]`, "label": int32 `[len(rows)]`, "mask": bool
      `[len(rows)]`}; where the mask is False there is no example, the image is black and the label 0.

    Raises:
      InputError: as `train_batches`.
    """
    rows = _check(photos, batch_size, rows, crop, workers, threads)
    if resize < crop:
        raise InputError(f"resize={resize} is smaller than crop={crop}; it must be at least as large")
    positions = _Positions(0, -(-len(photos) // batch_size), batch_size, rows)
    return _stream(positions, functools.partial(_eval_example, photos, crop=crop, resize=resize), workers, threads)


def _check(
    photos: Photos, batch_size: int, rows: Iterable[int] | None, crop: int, workers: int, threads: int | None
) -> np.ndarray:
    """`rows` as an array, after checking what training and evaluation have in common."""
    if len(photos) == 0:
        raise InputError("photos: the split is empty; at least one example is needed")
    for name, value, least in (("batch_size", batch_size, 1), ("crop", crop, 1), ("workers", workers, 0)):
        if value < least:
            raise InputError(f"{name}={value}: at least {least} is needed")
    if threads is not None and threads < 1:
        raise InputError(f"threads={threads}: at least 1 is needed, or None for one per core")
    chosen = np.arange(batch_size) if rows is None else np.asarray(list(rows))
    if chosen.ndim != 1 or not len(chosen) or chosen.dtype.kind not in "iu":
        raise InputError(f"rows={rows!r}: needed is a list of one or more positions within the batch")
    if chosen.min() < 0 or chosen.max() >= batch_size:
        raise InputError(f"rows={rows!r}: positions are from 0 to {batch_size - 1}, as batch_size={batch_size}")
    return chosen


@dataclasses.dataclass(frozen=True)
class _Positions:
    """The positions in the stream of examples that are wanted of some batches, as a random access sequence."""

    start: int
    batches: int
    batch_size: int
    rows: np.ndarray

    def __len__(self) -> int:
        return self.batches * len(self.rows)

    def __getitem__(self, index: int) -> int:
        batch, row = divmod(int(index), len(self.rows))
        return (self.start + batch) * self.batch_size + int(self.rows[row])


def _stream(
    positions: _Positions, load: Callable[[int], dict[str, Any]], workers: int, threads: int | None
) -> Generator[Batch]:
    """`_batches`, closed when the consumer drops it or the interpreter exits."""
    stream = _batches(positions, load, workers, threads)
    _OPEN.add(stream)
    return stream


def _batches(
    positions: _Positions, load: Callable[[int], dict[str, Any]], workers: int, threads: int | None
) -> Generator[Batch]:
    """Batches of `load(position)`, made ahead of time by threads or processes, in order.

    All is a function of the position, so grain's iterator has no state worth saving, and what it warns of (another
    number of workers resumes with other data) can't happen.
    """
    if not len(positions):
        return
    import grain

    size = len(positions.rows)
    examples = grain.MapDataset.source(positions).map(load)
    if not workers:
        # Examples, not batches, are what threads share, so that the first batch is there soon and few wait in memory.
        threads = threads or cores()
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2 * size)
        with contextlib.closing(iter(examples.to_iter_dataset(options).batch(size))) as iterator:
            yield from iterator
        return
    _mark_flags_parsed()
    # A worker gets every `workers`-th element; with whole batches as elements, the order stays that of one process.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    batches = examples.batch(size).to_iter_dataset(options)
    batches = batches.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=2), _start_worker)
    with contextlib.ExitStack() as stack:
        with _signals_held_back():  # workers, and the threads that start them, start with the first batch
            iterator = stack.enter_context(contextlib.closing(iter(batches)))
            first = next(iterator)
        yield from map(_own, itertools.chain([first], iterator))


@contextlib.contextmanager
def _signals_held_back() -> Generator[None]:
    """Processes started meanwhile don't hear of interrupts, from the very first; see `_start_worker`."""
    multiprocessing.resource_tracker.ensure_running()  # which lets them through again when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# Streams that are still open when the interpreter exits, which grain's iterators don't survive without tracebacks.
_OPEN: weakref.WeakSet[Generator[Batch]] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for stream in list(_OPEN):
        with contextlib.suppress(ValueError):  # it is running, in a thread of the user's
            stream.close()


def _own(batch: Batch) -> Batch:
    """A copy (a fiftieth of the work) of what lies in memory shared with a worker, which is not for keeping."""
    return {name: np.array(array) for name, array in batch.items()}


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _mark_flags_parsed() -> None:
    """grain 0.2.18 reads absl's flags in `mp_prefetch`, which fails in programs that never parsed any."""
    import absl.flags

    if not absl.flags.FLAGS.is_parsed():
        absl.flags.FLAGS.mark_as_parsed()


def _start_worker(index: int, count: int) -> None:
    """Runs first in each worker process: it leaves accelerators alone, and dies with its parent, not before.

    Terminals and Slurm send signals to all processes, but the parent still needs batches until it has stopped.
    """
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.environ["JAX_PLATFORMS"] = "cpu"
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)  # a parent that was killed could not stop us

    threading.Thread(target=follow, daemon=True).start()


def open_photo(path: Path, *, crop: int, resize: int) -> np.ndarray:
    """An image file as `eval_batches` crops it: uint8 `[crop, crop, 3]`.

    Args:
      path: an image file, of any format Pillow reads.
      crop: height and width of the result.
      resize: the length that the shorter side gets before cropping.

    Raises:
      InputError: if the file is missing, larger than any image or can't be read as one, naming it.
    """
    if not os.path.isfile(path):
        raise InputError(f"image {str(path)!r} is {'a folder' if os.path.isdir(path) else 'not there'}")
    try:
        content = read_whole(path, f"image {str(path)!r}")
    except OSError as error:
        raise InputError(f"image {str(path)!r} cannot be read: {error.strerror}") from None
    return _resize_and_crop(content, lambda: repr(str(path)), crop, resize)


def _train_example(
    photos: Photos,
    position: int,
    *,
    batch_size: int,
    seed: int,
    crop: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> dict[str, Any]:
    def choose(height: int, width: int) -> Box:
        return random_crop(np.random.default_rng((seed, position, _CROP)), height, width, scale=scale, ratio=ratio)

    step, row = divmod(position, batch_size)
    i = int(order.batch_indices(len(photos), batch_size, step, seed)[row])
    content, label = _encoded(photos, i)
    image = _crop_and_resize(content, functools.partial(photos.source.where, i), choose, crop)
    return {"image": image, "label": np.int32(label)}


def _eval_example(photos: Photos, position: int, *, crop: int, resize: int) -> dict[str, Any]:
    if position >= len(photos):
        return {"image": np.zeros((crop, crop, 3), np.uint8), "label": np.int32(0), "mask": np.bool_(False)}
    content, label = _encoded(photos, position)
    image = _resize_and_crop(content, functools.partial(photos.source.where, position), crop, resize)
    return {"image": image, "label": np.int32(label), "mask": np.bool_(True)}


def _encoded(photos: Photos, i: int) -> tuple[bytes, int]:
    content, label = photos.source[i]
    if not 0 <= label < len(photos.classes):
        raise InputError(f"{photos.source.where(i)} has label {label}; allowed: 0 to {len(photos.classes) - 1}")
    return content, label


def random_crop(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Where to crop a picture: an area and a proportion at random, anywhere that fits.

    Ten tries, then the largest central crop whose proportion is allowed. Of Szegedy et al., "Going deeper with
    convolutions" (2014), as torchvision's RandomResizedCrop has it: the area uniform, the logarithm of the proportion
    uniform, sides rounded.

    Args:
      rng: where the random numbers come from.
      height: of the picture, in pixels.
      width: of the picture, in pixels.
      scale: the least and greatest share of the area.
      ratio: the least and greatest width over height.

    Returns:
      (top, left, height, width) in pixels, within the picture.
    """
    for _ in range(_TRIES):
        area = height * width * rng.uniform(*scale)
        proportion = np.exp(rng.uniform(*np.log(ratio)))
        h, w = round(np.sqrt(area / proportion)), round(np.sqrt(area * proportion))
        if 0 < h <= height and 0 < w <= width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    proportion = min(max(width / height, ratio[0]), ratio[1])
    h, w = min(height, max(1, round(width / proportion))), min(width, max(1, round(height * proportion)))
    return (height - h) // 2, (width - w) // 2, h, w


def central_crop(height: int, width: int, *, crop: int, resize: int) -> tuple[int, int, int, int]:
    """What torchvision's `Resize(resize)` and `CenterCrop(crop)` do to a picture.

    Args:
      height: of the picture, in pixels.
      width: of the picture, in pixels.
      crop: height and width of the result.
      resize: the length that the shorter side gets; the longer one's is rounded down.

    Returns:
      (height, width, top, left): the resized picture's, and where in it the crop begins.
    """
    short = min(height, width)
    new_height, new_width = resize * height // short, resize * width // short
    return new_height, new_width, round((new_height - crop) / 2), round((new_width - crop) / 2)


def _crop_and_resize(
    content: bytes, where: Callable[[], str], choose: Callable[[int, int], Box], crop: int
) -> np.ndarray:
    """The part of an encoded image that `choose(height, width)` names, resized to uint8 `[crop, crop, 3]`.

    Args:
      content: the encoded image.
      where: gives its name, for errors.
      choose: gives (top, left, height, width) for a picture's height and width.
      crop: height and width of the result.
    """
    from PIL import Image

    size = _jpeg_size(content)
    box = choose(*size) if size else None
    reduced = next((k for k in _SCALES if crop * k <= min(box[2:])), 1) if box else 1
    pixels, reduced = _decode(content, where, size, reduced)
    top, left, height, width = (side / reduced for side in box or choose(*pixels.shape[:2]))
    # Only whole pixels are handed to Pillow; `box` says which part of them is meant.
    y0, y1, x0, x1 = int(top), math.ceil(top + height), int(left), math.ceil(left + width)
    part = Image.fromarray(np.ascontiguousarray(pixels[y0:y1, x0:x1]))
    edges = (left - x0, top - y0, left + width - x0, top + height - y0)
    return np.asarray(part.resize((crop, crop), Image.Resampling.BILINEAR, box=edges))


def _resize_and_crop(content: bytes, where: Callable[[], str], crop: int, resize: int) -> np.ndarray:
    """The centre of an encoded image, as `central_crop` says: uint8 `[crop, crop, 3]`."""
    # All of it is decoded and resized: resizing no more than the centre saves a tenth and rounds otherwise.
    pixels, _ = _decode(content, where, _jpeg_size(content))
    return resize_and_crop(pixels, crop, resize)


def resize_and_crop(pixels: np.ndarray, crop: int, resize: int) -> np.ndarray:
    """The centre of an image uint8 `[height, width, 3]`, as `central_crop` says: uint8 `[crop, crop, 3]`."""
    from PIL import Image

    longest = _LONGEST * min(pixels.shape[:2])
    top, left = (max(side - longest, 0) // 2 for side in pixels.shape[:2])
    pixels = np.ascontiguousarray(pixels[top : top + longest, left : left + longest])
    height, width, top, left = central_crop(*pixels.shape[:2], crop=crop, resize=resize)
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + crop, top + crop)))


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    """(height, width) of an upright JPEG in colours that simplejpeg decodes as Pillow does; None for anything else."""
    import simplejpeg
    from PIL import Image

    if not content.startswith(b"\xff\xd8") or orientation(content) != 1:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return None
    limit = Image.MAX_IMAGE_PIXELS
    too_large = limit is not None and int(height) * int(width) > 2 * limit  # which Pillow refuses to decode
    return (int(height), int(width)) if colours in ("YCbCr", "RGB") and not too_large else None


def _decode(
    content: bytes, where: Callable[[], str], size: tuple[int, int] | None, reduced: int = 1
) -> tuple[np.ndarray, int]:
    """An encoded image as uint8 `[height, width, 3]`, and by how much it was reduced.

    Args:
      content: the encoded image.
      where: gives its name, for errors.
      size: as from `_jpeg_size`. Where it is None Pillow decodes: ImageNet has greys, CMYK and a PNG among its JPEGs,
        and some with an EXIF orientation.
      reduced: by how much to reduce it, 1, 2, 4 or 8; Pillow doesn't.
    """
    import simplejpeg

    if size is not None:
        height, width = (-(-side // reduced) for side in size)
        try:
            return simplejpeg.decode_jpeg(content, "RGB", min_height=height, min_width=width), reduced
        except ValueError:  # also for what libjpeg only warns of: Pillow tells what can be read all the same
            pass
    try:
        return np.asarray(decode_image(content, "").convert("RGB")), 1
    except InputError:
        decode_image(content, where())  # once more with its name, which may cost a read
        raise
