"""An experiment's command line: every field of its configuration, and where to run."""

import ast
import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import os
import pathlib
import re
import sys
import tokenize
from collections.abc import Generator, Sequence
from typing import Annotated, Any

import jax
import tyro

from cnnjax import interrupts, start
from cnnjax.ops.errors import InputError
from cnnjax.terminal import one_line, say, width_of
from cnnjax.training import config as configs
from cnnjax.training import mesh as meshes
from cnnjax.training import options, processes
from cnnjax.training.config import Config
from cnnjax.training.errors import RunError, explained
from cnnjax.training.loop import train
from cnnjax.training.report import Report


@dataclasses.dataclass(frozen=True)
class _Arguments:
    config: Annotated[Config, tyro.conf.arg(name="")]
    workdir: pathlib.Path | None = None
    """The run's folder: a new one starts a run, the same one resumes it. When not given, a folder under runs/ named
    after the experiment, the seed and what else was changed, so that the same command finds its run again."""
    quick: bool = False
    """Shrink the experiment to a smoke test of seconds."""
    extend: bool = False
    """Allow more steps than the run in --workdir was made for."""
    accept_code: bool = False
    """Go on with an experiment's file, or modules that it imports, that were changed since the run was begun."""
    profile: bool = False
    """Trace ten steps into the run's folder, for TensorBoard or Perfetto."""


_FIRST = (
    *("workdir", "quick", "extend", "data.raw-dir", "model.fields"),
    *("train.seed", "train.epochs", "train.steps", "train.batch-size", "optimizer.learning-rate"),
)
"""The options that an experiment's `--help` explains."""


def launch(config: Config, file: str, argv: Sequence[str] | None = None) -> int:
    """Runs an experiment as a command: parses its arguments, trains, prints the result.

    Args:
      config: the experiment's defaults.
      file: the experiment's `__file__`; its stem is the experiment's name and its docstring opens `--help`.
      argv: arguments (those of the process when None).

    Returns:
      The exit status: 0, 1 for a run that failed, 2 for a mistake in what was asked.
    """
    path = pathlib.Path(file)
    if argv is None:  # a command of its own
        start.open_streams()
        interrupts.begin()
    argv = list(sys.argv[1:] if argv is None else argv)
    with interrupts.obeyed(), exit_status() as status:
        refuse_twice(argv, Config)
        arguments = read_arguments(config, path, argv)
        chosen = arguments.config
        workdir = arguments.workdir
        if workdir is None:
            if arguments.extend:
                raise InputError("--extend: needs --workdir, the folder of the run to extend")
            workdir = pathlib.Path("runs") / path.stem / _folder_name(config, path, arguments)
        configs.check(chosen)
        processes.join(chosen.distributed)
        meshes.visible()
        report = Report(quiet=not processes.is_first())
        result = train(
            chosen,
            workdir,
            experiment=path.stem,
            experiment_file=str(path.resolve()),
            defaults=config,
            extend=arguments.extend,
            accept_code=arguments.accept_code,
            profile=arguments.profile,
            report=report,
        )
        report.result(result, workdir)
    if status.value and jax.distributed.is_initialized():  # the others may never come to the usual way's end
        processes.leave(status.value)
    return status.value


def _folder_name(defaults: Config, file: pathlib.Path, arguments: "_Arguments") -> str:
    """The name of a run's folder: its seed, what of its *what* differs from the experiment's, and a digest.

    Changed code has the same folder, where it is refused; two files of one name have two folders.
    """
    config = arguments.config
    words = [f"seed{config.train.seed}"]
    if arguments.quick:
        words, defaults = [*words, "quick"], configs.quick(defaults)
    matters = set(configs.what(config))
    for name, value in configs.changes(defaults, config).items():
        section, field, *inner = name.split(".")
        if name == "train.seed" or value is None or f"{section}.{field}" not in matters:
            continue
        label = section if field == "name" else inner[-1] if inner else field
        text = value if isinstance(value, str) else json.dumps(value)
        word = re.sub(r"[^A-Za-z0-9.]+", "_", f"{label}_{text}").strip("_.")[:30]
        if len("-".join([*words, word])) > 80:
            break
        words.append(word)
    return "-".join([*words, _digest(config, file)])


def _digest(config: Config, file: pathlib.Path) -> str:
    """Eight digits for a run: *what* it computes, where the experiment's file lies as seen from here, and, where
    a set's name does not say which data it is, their folder."""
    content: list[Any] = [configs.what(config), os.path.relpath(file.resolve(), pathlib.Path.cwd().resolve())]
    if config.data.name == "folder" or config.data.name.startswith("tfds:"):
        content += [
            str(pathlib.Path(where).resolve()) for where in (config.data.raw_dir, config.data.data_dir) if where
        ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def read_arguments(config: Config, path: pathlib.Path, argv: list[str]) -> _Arguments:
    """What an experiment's command line asks for: its configuration with the options laid over it, and where to run.

    Raises:
      InputError: an option is wrong, or a value of the experiment's own configuration has another type than its field.
    """
    configs.check_types(config)

    program = f"cnnjax run {path.stem if path.parent.name == 'experiments' else path}"

    def read(default: _Arguments) -> _Arguments:
        return parse(
            _Arguments,
            argv,
            program=program,
            description=docstring(path),
            examples=[
                (f"{program} --quick", "a smoke test of seconds"),
                (f"{program} --train.seed 1 --train.steps 500", "another seed and length, in a folder of its own"),
                (f"{program} --workdir runs/mine --train.batch-size 32", "in a folder that you name"),
            ],
            first=_FIRST,
            default=default,
        )

    parsed = read(_Arguments(config))
    if parsed.quick:  # it shrinks the defaults: what is asked for beside it still counts
        parsed = read(_Arguments(configs.quick(config)))
    return dataclasses.replace(parsed, config=_one_length(parsed.config, argv))


def _one_length(config: Config, argv: list[str]) -> Config:
    """`--train.steps` stands in place of the experiment's epochs, and the other way round."""
    words = {word.partition("=")[0] for word in argv}
    given = [
        name for name in ("steps", "epochs") if f"--train.{name}" in words and getattr(config.train, name) is not None
    ]
    if len(given) == 2:
        raise InputError("--train.steps and --train.epochs: received both, allowed: one of them")
    other = {"steps": {"epochs": None}, "epochs": {"steps": None}}
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **other[given[0]])) if given else config


def docstring(path: pathlib.Path) -> str:
    """The docstring of a Python file, read without running it; "" where it has none."""
    with tokenize.open(path) as file:  # which knows byte-order marks and coding lines
        return ast.get_docstring(ast.parse(file.read())) or ""


# ---- for every command ---------------------------------------------------------------------------------------------


def parse(
    kind: Any,
    argv: Sequence[str],
    *,
    program: str,
    description: str = "",
    examples: Sequence[tuple[str, str]] = (),
    first: Sequence[str] = (),
    default: Any = None,
    **more: Any,
) -> Any:
    """Parses a command line into `kind`, a mistake in it being an `InputError` of one line.

    Args:
      kind: a dataclass, as `tyro.cli` takes.
      argv: the arguments.
      program: how the command is written.
      description: the text that opens `--help`.
      examples: commands for `--help`, each with what it does.
      first: the options that `--help` explains; it names the others, which `--help-all` explains too.
      default: an instance of `kind` whose fields are the defaults.
      **more: for `tyro.cli`.
    """
    known = list(options.options_of(kind, default))
    if {"-h", "--help", "--help-all"} & set(argv):
        width = min(width_of(sys.stdout) or 100, 100)
        some = () if "--help-all" in argv else first
        print(options.help_text(program, description, known, width, examples=examples, first=some))
        raise SystemExit(0)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box), options.numbers():
            parsed = tyro.cli(
                kind,
                args=list(argv),
                prog=program,
                add_help=False,
                config=(tyro.conf.FlagCreatePairsOff,),
                **({} if default is None else {"default": default}),
                **more,
            )
        return _with_home(parsed)
    except SystemExit:
        text = options.complaint(_problem(box.getvalue()), known, argv)
        raise InputError(f"{text} (see {program} --help)") from None


def refuse_twice(argv: Sequence[str], kind: Any) -> None:
    """Raises an `InputError` where an option of `kind` that takes any number of values is given twice."""
    if twice := options.given_twice(argv, list(options.options_of(kind))):
        raise InputError(f"{twice}: received twice, allowed: once, with all of its values")


def _with_home(parsed: Any) -> Any:
    """What was parsed with ~ as the home folder in all paths, which shells leave alone in --workdir=~/run."""
    if isinstance(parsed, pathlib.Path):
        try:
            return parsed.expanduser()
        except RuntimeError as error:
            raise InputError(f"{parsed}: {error}") from None
    if isinstance(parsed, tuple):
        return tuple(map(_with_home, parsed)) if any(isinstance(value, pathlib.Path) for value in parsed) else parsed
    if not dataclasses.is_dataclass(parsed):
        return parsed
    changed = {}
    for field in dataclasses.fields(parsed):
        before = getattr(parsed, field.name)
        path = field.name.endswith("_dir") and isinstance(before, str)
        after = str(_with_home(pathlib.Path(before))) if path and before.startswith("~") else _with_home(before)
        if after is not before:
            changed[field.name] = after
    return dataclasses.replace(parsed, **changed) if changed else parsed


def _problem(box: str) -> str:
    """What was wrong, in one line, of tyro's boxed complaint."""
    # Where the terminal has no UTF-8, there is no box and the rules are of hyphens.
    lines = [re.sub(r"[│╭╮╰╯─]+|-{3,}", " ", line).strip() for line in box.splitlines()]
    # The first line is the title; what was wrong follows, up to a ruled line; then options of nearly that name.
    rest = list(itertools.dropwhile(lambda line: not line, lines[1:]))
    return " ".join(itertools.takewhile(bool, rest)).rstrip(".")


_MOST = 2000
"""Characters of a message, at the most: what was received may be of any length."""


class _Status:
    value = 0


@contextlib.contextmanager
def exit_status() -> Generator[_Status]:
    """Turns what goes wrong inside into one line on standard error and an exit status.

    A mistake of the user's is status 2; a failed run, or a file that can't be read or written, is status 1. Anything
    else is a fault of ours and keeps its traceback.
    With CNNJAX_TRACEBACK=1 everything does.
    """
    status = _Status()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode still shows the rest
    try:
        yield status
    except (InputError, RunError, OSError, KeyboardInterrupt, MemoryError, RuntimeError) as error:
        known = isinstance(error, InputError | RunError | OSError | KeyboardInterrupt)
        if os.environ.get("CNNJAX_TRACEBACK") or not (known or explained(error)):
            raise
        match error:
            case KeyboardInterrupt() if interrupts.are_obeyed():
                raise
            case KeyboardInterrupt():
                status.value, text = 130, "interrupted"
            case BrokenPipeError():
                status.value, text = 141, "the output was closed"
            case RunError():
                status.value, text = error.status, str(error)
            case InputError():
                status.value, text = 2, str(error)
            case _:
                status.value, text = 1, explained(error) or str(error)
        if len(text) > _MOST:
            text = f"{text[:_MOST]} …"
        with contextlib.suppress(OSError):  # standard error was closed too: the status alone tells
            say(f"error: {one_line(text)}", sys.stderr)
