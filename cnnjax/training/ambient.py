"""JAX's settings, which the environment gives to every program: those that a run depends on are the run's own.

A run is a function of its code, configuration and seed. So what would draw other numbers (another generator of random
numbers, 64-bit types) or forbid what Flax does is set for the run's length, whatever the environment says. How exactly
products are computed, and how hard the compiler tries, is the user's choice: recorded, and the same to the run's end.
"""

import concurrent.futures
import contextlib
import os
from collections.abc import Generator
from typing import Any

import jax

PINNED: dict[str, Any] = {
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_high_dynamic_range_gumbel": False,
    "jax_legacy_prng_key": "allow",
    "jax_softmax_custom_jvp": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_disable_jit": False,
    "jax_transfer_guard_host_to_device": None,
    "jax_transfer_guard_device_to_device": None,
    "jax_transfer_guard_device_to_host": None,
}
"""Settings and their values in every run, JAX's own defaults; `jax_enable_x64` follows from the run's dtype."""

RECORDED = (
    "jax_default_matmul_precision",
    "jax_disable_most_optimizations",
    "jax_optimization_level",
    "jax_exec_time_optimization_effort",
)
"""Settings that a run is begun and resumed with; it is recorded where they are not JAX's defaults."""

_DEFAULTS = (None, False, 0.0, "UNKNOWN")


def key(seed: int) -> jax.Array:
    """The typed PRNG key of a seed, of the generator that every run uses."""
    return jax.random.key(seed, impl=PINNED["jax_default_prng_impl"])


@contextlib.contextmanager
def pinned(*, double: bool = False) -> Generator[list[str]]:
    """Sets what `PINNED` says, and 64-bit types on or off.

    For the whole process, as Orbax restores in other threads, and for this thread, where the caller may have set
    something of its own.

    Args:
      double: whether 64-bit types are wanted.

    Yields:
      The names of the settings that were otherwise.
    """
    wanted = {name: value for name, value in PINNED.items() if name in jax.config.values}  # releases differ
    wanted["jax_enable_x64"] = double
    with concurrent.futures.ThreadPoolExecutor(1) as other:  # where nothing that holds for this thread alone is seen
        before = other.submit(lambda: {name: _setting(name) for name in wanted}).result()
    changed = [name for name, value in wanted.items() if before[name] != value]
    with contextlib.ExitStack() as stack:
        for name in changed:
            jax.config.update(name, wanted[name])
            stack.callback(jax.config.update, name, before[name])
        for name, value in wanted.items():
            if _setting(name) != value:
                changed.append(name)
                stack.enter_context(getattr(jax, name.removeprefix("jax_"))(value))
        yield changed


def set_aside(changed: list[str], *, double: bool) -> str | None:
    """A line about settings of the environment that a run does not follow; None where there are none."""
    names = [name for name in changed if not (double and name == "jax_enable_x64")]
    if not names:
        return None
    hint = " (64-bit types: --train.dtype float64)" if "jax_enable_x64" in names else ""
    return f"{', '.join(names)}: set aside for the run, which follows from its configuration alone{hint}"


def recorded() -> dict[str, Any]:
    """The settings of `RECORDED`, and XLA's flags, where they are not the defaults."""
    values = {name: _setting(name) for name in RECORDED if name in jax.config.values}
    found = {name: value for name, value in values.items() if value not in _DEFAULTS}
    flags = os.environ.get("XLA_FLAGS", "").split()
    return found | ({"XLA_FLAGS": " ".join(flags)} if flags else {})


def differing(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What of the settings recorded before is otherwise now, in words; None where nothing is.

    Not of XLA's flags: most of them say what is to be written where.
    """
    for name in RECORDED:
        if before.get(name) != now.get(name):
            return f"{name} was {before.get(name)!r}, received {now.get(name)!r} (${name.upper()} sets it)"
    return None


def _setting(name: str) -> Any:
    value = getattr(jax.config, name, jax.config.values[name])  # some hold for a thread, others for the process
    return getattr(value, "value", value)  # some are enumerations, and are set by their values
