"""What a run is made of: the network and the data that its configuration names."""

import dataclasses
import functools
import importlib.metadata
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import cnnjax
from cnnjax import data as datasets
from cnnjax import models
from cnnjax.ops.errors import InputError
from cnnjax.training import config as configs
from cnnjax.training import metrics
from cnnjax.training.config import Config
from cnnjax.training.state import TrainState, init_state
from cnnjax.training.step import Batch, Preprocess, Update, train_step

Split = datasets.Arrays | datasets.Photos
"""The examples of one split, in memory or to be streamed."""


@dataclasses.dataclass(frozen=True)
class Derived:
    """What a configuration leaves to the data: written beside it, so that a run can be loaded without the data."""

    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    steps: int
    examples: dict[str, int]
    provenance: dict[str, str]
    sha256: str
    """Of every image and label of the data set, or of names, numbers and sizes of photographs that are streamed: a run
    resumes on the data it was begun with, or not at all."""
    brightness: tuple[float, float] | None = None
    """Least and greatest mean pixel, in [0, 1], of 998 of 1,000 training images; not known of photographs that are
    streamed."""
    split_sha256: dict[str, str] | None = None
    """The same checksum of each split that the data set has besides "train", which is nearly all of it; not known of
    photographs that are streamed."""
    class_weights: tuple[float, ...] | None = None
    """What the loss of a training example of each class is multiplied by, where classes are to count alike."""

    def __post_init__(self) -> None:
        """Raises an `InputError` for what no data set gives, as in a record that was edited."""
        for name, right, allowed in (
            ("image_shape", min(self.image_shape) > 0, "three numbers above 0"),
            ("num_classes", self.num_classes > 0, "1 or more"),
            ("steps", self.steps > 0, "1 or more"),
            ("mean", all(map(math.isfinite, self.mean)), "finite numbers"),
            ("std", all(0 < value < math.inf for value in self.std), "finite numbers above 0"),
        ):
            if not right:
                raise InputError(f"derived.{name}: received {getattr(self, name)}, allowed: {allowed}")


def make_model(config: Config, num_classes: int) -> nn.Module:
    """The network that a configuration names, for that many classes.

    Raises:
      InputError: the name or a field is unknown, or the fields set fewer outputs than there are classes.
    """
    fields: dict[str, Any] = {"num_classes": num_classes}
    if config.train.dtype != "float32":  # which is what every model computes in unless told otherwise
        kept = "float64" if config.train.dtype == "float64" else "float32"
        fields |= {"dtype": jnp.dtype(config.train.dtype), "param_dtype": jnp.dtype(kept)}
    fields |= config.model.fields
    if isinstance(fields["num_classes"], int) and fields["num_classes"] < num_classes:
        raise InputError(
            f"model.fields: num_classes={fields['num_classes']} received, allowed: {num_classes} or more, "
            f"the classes of the data set"
        )
    return models.create(config.model.name, **fields)


def make_init(
    config: Config, model: nn.Module, optimizer: optax.GradientTransformation, image_shape: tuple[int, ...]
) -> Callable[[jax.Array], TrainState]:
    """The state before the first step, as a function of a key."""
    average = config.train.ema is not None
    return functools.partial(init_state, model=model, optimizer=optimizer, image_shape=image_shape, average=average)


def make_step(
    config: Config,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
    mesh: jax.sharding.Mesh,
    class_weights: Sequence[float] | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The training step that a configuration asks for, on a mesh: of (state, batch), as `train_step`.

    `class_weights` are those of `Derived`.
    """
    return functools.partial(
        train_step,
        model=model,
        optimizer=optimizer,
        loss=metrics.make_loss(config.train.loss, config.train.label_smoothing, class_weights),
        preprocess=preprocess,
        update=Update.of(config.train, mesh),
    )


def load_data(config: Config, needed: str = "train") -> datasets.Dataset | datasets.PhotoSet:
    """The data set that a configuration names: in memory, or photographs to be streamed.

    Args:
      config: the configuration.
      needed: the split that will be used; a set may lack "train" where it is another, which stands for it then.
    """
    data = config.data
    if data.crop is not None:
        return datasets.open_photo_set(data.name, raw_dir=data.raw_dir, data_dir=data.data_dir, needed=needed)
    return datasets.load(
        data.name,
        raw_dir=data.raw_dir,
        data_dir=data.data_dir,
        cache_dir=data.cache_dir,
        size=data.size,
        fit=data.fit,
        needed=needed,
    )


def prepare(config: Config, dataset: datasets.Dataset | datasets.PhotoSet) -> tuple[dict[str, Split], Derived]:
    """The splits of a run, and what its configuration leaves to the data.

    Args:
      config: of the run.
      dataset: as loaded.

    Returns:
      The examples of "train", and of "validation" and "test" where there are any, and a `Derived`.

    Raises:
      InputError: the data set is not a proper one, or too small for the configuration.
    """
    data = config.data
    if isinstance(dataset, datasets.PhotoSet):
        sha256, split_sha256 = dataset.sha256, None
        if data.crop is None:
            raise InputError(f"data.crop: allowed: a number of pixels, as {dataset.name} is photographs to be streamed")
    else:
        datasets.check(dataset)
        sha256 = datasets.sha256(dataset)
        split_sha256 = {split: datasets.sha256(dataset, split) for split in dataset.splits() if split != "train"}
        if data.crop is not None:
            raise InputError(f"data.crop: {dataset.name} is in memory; allowed: photographs (folder, tfds:NAME)")
    if len(dataset.classes) == 1:
        raise InputError(
            f"data set {dataset.name!r}: received one class only, {dataset.classes[0]!r}; allowed: at least 2, as one "
            "can't be got wrong"
        )
    splits = _splits(data, dataset)
    train = splits["train"]
    if config.train.batch_size > len(train):
        raise InputError(
            f"train.batch-size: received {config.train.batch_size}, allowed: at most the {len(train):,} training "
            f"images of {dataset.name}"
        )
    if isinstance(train, datasets.Arrays):
        height, width, channels = train.image.shape[1:]
        targets = math.prod(train.label.shape[1:])
    else:
        assert data.crop is not None
        height, width, channels = data.crop, data.crop, 3
        targets = 0
    mean, std = _mean_std(data, train)
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise InputError(
                f"data.{name}: received {len(values)} numbers, allowed: one, or one for each of {channels}"
            )
    if not all(value > 0 for value in std):
        raise InputError(f"data.std: received {std}, allowed: numbers above 0 (is a channel of the images constant?)")
    if min(data.shift, data.pad_crop) < 0 or max(data.shift, data.pad_crop) >= min(height, width):
        raise InputError(f"data.shift and data.pad-crop: allowed: less than the image's size, {height}x{width}")
    derived = Derived(
        image_shape=(height, width, channels),
        classes=dataset.classes,
        num_classes=len(dataset.classes) or targets,
        mean=mean,
        std=std,
        steps=configs.total_steps(config, len(train)),
        examples={name: len(examples) for name, examples in splits.items()},
        provenance=dataset.provenance,
        sha256=sha256,
        brightness=_brightness(train),
        split_sha256=split_sha256,
        class_weights=_class_weights(config.train, train, dataset.classes),
    )
    return splits, derived


def _class_weights(wanted: configs.Train, train: Split, classes: Sequence[str]) -> tuple[float, ...] | None:
    if wanted.class_weights == "equal":
        return None
    if not classes:
        raise InputError("train.class-weights: received 'balanced', allowed: for classes; the targets are real numbers")
    return metrics.balanced(train.label, len(classes))


def _splits(data: configs.Data, dataset: datasets.Dataset | datasets.PhotoSet) -> dict[str, Split]:
    """The examples of each split that there are, limited and with validation images held out as configured."""
    rest, validation = _limited(dataset.train, data.limit), dataset.validation
    if validation is not None:
        validation = _limited(validation, data.limit)
    elif data.validation:
        rest, validation = datasets.split(rest, amount(data.validation), data.split_seed, stratify=data.stratify)
    splits: dict[str, Split] = {"train": rest}
    if validation is not None:
        splits["validation"] = validation
    if dataset.test is not None:
        splits["test"] = _limited(dataset.test, data.limit)
    return splits


def _limited(split: Split, limit: int | None) -> Split:
    """At most so many examples: all over the split, which may be sorted by class."""
    if limit is None or limit >= len(split):
        return split
    return split.take(np.arange(limit) * len(split) // limit)


def one_label(split: Split) -> jax.ShapeDtypeStruct:
    """A single label of a split, as a shape: a class number, or the targets of one example."""
    if isinstance(split, datasets.Arrays):
        return jax.ShapeDtypeStruct(split.label.shape[1:], split.label.dtype)
    return jax.ShapeDtypeStruct((), jnp.int32)


def sameness(splits: Mapping[str, Split], classes: Sequence[str], *, at_random: bool = False) -> list[str]:
    """What to warn of: splits in memory whose examples are all of one class, in which any accuracy says nothing.

    Args:
      splits: by name.
      classes: their names; of targets that are no classes nothing is said.
      at_random: whether the validation images were held out without regard to their classes, which can be changed.
    """
    found = []
    for name, split in splits.items():
        if classes and isinstance(split, datasets.Arrays) and (split.label == split.label[0]).all():
            label = classes[int(split.label[0])]
            advice = "; --data.stratify holds out some of each class" if at_random and name == "validation" else ""
            found.append(
                f"data: all {len(split):,} {name} images are of one class, {label!r}: accuracy says nothing{advice}"
            )
    return found


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the channels of ImageNet's training images (red, green, blue), as torchvision and everybody since has them."""


def _mean_std(data: configs.Data, train: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The channels' statistics: given, ImageNet's for photographs that are not all read, or measured."""
    if data.mean is not None and data.std is not None:
        return data.mean, data.std
    if isinstance(train, datasets.Arrays):
        mean, std = datasets.channel_mean_std(train.image)
    else:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    return data.mean or mean, data.std or std


def _brightness(train: Split) -> tuple[float, float] | None:
    if not isinstance(train, datasets.Arrays):
        return None
    few = _limited(train, 10_000)
    assert isinstance(few, datasets.Arrays)
    low, high = np.quantile(datasets.brightness(few.image), (0.001, 0.999))
    return float(low), float(high)


def amount(validation: float) -> int | float:
    """A configuration's `validation`: below 1 a fraction, else a number of images."""
    if validation >= 1 and validation != int(validation):
        raise InputError(f"data.validation: received {validation}, allowed: a fraction below 1, or a whole number")
    return validation if validation < 1 else int(validation)


def threads() -> int:
    """How many threads XLA computes with on the CPU, on which the last bits of sums depend."""
    told = os.environ.get("NPROC", "")  # as XLA reads it
    if told.isascii() and told.isdigit() and int(told) > 0:
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Of Python and the packages a result depends on."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    # A checkout on the path, as benchmarks/gpu.sh has it, is not installed.
    ours = {"python": platform.python_version(), "cnnjax": cnnjax.__version__}
    return ours | {name: importlib.metadata.version(name) for name in packages}
