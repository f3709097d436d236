"""What a configuration may hold, whether it comes from a command line, a file or Python."""

import dataclasses
import math

import numpy as np
import pytest

from cnnjax.ops.errors import InputError
from cnnjax.training import Config, Data, Optimizer, config


def change(name, value):
    """A configuration with the field of an option, such as `train.batch-size`, changed."""
    section, field = name.replace("-", "_").split(".")
    part = getattr(Config(), section)
    if isinstance(getattr(part, field), tuple) or field in ("size", "mean", "std"):
        value = (value, value) if field in ("size", "crop_area") else (value,)
    return dataclasses.replace(Config(), **{section: dataclasses.replace(part, **{field: value})})


def test_the_bounds_are_those_of_fields():
    numbers = set()
    for section in dataclasses.fields(Config):
        for field in dataclasses.fields(getattr(Config(), section.name)):
            if "int" in str(field.type) or "float" in str(field.type):
                numbers.add(f"{section.name}.{field.name}".replace("_", "-"))
    numbers -= {"train.dtype", "data.fit"}  # of which some name a type
    assert set(config.BOUNDS) == numbers


@pytest.mark.parametrize("name", config.BOUNDS)
def test_numbers_out_of_bounds_are_refused_by_name(name):
    low, high = config.BOUNDS[name]
    kind = int if isinstance(high, int) and name not in ("data.crop-area",) else float
    wrong = (
        [low - 1, high * 2, -(10**20), 10**20, 10**5000] if kind is int else [-math.inf, math.inf, math.nan, low - 1]
    )
    for value in wrong:
        with pytest.raises(InputError, match=rf"^{name}: received .*, allowed: ") as error:
            config.check(change(name, value))
        assert len(str(error.value)) < 200


@pytest.mark.parametrize("name", config.BOUNDS)
def test_values_of_another_type_are_refused_by_name(name):
    for value in ("3", b"3", np.float32(3), np.int64(3), np.ones(1), [[3]], {}, object, True):
        with pytest.raises(InputError, match=f"^{name}: received "):
            config.check(change(name, value))


def test_what_python_takes_for_a_number_of_steps():
    with pytest.raises(InputError, match=r"^train.steps: received 24.0 \(float\), allowed: int"):
        config.check(change("train.steps", 24.0))
    with pytest.raises(InputError, match=r"^optimizer.schedule: received 'poly' .*, allowed: 'constant', 'cosine'"):
        config.check(dataclasses.replace(Config(), optimizer=Optimizer(schedule="poly")))


@pytest.mark.parametrize("text", ["x" * 5000, "a\0b"])
def test_texts_that_name_nothing(text):
    with pytest.raises(InputError, match=r"^data.raw-dir: received .*, allowed: up to 4096 characters, no NUL"):
        config.check(dataclasses.replace(Config(), data=Data(raw_dir=text)))


@pytest.mark.parametrize(
    "words",
    [
        ["num_classes=" + "[" * 100_000],
        ["num_classes=" + "9" * 5000],
        ["name=x"],
        ["parent=None"],
        ["²"],
        ["a b=3"],
        ["=3"],
    ],
)
def test_fields_that_can_not_be_read(words):
    with pytest.raises(ValueError, match=r"expected|is no field") as error:
        config._parse_fields(words)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    "value", ["{1, 2}", "1j", "b'x'", "...", "1e999", "[1e999]", "10" * 30, "[" * 2000, "{'a': {1}}"]
)
def test_fields_that_json_can_not_hold(value):
    fields = config._parse_fields([f"act={value}"])
    model = dataclasses.replace(Config().model, fields=fields)
    if isinstance(fields["act"], str):  # brackets in brackets are a text, which is no activation
        config.check(dataclasses.replace(Config(), model=model))
        return
    with pytest.raises(InputError, match=r"^model.fields: received "):
        config.check(dataclasses.replace(Config(), model=model))


def test_epochs_that_make_too_many_steps():
    with pytest.raises(InputError, match=r"train.epochs: received 1e\+09, which is .* steps; allowed: 2\^31 - 1"):
        config.total_steps(change("train.epochs", 1e9), 50_000)
