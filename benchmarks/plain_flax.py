"""The networks of the benchmarks as a careful Flax user writes them without cnnjax: `flax.linen` and nothing else.

Each has the architecture and the parameters of cnnjax's model of that name, created in the same order (which is how
`step.py` hands all contestants the same ones), and Flax's own convolutions, pooling and norms.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

halve = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))


class LeNet5Modern(nn.Module):
    """LeNet-5 of today: [batch, 28, 28, 1] -> [batch, 10]."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        conv = functools.partial(nn.Conv, kernel_size=(5, 5), padding="VALID", dtype=self.dtype)
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        x = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
        x = halve(nn.relu(conv(6)(x)))
        x = halve(nn.relu(conv(16)(x)))
        x = x.reshape(len(x), -1)
        x = nn.relu(dense(120)(x))
        x = nn.relu(dense(84)(x))
        return dense(10)(x).astype(jnp.float32)


class ConvNetJS(nn.Module):
    """ConvNetJS's network for CIFAR-10: [batch, 32, 32, 3] -> [batch, 10]."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        for filters in (16, 20, 20):
            x = halve(nn.relu(nn.Conv(filters, (5, 5), dtype=self.dtype)(x)))
        x = x.reshape(len(x), -1)
        return nn.Dense(10, dtype=self.dtype)(x).astype(jnp.float32)


class GeronFashion(nn.Module):
    """Géron's network for Fashion-MNIST, with dropout: [batch, 28, 28, 1] -> [batch, 10]."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), dtype=self.dtype)
        x = halve(nn.relu(conv(64, kernel_size=(7, 7))(x)))
        for filters in (128, 256):
            x = nn.relu(conv(filters)(x))
            x = halve(nn.relu(conv(filters)(x)))
        x = x.reshape(len(x), -1)
        for features in (128, 64):
            x = nn.relu(nn.Dense(features, dtype=self.dtype)(x))
            x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(10, dtype=self.dtype)(x).astype(jnp.float32)


class ResNet(nn.Module):
    """A residual network of basic blocks for small images: [batch, 32, 32, 3] -> [batch, 10].

    Where the shape changes, the shortcut is a 1x1 convolution with its norm (`project`), or else every second pixel
    and channels of zeros.
    """

    widths: tuple[int, ...]
    blocks: int
    project: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        conv3 = functools.partial(conv, kernel_size=(3, 3), padding=((1, 1), (1, 1)))
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype
        )
        x = nn.relu(norm()(conv3(self.widths[0])(x)))
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                y = nn.relu(norm()(conv3(width, strides=(stride, stride))(x)))
                y = norm()(conv3(width)(y))
                if x.shape != y.shape and self.project:
                    x = norm()(conv(width, kernel_size=(1, 1), strides=(stride, stride))(x))
                elif x.shape != y.shape:
                    x = jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, width - x.shape[-1])))
                x = nn.relu(x + y)
        x = x.mean((1, 2))
        return nn.Dense(10, dtype=self.dtype)(x).astype(jnp.float32)


cifar_resnet20 = functools.partial(ResNet, widths=(16, 32, 64), blocks=3, project=False)
resnet18 = functools.partial(ResNet, widths=(64, 128, 256, 512), blocks=2, project=True)
