"""ZFNet: AlexNet with smaller first windows and strides, chosen by looking at what its units see.

Source: M. D. Zeiler, R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014 (arXiv 1311.2901):
figure 3 and section 4.1. Maps of 110, 55, 26, 13 and 6 on a side from 224x224; 62,357,608 parameters. Here, as in the
figure, responses are pooled and then normalised. Weights start normal with deviation 0.01, biases at 0 (section 3).
"""

import functools

import flax.linen as nn

from cnnjax.models.plain import Conv, Lrn, PlainNet, Pool

zfnet = functools.partial(
    PlainNet,
    layers=(
        Conv(96, 7, stride=2, pad=1),
        Pool(3, 2, pad=1),
        Lrn(),
        Conv(256, 5, stride=2),
        Pool(3, 2, pad=1),
        Lrn(),
        Conv(384, 3, pad=1),
        Conv(384, 3, pad=1),
        Conv(256, 3, pad=1),
        Pool(3, 2),
    ),
    grid=(6, 6),
    kernel_init=nn.initializers.normal(0.01),
)
