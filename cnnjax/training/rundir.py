"""The folder of a run: what it records, who may write to it, and what it is worth when found again.

config.json      what and where, the experiment's name, and what was derived from the data; sealed
metrics.jsonl    an object a line: step, split, metrics
checkpoints/     see `checkpoint`; each knows how the lines of metrics up to it began
result.json      at the end; sealed
curves.png, predictions.png
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import stat
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import cnnjax
from cnnjax.ops.errors import InputError
from cnnjax.training import checkpoint, files
from cnnjax.training import code as codes
from cnnjax.training import config as configs
from cnnjax.training.config import Config
from cnnjax.training.errors import RunError

FORMAT = 2
"""Of sealed records; those of versions of cnnjax that did not seal them have none."""
_HORIZON = ("train.steps", "train.epochs")  # the part of *what* that `--extend` may change
_DATA = ("sha256", "examples", "image_shape", "classes", "num_classes", "mean", "std")  # of what is derived
_NO_CONTENT = {"config.json.tmp", "Thumbs.db", "desktop.ini"}  # nor are files whose names begin with a dot


def write_record(path: pathlib.Path, record: dict[str, Any]) -> dict[str, Any]:
    """Writes a record as JSON that a person can read, sealed and atomically.

    Args:
      path: of the file.
      record: what JSON can hold.

    Returns:
      The record as it was written, with `format` and `seal`.
    """
    content = json.loads(json.dumps(record | {"format": FORMAT}))
    content.pop("seal", None)
    content["seal"] = files.seal(content)
    files.replace(path, json.dumps(content, indent=1) + "\n")
    return content


def read_json(path: pathlib.Path) -> Any:
    """Reads it; an unreadable file is an `InputError` that names it."""
    try:
        return json.loads(files.read(path))
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable JSON file ({error})") from error


def what(config: Config, code: codes.Code) -> dict[str, Any]:
    """*What* a run computes: its configuration's part of that name, and under "code" the files that the user gave."""
    return configs.what(config) | {"code": code}


def doubt(path: pathlib.Path, record: dict[str, Any]) -> str | None:
    """A line about a record that is not known to be as it was written; None where it is.

    Args:
      path: where it was read.
      record: its content.
    """
    if unsealed(record):
        return (
            f"{path} is of {files.earlier_version(record)}, which did not seal it: it is read, but a change to it "
            f"would not be noticed"
        )
    if record.get("seal") != files.seal({name: value for name, value in record.items() if name != "seal"}):
        return f"{path} is not as it was written: it was edited, or is damaged"
    return None


def unsealed(record: dict[str, Any]) -> bool:
    """Whether a record is of a version of cnnjax that did not seal it."""
    return "format" not in record and "seal" not in record


def identity(what: dict[str, Any]) -> dict[str, Any]:
    """*What* a run computes, apart from how long: what a checkpoint must share with the run that restores it."""
    return {name: value for name, value in what.items() if name not in _HORIZON}


def _without_code(what: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in what.items() if name != "code"}


def same_configuration(workdir: pathlib.Path, what: dict[str, Any]) -> bool:
    """Whether the run in a folder computes the same, the code apart, and for as long."""
    return _without_code(_whole(read_config(workdir)["what"])) == _without_code(what)


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
    checkpoint.check_path(workdir)
    try:
        if workdir.exists() and not workdir.is_dir():
            raise InputError(f"workdir: {workdir} is a file, allowed: a folder")
        if begun(workdir):
            return _compare(workdir, what, extend, accept_code)
        if workdir.is_dir() and checkpoint.steps_with_manifest(workdir / "checkpoints"):
            if extend:
                raise InputError(f"--extend: {lost_record(workdir)}; the run's own command writes it anew")
            return [f"{lost_record(workdir)}; it is written anew if the checkpoints are of this very command"]
        if extend:
            raise InputError(f"--extend: {workdir} holds no run to extend")
        # A run's folder is new, or empty, or has a config; `.lock` alone is a start that was killed at once.
        if workdir.exists() and any(name[0] != "." for name in set(os.listdir(workdir)) - _NO_CONTENT):
            raise InputError(f"workdir: {workdir} is not empty and holds no run, allowed: an empty or a new folder")
    except OSError as error:  # it may not be looked into, or can't be a name
        raise InputError(f"workdir: {workdir} can't be read ({error.strerror or error})") from error
    return []


def begun(workdir: pathlib.Path) -> bool:
    """Whether a folder holds a run and its record; not where that can't be trusted, but checkpoints say what they are.

    Raises:
      InputError: the record can't be read, and there are no checkpoints; or it is of a later version.
    """
    if not os.path.lexists(workdir / "config.json"):
        return False
    if checkpoint.steps_with_manifest(workdir / "checkpoints") and lost_record(workdir):
        return False
    read_config(workdir)
    return True


def lost_record(workdir: pathlib.Path) -> str | None:
    """A line about a record that is missing, can't be read or was changed; None where it can be trusted."""
    path = workdir / "config.json"
    if not os.path.lexists(path):
        return f"{path} is missing"
    try:
        record = read_json(path)
    except InputError as error:
        return str(error)
    if not _is_record(record):
        return f"{path}: not the record of a run"
    return None if unsealed(record) else doubt(path, record)


def same_sources(workdir: pathlib.Path, config: Config) -> bool:
    """Whether a run's data were named as they are now: then they need not be read to know that they are the same."""
    before = config_of(workdir, read_config(workdir)).data
    return all(getattr(before, name) == getattr(config.data, name) for name in ("raw_dir", "data_dir"))


def lock(workdir: pathlib.Path, warn: Callable[[str], object] = warnings.warn) -> TextIO:
    """Makes a run's folder if need be, and claims it for this process until the returned file is closed.

    Args:
      workdir: the folder.
      warn: told where the file system can't say whether another process is training there.

    Raises:
      InputError: the folder can't be written, or another process is training in it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # Never through a link, nor waiting for a pipe's other end.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(workdir / ".lock", flags, 0o666)
    except OSError as error:
        reason = ".lock is a link" if error.errno == errno.ELOOP else error.strerror or error
        raise InputError(f"workdir: {workdir} can't be written ({reason})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"workdir: {workdir} can't be written (.lock is not a regular file)")
    file = open(descriptor, "a")  # noqa: SIM115  (the claim lasts until it is closed)
    try:
        _claim(file)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            file.close()
            raise InputError(f"workdir: another process is training in {workdir}") from error
        warn(
            f"{workdir} can't be locked ({error.strerror}): nothing will keep another process from training in it at "
            f"the same time"
        )
    return file


def _claim(file: TextIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(0.1)  # `is_training` may have looked at that moment
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_training(workdir: pathlib.Path) -> bool:
    """Whether a process holds the lock of a run's folder; False where that can't be known. Nothing waits or is written.

    Args:
      workdir: the run's folder.
    """
    try:
        descriptor = os.open(workdir / ".lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Shared, so that two that look don't see each other; closing gives it back at once.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EAGAIN)
    finally:
        os.close(descriptor)
    return False


def _whole(what: dict[str, Any]) -> dict[str, Any]:
    """*What* with the defaults of fields that it lacks, being of a version of cnnjax that did not have them."""
    return configs.what(Config()) | what


def _compare(workdir: pathlib.Path, new: dict[str, Any], extend: bool, accept_code: bool) -> list[str]:
    record = read_config(workdir)
    old = _whole(record["what"])
    names = sorted(set(_without_code(old)) | set(_without_code(new)))
    differing = [name for name in names if old.get(name) != new.get(name)]
    if extend:
        differing = [name for name in differing if name not in _HORIZON]
    if differing:
        shown = "; ".join(f"{name} was {old.get(name)!r}, received {new.get(name)!r}" for name in differing)
        hint = _length_hint(record, new) if set(differing) <= set(_HORIZON) else ""
        raise InputError(f"workdir: {workdir} holds a run of another configuration: {shown}{hint}")
    if not old.get("code"):
        return [f"{workdir} does not say which code it was begun with: it can't be compared"] * bool(new["code"])
    changed = ", ".join(codes.changed(old["code"], new["code"]))
    if changed and not accept_code:
        raise InputError(
            f"workdir: {workdir} holds a run of other code: {changed} since (another --workdir starts anew, "
            f"--accept-code goes on in this one with the code as it is now)"
        )
    return [f"{workdir} was begun with other code: {changed} since"] if changed else []


def _length_hint(record: dict[str, Any], new: dict[str, Any]) -> str:
    """What helps where a run differs in its length alone."""
    before, steps, epochs = record["derived"].get("steps"), new.get("train.steps"), new.get("train.epochs")
    if steps is None:  # epochs can be compared with epochs
        before, steps = record["what"].get("train.epochs"), epochs
    shorter = isinstance(before, int | float) and steps is not None and steps < before
    if shorter:
        return " (a run can't be shortened: another --workdir starts a shorter one)"
    return " (--extend allows more steps)"


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """The record `config.json`, with the configuration under "config"; an `InputError` where there is no run."""
    path = workdir / "config.json"
    if not os.path.lexists(path):
        raise InputError(f"{workdir}: not a run's folder (no config.json)")
    record = read_json(path)
    if not _is_record(record):
        raise InputError(f"{path}: not the record of a run")
    if isinstance(record.get("format"), int) and record["format"] > FORMAT:
        raise InputError(f"{path}: of a later version of cnnjax (format {record['format']}), allowed: up to {FORMAT}")
    return record


def _is_record(record: Any) -> bool:
    kinds = {"config": dict, "what": dict, "derived": dict, "history": list}
    return (
        isinstance(record, dict)
        and all(isinstance(record.get(name), kind) for name, kind in kinds.items())
        and all(isinstance(part, dict) for part in record["history"])
    )


def config_of(workdir: pathlib.Path, record: dict[str, Any]) -> Config:
    """The configuration in a run's record; an `InputError` that names the version of cnnjax where it can't be read."""
    try:
        return configs.from_dict(Config, record["config"])
    except InputError as error:
        version = files.version_of(record)
        by = f"; the run was made by cnnjax {version}, this is {cnnjax.__version__}" if version else ""
        raise InputError(f"{workdir / 'config.json'}: {error}{by}") from error


def _code_of(what: dict[str, Any]) -> list[str]:
    code = what.get("code")
    return sorted(map(str, code.values())) if isinstance(code, dict) else []


def data_of(derived: dict[str, Any]) -> str:
    """A digest of a run's data, and of what of it the network depends on."""
    return files.seal({name: derived.get(name) for name in _DATA})


def check_owner(
    manifest: checkpoint.Manifest, directory: pathlib.Path, record: dict[str, Any], *, lost: bool = False
) -> None:
    """Refuses a checkpoint of another run, which may well be of the same shapes.

    Args:
      manifest: of the checkpoint.
      directory: where it is.
      record: of the run: `what`, `derived` and `history`, as in `config.json`.
      lost: nothing but the checkpoint tells on what data it was trained, and for how many steps the run was made.

    Raises:
      RunError: it was saved by a run of another configuration, on other data, or with code that this run did not have.
    """
    where = f"checkpoint {manifest.step} in {directory} belongs to a run"
    found, own = manifest.meta.get("identity"), _whole(record["what"])
    if not isinstance(found, dict):
        raise RunError(f"{where} of which it does not say what it computes")
    found = _whole(found)
    names = [name for name in sorted({*found, *own} - {*_HORIZON, "code"}) if found.get(name) != own.get(name)]
    if names:
        raise RunError(f"{where} of another configuration (of {', '.join(names)})")
    if _code_of(found) not in map(_code_of, (own, *record["history"])):  # it may have been changed, and accepted
        raise RunError(f"{where} of another configuration (of code)")
    if manifest.meta.get("data") not in (None, data_of(record["derived"])):  # None: of an earlier version
        raise RunError(f"{where} on other data, or whose classes, mean or std were other ones")
    if lost and manifest.meta.get("data") is None:
        raise RunError(f"{where} of which it does not say on what data: config.json is needed")
    if lost and manifest.meta.get("steps") != record["derived"]["steps"]:
        raise RunError(f"{where} of {manifest.meta.get('steps')} steps, not of {record['derived']['steps']}")


def newest_step(workdir: pathlib.Path, directory: pathlib.Path) -> int:
    """The last step of which a run says that it saved it, whether that checkpoint is there or not.

    Args:
      workdir: the run's folder.
      directory: that of its checkpoints.
    """
    # A checkpoint is saved at each evaluation; the line of the newest one may be there before its checkpoint.
    steps = [row["step"] for row in _readable(workdir / "metrics.jsonl") if row["split"] in ("validation", "test")]
    with contextlib.suppress(InputError):
        steps += [part.get("from_step", 0) for part in read_config(workdir)["history"]]
    with contextlib.suppress(InputError):
        result = read_json(workdir / "result.json")
        steps.append(result.get("steps", 0) if isinstance(result, dict) else 0)
    return max([step for step in steps if isinstance(step, int)], default=0)


# ---- result --------------------------------------------------------------------------------------------------------

_NUMBERS = ("accuracy", "top5", "loss")
_RESULT = {
    **dict.fromkeys(("experiment", "model", "data", "fingerprint"), str),
    **dict.fromkeys(("seed", "steps", "parameters", "best_step"), int),
    **dict.fromkeys(("seconds", "train_seconds", "compile_seconds", "examples_per_second"), (int, float)),
    **{f"{split}_{name}": (int, float) for split in ("train", "validation", "test") for name in _NUMBERS},
    **{f"best_{split}_{name}": (int, float) for split in ("validation", "test") for name in _NUMBERS},
}
"""Types of a result's values, those that are there."""


def run_of(record: dict[str, Any]) -> str:
    """A digest by which a result is known to be that of a run: of what it computes, for how long, on which data."""
    return files.seal([_without_code(_whole(record["what"])), data_of(record["derived"])])


def find_result(workdir: pathlib.Path, record: dict[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    """The result in a run's folder, unless it is not this run's or not as the run wrote it; and lines about that.

    Args:
      workdir: the folder.
      record: its `config.json`.
    """
    path = workdir / "result.json"
    if not os.path.lexists(path):
        return None, []
    again = "it is set aside, and made again from the checkpoints"
    try:
        result = read_json(path)
    except InputError as error:
        return None, [f"{error}; {again}"]
    if not isinstance(result, dict) or not isinstance(result.get("history"), list):
        return None, [f"{path} is not a result; {again}"]
    changed = doubt(path, result)
    if changed and not unsealed(result):
        return None, [f"{changed}; {again}"]
    wrong = [name for name, kind in _RESULT.items() if name in result and not isinstance(result[name], kind)]
    if wrong:
        return None, [f"{path}: {wrong[0]} is {result[wrong[0]]!r:.80}; {again}"]
    if not unsealed(result) and result.get("run") != run_of(record):
        return None, [f"{path} is another run's; {again}"]
    lines = [changed] if changed else []
    mark = result.get("metrics")
    if mark and dataclasses.asdict(Mark.of(_readable(workdir / "metrics.jsonl"))) != mark:
        rows = workdir / "metrics.jsonl"
        here = os.path.lexists(rows)
        lines.append(
            f"{rows} is not as the run wrote it: lines are missing, or were changed" if here else f"{rows} is missing"
        )
    return result, lines


def set_aside(path: pathlib.Path, name: str) -> pathlib.Path:
    """Renames a file, which may be of any kind, to `name`, or `name` with a number where that is taken."""
    target = path.with_name(name)
    number = 2
    while os.path.lexists(target):
        target = path.with_name(f"{pathlib.Path(name).stem}-{number}{path.suffix}")
        number += 1
    os.replace(path, target)
    return target


# ---- metrics -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Mark:
    """What tells whether the first lines of `metrics.jsonl` are still those that were written."""

    lines: int
    """How many."""
    sha256: str
    """Of them."""

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]]) -> "Mark":
        """That of all lines."""
        return cls(len(rows), hashlib.sha256("".join(map(_line, rows)).encode()).hexdigest())


class MetricsFile:
    """`metrics.jsonl`: lines are appended, and each (step, split) appears once."""

    def __init__(self, path: pathlib.Path, step: int, mark: Mark | None = None):
        """Opens it for a run that stands at `step`; later lines, and one cut short, are dropped.

        Args:
          path: of the file.
          step: where the run stands.
          mark: what `mark` gave there; None for a new run, or a checkpoint of an earlier version of cnnjax.
        """
        self.complaint: str | None = None
        """A line about a file that is not as the run wrote it up to `step`; it was set aside."""
        found = _readable(path)
        if mark is None:
            self.rows = [row for row in found if row["step"] <= step]
        else:
            self.rows = found[: mark.lines]
            if Mark.of(self.rows) != mark:
                self.rows = []
                aside = set_aside(path, "metrics-set-aside.jsonl") if os.path.lexists(path) else None
                self.complaint = (
                    f"{path} "
                    + (f"is not as the run wrote it up to step {step}" if aside else "is missing")
                    + f": the curves begin after step {step}"
                    + (f", and what it holds is set aside as {aside.name}" if aside else "")
                )
        files.replace(path, "".join(map(_line, self.rows)))
        self._seen = {(row["step"], row["split"]) for row in self.rows}
        self._hash = hashlib.sha256("".join(map(_line, self.rows)).encode())
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._file = open(descriptor, "a", encoding="utf-8")  # noqa: SIM115
        self._path = path

    def mark(self) -> Mark:
        """That of the lines up to now."""
        return Mark(len(self.rows), self._hash.hexdigest())

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
        self._hash.update(_line(row).encode())
        try:
            self._file.write(_line(row))
            self._file.flush()
        except OSError as error:
            raise RunError(f"{self._path} can't be written: {error.strerror or error}") from error
        return True

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; what is not such a line, as one cut short by a kill, is left out."""
    rows = []
    if path.exists():
        for line in files.read(path).splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("step"), int) and isinstance(row.get("split"), str):
                    rows.append(row)
    return rows


def _readable(path: pathlib.Path) -> list[dict[str, Any]]:
    """Its lines, or none where it is no regular file."""
    try:
        return read_metrics(path)
    except OSError:
        return []


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"
