"""Published convolutional networks as Flax Linen modules: `create(name, **fields)`.

Every model maps floating-point images [batch, height, width, channels] to logits [batch, num_classes]:

    model = create("lenet5", act="relu", pool="max")
    variables = model.init(jax.random.key(0), images)
    logits = model.apply(variables, images, train=False)

To add one, write a Linen module with `__call__(self, x, *, train=False)` and the fields `num_classes`, `dtype` and
`param_dtype`, and put it in `MODELS` under its name.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.models import conv_stacks, layers, lenet, resnet
from cnnjax.ops import avg_pool, conv_implementation, max_pool
from cnnjax.ops.errors import InputError, unknown

MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet5": lenet.LeNet5,
    "lenet5_modern": lenet.LeNet5Modern,
    "cs231n_cifar10": conv_stacks.cs231n_cifar10,
    "convnetjs_cifar10": conv_stacks.convnetjs_cifar10,
    "convnetjs_mnist": conv_stacks.convnetjs_mnist,
    "geron_fashion": conv_stacks.geron_fashion,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "cifar_resnet20": resnet.cifar_resnet20,
    "cifar_resnet32": resnet.cifar_resnet32,
    "cifar_resnet44": resnet.cifar_resnet44,
    "cifar_resnet56": resnet.cifar_resnet56,
    "cifar_resnet110": resnet.cifar_resnet110,
}

# What a command line may say for the fields `act`, `pool`, `norm`, `dtype` and `param_dtype`.

ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "elu": nn.elu,
    "gelu": nn.gelu,
    "identity": lambda x: x,
    "leaky_relu": nn.leaky_relu,
    "relu": nn.relu,
    "relu6": nn.relu6,
    "scaled_tanh": lenet.scaled_tanh,
    "selu": nn.selu,
    "sigmoid": nn.sigmoid,
    "silu": nn.silu,
    "softplus": nn.softplus,
    "tanh": nn.tanh,
}
POOLS: dict[str, Callable[..., Any]] = {"avg": avg_pool, "max": max_pool}
NORMS: dict[str, Callable[..., Any]] = {
    "batch": layers.BatchNorm,
    # 16 channels a group, whatever the width: one of the settings of Wu and He, "Group Normalization", 2018, table 3.
    "group": functools.partial(nn.GroupNorm, num_groups=None, group_size=16, epsilon=1e-5),
    "layer": functools.partial(nn.LayerNorm, epsilon=1e-5),
    "none": layers.Bias,
}
DTYPES: dict[str, Any] = {name: jnp.dtype(name) for name in ("bfloat16", "float16", "float32", "float64")}


def names() -> tuple[str, ...]:
    """The names that `create` knows, sorted."""
    return tuple(sorted(MODELS))


def create(name: str, **fields: Any) -> nn.Module:
    """The model called `name`, with some of its fields changed.

    Args:
      name: one of `names()`.
      fields: fields of the model. For `act`, `pool`, `norm`, `conv` and the types a name will do: `act="relu"`,
        `pool="max"`, `norm="group"`, `conv="im2col"`, `dtype="bfloat16"`.

    Returns:
      A `flax.linen.Module`, without variables: `model.init(key, x)` makes them, `model.apply(variables, x)` uses them.

    Raises:
      InputError: there is no such model, field or name, or the model refuses a value; the nearest is suggested.
    """
    if name not in MODELS:
        raise unknown("model", name, names())
    accepted = inspect.signature(MODELS[name]).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    for field, value in fields.items():
        if field in ("parent", "name") or not (open_ended or field in accepted):
            allowed = [f for f, p in accepted.items() if f not in ("parent", "name") and p.kind is not p.VAR_KEYWORD]
            raise unknown(f"field of {name}", field, allowed)
        default = accepted[field].default if field in accepted else None
        fields[field] = _by_name(field, value, default)
    classes = fields.get("num_classes", 1)
    if not isinstance(classes, int) or classes < 1:
        raise InputError(f"num_classes: received {classes!r}; allowed: an integer, at least 1")
    return MODELS[name](**fields)


# What a string stands for in the fields that take objects.
_NAMED: dict[str, tuple[str, Mapping[str, Any]]] = {
    "act": ("activation", ACTIVATIONS),
    "pool": ("pooling", POOLS),
    "norm": ("norm", NORMS),
    "dtype": ("dtype", DTYPES),
    "param_dtype": ("param_dtype", DTYPES),
}


def _by_name(field: str, value: Any, default: Any) -> Any:
    """The object that a string stands for in a field that takes objects; any other value as it is."""
    if field == "conv":
        return value if callable(value) else conv_implementation(value)
    if field not in _NAMED or (value is None and default is None):
        return value
    kind, choices = _NAMED[field]
    if isinstance(value, str) and value in choices:
        return choices[value]
    if not callable(value) and value not in choices.values():  # jnp.dtype("float32") is not callable
        raise unknown(kind, value, choices)
    return value


# The images each was made for, [height, width, channels], and what it is.
_ABOUT: dict[str, tuple[tuple[int, int, int], str]] = {
    "lenet5": ((32, 32, 1), "LeNet-5 as published (LeCun et al. 1998)"),
    "lenet5_modern": ((28, 28, 1), "LeNet-5 as usually built today"),
    "cs231n_cifar10": ((32, 32, 3), "(conv-relu-conv-relu-pool) x 3, the lectures' first network"),
    "convnetjs_cifar10": ((32, 32, 3), "ConvNetJS's demonstration on CIFAR-10"),
    "convnetjs_mnist": ((24, 24, 1), "ConvNetJS's demonstration on MNIST"),
    "geron_fashion": ((28, 28, 1), "Géron's network for Fashion-MNIST"),
    "resnet18": ((224, 224, 3), "ResNet-18 (He et al. 2015)"),
    "resnet34": ((224, 224, 3), "ResNet-34"),
    "resnet50": ((224, 224, 3), "ResNet-50, the stride in the 3x3 convolution (v1.5)"),
    **{
        f"cifar_resnet{depth}": ((32, 32, 3), f"ResNet-{depth} for CIFAR, shortcuts A")
        for depth in (20, 32, 44, 56, 110)
    },
}


def describe(name: str) -> dict[str, Any]:
    """What is known of a model: `name`, `parameters`, `input` [height, width, channels], `classes`, `summary`.

    The parameters are counted by abstract evaluation, which allocates nothing. Of a model without an entry here (a
    user's own) the input is taken to be 32x32x1.
    """
    shape, summary = _ABOUT.get(name, ((32, 32, 1), ""))
    model = create(name)
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    return {
        "name": name,
        "parameters": count_parameters(variables),
        "input": list(shape),
        "classes": getattr(model, "num_classes", None),
        "summary": summary,
    }


def count_parameters(variables: Mapping[str, Any]) -> int:
    """How many numbers training changes.

    Args:
      variables: what `init` returned, or `jax.eval_shape` of it: collections, of which only "params" is trained and
        counted. A tree without "params" is taken for the parameters themselves.
    """
    return sum(leaf.size for leaf in jax.tree.leaves(variables.get("params", variables)))
