"""Checkpoints that notice damage. The only module that imports Orbax.

Orbax restores flipped bits without a word and leaves the folders of killed saves behind. So each checkpoint `STEP/` has
a manifest beside it, `STEP.json`, with the sha256 of every file; it is written last, atomically. A checkpoint without
its manifest, or that disagrees with it, is not good.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import time
import types
import warnings
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

import cnnjax
from cnnjax.ops.errors import InputError
from cnnjax.training import config as configs
from cnnjax.training import files, processes
from cnnjax.training.errors import Interrupted, RunError

_STEP = "(0|[1-9][0-9]{0,17})"
_FOLDER = re.compile(_STEP)
_MANIFEST = re.compile(rf"{_STEP}\.json")
_DELETING = re.compile(rf"{_STEP}\.deleting")
_LEFT_BY_KILLS = re.compile(rf"{_STEP}(\.json\.tmp|\.orbax-checkpoint-tmp(-[0-9]+)?)")
"""The names in a folder of checkpoints, of which anything else is left alone."""
_MERGED = re.compile(r"[^/]+/manifest\.ocdbt")
"""What Orbax writes into a checkpoint last, once the arrays of all processes are found by one name."""
_NOT_LITERAL = re.compile(r"[*?\[\]\\\x00-\x1f\x7f\ud800-\udfff]|:/")
"""What a path may not hold for Orbax, which finds files by patterns, and for TensorStore, which turns backslashes."""
_OTHER_STRUCTURE = "tree structures do not match"
"""In what Orbax says of a checkpoint whose leaves are arranged otherwise than asked for."""

# Orbax's threads print a traceback each for what `_failed` says in a line.
logging.getLogger("absl").addFilter(lambda record: "_SignalingThread.run()" not in record.getMessage())


@dataclasses.dataclass(frozen=True)
class _WithoutLateWrites:
    """A `sys.unraisablehook` that is silent about writes which end after another one has failed their save, and about a
    request to stop.

    Orbax doesn't wait for the writes, so they report to an event loop that is closed, each with a traceback. A request
    that arrives within a callback, in which Python can't raise it, is raised again at the end of the run.
    """

    hook: Callable[[Any], object]

    def __call__(self, unraisable: Any) -> None:
        error = unraisable.exc_value
        late = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        if not late and not isinstance(error, Interrupted):
            self.hook(unraisable)


def _hush_failed_saves() -> None:
    """Keeps what Orbax leaves under way, or not begun, when a save fails from talking over the one line about it."""
    if not isinstance(sys.unraisablehook, _WithoutLateWrites):
        sys.unraisablehook = _WithoutLateWrites(sys.unraisablehook)
    warnings.filterwarnings("ignore", "coroutine 'async_serialize", RuntimeWarning)


class _SteadyTime(types.ModuleType):
    """The module `time` but for `time()`, which goes on evenly from now, whatever becomes of the machine's clock."""

    def __init__(self):
        super().__init__("time")
        self.__dict__.update(vars(time))
        offset = time.time() - time.monotonic()
        self.time = lambda: time.monotonic() + offset


def _steady_timeouts() -> None:
    """Orbax measures its timeouts by the machine's clock: set forward during a save, that would end it as too late."""
    steady = _SteadyTime()
    for name, module in list(sys.modules.items()):
        if name.startswith("orbax.checkpoint.") and getattr(module, "time", None) is time:
            module.time = steady  # ty: ignore[missing-attribute]


_steady_timeouts()

_PATIENCE = 10.0
"""Seconds for which a failure waits for the reads or writes beside it."""


def _end_together() -> None:
    """Has the reads and writes of an operation of Orbax end before the operation fails.

    Orbax fails with the first of them and closes their event loop. The others would each print a traceback later: of a
    loop that is closed, of a coroutine cut off, of an error that nobody asked for.
    """
    asyncio_utils = sys.modules.get("orbax.checkpoint._src.asyncio_utils")
    run = getattr(asyncio_utils, "run_sync", None)
    if asyncio_utils is None or run is None:
        return

    async def ended(coroutine: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await coroutine
        except Exception:
            if others := asyncio.all_tasks() - {asyncio.current_task()}:
                done, _ = await asyncio.wait(others, timeout=_PATIENCE)
                for task in done:
                    task.cancelled() or task.exception()  # asked for, it is not printed
            raise

    asyncio_utils.run_sync = lambda coro: run(ended(coro))  # ty: ignore[missing-attribute]


_end_together()


@contextlib.contextmanager
def _unlogged_if_it_fails(path: str) -> Generator[None]:
    """Holds back what Orbax logs about a checkpoint's folder: said only where what is done inside succeeds."""
    folder, loggers = re.compile(rf"{re.escape(path)}(?!\d)"), (logging.getLogger("absl"), logging.getLogger())
    held = []

    def passes(record: logging.LogRecord) -> bool:
        if not folder.search(record.getMessage()):
            return True
        held.append(record)
        return False

    for logger in loggers:
        logger.addFilter(passes)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(passes)
    for record in held:
        logging.getLogger(record.name).handle(record)


def check_path(directory: pathlib.Path) -> None:
    """Refuses a folder whose path Orbax would misread where there is no other way to name it.

    Raises:
      InputError: the path holds a character that stands for others in a pattern, and there is no /proc.
    """
    found = _NOT_LITERAL.search(str(directory.absolute()))
    if found and not os.path.isdir("/proc/self/fd"):
        raise InputError(f"workdir: {directory} holds {found[0]!r}, allowed: a path without *, ?, [, ] and backslashes")


@contextlib.contextmanager
def _literally(directory: pathlib.Path) -> Generator[str]:
    """A path of a folder that Orbax takes as it stands: the folder's own, or that of a descriptor it is opened by."""
    path = str(directory.absolute())
    if not _NOT_LITERAL.search(path):
        yield path
        return
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Of a high number, which is free in every process of a run: they must name the folder alike.
        high = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, 200) if processes.several() else os.dup(opened)
    finally:
        os.close(opened)
    try:
        yield f"/proc/self/fd/{high}"
    finally:
        os.close(high)


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
    """sha256 of every regular file, by its path; what file managers leave (.DS_Store) is none of a checkpoint's."""
    found = {}
    for parent, _, names in os.walk(folder):
        paths = [pathlib.Path(parent, name) for name in names if not name.startswith(".")]
        found |= {str(path.relative_to(folder)): files.sha256(path) for path in paths if path.is_file()}
    return dict(sorted(found.items()))


def _leaves(state: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
        if leaf is not ocp.PLACEHOLDER
    }


def read_manifest(directory: pathlib.Path, step: int) -> Manifest:
    """The manifest of a step, having checked that it and every file it lists are as they were written.

    Raises:
      RunError: something is missing or differs; the message names it.
    """
    where = f"checkpoint {step} in {directory}"
    try:
        sealed = json.loads(files.read(directory / f"{step}.json"))
        content, seal = sealed["content"], sealed["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{where}: its manifest can't be read") from error
    if seal != files.seal(content):
        raise RunError(f"{where}: its manifest is damaged")
    try:
        manifest = configs.from_dict(Manifest, content)
    except InputError as error:
        raise RunError(f"{where}: its manifest is not one ({error})") from error
    if manifest.step != step:
        raise RunError(f"{where}: its manifest is damaged, or another checkpoint's")
    if not any(map(_MERGED.fullmatch, manifest.files)):
        raise RunError(f"{where}: it was sealed before it was whole (Orbax's manifest is missing)")
    for name, expected in manifest.files.items():
        try:
            found = files.sha256(directory / str(step) / name)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RunError(f"{where}: the file {name} is missing") from error
        except (OSError, ValueError) as error:
            raise RunError(f"{where}: the file {name} can't be read ({getattr(error, 'strerror', error)})") from error
        if found != expected:
            raise RunError(f"{where}: the file {name} is damaged")
    return manifest


def steps_with_manifest(directory: pathlib.Path) -> list[int]:
    """The steps that have a manifest, newest first; whether they are intact is for `read_manifest` to say."""
    return sorted((int(match[1]) for match in map(_MANIFEST.fullmatch, _names(directory)) if match), reverse=True)


def _names(directory: pathlib.Path) -> list[str]:
    """What is in a folder of checkpoints; nothing where there is none."""
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{directory}: no folder of checkpoints ({error.strerror})") from error


def restore(
    directory: pathlib.Path,
    manifest: Manifest,
    target: Any,
    *,
    without: Sequence[str] = (),
    version: str | None = None,
) -> Any:
    """The state saved in a checkpoint.

    Args:
      directory: of all checkpoints.
      manifest: of the one to restore, as `read_manifest` verified it.
      target: the state as `jax.ShapeDtypeStruct` leaves with shardings: structure and placement of the result.
      without: attributes of the state that are not read; the leaves that they have in the result mean nothing.
      version: of cnnjax, that made the run, where that is known; named where the structure differs.

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
    left_out = {name: jax.tree.map(lambda _: ocp.PLACEHOLDER, getattr(target, name)) for name in without}
    wanted = dataclasses.replace(target, **left_out) if left_out else target
    try:
        with _literally(directory) as path, _unlogged_if_it_fails(f"{path}/{manifest.step}"):
            state = _load(f"{path}/{manifest.step}", wanted)
    except Exception as error:  # Orbax raises many kinds, and hides the reason in the cause
        if _OTHER_STRUCTURE in str(error):
            by = f" by cnnjax {version}" if version else ""
            raise RunError(
                f"{where} was saved{by} with a state of another structure, though of the same arrays; this is cnnjax "
                f"{cnnjax.__version__}, allowed: the version that saved it"
            ) from error
        raise RunError(f"{where} can't be restored: {_reason(error)}") from error
    if _leaves(state) != _leaves(wanted):  # as when a float64 state is restored with 64-bit types switched off
        raise RunError(f"{where} was not restored as it was saved: the types of its leaves changed")
    return state


def _load(path: str, wanted: Any) -> Any:
    """What Orbax loads; a part of the state that is empty may be missing, as a version without it saved none."""
    try:
        return ocp.load(path, wanted)
    except ValueError as error:
        if _OTHER_STRUCTURE not in str(error):
            raise
        parts = {field.name: getattr(wanted, field.name) for field in dataclasses.fields(wanted)}
        there: Any = ocp.metadata(path).metadata
        absent = {name: part for name, part in parts.items() if name not in there and not jax.tree.leaves(part)}
        if not absent:
            raise
        found = ocp.load(path, {name: part for name, part in parts.items() if name not in absent})
        return dataclasses.replace(wanted, **found, **absent)


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
        self._path = ""
        self._opened = contextlib.ExitStack()
        _hush_failed_saves()
        processes.from_first(self._tidy)

    def _tidy(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        names = set(_names(self.directory))
        for name in sorted(names):
            if _LEFT_BY_KILLS.fullmatch(name):
                _remove(self.directory / name)
            elif (match := _DELETING.fullmatch(name)) and f"{match[1]}.json" not in names:
                _remove(self.directory / match[1])
                _remove(self.directory / name)
                names.discard(match[1])
        for name in sorted(filter(_FOLDER.fullmatch, names)):
            if f"{name}.json" not in names:
                self._set_aside(int(name))

    def _set_aside(self, step: int) -> None:
        if os.path.lexists(self._aside) and (self._aside.is_symlink() or not self._aside.is_dir()):
            # What lies there is not ours to replace.
            kind = "a link" if self._aside.is_symlink() else "no folder"
            raise RunError(f"{self._aside} is {kind}, allowed: a folder, where checkpoint {step} can be set aside")
        self._aside.mkdir(exist_ok=True)
        for name in (f"{step}.json", str(step)):  # the manifest first: without it nothing takes the rest for good
            source, target = self.directory / name, self._aside / name
            if os.path.lexists(source):
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
            response = ocp.save_async(f"{self._literal_path()}/{step}", state, overwrite=True)
        except (OSError, ValueError) as error:
            raise self._failed(step, error) from error
        self._pending = self._pool.submit(self._finish, response, step, _leaves(state), meta, score)

    def _literal_path(self) -> str:
        """The folder as Orbax is told it; as long as saves go on."""
        if not self._path:
            self._path = self._opened.enter_context(_literally(self.directory))
        return self._path

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
            if not any(map(_MERGED.fullmatch, content["files"])):
                raise RuntimeError("Orbax did not bring the arrays together")
            text = json.dumps({"content": content, "sha256": files.seal(content)}, indent=1)
            files.replace(self.directory / f"{step}.json", text)
        except Exception as error:
            raise self._failed(step, error) from error
        if not self._aside.is_symlink():
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
                scores[step] = json.loads(files.read(self.directory / f"{step}.json"))["content"]["score"]
        scored = [step for step, score in scores.items() if score is not None]
        # Of equal scores the earliest counts, as in the run's own record of its best.
        best = max(scored, key=lambda step: (scores[step], -step), default=None)
        for step in steps[self._keep :]:
            if step != best and step in scores:
                self._delete(step)

    def _delete(self, step: int) -> None:
        # Under another name the manifest makes nothing good, and a start after a kill in between knows what to finish.
        doomed = self.directory / f"{step}.deleting"
        _remove(doomed)  # a folder, perhaps
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
        self._opened.close()


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
