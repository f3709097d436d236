"""AlexNet: the grouped network of the paper, and the smaller one of "one weird trick".

Sources: A. Krizhevsky, I. Sutskever, G. E. Hinton, "ImageNet Classification with Deep Convolutional Neural Networks",
NIPS 2012: figure 2, sections 3.3 to 3.5, 4.2 and 5. A. Krizhevsky, "One weird trick for parallelizing convolutional
neural networks", 2014 (arXiv 1404.5997), whose network is torchvision's `alexnet`.

| name                | first convolution | groups in layers 2, 4, 5 | normalisation | parameters |
|---------------------|-------------------|--------------------------|---------------|-----------:|
| alexnet             | 96 @ 11x11 /4     | 2                        | LRN           | 60,965,224 |
| alexnet_ungrouped   | 96 @ 11x11 /4     | 1                        | LRN           | 62,378,344 |
| alexnet_torchvision | 64 @ 11x11 /4     | 1                        | none          | 61,100,840 |

The paper says 224x224; its maps of 55, 27, 13 and 6 come from 227x227. There its groups are the two GPUs. Weights
start normal with deviation 0.01, biases of layers 2, 4 and 5 and of the hidden dense layers at 1.
"""

import functools

import flax.linen as nn

from cnnjax.models.plain import Conv, Lrn, PlainNet, Pool


def _layers(groups: int) -> tuple[Conv | Pool | Lrn, ...]:
    """The convolutional part, with 55, 27, 13 and 6 on a side."""
    return (
        Conv(96, 11, stride=4),
        Lrn(),
        Pool(3, 2),
        Conv(256, 5, pad=2, groups=groups, bias=1),
        Lrn(),
        Pool(3, 2),
        Conv(384, 3, pad=1),
        Conv(384, 3, pad=1, groups=groups, bias=1),
        Conv(256, 3, pad=1, groups=groups, bias=1),
        Pool(3, 2),
    )


_alexnet = functools.partial(PlainNet, grid=(6, 6), kernel_init=nn.initializers.normal(0.01), dense_bias=1.0)
alexnet = functools.partial(_alexnet, layers=_layers(groups=2))
alexnet_ungrouped = functools.partial(_alexnet, layers=_layers(groups=1))

_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # what torchvision leaves to torch's layers

alexnet_torchvision = functools.partial(
    PlainNet,
    layers=(
        Conv(64, 11, stride=4, pad=2),
        Pool(3, 2),
        Conv(192, 5, pad=2),
        Pool(3, 2),
        Conv(384, 3, pad=1),
        Conv(256, 3, pad=1),
        Conv(256, 3, pad=1),
        Pool(3, 2),
    ),
    grid=(6, 6),
    dropout_before=True,
    kernel_init=_uniform,
    dense_init=_uniform,
)
