"""TensorFlow Datasets without TensorFlow: reading prepared sets, and preparing MNIST and Fashion-MNIST.

Only the array_record format is read. TFDS can't read tfrecord without TensorFlow, and its parquet format loses examples
(measured with TFDS 4.9.10: 3,400 of 60,000 came back).
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from cnnjax import terminal
from cnnjax.data.arrays import Arrays, Dataset, NoSplit, check, sha256
from cnnjax.data.cache import cached_for, originals_directory
from cnnjax.data.features import check_features
from cnnjax.data.folder import listing_digest, walk
from cnnjax.data.images import Fit, Size, decode_all, decoder, resize_identity, stretched_provenance
from cnnjax.data.mnist import CLASSES, decode
from cnnjax.data.originals import Path, fetch_originals, read_originals
from cnnjax.ops.errors import InputError, unknown

_VERSION = "3.0.1"  # of mnist and fashion_mnist: TFDS's own, whose examples ours equal
_SLICE = 1024  # examples read at once: three times as fast as one by one


def prepared_directory(data_dir: Path | None = None) -> pathlib.Path:
    """Where prepared sets are: `data_dir`, else as TFDS has it, $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    path = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    try:
        return path.expanduser()
    except RuntimeError:  # neither $HOME nor an entry for this user
        raise InputError(f"data_dir: {path}: this user has no home folder; name one by --data.data-dir") from None


def load_tfds(
    name: str,
    *,
    raw_dir: Path | None = None,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    size: Size | None = None,
    fit: Fit = "stretch",
    needed: str = "train",
) -> Dataset:
    """A classification set of TensorFlow Datasets that was prepared in array_record format, read without TensorFlow.

    Args:
      name: NAME[/CONFIG][:VERSION]. Without a configuration the only one prepared, without a version the newest.
      raw_dir: refused: raw files are for `prepare`.
      data_dir: see `prepared_directory`.
      cache_dir: see `cnnjax.data.cache.cache_directory`.
      size: (height, width) to resize to; without it all images must have one size.
      fit: what happens to images of other proportions.
      needed: the split without which the set is of no use.

    Raises:
      InputError: if it isn't prepared or not in that format, or isn't images with class labels.
    """
    if raw_dir is not None:
        raise InputError(
            f"raw_dir={str(raw_dir)!r}: 'tfds:{name}' is read as prepared and takes no raw_dir; to prepare a set from"
            " its raw files: cnnjax data prepare NAME --raw-dir DIR"
        )
    directory = _find(name, prepared_directory(data_dir))
    identity = {"files": listing_digest(walk(directory).files), "decoder": decoder(), **resize_identity(size, fit)}
    build = lambda needed: lambda: _read(name, directory, size, fit, needed)
    dataset = cached_for(needed, f"tfds:{name}", identity, build, cache_dir)
    _say_if_nameless(name, directory, dataset.classes)
    return dataset


def _say_if_nameless(name: str, directory: pathlib.Path, classes: tuple[str, ...]) -> None:
    """Says where classes have numbers for names because the file of their names is missing; some sets never had one."""
    if classes == tuple(map(str, range(len(classes)))) and not any(
        path.stat().st_size for path in directory.glob("*.labels.txt")
    ):
        terminal.say(
            f"cnnjax: 'tfds:{name}' has no names for its {len(classes)} classes (none in *.labels.txt of {directory}):"
            " they are called by their numbers",
            sys.stderr,
        )


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _find(name: str, root: pathlib.Path) -> pathlib.Path:
    """The directory of the prepared set `name` below `root`."""
    match = re.fullmatch(r"(\w+)(?:/([\w.+-]+))?(?::(\d+\.\d+\.\d+))?", name)
    if not match:
        raise InputError(f"'tfds:{name}': the form is tfds:NAME[/CONFIG][:VERSION], such as tfds:mnist:3.0.1")
    set_name, config, version = match.groups()
    parent = root / set_name / (config or "")
    if not config and not _versions(parent) and parent.is_dir():
        configs = sorted(child.name for child in parent.iterdir() if child.is_dir() and _versions(child))
        if len(configs) > 1:
            raise InputError(f"'tfds:{name}': several configurations are prepared, name one: {', '.join(configs)}")
        if configs:
            parent = parent / configs[0]
    versions = _versions(parent)
    if not versions:
        raise InputError(
            f"'tfds:{name}' is not prepared in {root}; to prepare it: cnnjax data prepare {set_name}"
            f"{'/' + config if config else ''} --data-dir {root}"
        )
    if version and version not in versions:
        raise InputError(f"'tfds:{name}': version {version} is not prepared in {parent}, only {', '.join(versions)}")
    return parent / (version or versions[-1])


def _versions(parent: pathlib.Path) -> list[str]:
    """The versions prepared in `parent`, oldest first."""
    found = [path.parent.name for path in parent.glob("*/dataset_info.json")]
    return sorted(
        (name for name in found if re.fullmatch(r"\d+\.\d+\.\d+", name)),
        key=lambda name: tuple(int(part) for part in name.split(".")),
    )


def _open(name: str, directory: pathlib.Path) -> tuple[Any, str, str]:
    """(TFDS's builder of a prepared set, the names of its image and its label), after checking that it can be read."""
    import tensorflow_datasets as tfds

    check_features(f"'tfds:{name}'", directory)
    try:
        builder = tfds.builder_from_directory(directory)
    except Exception as error:  # of several kinds, where its description is damaged or missing
        raise InputError(f"'tfds:{name}' in {directory} cannot be read: {' '.join(str(error).split())}") from error
    info = builder.info
    file_format = info.file_format.value if info.file_format else "unknown"
    if file_format != "array_record":
        raise InputError(
            f"'tfds:{name}' in {directory} is in {file_format} format; only array_record is read (parquet loses"
            " examples, tfrecord needs TensorFlow): prepare it again into another data_dir"
        )
    image_key, label_key = _keys(name, info)
    label = info.features[label_key]
    if len(set(label.names)) != label.num_classes:  # which TFDS passes over
        raise InputError(
            f"'tfds:{name}' has {label.num_classes} classes but {len(set(label.names))} names for them, in"
            f" {label.get_names_filepath(directory, label_key)}"
        )
    return builder, image_key, label_key


def _source(name: str, directory: pathlib.Path, builder: Any, split: str) -> Any:
    """Random access to the records of a split, each the bytes of an example, after checking that all are there."""
    import tensorflow_datasets as tfds

    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    source = builder.as_data_source(split=split, deserialize_method=raw)
    prepared = builder.info.splits[split].num_examples
    if len(source) != prepared:
        raise InputError(
            f"'tfds:{name}', split {split!r}: {len(source)} examples, but {prepared} were prepared: the files in"
            f" {directory} are incomplete; delete them and prepare again"
        )
    return source


def _parser(info: Any, keys: Iterable[str], image_key: str) -> Callable[[bytes], Any]:
    """What reads some features of a record and leaves the image encoded: TFDS would decode it by any means."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict({key: info.features[key] for key in keys if key in info.features})
    return functools.partial(features.deserialize_example_np, decoders={image_key: tfds.decode.SkipDecoding()})


@dataclasses.dataclass(frozen=True)
class Records:
    """The encoded images of a split of a prepared set: `records[i]` is (bytes, label), read when asked for.

    A copy sent to another process opens the files there.

    Attributes:
      name: of the set, for errors.
      directory: where it is prepared.
      split: as TFDS calls it.
    """

    name: str
    directory: pathlib.Path
    split: str

    @functools.cached_property
    def _opened(self) -> tuple[Any, Callable[[bytes], Any], str, str]:
        """(the records, what reads one, the names of the image and of the label), opened once in each process."""
        builder, image_key, label_key = _open(self.name, self.directory)
        parse = _parser(builder.info, (image_key, label_key, "file_name"), image_key)
        return _source(self.name, self.directory, builder, self.split), parse, image_key, label_key

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __len__(self) -> int:
        return len(self._opened[0])

    def __getitem__(self, i: int) -> tuple[bytes, int]:
        example = self._example(i)
        *_, image_key, label_key = self._opened
        return example[image_key], int(example[label_key])

    def where(self, i: int) -> str:
        """What to call example `i` in an error: its number, and its file name if the set keeps one."""
        example = self._example(i)
        file = example.get("file_name", b"")
        name = f" ({file.decode(errors='replace') if isinstance(file, bytes) else file})" if len(file) else ""
        return f"'tfds:{self.name}', split {self.split!r}, example {i}{name}"

    def _example(self, i: int) -> dict[str, Any]:
        try:
            records, parse, *_ = self._opened
            return parse(records[i])
        except Exception as error:  # array_record raises several kinds on damaged files
            raise InputError(
                f"'tfds:{self.name}', split {self.split!r}, example {i} cannot be read: {' '.join(str(error).split())}"
            ) from error


def open_records(name: str, data_dir: Path | None = None) -> tuple[dict[str, Records], tuple[str, ...], dict[str, str]]:
    """(the encoded images by split, the classes' names, where they came from) of a set prepared in array_record format.

    Args:
      name: NAME[/CONFIG][:VERSION], as for `load_tfds`.
      data_dir: see `prepared_directory`.

    Raises:
      InputError: if it isn't prepared or not in that format, or is no set for image classification.
    """
    directory = _find(name, prepared_directory(data_dir))
    builder, _, label_key = _open(name, directory)
    info = builder.info
    splits = {split: Records(name, directory, split) for split in info.splits}
    _check_shards(name, info.splits)
    _say_if_nameless(name, directory, tuple(info.features[label_key].names))
    provenance = {
        "tfds": info.full_name,
        "description": (info.description or "").partition("\n")[0],
        "format": info.file_format.value,
        "splits": ", ".join(f"{key} {info.splits[key].num_examples}" for key in sorted(info.splits)),
        "shards": ", ".join(f"{key} {info.splits[key].shard_lengths}" for key in sorted(info.splits)),
        "bytes": ", ".join(f"{key} {info.splits[key].num_bytes}" for key in sorted(info.splits)),
    }
    return splits, tuple(info.features[label_key].names), provenance


def _check_shards(name: str, splits: Mapping[str, Any]) -> None:
    """Raises an `InputError` where a file of a set is missing, damaged, or has another number of examples.

    Where a file is that of another split too, a line says so: such copies make an evaluation one of training images.

    Args:
      name: of the set, for errors.
      splits: TFDS's description of each split.
    """
    module = importlib.import_module("array_record.python.array_record_module")  # which has no types

    def look(path: str) -> tuple[int | str, bytes]:
        """(the number of examples, or what is wrong; what tells the file from others of its size)."""
        if os.path.exists(path) and not os.path.isfile(path):
            return "no readable (it is no regular file)", b""
        try:
            with contextlib.closing(module.ArrayRecordReader(path)) as reader:
                number = reader.num_records()
            with open(path, "rb") as file:
                head = file.read(2**16)
                size = file.seek(0, os.SEEK_END)
                file.seek(max(len(head), size - 2**16))
                return number, hashlib.sha256(b"%d " % size + head + file.read()).digest()
        except Exception as error:  # array_record raises several kinds
            return f"no readable ({' '.join(str(error).split())[:200]})", b""

    owners: dict[bytes, tuple[str, str]] = {}
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for split in splits:
            info, where = splits[split], f"'tfds:{name}', split {split!r}"
            try:
                paths = [os.fspath(path) for path in info.filepaths]
            except (ValueError, KeyError, IndexError) as error:  # of a damaged template of file names
                raise InputError(f"{where}: its files have no names ({error})") from None
            if not paths:
                raise InputError(f"{where}: no files are described (dataset_info.json has no shard lengths)")
            if len(paths) != len(info.shard_lengths):
                raise InputError(f"{where}: {len(paths)} files for {len(info.shard_lengths)} shards")
            for path, prepared, (found, content) in zip(paths, info.shard_lengths, pool.map(look, paths), strict=True):
                if found != prepared:
                    raise InputError(f"{where}: {path} has {found} examples, but {prepared} were prepared")
                owner, other = owners.setdefault(content, (split, path))
                if owner != split and found:
                    terminal.say(f"cnnjax: warning: {where}: {path} is a copy of {other} of {owner!r}", sys.stderr)


def _read(
    name: str, directory: pathlib.Path, size: Size | None, fit: Fit = "stretch", needed: str = "train"
) -> Dataset:
    builder, image_key, label_key = _open(name, directory)
    info = builder.info
    classes = tuple(info.features[label_key].names)
    if "train" not in info.splits and needed not in info.splits:
        raise NoSplit(f"'tfds:{name}' has no split {needed!r}, only {', '.join(sorted(info.splits))}")
    feature = info.features[image_key]
    if feature.np_dtype != np.uint8:
        raise InputError(f"'tfds:{name}' has images of {np.dtype(feature.np_dtype)}; allowed: uint8")
    _check_shards(name, info.splits)
    read = functools.partial(
        _read_split,
        parse=_parser(info, (image_key, label_key), image_key),
        keys=(image_key, label_key),
        channels=1 if feature.shape[-1] == 1 else 3,
        size=size,
        fit=fit,
    )
    splits, stretched = {}, 0
    for split in ("train", "test", "validation"):
        if split not in info.splits:
            continue
        source, prepared = _source(name, directory, builder, split), int(info.splits[split].num_bytes)
        arrays, changed = read(f"'tfds:{name}', split {split!r}", source, prepared=prepared)
        if split != "train" and (arrays.label == -1).all():
            terminal.say(f"cnnjax: {split!r} of 'tfds:{name}' has no labels (all -1) and is left out", sys.stderr)
        else:
            splits[split] = arrays
            stretched += changed
    if not {"train", needed} & set(splits):
        raise InputError(f"'tfds:{name}': split {needed!r} has no labels")
    train = splits["train" if "train" in splits else needed]  # see `cnnjax.data.load`
    dataset = Dataset(f"tfds:{name}", train, splits.get("test"), splits.get("validation"), classes, {})
    images = sum(len(arrays) for arrays in splits.values())
    dataset.provenance.update(
        {
            "tfds": info.full_name,
            "format": info.file_format.value,
            "decoder": decoder(),
            "splits": ", ".join(f"{key} {info.splits[key].num_examples}" for key in sorted(info.splits)),
            "sha256 of the arrays": sha256(dataset),
        }
        | stretched_provenance(stretched, images, size, fit)
    )
    return dataset


def _keys(name: str, info: Any) -> tuple[str, str]:
    """The names of the features that hold the image and its class."""
    import tensorflow_datasets as tfds

    features = dict(info.features) if isinstance(info.features, tfds.features.FeaturesDict) else {}
    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    supervised = info.supervised_keys or ()
    # Where a set has several (CIFAR-100 has coarse labels too), its own choice for supervised learning decides.
    image_key = next((key for key in ("image", *images) if key in supervised and key in images), None)
    label_key = next((key for key in ("label", *labels) if key in supervised and key in labels), None)
    image_key = image_key or (images[0] if len(images) == 1 else None)
    label_key = label_key or (labels[0] if len(labels) == 1 else None)
    if image_key is None or label_key is None:
        has = ", ".join(f"{key}: {type(feature).__name__}" for key, feature in features.items()) or repr(info.features)
        raise InputError(
            f"'tfds:{name}' is no set for image classification: one Image and one ClassLabel are needed, it has {has}"
        )
    return image_key, label_key


def _read_split(
    where: str,
    source: Any,
    *,
    parse: Callable[[bytes], Any],
    keys: tuple[str, str],
    channels: int,
    size: Size | None,
    fit: Fit,
    prepared: int,
) -> tuple[Arrays, int]:
    """(the examples of a split, how many lost their proportions).

    Args:
      where: the set and the split, for errors.
      source: its records.
      parse: reads one.
      keys: the names of the image and of its class.
      channels: 1 or 3.
      size: (height, width) to resize to; None demands that all are of one size.
      fit: what happens to images of other proportions.
      prepared: the bytes of all records, as the set's description has it; 0 where that is not known.
    """
    n, length, stretched = len(source), 0, 0
    label = np.empty(n, np.int32)
    image: np.ndarray | None = None
    for start in range(0, n, _SLICE):
        try:
            records = source.__getitems__(list(range(start, min(start + _SLICE, n))))
            examples = [parse(record) for record in records]
        except Exception as error:  # array_record and TFDS raise several kinds on damaged files
            raise InputError(f"{where}: examples from {start} on cannot be read: {error}") from error
        length += sum(len(record) for record in records)
        encoded = [(f"{where}, example {i}", example[keys[0]]) for i, example in enumerate(examples, start)]
        decoded = decode_all(encoded, size, fit, channels)
        stretched += decoded.stretched
        if image is None:
            image = np.empty((n, *decoded.image.shape[1:]), np.uint8)
        if decoded.image.shape[1:] != image.shape[1:]:
            raise InputError(
                f"{where}: images differ in size: example 0 is {image.shape[1:]}, example {start} is"
                f" {decoded.image.shape[1:]}; give a size to resize to, or stream them with a crop (--data.crop)"
            )
        stop = start + len(examples)
        image[start:stop], label[start:stop] = decoded.image, [int(example[keys[1]]) for example in examples]
    if image is None:
        raise InputError(f"{where} is empty")
    if prepared and length != prepared:
        raise InputError(
            f"{where}: its examples have {length:,} bytes, but {prepared:,} were prepared: the files are"
            " another split's or another set's"
        )
    return Arrays(image, label), stretched


def prepare(
    name: str,
    raw_dir: Path | None = None,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
) -> pathlib.Path:
    """Prepare a set of TensorFlow Datasets in array_record format, for `load("tfds:NAME")`.

    mnist and fashion_mnist are prepared without TensorFlow from their original files, in their order, and read back and
    compared with them. Any other set is prepared by TFDS's own code, which needs TensorFlow.

    Args:
      name: NAME[/CONFIG][:VERSION] as TFDS names it.
      raw_dir: the folder with the original files. Without it they are downloaded.
      data_dir: where to put the prepared set; see `prepared_directory`.
      cache_dir: where to put downloads of mnist and fashion_mnist; see `cnnjax.data.cache.cache_directory`.

    Returns:
      the folder of the prepared set.

    Raises:
      InputError: if the name is unknown, TensorFlow is needed and missing, raw files are wrong, or what is already
        prepared there isn't that set in array_record format.
    """
    root = prepared_directory(data_dir)
    plain = name.removesuffix(f":{_VERSION}")
    return _prepare_mnist(plain, raw_dir, root, cache_dir) if plain in CLASSES else _prepare_other(name, raw_dir, root)


def _prepare_mnist(name: str, raw_dir: Path | None, root: pathlib.Path, cache_dir: Path | None) -> pathlib.Path:
    if raw_dir is not None:
        contents = read_originals(name, raw_dir)
    else:
        contents = fetch_originals(name, originals_directory(name, cache_dir))
    original = check(decode(name, contents))
    directory = root / name / _VERSION
    if not (directory / "dataset_info.json").exists():
        _run(_mnist_builder(original, root), name, root)
    # TFDS has been seen to build one set from another's files, and to lose examples.
    stored = check(_read(f"{name}:{_VERSION}", directory, None))
    for split, arrays in original.splits().items():
        if not _same_examples(arrays, stored.splits()[split]):
            raise InputError(
                f"the {split} examples in {directory} are not those of {name}; delete it and prepare again"
            )
    return directory


def _mnist_builder(dataset: Dataset, root: pathlib.Path) -> Any:
    """A TFDS builder of `dataset` with the name, version and features of TFDS's own, which needs no TensorFlow."""
    import tensorflow_datasets as tfds
    from PIL import Image

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # TFDS registers its own under this name
        name = dataset.name
        VERSION = tfds.core.Version(_VERSION)

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "image": tfds.features.Image(shape=dataset.train.image.shape[1:]),
                "label": tfds.features.ClassLabel(names=list(dataset.classes)),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"{dataset.name}, from its original files, in their order.",
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                disable_shuffling=True,  # keeps the original files' order
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(arrays) for split, arrays in dataset.splits().items()}

        def _generate_examples(self, arrays):
            for i in range(len(arrays)):
                # Pillow's images are encoded as PNG without TensorFlow, arrays are not.
                yield i, {"image": Image.fromarray(arrays.image[i, ..., 0]), "label": int(arrays.label[i])}

    return Builder(data_dir=root, file_format="array_record")


def _prepare_other(name: str, raw_dir: Path | None, root: pathlib.Path) -> pathlib.Path:
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    plain = re.split("[/:]", name)[0]
    if plain not in known:
        near = [other for other in known if other[:1] == plain[:1]] or known  # the whole list has hundreds
        raise unknown("TFDS data set", plain, near)
    if not _installed("tensorflow"):
        raise InputError(f"preparing {plain!r} needs TensorFlow, which isn't installed: pip install 'cnnjax[prepare]'")
    try:
        builder = tfds.builder(name, data_dir=root, file_format="array_record")
    except ValueError as error:  # an unknown configuration or version, or another format prepared already
        raise InputError(f"{name!r} cannot be prepared in {root}: {' '.join(str(error).split())}") from None
    _run(builder, plain, root, raw_dir)
    return pathlib.Path(builder.data_dir)


def _run(builder: Any, name: str, root: pathlib.Path, raw_dir: Path | None = None) -> None:
    import tensorflow_datasets as tfds

    try:
        builder.download_and_prepare(
            # One per set: in a shared one TFDS takes MNIST's files for Fashion-MNIST's, which have the same names.
            download_dir=root / "downloads" / name,
            download_config=tfds.download.DownloadConfig(manual_dir=None if raw_dir is None else os.fspath(raw_dir)),
            file_format="array_record",
        )
    except OSError as error:  # no space, no permission, no network
        raise InputError(f"{name!r} could not be prepared in {root}: {' '.join(str(error).split())}") from error


def _same_examples(a: Arrays, b: Arrays) -> bool:
    """Whether both hold the same pairs of image and label, in any order (TFDS's own sets are shuffled)."""

    def rows(arrays: Arrays) -> np.ndarray:
        label = arrays.label.astype("<i4")[:, None].view(np.uint8)
        table = np.concatenate([arrays.image.reshape(len(arrays), -1), label], axis=1)
        return np.sort(table.view(f"S{table.shape[1]}").ravel())

    return a.image.shape == b.image.shape and np.array_equal(rows(a), rows(b))
