"""Stacks of convolution, ReLU and pooling: the networks with which CNNs are taught.

| name            | input      | stages of (convolutions) - pool                              | dense   | parameters |
|-----------------|------------|--------------------------------------------------------------|---------|-----------:|
| cs231n_cifar10  | 32 x 32 x 3| (10@3x3, 10@3x3)-2, three times                              |         |      6,440 |
| convnetjs_cifar10|32 x 32 x 3| (16@5x5)-2, (20@5x5)-2, (20@5x5)-2                           |         |     22,466 |
| convnetjs_mnist | 24 x 24 x 1| (8@5x5)-2, (16@5x5)-3                                        |         |      5,994 |
| geron_fashion   | 28 x 28 x 1| (64@7x7)-2, (128@3x3, 128@3x3)-2, (256@3x3, 256@3x3)-2       | 128, 64 |  1,413,834 |

Every model ends in a dense layer of `num_classes`.

Sources: the network drawn on the front page of Stanford's CS231n, "7 layers, 7000 parameters"; A. Karpathy's ConvNetJS,
demos "CIFAR-10" and "MNIST"; A. Géron, "Hands-On Machine Learning", third edition, chapter 14.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.models.layers import check_images, check_rate, classify, square_conv
from cnnjax.ops import conv_general_dilated, max_pool


class Stage(NamedTuple):
    """Convolutions of one window, then one pooling."""

    filters: tuple[int, ...]
    """How many filters each convolution has."""
    window: int
    """The side of their square windows; odd, padded so that a convolution keeps the size."""
    pool: int
    """The side and stride of the pooling windows; what is left over at the border is dropped."""


class ConvStack(nn.Module):
    """[batch, height, width, channels] -> [batch, num_classes]: stages, then dense layers.

    The images may have any size that the pooling leaves something of. Dropout, where a model has it, is active only
    with `train=True`, and then needs `rngs={"dropout": key}`.
    """

    stages: tuple[Stage, ...]
    """The convolutional part."""
    dense: tuple[int, ...] = ()
    """The sizes of the hidden dense layers."""
    dropout: float = 0.0
    """The part of each hidden dense layer's outputs that training sets to zero."""
    num_classes: int = 10
    """The number of logits; 0 for what the last dense layer sees."""
    conv: Callable[..., Any] = conv_general_dilated
    """What computes the convolutions: a function with the signature of `jax.lax.conv_general_dilated`."""
    act: Callable[..., Any] = nn.relu
    """The function that follows every convolution and hidden dense layer."""
    pool: Callable[..., Any] = max_pool
    """The pooling: a function with the signature of `flax.linen.max_pool`."""
    kernel_init: Callable[..., Any] = nn.initializers.he_normal()
    """The initializer of the kernels before `act`."""
    bias_init: Callable[..., Any] = nn.initializers.zeros
    """The initializer of the biases before `act`."""
    output_init: Callable[..., Any] = nn.initializers.lecun_normal()
    """The initializer of the last dense kernel; its bias starts at zero."""
    dtype: Any = None
    """What to compute in; None for the wider of the input's type and the parameters'."""
    param_dtype: Any = jnp.float32
    """The type of the parameters."""

    def __post_init__(self):
        super().__post_init__()
        check_rate("dropout", self.dropout)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        check_images(x, smallest=math.prod(stage.pool for stage in self.stages))
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        init: dict[str, Any] = {"kernel_init": self.kernel_init, "bias_init": self.bias_init}
        conv = functools.partial(square_conv, conv=self.conv, **init, **types)
        number = itertools.count(1)
        for i, stage in enumerate(self.stages, 1):
            for filters in stage.filters:
                x = self.act(conv(filters, stage.window, pad=stage.window // 2, name=f"conv{next(number)}")(x))
            x = self.pool(x, (stage.pool,) * 2, (stage.pool,) * 2)
            self.sow("intermediates", f"stage{i}", x)
        x = x.reshape(x.shape[0], -1)
        for i, features in enumerate(self.dense, 1):
            x = self.act(nn.Dense(features, **init, **types, name=f"dense{i}")(x))
            x = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout{i}")(x)
        return classify(x, self.num_classes, kernel_init=self.output_init, **types)


def _normal(gain: float) -> Callable[..., Any]:
    """Normal with variance gain / fan_in, not truncated, as NumPy's and JavaScript's randn are."""
    return nn.initializers.variance_scaling(gain, "fan_in", "normal")


# The picture gives no initialisation. This is what the course's notes recommend: randn * sqrt(2 / n), zero biases.
cs231n_cifar10 = functools.partial(
    ConvStack, stages=(Stage((10, 10), window=3, pool=2),) * 3, kernel_init=_normal(2.0), output_init=_normal(2.0)
)

# ConvNetJS: randn * sqrt(1 / n), and biases of 0.1 before a ReLU.
_convnetjs = functools.partial(
    ConvStack, kernel_init=_normal(1.0), bias_init=nn.initializers.constant(0.1), output_init=_normal(1.0)
)
convnetjs_cifar10 = functools.partial(_convnetjs, stages=(Stage((16,), 5, 2), Stage((20,), 5, 2), Stage((20,), 5, 2)))
convnetjs_mnist = functools.partial(_convnetjs, stages=(Stage((8,), 5, 2), Stage((16,), 5, 3)))

# The book asks for he_normal in every layer but the last, which has Keras's default.
geron_fashion = functools.partial(
    ConvStack,
    stages=(Stage((64,), 7, 2), Stage((128, 128), 3, 2), Stage((256, 256), 3, 2)),
    dense=(128, 64),
    dropout=0.5,
    kernel_init=nn.initializers.he_normal(),
    output_init=nn.initializers.glorot_uniform(),
)
