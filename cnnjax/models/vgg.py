"""VGG: 3x3 convolutions and nothing else, up to 19 layers.

Source: K. Simonyan, A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015
(arXiv 1409.1556): table 1, whose columns are A, B, C, D and E. With batch norm, which came later, they are
torchvision's `vgg11_bn` and so on; their convolutions keep the biases.

| name        | column | convolutions a stage | parameters  | with batch norm |
|-------------|--------|----------------------|------------:|----------------:|
| vgg11       | A      | 1, 1, 2, 2, 2        | 132,863,336 |     132,868,840 |
| vgg13       | B      | 2, 2, 2, 2, 2        | 133,047,848 |     133,053,736 |
| vgg16c      | C      | 2, 2, 3, 3, 3        | 133,638,952 |     133,647,400 |
| vgg16       | D      | 2, 2, 3, 3, 3        | 138,357,544 |     138,365,992 |
| vgg19       | E      | 2, 2, 4, 4, 4        | 143,667,240 |     143,678,248 |

In column C the third convolution of a stage is 1x1. Stages have 64, 128, 256, 512 and 512 features and end in 2x2
pooling. Kernels start He-normal by fan-out as torchvision's do (the paper started deep nets from trained shallow ones,
and notes that Glorot's initialisation would have done), dense ones normal with deviation 0.01.

VGG with average pooling: `create("vgg16", pool="avg")`.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn

from cnnjax.models.layers import BatchNorm
from cnnjax.models.plain import Conv, PlainNet, Pool


def _layers(stages: Sequence[Sequence[int]]) -> tuple[Conv | Pool, ...]:
    """The convolutional part: of each stage the windows of its convolutions."""
    layers: list[Conv | Pool] = []
    for features, windows in zip((64, 128, 256, 512, 512), stages, strict=True):
        layers += [Conv(features, window, pad=window // 2) for window in windows]
        layers.append(Pool(2, 2))
    return tuple(layers)


_vgg = functools.partial(PlainNet, grid=(7, 7), kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"))
vgg11 = functools.partial(_vgg, layers=_layers([(3,), (3,), (3, 3), (3, 3), (3, 3)]))
vgg13 = functools.partial(_vgg, layers=_layers([(3, 3)] * 5))
vgg16c = functools.partial(_vgg, layers=_layers([(3, 3)] * 2 + [(3, 3, 1)] * 3))
vgg16 = functools.partial(_vgg, layers=_layers([(3, 3)] * 2 + [(3, 3, 3)] * 3))
vgg19 = functools.partial(_vgg, layers=_layers([(3, 3)] * 2 + [(3, 3, 3, 3)] * 3))

vgg11_bn, vgg13_bn, vgg16c_bn, vgg16_bn, vgg19_bn = (
    functools.partial(net, norm=BatchNorm) for net in (vgg11, vgg13, vgg16c, vgg16, vgg19)
)
