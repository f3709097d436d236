"""The drawing: its structure is the network's, and its text is SVG."""

import xml.etree.ElementTree as ET

import flax.linen as nn
import jax.numpy as jnp

from cnnjax import models
from cnnjax.analysis import drawing
from cnnjax.analysis.drawing import Box, Frame, Parallel, Tangle, label, structure, svg
from cnnjax.analysis.summary import summarize


def drawn(name, **fields):
    return summarize(models.create(name, **fields), models.ABOUT[name].input, name=name)


def words(summary, part):
    """The labels in a part: a list for layers one after another, a set of such for branches."""
    match part:
        case Box(number):
            return label(summary.layers[number])
        case Parallel(branches):
            return [words(summary, branch) for branch in branches]
        case Frame(names, inside):
            return {f"{names[0]} x{len(names)}": words(summary, inside)}
        case _:
            return [words(summary, inner) for inner in part]


def test_lenet5():
    found = drawn("lenet5")
    assert words(found, structure(found)) == [
        "5×5 conv, 6", "2×2 Subsample, /2", "5×5 PartialConv, 16", "2×2 Subsample, /2", "5×5 conv, 120", "dense, 84",
        "RBF, 10",
    ]  # fmt: skip


def test_resnet50():
    """Figure 5, right: bottlenecks beside identities, or beside projections where the shape changes."""
    found = drawn("resnet50")

    def stage(i, width, blocks, stride):
        branch = [f"1×1 conv, {width}", f"3×3 conv, {width}{stride}", f"1×1 conv, {4 * width}"]
        plain = [f"1×1 conv, {width}", f"3×3 conv, {width}", f"1×1 conv, {4 * width}"]
        return [
            {f"stage{i}_block1 x1": [[branch, [f"1×1 conv, {4 * width}{stride}"]], "+"]},
            {f"stage{i}_block2 x{blocks - 1}": [[plain, []], "+"]},
        ]

    assert words(found, structure(found)) == [
        "7×7 conv, 64, /2", "3×3 max pool, /2",
        *stage(1, 64, 3, ""), *stage(2, 128, 4, ", /2"), *stage(3, 256, 6, ", /2"), *stage(4, 512, 3, ", /2"),
        "global average", "dense, 1000",
    ]  # fmt: skip


def test_googlenet():
    """Figure 2b, nine times, with the widths of table 1."""
    found = drawn("googlenet")
    frames = {part.names: words(found, part) for part in structure(found) if isinstance(part, Frame)}
    assert list(frames) == [(f"inception{stage}",) for stage in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")]
    assert frames["inception3a",] == {
        "inception3a x1": [
            [
                ["1×1 conv, 64"],
                ["1×1 conv, 96", "3×3 conv, 128"],
                ["1×1 conv, 16", "5×5 conv, 32"],
                ["3×3 max pool", "1×1 conv, 32"],
            ],
            "concat",
        ]
    }
    rest = [words(found, part) for part in structure(found) if not isinstance(part, Frame)]
    assert rest == [
        "7×7 conv, 64, /2", "3×3 max pool, /2", "response norm", "1×1 conv, 64", "3×3 conv, 192", "response norm",
        "3×3 max pool, /2", "3×3 max pool, /2", "3×3 max pool, /2", "global average", "dense, 1000",
    ]  # fmt: skip
    assert "aux1_head, aux2_head" in svg(found)


def test_densenet121():
    """Layers pass on what they see beside what they make; 6, 12, 24 and 16 of them."""
    found = drawn("densenet121")
    parts = [words(found, part) for part in structure(found)]
    layer = [[["1×1 conv, 128", "3×3 conv, 32"], []], "concat"]
    assert [part for part in parts if isinstance(part, dict) and "layer" in str(part)] == [
        {f"block{i}_layer1 x{n}": layer} for i, n in enumerate((6, 12, 24, 16), 1)
    ]
    assert parts[3] == {"transition1 x1": ["1×1 conv, 128", "2×2 average pool, /2"]}


class Crossed(nn.Module):
    """Two branches, one of which looks into the other."""

    @nn.compact
    def __call__(self, x, *, train=False):
        layer = lambda name, x: nn.BatchNorm(True, name=f"norm_{name}")(nn.Conv(4, (3, 3), name=name)(x))
        a = layer("a", x)
        b = layer("b", x)
        c = layer("c", a + b)
        d = layer("d", a)
        return nn.Dense(2, name="output")((c * d).mean((1, 2)))


class DenseBlock(nn.Module):
    """Every layer sees all before it, the image too."""

    @nn.compact
    def __call__(self, x):
        seen = [x]
        for i in range(3):
            seen.append(nn.Conv(4, (3, 3), name=f"conv{i}")(jnp.concatenate(seen, -1)))
        return jnp.concatenate(seen, -1)


def edges(summary, tangle):
    """The edges of a tangle, by the names of the layers."""
    name = lambda i: {drawing.BEFORE: "before", drawing.AFTER: "after"}.get(i) or summary.layers[i].name
    return {(name(u), name(v)) for u, v in tangle.edges}


def test_what_is_neither_in_series_nor_in_parallel():
    """Every edge is drawn, those through norms and those to the layers around too."""
    found = summarize(Crossed(), (8, 8, 3), name="<crossed>")
    tangle, *rest = structure(found)
    assert isinstance(tangle, Tangle)
    assert edges(found, tangle) == {
        ("before", "a"), ("before", "b"), ("a", "add"), ("b", "add"), ("add", "c"), ("a", "d"), ("c", "after"),
        ("d", "after"),
    }  # fmt: skip
    assert words(found, rest) == ["×", "global average", "dense, 2"]
    text = svg(found)
    assert text.count("<path d=") - 1 == 4  # the arrow's head aside; the others go straight to the next layer
    picture = ET.fromstring(text)
    assert picture.find("{http://www.w3.org/2000/svg}title").text == "<crossed>"


def test_a_block_that_passes_everything_on():
    found = summarize(DenseBlock(), (8, 8, 3))
    parts = structure(found)
    assert sorted(drawing.layers_of(parts)) == list(range(len(found.layers)))
    assert ET.fromstring(svg(found)).tag.endswith("svg")


def test_dilated_windows_are_another_form():
    found = summarize(models.create("lenet5_modern"), (32, 32, 1))
    found.layers[0].dilation = (2, 2)
    assert label(found.layers[0]) == "5×5 conv, 6, dilated 2"
