"""What convolution is compared with: the same task without shared weights, and without local ones.

| name             | what                                                    | parameters (28x28x1) |
|------------------|---------------------------------------------------------|---------------------:|
| fully_connected  | dense layers of 300 and 100 units                       |              266,610 |
| locally_connected| LeNet-5 of today, every position with its own kernels   |              423,038 |

Sources: Y. LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998, section III (the network
28x28-300-100-10); Y. LeCun, "Generalization and network design strategies", 1989 (local connections without sharing).
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.models.conv_layers import ConvLocal
from cnnjax.models.layers import check_images, classify
from cnnjax.models.lenet import centre
from cnnjax.ops import max_pool


class FullyConnected(nn.Module):
    """[batch, height, width, channels] -> [batch, num_classes]: every unit sees the whole image."""

    dense: tuple[int, ...] = (300, 100)
    """The sizes of the hidden layers."""
    num_classes: int = 10
    """The number of logits; 0 for the last hidden layer."""
    act: Callable[..., Any] = nn.relu
    """The function after hidden layers."""
    dtype: Any = None
    """What to compute in; None for the wider of the input's type and the parameters'."""
    param_dtype: Any = jnp.float32
    """The type of the parameters."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        check_images(x)
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = x.reshape(x.shape[0], -1)
        for i, features in enumerate(self.dense, 1):
            x = self.act(nn.Dense(features, kernel_init=nn.initializers.he_normal(), name=f"dense{i}", **types)(x))
        return classify(x, self.num_classes, **types)


class LocallyConnected(nn.Module):
    """`LeNet5Modern` without shared weights: each unit has the receptive field that it has there, and its own kernel.

    [batch, 28 or 32, 28 or 32, channels] -> [batch, num_classes]. The parameters belong to one size of image.
    """

    num_classes: int = 10
    """The number of logits; 0 for the last hidden layer."""
    act: Callable[..., Any] = nn.relu
    """The function that follows C1, C3, C5 and F6."""
    pool: Callable[..., Any] = max_pool
    """S2 and S4: a function with the signature of `flax.linen.max_pool`."""
    background: float = 0.0
    """The value around 28x28 images."""
    dtype: Any = None
    """What to compute in; None for the wider of the input's type and the parameters'."""
    param_dtype: Any = jnp.float32
    """The type of the parameters."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        check_images(x, sizes=(28, 32))
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = centre(x, self.background)
        for name, features in (("C1", 6), ("C3", 16)):
            init = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal", in_axis=-2, batch_axis=(0, 1))
            x = self.act(ConvLocal(features, (5, 5), padding="VALID", kernel_init=init, name=name, **types)(x))
            x = self.pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for name, features in (("C5", 120), ("F6", 84)):
            x = self.act(nn.Dense(features, kernel_init=nn.initializers.he_normal(), name=name, **types)(x))
        return classify(x, self.num_classes, **types)
