"""What a prepared set of TensorFlow Datasets says it holds, checked before TFDS acts on it.

TFDS imports the module of any class that `features.json` names. A data set must not be able to run code, so only TFDS's
own feature classes are let through.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from cnnjax.ops.errors import InputError

_LARGEST = 2**24  # bytes; TFDS's largest descriptions have some hundred thousand
# What names a class in features.json: the field of the protocol buffer by either of its names, and TFDS's older form.
_NAMING = ("pythonClassName", "python_class_name", "type")


def check_features(where: str, directory: pathlib.Path) -> None:
    """Refuses a prepared set whose `features.json` names another class than TFDS's own feature classes.

    Args:
      where: the set's name, for errors.
      directory: where it is prepared.

    Raises:
      InputError: naming the class; or if the file is missing, or no JSON.
    """
    path = directory / "features.json"
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            raise InputError(f"{where}: {path} is not there, or no file of a description's size")
        found = list(_classes(json.loads(path.read_text("utf-8"))))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: {path} cannot be read as JSON ({' '.join(str(error).split())[:200]})") from None
    allowed = own_features()
    for name in found:
        if name not in allowed:
            raise InputError(
                f"{where}: {path} names the class {name!r:.200}, allowed: the feature classes of TFDS itself"
                " (data must not bring code to run)"
            )


def own_features() -> frozenset[str]:
    """The full names of the feature classes that come with TFDS."""
    import tensorflow_datasets as tfds

    classes = (value for value in vars(tfds.features).values() if isinstance(value, type))
    names = (
        f"{kind.__module__}.{kind.__name__}" for kind in classes if issubclass(kind, tfds.features.FeatureConnector)
    )
    return frozenset(name for name in names if name.startswith("tensorflow_datasets.core.features."))


def _classes(value: Any) -> Iterator[Any]:
    """All that JSON names as a class, at any depth, and within strings that hold JSON themselves."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in _NAMING and isinstance(inner, str):
                yield inner
            yield from _classes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _classes(inner)
    elif isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            inner = json.loads(value)
        except ValueError:
            return  # a description, say
        yield from _classes(inner)
