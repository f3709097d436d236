"""Networks that are one layer after another: convolutions and poolings by a table, then dense layers.

AlexNet, ZFNet and VGG are such tables; their files have them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.models.layers import (
    Bias,
    bind_norm,
    check_images,
    check_rate,
    check_remat,
    checkpointed,
    classify,
    square_conv,
)
from cnnjax.ops import adaptive_avg_pool, conv_general_dilated, local_response_norm, max_pool


class Conv(NamedTuple):
    """A square convolution, then norm, if there is any, and activation."""

    features: int
    """How many filters there are."""
    window: int
    """The side of their windows."""
    stride: int = 1
    """The distance between neighbouring windows."""
    pad: int = 0
    """The zeros on every side."""
    groups: int = 1
    """How many groups the channels are in, each seen by as many of the filters."""
    bias: float = 0.0
    """What the biases start at."""


class Pool(NamedTuple):
    """A pooling by square windows."""

    window: int
    """The side of the windows."""
    stride: int
    """The distance between neighbouring windows."""
    pad: int = 0
    """What is added on every side."""


class Lrn(NamedTuple):
    """A normalisation over neighbouring channels, by the network's `lrn`."""


Layer = Conv | Pool | Lrn


class PlainNet(nn.Module):
    """[batch, height, width, channels] -> [batch, num_classes]: the table, then dense layers.

    Before the dense layers the map is averaged to `grid`, which changes nothing at the size of image a network was made
    for, and lets it take others. Dropout is active only with `train=True`, and then needs `rngs={"dropout": key}`.
    """

    layers: tuple[Layer, ...]
    """The convolutional part."""
    grid: tuple[int, int]
    """Height and width of the map that the dense layers see."""
    dense: tuple[int, ...] = (4096, 4096)
    """The sizes of the hidden dense layers."""
    dropout: float = 0.5
    """The part of each hidden dense layer's outputs that training sets to zero."""
    dropout_before: bool = False
    """Whether it is the inputs of the hidden dense layers instead."""
    num_classes: int = 1000
    """The number of logits; 0 for what the last dense layer sees."""
    conv: Callable[..., Any] = conv_general_dilated
    """What computes the convolutions: a function with the signature of `jax.lax.conv_general_dilated`."""
    norm: Callable[..., Any] | None = None
    """The constructor of a norm after each convolution, such as `flax.linen.GroupNorm`; None for none."""
    lrn: Callable[..., Any] = local_response_norm
    """What computes `Lrn`: a function of [batch, height, width, channels]."""
    act: Callable[..., Any] = nn.relu
    """The function after convolutions and hidden dense layers."""
    pool: Callable[..., Any] = max_pool
    """The pooling: a function with the signature of `flax.linen.max_pool`."""
    kernel_init: Callable[..., Any] = nn.initializers.he_normal()
    """The initializer of the convolutions' kernels."""
    dense_init: Callable[..., Any] = nn.initializers.normal(0.01)
    """The initializer of the dense kernels."""
    dense_bias: float = 0.0
    """What the hidden dense layers' biases start at."""
    remat: bool | str = False
    """Whether each stage, up to its pooling, is computed again for the gradients rather than kept; "convolutions" keeps
    what its convolutions give."""
    dtype: Any = None
    """What to compute in; None for the wider of the input's type and the parameters'."""
    param_dtype: Any = jnp.float32
    """The type of the parameters."""

    def __post_init__(self):
        super().__post_init__()
        check_rate("dropout", self.dropout)
        check_remat(self.remat)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        check_images(x, smallest=smallest_input(self.layers))
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        # Convolutions keep their biases, so that no norm leaves nothing to add.
        norm = None if self.norm in (None, Bias) else bind_norm(self.norm, train=train, **types)

        def compute(self, x: jax.Array, layers: Sequence[tuple[int, Layer]]) -> jax.Array:
            for i, layer in layers:
                match layer:
                    case Conv():
                        x = square_conv(
                            layer.features,
                            layer.window,
                            layer.stride,
                            layer.pad,
                            groups=layer.groups,
                            conv=self.conv,
                            kernel_init=self.kernel_init,
                            bias_init=nn.initializers.constant(layer.bias),
                            name=f"conv{i}",
                            **types,
                        )(x)
                        x = self.act(x if norm is None else norm(name=f"norm{i}")(x))
                    case Pool():
                        x = self.pool(x, (layer.window,) * 2, (layer.stride,) * 2, ((layer.pad,) * 2,) * 2)
                    case Lrn():
                        x = self.lrn(x)
            return x

        for i, stage in enumerate(stages(self.layers), 1):
            part = lambda self, x, stage=stage: compute(self, x, stage)
            x = checkpointed(part, self.remat)(self, x)
            self.sow("intermediates", f"stage{i}", x)
        x = adaptive_avg_pool(x, self.grid)
        x = x.reshape(x.shape[0], -1)
        init: dict[str, Any] = {"kernel_init": self.dense_init, "bias_init": nn.initializers.constant(self.dense_bias)}
        drop = lambda i: nn.Dropout(self.dropout, deterministic=not train, name=f"dropout{i}")
        for i, features in enumerate(self.dense, 1):
            x = drop(i)(x) if self.dropout_before else x
            x = self.act(nn.Dense(features, **init, **types, name=f"dense{i}")(x))
            x = x if self.dropout_before else drop(i)(x)
        return classify(x, self.num_classes, kernel_init=self.dense_init, **types)


def stages(layers: Sequence[Layer]) -> list[list[tuple[int, Layer]]]:
    """The layers, each with the number of its convolution or of the last one before, up to a pooling each."""
    parts: list[list[tuple[int, Layer]]] = [[]]
    number = 0
    for layer in layers:
        number += isinstance(layer, Conv)
        parts[-1].append((number, layer))
        if isinstance(layer, Pool):
            parts.append([])
    return [part for part in parts if part]


def smallest_input(layers: Sequence[Layer]) -> int:
    """The least side of an image of which every layer leaves something."""
    side = 1
    for layer in reversed(layers):
        if not isinstance(layer, Lrn):
            side = max(1, (side - 1) * layer.stride + layer.window - 2 * layer.pad)
    return side
