"""docs/models.md does what it says: its ablations change the network they name, its snippets and commands run."""

import contextlib
import json
import pathlib
import re
import shlex

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from cnnjax import cli, models, ops
from cnnjax.analysis.summary import summarize
from cnnjax.ops.primitives import as_primitives

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
TEXT = (DOCS / "models.md").read_text()
ABLATIONS = re.findall(r"^\| ([^|`]+) \| `create\((.+)\)` \|$", TEXT, re.MULTILINE)
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def create(expression):
    """The model of a line of the table, and the name it begins with."""
    return eval(f"models.create({expression})", {"models": models}), eval(f"({expression.split(',')[0]})")


def program(model, name):
    """What the model computes in training, as text."""
    x = jax.ShapeDtypeStruct((1, *models.ABOUT[name].input), jnp.float32)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return str(jax.make_jaxpr(lambda x: model.init_with_output(rngs, x, train=True)[0])(x))


def simplest(expression):
    """Convolutions by one equation each, which are quick to trace, where they are not what is changed."""
    return contextlib.nullcontext() if "conv=" in expression else as_primitives()


@pytest.mark.parametrize(("what", "expression"), ABLATIONS, ids=[what for what, _ in ABLATIONS])
def test_each_ablation_is_another_network(what, expression):
    model, name = create(expression)
    if name.endswith("_v1"):
        name, base = "resnet50", models.create("resnet50")
    else:
        base = models.create(name)
    with simplest(expression):
        assert program(model, name) != program(base, name)


def kinds(expression):
    model, name = create(expression)
    return {layer.kind for layer in summarize(model, models.ABOUT[name].input).layers}


def test_what_the_ablations_change():
    lines = dict(ABLATIONS)
    assert "GroupNorm" in kinds(lines["ResNet-20 with group norm"])
    assert "BatchNorm" not in kinds(lines["ResNet-20 with group norm"])
    assert kinds(lines["VGG with average pooling"]) == {"Conv", "average pool", "Dense"}
    assert kinds(lines["LeNet-5 with ReLU and max pooling"]) == {"Conv", "PartialConv", "max pool", "Dense", "RBF"}
    assert create(lines["LeNet-5 with ReLU and max pooling"])[0].act is nn.relu
    winograd, name = create(lines["ResNet with Winograd convolutions, XLA's where Winograd can't"])
    assert winograd.conv == ops.conv_implementation("winograd", otherwise="xla")
    layers = summarize(winograd, models.ABOUT[name].input).layers
    by = {(layer.window, layer.strides): layer.implementation for layer in layers if layer.kind == "Conv"}
    assert by == {
        ((7, 7), (2, 2)): "xla", ((3, 3), (1, 1)): "winograd", ((3, 3), (2, 2)): "xla", ((1, 1), (2, 2)): "xla",
    }  # fmt: skip


def test_snippets(tmp_path, monkeypatch):
    """One after another, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for language, text in BLOCKS:
        if language == "python":
            exec(text.replace("/tmp/", f"{tmp_path}/"), names)
    assert names["boxes"].shape == (2, 4)


def test_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [line for language, text in BLOCKS if language == "bash" for line in text.splitlines()]
    assert len(lines) > 3
    for line in lines:
        program, *argv = shlex.split(line.replace("/tmp/", f"{tmp_path}/"))
        assert program == "cnnjax"
        with pytest.raises(SystemExit) as stopped:
            cli.main(argv)
        assert stopped.value.code == 0
        said = capsys.readouterr()
        assert not said.err
        if "--json" in argv:
            assert json.loads(said.out)["model"] == "cifar_resnet20"
    assert (tmp_path / "googlenet.svg").stat().st_size > 10_000


def test_the_drawings_are_those_of_today():
    """`make drawings` writes them."""
    from cnnjax.analysis import drawing

    for name in ("lenet5", "googlenet", "resnet50", "densenet121"):
        found = summarize(models.create(name), models.ABOUT[name].input, name=name)
        assert (DOCS / "images" / f"{name}.svg").read_text() == drawing.svg(found)
