"""Weights that travel: from PyTorch, under torchvision's names, and back; and as safetensors files.

Where PyTorch keeps a convolution's kernel as [feature, channel, height, width], Flax keeps [height, width, channel,
feature]; a dense kernel is [feature, input] there and [input, feature] here. PyTorch flattens a map channel by channel
and this library position by position, so that the first dense layer after a map has its inputs in another order.

What agrees with torchvision's networks of the same name: alexnet_torchvision, vgg11 to vgg19 with and without _bn,
googlenet_torchvision, resnet18 to resnet152, resnext50_32x4d, resnext101_32x8d, wide_resnet50_2, wide_resnet101_2,
densenet121 to densenet201. The others of these families take the same names where they have the same layers.
"""

import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cnnjax.models.densenet import DenseNet
from cnnjax.models.googlenet import GoogLeNet
from cnnjax.models.plain import Conv, Lrn, PlainNet, Pool
from cnnjax.models.resnet import ResNet
from cnnjax.ops.errors import InputError

Path = tuple[str, ...]
"""A collection and the names below it: ("params", "stage1_block1", "conv1", "kernel")."""

# --- Names ------------------------------------------------------------------------------------------------------------


def _plain(model: PlainNet) -> dict[str, str]:
    """torchvision numbers the modules of AlexNet and VGG, those without parameters too."""
    names, number = {}, 0
    convolutions = 0
    for layer in model.layers:
        match layer:
            case Conv():
                convolutions += 1
                names[f"conv{convolutions}"] = f"features.{number}"
                if model.norm is not None:
                    number += 1
                    names[f"norm{convolutions}"] = f"features.{number}"
                number += 2  # itself, or its norm, and the activation
            case Pool() | Lrn():
                number += 1
    # A hidden layer is [Dropout,] Linear, ReLU[, Dropout].
    first = 1 if model.dropout_before else 0
    names |= {f"dense{i}": f"classifier.{first + 3 * (i - 1)}" for i in range(1, len(model.dense) + 1)}
    return names | {"output": f"classifier.{3 * len(model.dense)}"}


_IN_BLOCK = {
    **{f"conv{i}": f"conv{i}" for i in (1, 2, 3)},
    **{f"norm{i}": f"bn{i}" for i in (1, 2, 3)},
    "shortcut_conv": "downsample.0",
    "shortcut_norm": "downsample.1",
}
_IN_INCEPTION = {
    "one": "branch1",
    "reduce3": "branch2.0",
    "three": "branch2.1",
    "reduce5": "branch3.0",
    "five": "branch3.1",
    "project": "branch4.1",
}
_GOOGLENETS_STEM = {"conv1": "conv1", "conv2_reduce": "conv2", "conv2": "conv3"}


def _resnet(module: Path) -> str:
    first, *rest = module
    if not rest:
        return {"conv1": "conv1", "norm1": "bn1", "norm2": "bn2", "output": "fc"}[first]
    stage, block = re.findall(r"\d+", first)
    return f"layer{stage}.{int(block) - 1}.{_IN_BLOCK[rest[0]]}"


def _googlenet(module: Path) -> str:
    first, *rest = module
    if first == "output":
        return "fc"
    last = {"conv": "conv", "norm": "bn"}.get(rest[-1])
    if first.startswith("inception"):
        return f"{first}.{_IN_INCEPTION[rest[0]]}.{last}"
    if first.endswith("_head"):
        inside = f"conv.{last}" if rest[0] == "unit" else {"dense": "fc1", "output": "fc2"}[rest[0]]
        return f"{first.removesuffix('_head')}.{inside}"
    return f"{_GOOGLENETS_STEM[first]}.{last}"


_DENSENETS_OLD = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])(?=\.)")
"""How torchvision's files of DenseNet name what its network calls `denselayer1.norm1`: `denselayer1.norm.1`."""


def _densenet(module: Path) -> str:
    first, *rest = module
    if not rest:
        names = {
            "conv1": "features.conv0",
            "norm1": "features.norm0",
            "norm2": "features.norm5",
            "output": "classifier",
        }
        return names[first]
    if first.startswith("transition"):
        return f"features.{first}.{rest[0]}"
    block, layer = re.findall(r"\d+", first)
    return f"features.denseblock{block}.denselayer{layer}.{rest[0]}"


def _torch_names(model: nn.Module) -> Callable[[Path], str]:
    """What PyTorch calls the module at a path of ours."""
    match model:
        case PlainNet():
            names = _plain(model)
            return lambda module: names[module[0]]
        case ResNet():
            return _resnet
        case GoogLeNet():
            return _googlenet
        case DenseNet():
            return _densenet
    raise InputError(
        f"model: received {type(model).__name__}; allowed: a network of the AlexNet, VGG, GoogLeNet, ResNet or "
        "DenseNet family, whose names in PyTorch are known"
    )


_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def _flattened(model: nn.Module, module: Path) -> tuple[int, int] | None:
    """Height and width of the map whose flattened positions a dense layer sees; None for the other layers."""
    if isinstance(model, PlainNet) and module == (("dense1",) if model.dense else ("output",)):
        return model.grid
    if isinstance(model, GoogLeNet) and module[-1] == "dense":
        return (4, 4)
    return None


def _left_out(model: Any, name_of: Callable[[Path], str]) -> tuple[str, ...]:
    """What the names of heads begin with that a model does without by its fields."""
    classifier = [name_of(("output",)) + "."] if model.num_classes == 0 else []
    heads = ["aux1.", "aux2."] if isinstance(model, GoogLeNet) and not model.aux else []
    return (*classifier, *heads)


# --- Arrays -----------------------------------------------------------------------------------------------------------


def _as_array(value: Any) -> np.ndarray:
    """A tensor of PyTorch's, or what is an array already; bfloat16 stays what it is."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # which NumPy lacks
            return value.float().numpy().astype(jnp.bfloat16)
    return np.asarray(value)


def _from_torch(array: np.ndarray, grid: tuple[int, int] | None) -> np.ndarray:
    """A weight of PyTorch's in our order."""
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if array.ndim == 2 and grid is not None:
        features = len(array)
        return array.reshape(features, -1, *grid).transpose(2, 3, 1, 0).reshape(-1, features)
    return array.T


def _to_torch(array: np.ndarray, grid: tuple[int, int] | None) -> np.ndarray:
    """A weight of ours in PyTorch's order."""
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if array.ndim == 2 and grid is not None:
        features = array.shape[-1]
        return array.reshape(*grid, -1, features).transpose(3, 2, 0, 1).reshape(features, -1)
    return array.T


def _shapes(model: nn.Module, image: Sequence[int]) -> dict[Path, jax.ShapeDtypeStruct]:
    """The variables of a model, flat, without making them; what is sown while it starts is left out."""
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    variables = jax.eval_shape(model.init, rngs, jax.ShapeDtypeStruct((1, *image), jnp.float32))
    return flatten_dict({name: variables[name] for name in ("params", "batch_stats") if name in variables})


def _check_names(what: str, expected: Mapping[str, tuple[int, ...]], received: Mapping[str, tuple[int, ...]]) -> None:
    """One line with what is missing, too much or of another shape: all names, up to twenty of a kind."""
    problems = [
        f"{kind} {', '.join(names[:20])}" + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        for kind, names in (
            ("missing:", sorted(expected.keys() - received.keys())),
            ("not of this network:", sorted(received.keys() - expected.keys())),
            (
                "of another shape:",
                [
                    f"{name} {tuple(received[name])} instead of {tuple(shape)}"
                    for name, shape in sorted(expected.items())
                    if name in received and tuple(received[name]) != tuple(shape)
                ],
            ),
        )
        if names
    ]
    if problems:
        raise InputError(f"weights: they don't fit {what}: {'; '.join(problems)}")


# --- PyTorch ----------------------------------------------------------------------------------------------------------


def from_torch(state_dict: Mapping[str, Any], model: nn.Module, image: Sequence[int]) -> dict[str, Any]:
    """The variables of `model` from a PyTorch state dict with torchvision's names.

    Args:
      state_dict: names to tensors or arrays; "num_batches_tracked" is ignored.
      model: a network of the AlexNet, VGG, GoogLeNet, ResNet or DenseNet family.
      image: [height, width, channels], the images that it is for.

    Returns:
      {"params": ..., "batch_stats": ...}, the latter where there are any, as JAX arrays of the state dict's dtypes.

    Raises:
      InputError: entries are missing, extra or of another shape, all of which are named; or the family is another.
        Entries of a head that the model's fields leave out (`num_classes=0`, `aux=False`) are not extra.
    """
    name_of = _torch_names(model)
    left_out = _left_out(model, name_of)
    prefix = (
        "module." if state_dict and all(name.startswith("module.") for name in state_dict) else ""
    )  # DataParallel's
    arrays = {
        _DENSENETS_OLD.sub(r"\1\2", name.removeprefix(prefix)): _as_array(value)
        for name, value in state_dict.items()
        if not name.endswith("num_batches_tracked") and not name.removeprefix(prefix).startswith(left_out)
    }
    shapes = _shapes(model, image)
    names = {path: f"{name_of(path[1:-1])}.{_LEAVES[path[-1]]}" for path in shapes}
    expected = {
        names[path]: _to_torch(np.broadcast_to(0.0, leaf.shape), _flattened(model, path[1:-1])).shape
        for path, leaf in shapes.items()
    }
    _check_names(type(model).__name__, expected, {name: array.shape for name, array in arrays.items()})
    return unflatten_dict({
        path: jnp.asarray(_from_torch(arrays[name], _flattened(model, path[1:-1])))
        for path, name in names.items()
    })  # fmt: skip


def to_torch(variables: Mapping[str, Any], model: nn.Module) -> dict[str, np.ndarray]:
    """The way back: a state dict of NumPy arrays under torchvision's names, to load after `torch.from_numpy`.

    Args:
      variables: {"params": ..., "batch_stats": ...} of `model`.
      model: as for `from_torch`.

    Returns:
      Names to arrays; each batch norm has "num_batches_tracked", 0, as PyTorch's strict loading wants.

    Raises:
      InputError: the variables are not those of the model: what is missing, too much or of another shape is named.
    """
    name_of = _torch_names(model)
    given = flatten_dict({k: nn.meta.unbox(variables[k]) for k in ("params", "batch_stats") if k in variables})
    channels = [leaf.shape[2] for path, leaf in given.items() if path[1] == "conv1" and path[-1] == "kernel"]
    shapes = _shapes(model, (224, 224, *(channels or [3])))
    join = lambda paths: {"/".join(path): tuple(np.shape(leaf)) for path, leaf in paths.items()}
    _check_names(type(model).__name__, join(shapes), join(given))
    state: dict[str, np.ndarray] = {}
    for path, leaf in given.items():
        module = name_of(path[1:-1])
        array = _to_torch(np.asarray(leaf), _flattened(model, path[1:-1]))
        state[f"{module}.{_LEAVES[path[-1]]}"] = np.array(array, order="C")  # PyTorch wants one that it may write to
        if path[-1] == "var":
            state[f"{module}.num_batches_tracked"] = np.zeros((), np.int64)
    return state


def read_torch(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """A state dict from a file: `.safetensors`, or PyTorch's own format, read as weights alone: no code in it is run.

    Raises:
      InputError: there is no such file, it is no state dict, or PyTorch, which its own format needs, is not installed.
    """
    path = _file(path, "a file of weights")
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    try:
        import torch  # here alone: it is large, and only this needs it
    except ImportError:
        raise InputError(
            f"path: received {path}; allowed: .safetensors (reading PyTorch's own format needs torch, which is not "
            "installed)"
        ) from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch's own, by what is wrong with the file
        raise InputError(f"path: {path} cannot be read as weights alone ({type(error).__name__})") from None
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):  # of a training checkpoint
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(hasattr(value, "shape") for value in state.values()):
        raise InputError(f"path: {path} holds no state dict, of names to tensors")
    return {name: _as_array(value) for name, value in state.items()}


# --- safetensors ------------------------------------------------------------------------------------------------------


def save_safetensors(path: str | os.PathLike, variables: Mapping[str, Any]) -> None:
    """Writes variables to a file, their names joined by "/": "params/conv1/kernel".

    Raises:
      InputError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.flax import save_file

    flat = flatten_dict({"variables": dict(variables)}, sep="/")
    arrays = {name.removeprefix("variables/"): jnp.asarray(leaf) for name, leaf in flat.items()}
    try:
        save_file(arrays, path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"path: {path} can't be written: {str(error).splitlines()[0]}") from None


def load_safetensors(path: str | os.PathLike) -> dict[str, Any]:
    """The variables that `save_safetensors` wrote: equal bit for bit, as JAX arrays.

    Raises:
      InputError: there is no such file, or it is none of these.
    """
    path = _file(path, "a .safetensors file")
    return unflatten_dict(_read_safetensors(path), sep="/")


def _file(path: Any, what: str) -> pathlib.Path:
    """The path of a file that there is."""
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"path: received {type(path).__name__}; allowed: {what}")
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"path: received {path}; allowed: {what} ({'a folder' if path.is_dir() else 'there is none'})")
    return path


def _read_safetensors(path: pathlib.Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.flax import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"path: {path} is no safetensors file: {str(error).splitlines()[0]}") from None
