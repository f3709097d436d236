"""What the model files share: the check of their input, the binding of a norm, and layers that Flax lacks."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.ad_checkpoint import checkpoint_name

from cnnjax.ops.dtypes import accumulator
from cnnjax.ops.errors import InputError


def check_images(
    x: jax.Array,
    *,
    sizes: tuple[int, ...] | None = None,
    smallest: int = 1,
    channels: int | None = None,
) -> None:
    """Refuse an input that a model cannot mean.

    Args:
      x: what the model was given; it should be [batch, height, width, channels] and floating point.
      sizes: the sides of the square images that the model takes, where it takes only some.
      smallest: the least height and width that leave something to classify.
      channels: the number of channels, where the model fixes it.

    Raises:
      InputError: x has another rank, size, number of channels or type. It says what was received and what is allowed.
    """
    shape = tuple(x.shape)
    if len(shape) != 4:
        raise InputError(f"x: received shape {shape}; allowed: 4 axes, [batch, height, width, channels]")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"x: received {x.dtype}; allowed: floating-point images (scale integer pixels first)")
    _, height, width, depth = shape
    if channels is not None and depth != channels:
        raise InputError(f"x: received {depth} channels (shape {shape}); allowed: {channels}")
    if sizes is not None and (height != width or height not in sizes):
        allowed = " or ".join(f"{s}x{s}" for s in sizes)
        raise InputError(f"x: received {height}x{width} images (shape {shape}); allowed: {allowed}")
    if min(height, width) < smallest:
        allowed = f"{smallest}x{smallest} or larger"
        raise InputError(f"x: received {height}x{width} images (shape {shape}); allowed: {allowed}")


def as_logits(x: jax.Array) -> jax.Array:
    """x in float32 if it was computed in less, so that the loss does not inherit bfloat16's 8 bits."""
    return x.astype(accumulator(x.dtype))


def like(x: jax.Array, parameter: jax.Array) -> jax.Array:
    """A parameter of the last axes of x, such as a bias [channel], with as many axes as x: they are 1 before its own.

    NumPy's rules do that by themselves, but not where `jax_numpy_rank_promotion` is "raise".
    """
    return jnp.expand_dims(parameter, range(x.ndim - parameter.ndim))


def check_rate(name: str, rate: float) -> None:
    """Refuse a part to drop in training that is not at least 0 and less than 1."""
    if not 0 <= rate < 1:
        raise InputError(f"{name}: received {rate}; allowed: at least 0 and less than 1")


def square_conv(
    features: int,
    window: int,
    stride: int = 1,
    pad: int = 0,
    *,
    conv: Callable[..., Any],
    groups: int = 1,
    **fields: Any,
) -> nn.Conv:
    """A convolution with square windows, padded alike on all sides.

    Args:
      features: how many filters there are.
      window: the side of their windows.
      stride: the distance between neighbouring windows.
      pad: the zeros on every side.
      conv: what computes it: a function with the signature of `jax.lax.conv_general_dilated`.
      groups: how many groups the channels are in, each seen by as many of the filters.
      fields: others of `flax.linen.Conv`, such as `name`.
    """
    return nn.Conv(
        features,
        (window, window),
        (stride, stride),
        ((pad, pad), (pad, pad)),
        feature_group_count=groups,
        conv_general_dilated=lambda *args, **kwargs: checkpoint_name(conv(*args, **kwargs), CONVOLUTION),
        **fields,
    )


CONVOLUTION = "convolution"
"""What outputs of convolutions are called, for those who say what is kept for the gradients."""


def _convolutions(primitive: Any, *_: Any, **params: Any) -> bool:
    """Keeps the outputs of convolutions and, which is little, sums: the statistics of norms.

    Devices that share a batch would otherwise have to add up those again.
    """
    return primitive.name == "reduce_sum" or (primitive.name == "name" and params["name"] == CONVOLUTION)


POLICIES: dict[str, Callable[..., bool]] = {"convolutions": _convolutions}
"""What of a block can be kept for the gradients, by the names that `remat` takes."""


def check_remat(remat: bool | str) -> None:
    """Refuse what is neither True nor False nor one of `POLICIES`."""
    if not isinstance(remat, bool) and remat not in tuple(POLICIES):
        raise InputError(f"remat: received {remat!r}; allowed: True, False, {', '.join(map(repr, POLICIES))}")


def checkpointed(block: Callable[..., Any], remat: bool | str) -> Callable[..., Any]:
    """The block, with less of it kept for the gradients.

    Args:
      block: a module class, a `functools.partial` of one, or a function of (module, arrays).
      remat: False for the block as it is; True to keep its inputs alone, and compute everything in it again;
        "convolutions" to keep the outputs of its convolutions too, and compute what is between them again: norms and
        activations, each cheap and as large as an output (Rota Bulò et al., "In-place activated batchnorm", 2018;
        Pleiss et al., "Memory-efficient implementation of DenseNets", 2017).
    """
    if not remat:
        return block
    if isinstance(block, functools.partial):
        return functools.partial(checkpointed(block.func, remat), *block.args, **block.keywords)
    return nn.remat(block, policy=POLICIES[remat] if isinstance(remat, str) else None)


BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)
"""Batch normalisation with the momentum and epsilon of the ResNet papers' code."""


def check_statistics(norm: nn.BatchNorm, x: jax.Array, use_running_average: bool | None = None) -> None:
    """Refuse batch norm over one value a channel, whose variance is 0: training would go on with zeros in place of x.

    Evaluation and initialisation take no statistics, and with `axis_name` those of other devices count.

    Args:
      norm: bound to a scope.
      x: what it is called with.
      use_running_average: as it is called with.

    Raises:
      InputError: that is so; the norm is named.
    """
    average = norm.use_running_average if use_running_average is None else use_running_average
    if average or norm.axis_name is not None or norm.is_initializing():
        return
    axes = (norm.axis,) if isinstance(norm.axis, int) else norm.axis
    if x.size == math.prod(x.shape[axis] for axis in axes):
        raise InputError(
            f"batch norm {'/'.join(norm.path)}: received {list(x.shape)} to train on, one value a channel, which has "
            "no variance; allowed: more than one (more images in a batch, larger images, or another norm)"
        )


def refuse_lone_values(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    """For `flax.linen.intercept_methods`: `check_statistics` of every batch norm of anyone's network."""
    if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
        check_statistics(context.module, *args, **{k: v for k, v in kwargs.items() if k != "mask"})
    return call(*args, **kwargs)


def group_norm(
    *,
    name: str | None = None,
    scale_init: Callable[..., Any] = nn.initializers.ones,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Callable[[jax.Array], jax.Array]:
    """Group normalisation of 16 channels a group, whatever the width: a setting of Wu and He, "Group Normalization",
    2018, table 3. Where 16 does not divide the channels, groups are of their greatest common divisor."""

    def norm(x: jax.Array) -> jax.Array:
        size = math.gcd(16, x.shape[-1])
        fields: dict[str, Any] = {"scale_init": scale_init, "dtype": dtype, "param_dtype": param_dtype, "name": name}
        return nn.GroupNorm(num_groups=None, group_size=size, epsilon=1e-5, **fields)(x)

    return norm


class Bias(nn.Module):
    """What is left of a norm without normalisation: the trainable bias that its convolution does without."""

    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), self.param_dtype)
        x, bias = promote_dtype(x, bias, dtype=self.dtype)
        return x + like(x, bias)


def bind_norm(norm: Callable[..., Any], *, train: bool, dtype: Any, param_dtype: Any) -> Callable[..., Any]:
    """`norm` with what every block needs of it bound, so that a block only says `norm(name=...)(x)`.

    Args:
      norm: a constructor of a norm module, such as `flax.linen.GroupNorm` or a `functools.partial` of one.
      train: whether to use the batch's own statistics and update the running ones, if the norm keeps any.
      dtype: what to compute in.
      param_dtype: the type of the parameters and, in float64, of the running statistics.
    """
    fields: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    if accepts(norm, "use_running_average"):
        fields["use_running_average"] = not train
        # Flax otherwise keeps the running statistics in float32 until the first update makes them float64.
        fields["force_float32_reductions"] = jnp.dtype(param_dtype) != jnp.float64
    bound = functools.partial(norm, **fields)
    if not train or "use_running_average" not in fields:
        return bound

    def checked(**more: Any) -> Callable[[jax.Array], jax.Array]:
        layer = bound(**more)

        def apply(x: jax.Array) -> jax.Array:
            if isinstance(layer, nn.BatchNorm):
                check_statistics(layer, x)
            return layer(x)

        return apply

    return checked


def accepts(constructor: Callable[..., Any], field: str) -> bool:
    """Whether `constructor(field=...)` is a legal call."""
    parameters = inspect.signature(constructor).parameters.values()
    return any(p.name == field or p.kind is p.VAR_KEYWORD for p in parameters)


def classify(features: jax.Array, num_classes: int, *, name: str = "output", **fields: Any) -> jax.Array:
    """The logits of [batch, features] by a dense layer; or, for `num_classes` 0, the features themselves.

    Args:
      features: [batch, features].
      num_classes: the number of logits.
      name: of the dense layer.
      fields: of `flax.linen.Dense`.

    Returns:
      [batch, num_classes] or [batch, features], in float32 at least.
    """
    if num_classes == 0:
        return as_logits(features)
    return as_logits(nn.Dense(num_classes, name=name, **fields)(features))


def drop_examples(rate: float, *, train: bool) -> Callable[[jax.Array], jax.Array]:
    """What stochastic depth does to a branch: in training, zero for a random part of the examples.

    What is left is divided by 1 - rate, so that evaluation needs no correction.

    Args:
      rate: the part of the examples that loses the branch; 0 for none.
      train: whether to do it.

    Returns:
      A function of [batch, ...] that draws from the stream "dropout". It has no parameters.
    """
    if not train or rate == 0:
        return lambda y: y
    return lambda y: nn.Dropout(rate, broadcast_dims=tuple(range(1, y.ndim)), deterministic=False)(y)
