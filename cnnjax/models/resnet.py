"""Residual networks for ImageNet and for CIFAR.

Sources: K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv 1512.03385):
table 1 for ImageNet, section 4.2 for CIFAR; P. Goyal et al., "Accurate, Large Minibatch SGD", 2017 (arXiv 1706.02677)
for the zero gamma.

| name           | stem     | blocks a stage  | widths             | parameters             |
|----------------|----------|-----------------|--------------------|-----------------------:|
| resnet18       | imagenet | 2, 2, 2, 2      | 64, 128, 256, 512  |             11,689,512 |
| resnet34       | imagenet | 3, 4, 6, 3      | 64, 128, 256, 512  |             21,797,672 |
| resnet50       | imagenet | 3, 4, 6, 3      | 4 x the same       |             25,557,032 |
| resnet101      | imagenet | 3, 4, 23, 3     | 4 x the same       |             44,549,160 |
| resnet152      | imagenet | 3, 8, 36, 3     | 4 x the same       |             60,192,808 |
| resnet200      | imagenet | 3, 24, 36, 3    | 4 x the same       |             64,673,832 |
| cifar_resnet20 | cifar    | 3, 3, 3         | 16, 32, 64         |    269,722 (B 272,474) |
| cifar_resnet32 | cifar    | 5, 5, 5         | 16, 32, 64         |    464,154 (B 466,906) |
| cifar_resnet44 | cifar    | 7, 7, 7         | 16, 32, 64         |    658,586 (B 661,338) |
| cifar_resnet56 | cifar    | 9, 9, 9         | 16, 32, 64         |    853,018 (B 855,770) |
| cifar_resnet110| cifar    | 18, 18, 18      | 16, 32, 64         | 1,727,962 (B 1,730,714)|
| cifar_resnet1202|cifar    | 200, 200, 200   | 16, 32, 64         |             19,421,274 |

ResNet-200 is from the paper on identity mappings (2016). ImageNet's with 1,000 classes and shortcuts B; CIFAR's with 10
and shortcuts A, as in the paper. All padding is explicit and symmetric: XLA's SAME pads a stride of 2 on one side only,
which is another network than the published weights'.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.models.layers import (
    BatchNorm,
    accepts,
    bind_norm,
    check_images,
    check_rate,
    check_remat,
    checkpointed,
    classify,
    drop_examples,
    square_conv,
)
from cnnjax.ops import conv_general_dilated, max_pool
from cnnjax.ops.errors import InputError, unknown

# Below, a block's `conv` and `norm` are module constructors that the network has bound to its types, its convolution
# and its mode: `conv(features, window, stride, pad, name=..., groups=...)` and `norm(name=...)`; `drop(y)` leaves the
# branch out now and then (stochastic depth).


def pad_channels(x: jax.Array, features: int, stride: int, *, conv: Any, norm: Any) -> jax.Array:
    """Shortcut A: every stride-th pixel, and zeros in the channels that are new. No parameters.

    [batch, h, w, c] -> [batch, ceil(h / stride), ceil(w / stride), features]. The paper doesn't say where the new
    channels go; here they come last.

    Raises:
      InputError: there are more channels than features.
    """
    if features < x.shape[-1]:
        raise InputError(
            f"widths: received {features} features after {x.shape[-1]}; allowed with shortcuts A, which add channels "
            f'of zeros: as many or more (shortcut="B" takes any)'
        )
    x = x[:, ::stride, ::stride]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))


def project(x: jax.Array, features: int, stride: int, *, conv: Any, norm: Any) -> jax.Array:
    """Shortcut B: a 1x1 convolution with the stride, then a norm.

    [batch, h, w, c] -> [batch, ceil(h / stride), ceil(w / stride), features].
    """
    return norm(name="shortcut_norm")(conv(features, 1, stride, 0, name="shortcut_conv")(x))


SHORTCUTS: dict[str, Callable[..., Any]] = {"A": pad_channels, "B": project}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: figure 5, left. [batch, h, w, c] -> [batch, h/stride, w/stride, features].

    The shortcut is the identity where the shapes agree.
    """

    features: int
    """The width of the stage, and of the output."""
    stride: int
    """The stride of the first convolution."""
    conv: Callable[..., Any]
    """Makes a convolution: `conv(features, window, stride, pad, name=...)`."""
    norm: Callable[..., Any]
    """Makes a norm: `norm(name=...)`."""
    last_norm: Callable[..., Any]
    """Makes the norm that ends the branch."""
    act: Callable[..., Any]
    """The function between the convolutions and after the sum."""
    shortcut: Callable[..., Any]
    """`shortcut(x, features, stride, conv=, norm=)`, used where the shape changes."""
    drop: Callable[..., Any]
    """What is done to the branch before the sum."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.features, 3, self.stride, 1, name="conv1")(x)
        y = self.act(self.norm(name="norm1")(y))
        y = self.conv(self.features, 3, 1, 1, name="conv2")(y)
        y = self.last_norm(name="norm2")(y)
        if x.shape != y.shape:
            x = self.shortcut(x, self.features, self.stride, conv=self.conv, norm=self.norm)
        return self.act(x + self.drop(y))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: figure 5, right. The output has 4 x features channels.

    The stride is on the 3x3 convolution ("v1.5": what torchvision, Flax and most published accuracies have). For the
    paper's own placement, on the first 1x1, give the network
    `block=functools.partial(BottleneckBlock, stride_on="1x1")`.
    """

    features: int
    """The width of the stage: of the 3x3 convolution."""
    stride: int
    """The stride of the convolution that `stride_on` names."""
    conv: Callable[..., Any]
    """Makes a convolution: `conv(features, window, stride, pad, name=...)`."""
    norm: Callable[..., Any]
    """Makes a norm: `norm(name=...)`."""
    last_norm: Callable[..., Any]
    """Makes the norm that ends the branch."""
    act: Callable[..., Any]
    """The function between the convolutions and after the sum."""
    shortcut: Callable[..., Any]
    """`shortcut(x, features, stride, conv=, norm=)`, used where the shape changes."""
    drop: Callable[..., Any]
    """What is done to the branch before the sum."""
    stride_on: str = "3x3"
    """Which convolution has the stride: "3x3" (v1.5) or "1x1" (v1)."""
    groups: int = 1
    """The groups of the 3x3 convolution: ResNeXt's cardinality."""
    base_width: int = 64
    """The width of a group of the 3x3 convolution where the stage's is 64: ResNeXt's d; 128 in wide ResNets."""

    def __post_init__(self):
        super().__post_init__()
        if self.stride_on not in ("3x3", "1x1"):
            raise unknown("stride_on", self.stride_on, ("3x3", "1x1"))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        first, second = (self.stride, 1) if self.stride_on == "1x1" else (1, self.stride)
        width = self.features * self.base_width // 64 * self.groups
        y = self.conv(width, 1, first, 0, name="conv1")(x)
        y = self.act(self.norm(name="norm1")(y))
        y = self.conv(width, 3, second, 1, groups=self.groups, name="conv2")(y)
        y = self.act(self.norm(name="norm2")(y))
        y = self.conv(4 * self.features, 1, 1, 0, name="conv3")(y)
        y = self.last_norm(name="norm3")(y)
        if x.shape != y.shape:
            x = self.shortcut(x, 4 * self.features, self.stride, conv=self.conv, norm=self.norm)
        return self.act(x + self.drop(y))


def imagenet_stem(x: jax.Array, features: int, *, conv: Any, norm: Any, act: Any, pool: Any) -> jax.Array:
    """7x7 convolution with stride 2, norm, act and 3x3 pooling with stride 2: a quarter of the size."""
    x = act(norm(name="norm1")(conv(features, 7, 2, 3, name="conv1")(x)))
    return pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def cifar_stem(x: jax.Array, features: int, *, conv: Any, norm: Any, act: Any, pool: Any) -> jax.Array:
    """3x3 convolution, norm and act: the size is kept, and nothing is pooled."""
    return act(norm(name="norm1")(conv(features, 3, 1, 1, name="conv1")(x)))


STEMS: dict[str, Callable[..., Any]] = {"imagenet": imagenet_stem, "cifar": cifar_stem}


class ResNet(nn.Module):
    """[batch, height, width, channels] -> [batch, num_classes]: stem, stages of blocks, global average, dense layer.

    The first block of every stage but the first halves the size. Convolutions have no biases: the norms have. Kernels
    start He-normal by fan-out (variance 2 / (window^2 x filters), not truncated), the dense kernel, which the paper
    leaves open, with variance 1 / fan_in.

    ResNet-20 with group norm: `create("cifar_resnet20", norm="group")`.
    """

    stage_sizes: tuple[int, ...]
    """How many blocks each stage has."""
    widths: tuple[int, ...]
    """The width of each stage."""
    block: Callable[..., Any]
    """`BasicBlock`, `BottleneckBlock` or your own with their fields."""
    stem: str | Callable[..., Any]
    """"imagenet", "cifar", or a function with their signature."""
    shortcut: str | Callable[..., Any]
    """Where the shape changes: "A" (no parameters), "B" (projection), or a function with their signature."""
    stem_features: int | None = None
    """The width of the stem; None for that of the first stage."""
    num_classes: int = 1000
    """The number of logits; 0 for the pooled features."""
    conv: Callable[..., Any] = conv_general_dilated
    """What computes the convolutions: a function with the signature of `jax.lax.conv_general_dilated`."""
    norm: Callable[..., Any] = BatchNorm
    """The constructor of the norms, such as `flax.linen.GroupNorm`."""
    act: Callable[..., Any] = nn.relu
    """The function after norms and sums."""
    pool: Callable[..., Any] = max_pool
    """The ImageNet stem's pooling: a function with the signature of `flax.linen.max_pool`."""
    preactivated: bool = False
    """Whether blocks begin with norm and act, so that the last sum is still to have them."""
    drop_path: float = 0.0
    """Stochastic depth: the part of the examples for which training leaves out the branch of the last block, linearly
    less for those before (Huang et al., "Deep Networks with Stochastic Depth", 2016). It needs
    `rngs={"dropout": key}`."""
    dropout: float = 0.0
    """The part of a block's inner map that training sets to zero, in blocks that have a place for it (`within`): 0.3
    in the paper of the wide networks. It needs `rngs={"dropout": key}`."""
    remat: bool | str = False
    """Whether blocks are computed again for the gradients rather than kept: less memory, more time; "convolutions"
    keeps what their convolutions give."""
    zero_init_residual: bool = False
    """Whether the last norm of each branch starts with scale 0, so that blocks start as identities (Goyal et al.,
    section 5.1). The paper's networks, and so the default, start with 1."""
    dtype: Any = None
    """What to compute in; None for the wider of the input's type and the parameters'."""
    param_dtype: Any = jnp.float32
    """The type of the parameters."""

    def __post_init__(self):
        super().__post_init__()
        if not callable(self.stem) and self.stem not in STEMS:
            raise unknown("stem", self.stem, STEMS)
        if not callable(self.shortcut) and self.shortcut not in SHORTCUTS:
            raise unknown("shortcut", self.shortcut, SHORTCUTS)
        if len(self.stage_sizes) != len(self.widths):
            raise InputError(f"widths: received {self.widths}; allowed: one for each of the stages {self.stage_sizes}")
        check_rate("drop_path", self.drop_path)
        check_rate("dropout", self.dropout)
        check_remat(self.remat)
        if self.dropout and not accepts(self.block, "within"):
            raise InputError(f"dropout: received {self.dropout}; allowed: 0, since {self.block} has no place for it")
        if self.zero_init_residual and not accepts(self.block, "last_norm"):
            # A branch that ends in act and convolution would have no gradient at all.
            raise InputError("zero_init_residual: received True; allowed: False, since branches don't end in a norm")
        if self.zero_init_residual and not accepts(self.norm, "scale_init"):
            raise InputError(f"zero_init_residual: received True; allowed: False, since {self.norm} has no scale")

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        check_images(x)
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        conv = functools.partial(square_conv, conv=self.conv, use_bias=False, kernel_init=init, **types)
        norm = bind_norm(self.norm, train=train, **types)
        zero = {"scale_init": nn.initializers.zeros} if self.zero_init_residual else {}
        extra: dict[str, Any] = {}
        if accepts(self.block, "last_norm"):
            extra["last_norm"] = functools.partial(norm, **zero)
        if self.dropout:
            extra["within"] = lambda y: nn.Dropout(self.dropout, deterministic=not train)(y)
        stem = STEMS[self.stem] if isinstance(self.stem, str) else self.stem
        block = functools.partial(
            checkpointed(self.block, self.remat),
            conv=conv,
            norm=norm,
            act=self.act,
            shortcut=SHORTCUTS[self.shortcut] if isinstance(self.shortcut, str) else self.shortcut,
            **extra,
        )
        x = stem(x, self.stem_features or self.widths[0], conv=conv, norm=norm, act=self.act, pool=self.pool)
        self.sow("intermediates", "stem", x)
        number, depth = 0, sum(self.stage_sizes)
        for i, (blocks, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True), 1):
            for j in range(1, blocks + 1):
                number += 1
                stride = 2 if i > 1 and j == 1 else 1
                drop = drop_examples(self.drop_path * number / depth, train=train)
                first = {"first": True} if number == 1 and accepts(self.block, "first") else {}
                x = block(width, stride, drop=drop, **first, name=f"stage{i}_block{j}")(x)
        if self.preactivated:
            x = self.act(norm(name="norm2")(x))
        self.sow("intermediates", "last_map", x)
        x = x.mean((1, 2))
        self.sow("intermediates", "pooled", x)
        return classify(x, self.num_classes, **types)


_imagenet = functools.partial(ResNet, widths=(64, 128, 256, 512), stem="imagenet", shortcut="B")
resnet18 = functools.partial(_imagenet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
resnet34 = functools.partial(_imagenet, stage_sizes=(3, 4, 6, 3), block=BasicBlock)
resnet50 = functools.partial(_imagenet, stage_sizes=(3, 4, 6, 3), block=BottleneckBlock)
resnet101 = functools.partial(_imagenet, stage_sizes=(3, 4, 23, 3), block=BottleneckBlock)
resnet152 = functools.partial(_imagenet, stage_sizes=(3, 8, 36, 3), block=BottleneckBlock)
resnet200 = functools.partial(_imagenet, stage_sizes=(3, 24, 36, 3), block=BottleneckBlock)

# As published: the stride is on the first 1x1 convolution.
resnet50_v1, resnet101_v1, resnet152_v1 = (
    functools.partial(net, block=functools.partial(BottleneckBlock, stride_on="1x1"))
    for net in (resnet50, resnet101, resnet152)
)


def _cifar(depth: int) -> Callable[..., ResNet]:
    """The CIFAR network with depth = 6n + 2: three stages of n basic blocks."""
    sizes = ((depth - 2) // 6,) * 3
    return functools.partial(
        ResNet, stage_sizes=sizes, widths=(16, 32, 64), block=BasicBlock, stem="cifar", shortcut="A", num_classes=10
    )


cifar_resnet20 = _cifar(20)
cifar_resnet32 = _cifar(32)
cifar_resnet44 = _cifar(44)
cifar_resnet56 = _cifar(56)
cifar_resnet110 = _cifar(110)
cifar_resnet1202 = _cifar(1202)
