"""GoogLeNet: Inception modules, with auxiliary classifiers while it trains.

Source: C. Szegedy et al., "Going Deeper with Convolutions", CVPR 2015 (arXiv 1409.4842): table 1, figure 3 and
section 5. Where the paper is silent (pooling windows may reach over the lower and right border; the order of pooling
and normalisation, and its constants; initialisation) this is the network of the BVLC model zoo.

| name                  | norm  | widest branch | parameters | with both auxiliary heads |
|-----------------------|-------|---------------|-----------:|--------------------------:|
| googlenet             | LRN   | 5x5           |  6,998,552 |                13,378,280 |
| googlenet_torchvision | batch | 3x3           |  6,624,904 |                13,004,888 |

The last is torchvision's `googlenet`, whose authors took 3x3 for 5x5 by mistake (pytorch/vision#906); with
`widest=5` it has 7,005,832 and 13,385,816 parameters.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.models.layers import (
    BatchNorm,
    as_logits,
    bind_norm,
    check_images,
    check_rate,
    check_remat,
    checkpointed,
    classify,
    square_conv,
)
from cnnjax.ops import adaptive_avg_pool, avg_pool, conv_general_dilated, local_response_norm, max_pool
from cnnjax.ops.errors import InputError

_MEAN, _STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # of ImageNet's pixels in [0, 1]


class Widths(NamedTuple):
    """The filters of an Inception module: a row of table 1."""

    one: int
    """1x1."""
    reduce3: int
    """1x1 before 3x3."""
    three: int
    """3x3."""
    reduce5: int
    """1x1 before 5x5."""
    five: int
    """5x5."""
    project: int
    """1x1 after pooling."""


INCEPTIONS = {
    "3a": Widths(64, 96, 128, 16, 32, 32),
    "3b": Widths(128, 128, 192, 32, 96, 64),
    "4a": Widths(192, 96, 208, 16, 48, 64),
    "4b": Widths(160, 112, 224, 24, 64, 64),
    "4c": Widths(128, 128, 256, 24, 64, 64),
    "4d": Widths(112, 144, 288, 32, 64, 64),
    "4e": Widths(256, 160, 320, 32, 128, 128),
    "5a": Widths(256, 160, 320, 32, 128, 128),
    "5b": Widths(384, 192, 384, 48, 128, 128),
}


class ConvUnit(nn.Module):
    """A square convolution that keeps the size at stride 1, norm if there is any, and activation."""

    features: int
    """How many filters there are."""
    window: int
    """The side of their windows."""
    conv: Callable[..., Any]
    """Makes a convolution: `conv(features, window, stride, pad, name=...)`."""
    norm: Callable[..., Any] | None
    """Makes a norm: `norm(name=...)`; None for none."""
    act: Callable[..., Any]
    """The function at the end."""
    stride: int = 1
    """The distance between neighbouring windows."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(self.features, self.window, self.stride, self.window // 2, name="conv")(x)
        return self.act(x if self.norm is None else self.norm(name="norm")(x))


class Inception(nn.Module):
    """Figure 2b: four branches side by side, in the channels. [batch, h, w, c] -> [batch, h, w, sum of widths]."""

    widths: Widths
    """How many filters each convolution has."""
    unit: Callable[..., Any]
    """Makes a convolution with all that follows it: `unit(features, window, name=...)`."""
    pool: Callable[..., Any]
    """The pooling: a function with the signature of `flax.linen.max_pool`."""
    widest: int = 5
    """The side of the largest windows."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        w = self.widths
        one = self.unit(w.one, 1, name="one")(x)
        three = self.unit(w.three, 3, name="three")(self.unit(w.reduce3, 1, name="reduce3")(x))
        five = self.unit(w.five, self.widest, name="five")(self.unit(w.reduce5, 1, name="reduce5")(x))
        pooled = self.unit(w.project, 1, name="project")(self.pool(x, (3, 3), (1, 1), ((1, 1), (1, 1))))
        return jnp.concatenate([one, three, five, pooled], -1)


class AuxiliaryHead(nn.Module):
    """The classifier at the side, section 5: pooled, 1x1, two dense layers. [batch, h, w, c] -> [batch, classes]."""

    unit: Callable[..., Any]
    """As for `Inception`."""
    dense: Callable[..., Any]
    """Makes a dense layer: `dense(features, name=...)`."""
    bias_init: Callable[..., Any]
    """The initializer of the hidden layer's biases."""
    act: Callable[..., Any]
    """The function after the first dense layer."""
    pool: Callable[[jax.Array], jax.Array]
    """What makes a map of 4x4."""
    dropout: Callable[..., Any]
    """Makes the dropout after the first dense layer."""
    num_classes: int
    """The number of logits."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.unit(128, 1, name="unit")(self.pool(x))
        x = self.act(self.dense(1024, bias_init=self.bias_init, name="dense")(x.reshape(x.shape[0], -1)))
        return self.dense(self.num_classes, name="output")(self.dropout(name="dropout")(x))


def _pool_over_border(pool: Callable[..., Any], x: jax.Array, window: int) -> jax.Array:
    """Pooling with stride 2 in which the last window may reach over the border, so that none of the map is left out."""
    high = [(size - window) % 2 for size in x.shape[1:3]]
    return pool(x, (window, window), (2, 2), tuple((0, h) for h in high))


def paper_stem(x: jax.Array, *, unit: Any, lrn: Any, pool: Any) -> jax.Array:
    """Table 1 up to the first Inception module: [batch, h, w, c] -> [batch, h / 8, w / 8, 192]."""
    x = unit(64, 7, stride=2, name="conv1")(x)
    x = lrn(pool(x, 3))
    x = unit(64, 1, name="conv2_reduce")(x)
    x = lrn(unit(192, 3, name="conv2")(x))
    return pool(x, 3)


class GoogLeNet(nn.Module):
    """[batch, height, width, channels] -> [batch, num_classes]: table 1.

    While it trains (`train=True`) the logits of the auxiliary heads are sown in the collection "aux_logits" as "aux1"
    and "aux2"; their losses are to count 0.3 each (section 5). Dropout then needs `rngs={"dropout": key}`.
    `aux=False` makes the network without them.
    """

    num_classes: int = 1000
    """The number of logits; 0 for the pooled features."""
    aux: bool = True
    """Whether there are auxiliary heads."""
    stem: Callable[..., Any] = paper_stem
    """What comes before the Inception modules: a function with the signature of `paper_stem`."""
    widest: int = 5
    """The side of the windows in the widest branch."""
    last_pool: int = 3
    """The side of the windows of the last pooling, before 5a."""
    paper_heads: bool = True
    """Whether auxiliary heads average 5x5 windows with stride 3, as in the paper, or adapt to a grid of 4x4."""
    dropout: float = 0.4
    """The part of the pooled features that training sets to zero."""
    aux_dropout: float = 0.7
    """The same in the auxiliary heads."""
    conv: Callable[..., Any] = conv_general_dilated
    """What computes the convolutions: a function with the signature of `jax.lax.conv_general_dilated`."""
    norm: Callable[..., Any] | None = None
    """The constructor of a norm after each convolution, which then has no bias; None for none."""
    lrn: Callable[..., Any] | None = functools.partial(local_response_norm, k=1.0, alpha=1e-4 / 5)
    """The normalisation over channels around the first convolutions, with BVLC's constants (the paper gives none; Caffe
    divides alpha by the window of 5); None for none."""
    act: Callable[..., Any] = nn.relu
    """The function after convolutions and hidden dense layers."""
    pool: Callable[..., Any] = max_pool
    """The pooling: a function with the signature of `flax.linen.max_pool`."""
    transform_input: bool = False
    """Whether images normalised by ImageNet's mean and deviation are brought to those of torchvision's weights, 0.5 and
    0.5: its `googlenet` does that when it is made with weights."""
    remat: bool | str = False
    """Whether Inception modules are computed again for the gradients rather than kept: less memory, more time;
    "convolutions" keeps what their convolutions give."""
    kernel_init: Callable[..., Any] = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
    """The initializer of kernels; BVLC's (Caffe's "xavier"). The paper gives none."""
    bias_init: Callable[..., Any] = nn.initializers.constant(0.2)
    """The initializer of the biases of convolutions and of the auxiliary heads' hidden layers; BVLC's."""
    dtype: Any = None
    """What to compute in; None for the wider of the input's type and the parameters'."""
    param_dtype: Any = jnp.float32
    """The type of the parameters."""

    def __post_init__(self):
        super().__post_init__()
        check_rate("dropout", self.dropout)
        check_rate("aux_dropout", self.aux_dropout)
        check_remat(self.remat)
        if not callable(self.stem):
            raise InputError(f"stem: received {self.stem!r}; allowed: a function with the signature of paper_stem")

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        heads = self.aux and (train or self.is_initializing())
        if heads and self.paper_heads and min(x.shape[1:3]) < 79:
            raise InputError(
                f"x: received images {x.shape[1]}x{x.shape[2]}; allowed: 79x79 or larger with auxiliary heads "
                "(aux=False makes the network without them)"
            )
        # Of these the windows of the heads, or of the last pooling, still find what they need.
        check_images(x, smallest=79 if heads and self.paper_heads else 31 if self.last_pool == 3 else 15)
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = functools.partial(
            square_conv,
            conv=self.conv,
            use_bias=self.norm is None,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            **types,
        )
        norm = None if self.norm is None else bind_norm(self.norm, train=train, **types)
        unit = functools.partial(ConvUnit, conv=conv, norm=norm, act=self.act)
        pool = functools.partial(_pool_over_border, self.pool)
        module = checkpointed(Inception, self.remat)
        inception = lambda name: module(INCEPTIONS[name], unit, self.pool, self.widest, name=f"inception{name}")

        def sow_head(name: str, x: jax.Array) -> None:
            if heads:
                averaged = lambda x: avg_pool(x, (5, 5), (3, 3)) if self.paper_heads else adaptive_avg_pool(x, (4, 4))
                dense = functools.partial(nn.Dense, kernel_init=self.kernel_init, **types)
                dropout = functools.partial(nn.Dropout, self.aux_dropout, deterministic=not train)
                classes = self.num_classes or 1000
                bias = self.bias_init if self.norm is None else nn.initializers.zeros
                head = AuxiliaryHead(unit, dense, bias, self.act, averaged, dropout, classes, name=f"{name}_head")
                logits = as_logits(head(x))
                if not self.is_initializing():  # or what `init` returns would hold some
                    self.sow("aux_logits", name, logits)

        if self.transform_input:
            x = x * jnp.asarray(_STD / 0.5, x.dtype) + jnp.asarray((_MEAN - 0.5) / 0.5, x.dtype)
        x = self.stem(x, unit=unit, lrn=self.lrn or (lambda x: x), pool=pool)
        x = inception("3a")(x)
        x = inception("3b")(x)
        x = pool(x, 3)
        x = inception("4a")(x)
        sow_head("aux1", x)
        x = inception("4b")(x)
        x = inception("4c")(x)
        x = inception("4d")(x)
        sow_head("aux2", x)
        x = inception("4e")(x)
        x = pool(x, self.last_pool)
        x = inception("5a")(x)
        x = inception("5b")(x)
        x = x.mean((1, 2))
        self.sow("intermediates", "pooled", x)
        x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
        return classify(x, self.num_classes, kernel_init=self.kernel_init, **types)


googlenet = GoogLeNet
googlenet_torchvision = functools.partial(
    GoogLeNet,
    norm=functools.partial(BatchNorm, epsilon=1e-3),
    lrn=None,
    widest=3,
    last_pool=2,
    paper_heads=False,
    dropout=0.2,
    kernel_init=nn.initializers.truncated_normal(0.01),
)
