"""What is typed: options of experiments and their values, arguments of the other commands, fields of networks."""

import dataclasses
import functools
import itertools
import json
import pathlib
import random
import shutil
import typing
from collections.abc import Iterator
from typing import Any

from case import Case, Said, command

from cnnjax import models
from cnnjax.training import Config

NUMBERS = (
    "-1", "0", "2147483648", "100000000000000000000", "9" * 5000, "1.5", "abc", "", "²", "１", "nan", "inf", "-inf",
    "1e309", "0x10", "None", "True", "10**20", "1,5", " 3 ", "--", "1e-320", "'3'", "[3]",
)  # fmt: skip
TEXTS = ("", "x" * 5000, "²", "a b", "\x1b[2J", "nonsense", "None", "-x", "a\0b", "😀")
FIELDS = (
    "", "=", "a", "a=", "=b", "data=0", "data=-1", "data=nan", "data=1.5", "data=" + "[" * 100_000,
    "data=" + "9" * 5000,
    "ä=1", "name=x", "parent=x", "a b=1", "dense=()", "dense=[0]", "dense=[-1]", "dense=[1e9]", "dense=x", "dense={1}",
    "act=²", "act=[]", "act=1j", "act=b'x'", "act=...", "num_classes=0", "num_classes=-3", "num_classes=1e3",
    "num_classes=True", "num_classes=100000000000000000000", "dtype=int8", "dtype=x", "param_dtype=bfloat16",
)  # fmt: skip


def options(folder: pathlib.Path, experiment: pathlib.Path) -> Iterator[Case]:
    """Every field of a configuration, with values of wrong kinds, extremes, nothing and what is no ASCII."""
    for section in dataclasses.fields(Config):
        part = getattr(Config(), section.name)
        hints = typing.get_type_hints(type(part))
        for field in dataclasses.fields(part):
            option = f"--{section.name}.{field.name}".replace("_", "-")
            for value in _values(hints[field.name]):
                name = f"{option} {_shown(value)}"
                act = functools.partial(_run, experiment, folder / "options", option, value)
                right = functools.partial(_recorded, folder / "options", section.name, field.name, value)
                yield Case("options", name, act, right)
    for words in (
        ("--train.steps",),
        ("--nonsense", "3"),
        ("nonsense",),
        ("--train.steps", "3", "4"),
        ("--", "3"),
        ("-",),
    ):
        act = functools.partial(_run, experiment, folder / "options", *words)
        yield Case("options", " ".join(words), act, lambda said: "taken")


def _values(hint: Any) -> tuple[str, ...]:
    text = str(hint)
    if "dict" in text:
        return FIELDS
    if hint is bool:
        return ("maybe", "1", "", "²")
    if "Literal" in text or ("int" not in text and "float" not in text):
        return TEXTS
    return NUMBERS


def _shown(value: str) -> str:
    return repr(value) if len(value) < 30 else f"{value[:10]!r}... ({len(value)})"


def _run(experiment: pathlib.Path, workdir: pathlib.Path, *words: str) -> Said:
    shutil.rmtree(workdir, ignore_errors=True)
    return command("run", experiment, "--workdir", workdir, *words)


def _recorded(workdir: pathlib.Path, section: str, field: str, value: str, said: Said) -> str:
    """Whether a value that was taken is the one that was typed."""
    taken = json.loads((workdir / "config.json").read_text())["config"][section][field]
    shown = [str(one) for one in taken] if isinstance(taken, list) else [str(taken)]
    numbers = [one for one in shown if _number(one) is not None and _number(one) == _number(value)]
    if isinstance(taken, dict):
        return "" if value == "" and not taken else "" if value.partition("=")[0] in taken else f"{taken} taken"
    same = numbers or value in shown or (value == "None" and taken is None) or value == str(taken)
    path = field.endswith("_dir") and taken is not None and str(taken).endswith(value.strip("./"))
    nothing = value == "--" and not taken  # which ends the options
    return "" if same or path or nothing else f"{taken!r} taken for {value!r}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def commands(folder: pathlib.Path, run: pathlib.Path) -> Iterator[Case]:
    """Arguments of commands other than `run`."""
    sizes = ("", "0", "1", "1,1", "1,1,1,1", "-1,3,3", "²,3,3", "９,９,1", "1e3,3,3", "nan,3,3", "9" * 5000 + ",3,3",
             "x", "28,28,0", "28,28,100000000000", "99999999999999999999,1,1", "28 28 1", "28,28,1,", "None",
             "a\0b")  # fmt: skip
    names = (
        "",
        " ",
        "²",
        "x" * 5000,
        "../../etc/passwd",
        "lenet6",
        "LENET5",
        "\x1b[2J",
        "a\0b",
        "-",
        "[bold]",
        "a/b",
        "..py",
        "/",
    )
    shown = lambda said: "" if said.out.strip() else "nothing was shown"
    lists: list[tuple[str, ...]] = []
    lists += [("summary", "lenet5", "--input", size) for size in sizes]
    lists += [("plan", "quickstart", "--topology", "v5e:2x2", "--input", size) for size in sizes if size]
    for name in names:
        lists += [("summary", name), ("run", name), ("evaluate", name), ("data", "show", name), ("data", "prepare",
        name),
                  ("plan", name, "--topology", "v5e:2x2"), ("predict", name, name), (name,)]  # fmt: skip
    lists += [("summary", "lenet5", "--depth", value) for value in ("-1", "0", "²", "nan", "1.5", "9" * 5000)]
    lists += [("plan", "quickstart", "--topology", value) for value in (
        "", "v5e", "v5e:", "v5e:²x4", "v5e:0x4", "v5e:4", "v5e:4x4x4x4", "v5e:-1x4", "v9:4x4",
        "v5e:" + "9" * 5000 + "x4",
        "v5e:4x4 ", "V5E:4x4", "a\0b",
    )]  # fmt: skip
    lists += [
        ("plan", "quickstart", "--topology", "v5e:2x2", "--compare", value) for value in ('"', "'a", "--", "x y z", "²")
    ]
    lists += [("data", "show", "digits", "--picture", folder / value) for value in ("x.unknown", "x", "no/x.png", "")]
    without_images = run / "checkpoints"
    lists += [
        ("predict", run, value)
        for value in ("", without_images, "/dev/null", "nowhere.png", "a\0b", "x" * 5000, str(run))
    ]
    lists += [
        ("predict", run, value, "--top", top) for value in ("nowhere",) for top in ("0", "-1", "²", "nan", "9" * 5000)
    ]
    lists += [("evaluate", run, "--split", value) for value in ("", "tset", "²", "Test")]
    lists += [
        ("evaluate", run, "--data.name", value) for value in ("nonsense", "", "digits", "tfds:", "tfds:../x", "folder")
    ]
    for words in lists:
        name = " ".join(_shown(str(word)) if len(str(word)) > 60 else str(word) for word in words)
        yield Case("commands", name.replace(str(folder), "FOLDER"), functools.partial(command, *words), shown)


def fields(count: int, rng: random.Random) -> Iterator[Case]:
    """Fields of networks with values that they can't have, or that are strange."""
    values = (
        "0", "-1", "10000000000", "1.5", "nan", "inf", "None", "True", "x", "", "[]", "()", "[0]", "[-1]",
        "[1,2,3,4,5,6,7]",
        "{}", "{'a': 1}", "1j", "b'x'", "...", "[[1]]", "'²'", "[None]", "relu", "same", "float16", "(1,)", "10**20",
    )  # fmt: skip
    every = []
    for name in ("lenet5", "lenet5_modern", "cifar_resnet20", "vgg11_bn", "googlenet", "densenet121", "fully_connected",
                 "locally_connected", "resnext50_32x4d", "cifar_wide16_4", "alexnet", "zfnet"):  # fmt: skip
        every += itertools.product([name], _fields_of(name), values)
    for name, field, value in rng.sample(every, count):
        act = functools.partial(command, "summary", name, "--fields", f"{field}={value}")
        yield Case("fields", f"{name} {field}={value}", act, lambda said: "" if "total" in said.out else "no summary")


def _fields_of(name: str) -> list[str]:
    return [field.name for field in dataclasses.fields(models.create(name)) if field.name not in ("parent", "name")]
