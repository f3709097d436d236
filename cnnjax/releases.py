"""What is known of the releases of jaxlib: which compute wrong values, and the settings with which they are right.

XLA compiles what it is given to something else now and then, in silence. So a release is allowed once it has passed
cnnjax's own proofs (`make admit`, docs/releases.md) with the settings that stand here, and `import cnnjax` makes these
settings before JAX starts. jax is not imported here: XLA reads its flags once, when a backend is first made.
"""

import importlib.util
import os
import re
import sys
from collections.abc import MutableMapping
from typing import NamedTuple

YNN_FUSION = "--xla_cpu_experimental_ynn_fusion_type"
"""XLA's flag for what its CPU backend hands to YNNPACK together: a list, or changes to the default by "+" and "-"."""

MULTI_THREAD_EIGEN = "--xla_cpu_multi_thread_eigen"
"""XLA's flag for whether Eigen's operations and Fourier transforms share XLA's threads; convolutions and products are
YNNPACK's, and shared all the same."""

_BY_DEFAULT = frozenset({"individual_convolution", "individual_dot", "reduce"})
_RIGHT = _BY_DEFAULT - {"reduce"}  # what fuses wrongly is a product with the sum that follows it


class Defect(NamedTuple):
    """Something that a release computes wrongly, or never ends to compute."""

    text: str
    """What, in one line."""
    backend: str = "cpu"
    cured: bool = True
    """Whether `Release.flags` make it right. What they don't is only watched, by the probes of `cnnjax doctor`."""


class Release(NamedTuple):
    """What is known of one release of jaxlib."""

    defects: tuple[Defect, ...] = ()
    flags: tuple[str, ...] = ()
    """What XLA_FLAGS must have for it."""
    without: str = "computes wrong values on CPU"
    """What it does without them."""


_FOLDED = Defect("a product followed by a mean over its rows, as in batch norm, is 40 to 135 % off")
_ROWS = Defect("a product of 32,769 rows or more, squared and summed over features, is off (jax#39103)")
_RANK = Defect("products of arrays of rank 7 or more, summed, end the process (jax#39257, jax#40412)")
_EAGER = Defect("operations outside jit are wrong on some GPUs (jax#40633)", "gpu", cured=False)
_TRANSFORMS = Defect("Fourier transforms that run side by side wait for each other for ever (openxla/xla#46347)")
_WITHOUT_REDUCTIONS = (f"{YNN_FUSION}=-reduce",)
_ONE_THREAD = (f"{MULTI_THREAD_EIGEN}=false",)
_HANGS = "may hang on CPU in Fourier transforms"

RELEASES: dict[str, Release] = {
    "0.10.0": Release((_FOLDED,), _WITHOUT_REDUCTIONS),
    "0.10.1": Release((_FOLDED,), _WITHOUT_REDUCTIONS),
    "0.10.2": Release((_ROWS, _RANK), _WITHOUT_REDUCTIONS),
    "0.11.0": Release((_RANK, _EAGER), _WITHOUT_REDUCTIONS),
    "0.11.1": Release((_TRANSFORMS, _EAGER), _ONE_THREAD, _HANGS),
    "0.11.2": Release((_TRANSFORMS,), _ONE_THREAD, _HANGS),
}
"""The releases that were admitted, by their exact version. XLA ends the process at a flag that it doesn't know, so none
is set for any other."""


def installed() -> str | None:
    """The version of the installed jaxlib, found without importing it; None where there is none."""
    if (module := sys.modules.get("jaxlib")) is not None:
        return getattr(module, "__version__", None)
    # importlib.metadata takes six times as long.
    spec = importlib.util.find_spec("jaxlib")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        try:
            with open(os.path.join(folder, "version.py"), encoding="utf-8") as file:
                found = re.search(r"^_version = [\"'](.+?)[\"']", file.read(), re.MULTILINE)
        except OSError:
            continue
        if found:
            return found[1]
    return None


def backend_exists() -> bool:
    """Whether JAX has made a backend in this process, and so has read XLA_FLAGS; makes none."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    exists = getattr(bridge, "backends_are_initialized", None)
    return exists is not None and exists()


def set_flags(environ: MutableMapping[str, str], version: str | None, too_late: bool) -> str | None:
    """Adds to XLA_FLAGS what a release of jaxlib needs to compute right values on CPU, and to end.

    The user's own flags stay as they are, contradicting ones too.

    Args:
      environ: the environment, which is changed.
      version: of jaxlib, such as "0.10.2".
      too_late: whether JAX has a backend already, so that a change has no effect.

    Returns:
      None, or the line to say where the setting is not in force: what to do.
    """
    release = RELEASES.get(version or "", Release())
    given = environ.get("XLA_FLAGS", "").strip()
    missing = [flag for flag in release.flags if not _in_force(flag, given)]
    if not missing:
        return None
    wrong = f"jaxlib {version} {release.without} unless XLA_FLAGS has {' '.join(missing)}"
    if _names_a_file(given):
        return f"{wrong}: add it to {given}, the file that XLA_FLAGS names"
    if against := [word for flag in missing for word in _named(flag, given)]:
        return f"{wrong}: yours has {' '.join(against)}"
    if too_late:
        return f"{wrong}: import cnnjax before the first use of JAX, or set it before Python starts"
    environ["XLA_FLAGS"] = " ".join([*given.split(), *missing])
    return None


def _names_a_file(xla_flags: str) -> bool:
    return bool(xla_flags) and not xla_flags.startswith("-")


def _named(flag: str, xla_flags: str) -> list[str]:
    """Those of XLA_FLAGS that set what `flag` sets, in their order."""
    return [word for word in xla_flags.split() if word.partition("=")[0] == flag.partition("=")[0]]


def _in_force(flag: str, xla_flags: str) -> bool:
    """Whether these XLA_FLAGS, or the file that they name, do what a flag of `RELEASES` does."""
    if _names_a_file(xla_flags):
        try:
            with open(xla_flags, encoding="utf-8") as file:
                xla_flags = file.read()
        except (OSError, UnicodeDecodeError):
            return False
    values = [word.partition("=")[2].lower() for word in _named(flag, xla_flags)]
    if flag.startswith(YNN_FUSION):
        return _fused(values) <= _RIGHT
    return bool(values) and values[-1] in ("false", "0")


def _fused(values: list[str]) -> frozenset[str]:
    """What YNNPACK fuses under these values of the flag, each a list or changes to what was before it."""
    fused = _BY_DEFAULT
    for value in values:
        items = [item for item in value.split(",") if item]
        if items and all(item[0] in "+-" for item in items):
            fused |= {item[1:] for item in items if item[0] == "+"}
            fused -= {item[1:] for item in items if item[0] == "-"}
        else:
            fused = frozenset(items)
    return fused
