"""The folder of a run: what it records, who may write to it, and what it is worth when found again.

config.json      what and where, the experiment's name, and what was derived from the data
metrics.jsonl    an object a line: step, split, metrics
checkpoints/     see `checkpoint`
result.json      at the end
curves.png, predictions.png
"""

import contextlib
import fcntl
import json
import os
import pathlib
from typing import Any, TextIO

from cnnjax.ops.errors import InputError
from cnnjax.training import code as codes
from cnnjax.training import config as configs
from cnnjax.training import files
from cnnjax.training.config import Config
from cnnjax.training.errors import RunError

_HORIZON = ("train.steps", "train.epochs")  # the part of *what* that `--extend` may change


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes JSON that a person can read, atomically."""
    files.replace(path, json.dumps(content, indent=1) + "\n")


def read_json(path: pathlib.Path) -> Any:
    """Reads it; an unreadable file is an `InputError` that names it."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable JSON file ({error})") from error


def what(config: Config, code: codes.Code) -> dict[str, Any]:
    """*What* a run computes: its configuration's part of that name, and under "code" the files that the user gave."""
    return configs.what(config) | {"code": code}


def identity(what: dict[str, Any]) -> dict[str, Any]:
    """*What* a run computes, apart from how long: what a checkpoint must share with the run that restores it."""
    return {name: value for name, value in what.items() if name not in _HORIZON}


def belongs(found: Any, record: dict[str, Any]) -> bool:
    """Whether a checkpoint's `identity` is that of a run, with its code or one that it had before that was changed.

    Args:
      found: as the checkpoint has it.
      record: of the run, its `config.json`.
    """
    if not isinstance(found, dict):
        return False
    codes_of = lambda what: sorted((what.get("code") or {}).values())
    if _without_code(found) != _without_code(identity(record["what"])):
        return False
    return codes_of(found) in [codes_of(part) for part in (record["what"], *record["history"])]


def _without_code(what: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in what.items() if name != "code"}


def same_configuration(workdir: pathlib.Path, what: dict[str, Any]) -> bool:
    """Whether the run in a folder computes the same, the code apart, and for as long."""
    return _without_code(read_config(workdir)["what"]) == _without_code(what)


def examine(workdir: pathlib.Path, what: dict[str, Any], *, extend: bool, accept_code: bool = False) -> list[str]:
    """Refuses a folder that is not this run's, without touching it.

    Args:
      workdir: the folder.
      what: what the run is to compute.
      extend: allows another number of steps.
      accept_code: allows other code of the user's than the run was begun with.

    Returns:
      Lines to say, about code that is not known to be the same.

    Raises:
      InputError: it is a file, holds other things, or holds a run with another *what*.
    """
    try:
        if workdir.exists() and not workdir.is_dir():
            raise InputError(f"workdir: {workdir} is a file, allowed: a folder")
        if (workdir / "config.json").exists():
            return _compare(workdir, what, extend, accept_code)
        if extend:
            raise InputError(f"--extend: {workdir} holds no run to extend")
        # A run's folder is new, or empty, or has a config; `.lock` alone is a start that was killed at once.
        if workdir.exists() and set(os.listdir(workdir)) - {".lock", "config.json.tmp"}:
            raise InputError(f"workdir: {workdir} is not empty and holds no run, allowed: an empty or a new folder")
    except OSError as error:  # it may not be looked into, or can't be a name
        raise InputError(f"workdir: {workdir} can't be read ({error.strerror or error})") from error
    return []


def same_sources(workdir: pathlib.Path, config: Config) -> bool:
    """Whether a run's data were named as they are now: then they need not be read to know that they are the same."""
    before = read_config(workdir)["config"]["data"]
    return all(before.get(name) == getattr(config.data, name) for name in ("raw_dir", "data_dir"))


def lock(workdir: pathlib.Path) -> TextIO:
    """Makes a run's folder if need be, and claims it for this process until the returned file is closed.

    Raises:
      InputError: the folder can't be written, or another process is training in it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / ".lock").open("a")
    except OSError as error:
        raise InputError(f"workdir: {workdir} can't be written ({error.strerror or error})") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise InputError(f"workdir: another process is training in {workdir}") from error
    return file


def _compare(workdir: pathlib.Path, new: dict[str, Any], extend: bool, accept_code: bool) -> list[str]:
    old = read_config(workdir)["what"]
    names = sorted(set(_without_code(old)) | set(_without_code(new)))
    differing = [name for name in names if old.get(name) != new.get(name)]
    if extend:
        differing = [name for name in differing if name not in _HORIZON]
    if differing:
        shown = "; ".join(f"{name} was {old.get(name)!r}, received {new.get(name)!r}" for name in differing)
        longer = " (--extend allows more steps)" if set(differing) <= set(_HORIZON) else ""
        raise InputError(f"workdir: {workdir} holds a run of another configuration: {shown}{longer}")
    if not old.get("code"):
        return [f"{workdir} does not say which code it was begun with: it can't be compared"] * bool(new["code"])
    changed = ", ".join(codes.changed(old["code"], new["code"]))
    if changed and not accept_code:
        raise InputError(
            f"workdir: {workdir} holds a run of other code: {changed} since (another --workdir starts anew, "
            f"--accept-code goes on in this one with the code as it is now)"
        )
    return [f"{workdir} was begun with other code: {changed} since"] if changed else []


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """The record `config.json`, with the configuration under "config"; an `InputError` where there is no run."""
    if not (workdir / "config.json").is_file():
        raise InputError(f"{workdir}: not a run's folder (no config.json)")
    record = read_json(workdir / "config.json")
    if not isinstance(record, dict) or not {"config", "what", "derived", "history"} <= set(record):
        raise InputError(f"{workdir / 'config.json'}: not the record of a run")
    return record


class MetricsFile:
    """`metrics.jsonl`: lines are appended, and each (step, split) appears once."""

    def __init__(self, path: pathlib.Path, step: int):
        """Opens it for a run that stands at `step`; lines of later steps, and one cut short, are dropped."""
        self.rows = [row for row in read_metrics(path) if row["step"] <= step]
        files.replace(path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self._seen = {(row["step"], row["split"]) for row in self.rows}
        self._file = path.open("a")

    def write(self, step: int, split: str, values: dict[str, float]) -> bool:
        """Appends a line, unless a resumed run has it already; whether it did.

        Raises:
          RunError: the disk is full, or fails.
        """
        if (step, split) in self._seen:
            return False
        row = {"step": step, "split": split, **values}
        self._seen.add((step, split))
        self.rows.append(row)
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise RunError(f"{self._file.name} can't be written: {error.strerror or error}") from error
        return True

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; what is not such a line, as one cut short by a kill, is left out."""
    rows = []
    if path.exists():
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and {"step", "split"} <= set(row):
                    rows.append(row)
    return rows
