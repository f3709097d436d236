"""ResNeXt: ResNet's bottlenecks with a 3x3 convolution in many groups.

Source: S. Xie, R. Girshick, P. Dollár, Z. Tu, K. He, "Aggregated Residual Transformations for Deep Neural Networks",
CVPR 2017 (arXiv 1611.05431): table 1, figure 3c. As there, and in torchvision, the stride is on the 3x3 convolution.

| name               | groups x width of each in the first stage | parameters |
|--------------------|-------------------------------------------|-----------:|
| resnext50_32x4d    | 32 x 4                                    | 25,028,904 |
| resnext101_32x8d   | 32 x 8                                    | 88,791,336 |
| resnext101_64x4d   | 64 x 4                                    | 83,455,272 |
"""

import functools

from cnnjax.models.resnet import BottleneckBlock, resnet50, resnet101

resnext50_32x4d = functools.partial(resnet50, block=functools.partial(BottleneckBlock, groups=32, base_width=4))
resnext101_32x8d = functools.partial(resnet101, block=functools.partial(BottleneckBlock, groups=32, base_width=8))
resnext101_64x4d = functools.partial(resnet101, block=functools.partial(BottleneckBlock, groups=64, base_width=4))
