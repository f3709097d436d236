"""The training loop: from a configuration and a folder to a result, resumable at any moment."""

import contextlib
import dataclasses
import datetime
import functools
import importlib.util
import itertools
import json
import math
import os
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax import data as datasets
from cnnjax import models
from cnnjax.analysis import pictures
from cnnjax.ops.errors import InputError
from cnnjax.training import ambient, checkpoint, contract, doubts, files, metrics, processes, rundir
from cnnjax.training import code as codes
from cnnjax.training import config as configs
from cnnjax.training import mesh as meshes
from cnnjax.training.config import Config
from cnnjax.training.errors import Interrupted, RunError
from cnnjax.training.feed import evaluate_split, is_resident, make_feed
from cnnjax.training.optimizer import make_optimizer, schedule
from cnnjax.training.report import Report
from cnnjax.training.setup import (
    Derived,
    load_data,
    make_init,
    make_model,
    make_step,
    one_label,
    prepare,
    sameness,
    threads,
    versions,
)
from cnnjax.training.state import TrainState, fingerprint
from cnnjax.training.step import Preprocess
from cnnjax.training.tensorboard import Events

_SHOWN = 10_000
"""Images that `predictions.png` is chosen from, at the most."""


def train(
    config: Config,
    workdir: str | pathlib.Path,
    *,
    experiment: str = "experiment",
    experiment_file: str | None = None,
    defaults: Config | None = None,
    dataset: datasets.Dataset | datasets.PhotoSet | None = None,
    extend: bool = False,
    accept_code: bool = False,
    profile: bool = False,
    report: Report | None = None,
) -> dict[str, Any]:
    """Runs an experiment from wherever its folder stands, and returns its result.

    Args:
      config: what to compute, and where.
      workdir: the run's folder. A new one starts a run; one with a run of the same *what* goes on from its newest good
        checkpoint; a finished one gives its result again and changes nothing.
      experiment: its name in the result.
      experiment_file: the Python file it came from: its sha256, and that of the modules beside it that it imports,
        belong to *what*; recorded so that commands can load what it defines.
      defaults: the experiment's own configuration: what `config` changes of it is named in the result.
      dataset: data to use in place of `config.data.name`.
      extend: allows more steps than the run in the folder was made for.
      accept_code: goes on with an experiment's file, or modules of it, that changed since the run was begun.
      profile: writes a trace of ten steps to `workdir/profile`.
      report: where progress is shown (nowhere when None).

    Returns:
      The content of `result.json`.

    Raises:
      InputError: the configuration, the data or the folder can't be right; nothing was changed.
      RunError: training failed; the newest good checkpoint is kept.
    """
    first = processes.is_first
    report = report if report and first() else Report(quiet=True)
    workdir = pathlib.Path(os.path.expanduser(workdir))
    config = configs.absolute(config)
    with contextlib.ExitStack() as stack:
        began = time.monotonic()
        configs.check(config)
        double = config.train.dtype == "float64"
        changed = stack.enter_context(ambient.pinned(double=double))
        what = rundir.what(config, codes.hashes(experiment_file))
        processes.agree("configuration", json.dumps(what, sort_keys=True))
        kept = {name: value for name, value in ambient.recorded().items() if name in ambient.RECORDED}
        processes.agree("settings of JAX", json.dumps(kept, sort_keys=True))
        examine = functools.partial(rundir.examine, workdir, what, extend=extend, accept_code=accept_code)
        finished, complaints = processes.from_first(lambda: _look(workdir, what, examine()))
        for line in complaints:
            report.warn(line)

        def shown_again(result: dict[str, Any]) -> dict[str, Any]:
            processes.from_first(lambda: _note_moved(workdir, what, experiment_file))
            report.note(_again(result, workdir))
            return result

        if (
            finished is not None
            and dataset is None
            and processes.from_first(lambda: rundir.same_sources(workdir, config))
        ):
            return shown_again(finished)

        if line := ambient.set_aside(changed, double=double):
            report.warn(line)
        if finished is None:
            processes.from_first(lambda: _check_same_settings(workdir))
        # Wrong names are found before anything slow or lasting.
        mesh = meshes.make_mesh(config.run.devices, config.run.mesh)
        if (doubt := doubts.warning()) is not None:
            report.warn(doubt)
        meshes.check_batch(config.train.batch_size, mesh, config.train.microbatches)
        make_optimizer(config.optimizer, 1)
        metrics.make_loss(config.train.loss, config.train.label_smoothing)
        make_model(config, 1)
        if config.run.tensorboard and importlib.util.find_spec("tensorboardX") is None:
            raise InputError("run.tensorboard: needs the extra: pip install 'cnnjax[tensorboard]'")

        with report.doing(f"reading {config.data.name}", announce=False):
            dataset = dataset or processes.together(lambda: load_data(config))
            splits, derived = processes.together(lambda: prepare(config, dataset))
        processes.agree("sha256 of the data", derived.sha256)
        processes.from_first(lambda: _check_same_data(workdir, derived))
        if finished is not None:
            return shown_again(finished)
        if not derived.classes and config.train.loss != "squared_error":
            raise InputError(
                f"train.loss: received {config.train.loss!r}, allowed: 'squared_error', as {dataset.name} is labelled "
                f"with numbers, not classes"
            )
        several = 1 if profile else config.run.steps_per_call
        if several > 1 and not is_resident(splits["train"], config.data):
            raise InputError(
                f"run.steps-per-call: received {several}, allowed: 1 for examples that are not kept on the device "
                f"(arrays of up to --data.resident-mb are)"
            )
        at_random = dataset.validation is None and not config.data.stratify
        for text in sameness(splits, derived.classes, at_random=at_random):
            report.warn(text)
        model = make_model(config, derived.num_classes)
        evaluation_loss = metrics.make_loss(config.train.loss, 0.0)  # labels are smoothed in training alone
        preprocess = Preprocess.of(config.data, derived.mean, derived.std, jnp.dtype(config.train.dtype))
        optimizer = make_optimizer(config.optimizer, derived.steps)
        init = make_init(config, model, optimizer, derived.image_shape)
        key = ambient.key(config.train.seed)
        shapes = contract.first_state(config, model, init, key)  # a model that can't take the images says so here
        contract.check(
            config,
            model,
            shapes,
            (
                metrics.make_loss(config.train.loss, config.train.label_smoothing, derived.class_weights),
                evaluation_loss,
            ),
            jax.ShapeDtypeStruct(derived.image_shape, jnp.dtype(config.train.dtype)),
            one_label(splits["train"]),
            len(derived.classes),
        )

        def claim() -> tuple[dict[str, Any] | None, bool]:
            """Takes the folder; gives the record of the run begun in it, and whether there are checkpoints without."""
            stack.enter_context(rundir.lock(workdir, report.warn))
            examine()  # again, now that no other run can change it
            _check_same_data(workdir, derived)
            before = rundir.read_config(workdir) if rundir.begun(workdir) else None
            return before, before is None and bool(checkpoint.steps_with_manifest(workdir / "checkpoints"))

        before, lost = processes.from_first(claim)
        record = functools.partial(_record, workdir, config, what, derived, mesh, experiment, experiment_file)
        of = {
            "what": what,
            "derived": configs.to_dict(derived),
            "history": [before["what"], *before["history"]] if before else [],
        }
        written = None if before or lost else processes.from_first(lambda: record(0))
        checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", config.run.keep)
        stack.callback(checkpoints.close)
        stack.enter_context(processes.ending_together(workdir))  # before waiting for a save that can't end
        placement = meshes.state_shardings(shapes, mesh)
        state, progress, mark = _restore(checkpoints, checkpoint.abstract(shapes, placement), of, lost, report)
        progress.since = began
        if progress.step >= derived.steps and not os.path.lexists(workdir / "result.json"):
            report.note(f"result.json is missing: it is made from checkpoint {progress.step}, nothing is trained")
        rows = processes.together(
            lambda: rundir.MetricsFile(workdir / "metrics.jsonl", progress.step, mark) if first() else None
        )
        if rows:
            stack.callback(rows.close)
            if rows.complaint:
                report.warn(rows.complaint)
        if written is None:  # only now that the run is known to go on
            written = processes.from_first(lambda: record(progress.step, rows.complaint if rows else None))
            if state is None:
                report.note(f"no checkpoint is in {checkpoints.directory}: from step 0")
        if state is None:
            with report.doing("making the initial parameters"):
                state = jax.block_until_ready(jax.jit(init, out_shardings=placement)(key))
        events = Events(workdir / "tensorboard", progress.step) if config.run.tensorboard and first() else None
        if events:
            stack.callback(events.close)

        def what_is_left() -> str:
            """What a run that fails leaves."""
            with contextlib.suppress(RunError):
                checkpoints.wait()
            saved = checkpoint.steps_with_manifest(checkpoints.directory)
            return (
                f"the checkpoint of step {saved[0]:,} in {workdir} is kept" if saved else "no checkpoint was saved yet"
            )

        def measured(step: int, split: str, sums: dict[str, float]) -> dict[str, float]:
            """What is reported of sums: written down, and refused where it is not finite."""
            values = metrics.averages(sums, derived.num_classes)
            if not math.isfinite(values["loss"]):
                raise RunError(f"step {step}: the {split} loss is {values['loss']}; {what_is_left()}")
            if rows and rows.write(step, split, values) and events:
                events.write(step, split, values)
            progress.latest[split] = values
            return values

        parameters = models.count_parameters(shapes.variables)
        report.note(
            f"{experiment}: {config.model.name} ({parameters:,} parameters) on {dataset.name} "
            f"({', '.join(f'{count:,} {split}' for split, count in derived.examples.items())}), "
            f"{mesh.size} {jax.devices()[0].platform} device{'s' * (mesh.size > 1)}, in {workdir}"
        )

        # ---- compile -------------------------------------------------------------------------------------------
        feeds = {name: make_feed(split, mesh, config.data) for name, split in splits.items()}
        started = time.monotonic()
        if progress.step < derived.steps:  # else the result alone is to be made
            with report.doing("compiling the training step"):
                take_steps = feeds["train"].compile_steps(
                    make_step(config, model, optimizer, preprocess, mesh, derived.class_weights),
                    state,
                    config.train.batch_size,
                    several,
                )
        compile_seconds = time.monotonic() - started
        evaluate = functools.partial(
            evaluate_split,
            model=model,
            loss=evaluation_loss,
            preprocess=preprocess,
            batch_size=config.run.eval_batch_size,
        )

        shown = "test" if "test" in feeds else "validation"  # in `predictions.png`
        outputs: np.ndarray | None = None

        # ---- train ---------------------------------------------------------------------------------------------
        steps, size = derived.steps, config.train.batch_size
        examples = len(splits["train"])
        evaluate_every = config.train.evaluate_every or max(1, -(-examples // size))
        window: list[tuple[int, dict[str, jax.Array]]] = []  # of the steps since the last line of training metrics

        def flush(step: int) -> None:
            """Fetches the metrics of the steps since the last call, refusing a loss that is not finite."""
            nonlocal clock
            fetched = [
                {name: np.atleast_1d(values)[i] for name, values in sums.items()}
                for count, sums in jax.device_get(window)
                for i in range(count)
            ]
            window.clear()
            progress.train_seconds += time.monotonic() - clock
            for number, sums in enumerate(fetched, step - len(fetched) + 1):
                if not math.isfinite(sums["loss"]):
                    raise RunError(
                        f"step {number}: the training loss is {float(sums['loss'])}; {what_is_left()} (a smaller "
                        f"--optimizer.learning-rate, or --optimizer.clip-norm, may help)"
                    )
            progress.train_examples += size * len(fetched)
            progress.window = metrics.add([progress.window, *fetched])
            clock = time.monotonic()

        def save(step: int, score: list[float] | None) -> None:
            if not _all_finite(state):
                raise RunError(f"step {step}: a parameter is not finite; {what_is_left()}")
            if events:
                events.flush()
            progress.seconds += time.monotonic() - progress.since
            progress.since = time.monotonic()
            checkpoints.save(step, state, progress.to_meta(step, of, rows.mark() if rows else None), score)

        def saved_at(step: int) -> str:
            return f"stopped at step {step:,} of {steps:,} and saved; the same command with --workdir {workdir} goes on"

        stop = stack.enter_context(_StopSignal())
        report.start(progress.step, steps, examples / size, evaluate_every)
        stack.callback(report.stop)
        clock = time.monotonic()
        first_traced = min(steps, progress.step + 11)  # past the steps in which caches warm up
        stops = [evaluate_every, config.run.log_every, config.run.checkpoint_every or steps]
        step = progress.step
        upcoming = feeds["train"].batches(step, steps, size, config.train.seed)
        stack.callback(upcoming.close)
        while step < steps:
            if profile and step + 1 == first_traced:
                jax.profiler.start_trace(workdir / "profile")
                stack.callback(_stop_trace)
            batches = list(itertools.islice(upcoming, min(several, steps - step, *(n - step % n for n in stops))))
            state, sums = take_steps(state, batches)
            step += len(batches)
            window.append((len(batches), sums))
            if len(window) > 2:  # never more than two calls ahead of the device: a stop is prompt and the bar honest
                window[-3][1]["loss"].block_until_ready()
            report.advance(step, window[-3][1] if len(window) > 2 else None)
            if profile and step == min(steps, first_traced + 9):
                flush(step)
                _stop_trace()
                report.note(f"trace     {workdir / 'profile'}")
                clock = time.monotonic()  # writing the trace is not training

            at_evaluation = step % evaluate_every == 0 or step == steps
            at_checkpoint = config.run.checkpoint_every and step % config.run.checkpoint_every == 0
            at_log = step % config.run.log_every == 0 or step == steps
            stopping = stop.requested or (processes.asked_to_stop(step) and signal.SIGTERM)
            if not (at_evaluation or at_checkpoint or at_log or stopping):
                continue
            flush(step)
            if at_log:
                report.window(measured(step, "train", progress.window), progress.rate)
                progress.window = {}
            score, better = None, False
            if at_evaluation and "validation" in feeds:
                kept = step == steps and shown == "validation"
                sums, outputs = evaluate(state.evaluated, feeds["validation"], keep_outputs=kept)
                values = measured(step, "validation", sums)
                # Of equal accuracies the lower loss is the better: small validation sets have many.
                score = [values["accuracy"], -values["loss"]] if "accuracy" in values else [-values["loss"]]
                better = progress.best_score is None or score > progress.best_score
                if better:
                    progress.best_step, progress.best_score = step, score
            if at_evaluation:
                report.milestone(step, progress.latest.get("validation", {}), better)
            if at_evaluation or at_checkpoint or stopping:
                save(step, score)
            if stopping and step < steps:
                checkpoints.wait()
                raise Interrupted(saved_at(step), stopping)
            clock = time.monotonic()
        checkpoints.wait()
        stop.when_saved(saved_at(steps))
        report.stop()

        # ---- result --------------------------------------------------------------------------------------------
        result: dict[str, Any] = {
            "experiment": experiment,
            "model": config.model.name,
            "data": dataset.name,
            "seed": config.train.seed,
            "steps": steps,
            "parameters": parameters,
            "changed": configs.changes(defaults or config, config),
        }
        if "test" in feeds:
            with report.doing(f"evaluating on {len(splits['test']):,} test images", announce=False):
                sums, outputs = evaluate(state.evaluated, feeds["test"], keep_outputs=True)
            measured(steps, "test", sums)
        for split, values in progress.latest.items():
            result |= {f"{split}_{name}": value for name, value in values.items()}
        if progress.best_step is not None and progress.best_score is not None:
            result["best_step"] = progress.best_step
            result["best_validation_loss"] = -progress.best_score[-1]
            if len(progress.best_score) > 1:
                result["best_validation_accuracy"] = progress.best_score[0]
            if "test" in feeds:
                best = _best_variables(checkpoints, progress.best_step, checkpoint.abstract(shapes, placement), report)
                if best is not None:
                    values = metrics.averages(evaluate(best, feeds["test"])[0], derived.num_classes)
                    result |= {f"best_test_{name}": value for name, value in values.items()}
        progress.seconds += time.monotonic() - progress.since
        state = processes.whole(state, meshes.replicated(mesh))

        def conclude() -> dict[str, Any]:
            nonlocal result
            assert rows is not None
            assert written is not None
            result |= {
                "seconds": progress.seconds,
                "train_seconds": progress.train_seconds,
                "compile_seconds": compile_seconds,
                "examples_per_second": progress.rate,
                "fingerprint": fingerprint(state),
                "versions": versions(),
                "devices": meshes.describe(mesh),
                "history": written["history"],
                "run": rundir.run_of(of),
                "metrics": dataclasses.asdict(rows.mark()),
                "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            }
            if (gone := rundir.lost_record(workdir)) is not None:  # while it trained
                report.warn(f"{gone}; it is written anew")
                if os.path.lexists(workdir / "config.json"):
                    rundir.set_aside(workdir / "config.json", "config-set-aside.json")
                rundir.write_record(workdir / "config.json", written)
            # Before any picture, of which nothing else depends.
            result = rundir.write_record(workdir / "result.json", result)
            rate = schedule(config.optimizer, steps)
            _draw(
                workdir / "curves.png",
                report,
                lambda file: pictures.curves(
                    rows.rows,
                    file,
                    title=f"{experiment}, seed {config.train.seed}",
                    steps_per_epoch=examples / size,
                    learning_rate=lambda step: float(np.asarray(rate(step))),
                ),
            )
            if outputs is not None and derived.classes:
                some = feeds[shown].pictures(_SHOWN)
                said = outputs[: len(some)]
                sure = metrics.probabilities(config.train.loss, said)
                _draw(
                    workdir / "predictions.png",
                    report,
                    lambda file: pictures.predictions(
                        some.image, some.label, said, sure, derived.classes, file, split=shown
                    ),
                )
            return result

        return processes.from_first(conclude)


# ---- where a run stands --------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Progress:
    """What the loop knows besides the state; saved in the manifest of each checkpoint."""

    step: int = 0
    seconds: float = 0.0
    train_seconds: float = 0.0
    train_examples: int = 0
    best_step: int | None = None
    best_score: list[float] | None = None
    window: dict[str, float] = dataclasses.field(default_factory=dict)
    """Sums of the training metrics since the last line of them."""
    latest: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """The newest metrics of each split."""
    since: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def rate(self) -> float:
        """Examples trained on a second, without compilation, evaluation and saving."""
        return self.train_examples / self.train_seconds if self.train_seconds else 0.0

    def to_meta(self, step: int, of: dict[str, Any], mark: rundir.Mark | None) -> dict[str, Any]:
        """For a checkpoint's manifest: with whose it is, and how the lines of metrics up to it are known again."""
        values = dataclasses.asdict(self) | {"step": step, "identity": rundir.identity(of["what"])}
        values |= {"data": rundir.data_of(of["derived"]), "steps": of["derived"]["steps"]}
        values["metrics"] = mark and dataclasses.asdict(mark)
        del values["since"]
        return values

    @classmethod
    def from_meta(cls, meta: dict[str, Any]) -> "tuple[_Progress, rundir.Mark | None]":
        """The inverse; an `InputError` where a value is of another type."""
        own = {field.name for field in dataclasses.fields(cls)}
        mark = meta.get("metrics")
        return (
            configs.from_dict(cls, {name: value for name, value in meta.items() if name in own}),
            configs.from_dict(rundir.Mark, mark) if mark else None,
        )


def _restore(
    checkpoints: checkpoint.Checkpoints, target: TrainState, of: dict[str, Any], lost: bool, report: Report
) -> tuple[TrainState | None, _Progress, rundir.Mark | None]:
    manifest, complaints = checkpoints.newest_good()
    for complaint in complaints:
        report.warn(f"{complaint}; it is set aside")
    if manifest is None:
        if complaints:
            raise RunError(
                f"no good checkpoint is left in {checkpoints.directory} ({complaints[-1]}); run the command again to "
                f"start from step 0, or put an intact copy there"
            )
        return None, _Progress(), None
    rundir.check_owner(manifest, checkpoints.directory, of, lost=lost)
    try:
        progress, mark = _Progress.from_meta(manifest.meta)
    except InputError as error:
        raise RunError(
            f"checkpoint {manifest.step} in {checkpoints.directory}: its manifest is not one ({error})"
        ) from error
    state = checkpoint.restore(checkpoints.directory, manifest, target, version=files.version_of(of))
    report.note(f"resuming from step {manifest.step:,}")
    return state, progress, mark


def _best_variables(
    checkpoints: checkpoint.Checkpoints, step: int, target: TrainState, report: Report
) -> dict[str, Any] | None:
    try:
        return checkpoint.restore(checkpoints.directory, checkpoints.intact(step), target).evaluated
    except RunError as error:
        report.warn(f"the best step can't be evaluated on the test images: {error}")
        return None


def _look(workdir: pathlib.Path, what: dict[str, Any], lines: list[str]) -> tuple[dict[str, Any] | None, list[str]]:
    """The result of a run that has made all the steps asked for, and more lines, about records not known as written."""
    if not rundir.begun(workdir):
        return None, lines
    record = rundir.read_config(workdir)
    if changed := rundir.doubt(workdir / "config.json", record):
        lines = [*lines, changed]
    result, complaints = rundir.find_result(workdir, record)
    return result if rundir.same_configuration(workdir, what) else None, [*lines, *complaints]


def _note_moved(workdir: pathlib.Path, what: dict[str, Any], experiment_file: str | None) -> None:
    """Records where a finished run's folder and the experiment's file are now, that were moved unchanged."""
    record = rundir.read_config(workdir)
    here = {"experiment_file": experiment_file, "place": codes.place(workdir)}
    same = not codes.changed(record["what"].get("code") or {}, what["code"])
    if what["code"] and same and record | here != record and not rundir.doubt(workdir / "config.json", record):
        rundir.write_record(workdir / "config.json", record | here)


def _again(result: dict[str, Any], workdir: pathlib.Path) -> str:
    """The line about a finished run that is shown, not made."""
    date = str(result.get("finished", ""))[:16].replace("T", " ")
    when = f" on {date} UTC" if date else ""
    return (
        f"finished{when}, nothing computed: this is the result in {workdir} (more --train.steps with --extend go on; "
        f"another --workdir starts anew)"
    )


def _check_same_data(workdir: pathlib.Path, derived: Derived) -> None:
    """Refuses data, or a length, that a run in the folder was not begun with."""
    if not rundir.begun(workdir):
        return
    before = rundir.read_config(workdir)["derived"]
    configs.from_dict(Derived, before, "derived")
    for name, value in json.loads(json.dumps(dataclasses.asdict(derived))).items():
        # Where files lie may change, and so may the number of steps; what is in them may not.
        if name not in ("steps", "provenance", "brightness") and before.get(name) != value:
            raise InputError(
                f"data: {name} is {value}, but was {before.get(name)} when {workdir} was begun; other data need "
                f"another workdir"
            )
    if derived.steps < before["steps"]:
        raise InputError(
            f"train.steps: received {derived.steps}, allowed: {before['steps']} or more, which {workdir} was made for"
        )


def _check_same_settings(workdir: pathlib.Path) -> None:
    """Refuses to go on with products computed more or less exactly than before."""
    if not rundir.begun(workdir):
        return
    for part in rundir.read_config(workdir)["history"][-1:]:
        # Earlier versions recorded none.
        if "settings" in part and (said := ambient.differing(part["settings"], ambient.recorded())):
            raise InputError(f"workdir: {workdir} holds a run begun with another setting of JAX: {said}")


def _record(
    workdir: pathlib.Path,
    config: Config,
    what: dict[str, Any],
    derived: Derived,
    mesh: jax.sharding.Mesh,
    experiment: str,
    experiment_file: str | None,
    step: int,
    complaint: str | None = None,
) -> dict[str, Any]:
    """Writes `config.json`, and adds to its history that the run goes on from `step`, on what and for how long."""
    before = rundir.read_config(workdir) if rundir.begun(workdir) else None
    history = before["history"] if before else []
    if before is None and os.path.lexists(workdir / "config.json"):
        rundir.set_aside(workdir / "config.json", "config-set-aside.json")
    if os.path.lexists(workdir / "result.json"):  # of fewer steps, as the run is extended; or not this run's
        result = rundir.find_result(workdir, before)[0] if before else None
        name = f"result-{before['derived']['steps']}.json" if before and result else "result-set-aside.json"
        rundir.set_aside(workdir / "result.json", name)
    part: dict[str, Any] = {
        "from_step": step,
        "steps": derived.steps,
        "devices": meshes.describe(mesh),
        "threads": threads(),
        "versions": versions(),
        "settings": ambient.recorded(),
    }
    part |= {"code": what["code"], "git": codes.git_state(experiment_file)}
    if complaint:
        part["metrics"] = complaint
    record = {
        "experiment": experiment,
        "experiment_file": experiment_file,
        "place": codes.place(workdir),
        "config": configs.to_dict(config),
        "what": what,
        "derived": dataclasses.asdict(derived),
        "history": [*history, part],
    }
    return rundir.write_record(workdir / "config.json", record)


def _draw(path: pathlib.Path, report: Report, draw: Callable[[pathlib.Path], None]) -> None:
    """Writes a picture, by rename as all files of a run's folder; one that can't be drawn is no more than a warning."""
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        temporary.unlink(missing_ok=True)  # a link, perhaps, through which nothing is to be written
        draw(temporary)
        os.replace(temporary, path)
    except Exception as error:  # of the many parts that a picture takes
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # what is drawn of it
        if isinstance(error, Interrupted):
            raise
        report.warn(f"{path} can't be drawn ({type(error).__name__}: {error}); the result is whole")


def _stop_trace() -> None:
    with contextlib.suppress(RuntimeError):  # it was stopped already
        jax.profiler.stop_trace()


def _all_finite(state: TrainState) -> bool:
    leaves = [
        leaf
        for leaf in jax.tree.leaves((state.params, state.batch_stats, state.ema))
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return bool(jax.device_get(_finite(leaves)))


@jax.jit
def _finite(leaves):
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


class _StopSignal(contextlib.AbstractContextManager):
    """While it is open, Ctrl-C, SIGTERM and SIGHUP set `requested` to the signal's number; a second one kills as usual.

    But for SIGHUP, which a terminal that is closed sends more than once; where it is ignored (nohup) it stays so.

    Of several processes one may be asked alone: JAX hears SIGTERM there, and tells all (`processes.asked_to_stop`).
    """

    def __init__(self):
        self.requested = 0
        self._heard = False
        self._saved = ""
        self._before: dict[int, Any] = {}

    def when_saved(self, message: str) -> None:
        """From here on nothing is left to be saved: a signal raises `Interrupted` at once, and so does one before."""
        self._saved = message
        if self.requested:
            raise Interrupted(message, self.requested)

    def _request(self, number, frame):
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)
            if self._heard:
                return
        if self._heard:
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
            return
        self._heard = True
        if processes.several():
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.requested = number
            if self._saved:
                raise Interrupted(self._saved, number)

    def __enter__(self):
        heard = [signal.SIGINT] if processes.several() else [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            heard.append(signal.SIGHUP)
        with contextlib.suppress(ValueError):  # not in the main thread, where signals can't be caught: no matter
            for number in heard:
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        # Where a handler raises within a callback, of the garbage collector perhaps, Python prints that and goes on.
        if kind is None and self._saved and self.requested:
            raise Interrupted(self._saved, self.requested)
