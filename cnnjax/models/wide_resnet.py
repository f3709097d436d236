"""Wide residual networks: fewer layers, each k times as wide.

Source: S. Zagoruyko, N. Komodakis, "Wide Residual Networks", BMVC 2016 (arXiv 1605.07146): table 1 for CIFAR, whose
blocks have norm and activation first; section 3.4 for ImageNet, whose bottlenecks are ResNet's with a wider 3x3.

| name                | blocks a stage | widths          | parameters  |
|---------------------|----------------|-----------------|------------:|
| cifar_wide16_4      | 2, 2, 2        | 64, 128, 256    |   2,748,890 |
| cifar_wide16_8      | 2, 2, 2        | 128, 256, 512   |  10,961,370 |
| cifar_wide28_10     | 4, 4, 4        | 160, 320, 640   |  36,479,194 |
| cifar_wide40_2      | 6, 6, 6        | 32, 64, 128     |   2,243,546 |
| cifar_wide40_4      | 6, 6, 6        | 64, 128, 256    |   8,949,210 |
| wide_resnet50_2     | 3, 4, 6, 3     | 64 ... 512, 3x3 twice as wide |  68,883,240 |
| wide_resnet101_2    | 3, 4, 23, 3    | the same        | 126,886,696 |

The stem of CIFAR's has 16 channels.
"""

import functools
from collections.abc import Callable

from cnnjax.models.preact_resnet import PreActBlock, convolution_stem, convolve_shortcut
from cnnjax.models.resnet import BottleneckBlock, ResNet, resnet50, resnet101


def _cifar(depth: int, k: int) -> Callable[..., ResNet]:
    """WRN-depth-k: three stages of (depth - 4) / 6 blocks."""
    return functools.partial(
        ResNet,
        stage_sizes=((depth - 4) // 6,) * 3,
        widths=(16 * k, 32 * k, 64 * k),
        stem_features=16,
        block=PreActBlock,
        stem=convolution_stem,
        shortcut=convolve_shortcut,
        preactivated=True,
        num_classes=10,
    )


cifar_wide16_4 = _cifar(16, 4)
cifar_wide16_8 = _cifar(16, 8)
cifar_wide28_10 = _cifar(28, 10)
cifar_wide40_2 = _cifar(40, 2)
cifar_wide40_4 = _cifar(40, 4)

_twice_as_wide = functools.partial(BottleneckBlock, base_width=128)
wide_resnet50_2 = functools.partial(resnet50, block=_twice_as_wide)
wide_resnet101_2 = functools.partial(resnet101, block=_twice_as_wide)
