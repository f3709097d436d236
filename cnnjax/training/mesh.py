"""The devices a run uses, and where its arrays live on them.

Every mesh has the same three axes, any of them of one device:

    data    each device has its part of the batch, and a copy of the parameters
    fsdp    the batch is divided here too, and with it the parameters and the optimizer's state (Rajbhandari et al.
            2020, "ZeRO"; Zhao et al. 2023, "FSDP")
    space   the height of the images is divided, for images too large for one device

The compiler inserts the communication: sums of gradients, the gathering of divided parameters, the rows that
convolutions need of their neighbours. What is computed is the same on every mesh, to rounding.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cnnjax.ops.errors import InputError

AXES = ("data", "fsdp", "space")
BATCH = ("data", "fsdp")
"""The axes that divide a batch."""

LEAST_DIVIDED = 4096
"""Arrays of fewer elements (biases, the parameters of norms) are copied to every device: gathering them costs more than
they take."""


def visible() -> list[jax.Device]:
    """The devices that JAX sees.

    Raises:
      InputError: it sees none where the environment tells it to look.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter for platforms whose plugin is not installed
        names = ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS")
        told = ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
        said = " ".join(str(error).partition("\n")[0].split()) or "no such platform is installed"
        why = said.partition(" (set JAX_")[0].rstrip(".")
        raise InputError(
            f"devices: {f'received {told}' if told else 'JAX finds none'}: {why}; allowed: JAX_PLATFORMS=cpu, or unset "
            f"for what there is"
        ) from error


def make_mesh(devices: int | None = None, axes: Mapping[str, int] | None = None, *, among: Any = None) -> Mesh:
    """A mesh over the first `devices` devices.

    Args:
      devices: how many (all when None).
      axes: sizes of axes by name. "data" takes the devices that the others leave when it is not named, the others 1.
      among: the devices to choose from (those that JAX sees when None).

    Returns:
      A mesh with the axes `AXES`, of type Auto: Explicit axes, the default of `jax.make_mesh`, refuse some of what
      lax's convolutions and Flax's layers do.

    Raises:
      InputError: there are not that many devices, or the axes do not multiply to them.
    """
    available = list(visible() if among is None else among)
    if devices is not None and devices > len(available):
        raise InputError(f"run.devices: received {devices}, allowed: 1 to {len(available)} (the devices JAX sees)")
    if devices is not None and devices < len(available) and jax.process_count() > 1 and among is None:
        raise InputError(f"run.devices: received {devices}, allowed: {len(available)}, all those of the processes")
    chosen = available[:devices]
    shape = _shape(dict(axes or {}), len(chosen))
    if among is None:
        return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=chosen)
    return Mesh(np.array(chosen).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)


def check_axes(axes: Mapping[str, Any]) -> None:
    """Raises an `InputError` for axes that no number of devices could have."""
    for name, size in axes.items():
        if name not in AXES:
            raise InputError(f"run.mesh: received {name}={size}, allowed: axes named {', '.join(AXES)}")
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise InputError(f"run.mesh: received {name}={size}, allowed: a whole number of 1 or more")


def _shape(axes: dict[str, int], count: int) -> tuple[int, ...]:
    check_axes(axes)
    received = " ".join(f"{name}={size}" for name, size in axes.items())
    rest = math.prod(size for name, size in axes.items() if name != "data")
    if count % rest or axes.get("data", count // rest) * rest != count:
        raise InputError(
            f"run.mesh: received {received}, allowed: axes that multiply to the {count} devices "
            f"(data takes what the others leave when it is not named)"
        )
    return (count // rest, axes.get("fsdp", 1), axes.get("space", 1))


def describe(mesh: Mesh) -> dict[str, Any]:
    """`platform`, `kind` and `count` of the devices, and the `mesh` they make, for the record of a run."""
    device = mesh.devices.flat[0]
    record: dict[str, Any] = {"platform": device.platform, "kind": device.device_kind, "count": mesh.size}
    if mesh.shape["data"] != mesh.size:
        record["mesh"] = dict(mesh.shape)
    if jax.process_count() > 1:
        record["processes"] = jax.process_count()
    return record


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The first axis is divided among the devices of "data" and "fsdp"."""
    return NamedSharding(mesh, P(BATCH))


def over_images(mesh: Mesh) -> NamedSharding:
    """The first axis, the batch, is divided as by `over_batch`, and the second, the height, along "space"."""
    return NamedSharding(mesh, P(BATCH, "space"))


def batch_devices(mesh: Mesh) -> int:
    """Among how many devices a batch is divided."""
    return math.prod(mesh.shape[name] for name in BATCH)


def check_batch(batch_size: int, mesh: Mesh, microbatches: int = 1) -> None:
    """Raises an `InputError` where a batch, or each of its microbatches, does not divide evenly among the devices."""
    count = batch_devices(mesh)
    if batch_size % (count * microbatches):
        parts = f" times {microbatches} microbatches" if microbatches > 1 else ""
        raise InputError(
            f"train.batch-size: received {batch_size}, allowed: a multiple of the {count} devices that share it{parts} "
            f"(or choose fewer with --run.devices)"
        )


def state_shardings(shapes: Any, mesh: Mesh) -> Any:
    """Where each leaf of a state lives: a large one is divided along "fsdp" by its last axis that divides evenly (of a
    kernel, the output channels); the rest is copied to every device.

    Args:
      shapes: arrays, or `jax.ShapeDtypeStruct`s.
      mesh: with the axes `AXES`.
    """
    count = mesh.shape["fsdp"]

    def place(leaf: Any) -> NamedSharding:
        if count > 1 and leaf.size >= LEAST_DIVIDED:
            for axis in reversed(range(leaf.ndim)):
                if leaf.shape[axis] % count == 0:
                    return NamedSharding(mesh, P(*[None] * axis, "fsdp"))
        return replicated(mesh)

    return jax.tree.map(place, shapes)


def abstract(state: Any, mesh: Mesh) -> Any:
    """Shape, dtype and placement of every leaf: its own where it is on the mesh, else a copy on every device."""

    def describe(leaf: Any) -> jax.ShapeDtypeStruct:
        placed = getattr(leaf, "sharding", None)
        # A key's own placement is said of the integers inside it.
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        here = not key and isinstance(placed, NamedSharding) and placed.mesh == mesh
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed if here else replicated(mesh))

    return jax.tree.map(describe, state)


def on_mesh(values: Any, mesh: Mesh) -> Any:
    """The same values, copied to every device of the mesh where they are elsewhere."""
    return jax.tree.map(lambda leaf, target: jax.device_put(leaf, target.sharding), values, abstract(values, mesh))


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the values inside a compiled step live, on a mesh; without one, nothing is said."""

    mesh: Mesh | None = None

    def gather(self, params: Any) -> Any:
        """Parameters for use: whole on every device."""
        if self.mesh is None or self.mesh.shape["fsdp"] == 1:
            return params
        return jax.lax.with_sharding_constraint(params, replicated(self.mesh))

    def scatter(self, params: Any) -> Any:
        """Parameters or their gradients at rest: each device has its part."""
        if self.mesh is None or self.mesh.shape["fsdp"] == 1:
            return params
        return jax.lax.with_sharding_constraint(params, state_shardings(params, self.mesh))

    def images(self, images: jax.Array) -> jax.Array:
        """Images [batch, height, width, channels]: divided by batch and height, which need not be a multiple."""
        if self.mesh is None or self.mesh.shape["space"] == 1:
            return images
        return jax.lax.with_sharding_constraint(images, over_images(self.mesh))


ANYWHERE = Layout()
"""For one device: nothing has to be said."""


def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array that every process has, placed on the devices; each process sends what its own devices hold."""
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
