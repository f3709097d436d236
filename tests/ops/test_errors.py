"""Names that were perhaps meant."""

import pytest

from cnnjax import models
from cnnjax.ops.errors import InputError, near, short_repr, unknown


@pytest.mark.parametrize(
    ("received", "nearest"),
    [
        ("lenet", "lenet5"),
        ("lenet5_moden", "lenet5_modern"),
        ("ResNet50", "resnet50"),
        ("resnet50d", "resnet50"),
        ("resnext", "resnext50_32x4d"),
        ("wide_resnet", "wide_resnet50_2"),
        ("google", "googlenet"),
        ("resnet20", "cifar_resnet20"),
        ("efficientnet_b0", None),
        ("mobilenet_v2", None),
        ("squeezenet", None),
        ("convnext_tiny", None),
        ("unet", None),
        ("x", None),
        ("", None),
    ],
)
def test_a_network_is_suggested_only_where_it_is_near(received, nearest):
    assert near(received, models.names()) == nearest


def test_what_was_received_is_short():
    line = str(unknown("thing", "x" * 5000, ["one"]))
    assert len(line) < 150
    assert len(short_repr(list(range(1000)))) == 80
    with pytest.raises(InputError, match="a number of thousands of digits"):
        short_repr((10**5000,))
