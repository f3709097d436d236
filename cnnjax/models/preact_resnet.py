"""Residual networks with norm and activation before the convolutions, so that shortcuts stay identities ("v2").

Source: K. He, X. Zhang, S. Ren, J. Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016 (arXiv 1603.05027):
figure 1b, tables 3 and 5, appendix. Where the shape changes, the shortcut begins after the block's first norm and
activation (appendix); the stem is a convolution alone.

| name                   | blocks a stage | widths             | parameters |
|------------------------|----------------|--------------------|-----------:|
| resnet18_v2            | 2, 2, 2, 2     | 64, 128, 256, 512  | 11,687,720 |
| resnet34_v2            | 3, 4, 6, 3     | 64, 128, 256, 512  | 21,795,880 |
| resnet50_v2            | 3, 4, 6, 3     | 4 x the same       | 25,549,352 |
| resnet101_v2           | 3, 4, 23, 3    | 4 x the same       | 44,541,480 |
| resnet152_v2           | 3, 8, 36, 3    | 4 x the same       | 60,185,128 |
| cifar_preact_resnet110 | 18, 18, 18     | 16, 32, 64         |  1,730,522 |
| cifar_preact_resnet164 | 18, 18, 18     | 4 x 16, 32, 64     |  1,703,258 |
| cifar_preact_resnet1001| 111, 111, 111  | 4 x 16, 32, 64     | 10,327,706 |

The shortcuts that change shape are projections (1x1 convolutions), without a norm. In bottlenecks the stride is on the
3x3 convolution, as in Keras and Haiku; the authors' code has it on the first 1x1. The ImageNet stem pools before the
first block's norm, as there, and not after it.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from cnnjax.models.resnet import ResNet


def convolve_shortcut(x: jax.Array, features: int, stride: int, *, conv: Any, norm: Any) -> jax.Array:
    """A 1x1 convolution with the stride. [batch, h, w, c] -> [batch, ceil(h / stride), ceil(w / stride), features]."""
    return conv(features, 1, stride, 0, name="shortcut_conv")(x)


def convolution_stem(x: jax.Array, features: int, *, conv: Any, norm: Any, act: Any, pool: Any) -> jax.Array:
    """3x3 convolution: the size is kept."""
    return conv(features, 3, 1, 1, name="conv1")(x)


def pooled_stem(x: jax.Array, features: int, *, conv: Any, norm: Any, act: Any, pool: Any) -> jax.Array:
    """7x7 convolution with stride 2 and 3x3 pooling with stride 2: a quarter of the size."""
    return pool(conv(features, 7, 2, 3, name="conv1")(x), (3, 3), (2, 2), ((1, 1), (1, 1)))


class PreActBlock(nn.Module):
    """Twice norm, act and 3x3 convolution, and a shortcut.

    [batch, h, w, c] -> [batch, h / stride, w / stride, features].
    """

    features: int
    """The width of the stage, and of the output."""
    stride: int
    """The stride of the first convolution."""
    conv: Callable[..., Any]
    """Makes a convolution: `conv(features, window, stride, pad, name=...)`."""
    norm: Callable[..., Any]
    """Makes a norm: `norm(name=...)`."""
    act: Callable[..., Any]
    """The function after each norm."""
    shortcut: Callable[..., Any]
    """`shortcut(x, features, stride, conv=, norm=)`, used where the shape changes."""
    drop: Callable[..., Any]
    """What is done to the branch before the sum."""
    first: bool = False
    """Whether it is the network's first: its shortcut too begins after the first norm and activation (appendix)."""
    within: Callable[..., Any] = lambda y: y
    """What is done to the branch before its last convolution: the wide networks' dropout."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        active = self.act(self.norm(name="norm1")(x))
        y = self.conv(self.features, 3, self.stride, 1, name="conv1")(active)
        y = self.within(self.act(self.norm(name="norm2")(y)))
        y = self.conv(self.features, 3, 1, 1, name="conv2")(y)
        if x.shape != y.shape:
            x = self.shortcut(active, self.features, self.stride, conv=self.conv, norm=self.norm)
        elif self.first:
            x = active
        return x + self.drop(y)


class PreActBottleneck(nn.Module):
    """Norm, act and 1x1, 3x3 and 1x1 convolutions, and a shortcut. The output has 4 x features channels."""

    features: int
    """The width of the stage: of the 3x3 convolution."""
    stride: int
    """The stride of the 3x3 convolution."""
    conv: Callable[..., Any]
    """Makes a convolution: `conv(features, window, stride, pad, name=...)`."""
    norm: Callable[..., Any]
    """Makes a norm: `norm(name=...)`."""
    act: Callable[..., Any]
    """The function after each norm."""
    shortcut: Callable[..., Any]
    """`shortcut(x, features, stride, conv=, norm=)`, used where the shape changes."""
    drop: Callable[..., Any]
    """What is done to the branch before the sum."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        active = self.act(self.norm(name="norm1")(x))
        y = self.conv(self.features, 1, 1, 0, name="conv1")(active)
        y = self.conv(self.features, 3, self.stride, 1, name="conv2")(self.act(self.norm(name="norm2")(y)))
        y = self.conv(4 * self.features, 1, 1, 0, name="conv3")(self.act(self.norm(name="norm3")(y)))
        if x.shape != y.shape:
            x = self.shortcut(active, 4 * self.features, self.stride, conv=self.conv, norm=self.norm)
        return x + self.drop(y)


_preact = functools.partial(ResNet, shortcut=convolve_shortcut, preactivated=True)
_imagenet = functools.partial(_preact, widths=(64, 128, 256, 512), stem=pooled_stem)
resnet18_v2 = functools.partial(_imagenet, stage_sizes=(2, 2, 2, 2), block=PreActBlock)
resnet34_v2 = functools.partial(_imagenet, stage_sizes=(3, 4, 6, 3), block=PreActBlock)
resnet50_v2 = functools.partial(_imagenet, stage_sizes=(3, 4, 6, 3), block=PreActBottleneck)
resnet101_v2 = functools.partial(_imagenet, stage_sizes=(3, 4, 23, 3), block=PreActBottleneck)
resnet152_v2 = functools.partial(_imagenet, stage_sizes=(3, 8, 36, 3), block=PreActBottleneck)

_cifar = functools.partial(_preact, widths=(16, 32, 64), stem=convolution_stem, num_classes=10)
cifar_preact_resnet110 = functools.partial(_cifar, stage_sizes=(18,) * 3, block=PreActBlock)
cifar_preact_resnet164 = functools.partial(_cifar, stage_sizes=(18,) * 3, block=PreActBottleneck)
cifar_preact_resnet1001 = functools.partial(_cifar, stage_sizes=(111,) * 3, block=PreActBottleneck)
