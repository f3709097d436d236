"""Every network there is: what the listing says of it is so, and its drawing is whole."""

import xml.etree.ElementTree as ET

import pytest

from cnnjax import models
from cnnjax.analysis import drawing
from cnnjax.analysis.drawing import Frame, label, structure, svg
from cnnjax.analysis.summary import summarize

# With over 200 layers; their parameters are counted in tests/models too.
DEEPEST = {"cifar_resnet1202", "cifar_preact_resnet1001", "cifar_densenet_bc250_24"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in DEEPEST else name for name in models.names()]
)
def test_it(name):
    """Parameters and multiply-adds are counted; each layer that is drawn stands once in the structure and with its
    words in the picture, which is well formed and has nothing outside."""
    found = summarize(models.create(name), models.ABOUT[name].input, name=name)
    assert found.parameters == models.ABOUT[name].parameters
    assert found.multiply_adds == models.ABOUT[name].multiply_adds
    series = structure(found)
    numbers = [*drawing.layers_of(series)]
    assert len(numbers) == len(set(numbers))
    frames = [part for part in series if isinstance(part, Frame)]
    left_out = {name for part in frames for name in part.names[:-1]}  # drawn by the last of their form
    assert set(numbers) == {
        i
        for i, layer in enumerate(found.layers)
        if layer.output and layer.kind not in drawing.HIDDEN and layer.name.split("/")[0] not in left_out
    }
    picture = ET.fromstring(svg(found))
    texts = {element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {label(found.layers[i]) for i in numbers} <= texts
    width, height = float(picture.get("width")), float(picture.get("height"))
    for box in picture.iter("{http://www.w3.org/2000/svg}rect"):
        if box.get("x"):
            assert 0 <= float(box.get("x")) <= width - float(box.get("width"))
            assert 0 <= float(box.get("y")) <= height - float(box.get("height"))
