"""What the doctor found wrong on this machine, kept so that a run can warn of it at no cost."""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
from typing import Any

from cnnjax.data.cache import cache_directory


def subject() -> dict[str, str]:
    """What a judgement is of: the backend, the kind of its devices, jaxlib, and the flags that XLA is given."""
    import jax

    return {
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "flags": " ".join(sorted(os.environ.get("XLA_FLAGS", "").split())),
    }


def _path(subject: dict[str, str]) -> pathlib.Path:
    """Where what was found is kept.

    Raises:
      FileNotFoundError: this user has no home folder, so nowhere.
    """
    folder = cache_directory()
    if folder is None:
        raise FileNotFoundError("no home folder")
    name = hashlib.sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()[:16]
    return folder / "doctor" / f"{name}.json"


def remember(failed: list[str]) -> None:
    """Keeps the names of the checks that failed here; with none, what was kept is forgotten.

    Without a cache to write to, nothing is remembered.
    """
    about = subject()
    with contextlib.suppress(OSError):  # no space, no permission, no home
        path = _path(about)
        if not failed:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        content = about | {"failed": failed, "date": datetime.date.today().isoformat()}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def warning() -> str | None:
    """A line for a run that starts where `cnnjax doctor` found something wrong; None where it didn't, or never ran."""
    about = subject()
    try:
        found: Any = json.loads(_path(about).read_text(encoding="utf-8"))
        failed, date = ", ".join(found["failed"]), str(found["date"])
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return None
    return (
        f"cnnjax doctor found wrong values here on {date} ({about['backend']}, jaxlib {about['jaxlib']}): {failed}; "
        f"results can't be trusted until it passes"
    )
