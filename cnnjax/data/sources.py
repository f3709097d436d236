"""Data sets by name."""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from cnnjax import terminal
from cnnjax.data.arrays import Dataset, check
from cnnjax.data.cifar import load_cifar10
from cnnjax.data.digits import load_digits
from cnnjax.data.folder import load_folder
from cnnjax.data.images import FITS, STRETCHED, Fit, check_size, resize_dataset
from cnnjax.data.mnist import load_mnist
from cnnjax.data.originals import Path
from cnnjax.data.tfds import load_tfds
from cnnjax.ops.errors import InputError, unknown

# Name to loader. To add a set, put a function here:
#     def load_mine(*, raw_dir=None, data_dir=None, cache_dir=None, size=None) -> Dataset
#     cnnjax.data.DATASETS["mine"] = load_mine
# It may ignore `size`: `load` resizes what has another size.
DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": load_digits,
    "mnist": functools.partial(load_mnist, "mnist"),
    "fashion_mnist": functools.partial(load_mnist, "fashion_mnist"),
    "cifar10": load_cifar10,
    "folder": load_folder,
}


def names() -> list[str]:
    """The names `load` knows; `tfds:NAME` stands for every set of TensorFlow Datasets prepared on this machine."""
    return [*sorted(DATASETS), "tfds:NAME"]


def summaries() -> dict[str, str]:
    """A line about each of `names()`."""
    found = {
        "digits": "1,797 handwritten digits of 8x8 pixels, from scikit-learn; needs no download",
        "mnist": "70,000 handwritten digits of 28x28 (LeCun et al. 1998)",
        "fashion_mnist": "70,000 pieces of clothing, grey, 28x28 (Xiao et al. 2017)",
        "cifar10": "60,000 colour photographs of 10 kinds of things, 32x32 (Krizhevsky 2009)",
        "folder": "your own images: --raw-dir holds <split>/<class>/<image>, as folders or tars",
        "tfds:NAME": "any classification set of TensorFlow Datasets, prepared as array_record",
    }
    return {name: found.get(name, "added by you") for name in names()}


def load(
    name: str,
    *,
    raw_dir: Path | None = None,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    size: tuple[int, int] | None = None,
    fit: Fit = "stretch",
    needed: str = "train",
) -> Dataset:
    """A data set by name, in memory and checked.

    Args:
      name: one of `DATASETS`, or "tfds:NAME[/CONFIG][:VERSION]".
      raw_dir: a folder with the set's original files; for "folder", the images themselves (a folder or a tar).
      data_dir: where TensorFlow Datasets keeps prepared sets; None for its default.
      cache_dir: where decoded sets are kept; None for $CNNJAX_CACHE, or else ~/.cache/cnnjax/data.
      size: (height, width) to resize every image to (bilinear, antialiased); None keeps the source's.
      fit: what happens to an image of other proportions than `size`: "stretch" (a line says how many were), "letterbox"
        (all of it, between black bars) or "crop" (its centre).
      needed: the split without which the set is of no use. Where it is another than "train", a "folder" or "tfds:NAME"
        may lack "train", for which it stands.

    Raises:
      InputError: one line that says what is wrong with the name, the folder, a file, or the data.
    """
    size = check_size(size)
    if name in DATASETS:
        loader = DATASETS[name]
    elif name.startswith("tfds:"):
        loader = functools.partial(load_tfds, name.removeprefix("tfds:"))
    else:
        raise unknown("data set", name, names())
    if fit not in FITS:
        raise unknown("fit", fit, FITS)
    places: dict[str, Any] = {"raw_dir": raw_dir, "data_dir": data_dir, "cache_dir": cache_dir, "size": size}
    if name == "folder" or name.startswith("tfds:"):  # of images that may differ in size
        places |= {"fit": fit, "needed": needed}
    elif fit != "stretch":
        places["size"] = None  # it is given here, below
    try:
        inspect.signature(loader).bind(**places)
    except TypeError as error:
        raise InputError(f"data set {name!r}: its function can't be called with {', '.join(places)}: {error}") from None
    dataset = loader(**places)
    if not isinstance(dataset, Dataset):
        kind = type(dataset).__name__
        raise InputError(f"data set {name!r}: its function returned {kind}; expected: a cnnjax.data.Dataset")
    dataset = resize_dataset(check(dataset), size, fit)
    if STRETCHED in dataset.provenance:
        terminal.say(
            f"cnnjax: {name}: {dataset.provenance[STRETCHED]} and lost their proportions; --data.fit letterbox or crop"
            " keeps them",
            sys.stderr,
        )
    return dataset
