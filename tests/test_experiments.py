"""Every experiment file: its form, its network, and that it runs from end to end."""

import ast
import importlib
import json
import pathlib
import re

import numpy as np
import pytest

from cnnjax import cli, data, models
from cnnjax.training import Config

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAMES = sorted(path.stem for path in (ROOT / "experiments").glob("*.py") if not path.stem.startswith("_"))

# Networks that take long to compile on two cores.
SLOW = {"cifar_resnet20", "geron_fashion"}

# Streamed from disk.
PHOTOGRAPHS = {"imagenet_resnet50"}


def load(name):
    return importlib.import_module(f"experiments.{name}")


def test_the_promised_ones_are_there():
    promised = {"quickstart", "lenet5_mnist", "lenet5_modern_mnist", "geron_fashion"}
    promised |= {"cs231n_cifar10", "convnetjs_cifar10", "cifar_resnet20", "imagenet_resnet50"}
    assert promised <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_teaches(name):
    docstring = ast.get_docstring(ast.parse((ROOT / "experiments" / f"{name}.py").read_text()))
    first, blank, *_ = docstring.splitlines()
    assert len(first) > 20
    assert blank == ""
    assert re.search(rf"^    python -m experiments\.{name}\b", docstring, re.MULTILINE)
    assert "Expected:" in docstring


@pytest.mark.parametrize("name", NAMES)
def test_config_and_main(name):
    experiment = load(name)
    assert isinstance(experiment.CONFIG, Config)
    assert callable(experiment.main)
    assert experiment.CONFIG.model.name in models.MODELS
    assert experiment.CONFIG.data.name in {*data.DATASETS, "tfds:imagenet2012"}
    models.create(experiment.CONFIG.model.name, **experiment.CONFIG.model.fields)


def made_up(name: str, shape: tuple[int, int, int]) -> data.Dataset:
    """Noise in ten classes: 300 images to train on, 60 to be tested on."""
    rng = np.random.default_rng(0)

    def arrays(n):
        image = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        return data.Arrays(image, rng.integers(0, 10, n).astype(np.int32))

    return data.Dataset(name, arrays(300), arrays(60), None, tuple("abcdefghij"), {"made": "by the tests"})


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NAMES if name not in PHOTOGRAPHS],
)
def test_quick_runs_from_end_to_end(name, tmp_path, monkeypatch, capsys):
    """On real digits, or on noise in the place of a set that would have to be downloaded."""
    experiment = load(name)
    set_name = experiment.CONFIG.data.name
    if set_name != "digits":
        shape = (32, 32, 3) if set_name == "cifar10" else (28, 28, 1)
        monkeypatch.setitem(data.DATASETS, set_name, lambda **_: made_up(set_name, shape))
    assert experiment.main(["--quick", "--run.devices", "1", "--workdir", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "test accuracy" in out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["experiment"] == name
    assert result["steps"] == 8
    assert result["parameters"] == models.describe(experiment.CONFIG.model.name)["parameters"]
    assert 0 <= result["test_accuracy"] <= 1
    assert len(result["fingerprint"]) == 64
    for file in ("config.json", "metrics.jsonl", "curves.png", "predictions.png"):
        assert (tmp_path / "run" / file).stat().st_size > 0


@pytest.mark.slow
def test_photographs_from_end_to_end(tmp_path, capsys):
    """ImageNet's recipe, at its own size of crops, on made-up photographs in the layout of the prepared set."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", "prepare", "imagenet2012", "--made-up", "64", "--data-dir", str(tmp_path)])
    assert ended.value.code == 0
    experiment = load("imagenet_resnet50")
    options = ["--quick", "--data.data-dir", str(tmp_path), "--run.devices", "1", "--workdir", str(tmp_path / "run")]
    capsys.readouterr()
    assert experiment.main([*options, "--train.steps", "2", "--train.evaluate-every", "1"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "validation accuracy" in out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["parameters"] == models.describe("resnet50")["parameters"]
    assert {"validation_accuracy", "validation_top5", "best_step"} <= set(result)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["derived"]["examples"] == {
        "train": 64,
        "validation": 8,
    }
