"""Checkpoints that notice damage. The only module that imports Orbax.

Orbax restores flipped bits without a word and leaves the folders of killed saves behind. So each checkpoint `STEP/` has
a manifest beside it, `STEP.json`, with the sha256 of every file; it is written last, atomically. A checkpoint without
its manifest, or that disagrees with it, is not good.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from cnnjax.training import processes
from cnnjax.training.errors import RunError

# Orbax's threads print a traceback each for what `_failed` says in a line.
logging.getLogger("absl").addFilter(lambda record: "_SignalingThread.run()" not in record.getMessage())


@dataclasses.dataclass(frozen=True)
class _WithoutLateWrites:
    """A `sys.unraisablehook` that is silent about writes which end after another one has failed their save.

    Orbax doesn't wait for them, so they report to an event loop that is closed, each with a traceback.
    """

    hook: Callable[[Any], object]

    def __call__(self, unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            self.hook(unraisable)


def _hush_failed_saves() -> None:
    """Keeps what Orbax leaves under way, or not begun, when a save fails from talking over the one line about it."""
    if not isinstance(sys.unraisablehook, _WithoutLateWrites):
        sys.unraisablehook = _WithoutLateWrites(sys.unraisablehook)
    warnings.filterwarnings("ignore", "coroutine 'async_serialize", RuntimeWarning)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is known of a finished checkpoint."""

    step: int
    files: dict[str, str]
    """sha256 of each file, by its path inside the checkpoint."""
    leaves: dict[str, str]
    """dtype and shape of each leaf of the state, by its key path."""
    meta: dict[str, Any]
    """What the run wants to know again when it resumes; JSON."""
    score: list[float] | None
    """Validation scores at this step, where it was evaluated: larger is better, a later one decides between equals."""


def _hashes(folder: pathlib.Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _leaves(state: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a file that holds either its old content or all of the new, whenever the process is killed."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_manifest(directory: pathlib.Path, step: int) -> Manifest:
    """The manifest of a step, having checked that it and every file of the checkpoint are as they were written.

    Raises:
      RunError: something is missing or differs; the message names it.
    """
    where = f"checkpoint {step} in {directory}"
    try:
        sealed = json.loads((directory / f"{step}.json").read_text())
        content, seal = sealed["content"], sealed["sha256"]
        manifest = Manifest(**content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{where}: its manifest can't be read") from error
    if seal != _seal(content) or manifest.step != step:
        raise RunError(f"{where}: its manifest is damaged")
    found = _hashes(directory / str(step))
    for name in sorted(set(found) | set(manifest.files)):
        if name not in found:
            raise RunError(f"{where}: the file {name} is missing")
        if found[name] != manifest.files.get(name):
            raise RunError(f"{where}: the file {name} is damaged or was added")
    return manifest


def steps_with_manifest(directory: pathlib.Path) -> list[int]:
    """The steps that have a manifest, newest first; whether they are intact is for `read_manifest` to say."""
    return sorted((int(path.stem) for path in directory.glob("*.json") if path.stem.isdigit()), reverse=True)


def restore(directory: pathlib.Path, manifest: Manifest, target: Any) -> Any:
    """The state saved in a checkpoint.

    Args:
      directory: of all checkpoints.
      manifest: of the one to restore, as `read_manifest` verified it.
      target: the state as `jax.ShapeDtypeStruct` leaves with shardings: structure and placement of the result.

    Raises:
      RunError: the checkpoint holds another structure, or leaves of other shapes or types.
    """
    where = f"checkpoint {manifest.step} in {directory}"
    expected = _leaves(target)
    for name in sorted(set(expected) | set(manifest.leaves)):
        if expected.get(name) != manifest.leaves.get(name):
            raise RunError(
                f"{where} holds another network's state: {name} is {manifest.leaves.get(name, 'missing')}, "
                f"this run's is {expected.get(name, 'missing')}"
            )
    try:
        state = ocp.load(str(directory.absolute() / str(manifest.step)), target)
    except Exception as error:  # Orbax raises many kinds, and hides the reason in the cause
        raise RunError(f"{where} can't be restored: {_reason(error)}") from error
    if _leaves(state) != expected:  # as when a float64 state is restored with 64-bit types switched off
        raise RunError(f"{where} was not restored as it was saved: the types of its leaves changed")
    return state


def _reason(error: BaseException) -> str:
    """What a save or a restore failed of, in a line: what the system said, where the long message has it."""
    text = " ".join(str(error.__cause__ or error).split())
    number = re.search(r"os_error_code='(\d+)'", text)
    return os.strerror(int(number[1])) if number else text[:300]


class Checkpoints:
    """The checkpoints of a run in progress: saved in the background, verified, and pruned.

    Where the run is of several processes, all of them call the same methods; each saves what its devices hold, and the
    first alone looks after the folder.
    """

    def __init__(self, directory: pathlib.Path, keep: int):
        """Opens a folder and puts aside what killed saves left in it.

        Args:
          directory: made if need be.
          keep: newest checkpoints to keep, besides the one with the best score.
        """
        self.directory = directory.absolute()
        self._keep = keep
        self._aside = self.directory / "set-aside"
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future | None = None
        _hush_failed_saves()
        processes.from_first(self._tidy)

    def _tidy(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.directory.iterdir(), key=lambda path: path.suffix != ".deleting"):
            if "orbax-checkpoint-tmp" in path.name or path.suffix == ".tmp":
                _remove(path)
            elif path.suffix == ".deleting":
                _remove(path.with_suffix(""))
                _remove(path)
            elif path.name.isdigit() and path.exists() and not path.with_name(path.name + ".json").exists():
                self._set_aside(int(path.name))

    def _set_aside(self, step: int) -> None:
        self._aside.mkdir(exist_ok=True)
        for name in (f"{step}.json", str(step)):  # the manifest first: without it nothing takes the rest for good
            source, target = self.directory / name, self._aside / name
            if source.exists():
                _remove(target)
                os.replace(source, target)

    def newest_good(self) -> tuple[Manifest | None, list[str]]:
        """The newest intact checkpoint, damaged ones being set aside, and a line about each of those."""
        found, complaints = processes.from_first(self._search)
        return Manifest(**found) if found else None, complaints

    def _search(self) -> tuple[dict[str, Any] | None, list[str]]:
        complaints = []
        for step in steps_with_manifest(self.directory):
            try:
                return dataclasses.asdict(read_manifest(self.directory, step)), complaints
            except RunError as error:
                self._set_aside(step)
                complaints.append(str(error))
        return None, complaints

    def intact(self, step: int) -> Manifest:
        """The manifest of a step's checkpoint, which is verified.

        Raises:
          RunError: as `read_manifest`.
        """
        return Manifest(**processes.from_first(lambda: dataclasses.asdict(read_manifest(self.directory, step))))

    def save(self, step: int, state: Any, meta: dict[str, Any], score: list[float] | None) -> None:
        """Saves in the background; returns once the arrays are copied and may be donated.

        Raises:
          RunError: the save before this one failed.
        """
        self.wait()
        try:
            # A folder of that name has no manifest (or was not good), so it is in the way.
            response = ocp.save_async(str(self.directory / str(step)), state, overwrite=True)
        except OSError as error:
            raise self._failed(step, error) from error
        self._pending = self._pool.submit(self._finish, response, step, _leaves(state), meta, score)

    def _finish(
        self,
        response: ocp.AsyncResponse,
        step: int,
        leaves: dict[str, str],
        meta: dict[str, Any],
        score: list[float] | None,
    ) -> None:
        try:
            response.result()
            if not processes.is_first():
                return
            content = dataclasses.asdict(Manifest(step, _hashes(self.directory / str(step)), leaves, meta, score))
            text = json.dumps({"content": content, "sha256": _seal(content)}, indent=1)
            write_atomically(self.directory / f"{step}.json", text)
        except Exception as error:
            raise self._failed(step, error) from error
        for name in (f"{step}.json", str(step)):
            _remove(self._aside / name)
        self._prune()

    def _failed(self, step: int, error: Exception) -> RunError:
        return RunError(f"checkpoint {step} could not be saved to {self.directory}: {_reason(error)}")

    def _prune(self) -> None:
        steps = steps_with_manifest(self.directory)
        scores: dict[int, list[float] | None] = {}
        for step in steps:
            # A manifest that was damaged since can't be judged here; `newest_good` will set it aside.
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                scores[step] = json.loads((self.directory / f"{step}.json").read_text())["content"]["score"]
        scored = [step for step, score in scores.items() if score is not None]
        # Of equal scores the earliest counts, as in the run's own record of its best.
        best = max(scored, key=lambda step: (scores[step], -step), default=None)
        for step in steps[self._keep :]:
            if step != best and step in scores:
                self._delete(step)

    def _delete(self, step: int) -> None:
        # Under another name the manifest makes nothing good, and a start after a kill in between knows what to finish.
        doomed = self.directory / f"{step}.deleting"
        os.replace(self.directory / f"{step}.json", doomed)
        _remove(self.directory / str(step))
        _remove(doomed)

    def wait(self) -> None:
        """Returns when no save is under way.

        Raises:
          RunError: the last one failed.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            processes.together(pending.result)

    def close(self) -> None:
        """Waits for a save under way, whatever became of it."""
        self._pool.shutdown(wait=True)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def abstract(state: Any, placement: Any) -> Any:
    """The target of a restore: shape and dtype of every leaf, and where it is to be.

    Args:
      state: arrays, or `jax.ShapeDtypeStruct`s.
      placement: one sharding for all, or a tree of them.
    """
    if isinstance(placement, jax.sharding.Sharding):
        return abstract(state, jax.tree.map(lambda _: placement, state))
    return jax.tree.map(lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), state, placement)
