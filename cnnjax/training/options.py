"""The options of a command, read off its dataclass: their help, and what is said of a mistake in them."""

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import pathlib
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tyro

from cnnjax.terminal import cut, wrap

_SYNONYMS = {
    "lr": "optimizer.learning-rate",
    "wd": "optimizer.weight-decay",
    "bs": "train.batch-size",
    "batch": "train.batch-size",
    "model": "model.name",
    "net": "model.name",
    "network": "model.name",
    "dataset": "data.name",
    "optimizer": "optimizer.name",
    "optim": "optimizer.name",
    "opt": "optimizer.name",
    "scheduler": "optimizer.schedule",
    "dir": "workdir",
    "output": "workdir",
    "output-dir": "workdir",
    "gpus": "run.devices",
    "num-workers": "data.workers",
    "precision": "train.dtype",
    "epoch": "train.epochs",
    "max-steps": "train.steps",
}
"""What other programs call an option."""


@dataclasses.dataclass(frozen=True)
class Option:
    """An option, or a positional argument."""

    name: str
    """As it is written, without hyphens before it: train.batch-size."""
    takes: str
    """What follows it: INT, PATH, INT INT, NAME=VALUE ...; nothing for a switch."""
    default: str
    """Nothing where it is None, False or empty."""
    text: str
    """What it is, from the field's docstring."""
    positional: bool

    @property
    def group(self) -> str:
        """The part before the point: train."""
        return self.name.rpartition(".")[0]

    @property
    def flag(self) -> str:
        """As it is written: --train.batch-size, or RUN."""
        return self.name.upper() if self.positional else f"--{self.name}"


def options_of(kind: Any, default: Any = None, prefix: str = "") -> Iterator[Option]:
    """The options that a dataclass makes, those of the dataclasses in its fields included.

    Args:
      kind: the dataclass, which documents each field by a string below it.
      default: an instance of it with other defaults than its own.
      prefix: of the names, with its point.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    texts = _field_docstrings(kind)
    for field in dataclasses.fields(kind):
        hint, marks = _unannotated(hints[field.name])
        name = prefix + field.name.replace("_", "-")
        value = _default(field) if default is None else getattr(default, field.name)
        if dataclasses.is_dataclass(hint):
            inside = "" if any(getattr(mark, "name", None) == "" for mark in marks) else f"{name}."
            yield from options_of(typing.cast(type, hint), value, inside)
            continue
        metavar = next((mark.metavar for mark in marks if getattr(mark, "metavar", None)), None)
        positional = tyro.conf.Positional in marks
        yield Option(name, metavar or _words(hint), _written(value), texts.get(field.name, ""), positional)


def _unannotated(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type inside of `Annotated`, however deep, and all that it was annotated with."""
    marks: tuple[Any, ...] = ()
    while typing.get_origin(hint) is typing.Annotated:
        hint, *more = typing.get_args(hint)
        marks += tuple(more)
    return hint, marks


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _words(hint: Any) -> str:
    """What a value of a type looks like on a command line."""
    if hint is bool:
        return ""
    if hint is int or hint is float:
        return hint.__name__.upper()
    if hint is pathlib.Path:
        return "PATH"
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(arguments)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):  # with None, which is what not giving it means
        return "|".join(_words(one) for one in arguments if one is not type(None))
    if typing.get_origin(hint) is tuple:
        return f"{_words(arguments[0])} ..." if arguments[-1] is ... else " ".join(map(_words, arguments))
    return "TEXT"


def _written(value: Any) -> str:
    """A default as it would be given on the command line; nothing for what not giving the option means."""
    if value is None or value is False or (isinstance(value, tuple | dict) and not value):
        return ""
    if isinstance(value, dict):
        return " ".join(f"{name}={one}" for name, one in value.items())
    if isinstance(value, tuple):
        return " ".join(map(_written, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


@functools.cache
def _field_docstrings(kind: type) -> Mapping[str, str]:
    """The strings that stand below the fields of a class."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, after in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return found


# ---- help ----------------------------------------------------------------------------------------------------------


def help_text(
    program: str,
    description: str,
    options: Sequence[Option],
    width: int,
    *,
    examples: Sequence[tuple[str, str]] = (),
    first: Sequence[str] = (),
) -> str:
    """What `--help` prints.

    Args:
      program: how the command is written.
      description: what it does; paragraphs are wrapped, indented lines stay.
      options: all of them.
      width: characters to fit into.
      examples: commands, each with what it does.
      first: the names of the options that matter most. Only these are explained then, the rest is named.
    """
    positional = [option for option in options if option.positional]
    optional = [option for option in options if not option.positional]
    words = [option.flag + " ..." * option.takes.endswith("...") for option in positional]
    lines = [" ".join(["usage:", program, *words, "[options]"])]
    if description:
        lines += ["", *_paragraphs(description, width)]
    if examples:
        lines += ["", "examples:"]
        for command, what in examples:
            lines += [f"  {command}", wrap(f"      {what}", width, "      ")]
    if positional:
        lines += ["", "arguments:", *_explained(positional, width)]
    if first:
        by_name = {option.name: option for option in options}
        lines += ["", "the options that matter most:", *_explained([by_name[name] for name in first], width)]
        rest = [option for option in optional if option.name not in first]
        lines += ["", f"and {len(rest)} more, which --help-all explains:"]
        for group, members in _grouped(rest).items():
            names = " ".join(option.name.rpartition(".")[2] for option in members)
            lines.append(wrap(f"  {f'--{group}.' if group else '--':15} {names}", width, " " * 18))
    else:
        for group, members in _grouped(optional).items():
            lines += ["", f"{group} options:" if group else "options:", *_explained(members, width)]
    return "\n".join(lines)


def _grouped(options: Sequence[Option]) -> dict[str, list[Option]]:
    found: dict[str, list[Option]] = {}
    for option in options:
        found.setdefault(option.group, []).append(option)
    return found


def _explained(options: Sequence[Option], width: int) -> list[str]:
    """Each option with what it takes, and beside it, or below where it is long, what it is and its default."""
    column = 28
    lines = []
    for option in options:
        text = option.text + f" (default: {option.default})" * bool(option.default)
        head = f"  {option.flag}" if option.positional else f"  {option.flag} {option.takes}".rstrip()
        beside = len(head) < column - 1
        if not beside:
            lines.append(head)
        lines.append(wrap(f"{head if beside else '':{column}}{text}", width, " " * column).rstrip())
    return lines


def _paragraphs(text: str, width: int) -> list[str]:
    """A docstring's paragraphs, wrapped; those that are indented are commands, and stay as they are."""
    lines: list[str] = []
    for paragraph in text.strip("\n").split("\n\n"):
        inside = paragraph.startswith(" ")
        lines += ["", paragraph.rstrip() if inside else wrap(" ".join(paragraph.split()), width)]
    return lines[1:]


# ---- numbers --------------------------------------------------------------------------------------------------------


def _number(kind: type[int] | type[float], text: str) -> int | float:
    """A number of the digits 0 to 9: Python itself takes those of all scripts, and 1_000."""
    if not text.isascii() or "_" in text:
        raise ValueError(f"could not convert string to float: {text!r}")
    return kind(text)


def numbers() -> tyro.constructors.ConstructorRegistry:
    """How command lines are parsed to numbers."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def rule(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
        kind = info.type
        if kind is not int and kind is not float:
            return None
        allowed = int if kind is int else int | float
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=kind.__name__.upper(),
            instance_from_str=lambda words: _number(kind, words[0]),
            is_instance=lambda value: isinstance(value, allowed) and not isinstance(value, bool),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


# ---- mistakes ------------------------------------------------------------------------------------------------------


def nearest(received: str, options: Sequence[Option]) -> str | None:
    """The option that was perhaps meant by one that there is not: `--optimizer.learning-rate` for `--train.lr`."""
    names = [option.name for option in options if not option.positional]
    name = received.lstrip("-").replace("_", "-").lower()
    last = name.rpartition(".")[2]
    same = [one for one in names if one.rpartition(".")[2] == last]  # in another group
    if not same and _SYNONYMS.get(last) in names:
        same = [_SYNONYMS[last]]
    found = same or difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not found:  # a last part that is nearly right, in any group
        lasts = {one.rpartition(".")[2]: one for one in names}
        found = [lasts[one] for one in difflib.get_close_matches(last, lasts, n=1, cutoff=0.75)]
    return f"--{found[0]}" if found else None


_NUMBERS = {2: "two numbers", 3: "three numbers"}
_KINDS = {"INT": "a whole number", "FLOAT": "a number", "INT ...": "whole numbers", "FLOAT ...": "numbers"}


def given_twice(argv: Sequence[str], options: Sequence[Option]) -> str | None:
    """An option of any number of values that is given twice, of which a parser keeps the last values alone."""
    flags = [word.partition("=")[0].replace("_", "-") for word in argv]
    return next((one.flag for one in options if one.takes.endswith("...") and flags.count(one.flag) > 1), None)


def complaint(text: str, options: Sequence[Option], argv: Sequence[str] = ()) -> str:
    """A parser's complaint, in one line, as a person would say it; with the option that was perhaps meant.

    Args:
      text: the complaint.
      options: all there are.
      argv: what was parsed.
    """
    if unrecognized := re.match(r"Unrecognized options: (.*)", text):
        words = unrecognized[1].split(", ")
        flags = [word for word in words if word.startswith("--")]
        if not flags:
            if switch := _switch_before(words[0], options, argv):
                return f"{switch}: received {cut(words[0], 80)!r}, allowed: no value, as it is a switch"
            return f"received {' '.join(words)!r}, which belongs to no option"
        perhaps = nearest(flags[0].partition("=")[0], options)
        return f"no such option: {flags[0]}" + (f"; did you mean {perhaps}?" if perhaps else "")
    if text.startswith("Missing from"):
        needed = [f"{option.flag} ({option.text.rstrip('. ')})" for option in options if f"{option.text} (req" in text]
        return f"needs {', '.join(needed)}" if needed else text
    by_flag = {option.flag: option for option in options} | {option.name: option for option in options}
    for pattern in (
        r"Error parsing (?P<flag>\S+): (?:no type matching .* from|could not convert string to float:|invalid literal "
        r"for int\(\) with base 10:) (?P<received>.*)",
        r"[Ii]nvalid choice (?P<received>.*) for argument '(?P<flag>\S+)'",
        r"Missing value for argument '(?P<flag>\S+)'(?P<received>)",
    ):
        found = re.match(pattern, text)
        # Where an option has two names, both are given, and its own is the last.
        if found and (option := by_flag.get(found["flag"].rpartition("/")[2])):
            received = cut(re.sub(r"[\[\]',]", "", found["received"]), 80)
            return f"{option.flag}: received {received!r}, allowed: {_allowed(option, received)}"
    return re.sub(r"^Error parsing (\S+):", r"\1:", text)


def _switch_before(word: str, options: Sequence[Option], argv: Sequence[str]) -> str | None:
    """The switch that was given `word` as a value."""
    switches = {option.flag for option in options if not option.takes and not option.positional}
    pairs = [*itertools.pairwise(argv), *((flag, value) for flag, _, value in (one.partition("=") for one in argv))]
    found = (flag.replace("_", "-") for flag, value in pairs if value == word)
    return next((flag for flag in found if flag in switches), None)


def _allowed(option: Option, received: str) -> str:
    """What an option takes, in words; with an example where one number was given for several."""
    takes = option.takes.split()
    if len(takes) in _NUMBERS and set(takes) <= {"INT", "FLOAT"}:
        example = f", such as {option.flag} {' '.join([received] * len(takes))}"
        return _NUMBERS[len(takes)] + example * bool(re.fullmatch(r"[\d.]+", received))
    choices = option.takes.split("|")
    near = difflib.get_close_matches(received, choices, n=1) if len(choices) > 1 else []
    meant = f" (did you mean {near[0]!r}?)" if near else ""
    return _KINDS.get(option.takes, ", ".join(choices)) + meant
