"""Published convolutional networks as Flax Linen modules: `create(name, **fields)`.

Every model maps floating-point images [batch, height, width, channels] to logits [batch, num_classes]:

    model = create("lenet5", act="relu", pool="max")
    variables = model.init(jax.random.key(0), images)
    logits = model.apply(variables, images, train=False)

To add one, write a Linen module with `__call__(self, x, *, train=False)` and the fields `num_classes`, `dtype` and
`param_dtype`, and put it in `MODELS` under its name.
"""

import contextlib
import functools
import inspect
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.models import (
    alexnet,
    baselines,
    conv_stacks,
    densenet,
    googlenet,
    layers,
    lenet,
    preact_resnet,
    resnet,
    resnext,
    vgg,
    weights,
    wide_resnet,
    zfnet,
)
from cnnjax.models.about import ABOUT, About
from cnnjax.models.fields import check_fields
from cnnjax.models.intermediates import features as features
from cnnjax.models.weights import load_safetensors as load_safetensors
from cnnjax.models.weights import save_safetensors as save_safetensors
from cnnjax.models.weights import to_torch as to_torch
from cnnjax.ops import avg_pool, conv_implementation, max_pool
from cnnjax.ops.errors import InputError, short_repr, unknown

MODELS: dict[str, Callable[..., nn.Module]] = {
    "fully_connected": baselines.FullyConnected,
    "locally_connected": baselines.LocallyConnected,
    "lenet5": lenet.LeNet5,
    "lenet5_modern": lenet.LeNet5Modern,
    "cs231n_cifar10": conv_stacks.cs231n_cifar10,
    "convnetjs_cifar10": conv_stacks.convnetjs_cifar10,
    "convnetjs_mnist": conv_stacks.convnetjs_mnist,
    "geron_fashion": conv_stacks.geron_fashion,
    "alexnet": alexnet.alexnet,
    "alexnet_ungrouped": alexnet.alexnet_ungrouped,
    "alexnet_torchvision": alexnet.alexnet_torchvision,
    "zfnet": zfnet.zfnet,
    "vgg11": vgg.vgg11,
    "vgg13": vgg.vgg13,
    "vgg16": vgg.vgg16,
    "vgg16c": vgg.vgg16c,
    "vgg19": vgg.vgg19,
    "vgg11_bn": vgg.vgg11_bn,
    "vgg13_bn": vgg.vgg13_bn,
    "vgg16_bn": vgg.vgg16_bn,
    "vgg16c_bn": vgg.vgg16c_bn,
    "vgg19_bn": vgg.vgg19_bn,
    "googlenet": googlenet.googlenet,
    "googlenet_torchvision": googlenet.googlenet_torchvision,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "resnet152": resnet.resnet152,
    "resnet200": resnet.resnet200,
    "resnet50_v1": resnet.resnet50_v1,
    "resnet101_v1": resnet.resnet101_v1,
    "resnet152_v1": resnet.resnet152_v1,
    "resnet18_v2": preact_resnet.resnet18_v2,
    "resnet34_v2": preact_resnet.resnet34_v2,
    "resnet50_v2": preact_resnet.resnet50_v2,
    "resnet101_v2": preact_resnet.resnet101_v2,
    "resnet152_v2": preact_resnet.resnet152_v2,
    "resnext50_32x4d": resnext.resnext50_32x4d,
    "resnext101_32x8d": resnext.resnext101_32x8d,
    "resnext101_64x4d": resnext.resnext101_64x4d,
    "wide_resnet50_2": wide_resnet.wide_resnet50_2,
    "wide_resnet101_2": wide_resnet.wide_resnet101_2,
    "cifar_resnet20": resnet.cifar_resnet20,
    "cifar_resnet32": resnet.cifar_resnet32,
    "cifar_resnet44": resnet.cifar_resnet44,
    "cifar_resnet56": resnet.cifar_resnet56,
    "cifar_resnet110": resnet.cifar_resnet110,
    "cifar_resnet1202": resnet.cifar_resnet1202,
    "cifar_preact_resnet110": preact_resnet.cifar_preact_resnet110,
    "cifar_preact_resnet164": preact_resnet.cifar_preact_resnet164,
    "cifar_preact_resnet1001": preact_resnet.cifar_preact_resnet1001,
    "cifar_wide16_4": wide_resnet.cifar_wide16_4,
    "cifar_wide16_8": wide_resnet.cifar_wide16_8,
    "cifar_wide28_10": wide_resnet.cifar_wide28_10,
    "cifar_wide40_2": wide_resnet.cifar_wide40_2,
    "cifar_wide40_4": wide_resnet.cifar_wide40_4,
    "densenet121": densenet.densenet121,
    "densenet161": densenet.densenet161,
    "densenet169": densenet.densenet169,
    "densenet201": densenet.densenet201,
    "cifar_densenet40_12": densenet.cifar_densenet40_12,
    "cifar_densenet100_12": densenet.cifar_densenet100_12,
    "cifar_densenet100_24": densenet.cifar_densenet100_24,
    "cifar_densenet_bc100_12": densenet.cifar_densenet_bc100_12,
    "cifar_densenet_bc250_24": densenet.cifar_densenet_bc250_24,
    "cifar_densenet_bc190_40": densenet.cifar_densenet_bc190_40,
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
    "group": layers.group_norm,  # of 16 channels a group; "group32", or with any other number, has that many groups
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
        `pool="max"`, `norm="group"` (16 channels a group), `norm="group32"` (32 groups), `conv="im2col"`,
        `conv="winograd:xla"` (where Winograd can't, XLA's), `dtype="bfloat16"`. Lists stand for tuples.

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
        short_repr(value)  # whoever refuses a value can print it
        if field in ("parent", "name") or not (open_ended or field in accepted):
            allowed = [f for f, p in accepted.items() if f not in ("parent", "name") and p.kind is not p.VAR_KEYWORD]
            raise unknown(f"field of {name}", field, allowed)
        default = accepted[field].default if field in accepted else None
        fields[field] = _by_name(field, value, default)
    fields = check_fields(MODELS[name], fields)
    try:
        model = MODELS[name](**fields)
    except (TypeError, AttributeError) as error:  # a value of a type that the model can't check itself with
        raise InputError(f"{name}: can't be made with {fields}: {' '.join(str(error).split())}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"model {name}: what stands in MODELS made {model!r:.80}; expected: a flax.linen.Module")
    return model


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
        return value if callable(value) else conv_implementation(*str(value).split(":", 1))
    if field not in _NAMED or (value is None and default is None):
        return value
    if field == "norm" and value == "none" and default is None:  # what is normalised there has biases already
        return None
    if field == "norm" and isinstance(value, str) and re.fullmatch(r"group[1-9][0-9]{0,5}", value):
        return functools.partial(nn.GroupNorm, num_groups=int(value.removeprefix("group")), epsilon=1e-5)
    kind, choices = _NAMED[field]
    if isinstance(value, str) and value in choices:
        return choices[value]
    if choices is DTYPES:
        with contextlib.suppress(TypeError, ValueError, SyntaxError):  # NumPy's, of what is no type
            if value is not None and jnp.issubdtype(jnp.dtype(value), jnp.floating):
                return value
    elif callable(value):
        return value
    raise unknown(kind, value, choices)


def describe(name: str) -> dict[str, Any]:
    """What is known of a model, for a listing.

    Returns:
      `name`, `parameters`, `multiply_adds` (None if not known), `input` [height, width, channels], `classes`,
      `summary`, `authors`, `year` and `published`. Of a model without an entry in `ABOUT` (a user's own) the input is
      taken to be 32x32x1, and the parameters are counted by abstract evaluation, which allocates nothing.
    """
    model = create(name)
    about = ABOUT.get(name)
    if about is None:
        shape = (32, 32, 1)
        variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
        about = About(shape, count_parameters(variables), None, "")
    return {
        "name": name,
        "parameters": about.parameters,
        "multiply_adds": about.multiply_adds,
        "input": list(about.input),
        "classes": getattr(model, "num_classes", None),
        "summary": about.what,
        "authors": about.authors,
        "year": about.year,
        "published": about.published,
    }


def load_torch(path_or_state_dict: Any, name: str, **fields: Any) -> dict[str, Any]:
    """The variables of a model from PyTorch's weights under torchvision's names.

    For instance `load_torch("resnet50.pth", "resnet50")`, which `torch.save(net.state_dict(), "resnet50.pth")` wrote.

    Args:
      path_or_state_dict: names to tensors or arrays, an `nn.Module` of PyTorch's, or a file: `.safetensors`, or
        PyTorch's own format, from which no code is run. What training scripts save, with the state dict under
        "state_dict", "model" or "model_state_dict", is taken too; so are names of parallel and compiled modules.
      name: one of `names()`, of the AlexNet, VGG, GoogLeNet, ResNet or DenseNet family.
      fields: fields of the model, such as `num_classes`.

    Returns:
      {"params": ..., "batch_stats": ...}, for `create(name, **fields)`.

    Raises:
      InputError: there is no such file or model; entries are missing, extra or of another shape, all of which are
        named; or weights are not plain floating-point numbers.
    """
    model = create(name, **fields)
    given = path_or_state_dict
    state = weights.read_torch(given) if isinstance(given, str | os.PathLike) else weights.state_dict(given)
    height, width, channels = ABOUT[name].input if name in ABOUT else (32, 32, 1)
    image = (height, width, weights.image_channels(state, model) or channels)
    return weights.from_torch(state, model, image)


def count_parameters(variables: Mapping[str, Any]) -> int:
    """How many numbers training changes.

    Args:
      variables: what `init` returned, or `jax.eval_shape` of it: collections, of which only "params" is trained and
        counted. A tree without "params" is taken for the parameters themselves.
    """
    return sum(leaf.size for leaf in jax.tree.leaves(variables.get("params", variables)))
