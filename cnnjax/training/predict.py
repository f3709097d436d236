"""What a loaded run says about images: files or arrays of any size, taken as the run's evaluation takes them."""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import jax
import numpy as np

from cnnjax import data as datasets
from cnnjax.data import images as pictures
from cnnjax.data import photos
from cnnjax.ops.errors import InputError
from cnnjax.training import ambient, metrics
from cnnjax.training.config import Data, eval_resize

if TYPE_CHECKING:
    from cnnjax.training.load import LoadedRun

Shape = tuple[int, int, int]

BATCH = 32
"""Images that a network is given at once: a large one needs gigabytes for hundreds of photographs."""


def open_file(path: str | os.PathLike[str], data: Data, shape: Shape) -> np.ndarray:
    """An image file as the evaluation of a run has it: resized, or cropped; uint8 [height, width, channels].

    Args:
      path: of the file.
      data: the run's data.
      shape: of an image of the run.

    Raises:
      InputError: the file is missing or can't be read as an image.
    """
    if data.crop is not None:
        return datasets.open_photo(path, crop=data.crop, resize=eval_resize(data))
    return datasets.open_image(path, *shape, data.fit)


def as_images(images: Any, data: Data, shape: Shape) -> np.ndarray:
    """Images of any size as the evaluation of a run has them: uint8 [n, height, width, channels].

    Args:
      images: an array uint8 [n, height, width, channels], [n, height, width] or [height, width] (grey), or
        [height, width, 1 or 3] (one image); a file's path; or a list of single images, of these kinds.
        Images of the run's own size are taken as they are; others are resized, or resized and cropped, and made grey
        or RGB, as the run's evaluation does.
      data: the run's data.
      shape: of an image of the run.

    Raises:
      InputError: something is no image, or its pixels are not uint8.
    """
    found = [_fitted(image, data, shape) for image in _single(images)]
    return np.stack(found) if found else np.zeros((0, *shape), np.uint8)


def _single(images: Any) -> Iterator[Any]:
    """The images that there are in what is given, one by one: paths and arrays [height, width, channels]."""
    if isinstance(images, list | tuple):
        for image in images:
            found = list(_single(image))
            if len(found) != 1:
                raise InputError(f"images: received {len(found)} images as one of a list, allowed: single ones")
            yield found[0]
    elif isinstance(images, str | os.PathLike):
        yield images
    elif hasattr(images, "convert"):  # of a palette, or with transparency, its array is something else
        raise InputError("images: received a Pillow image, allowed: numpy.asarray(image.convert('RGB')), or its file")
    else:
        array = np.asarray(images)
        if array.dtype != np.uint8:
            raise InputError(
                f"images: received {array.dtype}, allowed: uint8, the pixels of 0 to 255 that an image file has (not "
                f"divided by 255, nor normalized: that is the run's own preprocessing)"
            )
        grey = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] not in (1, 3))
        array = array[..., None] if grey else array
        if array.ndim not in (3, 4) or array.shape[-1] not in (1, 3) or 0 in array.shape[-3:]:
            raise InputError(
                f"images: received an array of shape {np.shape(images)}, allowed: [n, height, width, channels], or one "
                f"image, of 1 or 3 channels"
            )
        yield from array if array.ndim == 4 else [array]


def _fitted(image: Any, data: Data, shape: Shape) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        return open_file(image, data, shape)
    if image.shape == shape:
        return image
    from PIL import Image

    opened = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    if data.crop is not None:
        return photos.resize_and_crop(pictures.to_array(opened, 3), data.crop, eval_resize(data))
    return pictures.to_array(opened, shape[-1], shape[:2], data.fit)


def outputs(run: "LoadedRun", images: np.ndarray, batch_size: int = BATCH) -> np.ndarray:
    """What the network of a run gives for images, a batch at a time: [n, outputs].

    Args:
      run: as loaded.
      images: uint8 [n, height, width, channels] of the run's size, as from `as_images`.
      batch_size: images at once; of more than that the last batch is filled up, so that one program is compiled.
    """
    if not len(images):
        return np.zeros((0, run.info.num_classes), np.float32)
    found = []
    with ambient.pinned(double=run.config.train.dtype == "float64"):
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            missing = batch_size - len(batch) if len(images) > batch_size else 0
            filled = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), np.uint8)])
            found.append(jax.device_get(run.apply(run.variables, filled))[: len(batch)])
    return np.concatenate(found)


def predict(run: "LoadedRun", images: Any, batch_size: int = BATCH) -> np.ndarray:
    """What a run says about images: the probability of each class, float64 [n, classes].

    What a probability is depends on the loss that the run was trained with (`metrics.probabilities`). Of targets that
    are real numbers, in place of classes: the network's outputs.

    Args:
      run: as loaded.
      images: files or arrays of any size, as `as_images` takes them.
      batch_size: images at once.
    """
    taken = as_images(images, run.config.data, run.info.image_shape)
    found = outputs(run, taken, batch_size)
    return metrics.probabilities(run.config.train.loss, found) if run.info.classes else np.asarray(found, np.float64)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a run says about a file."""

    file: pathlib.Path
    error: str | None = None
    """Why the file can't be read; nothing else is known then."""
    classes: tuple[tuple[str, float], ...] = ()
    """All classes with their probabilities, the likeliest first."""
    none: float | None = None
    """The probability that it is none of the classes, where the run's loss knows one."""
    excess: float = 0.0
    """How much brighter it is than nearly all training images; below 0, how much darker (`excess`)."""
    swapped: float = 0.0
    """The same, were black and white swapped."""

    def looks_inverted(self) -> bool:
        """Whether black and white are perhaps to be swapped first (`looks_inverted`)."""
        return abs(self.swapped) < abs(self.excess)


def predict_files(run: "LoadedRun", files: Iterable[pathlib.Path], *, invert: bool = False) -> Iterator[Prediction]:
    """What a run says about image files, one after the other; they are opened a batch at a time.

    Args:
      run: as loaded, of classes.
      files: of images.
      invert: swaps black and white first.
    """
    waiting = iter(files)
    while batch := list(itertools.islice(waiting, BATCH)):
        opened: dict[int, np.ndarray] = {}
        errors: dict[int, str] = {}
        for i, file in enumerate(batch):
            try:
                image = open_file(file, run.config.data, run.info.image_shape)
                opened[i] = 255 - image if invert else image
            except InputError as error:
                errors[i] = str(error)
        images = np.stack(list(opened.values())) if opened else np.zeros((0, *run.info.image_shape), np.uint8)
        found = outputs(run, images)
        likely = metrics.probabilities(run.config.train.loss, found)
        beyond, swapped = excess(images, run.info.brightness), excess(images, run.info.brightness, swapped=True)
        rows = {i: (found[row], likely[row], float(beyond[row]), float(swapped[row])) for row, i in enumerate(opened)}
        for i, file in enumerate(batch):
            if i in errors:
                yield Prediction(file, errors[i])
                continue
            scores, probabilities, *light = rows[i]
            # By the outputs: of small probabilities many are 0.
            order = np.argsort(-scores, kind="stable")
            names = run.info.classes
            named = [(names[k] if k < len(names) else str(k), float(probabilities[k])) for k in order]
            none = max(0.0, 1 - probabilities.sum()) if run.config.train.loss in metrics.WITH_NONE else None
            yield Prediction(file, None, tuple(named), none, *light)


def files_in(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """Files as they are, and in place of each folder the images in it and below it, by name.

    Raises:
      InputError: a folder holds no images, or can't be read.
    """
    found = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = []
        for parent, folders, names in os.walk(path, onerror=_unreadable):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            inside += [pathlib.Path(parent, name) for name in sorted(names) if not name.startswith(".")]
        images = [file for file in inside if pictures.is_image_name(file.name)]
        if not images:
            raise InputError(f"images: the folder {path} holds no images")
        found += images
    return found


def _unreadable(error: OSError) -> NoReturn:
    raise InputError(f"images: the folder {error.filename} can't be read ({error.strerror})")


_MARGIN = 0.05


def excess(images: np.ndarray, brightness: Sequence[float] | None, *, swapped: bool = False) -> np.ndarray:
    """How far the mean pixel of each image is above, or (below 0) below, that of nearly all training images.

    The range of the training images is that between two quantiles, which a few of any images exceed by a little: what
    is beyond it by less than a twentieth of its width counts as inside. Of the test images of MNIST and Fashion-MNIST
    less than one in a thousand is outside then.

    Args:
      images: uint8 [n, height, width, channels].
      brightness: the range of the training images' mean pixels, in [0, 1]; nothing is outside where it isn't known.
      swapped: says it of the images with black and white swapped.

    Returns:
      float64 [n], 0 inside of the range.
    """
    if brightness is None or not len(images):
        return np.zeros(len(images))
    low, high = brightness
    means = datasets.brightness(images)
    means = 1 - means if swapped else means
    beyond = np.maximum(means - high, 0) - np.maximum(low - means, 0)
    return np.where(np.abs(beyond) > max(_MARGIN * (high - low), 1 / 255), beyond, 0)


def looks_inverted(images: np.ndarray, brightness: Sequence[float] | None) -> np.ndarray:
    """Which images are brighter, or darker, than nearly all training images, and less so with black and white swapped.

    Args:
      images: uint8 [n, height, width, channels].
      brightness: as for `excess`.

    Returns:
      bool [n].
    """
    return np.abs(excess(images, brightness, swapped=True)) < np.abs(excess(images, brightness))
