"""The `cnnjax` command."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import re
import shlex
import sys
import warnings
from collections.abc import Generator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from cnnjax import interrupts
from cnnjax.ops.errors import InputError, short_repr, unknown
from cnnjax.terminal import Column, listing, one_line, say, table, width_of
from cnnjax.training import code
from cnnjax.training.config import FIELDS, Config
from cnnjax.training.launch import docstring, exit_status, parse, refuse_twice

if TYPE_CHECKING:
    from cnnjax.training import LoadedRun
    from cnnjax.training.predict import Prediction

HELP = """cnnjax: published convolutional networks in JAX and Flax.

usage: cnnjax COMMAND [arguments]      (cnnjax COMMAND --help teaches each)

  run NAME|FILE [options]   launch an experiment; resume or show its run
  evaluate RUN              accuracy of a run on its test images, or on others
  predict RUN IMAGE...      what a run says about image files, in percentages
  models [PART]             the networks there are, or those of such a name
  summary NAME|FILE|RUN     a network layer by layer: table, JSON or drawing
  data                      the data sets there are; look at or prepare one
  plan NAME|FILE            what a training step needs on TPUs, before paying
  doctor                    is this machine right and fast? run it first

start here: cnnjax run quickstart
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command and leaves with its exit status: 0, 1 for a failed run, 2 for a mistake in the command."""
    with interrupts.obeyed():
        sys.exit(_main(list(sys.argv[1:] if argv is None else argv)))


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0 if argv else 2
    if argv[0] == "--version":
        from cnnjax import __version__

        print(f"cnnjax {__version__}")
        return 0
    with exit_status() as status:
        if argv[0] not in COMMANDS:
            raise unknown("command", argv[0], COMMANDS)
        status.value = COMMANDS[argv[0]](argv[1:]) or 0
    return status.value


# ---- run -----------------------------------------------------------------------------------------------------------


def experiment_names() -> dict[str, pathlib.Path]:
    """The experiments at hand: files of `experiments/` here, and of the checkout cnnjax is installed from."""
    found = {}
    for folder in (pathlib.Path(__file__).parent.parent / "experiments", pathlib.Path("experiments")):
        found |= {path.stem: path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")}
    return found


def load_experiment(name: str) -> ModuleType:
    """The module of an experiment, by name or by file.

    Raises:
      InputError: there is none, or the file is not an experiment.
    """
    if name.endswith(".py") or "/" in name:
        path = pathlib.Path(name)
        if not path.is_file():
            raise InputError(f"experiment: no such file: {name}")
        if path.suffix != ".py":
            raise InputError(f"experiment: {name} is not a Python file")
    else:
        names = experiment_names()
        if name not in names:
            raise unknown("experiment", name, names)
        path = names[name]
    module = code.execute(path)
    if not callable(getattr(module, "main", None)):
        raise InputError(f"experiment: {path} has no main(argv), which an experiment must have")
    return module


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        names = experiment_names()
        print("usage: cnnjax run NAME|FILE [options]     (cnnjax run NAME --help teaches each)\n")
        summaries = {name: docstring(path).partition("\n")[0] for name, path in names.items()}
        print(listing(summaries, width_of(sys.stdout)))
        return 0
    return load_experiment(argv[0]).main(argv[1:])


# ---- evaluate and predict ------------------------------------------------------------------------------------------


def _open_run(run: pathlib.Path, best: bool, trust_code: bool) -> "LoadedRun":
    from cnnjax.training import load

    return load(run, best=best, trust_code=trust_code)


@contextlib.contextmanager
def _warnings_as_lines() -> Generator[None]:
    """What a function warns of in Python is a line on standard error."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        shown = lambda message, *_: say(f"warning: {one_line(str(message))}", sys.stderr)
        warnings.showwarning = shown  # ty: ignore[invalid-assignment]
        yield


@dataclasses.dataclass(frozen=True)
class _EvaluateData:
    name: str | None = None
    """Another data set than the run's own."""
    raw_dir: str | None = None
    """Folder with the set's original files."""
    data_dir: str | None = None
    """Folder of prepared TFDS sets."""
    cache_dir: str | None = None
    """Folder for decoded arrays."""
    workers: int | None = None
    """Processes that decode photographs (as in the run when not given)."""


@dataclasses.dataclass(frozen=True)
class _Evaluate:
    run: tyro.conf.Positional[pathlib.Path]
    """The run's folder."""
    data: _EvaluateData = dataclasses.field(default_factory=_EvaluateData)
    split: Literal["train", "validation", "test"] = "test"
    """Which images."""
    best: bool = False
    """The parameters that were best by validation, in place of the final ones."""
    trust_code: bool = False
    """Execute the experiment's file that the run names, though it has changed or may have come with the run."""
    json: bool = False
    """Print JSON."""


def _evaluate(argv: list[str]) -> None:
    chosen = parse(_Evaluate, argv, program="cnnjax evaluate", description="Accuracy of a run on a set of images.")
    from cnnjax.training.evaluate import evaluate

    with _warnings_as_lines():
        run = _open_run(chosen.run, chosen.best, chosen.trust_code)
        values = evaluate(run, chosen.split, **dataclasses.asdict(chosen.data))
    if chosen.json:
        print(json.dumps(values))
        return
    say(f"{chosen.run} at step {run.step:,} on {values['examples']:,} {chosen.split} images of {values['data']}")
    for name in ("accuracy", "top5"):
        if name in values:
            print(f"  {name:9} {values[name]:.2%}")
    print(f"  {'loss':9} {values['loss']:.4f}")
    if len(parts := values.get("class_accuracy", {})) > 1:
        lowest = [f"{name} ({part:.2%})" for name, part in sorted(parts.items(), key=lambda of: of[1])[:3] if part < 1]
        said = f"; lowest: {', '.join(lowest)}" if lowest else ""
        say(f"  by class  {values['balanced_accuracy']:.2%} on average{said}")


@dataclasses.dataclass(frozen=True)
class _Predict:
    run: tyro.conf.Positional[pathlib.Path]
    """The run's folder."""
    images: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Image files, or folders of them; each is resized, or cropped, as in the run's evaluation."""
    top: int = 5
    """How many classes to name."""
    best: bool = False
    """The parameters that were best by validation, in place of the final ones."""
    invert: bool = False
    """Swap black and white first: MNIST's digits are white on black."""
    trust_code: bool = False
    """Execute the experiment's file that the run names, though it has changed or may have come with the run."""
    json: bool = False
    """Print a JSON object an image."""


def _predict(argv: list[str]) -> int:
    chosen = parse(_Predict, argv, program="cnnjax predict", description="What a run says about image files.")
    from cnnjax.training import predict

    if not chosen.images:
        raise InputError("images: received none, allowed: one file or more")
    if chosen.top < 1:
        raise InputError(f"--top: received {chosen.top}, allowed: 1 or more")
    files = predict.files_in(chosen.images)
    with _warnings_as_lines():
        run = _open_run(chosen.run, chosen.best, chosen.trust_code)
    if not run.info.classes:
        raise InputError(f"{chosen.run}: predicts numbers, not classes")
    failed = 0
    for found in predict.predict_files(run, files, invert=chosen.invert):
        if found.error:
            if len(files) == 1:
                raise InputError(found.error)
            failed += 1
            say(f"error: {one_line(found.error)}", sys.stderr)
            continue
        top = found.classes[: chosen.top]
        if chosen.json:
            row = {"image": str(found.file), "top": [{"class": name, "probability": p} for name, p in top]}
            print(json.dumps(row | ({} if found.none is None else {"none": found.none})))
        else:
            say(str(found.file))
            for name, p in top:
                say(f"  {p:7.2%}  {name}")
            if found.none is not None:
                say(f"  {found.none:7.2%}  (none of the classes)")
        if found.excess:
            say(f"warning: {found.file} is {_unlike(found, chosen.invert)}", sys.stderr)
    if failed:
        say(f"error: {failed} of {len(files)} images can't be read", sys.stderr)
    return 1 if failed else 0


def _unlike(found: "Prediction", invert: bool) -> str:
    """What an image of unusual brightness is, and what swaps black and white where that brings it nearer."""
    way = "without --invert" if invert else "with --invert"
    if found.swapped == 0:
        return f"unlike the training images, and like them {way}"
    kind = "brighter" if found.excess > 0 else "darker"
    nearer = f"; {way} it is nearer to them" if found.looks_inverted() else ""
    return f"{kind} than nearly all training images{nearer}"


# ---- models and data -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Models:
    name: tyro.conf.Positional[str | None] = None
    """Part of a name: only the networks whose names contain it."""
    json: bool = False
    """Print JSON."""


def _models(argv: list[str]) -> None:
    chosen = parse(
        _Models,
        argv,
        program="cnnjax models",
        description="The networks: parameters, multiply-adds of one image, who published each, and with what.",
    )
    from cnnjax import models

    found = [name for name in models.names() if chosen.name is None or chosen.name.lower() in name.lower()]
    if not found:
        raise unknown("network", chosen.name, models.names())
    rows: list[dict[str, Any]] = [models.describe(name) for name in found]
    if chosen.json:
        print(json.dumps(rows))
        return
    columns = [
        Column("name"),
        Column("parameters", right=True),
        Column("mult-adds", right=True),
        Column("input", right=True, rank=1),
        Column("classes", right=True, rank=2),
        Column("what it is", shrink="wrap", least=28),
        Column("published with", shrink="wrap", least=24, rank=3),
    ]
    _print_table(
        columns,
        [
            (
                row["name"],
                f"{row['parameters']:,}",
                _short(row["multiply_adds"]),
                _size(row["input"]),
                str(row["classes"]),
                row["summary"] + _in_brackets(row["authors"], row["year"]),
                row["published"],
            )
            for row in rows
        ],
    )


def _in_brackets(*parts: object) -> str:
    """(He et al., 2015) of those that there are, or nothing."""
    there = [str(part) for part in parts if part]
    return f" ({', '.join(there)})" if there else ""


def _size(numbers: Sequence[int]) -> str:
    """(224, 224, 3) as 224×224×3."""
    return "×".join(map(str, numbers))


def _short(number: int | None) -> str:
    """1,814,073,344 as 1.81 G; nothing for None."""
    if number is None:
        return ""
    for unit, prefix in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {prefix}"
    return str(number)


@dataclasses.dataclass(frozen=True)
class _Summary:
    network: tyro.conf.Positional[str]
    """A name that `cnnjax models` lists; an experiment's file, for the network in its CONFIG; or a run's folder."""
    input: str | None = None
    """Height, width and channels of the image: 224,224,3. By default what the network was made for."""
    fields: Annotated[dict[str, Any], FIELDS] = dataclasses.field(default_factory=dict)
    """Fields of the network, changed: norm=group conv=winograd num_classes=10 ..."""
    depth: int | None = None
    """Show the modules at this depth as a line each: 1 for the parts that the network names itself."""
    json: bool = False
    """Print JSON."""
    svg: pathlib.Path | None = None
    """A file to draw the architecture into."""
    trust_code: bool = False
    """Execute the experiment's file that a run names, though it has changed or may have come with the run."""


def _summary(argv: list[str]) -> None:
    chosen = parse(
        _Summary,
        argv,
        program="cnnjax summary",
        description="A network layer by layer: shapes, windows, parameters, multiply-adds, receptive fields, memory.\n"
        "\nThe model is traced at the size you ask for; nothing is allocated. What a layer sees is the receptive field "
        "of one of its outputs, padding included, in pixels; its memory is that of its outputs, for one image.",
    )
    refuse_twice(argv, _Summary)
    from cnnjax import models
    from cnnjax.analysis import drawing, summary
    from cnnjax.training import mesh as meshes

    meshes.visible()  # tracing makes random keys, on a device
    if chosen.depth is not None and chosen.depth < 1:
        raise InputError(f"--depth: received {chosen.depth}; allowed: 1 or more")
    name, fields, image = _network(chosen.network, chosen.fields, chosen.trust_code)
    image = image if chosen.input is None else _image_size(chosen.input)
    model = models.create(name, **fields)
    try:
        found = summary.summarize(model, image, name=name)
    except InputError:
        raise
    except Exception as error:  # of Flax or JAX, about what a field or the image makes of the network
        said = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"network: {name} can't be traced with fields {fields} and an image of {'×'.join(map(str, image))}: "
            f"{type(error).__name__}: {said}"
        ) from None
    if chosen.svg is not None:
        try:
            chosen.svg.write_text(drawing.svg(found), encoding="utf-8")
        except OSError as error:
            raise InputError(f"--svg: {chosen.svg} cannot be written: {error.strerror}") from None
    if chosen.depth is not None:
        found = found.at_depth(chosen.depth)
    if chosen.json:
        print(json.dumps(summary.as_json(found)))
        return
    _print_summary(found)
    if chosen.svg is not None:
        print(f"drawn in {chosen.svg}")


def _image_size(words: str) -> tuple[int, ...]:
    """224,224,3 or 224x224x3 as numbers."""
    if not re.fullmatch(" *[0-9]{1,30} *([,x×] *[0-9]{1,30} *)*", words):
        raise InputError(f"--input: received {short_repr(words)}; allowed: HEIGHT,WIDTH,CHANNELS, such as 224,224,3")
    return tuple(map(int, re.split("[,x×]", words)))


def _network(network: str, changed: dict[str, Any], trust_code: bool) -> tuple[str, dict[str, Any], tuple[int, ...]]:
    """The name, the fields and the image of a network: of that name, of an experiment's file, or of a run's folder."""
    from cnnjax import models
    from cnnjax.training import plan, rundir

    if (pathlib.Path(network) / "config.json").is_file():
        from cnnjax.training.load import describe

        with _warnings_as_lines():
            run = describe(pathlib.Path(network), trust_code=trust_code)
        fields = {"num_classes": run.info.num_classes, **run.config.model.fields, **changed}
        return run.config.model.name, fields, run.info.image_shape
    if not (network.endswith(".py") or "/" in network):
        return network, changed, tuple(models.describe(network)["input"])
    if pathlib.Path(network).is_dir():
        rundir.read_config(pathlib.Path(network))  # which says that it is no run
    config = getattr(load_experiment(network), "CONFIG", None)
    if not isinstance(config, Config):
        raise InputError(f"network: {network} has no CONFIG, which names an experiment's network")
    name, fields = config.model.name, {**config.model.fields, **changed}
    image, classes = plan.image_and_classes(config)
    if image is None:  # not known before the data are read
        usual = models.describe(name)["input"]
        image = (*(config.data.size or usual[:2]), usual[2])
    return name, ({"num_classes": classes} if classes else {}) | fields, image


def _print_summary(found: Any) -> None:
    seen = lambda it: "" if not it or not it.receptive_field else "all" if it.whole else _size(it.receptive_field)
    say(f"{found.model}, image {_size(found.input)}")
    narrow = (width_of(sys.stdout) or 1000) < 100
    products = (lambda number: _short(number) if number else "") if narrow else lambda n: f"{n:,}" if n else ""
    columns = [
        Column("layer", shrink="cut", least=19),
        Column("kind", shrink="wrap", least=9),
        Column("output", right=True),
        Column("window", right=True, shrink="wrap", least=6),
        Column("parameters", right=True),
        Column("mult-adds" if narrow else "multiply-adds", right=True, rank=1),
        Column("sees", right=True, rank=2),
        Column("memory", right=True, rank=3),
        Column("by", rank=4),
    ]
    rows: list[tuple[str, ...] | None] = []
    for layer in found.layers:
        window = _size(layer.window)
        if layer.window and max(layer.strides) > 1:
            window += f" /{layer.strides[0]}" if len(set(layer.strides)) == 1 else f" /{_size(layer.strides)}"
        if layer.window and layer.dilation and max(layer.dilation) > 1:
            window += f" dilated {_size(sorted(set(layer.dilation)))}"
        if layer.groups > 1:
            window += f" in {layer.groups}"
        rows.append(
            (
                layer.name,
                layer.kind,
                _size(layer.output),
                window,
                f"{layer.parameters:,}" if layer.parameters else "",
                products(layer.multiply_adds),
                seen(layer),
                _bytes(layer.memory),
                layer.implementation,
            )
        )
    totals = (f"{found.parameters:,}", products(found.multiply_adds), seen(found.local), _bytes(found.memory))
    _print_table(columns, [*rows, None, ("total", "", "", "", *totals, "")])


def _print_table(columns: Sequence[Column], rows: Sequence[Sequence[str] | None]) -> None:
    """A table that fits the terminal; in a file or a pipe, as wide as it needs."""
    print(table(columns, rows, width_of(sys.stdout)))


def _bytes(number: int) -> str:
    """32,376 as 31.6 KiB."""
    if number == 0:
        return ""
    for unit, prefix in ((2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki")):
        if number >= unit:
            return f"{number / unit:.3g} {prefix}B"
    return f"{number} B"


def _also(name: str) -> Any:
    """Gives an option its name in experiments too, by which lines about data call it: --data.fit."""
    return tyro.conf.arg(aliases=(f"--data.{name}",))


@dataclasses.dataclass(frozen=True)
class _Data:
    action: Annotated[
        tyro.conf.Positional[Literal["list", "show", "prepare"]], tyro.conf.arg(metavar="list|show|prepare")
    ] = "list"
    """list the sets; show one: sizes, classes, statistics; prepare one as array_record, for `tfds:NAME`."""
    name: tyro.conf.Positional[str | None] = None
    """The set to show or prepare."""
    raw_dir: Annotated[str | None, _also("raw-dir")] = None
    """Folder with the set's original files."""
    data_dir: Annotated[str | None, _also("data-dir")] = None
    """Folder of prepared TFDS sets."""
    cache_dir: Annotated[str | None, _also("cache-dir")] = None
    """Folder for decoded arrays."""
    size: Annotated[tuple[int, int] | None, _also("size")] = None
    """With show: height and width to resize every image to."""
    fit: Annotated[Literal["stretch", "letterbox", "crop"], _also("fit")] = "stretch"
    """With show: what becomes of images of other proportions, as --data.fit of an experiment, which is its name here
    too, as are --data.size and --data.raw-dir."""
    picture: pathlib.Path | None = None
    """With show: a PNG to draw examples of every class into."""
    made_up: int | None = None
    """With prepare imagenet2012: so many made-up photographs in its place, and an eighth as many for validation, to try
    everything without the real ones."""


def _data(argv: list[str]) -> None:
    chosen = parse(_Data, argv, program="cnnjax data", description="The data sets.")
    from cnnjax import data

    if chosen.picture is not None and chosen.picture.suffix.lower() not in (".png", ".jpg", ".pdf", ".svg"):
        raise InputError(f"--picture: received {chosen.picture}, allowed: a name that ends in .png, .jpg, .pdf or .svg")
    if chosen.action == "list":
        print(listing(data.summaries(), width_of(sys.stdout)))
        return
    if chosen.name is None:
        raise InputError(f"cnnjax data {chosen.action}: needs the name of a data set ({', '.join(data.summaries())})")
    if chosen.made_up is not None:
        _made_up(chosen, chosen.made_up)
        return
    if chosen.action == "prepare":
        print(data.prepare(chosen.name, raw_dir=chosen.raw_dir, data_dir=chosen.data_dir))
        return
    if chosen.name not in data.summaries() and pathlib.Path(chosen.name).is_dir():
        raise InputError(f"data: {chosen.name} is a folder; allowed: cnnjax data show folder --raw-dir {chosen.name}")
    folders = {"raw_dir": chosen.raw_dir, "data_dir": chosen.data_dir, "cache_dir": chosen.cache_dir}
    dataset = data.load(chosen.name, **folders, size=chosen.size, fit=chosen.fit)
    mean, std = data.channel_mean_std(dataset.train.image)
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    say(dataset.name)
    for split, arrays in splits.items():
        if arrays is not None:
            print(f"  {split:10} {len(arrays):,} images of {'×'.join(map(str, arrays.image.shape[1:]))}")
    print(f"  mean       {', '.join(f'{value:.4f}' for value in mean)}   (pixels in [0, 1])")
    print(f"  std        {', '.join(f'{value:.4f}' for value in std)}")
    say(f"  classes    {', '.join(dataset.classes)}")
    for name, value in dataset.provenance.items():
        say(f"  {name}: {value}")
    if chosen.picture is not None:
        from cnnjax.analysis import pictures

        pictures.examples(dataset.train.image, dataset.train.label, dataset.classes, chosen.picture)
        say(f"  picture    {chosen.picture}")


def _made_up(chosen: _Data, count: int) -> None:
    from cnnjax.data import synthetic

    if (chosen.action, chosen.name) != ("prepare", "imagenet2012"):
        raise InputError("--made-up: allowed: with cnnjax data prepare imagenet2012")
    if count < 1:
        raise InputError(f"--made-up: received {count}, allowed: 1 or more")
    if chosen.data_dir is None:
        raise InputError("--made-up: needs --data-dir, a folder apart from that of real sets")
    synthetic.check_absent(chosen.data_dir)
    counts = {"train": count, "validation": -(-count // 8)}
    print(f"making {sum(counts.values()):,} photographs, some twenty a second", file=sys.stderr)
    splits = {
        split: synthetic.photographs(n, seed=seed, classes=synthetic.THOUSAND)
        for seed, (split, n) in enumerate(counts.items())
    }
    print(synthetic.write_imagenet(splits, chosen.data_dir, synthetic.THOUSAND))


# ---- plan ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Plan:
    experiment: tyro.conf.Positional[str]
    """Its name, or a file."""
    topology: str
    """The slice: v5e:4x4, v5e:16x16, v5p:2x2x4, v6e:2x2, v4:2x2x1, tpu7x:2x2x1 ..."""
    batch_per_chip: int | None = None
    """Images for each chip, in place of the experiment's batch."""
    mesh: Annotated[dict[str, Any], FIELDS] = dataclasses.field(default_factory=dict)
    """What the chips share, as --run.mesh: data=4 fsdp=4 ..."""
    largest_batch: bool = False
    """Double the batch until it no longer fits, from --batch-per-chip or 8 a chip."""
    compare: tuple[str, ...] = ()
    """Further plans beside this one, each the options that differ, in quotes: "mesh fsdp=4" "train.norm-batch 32"."""
    input: str | None = None
    """Height, width and channels of the images, as 224,224,3, of data that cnnjax does not know."""
    classes: int | None = None
    """Their classes."""
    timeout: float = 1800
    """Seconds that a compilation may take."""
    json: bool = False
    """Print JSON."""


PLAN_HELP = """What a training step of an experiment needs on a slice of TPUs: the TPU compiler compiles the real step
on this machine (the `tpu` extra; no TPU, no data). Memory, operations, bytes and collectives are the compiler's
figures. Times, examples per second and MFU are a roofline by them: what bounds a step, not what it will take. All
options of the experiment may follow: --train.dtype bfloat16 --train.norm-batch 32 --model.fields remat=True"""


def _plan(argv: list[str]) -> None:
    if argv == ["--child"]:
        return _plan_child()
    import jax

    jax.config.update("jax_platforms", "cpu")  # the compiler is for the child: here it would look for chips
    plans = [_one_plan(argv)]
    if plans[0].chosen.largest_batch:
        plans = _doubled(plans[0])
    else:
        # Without its hyphens at first, which would make an option of it.
        others = [f"--{options.removeprefix('--')}" for options in plans[0].chosen.compare]
        plans += [_one_plan([*argv, *_words(options)], options) for options in others]
        for one in plans:
            one.compile()
    if plans[0].chosen.json:
        print(json.dumps([one.found for one in plans] if len(plans) > 1 else plans[0].found))
    else:
        _print_plans(plans)
    return None


def _words(options: str) -> list[str]:
    try:
        return shlex.split(options)
    except ValueError as error:  # a quote that is not closed
        raise InputError(f"--compare: received {options!r}: {error}") from None


@dataclasses.dataclass
class _OnePlan:
    chosen: _Plan
    config: Config
    title: str
    file: str
    found: dict[str, Any] = dataclasses.field(default_factory=dict)

    def compile(self, batch_per_chip: int | None = None) -> dict[str, Any]:
        from cnnjax.training import plan

        shape = tuple(int(size) for size in self.chosen.input.split(",")) if self.chosen.input else None
        print(f"compiling {self.title} for {self.chosen.topology} ...", file=sys.stderr, flush=True)
        self.found = plan.plan(
            self.config,
            self.chosen.topology,
            plan.child_command(),
            batch_per_chip=batch_per_chip or self.chosen.batch_per_chip,
            shape=shape,
            classes=self.chosen.classes,
            extra={"experiment_file": self.file},
            timeout=self.chosen.timeout,
        )
        return self.found


def _one_plan(argv: list[str], title: str = "") -> _OnePlan:
    from cnnjax.training import plan
    from cnnjax.training.launch import read_arguments

    chosen, rest = parse(_Plan, argv, program="cnnjax plan", description=PLAN_HELP, return_unknown_args=True)
    if chosen.input and not re.fullmatch("[0-9]{1,6}(,[0-9]{1,6}){2}", chosen.input):
        raise InputError(f"input: received {chosen.input!r}, allowed: H,W,C, such as 224,224,3")
    plan.chip_of(chosen.topology)
    module = load_experiment(chosen.experiment)
    if not isinstance(getattr(module, "CONFIG", None), Config):
        raise InputError(f"experiment: {chosen.experiment} has no CONFIG")
    file = pathlib.Path(str(module.__file__))
    config = read_arguments(module.CONFIG, file, rest).config
    if chosen.mesh:
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, mesh=chosen.mesh))
    return _OnePlan(chosen, config, title or file.stem, str(file.resolve()))


def _doubled(first: _OnePlan) -> list[_OnePlan]:
    """Plans of twice the batch each, up to the first that does not fit."""
    plans, size = [], first.chosen.batch_per_chip or 8
    while not plans or plans[-1].found["fits"]:
        plans.append(dataclasses.replace(first, title=f"{size} a chip"))
        plans[-1].compile(size)
        size *= 2
    return plans


def _plan_child() -> None:
    """Compiles what standard input asks for, and prints what the compiler says."""
    from cnnjax.training import plan

    request = json.load(sys.stdin)
    load_experiment(request["experiment_file"])  # which may define the network
    print(json.dumps(plan.answer(request)))


def _print_plans(plans: list[_OnePlan]) -> None:
    def number(value: float, unit: str = "") -> str:
        for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
            if value >= size:
                return f"{value / size:.3g} {prefix}{unit}"
        return f"{value:.3g} {unit}"

    found = plans[0].found
    devices = f", {found['devices']} devices" if found["devices"] != found["chips"] else ""
    say(f"{plans[0].chosen.experiment} on {found['topology']}: {found['chips']} x {found['chip']}{devices}")
    rows: list[list[str] | None] = []

    def row(name: str, text: Any) -> None:
        rows.append([name, *(text(one.found) for one in plans)])

    def said(kind: str, found: dict[str, Any]) -> str:
        one = found.get("collectives", {}).get(kind)
        return f"{one['count']}, {number(one['bytes'], 'B')}" if one else ""

    fitting = lambda text: lambda found: text(found) if "flops" in found else ""
    row("mesh", lambda found: " ".join(f"{name}={size}" for name, size in found["mesh"].items()))
    row("batch", lambda found: f"{found['batch_size']:,}")
    row("of a chip", lambda found: f"{found['batch_size'] / found['chips']:,.6g}")
    rows.append(None)
    row("peak memory", fitting(lambda found: number(found["memory"], "B")))
    row("of the device's", lambda found: f"{found['memory'] / found['memory_limit']:.0%}" if "memory" in found else "")
    row("fits", lambda found: "yes" if found["fits"] else "no")
    row("operations", fitting(lambda found: number(found["flops"], "FLOP")))
    row("bytes moved", fitting(lambda found: number(found["bytes"], "B")))
    for kind in sorted({kind for one in plans for kind in one.found.get("collectives", {})}):
        row(kind, functools.partial(said, kind))
    row("compiled in", fitting(lambda found: f"{found['compile_seconds']:.0f} s"))
    rows.append(None)
    row("roofline, a step", fitting(lambda found: f"{found['step_seconds'] * 1e3:.3g} ms"))
    row("bound by", fitting(lambda found: found["bound_by"]))
    row("examples/s then", fitting(lambda found: f"{found['examples_per_second']:,.0f}"))
    row("MFU then", fitting(lambda found: f"{found['mfu']:.1%}"))
    columns = [Column(""), *(Column(one.title, right=True, shrink="wrap", least=12) for one in plans)]
    _print_table(columns, rows)
    say("Memory, operations, bytes, collectives: the compiler's count, of a device and step. The rest is the roofline.")
    for one in plans:
        if one.found.get("reason"):
            say(f"{one.title}: {one.found['reason'][:300]}")


# ---- doctor --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Doctor:
    json: bool = False
    """Print JSON."""


def _doctor(argv: list[str]) -> int:
    chosen = parse(
        _Doctor,
        argv,
        program="cnnjax doctor",
        description="What to run first on a new machine: what is installed and seen; every convolution and pooling, "
        "forward and backward, against NumPy at training sizes; known miscompilations; sharding over the devices there "
        "are; whether a step repeats its bits; time and memory of a step beside plain Flax's. Exit status 1 where "
        "something is wrong. It takes two minutes at the most.",
    )
    from cnnjax.doctor import examine

    return examine.main(as_json=chosen.json)


COMMANDS = {
    "run": _run,
    "evaluate": _evaluate,
    "predict": _predict,
    "models": _models,
    "summary": _summary,
    "data": _data,
    "plan": _plan,
    "doctor": _doctor,
}

if __name__ == "__main__":
    main()
