"""The code that a user gives a run: the experiment's file, and the user's own modules that it imports.

It belongs to *what* a run computes, by the sha256 of each file. Own modules are all that is imported, directly or by
another one of them, and is neither Python's, nor installed, nor cnnjax itself.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import pathlib
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from types import CodeType, ModuleType
from typing import Any

from cnnjax.ops.errors import InputError
from cnnjax.training import files

Code = dict[str, str]
"""sha256 of each file, by its path relative to the experiment's folder."""


# ---- executing an experiment's file --------------------------------------------------------------------------------


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles the bytes that it reads, and remembers their sha256.

    Python's own loader takes what it has compiled before for any file of the same size and second of change.
    """

    def __init__(self, name: str, path: str, allowed: frozenset[str] | None):
        super().__init__(name, path)
        self.allowed = allowed

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        content = self.get_data(path)
        sha256 = hashlib.sha256(content).hexdigest()
        if self.allowed is not None and sha256 not in self.allowed:
            raise InputError(f"experiment: {path} is not what the run was made with, and is not executed")
        _EXECUTED[os.path.realpath(path)] = sha256
        return self.source_to_code(content, path)


class _Folder(importlib.abc.Loader):
    """Of a package that is a folder without `__init__.py`: there is nothing to execute."""

    def exec_module(self, module: ModuleType) -> None:
        pass


_OWN = (_Loader, _Folder)
"""What an experiment's own modules are loaded by."""


@dataclasses.dataclass
class _Finder:
    """Finds own modules beside the experiment's file, as `python FILE` does, or on the usual path.

    Once the file is executed, it finds what functions of the experiment import later and nothing else finds: what
    others import then is none of the experiment's.
    """

    folder: str
    allowed: frozenset[str] | None
    executing: bool = True

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] in _NOT_OWN:
            return None
        within = isinstance(_loader(sys.modules.get(name.rpartition(".")[0])), _OWN)
        if not (self.executing or within) and importlib.machinery.PathFinder.find_spec(name, path) is not None:
            return None
        spec = _search(name, [self.folder, *sys.path] if path is None else path)
        if spec is None:
            return None
        folders = spec.submodule_search_locations
        if spec.loader is None and folders and is_own(folders[0]):
            found = importlib.machinery.ModuleSpec(name, _Folder(), is_package=True)
            found.submodule_search_locations = folders
            return found
        if type(spec.loader) is not importlib.machinery.SourceFileLoader:
            return None
        if spec.origin is None or not is_own(spec.origin):
            return None
        loader = _Loader(name, spec.origin, self.allowed)
        return importlib.util.spec_from_file_location(name, loader=loader, submodule_search_locations=folders)


def _search(name: str, folders: Iterable[str]) -> importlib.machinery.ModuleSpec | None:
    """Where one of these folders has a module, as the spec of the last part of its name.

    By its whole name `PathFinder` would look for the package above it in `sys.modules`, where it need not be.
    """
    spec = importlib.machinery.PathFinder.find_spec(name.rpartition(".")[2], list(folders))
    if spec is not None and spec.submodule_search_locations is not None:
        spec.submodule_search_locations = list(spec.submodule_search_locations)
    return spec


_EXECUTED: dict[str, str] = {}
"""sha256 of the files that the latest experiment consists of, as they were when they were executed."""

_NOT_OWN = sys.stdlib_module_names | {"cnnjax", "jax", "jaxlib", "flax", "optax", "orbax", "numpy"}
"""Python's modules, and what is recorded by its version, wherever it lies."""


def execute(path: pathlib.Path, allowed: Iterable[str] | None = None) -> ModuleType:
    """Executes an experiment's file as a module, its own modules being read anew.

    Args:
      path: of a Python file.
      allowed: sha256 of all that may be executed; anything when None.

    Raises:
      InputError: there is no such file, or something else than what is allowed would be executed.
    """
    if not path.is_file():
        raise InputError(f"experiment: no such file: {path}")
    allowed = None if allowed is None else frozenset(allowed)
    name = f"cnnjax_experiment_{path.stem}"
    # Own modules of an experiment before may bear the same names, or may have been changed since.
    for old in [old for old, module in sys.modules.items() if isinstance(_loader(module), _OWN)]:
        del sys.modules[old]
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    _EXECUTED.clear()
    importlib.invalidate_caches()
    finder = _Finder(os.path.dirname(os.path.realpath(path)), allowed)
    sys.meta_path.insert(0, finder)
    spec = importlib.util.spec_from_loader(name, _Loader(name, str(path), allowed))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as an import would: dataclasses and Flax look a class's module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    finally:
        finder.executing = False
    return module


def _loader(module: ModuleType | None) -> Any:
    return getattr(getattr(module, "__spec__", None), "loader", None)


# ---- which files there are -----------------------------------------------------------------------------------------


@functools.cache
def _roots() -> tuple[str, ...]:
    """Folders whose modules are Python's, or installed, or cnnjax's."""
    paths = sysconfig.get_paths()
    found = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {site.getusersitepackages()}
    return tuple(os.path.realpath(root) + os.sep for root in (*found, pathlib.Path(__file__).parent.parent))


def is_own(file: str) -> bool:
    """Whether a module's file is the user's."""
    real = os.path.realpath(file)
    return not real.startswith(_roots()) and not {"site-packages", "dist-packages"} & set(pathlib.Path(real).parts)


def hashes(file: str | pathlib.Path | None) -> Code:
    """sha256 of an experiment's file and of each own module that it imports: as they were executed, where
    `execute` did that last, else as they are now.

    Args:
      file: of the experiment; {} without one.

    Raises:
      InputError: a file can't be read.
    """
    if file is None:
        return {}
    executed = dict(_EXECUTED) if os.path.realpath(file) in _EXECUTED else {}
    return {name: executed.get(path) or sha256 for name, (path, sha256) in _closure(file, executed).items()}


def hashes_now(file: str | pathlib.Path, also: Iterable[str] = ()) -> Code:
    """sha256 of an experiment's file and its own modules as they are now.

    Args:
      file: of the experiment.
      also: further names, as of modules that are named only when they are imported; those that are there count.
    """
    folder = os.path.dirname(os.path.realpath(file))
    more = [os.path.realpath(os.path.join(folder, name)) for name in also]
    return {name: sha256 for name, (_, sha256) in _closure(file, filter(os.path.isfile, more)).items()}


def _closure(file: str | pathlib.Path, also: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Path and sha256 of an experiment's file, of others, and of what they import, by name."""
    first = os.path.realpath(file)
    folder = os.path.dirname(first)
    found: dict[str, str] = {}
    waiting = [*((path, "") for path in also), (first, "")]
    while waiting:
        path, package = waiting.pop()
        if path in found:
            continue
        try:
            content = pathlib.Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"experiment: {path} can't be read ({error.strerror})") from error
        found[path] = hashlib.sha256(content).hexdigest()
        waiting += _imported(content, package, folder)
    return {pathlib.Path(os.path.relpath(path, folder)).as_posix(): (path, found[path]) for path in sorted(found)}


def _imported(source: bytes, package: str, folder: str) -> Iterator[tuple[str, str]]:
    """The own files that a source imports, wherever in it, each with the package it is in."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # which only its own execution can report
        return
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level and not package:
                continue  # an error when it is executed
            try:
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:
                continue
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names]
    for name in sorted({".".join(part[: i + 1]) for part in parts for i in range(len(part))}):
        spec = _find(name, folder)
        if spec and spec.origin and spec.origin.endswith(".py") and is_own(spec.origin):
            yield os.path.realpath(spec.origin), name if spec.submodule_search_locations else name.rpartition(".")[0]


def _find(name: str, folder: str) -> importlib.machinery.ModuleSpec | None:
    """Where a module is, or would be, found, without importing anything."""
    top, _, _ = name.partition(".")
    if top in _NOT_OWN:
        return None
    module = sys.modules.get(name)
    if module is not None and not isinstance(_loader(module), _OWN):  # or it is another file's own
        return getattr(module, "__spec__", None)
    parent, _, _ = name.rpartition(".")
    if not parent:
        return _search(name, [folder, *sys.path])
    above = _find(parent, folder)
    folders = list(above.submodule_search_locations or ()) if above is not None else []
    return _search(name, folders) if folders and is_own(folders[0]) else None


def is_ours(kind: Any) -> bool:
    """Whether a network, a data set, or a function that makes one, is cnnjax's own."""
    while isinstance(kind, functools.partial):
        kind = kind.func
    return str(getattr(kind, "__module__", "")).startswith("cnnjax.")


def changed(old: Code, new: Code) -> list[str]:
    """What differs of two codes, a phrase for each file; a file that was only moved or renamed doesn't differ."""
    if sorted(old.values()) == sorted(new.values()):
        return []
    kept = set(old.values()) & set(new.values())
    found = [f"{name} has changed" for name in old if name in new and old[name] != new[name]]
    found += [f"{name} is missing" for name in old if name not in new and old[name] not in kept]
    found += [f"{name} is new" for name in new if name not in old and new[name] not in kept]
    return sorted(found) or ["files of equal content were added or removed"]


# ---- the file that a run names -------------------------------------------------------------------------------------


def place(workdir: pathlib.Path) -> int:
    """What tells a run's folder from a copy of it that was unpacked or copied elsewhere: its inode's number."""
    return workdir.stat().st_ino


def why_not_executed(record: dict[str, Any], run_dir: pathlib.Path) -> str | None:
    """Why the experiment's file that a run names is not to be executed; None where it may be.

    A run's folder is data, and may be anyone's. A file that lies in it, or beside it, may have come with it, and its
    sha256 with that.

    Args:
      record: of the run, its `config.json`.
      run_dir: the run's folder.
    """
    file = record.get("experiment_file")
    if not isinstance(file, str):
        return "it is no path"
    path, folder = pathlib.Path(file), pathlib.Path(os.path.realpath(run_dir))
    if not path.is_absolute():
        return "its path is relative"
    if os.path.realpath(path) != str(path):
        # A missing file that only seems linked (/tmp may itself be a link) is missing all the same.
        return "it is a link, or lies behind one" if path.exists() else "no such file is there"
    if path.is_relative_to(folder):
        return "it lies in the run's folder"
    if not path.is_file():
        return "no such file is there"
    if path.is_relative_to(folder.parent) and record.get("place") != place(folder):
        return "it lies beside the run's folder, which was not made here, and may have come with it"
    recorded = record["what"].get("code")
    if not isinstance(recorded, dict) or not recorded:
        return f"the run was made by {files.earlier_version(record)}, which did not record its sha256"
    different = changed(recorded, hashes_now(path, recorded))
    return f"{', '.join(different)} since the run" if different else None


def git_state(file: str | pathlib.Path | None) -> dict[str, Any] | None:
    """The commit that a file's folder is at, and whether files that git tracks there were changed; None without git."""
    if file is None:
        return None

    def git(*words: str) -> str:
        settings = ("-c", "core.fsmonitor=false")  # which may be a program
        done = subprocess.run(
            ["git", *settings, *words],
            cwd=pathlib.Path(file).absolute().parent,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
