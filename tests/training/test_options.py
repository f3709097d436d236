"""The options of a command, read off its dataclass."""

import dataclasses
import pathlib
from typing import Annotated, Literal

import pytest
import tyro

from cnnjax.training import Config, options
from cnnjax.training.config import FIELDS, Data


@dataclasses.dataclass(frozen=True)
class Inner:
    """Of the inner part."""

    rate: float = 1e-3
    """How fast. Very."""
    sizes: tuple[int, ...] = (1, 2)
    """How large."""


@dataclasses.dataclass(frozen=True)
class Outer:
    """A command."""

    run: tyro.conf.Positional[pathlib.Path]
    """Where."""
    plain: Annotated[Inner, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Inner)
    inner_part: Inner = dataclasses.field(default_factory=Inner)
    fields: Annotated[dict, FIELDS] = dataclasses.field(default_factory=dict)
    """Any."""
    how: Literal["a", "b"] | None = None
    """Which
    of them."""
    fast: bool = False


def test_options_of_a_dataclass():
    found = {o.name: (o.flag, o.takes, o.default, o.text) for o in options.options_of(Outer)}
    assert found == {
        "run": ("RUN", "PATH", "", "Where."),
        "rate": ("--rate", "FLOAT", "0.001", "How fast. Very."),
        "sizes": ("--sizes", "INT ...", "1 2", "How large."),
        "inner-part.rate": ("--inner-part.rate", "FLOAT", "0.001", "How fast. Very."),
        "inner-part.sizes": ("--inner-part.sizes", "INT ...", "1 2", "How large."),
        "fields": ("--fields", "NAME=VALUE ...", "", "Any."),
        "how": ("--how", "a|b", "", "Which of them."),
        "fast": ("--fast", "", "", ""),
    }
    changed = Outer(pathlib.Path("x"), inner_part=Inner(2.5), fields={"act": "relu"})
    assert {o.default for o in options.options_of(Outer, changed)} >= {"x", "2.5", "act=relu"}


def test_every_option_of_an_experiment_is_documented():
    found = list(options.options_of(Config, Config(data=Data(size=(28, 28)))))
    assert [option.name for option in found if not option.text] == []
    assert {option.name: option.default for option in found}["data.size"] == "28 28"


@pytest.mark.parametrize(
    ("received", "meant"),
    [
        ("--train.lr", "--optimizer.learning-rate"),
        ("--lr", "--optimizer.learning-rate"),
        ("--learning_rate", "--optimizer.learning-rate"),
        ("--train.warmup", "--optimizer.warmup"),
        ("--seed", "--train.seed"),
        ("--epochs", "--train.epochs"),
        ("--data.batch-size", "--train.batch-size"),
        ("--dataset", "--data.name"),
        ("--train.stepz", "--train.steps"),
        ("--train.evaluate-evry", "--train.evaluate-every"),
        ("--momentun", "--optimizer.momentum"),
        ("--xyzzy", None),
    ],
)
def test_the_option_that_was_meant(received, meant):
    assert options.nearest(received, list(options.options_of(Config))) == meant
