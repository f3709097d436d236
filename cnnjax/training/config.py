"""What an experiment is: a frozen dataclass that says everything a run depends on.

A configuration has two parts. *What* a run computes (model, data, optimization, seed) must agree when a run is resumed.
*Where* it computes (folders, devices, how often to save) may change, and is recorded. A field belongs to the second
part when its metadata says so.
"""

import ast
import dataclasses
import json
import math
import os
import sys
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import tyro

from cnnjax.ops.errors import InputError
from cnnjax.training import mesh as meshes

WHERE = {"where": True}
LATER = {"later": True}
"""Of a field that came later: it belongs to *what* only where it is not its default, so that older runs go on."""

_LONGEST = 4096
"""Characters of a text in a configuration, at the most."""


def _parse_fields(words: list[str]) -> dict[str, Any]:
    """`["act=relu", "num_classes=7"]` as a dictionary; values are Python literals where they parse, else strings."""
    fields = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"expected NAME=VALUE, received {word[:80]!r}")
        if name in ("name", "parent"):  # which Flax gives every module
            raise ValueError(f"{name} is no field that can be set")
        if name in fields:
            raise ValueError(f"{name} was given twice")
        if len(value) > _LONGEST:
            raise ValueError(f"expected at most {_LONGEST} characters for {name}, received {len(value)}")
        try:
            fields[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two: of brackets in brackets
            fields[name] = value
    return fields


FIELDS = tyro.constructors.PrimitiveConstructorSpec(
    nargs="*",
    metavar="NAME=VALUE ...",
    instance_from_str=_parse_fields,
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=lambda fields: [f"{name}={value}" for name, value in fields.items()],
)
"""How a command line gives the fields of a model: act=relu num_classes=7."""


@dataclasses.dataclass(frozen=True)
class Model:
    """The network."""

    name: str = "lenet5"
    """The name of the network; `cnnjax models` lists them."""
    fields: Annotated[dict[str, Any], FIELDS] = dataclasses.field(default_factory=dict)
    """Fields of the network, changed for an ablation: act=relu norm=group num_classes=100 ..."""


@dataclasses.dataclass(frozen=True)
class Data:
    """The images, and what is done to them before the network sees them."""

    name: str = "digits"
    """digits, mnist, fashion_mnist, cifar10, folder, or tfds:NAME."""
    raw_dir: str | None = dataclasses.field(default=None, metadata=WHERE)
    """Folder with the set's original files; nothing is downloaded then."""
    data_dir: str | None = dataclasses.field(default=None, metadata=WHERE)
    """Folder of prepared TFDS sets (TFDS's own default when not given)."""
    cache_dir: str | None = dataclasses.field(default=None, metadata=WHERE)
    """Folder for decoded arrays, so that the next start is quick ($CNNJAX_CACHE or ~/.cache/cnnjax/data)."""
    size: tuple[int, int] | None = None
    """Height and width to resize every image to."""
    fit: Literal["stretch", "letterbox", "crop"] = dataclasses.field(default="stretch", metadata=LATER)
    """What becomes of an image whose proportions are not those of size: all of it stretched, all of it between black
    bars, or its centre."""
    crop: int | None = None
    """Streams photographs (of tfds:NAME or a folder) from disk in place of holding all in memory: this is the height
    and width of their crops. Training crops are random ("Inception's", random-resized); evaluation takes the centre."""
    crop_area: tuple[float, float] = (0.08, 1.0)
    """Least and greatest part of a photograph that a training crop covers, before it is resized."""
    resize: int | None = None
    """For evaluation a photograph's shorter side is resized to this before its centre is taken; crop / 0.875, which is
    256 for crops of 224, when not given."""
    workers: int = dataclasses.field(default=0, metadata=WHERE)
    """Processes that decode photographs; with 0 this process's threads do. The batches are the same."""
    threads: int | None = dataclasses.field(default=None, metadata=WHERE)
    """Threads that decode photographs where there are no workers (one for each core when not given)."""
    validation: float = 0.1
    """Part of the training set held out to choose the best step: a fraction below 1, or a number of images above
    1."""
    stratify: bool = dataclasses.field(default=False, metadata=LATER)
    """Hold out that part of each class, not of all images together: for classes of unequal size."""
    split_seed: int = 0
    """Seed of that split; apart from the run's seed, so that runs with several seeds share one split."""
    limit: int | None = None
    """Use only this many images of each split (for smoke tests)."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, pixels being in [0, 1]; measured on the training images when not given (streamed
    photographs: ImageNet's)."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel; measured when not given. The network sees (pixel - mean) / std."""
    shift: int = 0
    """Training images move by up to this many pixels on each axis, at random; black comes in at the edge."""
    pad_crop: int = 0
    """Training images are padded by this many pixels of the mean colour and cropped at random to their size."""
    flip: bool = False
    """Half of the training images are mirrored left to right."""
    resident_mb: float = dataclasses.field(default=4096, metadata=WHERE)
    """Sets up to this size (megabytes) are kept on the device; larger ones are sent a batch at a time."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How parameters follow their gradients."""

    name: str = "sgd"
    """sgd, adam, adamw, nadam, adadelta, rmsprop, adagrad, lamb, lars or lion."""
    learning_rate: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of sgd, rmsprop and lars; the others have none."""
    nesterov: bool = False
    """Nesterov's momentum, in sgd alone."""
    weight_decay: float = 0.0
    """Decay of weights; biases and the parameters of norms are left alone. Decoupled in adamw, lamb and lion; for the
    others it is added to the gradient, as the L2 penalty of the papers."""
    clip_norm: float | None = None
    """Gradients with a larger global norm are scaled down to it."""
    schedule: Literal["constant", "cosine", "linear", "steps"] = "constant"
    """Course of the learning rate after the warm-up: cosine and linear fall to zero at the last step."""
    warmup: float = 0.0
    """Linear warm-up from zero, as a fraction of the run."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """For `steps`: where the learning rate is multiplied, as fractions of the run."""
    factors: tuple[float, ...] = (0.1,)
    """For `steps`: by how much, one for each milestone or one for all."""


@dataclasses.dataclass(frozen=True)
class Train:
    """The course of training."""

    seed: int = 0
    """Everything random follows from it: initial parameters, order of the images, augmentation, dropout."""
    epochs: float | None = 10
    """Passes over the training images."""
    steps: int | None = None
    """Parameter updates, in place of epochs."""
    batch_size: int = 128
    """Images in an update, over all devices together."""
    loss: str = "cross_entropy"
    """cross_entropy, squared_error; for outputs that are distances, lenet5_map and lenet5_mse of the 1998 paper."""
    label_smoothing: float = 0.0
    """Weight moved from the true class to all classes alike, in training (cross_entropy)."""
    class_weights: Literal["equal", "balanced"] = dataclasses.field(default="equal", metadata=LATER)
    """balanced: each training example's loss counts by the inverse of its class's frequency, so that classes of unequal
    size count alike; on average an example counts 1."""
    evaluate_every: int | None = None
    """Steps between evaluations on the validation images (an epoch when not given)."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Of the computation; parameters are float32, or float64 with float64."""
    microbatches: int = 1
    """Parts that each batch is worked through in, one after the other, where all of it does not fit in memory."""
    norm_batch: int | None = None
    """Images whose statistics batch norm takes together: the whole batch when not given, over all devices; the part of
    one device, or of several, needs less communication."""
    ema: float | None = None
    """Decay of a moving average of the parameters, such as 0.9999, which is then what is evaluated and loaded."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Where and how the run is carried out; may differ when it is resumed."""

    devices: int | None = dataclasses.field(default=None, metadata=WHERE)
    """Devices to use (all when not given)."""
    mesh: Annotated[dict[str, Any], FIELDS] = dataclasses.field(default_factory=dict, metadata=WHERE)
    """What the devices share: data=N the batch, fsdp=N the batch and the parameters, space=N the height of the images.
    All share the batch when not given, and those that the other axes leave."""
    steps_per_call: int = dataclasses.field(default=1, metadata=WHERE)
    """Steps to make in one call of the device, which then need not wait for the host; for data that are kept there."""
    eval_batch_size: int = dataclasses.field(default=1000, metadata=WHERE)
    """Images in a batch of an evaluation, rounded up to a multiple of the devices."""
    checkpoint_every: int | None = dataclasses.field(default=None, metadata=WHERE)
    """Steps between checkpoints, besides those at every evaluation."""
    keep: int = dataclasses.field(default=2, metadata=WHERE)
    """Newest checkpoints to keep, besides the best by validation."""
    log_every: int = dataclasses.field(default=50, metadata=WHERE)
    """Steps between lines of training metrics."""
    tensorboard: bool = dataclasses.field(default=False, metadata=WHERE)
    """Write TensorBoard events too (the `tensorboard` extra)."""


@dataclasses.dataclass(frozen=True)
class Distributed:
    """How several processes find each other; none of it is needed under Slurm, Open MPI, Cloud TPU or Kubernetes."""

    coordinator: str | None = dataclasses.field(default=None, metadata=WHERE)
    """HOST:PORT of the first process, which the others must reach."""
    num_processes: int | None = dataclasses.field(default=None, metadata=WHERE)
    """How many there are."""
    process_id: int | None = dataclasses.field(default=None, metadata=WHERE)
    """Which one this is, from 0."""


@dataclasses.dataclass(frozen=True)
class Config:
    """An experiment."""

    model: Model = dataclasses.field(default_factory=Model)
    data: Data = dataclasses.field(default_factory=Data)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    train: Train = dataclasses.field(default_factory=Train)
    run: Run = dataclasses.field(default_factory=Run)
    distributed: Distributed = dataclasses.field(default_factory=Distributed)


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested dictionaries that JSON can hold."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: Any, values: Any, name: str = "configuration") -> Any:
    """The inverse of `to_dict`, for any dataclass.

    Args:
      kind: the dataclass.
      values: its fields, as JSON gives them.
      name: what they are, for a message.

    Raises:
      InputError: a field is unknown (of a newer version), missing, or of another type than the dataclass says.
    """
    if not isinstance(values, dict):
        raise InputError(f"{name}: received {_short(values)}, allowed: the fields of {kind.__name__}")
    hints = typing.get_type_hints(kind)
    unknown_names = sorted(set(values) - set(hints))
    if unknown_names:
        raise InputError(f"{name}: {kind.__name__} has no field {', '.join(unknown_names)}")
    for field in dataclasses.fields(kind):
        if field.name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise InputError(f"{name}: {kind.__name__} needs the field {field.name}")
    return kind(**{field: _revive(hints[field], value, f"{name}.{field}") for field, value in values.items()})


def _revive(hint: Any, value: Any, name: str) -> Any:
    """A value that JSON gave as the type that a field declares."""
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, name)
    for option in typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,):
        if _is_a(value, option):
            return tuple(value) if typing.get_origin(option) is tuple else value
    allowed = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    raise InputError(f"{name}: received {_short(value)}, allowed: {allowed}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"


def what(config: Any) -> dict[str, Any]:
    """The part of a configuration that a resumed run must match, as {"train.seed": 0, ...}."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= {f"{field.name}.{name}": inner for name, inner in what(value).items()}
        elif not field.metadata.get("where") and not (field.metadata.get("later") and value == field.default):
            found[field.name] = json.loads(json.dumps(value))
    return found


def changes(default: Config, config: Config) -> dict[str, Any]:
    """The fields in which a configuration differs from another one, as {"train.seed": 0, "model.fields.act": "tanh"}.

    How processes find each other is left out.
    """
    old, new = (_flat(to_dict(one)) for one in (default, config))
    names = [name for name in new | old if not name.startswith("distributed.")]
    return {name: new.get(name) for name in names if old.get(name) != new.get(name)}


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": leaf for inner, leaf in _flat(value).items()}
        else:
            found[name] = value
    return found


def check_types(config: Any, kind: Any = Config, name: str = "CONFIG") -> None:
    """Raises an `InputError` for a value of another type than its field's, which an experiment file can give.

    NumPy's numbers, arrays and functions have no place in a configuration, which is kept as JSON: names stand for
    functions ("relu").

    Args:
      config: the configuration, or a part of it.
      kind: what it should be.
      name: how to call it.
    """
    if dataclasses.is_dataclass(kind):
        if not isinstance(config, typing.cast(type, kind)):
            raise InputError(f"{name}: received {_kind(config)}, allowed: a cnnjax.training.{kind.__name__}")
        prefix = "" if name == "CONFIG" else f"{name}."
        for field, hint in typing.get_type_hints(kind).items():
            check_types(getattr(config, field), hint, prefix + field.replace("_", "-"))
    elif typing.get_origin(kind) is dict and isinstance(config, dict):
        for key, value in config.items():
            if not isinstance(key, str) or not _is_plain(value):
                raise InputError(
                    f"{name}: received {key}={_kind(value)}, allowed: texts (names of functions too, such as 'relu'), "
                    "numbers, True, False, None, and lists of these"
                )
    elif not _is_a(config, kind):
        allowed = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
        if typing.get_origin(kind) is Literal:
            allowed = ", ".join(map(repr, typing.get_args(kind)))
        raise InputError(f"{name}: received {_kind(config)}, allowed: {allowed}")


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of a field's type, and can be kept as JSON, which has lists for tuples."""
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if kind is Any:
        return True
    if isinstance(kind, types.UnionType):
        return any(_is_a(value, option) for option in inner)
    if origin is Literal:
        return any(value is option or (type(value) is type(option) and value == option) for option in inner)
    if origin is tuple:
        every = inner[:1] * len(value) if isinstance(value, tuple | list) and inner[-1] is ... else inner
        return isinstance(value, tuple | list) and len(value) == len(every) and all(map(_is_a, value, every))
    if origin is list:
        return isinstance(value, list) and all(_is_a(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is_a(item, inner[1]) for item in value.values())
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return isinstance(value, kind)


def _is_plain(value: Any) -> bool:
    """Whether JSON has a value of its own for it."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(inner) for name, inner in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _kind(value: Any) -> str:
    """A value and its type in a few words."""
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.split('.')[0]}.{kind.__name__}"
    return f"{' '.join(repr(value).split()):.60} ({name})"


_TINY = sys.float_info.min  # the least number above 0
_COUNT = (1, 2**31 - 1)

BOUNDS: dict[str, tuple[float, float]] = {
    "data.size": (1, 2**15),
    "data.crop": (1, 2**15),
    "data.resize": (1, 2**15),
    "data.crop-area": (0, 1),
    "data.workers": (0, 1024),
    "data.threads": (1, 1024),
    "data.validation": (0, 1e12),
    "data.split-seed": (0, 2**31 - 1),
    "data.limit": _COUNT,
    "data.mean": (-1e6, 1e6),
    "data.std": (1e-6, 1e6),
    "data.shift": (0, 1e6),
    "data.pad-crop": (0, 1e6),
    "data.resident-mb": (0, 1e12),
    "optimizer.learning-rate": (0, 1e9),
    "optimizer.momentum": (0, 1),
    "optimizer.weight-decay": (0, 1e9),
    "optimizer.clip-norm": (_TINY, 1e30),
    "optimizer.warmup": (0, 1),
    "optimizer.milestones": (0, 1),
    "optimizer.factors": (0, 1e9),
    "train.seed": (0, 2**31 - 1),
    "train.epochs": (_TINY, 1e9),
    "train.steps": _COUNT,
    "train.batch-size": _COUNT,
    "train.label-smoothing": (0, 1),
    "train.evaluate-every": _COUNT,
    "train.microbatches": _COUNT,
    "train.norm-batch": _COUNT,
    "train.ema": (0, 1),
    "run.devices": _COUNT,
    "run.steps-per-call": (1, 100_000),  # the order of all their images is sent at once
    "run.eval-batch-size": _COUNT,
    "run.checkpoint-every": _COUNT,
    "run.keep": _COUNT,
    "run.log-every": _COUNT,
    "distributed.num-processes": (1, 100_000),
    "distributed.process-id": (0, 100_000 - 1),
}
"""Least and greatest value of every number in a configuration, or in one of its lists."""


def check_bounds(config: Any, prefix: str = "") -> None:
    """Raises an `InputError` for a number that is out of `BOUNDS` or not finite, and for a text that can't be one."""
    for field in dataclasses.fields(config):
        name, value = prefix + field.name.replace("_", "-"), getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check_bounds(value, f"{name}.")
            continue
        if name in ("data.mean", "data.std") and value == ():
            raise InputError(f"{name}: received none, allowed: one number, or one for each channel")
        low, high = BOUNDS.get(name, (-(2**63), 2**63))
        for leaf in _leaves(value):
            if isinstance(leaf, str) and (len(leaf) > _LONGEST or "\0" in leaf):
                raise InputError(f"{name}: received {leaf[:40]!r}…, allowed: up to {_LONGEST} characters, no NUL")
            if isinstance(leaf, int | float) and not low <= leaf <= high:
                allowed = f"{low:g} to {high:g}"
                if low in (1, _TINY):
                    allowed = f"at most {high:,.12g}" if leaf > high else "a number above 0"
                raise InputError(f"{name}: received {_shown(leaf)}, allowed: {allowed}")


def _leaves(value: Any) -> Iterator[Any]:
    """The values in nested lists and dictionaries."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | set):
        for one in value:
            yield from _leaves(one)
    else:
        yield value


def _shown(number: float) -> str:
    """A number in a few characters; Python refuses to write whole ones of thousands of digits."""
    if isinstance(number, int) and abs(number) >= 10**30:
        return f"a number of {int(math.log10(abs(number))) + 1:,} digits"
    return str(number)


def check(config: Config) -> None:
    """Raises an `InputError` for a value of a wrong type, or a number that can't be right whatever the data."""
    check_types(config)
    data, optimizer, train, run = config.data, config.optimizer, config.train, config.run
    check_bounds(config)
    if train.steps is None and train.epochs is None:
        raise InputError("train.steps and train.epochs: one of them must be given")
    part = train.batch_size // train.microbatches
    if train.batch_size % train.microbatches:
        raise InputError(
            f"train.microbatches: received {train.microbatches}, allowed: a divisor of the batch of {train.batch_size}"
        )
    if train.norm_batch is not None and part % train.norm_batch:
        raise InputError(f"train.norm-batch: received {train.norm_batch}, allowed: a divisor of {part}")
    meshes.check_axes(run.mesh)
    if data.validation == 1:  # as a part it would be all images, and as a number one alone
        raise InputError("data.validation: received 1.0, allowed: a fraction below 1, or a number of images, 2 or more")
    if train.label_smoothing == 1:  # all classes are alike then, and there is nothing to learn
        raise InputError(f"train.label-smoothing: received {train.label_smoothing}, allowed: at least 0 and below 1")
    for name in ("name", "parent"):  # which Flax gives every module
        if name in config.model.fields:
            raise InputError(f"model.fields: received {name}, which is no field of a network")
    if len(optimizer.factors) not in (1, len(optimizer.milestones)):
        raise InputError(
            f"optimizer.factors: received {len(optimizer.factors)}, allowed: one, or one for each of the "
            f"{len(optimizer.milestones)} milestones"
        )
    if data.size is None and data.fit != "stretch":
        raise InputError(
            f"data.fit: received {data.fit!r}, allowed: with data.size (photographs with data.crop are cut)"
        )
    _check_photographs(data)


def absolute(config: Config) -> Config:
    """The same configuration with its data's folders as absolute paths, which hold from any current folder."""
    names = ("raw_dir", "data_dir", "cache_dir")
    given = {name: value for name in names if (value := getattr(config.data, name)) is not None}
    paths = {name: os.path.abspath(os.path.expanduser(value)) for name, value in given.items()}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **paths))


def _check_photographs(data: Data) -> None:
    least, greatest = data.crop_area
    if not 0 < least <= greatest <= 1:
        raise InputError(f"data.crop-area: received {least:g} {greatest:g}, allowed: two parts of 1, the lesser first")
    if data.crop is None:
        if data.resize is not None:
            raise InputError("data.resize: allowed: with data.crop, for photographs that are streamed from disk")
        return
    if data.size is not None:
        raise InputError("data.size and data.crop: allowed: one of them (photographs that are streamed have crops)")
    if eval_resize(data) < data.crop:
        raise InputError(f"data.resize: received {data.resize}, allowed: data.crop, which is {data.crop}, or more")


def eval_resize(data: Data) -> int:
    """What the shorter side of a streamed photograph is resized to for evaluation, in pixels."""
    assert data.crop is not None
    return round(data.crop / 0.875) if data.resize is None else data.resize


def total_steps(config: Config, examples: int) -> int:
    """Parameter updates of a run over `examples` training images; an incomplete last epoch is rounded up."""
    if config.train.steps is not None:
        return config.train.steps
    assert config.train.epochs is not None
    steps = max(1, -(-round(config.train.epochs * examples) // config.train.batch_size))
    if steps > BOUNDS["train.steps"][1]:
        raise InputError(f"train.epochs: received {config.train.epochs:g}, which is {steps:,} steps; allowed: 2^31 - 1")
    return steps


def quick(config: Config) -> Config:
    """The same experiment shrunk to a smoke test of seconds: few images, few steps, small batches."""
    batch_size = min(config.train.batch_size, 32)
    # So many images that are to be held out (of tens of thousands) become a fraction of the few.
    validation = config.data.validation if config.data.validation < 1 else 0.1
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, limit=min(config.data.limit or 256, 256), validation=validation),
        train=dataclasses.replace(config.train, steps=8, epochs=None, batch_size=batch_size, evaluate_every=4),
        run=dataclasses.replace(config.run, log_every=2, eval_batch_size=128),
    )
