"""The training loop: what a run leaves behind, and that it resumes as if nothing had happened."""

import dataclasses
import gc
import json
import math
import signal

import jax
import numpy as np
import pytest

import cnnjax
from cnnjax.ops.errors import InputError
from cnnjax.training import Interrupted, RunError, checkpoint, config, feed, loop, train


def change(cfg, section, **fields):
    return dataclasses.replace(cfg, **{section: dataclasses.replace(getattr(cfg, section), **fields)})


def metrics_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_the_contract_says(tiny_config, tiny_data, tmp_path):
    result = train(tiny_config, tmp_path / "run", experiment="tiny", dataset=tiny_data)
    run = tmp_path / "run"
    assert result == json.loads((run / "result.json").read_text())
    expected = {
        "experiment": "tiny", "seed": 0, "steps": 24, "parameters": (9 * 4 + 4) + 2 * 4 + (5 * 5 * 4 * 3 + 3),
    }  # fmt: skip
    assert {name: result[name] for name in expected} == expected
    assert result["test_accuracy"] * 31 == pytest.approx(round(result["test_accuracy"] * 31))  # a count of exactly 31
    assert len(result["fingerprint"]) == 64
    assert result["seconds"] > result["train_seconds"] > 0
    assert result["examples_per_second"] == pytest.approx(24 * 16 / result["train_seconds"])
    assert {"jax", "flax", "optax", "python"} <= set(result["versions"])
    assert result["devices"]["count"] == 1
    for name in ("config.json", "curves.png", "predictions.png"):
        assert (run / name).stat().st_size > 0
    rows = metrics_of(run)
    assert [row["step"] for row in rows if row["split"] == "train"] == [5, 10, 15, 20, 24]
    assert [row["step"] for row in rows if row["split"] == "validation"] == [7, 14, 21, 24]
    assert [row["step"] for row in rows if row["split"] == "test"] == [24]
    scores = {row["step"]: (row["accuracy"], -row["loss"]) for row in rows if row["split"] == "validation"}
    assert result["best_validation_accuracy"] == max(scores.values())[0]
    assert result["best_step"] == min(step for step, score in scores.items() if score == max(scores.values()))


def test_it_learns(tiny_config, tiny_data, tmp_path):
    """The classes can be told apart by eye: a network that learns at all gets nearly all of them."""
    cfg = change(change(tiny_config, "train", steps=100), "data", shift=0, pad_crop=0, flip=False)
    result = train(cfg, tmp_path / "run", dataset=tiny_data)
    assert result["test_accuracy"] > 0.9
    assert result["train_loss"] < 0.5


def test_loading_a_run_gives_what_was_evaluated(tiny_config, tiny_data, tmp_path):
    result = train(tiny_config, tmp_path / "run", dataset=tiny_data)
    model, variables, loaded = cnnjax.load(tmp_path / "run")
    assert loaded == tiny_config
    run = cnnjax.training.load_run(tmp_path / "run")
    logits = model.apply(variables, run.preprocess(tiny_data.test.image))
    assert (np.argmax(logits, -1) == tiny_data.test.label).mean() == pytest.approx(result["test_accuracy"])
    best = cnnjax.training.load_run(tmp_path / "run", best=True)
    assert best.step == result["best_step"]


def test_a_finished_run_is_shown_and_not_changed(tiny_config, tiny_data, tmp_path):
    result = train(tiny_config, tmp_path / "run", dataset=tiny_data)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"}
    assert train(tiny_config, tmp_path / "run", dataset=tiny_data) == result
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"}
    assert after == before


def test_one_seed_is_one_fingerprint_and_another_is_another(tiny_config, tiny_data, tmp_path):
    fingerprints = [
        train(change(tiny_config, "train", seed=seed), tmp_path / str(i), dataset=tiny_data)["fingerprint"]
        for i, seed in enumerate((3, 3, 4))
    ]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop_at", [1, 7, 8, 13, 23])
def test_a_stopped_run_resumes_as_if_nothing_had_happened(tiny_config, tiny_data, tmp_path, monkeypatch, stop_at):
    """Stopped before step `stop_at` + 1 and started again: the same parameters bit for bit, the same metric lines."""
    cfg = change(tiny_config, "run", checkpoint_every=4)
    whole = train(cfg, tmp_path / "whole", dataset=tiny_data)

    original = feed.batch_indices

    def stopping(n, size, step, seed):
        if step == stop_at:
            raise Stopped
        return original(n, size, step, seed)

    with monkeypatch.context() as patch:
        patch.setattr(feed, "batch_indices", stopping)
        with pytest.raises(Stopped):
            train(cfg, tmp_path / "parts", dataset=tiny_data)
    resumed = train(cfg, tmp_path / "parts", dataset=tiny_data)
    assert resumed["fingerprint"] == whole["fingerprint"]
    assert metrics_of(tmp_path / "parts") == metrics_of(tmp_path / "whole")
    timings = {"seconds", "train_seconds", "compile_seconds", "examples_per_second", "history", "finished", "seal"}
    assert {k: v for k, v in resumed.items() if k not in timings} == {
        k: v for k, v in whole.items() if k not in timings
    }


def asked_in_a_callback(*_, **__):
    """Ctrl-C while the garbage is collected: Python prints what a callback raises, and goes on."""
    asking = lambda phase, _: phase == "start" and signal.raise_signal(signal.SIGINT)
    gc.callbacks.append(asking)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(asking)


@pytest.mark.parametrize("ask", [lambda *_, **__: signal.raise_signal(signal.SIGINT), asked_in_a_callback])
def test_a_signal_after_the_last_checkpoint_is_not_lost(tiny_config, tiny_data, tmp_path, monkeypatch, capsys, ask):
    """Neither as a picture that can't be drawn, nor where what a handler raises goes nowhere; and Python prints
    nothing, which would be an error here."""
    with monkeypatch.context() as patch:
        patch.setattr(loop.pictures, "curves", ask)
        with pytest.raises(Interrupted) as stopped:
            train(tiny_config, tmp_path, dataset=tiny_data)
    assert stopped.value.status == 130
    assert "can't be drawn (Interrupted" not in capsys.readouterr().err
    assert not list(tmp_path.glob(".*.tmp*"))
    assert train(tiny_config, tmp_path, dataset=tiny_data)["steps"] == tiny_config.train.steps


def test_extending_equals_having_asked_for_more(tiny_config, tiny_data, tmp_path):
    """With a schedule that does not depend on the length of the run."""
    cfg = change(tiny_config, "optimizer", schedule="constant", warmup=0.0)
    longer = change(cfg, "train", steps=40)
    whole = train(longer, tmp_path / "whole", dataset=tiny_data)
    train(cfg, tmp_path / "parts", dataset=tiny_data)
    with pytest.raises(InputError, match=r"train.steps was 24, received 40 \(--extend allows more steps\)"):
        train(longer, tmp_path / "parts", dataset=tiny_data)
    assert train(longer, tmp_path / "parts", dataset=tiny_data, extend=True)["fingerprint"] == whole["fingerprint"]
    with pytest.raises(InputError, match=r"train.steps: received 24, allowed: 40 or more"):
        train(cfg, tmp_path / "parts", dataset=tiny_data, extend=True)


def test_another_what_is_refused_and_another_where_is_not(tiny_config, tiny_data, tmp_path):
    result = train(tiny_config, tmp_path / "run", dataset=tiny_data)
    with pytest.raises(InputError, match=r"optimizer.learning_rate was 0.1, received 0.2"):
        train(change(tiny_config, "optimizer", learning_rate=0.2), tmp_path / "run", dataset=tiny_data)
    assert train(change(tiny_config, "run", log_every=3), tmp_path / "run", dataset=tiny_data) == result


def test_other_data_of_the_same_name_are_refused(tiny_config, tiny_data, tmp_path):
    """Even where only one label differs, and whether the run is finished or not."""
    train(tiny_config, tmp_path / "run", dataset=tiny_data)
    label = tiny_data.train.label.copy()
    label[[0, 1]] = label[[1, 0]]
    other = dataclasses.replace(tiny_data, train=cnnjax.data.Arrays(tiny_data.train.image, label))
    for _ in range(2):
        with pytest.raises(InputError, match=r"data: sha256 is .* other data need another workdir"):
            train(tiny_config, tmp_path / "run", dataset=other)
        (tmp_path / "run" / "result.json").unlink(missing_ok=True)


def test_a_nan_stops_the_run_by_name_and_keeps_the_last_good_checkpoint(tiny_config, tiny_data, tmp_path):
    cfg = change(change(tiny_config, "run", checkpoint_every=1), "optimizer", learning_rate=1e8, weight_decay=1e8)
    with pytest.raises(RunError, match=r"step \d+: (the training loss is (nan|inf)|a parameter is not finite)"):
        train(cfg, tmp_path / "run", dataset=tiny_data)
    directory = tmp_path / "run" / "checkpoints"
    newest = checkpoint.steps_with_manifest(directory)[0]
    checkpoint.read_manifest(directory, newest)
    variables = cnnjax.load(tmp_path / "run")[1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


def test_data_too_large_for_the_device_train_to_the_same_parameters(tiny_config, tiny_data, tmp_path):
    resident = train(tiny_config, tmp_path / "resident", dataset=tiny_data)
    sent = train(change(tiny_config, "data", resident_mb=0.0), tmp_path / "sent", dataset=tiny_data)
    assert sent["test_loss"] == pytest.approx(resident["test_loss"], rel=1e-5)
    assert metrics_of(tmp_path / "sent")[0]["loss"] == pytest.approx(metrics_of(tmp_path / "resident")[0]["loss"])


def test_regression_by_squared_error(tiny_config, tiny_data, tmp_path):
    """Targets are real numbers: two outputs that the brightness of the image's parts determine."""

    def to_targets(arrays):
        targets = np.stack([arrays.image[:, :3].mean((1, 2, 3)), arrays.image[:, 6:].mean((1, 2, 3))], -1) / 255
        return cnnjax.data.Arrays(arrays.image, targets.astype(np.float32))

    dataset = dataclasses.replace(
        tiny_data, train=to_targets(tiny_data.train), test=to_targets(tiny_data.test), classes=()
    )
    cfg = change(tiny_config, "train", loss="squared_error", steps=100)
    cfg = change(cfg, "optimizer", learning_rate=0.02)
    cfg = change(cfg, "data", shift=0, flip=False, pad_crop=0)
    result = train(cfg, tmp_path / "run", dataset=dataset)
    assert "test_accuracy" not in result
    assert result["test_loss"] < np.var(to_targets(tiny_data.test).label, 0).mean() / 2
    assert result["best_validation_loss"] > 0
    assert cnnjax.load(tmp_path / "run")[0].num_classes == 2


def test_two_processes_can_not_train_in_one_folder(tiny_config, tiny_data, tmp_path):
    from cnnjax.training import rundir

    with rundir.lock(tmp_path / "run"), pytest.raises(InputError, match="another process is training"):
        train(tiny_config, tmp_path / "run", dataset=tiny_data)


def test_quick_shrinks(tiny_config):
    small = config.quick(tiny_config)
    assert small.train.steps == 8
    assert small.data.limit == 256
    assert config.total_steps(small, 1000) == 8


def test_epochs_become_steps_without_losing_a_part():
    from cnnjax.training import Config, Train

    cfg = Config(train=Train(epochs=2, batch_size=32))
    assert config.total_steps(cfg, 100) == math.ceil(200 / 32)


@pytest.mark.parametrize("resident_mb", [100.0, 0.0])
def test_nothing_is_transferred_by_accident(tiny_config, tiny_data, tmp_path, monkeypatch, resident_mb):
    """Every step takes explicit transfers only: the index of a batch, or the batch."""
    kind = feed.ResidentFeed if resident_mb else feed.ArraysFeed
    original = kind.compile

    def guarded(self, *args, **kwargs):
        step = original(self, *args, **kwargs)

        def call(*args, **kwargs):
            with jax.transfer_guard("disallow"):
                return step(*args, **kwargs)

        return call

    monkeypatch.setattr(kind, "compile", guarded)
    train(change(tiny_config, "data", resident_mb=resident_mb), tmp_path / "run", dataset=tiny_data)


def test_each_program_is_compiled_once(tiny_config, tiny_data, tmp_path):
    """A training step, and an evaluation for each of the two splits; not one more in 24 steps and five evaluations."""
    compiled = []
    original = jax.stages.Lowered.compile

    def counting(self, *args, **kwargs):
        compiled.append(self)
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", counting)
        train(tiny_config, tmp_path / "run", dataset=tiny_data)
    assert len(compiled) == 3


def test_an_extension_that_can_not_go_on_keeps_the_old_result(tiny_config, tiny_data, tmp_path):
    result = train(tiny_config, tmp_path / "run", dataset=tiny_data)
    for manifest in (tmp_path / "run" / "checkpoints").glob("*.json"):
        manifest.write_text("damaged")
    with pytest.raises(RunError, match="no good checkpoint is left"):
        train(change(tiny_config, "train", steps=40), tmp_path / "run", dataset=tiny_data, extend=True)
    assert train(tiny_config, tmp_path / "run", dataset=tiny_data) == result


def test_float64_through_checkpoints(tiny_config, tiny_data, tmp_path, monkeypatch):
    """Saved, resumed, loaded and evaluated in float64; Orbax restores in threads of its own."""
    cfg = change(change(tiny_config, "train", dtype="float64"), "run", checkpoint_every=4)
    whole = train(cfg, tmp_path / "whole", dataset=tiny_data)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_all_finite", stop_at_third_call())
        with pytest.raises(Stopped):
            train(cfg, tmp_path / "parts", dataset=tiny_data)
    resumed = train(cfg, tmp_path / "parts", dataset=tiny_data)
    assert resumed["history"][-1]["from_step"] == 7
    assert resumed["fingerprint"] == whole["fingerprint"]
    variables = cnnjax.load(tmp_path / "whole", best=True)[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {np.dtype("float64")}
    assert not jax.config.jax_enable_x64  # as it was before


def stop_at_third_call():
    calls = []

    def check(state):
        calls.append(state)
        if len(calls) == 3:
            raise Stopped
        return True

    return check


def test_damage_is_never_passed_over_in_silence(tiny_config, tiny_data, tmp_path):
    """A run whose newest checkpoint is damaged loads with a warning; a damaged best one is an error."""
    result = train(tiny_config, tmp_path / "run", dataset=tiny_data)
    directory = tmp_path / "run" / "checkpoints"
    (directory / "24.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"checkpoint 24 .* can't be read; step 21 is used"):
        assert cnnjax.training.load_run(tmp_path / "run").step == 21
    (directory / "24.json").unlink()
    (directory / f"{result['best_step']}.json").write_text("{}")
    with pytest.raises(RunError, match=r"checkpoint \d+"):
        cnnjax.load(tmp_path / "run", best=True)


def test_lines_of_metrics_survive_a_damaged_one(tiny_config, tiny_data, tmp_path):
    train(tiny_config, tmp_path / "run", dataset=tiny_data)
    path = tmp_path / "run" / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\xff\xfe 5\n" + b"".join(lines[1:]) + b'{"step": 24, "spl')
    (tmp_path / "run" / "result.json").unlink()
    train(tiny_config, tmp_path / "run", dataset=tiny_data)
    assert path.read_bytes() == b"".join(lines)


def test_a_result_does_not_need_the_metrics_file(tiny_config, tiny_data, tmp_path):
    result = train(tiny_config, tmp_path / "run", dataset=tiny_data)
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "metrics.jsonl").unlink()
    again = train(tiny_config, tmp_path / "run", dataset=tiny_data)
    assert again["history"][-1]["metrics"].endswith("metrics.jsonl is missing: the curves begin after step 24")
    changing = {"seconds", "compile_seconds", "history", "metrics", "finished", "seal"}
    assert {k: v for k, v in again.items() if k not in changing} == {
        k: v for k, v in result.items() if k not in changing
    }


def test_extending_keeps_the_shorter_result(tiny_config, tiny_data, tmp_path):
    short = train(tiny_config, tmp_path / "run", dataset=tiny_data)
    long = train(change(tiny_config, "train", steps=30), tmp_path / "run", dataset=tiny_data, extend=True)
    assert json.loads((tmp_path / "run" / "result-24.json").read_text()) == short
    assert [(part["from_step"], part["steps"]) for part in long["history"]] == [(0, 24), (24, 30)]
    with pytest.raises(InputError, match="holds no run to extend"):
        train(tiny_config, tmp_path / "nothing", dataset=tiny_data, extend=True)


def test_class_losses_need_classes(tiny_config, tiny_data, tmp_path):
    label = np.zeros(100, np.float32)
    numbers = dataclasses.replace(
        tiny_data, train=cnnjax.data.Arrays(tiny_data.train.image, label), test=None, classes=()
    )
    with pytest.raises(InputError, match=r"train.loss: received 'cross_entropy', allowed: 'squared_error'"):
        train(tiny_config, tmp_path / "run", dataset=numbers)
    assert not (tmp_path / "run").exists()


def test_several_steps_a_call_are_the_same_run(tiny_config, tiny_data, tmp_path):
    """Metric lines, checkpoints and result where they were; and resumed with another number."""
    one = train(tiny_config, tmp_path / "one", dataset=tiny_data)
    cfg = change(tiny_config, "run", steps_per_call=4)
    many = train(cfg, tmp_path / "many", dataset=tiny_data)
    assert many["test_loss"] == pytest.approx(one["test_loss"], rel=1e-4)
    places = [[(row["step"], row["split"]) for row in metrics_of(tmp_path / name)] for name in ("one", "many")]
    assert places[0] == places[1]
    assert sorted(p.name for p in (tmp_path / "many" / "checkpoints").iterdir()) == sorted(
        p.name for p in (tmp_path / "one" / "checkpoints").iterdir()
    )
    with pytest.raises(InputError, match=r"run\.steps-per-call: received 4, allowed: 1 for examples"):
        train(change(cfg, "data", resident_mb=0), tmp_path / "streamed", dataset=tiny_data)


def test_a_moving_average_is_evaluated_saved_and_loaded(tiny_config, tiny_data, tmp_path):
    """Its own accuracy in the metrics, in the fingerprint, through a resumed run, and from `cnnjax.load`."""
    cfg = change(tiny_config, "train", ema=0.9)
    whole = train(cfg, tmp_path / "whole", dataset=tiny_data)
    plain = train(tiny_config, tmp_path / "plain", dataset=tiny_data)
    assert whole["train_loss"] == plain["train_loss"]  # training does not see it
    assert whole["validation_loss"] != plain["validation_loss"]
    assert whole["fingerprint"] != plain["fingerprint"]

    model, variables, _ = cnnjax.load(tmp_path / "whole")
    from cnnjax.training import load_run, metrics

    run = load_run(tmp_path / "whole")
    outputs = model.apply(variables, run.preprocess(tiny_data.test.image))
    assert float(metrics.cross_entropy(outputs, tiny_data.test.label).mean()) == pytest.approx(
        whole["test_loss"], rel=1e-5
    )
    for name in ("24", "24.json"):  # as if killed before the last checkpoint was written
        (tmp_path / "whole" / "checkpoints" / name).rename(tmp_path / name)
    (tmp_path / "whole" / "result.json").unlink()
    assert train(cfg, tmp_path / "whole", dataset=tiny_data)["fingerprint"] == whole["fingerprint"]


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("train", {"microbatches": 3}, "train.microbatches: received 3, allowed: a divisor of the batch of 16"),
        ("train", {"microbatches": 0}, "train.microbatches: received 0, allowed: a number above 0"),
        ("train", {"norm_batch": 5}, "train.norm-batch: received 5, allowed: a divisor of 16"),
        ("train", {"norm_batch": 16, "microbatches": 2}, "train.norm-batch: received 16, allowed: a divisor of 8"),
        ("train", {"ema": 1.5}, "train.ema: received 1.5, allowed: 0 to 1"),
        ("run", {"steps_per_call": 0}, "run.steps-per-call: received 0, allowed: a number above 0"),
        ("run", {"mesh": {"model": 2}}, "run.mesh: received model=2, allowed: axes named data, fsdp, space"),
        ("run", {"mesh": {"fsdp": 2}, "devices": 3}, "run.mesh: received fsdp=2, allowed: axes that multiply to the 3"),
    ],
)
def test_updates_and_meshes_that_can_not_be(tiny_config, tiny_data, tmp_path, section, fields, message):
    with pytest.raises(InputError, match=message):
        train(change(tiny_config, section, **fields), tmp_path / "run", dataset=tiny_data)
    assert not (tmp_path / "run").exists()
