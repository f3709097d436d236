"""A finished or half-finished run, loaded again: its network, its parameters, its configuration."""

import dataclasses
import functools
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from cnnjax import models
from cnnjax.ops.errors import InputError
from cnnjax.training import ambient, checkpoint, files, rundir
from cnnjax.training import code as codes
from cnnjax.training import config as configs
from cnnjax.training import mesh as meshes
from cnnjax.training import predict as predicting
from cnnjax.training.config import Config
from cnnjax.training.errors import RunError
from cnnjax.training.optimizer import make_optimizer
from cnnjax.training.setup import Derived, make_init, make_model
from cnnjax.training.state import TrainState
from cnnjax.training.step import Preprocess


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A run's network with its parameters, and all it takes to use them.

    `model, variables, config = run` works too.
    """

    folder: pathlib.Path
    """Where it was loaded from."""
    model: nn.Module
    variables: dict[str, Any]
    """What `model.apply` takes: the moving averages, where the run keeps them."""
    config: Config
    info: Derived
    """What the configuration leaves to the data: classes, image shape, mean and standard deviation of the channels."""
    step: int
    """The training step that the variables are of."""
    normalize: Preprocess
    """From uint8 [n, height, width, channels] of the run's size to what the network sees."""
    not_executed: str | None
    """Which experiment's file, and why, was not executed, which may define the data; None where it was."""
    same_code: bool | None
    """Whether the experiment's file that was executed, and its own modules, are those that the run was made with; None
    where that is not known, or none was executed."""
    unsealed: bool = False
    """Whether a version of cnnjax made the run that did not seal its records (`rundir.unsealed`)."""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.variables, self.config))

    def __getitem__(self, index: int) -> Any:
        return (self.model, self.variables, self.config)[index]

    def preprocess(self, images: Any) -> jax.Array:
        """What `model.apply` takes: images resized or cropped as in the run's evaluation, and normalized.

        Args:
          images: files, or arrays uint8 of any size (`cnnjax.training.predict.as_images`). In a function that JAX
            traces, uint8 [n, height, width, channels] of the run's size.

        Returns:
          real numbers [n, height, width, channels].

        Raises:
          InputError: something is no image, or its pixels are not uint8 (numbers in [0, 1] are no pixels).
        """
        if isinstance(images, jax.core.Tracer):
            if images.dtype != jnp.uint8 or images.shape[1:] != self.info.image_shape:
                raise InputError(
                    f"images: received {images.dtype}{list(images.shape)}, allowed: uint8 of {self.info.image_shape}"
                )
            return self.normalize(images)
        return self.normalize(jnp.asarray(predicting.as_images(images, self.config.data, self.info.image_shape)))

    def predict(self, images: Any) -> np.ndarray:
        """The probability of each class, float64 [n, classes], or the outputs where the run predicts real numbers.

        Args:
          images: files, or arrays uint8 of any size (`cnnjax.training.predict.as_images`).

        Raises:
          InputError: something is no image, or its pixels are not uint8.
        """
        return predicting.predict(self, images)

    @functools.cached_property
    def apply(self) -> Callable[[Any, Any], jax.Array]:
        """The compiled network: (variables, uint8 [n, height, width, channels] of the run's size) to [n, outputs]."""
        return jax.jit(lambda variables, images: self.model.apply(variables, self.normalize(images), train=False))


def load(run_dir: str | pathlib.Path, *, best: bool = False, trust_code: bool = False) -> LoadedRun:
    """Loads a run without its data and without changing anything in its folder.

    The experiment's file, which may define the network, is executed where it is the one the run was made with (by its
    sha256) and did not come with the run's folder.

    Args:
      run_dir: the run's folder.
      best: the parameters that were best by validation, in place of the newest.
      trust_code: executes the experiment's file whatever it is and wherever it lies.

    Returns:
      The network, its variables, and `preprocess` and `predict`, which take images as the run's evaluation does.

    Raises:
      InputError: the folder holds no run, its network is defined in a file that is not executed, or JAX finds no
        devices.
      RunError: no checkpoint is intact.
    """
    run_dir = pathlib.Path(run_dir)
    found = describe(run_dir, trust_code=trust_code)
    record, config, derived = found.record, found.config, found.info
    meshes.visible()
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
    return LoadedRun(
        folder=run_dir,
        model=model,
        variables=state.evaluated,
        config=config,
        info=derived,
        step=manifest.step,
        normalize=preprocess,
        not_executed=found.not_executed,
        same_code=found.same_code,
        unsealed=rundir.unsealed(record),
    )


load_run = load  # its earlier name


@dataclasses.dataclass(frozen=True)
class Described:
    """A run without its parameters: what its record says."""

    record: dict[str, Any]
    """The content of `config.json`."""
    config: Config
    info: Derived
    """What the configuration leaves to the data."""
    not_executed: str | None
    """As in `LoadedRun`."""
    same_code: bool | None
    """As in `LoadedRun`."""


def describe(run_dir: pathlib.Path, *, trust_code: bool = False) -> Described:
    """Reads a run's record and executes its experiment's file as `load` does; no checkpoint is read, or needed.

    Args:
      run_dir: the run's folder.
      trust_code: executes the experiment's file whatever it is and wherever it lies.

    Raises:
      InputError: the folder holds no run, or its network is defined in a file that is not executed.
    """
    record = rundir.read_config(run_dir)
    if changed := rundir.doubt(run_dir / "config.json", record):
        _warn(changed)
    config = rundir.config_of(run_dir, record)
    not_executed, same_code = _execute(record, run_dir, trust_code)
    if not_executed:
        network = models.MODELS.get(config.model.name)
        if network is None or not (trust_code or codes.is_ours(network)):
            raise InputError(f"{run_dir}: its network {config.model.name!r} was defined in {not_executed}")
        _warn(f"{run_dir} was made by {not_executed}")
    try:
        derived = configs.from_dict(Derived, record["derived"], "derived")
    except InputError as error:
        raise InputError(f"{run_dir / 'config.json'}: {error}") from error
    return Described(record, config, derived, not_executed, same_code)


def _execute(record: dict[str, Any], run_dir: pathlib.Path, trust_code: bool) -> tuple[str | None, bool | None]:
    """Executes a run's experiment file, if that may be.

    Returns:
      The file's name and why it was not executed, or None; and whether what was executed is the run's code.
    """
    file = record.get("experiment_file")
    if not file:
        return None, None  # whoever trained it, in Python, has defined what it needs
    there = isinstance(file, str) and pathlib.Path(file).is_file()
    if trust_code and there:
        recorded = record["what"].get("code")
        if not isinstance(recorded, dict) or not recorded:
            _warn(f"{run_dir} does not say which code it was made with: {file} is executed as it is now")
            codes.execute(pathlib.Path(file))
            return None, None
        changed = codes.changed(recorded, codes.hashes_now(file, recorded))
        if changed:
            _warn(
                f"{run_dir}: {', '.join(changed)} since the run, and is executed as it is now: this is not the network "
                f"that was trained"
            )
        codes.execute(pathlib.Path(file))
        return None, not changed
    reason = codes.why_not_executed(record, run_dir)
    if reason is None:
        codes.execute(pathlib.Path(file), record["what"]["code"].values())
        return None, True
    if there:
        return f"{file}, which is not executed: {reason} (--trust-code, trust_code=True in Python, executes it)", None
    return f"{file}, and {reason} (launched from where it is now, with --workdir {run_dir}, it is found again)", None


def _restore(
    run_dir: pathlib.Path, directory: pathlib.Path, target: TrainState, record: dict[str, Any], best: bool
) -> tuple[checkpoint.Manifest, TrainState]:
    """A checkpoint, and what is used of its state; another one where a run in training removes it meanwhile."""
    # The optimizer's state is twice the parameters, and nothing here needs it.
    unused = ("params", "batch_stats") if target.ema else ("ema",)
    while True:
        manifest = _choose(directory, best)
        try:
            rundir.check_owner(manifest, directory, record)
            state = checkpoint.restore(
                directory,
                manifest,
                target,
                without=("step", "key", "opt_state", *unused),
                version=files.version_of(record),
            )
        except RunError:
            if _is_there(directory, manifest.step):
                raise
            continue
        if not _is_there(directory, manifest.step):  # removed while it was read
            continue
        newer = rundir.newest_step(run_dir, directory)
        if not best and newer > manifest.step and not _is_there(directory, newer):  # of damage `_choose` has told
            if rundir.is_training(run_dir):
                why = f": the run is training, and has not saved step {newer} yet"
            else:
                why = f", as there is no good checkpoint of step {newer}, which the run has reached"
            _warn(f"{run_dir}: step {manifest.step} is used{why}")
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
