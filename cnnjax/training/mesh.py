"""The devices a run uses, and where its arrays live on them."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cnnjax.ops.errors import InputError


def make_mesh(devices: int | None) -> Mesh:
    """A mesh with one axis, "data", over the first `devices` devices (all when None).

    Raises:
      InputError: there are not that many.
    """
    available = jax.devices()
    if devices is not None and devices > len(available):
        raise InputError(f"run.devices: received {devices}, allowed: 1 to {len(available)} (the devices JAX sees)")
    # Explicit axes, the default of `jax.make_mesh`, refuse some of what lax's convolutions and Flax's layers do.
    chosen = available[:devices]
    return jax.make_mesh((len(chosen),), ("data",), axis_types=(AxisType.Auto,), devices=chosen)


def describe(mesh: Mesh) -> dict[str, str | int]:
    """`platform`, `kind` and `count` of the devices, for the record of a run."""
    device = mesh.devices.flat[0]
    return {"platform": device.platform, "kind": device.device_kind, "count": mesh.size}


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The first axis is divided among the devices."""
    return NamedSharding(mesh, P("data"))


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raises an `InputError` where a batch does not divide evenly among the devices."""
    if batch_size % mesh.size:
        raise InputError(
            f"train.batch-size: received {batch_size}, allowed: a multiple of the {mesh.size} devices "
            f"(or choose fewer with --run.devices)"
        )
