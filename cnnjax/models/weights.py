"""Weights that travel: from PyTorch, under torchvision's names, and back; and as safetensors files.

Where PyTorch keeps a convolution's kernel as [feature, channel, height, width], Flax keeps [height, width, channel,
feature]; a dense kernel is [feature, input] there and [input, feature] here. PyTorch flattens a map channel by channel
and this library position by position, so that the first dense layer after a map has its inputs in another order.

What agrees with torchvision's networks of the same name: alexnet_torchvision, vgg11 to vgg19 with and without _bn,
googlenet_torchvision, resnet18 to resnet152, resnext50_32x4d, resnext101_32x8d, resnext101_64x4d, wide_resnet50_2,
wide_resnet101_2, densenet121 to densenet201. The others of these families take the same names where they have the same
layers.
"""

import argparse
import os
import pathlib
import re
import warnings
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
            known = lambda module: names[module[0]]
        case ResNet():
            known = _resnet
        case GoogLeNet():
            known = _googlenet
        case DenseNet():
            known = _densenet
        case _:
            raise InputError(
                f"model: received {type(model).__name__}; allowed: a network of the AlexNet, VGG, GoogLeNet, ResNet or "
                "DenseNet family, whose names in PyTorch are known"
            )

    def name_of(module: Path) -> str:
        try:
            return known(module)
        except (KeyError, ValueError, IndexError):  # a module of the user's own, in place of ours
            raise InputError(f"model: its module {'/'.join(module)} has no name in PyTorch's networks") from None

    return name_of


_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def _leaf(path: Path) -> str:
    """What PyTorch calls the variable at a path of ours, in its module."""
    if path[-1] not in _LEAVES:
        raise InputError(f"model: its variable {'/'.join(path[1:])} has no name in PyTorch's networks")
    return _LEAVES[path[-1]]


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


def _as_array(name: str, value: Any) -> np.ndarray:
    """A tensor of PyTorch's, or an array, as NumPy holds it: with bfloat16, and with 8-bit floats as float32.

    Raises:
      InputError: it is a tensor without plain values (sparse, quantized, on the meta device).
    """
    if not hasattr(value, "detach"):
        return np.asarray(value)
    kinds = {
        "on the meta device, where tensors have no values": value.is_meta,
        "quantized; allowed: its dequantize()": value.is_quantized,
        "sparse; allowed: its to_dense()": str(value.layout) != "torch.strided",
    }
    for kind, so in kinds.items():
        if so:
            raise InputError(f"weights: {name} is {kind}")
    value = value.detach().cpu()
    if str(value.dtype) == "torch.bfloat16":  # which NumPy lacks
        return value.float().numpy().astype(jnp.bfloat16)
    if value.is_floating_point() and value.itemsize == 1:
        return value.float().numpy()
    try:
        return value.resolve_conj().resolve_neg().numpy()
    except (RuntimeError, TypeError) as error:
        raise InputError(f"weights: {name} has no values to copy ({str(error).splitlines()[0]})") from None


def _check_weight(name: str, array: np.ndarray) -> np.ndarray:
    """A weight must be of floating-point numbers; those of 8 bits, which can't be computed with, become float32."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(f"weights: {name} is {array.dtype}; allowed: floating-point numbers")
    return array.astype(np.float32) if array.dtype.itemsize == 1 else array


def _as_jax(arrays: Mapping[Any, np.ndarray], name: Callable[[Any], str]) -> dict[Any, jax.Array]:
    """The same values as JAX arrays. While JAX has no 64-bit types, float64 is rounded to float32, with a warning where
    digits are lost; and with one where values are not finite.

    Args:
      arrays: by any keys.
      name: what to call the array of a key.

    Raises:
      InputError: JAX has no type that holds the values.
    """
    held, rounded = {}, []
    for key, array in arrays.items():
        try:
            dtype = jax.dtypes.canonicalize_dtype(array.dtype)
            with np.errstate(over="ignore"):
                held[key] = jnp.asarray(np.asarray(array, dtype))
        except TypeError:
            raise InputError(f"weights: {name(key)} is {array.dtype}, which JAX does not have") from None
        if dtype == array.dtype:
            continue
        same = np.asarray(held[key]).astype(array.dtype) == array
        if (same | (array != array)).all():  # NaN is NaN
            continue
        if not jnp.issubdtype(dtype, jnp.inexact) or bool((jnp.isinf(held[key]) & ~np.isinf(array)).any()):
            raise InputError(f"weights: {name(key)} is {array.dtype} with values that {dtype} can't hold; {_X64}")
        rounded.append(f"{name(key)} ({array.dtype} to {dtype})")
    if rounded:
        more = f" and {len(rounded) - 1} more" if len(rounded) > 1 else ""
        warnings.warn(f"weights: digits are lost in {rounded[0]}{more}; {_X64}", stacklevel=4)
    strange = [name(key) for key, array in held.items() if not jnp.isfinite(array).all()]
    if strange:
        warnings.warn(f"weights: there is NaN or infinity in {_listed(strange)}", stacklevel=4)
    return held


_X64 = 'jax.config.update("jax_enable_x64", True) before keeps 64 bits'


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


def _listed(names: Sequence[Any]) -> str:
    """Up to twenty names, and how many more there are."""
    return ", ".join(map(str, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _check_names(what: str, expected: Mapping[str, tuple[int, ...]], received: Mapping[str, tuple[int, ...]]) -> None:
    """One line with what is missing, too much or of another shape: all names, up to twenty of a kind."""
    problems = [
        f"{kind} {_listed(names)}"
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


def state_dict(given: Any) -> dict[str, Any]:
    """The state dict in what people have: names as the plain network has them, to tensors or arrays as they are.

    Args:
      given: a state dict; an `nn.Module` of PyTorch's; or what a training script saved, with the state dict under
        "state_dict", "model" or "model_state_dict".

    Returns:
      Names to tensors or arrays. What parallel and compiled modules put into names ("module", "_orig_mod") is gone,
      and a "model." before all of them.

    Raises:
      InputError: there is no state dict in it, or a name is no text, or two entries have one name.
    """
    if not isinstance(given, Mapping) and callable(getattr(given, "state_dict", None)):
        given = given.state_dict()
    if not isinstance(given, Mapping):
        raise InputError(f"weights: received {type(given).__name__}; allowed: a state dict, or a file of one")
    for key in _STATES:
        if isinstance(given.get(key), Mapping):
            averages = [name for name in _AVERAGES if name in given]
            if averages:
                warnings.warn(
                    f"weights: {key!r} is taken; the moving average beside it is {averages[0]!r}, to be passed itself "
                    "where it is wanted",
                    stacklevel=3,
                )
            given = given[key]
            break
    strange = [name for name in given if not isinstance(name, str)]
    if strange:
        raise InputError(f"weights: received the name {strange[0]!r} ({type(strange[0]).__name__}); allowed: text")
    if given and not any(hasattr(value, "shape") for value in given.values()):
        raise InputError(f"weights: no state dict of names to tensors; its keys: {_listed(list(given))}")
    for name, value in given.items():
        if not hasattr(value, "shape"):
            raise InputError(f"weights: {name} is of type {type(value).__name__}; allowed: tensors and arrays")
    names = {name: _WRAPPERS.sub("", name) for name in given if name != "n_averaged"}  # a counter of averaged models
    if names and all(name.startswith("model.") for name in names.values()):
        names = {name: plain.removeprefix("model.") for name, plain in names.items()}
    names = {name: _DENSENETS_OLD.sub(r"\1\2", plain) for name, plain in names.items()}
    first: dict[str, str] = {}
    for name, plain in names.items():
        if first.setdefault(plain, name) != name:
            raise InputError(f"weights: {first[plain]} and {name} are both the network's {plain}")
    return {plain: given[name] for name, plain in names.items()}


_STATES = ("state_dict", "model", "model_state_dict")
"""Where training scripts put a network's state dict: PyTorch's examples and timm, torchvision, PyTorch's tutorials."""
_AVERAGES = ("state_dict_ema", "model_ema")
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod)\.")
"""What DataParallel and torch.compile put before the names of what they wrap."""


def image_channels(state: Mapping[str, Any], model: nn.Module) -> int | None:
    """How many channels the images have that a state dict's first convolution is for; None where it has none."""
    stem = ("conv1", "conv") if isinstance(model, GoogLeNet) else ("conv1",)
    kernel = state.get(f"{_torch_names(model)(stem)}.weight")
    return int(kernel.shape[1]) if kernel is not None and len(kernel.shape) == 4 else None


def from_torch(state: Any, model: nn.Module, image: Sequence[int]) -> dict[str, Any]:
    """The variables of `model` from a PyTorch state dict with torchvision's names.

    Args:
      state: names to tensors or arrays, or what else `state_dict` takes; "num_batches_tracked" is ignored.
      model: a network of the AlexNet, VGG, GoogLeNet, ResNet or DenseNet family.
      image: [height, width, channels], the images that it is for.

    Returns:
      {"params": ..., "batch_stats": ...}, the latter where there are any, as JAX arrays of the state dict's dtypes;
      where JAX's 64-bit types are off, of float32 for float64, with a warning where digits are lost.

    Raises:
      InputError: entries are missing, extra or of another shape, all of which are named; or the family is another; or
        weights are not plain floating-point numbers. Entries of a head that the model's fields leave out
        (`num_classes=0`, `aux=False`) are not extra.
    """
    name_of = _torch_names(model)
    left_out = _left_out(model, name_of)
    given = {
        name: value
        for name, value in state_dict(state).items()
        if not name.startswith(left_out) and not name.endswith("num_batches_tracked")
    }
    shapes = _shapes(model, image)
    names = {path: f"{name_of(path[1:-1])}.{_leaf(path)}" for path in shapes}
    expected = {
        names[path]: _to_torch(np.broadcast_to(0.0, leaf.shape), _flattened(model, path[1:-1])).shape
        for path, leaf in shapes.items()
    }
    _check_names(type(model).__name__, expected, {name: np.shape(value) for name, value in given.items()})
    arrays = {name: _check_weight(name, _as_array(name, value)) for name, value in given.items()}
    in_order = {path: _from_torch(arrays[name], _flattened(model, path[1:-1])) for path, name in names.items()}
    return unflatten_dict(_as_jax(in_order, names.__getitem__))


def to_torch(variables: Mapping[str, Any], model: nn.Module) -> dict[str, np.ndarray]:
    """The way back: a state dict of NumPy arrays under torchvision's names, to load after `torch.from_numpy`.

    Args:
      variables: {"params": ..., "batch_stats": ...} of `model`.
      model: as for `from_torch`.

    Returns:
      Names to arrays; each batch norm has "num_batches_tracked", 0, as PyTorch's strict loading wants. bfloat16, which
      `torch.from_numpy` doesn't take, is float32.

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
        kind = np.float32 if array.dtype == jnp.bfloat16 else array.dtype
        state[f"{module}.{_leaf(path)}"] = np.array(array, kind, order="C")  # PyTorch wants one that it may write to
        if path[-1] == "var":
            state[f"{module}.num_batches_tracked"] = np.zeros((), np.int64)
    return state


def read_torch(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """A state dict from a file: `.safetensors`, or PyTorch's own format, read as weights alone: no code in it is run.

    Training scripts' files are taken too, with `argparse.Namespace` among what they hold (torchvision's and timm's
    have one), which is data alone.

    Raises:
      InputError: there is no such file, it holds no state dict or other things than weights, or PyTorch, which its own
        format needs, is not installed.
    """
    path = _file(path, "a file of weights")
    if path.suffix.lower() == ".safetensors":
        return {name: _as_array(name, array) for name, array in state_dict(_read_safetensors(path)).items()}
    try:
        import torch  # here alone: it is large, and only this needs it
    except ImportError:
        raise InputError(
            f"path: received {path}; allowed: .safetensors (reading PyTorch's own format needs torch, which is not "
            "installed)"
        ) from None
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch's own, by what is wrong with the file
        found = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        if found:
            raise InputError(
                f"path: {path} cannot be read as weights alone: it holds {found[1]}, and no code in a file is run. If "
                f"you trust it: load it in PyTorch (torch.serialization.safe_globals([{found[1]}])) and pass the state "
                "dict"
            ) from None
        raise InputError(f"path: {path} cannot be read as weights alone ({type(error).__name__})") from None
    if not isinstance(content, Mapping):
        raise InputError(f"path: {path} holds no state dict of names to tensors, but {type(content).__name__}")
    try:
        state = state_dict(content)
        for name, value in state.items():  # nothing else that the file made is so much as looked at
            if not isinstance(value, torch.Tensor):
                raise InputError(f"weights: {name} is of type {type(value).__name__}; allowed: tensors")
        return {name: _as_array(name, value) for name, value in state.items()}
    except InputError as error:
        raise InputError(f"path: {path}: {error}") from None


# --- safetensors ------------------------------------------------------------------------------------------------------


def save_safetensors(path: str | os.PathLike, variables: Mapping[str, Any]) -> None:
    """Writes variables to a file, their names joined by "/": "params/conv1/kernel". A file that was there is replaced
    once the new one is whole.

    Raises:
      InputError: the file cannot be written; a name is no text or holds "/"; or the format lacks a leaf's dtype.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save

    flat = flatten_dict(nn.meta.unbox(dict(variables)))
    for names in flat:
        for name in names:
            if not isinstance(name, str) or "/" in name:
                raise InputError(f"variables: received the name {name!r}; allowed: text without '/', which joins names")
    arrays = {"/".join(names): _as_numpy("/".join(names), leaf) for names, leaf in flat.items()}
    path = pathlib.Path(path)
    try:
        _write_whole(path, save(arrays))
    except (SafetensorError, OSError) as error:
        raise InputError(f"path: {path} can't be written: {str(error).splitlines()[0]}") from None


def _as_numpy(name: str, leaf: Any) -> np.ndarray:
    """A leaf of variables, row by row in memory, as it is written."""
    leaf = jnp.asarray(leaf) if isinstance(leaf, bool | int | float) else leaf
    if not isinstance(getattr(leaf, "dtype", None), np.dtype):  # a list, a key
        raise InputError(f"variables: {name} is of type {type(leaf).__name__}; allowed: arrays of numbers")
    return np.asarray(leaf, order="C")


def _write_whole(path: pathlib.Path, content: bytes) -> None:
    """Writes a file in full or not at all: what was there stays until the new content is on the disk."""
    if path.exists() and not path.is_file():  # a device or a pipe is written to, not replaced
        path.write_bytes(content)
        return
    path = path.resolve()  # the file that a link leads to
    temporary = path.with_name(f".{os.getpid()}.safetensors.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_safetensors(path: str | os.PathLike) -> dict[str, Any]:
    """The variables that `save_safetensors` wrote: equal bit for bit, as JAX arrays.

    Where JAX's 64-bit types are off, those of 64 bits are float32 or int32, with a warning where digits are lost.

    Raises:
      InputError: there is no such file, or it is none of these, or holds values that JAX can't.
    """
    path = _file(path, "a .safetensors file")
    flat = _read_safetensors(path)
    for name in flat:
        parents = name.split("/")[:-1]
        for i in range(1, len(parents) + 1):
            if "/".join(parents[:i]) in flat:
                raise InputError(f"path: {path} holds both {'/'.join(parents[:i])} and {name}")
    return unflatten_dict(_as_jax(flat, str), sep="/")


def _file(path: Any, what: str) -> pathlib.Path:
    """The path of a file that there is."""
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"path: received {type(path).__name__}; allowed: {what}")
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"path: received {path}; allowed: {what} ({'a folder' if path.is_dir() else 'there is none'})")
    return path


_SAFETENSORS_TYPES = {
    "BOOL": "bool", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Names to arrays, as they are in the file."""
    from safetensors import SafetensorError, deserialize

    try:
        entries = deserialize(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise InputError(f"path: {path} is no safetensors file: {str(error).splitlines()[0]}") from None
    arrays = {}
    for name, entry in sorted(entries, key=lambda entry: entry[0]):  # they come in any order
        if entry["dtype"] not in _SAFETENSORS_TYPES:
            raise InputError(f"path: {path} holds {name} as {entry['dtype']}, which JAX does not have")
        dtype = jnp.dtype(_SAFETENSORS_TYPES[entry["dtype"]])
        arrays[name] = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
    return arrays
