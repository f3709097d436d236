"""What cnnjax finds on a machine: versions, devices, memory, threads, and what the environment says to JAX."""

import os
import pathlib
import platform
import re
from typing import Any

_ENVIRONMENT = (
    "XLA_",
    "JAX_",
    "CNNJAX_",
    "CUDA_VISIBLE",
    "LIBTPU_",
    "TPU_",
    "NVIDIA_TF32",
    "OMP_NUM",
    "MALLOC_",
    "LD_PRE",
)
"""How the names of variables begin that change what is computed, or how fast."""


def describe() -> dict[str, Any]:
    """What is installed and seen, as JSON can hold it; JAX looks for its devices here, if it hasn't yet."""
    import jax

    from cnnjax.training.code import git_state
    from cnnjax.training.setup import versions

    return {
        "versions": versions(),
        "git": git_state(__file__),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor(),
        "cores": usable_cores(),
        "memory_bytes": host_memory(),
        "backend": jax.default_backend(),
        "devices": [_device(device) for device in jax.devices()],
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_ENVIRONMENT)},
    }


def _device(device: Any) -> dict[str, Any]:
    statistics = device.memory_stats() or {}  # a CPU has none
    return {"platform": device.platform, "kind": device.device_kind, "memory_bytes": statistics.get("bytes_limit")}


def processor() -> str:
    """The processor's name."""
    info = pathlib.Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_memory() -> dict[str, int] | None:
    """Bytes of the machine's memory, "total" and "available"; None where the system doesn't say."""
    info = pathlib.Path("/proc/meminfo")
    if not info.exists():
        return None
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", info.read_text(), re.MULTILINE))
    return {"total": 1024 * int(found["MemTotal"]), "available": 1024 * int(found.get("MemAvailable", 0))}


def lines(found: dict[str, Any]) -> list[str]:
    """`describe()` as a person reads it."""
    versions, git, memory = found["versions"], found["git"], found["memory_bytes"]
    commit = "" if git is None else f" (git {git['commit'][:9]}{', changed' * git['dirty']})"
    rest = ", ".join(f"{name} {value}" for name, value in versions.items() if name not in ("python", "cnnjax"))
    kinds: dict[tuple[str, str, int | None], int] = {}
    for device in found["devices"]:
        key = (device["platform"], device["kind"], device["memory_bytes"])
        kinds[key] = kinds.get(key, 0) + 1
    text = [
        f"cnnjax {versions['cnnjax']}{commit}, Python {versions['python']}, {found['system']}",
        rest,
        f"{found['processor']}, {found['cores']} core{'s' * (found['cores'] != 1)}"
        + ("" if memory is None else f", {_gib(memory['total'])} of memory ({_gib(memory['available'])} free)"),
    ]
    for (name, kind, bytes_), count in kinds.items():
        text.append(f"{count} {name} device{'s' * (count > 1)}: {kind}" + (f", {_gib(bytes_)}" if bytes_ else ""))
    return text + [f"{name}={value}" for name, value in found["environment"].items()]


def _gib(count: int) -> str:
    return f"{count / 2**30:.0f} GiB"
