"""DenseNet: every layer sees all layers before it.

Source: G. Huang, Z. Liu, L. van der Maaten, K. Q. Weinberger, "Densely Connected Convolutional Networks", CVPR 2017
(arXiv 1608.06993): section 3, table 1 for ImageNet and table 2 for CIFAR.

| name                     | layers a block | k  | bottleneck | compression | parameters |
|--------------------------|----------------|---:|------------|------------:|-----------:|
| densenet121              | 6, 12, 24, 16  | 32 | yes        | 0.5         |  7,978,856 |
| densenet161              | 6, 12, 36, 24  | 48 | yes        | 0.5         | 28,681,000 |
| densenet169              | 6, 12, 32, 32  | 32 | yes        | 0.5         | 14,149,480 |
| densenet201              | 6, 12, 48, 32  | 32 | yes        | 0.5         | 20,013,928 |
| cifar_densenet40_12      | 12, 12, 12     | 12 | no         | 1           |  1,019,722 |
| cifar_densenet100_12     | 32, 32, 32     | 12 | no         | 1           |  6,979,642 |
| cifar_densenet100_24     | 32, 32, 32     | 24 | no         | 1           | 27,249,082 |
| cifar_densenet_bc100_12  | 16, 16, 16     | 12 | yes        | 0.5         |    769,162 |
| cifar_densenet_bc250_24  | 41, 41, 41     | 24 | yes        | 0.5         | 15,324,406 |
| cifar_densenet_bc190_40  | 31, 31, 31     | 40 | yes        | 0.5         | 25,624,430 |

ImageNet's with 1,000 classes, CIFAR's with 10. Kernels start He-normal by fan-out, as in the
authors' code (torchvision's by fan-in).
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.models.layers import (
    BatchNorm,
    bind_norm,
    check_images,
    check_rate,
    check_remat,
    checkpointed,
    classify,
    square_conv,
)
from cnnjax.models.preact_resnet import convolution_stem
from cnnjax.models.resnet import imagenet_stem
from cnnjax.ops import avg_pool, conv_general_dilated, max_pool
from cnnjax.ops.errors import InputError, unknown


class DenseLayer(nn.Module):
    """H of equation 2, beside what it sees: [batch, h, w, c] -> [batch, h, w, c + growth].

    norm, act, 3x3 convolution; in a bottleneck after norm, act and a 1x1 convolution to 4 x growth.
    """

    growth: int
    """k, the channels it adds."""
    bottleneck: bool
    """Whether there is a 1x1 convolution before."""
    conv: Callable[..., Any]
    """Makes a convolution: `conv(features, window, stride, pad, name=...)`."""
    norm: Callable[..., Any]
    """Makes a norm: `norm(name=...)`."""
    act: Callable[..., Any]
    """The function before the convolutions."""
    drop: Callable[..., Any]
    """Makes the dropout after each convolution: `drop(name=...)`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        if self.bottleneck:
            y = self.conv(4 * self.growth, 1, 1, 0, name="conv1")(self.act(self.norm(name="norm1")(y)))
            y = self.drop(name="dropout1")(y)
        y = self.conv(self.growth, 3, 1, 1, name="conv2")(self.act(self.norm(name="norm2")(y)))
        return jnp.concatenate([x, self.drop(name="dropout2")(y)], -1)


class Transition(nn.Module):
    """Between blocks: norm, act, 1x1 convolution, 2x2 average. [batch, h, w, c] -> [batch, h/2, w/2, features]."""

    features: int
    """How many channels are left."""
    conv: Callable[..., Any]
    """As for `DenseLayer`."""
    norm: Callable[..., Any]
    """As for `DenseLayer`."""
    act: Callable[..., Any]
    """The function before the convolution."""
    pool: Callable[..., Any]
    """The pooling: a function with the signature of `flax.linen.avg_pool`."""
    drop: Callable[..., Any]
    """As for `DenseLayer`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(self.features, 1, 1, 0, name="conv")(self.act(self.norm(name="norm")(x)))
        return self.pool(self.drop(name="dropout")(x), (2, 2), (2, 2))


STEMS: dict[str, Callable[..., Any]] = {"imagenet": imagenet_stem, "cifar": convolution_stem}


class DenseNet(nn.Module):
    """[batch, height, width, channels] -> [batch, num_classes]: stem, dense blocks, global average, dense layer.

    Convolutions have no biases. Dropout is active only with `train=True`, and then needs `rngs={"dropout": key}`.
    """

    block_sizes: tuple[int, ...]
    """How many layers each block has."""
    growth: int
    """k, the channels that each layer adds."""
    stem: str | Callable[..., Any]
    """"imagenet" (7x7 /2, norm, act, pooling), "cifar" (3x3), or a function with the signature of
    `cnnjax.models.resnet.imagenet_stem`."""
    stem_features: int
    """The channels of the stem."""
    bottleneck: bool = True
    """Whether layers have a 1x1 convolution before the 3x3 one: "B"."""
    compression: float = 0.5
    """The part of the channels that a transition keeps: "C", theta."""
    dropout: float = 0.0
    """The part of each convolution's outputs, but the stem's, that training sets to zero; the paper's is 0.2 without
    augmentation. (torchvision has it at the end of layers alone.)"""
    num_classes: int = 1000
    """The number of logits; 0 for the pooled features."""
    conv: Callable[..., Any] = conv_general_dilated
    """What computes the convolutions: a function with the signature of `jax.lax.conv_general_dilated`."""
    norm: Callable[..., Any] = BatchNorm
    """The constructor of the norms, such as `flax.linen.GroupNorm`."""
    act: Callable[..., Any] = nn.relu
    """The function after norms."""
    pool: Callable[..., Any] = avg_pool
    """The transitions' pooling: a function with the signature of `flax.linen.avg_pool`."""
    stem_pool: Callable[..., Any] = max_pool
    """The ImageNet stem's pooling: a function with the signature of `flax.linen.max_pool`."""
    remat: bool | str = False
    """Whether layers are computed again for the gradients rather than kept: less memory, more time; "convolutions"
    keeps what their convolutions give."""
    dtype: Any = None
    """What to compute in; None for the wider of the input's type and the parameters'."""
    param_dtype: Any = jnp.float32
    """The type of the parameters."""

    def __post_init__(self):
        super().__post_init__()
        if not callable(self.stem) and self.stem not in STEMS:
            raise unknown("stem", self.stem, STEMS)
        if not 0 < self.compression <= 1:
            raise InputError(f"compression: received {self.compression}; allowed: more than 0 and at most 1")
        check_rate("dropout", self.dropout)
        check_remat(self.remat)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        last = 2 ** (len(self.block_sizes) - 1)  # what the transitions halve to 1
        check_images(x, smallest=4 * last - 3 if self.stem == "imagenet" else last)
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        conv = functools.partial(square_conv, conv=self.conv, use_bias=False, kernel_init=init, **types)
        norm = bind_norm(self.norm, train=train, **types)
        drop = functools.partial(nn.Dropout, self.dropout, deterministic=not train)
        layer = functools.partial(
            checkpointed(DenseLayer, self.remat),
            self.growth,
            self.bottleneck,
            conv=conv,
            norm=norm,
            act=self.act,
            drop=drop,
        )
        stem = STEMS[self.stem] if isinstance(self.stem, str) else self.stem
        x = stem(x, self.stem_features, conv=conv, norm=norm, act=self.act, pool=self.stem_pool)
        self.sow("intermediates", "stem", x)
        for i, layers in enumerate(self.block_sizes, 1):
            for j in range(1, layers + 1):
                x = layer(name=f"block{i}_layer{j}")(x)
            if i < len(self.block_sizes):
                features = int(x.shape[-1] * self.compression)
                x = Transition(features, conv, norm, self.act, self.pool, drop, name=f"transition{i}")(x)
        x = self.act(norm(name="norm2")(x))
        self.sow("intermediates", "last_map", x)
        x = x.mean((1, 2))
        self.sow("intermediates", "pooled", x)
        return classify(x, self.num_classes, **types)


_imagenet = functools.partial(DenseNet, growth=32, stem="imagenet", stem_features=64)
densenet121 = functools.partial(_imagenet, block_sizes=(6, 12, 24, 16))
densenet161 = functools.partial(_imagenet, block_sizes=(6, 12, 36, 24), growth=48, stem_features=96)
densenet169 = functools.partial(_imagenet, block_sizes=(6, 12, 32, 32))
densenet201 = functools.partial(_imagenet, block_sizes=(6, 12, 48, 32))


def _cifar(depth: int, growth: int) -> Callable[..., DenseNet]:
    """DenseNet (L = depth, k = growth) for CIFAR: three blocks of (L - 4) / 3 layers."""
    sizes = ((depth - 4) // 3,) * 3
    return functools.partial(
        _cifar_bc(depth, growth), block_sizes=sizes, stem_features=16, bottleneck=False, compression=1
    )


def _cifar_bc(depth: int, growth: int) -> Callable[..., DenseNet]:
    """DenseNet-BC for CIFAR: three blocks of (L - 4) / 6 layers of two convolutions, 2 k channels to begin with."""
    sizes = ((depth - 4) // 6,) * 3
    return functools.partial(
        DenseNet, block_sizes=sizes, growth=growth, stem="cifar", stem_features=2 * growth, num_classes=10
    )


cifar_densenet40_12 = _cifar(40, 12)
cifar_densenet100_12 = _cifar(100, 12)
cifar_densenet100_24 = _cifar(100, 24)
cifar_densenet_bc100_12 = _cifar_bc(100, 12)
cifar_densenet_bc250_24 = _cifar_bc(250, 24)
cifar_densenet_bc190_40 = _cifar_bc(190, 40)
