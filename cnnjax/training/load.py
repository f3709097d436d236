"""A finished or half-finished run, loaded again: its network, its parameters, its configuration."""

import dataclasses
import functools
import os
import pathlib
import warnings
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax import models
from cnnjax.ops.errors import InputError
from cnnjax.training import ambient, checkpoint, rundir
from cnnjax.training import code as codes
from cnnjax.training import config as configs
from cnnjax.training import mesh as meshes
from cnnjax.training.config import Config
from cnnjax.training.errors import RunError
from cnnjax.training.optimizer import make_optimizer
from cnnjax.training.setup import Derived, make_init, make_model
from cnnjax.training.state import TrainState
from cnnjax.training.step import Preprocess


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A run's network with its parameters, and what was done to images before it saw them."""

    model: nn.Module
    variables: dict[str, Any]
    config: Config
    derived: Derived
    step: int
    preprocess: Preprocess
    not_executed: str | None
    """Which experiment's file, and why, was not executed, which may define the data; None where it was."""


def load_run(run_dir: str | pathlib.Path, *, best: bool = False, trust_code: bool = False) -> LoadedRun:
    """Loads a run without its data and without changing anything in its folder.

    The experiment's file, which may define the network, is executed where it is the one the run was made with (by its
    sha256) and did not come with the run's folder.

    Args:
      run_dir: the run's folder.
      best: the parameters that were best by validation, in place of the newest.
      trust_code: executes the experiment's file whatever it is and wherever it lies.

    Returns:
      The network, its variables and how it is used.

    Raises:
      InputError: the folder holds no run, or its network is defined in a file that is not executed.
      RunError: no checkpoint is intact.
    """
    run_dir = pathlib.Path(run_dir)
    record = rundir.read_config(run_dir)
    if changed := rundir.doubt(run_dir / "config.json", record):
        _warn(changed)
    config = rundir.config_of(run_dir, record)
    not_executed = _execute(record, run_dir, trust_code)
    if not_executed:
        network = models.MODELS.get(config.model.name)
        if network is None or not (trust_code or _is_ours(network)):
            raise InputError(f"{run_dir}: its network {config.model.name!r} was defined in {not_executed}")
        warnings.warn(f"{run_dir} was made by {not_executed}", stacklevel=2)
    derived = configs.from_dict(Derived, record["derived"])
    directory = (run_dir / "checkpoints").absolute()
    model = make_model(config, derived.num_classes)
    dtype = jnp.dtype(config.train.dtype)
    with ambient.pinned(double=config.train.dtype == "float64"):
        optimizer = make_optimizer(config.optimizer, derived.steps)
        init = make_init(config, model, optimizer, derived.image_shape)
        target = checkpoint.abstract(jax.eval_shape(init, ambient.key(0)), meshes.replicated(meshes.make_mesh(1)))
        manifest, state = _restore(
            run_dir, directory, target, record | {"what": record["what"] | configs.what(config)}, best
        )
    preprocess = Preprocess.of(config.data, derived.mean, derived.std, dtype)
    return LoadedRun(model, state.evaluated, config, derived, manifest.step, preprocess, not_executed)


def load(
    run_dir: str | pathlib.Path, *, best: bool = False, trust_code: bool = False
) -> tuple[nn.Module, dict[str, Any], Config]:
    """The network, variables and configuration of a run: `model.apply(variables, x)` gives logits.

    Args:
      run_dir: the run's folder.
      best: the parameters that were best by validation, in place of the final ones.
      trust_code: executes the experiment's file whatever it is and wherever it lies.

    Raises:
      InputError: the folder holds no run, or its network is defined in a file that is not executed.
      RunError: no checkpoint is intact.
    """
    run = load_run(run_dir, best=best, trust_code=trust_code)
    return run.model, run.variables, run.config


def _execute(record: dict[str, Any], run_dir: pathlib.Path, trust_code: bool) -> str | None:
    """Executes a run's experiment file, if that may be; if it may not, its name and why."""
    file = record.get("experiment_file")
    if not file:
        return None  # whoever trained it, in Python, has defined what it needs
    there = isinstance(file, str) and pathlib.Path(file).is_file()
    if trust_code and there:
        codes.execute(pathlib.Path(file))
        return None
    reason = codes.why_not_executed(record, run_dir)
    if reason is None:
        codes.execute(pathlib.Path(file), record["what"]["code"].values())
        return None
    if there:
        return f"{file}, which is not executed: {reason} (--trust-code, trust_code=True in Python, executes it)"
    return f"{file}, and {reason} (launched from where it is now, with --workdir {run_dir}, it is found again)"


def _is_ours(kind: Any) -> bool:
    """Whether a network, or a function that makes one, is cnnjax's own."""
    while isinstance(kind, functools.partial):
        kind = kind.func
    return str(getattr(kind, "__module__", "")).startswith("cnnjax.")


def _restore(
    run_dir: pathlib.Path, directory: pathlib.Path, target: TrainState, record: dict[str, Any], best: bool
) -> tuple[checkpoint.Manifest, TrainState]:
    """A checkpoint and its state; another one where a run that is being trained removes it meanwhile."""
    while True:
        manifest = _choose(directory, best)
        try:
            rundir.check_owner(manifest, directory, record)
            state = checkpoint.restore(directory, manifest, target)
        except RunError:
            if _is_there(directory, manifest.step):
                raise
            continue
        if not _is_there(directory, manifest.step):  # removed while it was read
            continue
        newer = rundir.newest_step(run_dir, directory)
        if not best and newer > manifest.step and not _is_there(directory, newer):  # of damage `_choose` has told
            _warn(
                f"{run_dir}: step {manifest.step} is used, as there is no good checkpoint of step {newer}, which the "
                f"run has reached"
            )
        return manifest, state


def _choose(directory: pathlib.Path, best: bool) -> checkpoint.Manifest:
    """The newest intact checkpoint, or the one that the run calls its best; damage is never passed over in silence."""
    while True:
        problems = []
        steps = checkpoint.steps_with_manifest(directory)
        for step in steps:
            try:
                newest = checkpoint.read_manifest(directory, step)
                break
            except RunError as error:
                if _is_there(directory, step):  # if not, the run has removed it meanwhile, having saved a newer one
                    problems.append(str(error))
        else:
            if problems:
                raise RunError(f"no good checkpoint in {directory}: {problems[0]}")
            if steps:
                continue
            raise InputError(f"{directory.parent}: the run has no checkpoint yet")
        for problem in problems:
            _warn(f"{problem}; step {newest.step} is used in its place")
        if not best:
            return newest
        best_step = newest.meta.get("best_step")
        if not isinstance(best_step, int):
            raise InputError(f"{directory.parent}: the run has no validation images, so no best step")
        try:
            return checkpoint.read_manifest(directory, best_step)
        except RunError:
            if checkpoint.steps_with_manifest(directory) == steps:  # if not, there may be a new best one
                raise


def _is_there(directory: pathlib.Path, step: int) -> bool:
    return os.path.lexists(directory / f"{step}.json")


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=2)
