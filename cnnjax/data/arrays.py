"""A data set in memory: its arrays, their checks, the validation split, and channel statistics."""

import dataclasses
import hashlib
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from cnnjax.data.class_names import check_class_names
from cnnjax.ops.errors import InputError


@dataclasses.dataclass(frozen=True)
class Arrays:
    """One split of a data set.

    Attributes:
      image: uint8 `[n, height, width, channels]`.
      label: int32 `[n]`, class ids; or for regression float32 `[n]` or `[n, k]`.
    """

    image: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.image)

    def take(self, index) -> "Arrays":
        """The examples at `index` (integers, a boolean mask or a slice), in that order."""
        return Arrays(self.image[index], self.label[index])


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set, complete and in memory.

    Attributes:
      name: the name it was loaded by.
      train: the training examples, in the source's order.
      test: the test examples, or None where the source has none.
      validation: the validation examples where the source itself has them, else None (see `split`).
      classes: the class names, by label; () for regression.
      provenance: where it came from, such as the sha256 of each file. Goes into the run's record.
    """

    name: str
    train: Arrays
    test: Arrays | None
    validation: Arrays | None
    classes: tuple[str, ...]
    provenance: dict[str, str]

    def splits(self) -> dict[str, Arrays]:
        """The splits there are, by name: "train", and "test" and "validation" where the source has them."""
        every = {"train": self.train, "test": self.test, "validation": self.validation}
        return {name: arrays for name, arrays in every.items() if arrays is not None}


class NoSplit(InputError):
    """A data set lacks the split that is needed."""


def check(dataset: Dataset) -> Dataset:
    """`dataset` itself, after proving that a network can be trained on it.

    Every split is a non-empty uint8 array of images with 1 or 3 channels and all splits have one image shape; labels
    are as many as images, and are int32 class ids below `len(classes)`, or float32 targets where `classes` is ().

    Raises:
      InputError: naming the data set, the split and what is wrong.
    """
    if not isinstance(dataset, Dataset):
        raise InputError(f"data set: received {type(dataset).__name__}; expected: a cnnjax.data.Dataset")
    if not isinstance(dataset.train, Arrays):
        kind = type(dataset.train).__name__
        raise InputError(f"data set {dataset.name!r}: train is of type {kind}; expected: cnnjax.data.Arrays")
    if not isinstance(dataset.classes, tuple) or not all(isinstance(name, str) for name in dataset.classes):
        raise InputError(
            f"data set {dataset.name!r}: classes must be a tuple of names, received {dataset.classes!r:.80}"
        )
    check_class_names(f"data set {dataset.name!r}", dataset.classes)
    for split_name, arrays in dataset.splits().items():
        where = f"data set {dataset.name!r}, split {split_name!r}"
        if not isinstance(arrays, Arrays):
            raise InputError(f"{where}: received {type(arrays).__name__}; expected: cnnjax.data.Arrays")
        image, label = np.asarray(arrays.image), np.asarray(arrays.label)
        if image.ndim != 4:
            raise InputError(f"{where}: images must be [n, height, width, channels], received shape {image.shape}")
        if image.dtype != np.uint8:
            raise InputError(f"{where}: images must be uint8 (0 to 255), received {image.dtype}")
        if 0 in image.shape:
            raise InputError(f"{where}: there are no images: received shape {image.shape}")
        if image.shape[3] not in (1, 3):
            raise InputError(
                f"{where}: images must have 1 or 3 channels, received {image.shape[3]} (shape {image.shape})"
            )
        if len(image) != len(label) if label.ndim else True:
            raise InputError(f"{where}: {len(image)} images but labels of shape {label.shape}")
        if image.shape[1:] != dataset.train.image.shape[1:]:
            raise InputError(f"{where}: images are {image.shape[1:]}, those of 'train' {dataset.train.image.shape[1:]}")
        if dataset.classes:
            _check_class_labels(where, label, len(dataset.classes))
        else:
            _check_targets(where, label, np.shape(dataset.train.label)[1:])
    return dataset


def _check_class_labels(where: str, label: np.ndarray, classes: int) -> None:
    if label.ndim != 1 or label.dtype != np.int32:
        raise InputError(f"{where}: class labels must be int32 [n], received {label.dtype} of shape {label.shape}")
    wrong = np.flatnonzero((label < 0) | (label >= classes))
    if len(wrong):
        raise InputError(
            f"{where}: label {label[wrong[0]]} of example {wrong[0]} is out of range: allowed 0 to {classes - 1}"
            f" ({classes} classes)"
        )


def _check_targets(where: str, label: np.ndarray, shape: tuple[int, ...]) -> None:
    if label.ndim not in (1, 2) or label.dtype != np.float32:
        raise InputError(
            f"{where}: without classes, labels must be float32 targets [n] or [n, k], received {label.dtype} of shape"
            f" {label.shape}"
        )
    if label.shape[1:] != shape:
        raise InputError(f"{where}: targets have shape {label.shape[1:]} each, those of 'train' {shape}")
    wrong = np.flatnonzero(~np.isfinite(label.reshape(len(label), -1)).all(axis=1))
    if len(wrong):
        raise InputError(f"{where}: the target of example {wrong[0]} is not finite: {label[wrong[0]]}")


def brightness(image: np.ndarray) -> np.ndarray:
    """The mean pixel of each image, in [0, 1]: float64 `[n]` of uint8 `[n, height, width, channels]`."""
    return image.reshape(len(image), -1).mean(1, dtype=np.float64) / 255


def sha256(dataset: Dataset, split: str | None = None) -> str:
    """A checksum of every image and label of `dataset`, or of one of its splits, in order.

    Splits of equal content have equal checksums.
    """
    digest = hashlib.sha256()
    named = dataset.splits() if split is None else {"": dataset.splits()[split]}
    for name, arrays in named.items():
        for array in (arrays.image, arrays.label):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


class Examples(Protocol):
    """Examples of which some can be taken: `Arrays`, or `cnnjax.data.Photos`."""

    def __len__(self) -> int: ...

    @property
    def label(self) -> np.ndarray:
        """A class id each, or other targets."""
        ...

    def take(self, index: Any, /) -> Self:
        """The examples at `index` (integers, a boolean mask or a slice), in that order."""
        ...


E = TypeVar("E", bound=Examples)


def split(arrays: E, validation: int | float, seed: int, *, stratify: bool = False) -> tuple[E, E]:
    """Set examples aside for validation: a uniformly random subset of exactly the size asked for, fixed by `seed`.

    Args:
      arrays: the examples to divide.
      validation: how many examples (an int), or what fraction of them (a float between 0 and 1; rounded to a count).
        0 sets none aside.
      seed: a non-negative integer; the same seed and number of examples give the same split.
      stratify: take each class's share of them, to within one example.

    Returns:
      (training, validation): disjoint, together complete, each in the original order.

    Raises:
      InputError: where `validation` leaves nothing to train on, is negative, or is a fraction that comes to no example;
        or with `stratify` the examples have no classes.
    """
    n = len(arrays)
    count = held_out(n, validation)
    if seed < 0:
        raise InputError(f"seed={seed}: a seed must not be negative")
    # The second word keeps this stream apart from the epochs' orders, which are (seed, epoch); see order.py.
    rng = np.random.default_rng((seed, 2**32 - 1))
    if stratify:
        aside = stratified(arrays.label, count, rng)
    else:
        aside = np.zeros(n, bool)
        aside[rng.permutation(n)[:count]] = True
    return arrays.take(~aside), arrays.take(aside)


def stratified(label: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """A mask over the examples with `count` True, each class's share to within one example (largest remainders).

    Args:
      label: int `[n]`, class ids.
      count: how many examples to choose.
      rng: chooses within the classes.

    Raises:
      InputError: if the labels are no class ids.
    """
    if label.ndim != 1 or label.dtype.kind not in "iu":
        raise InputError(f"data.stratify: allowed: for classes; labels are {label.dtype} of shape {label.shape}")
    share = np.bincount(label) * count / len(label)
    quota = np.floor(share).astype(int)
    quota[np.argsort(quota - share, kind="stable")[: count - quota.sum()]] += 1
    chosen = [rng.permutation(np.flatnonzero(label == c))[:n] for c, n in enumerate(quota)]
    mask = np.zeros(len(label), bool)
    mask[np.concatenate(chosen)] = True
    return mask


def held_out(n: int, validation: int | float) -> int:
    """How many of `n` examples `split` sets aside; it has the arguments and errors of that."""
    if isinstance(validation, bool) or not isinstance(validation, (int, float, np.integer, np.floating)):
        raise InputError(f"validation must be a number of examples or a fraction of them, received {validation!r}")
    if isinstance(validation, (float, np.floating)) and validation != 0:
        if not 0 < validation < 1:
            raise InputError(
                f"validation={validation}: a fraction must lie between 0 and 1 (a number of examples is written as an"
                " integer)"
            )
        count = round(n * float(validation))
        if count == 0:
            raise InputError(f"validation={validation}: that fraction of {n} examples is none")
    else:
        count = int(validation)
    if not 0 <= count < n:
        raise InputError(f"validation={validation}: of {n} examples, 0 to {n - 1} can be set aside")
    return count


def channel_mean_std(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels of all images, in units where 255 is 1.

    Computed from exact integer sums, so that the result depends neither on the order of the images nor on chunking.

    Args:
      images: uint8 `[n, height, width, channels]`.

    Returns:
      (mean, std): a float per channel each; std is the population's (divided by n).

    Raises:
      InputError: if the images are not uint8 of rank 4, or there are none.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.size == 0:
        raise InputError(
            "images must be uint8 [n, height, width, channels] and not empty, received"
            f" {images.dtype} of shape {images.shape}"
        )
    levels = np.arange(256)
    means, stds = [], []
    for channel in range(images.shape[-1]):
        # A histogram says all about 8-bit values; by chunks, since bincount widens its input to int64.
        counts = np.zeros(256, np.int64)
        for start in range(0, len(images), 1024):
            counts += np.bincount(images[start : start + 1024, ..., channel].ravel(), minlength=256)
        # Python integers: n * squares would overflow int64 from about 12,000 images of 224 x 224.
        n, total, squares = (int(x) for x in (counts.sum(), counts @ levels, counts @ levels**2))
        means.append(total / n / 255)
        stds.append((n * squares - total**2) ** 0.5 / n / 255)
    return tuple(means), tuple(stds)
