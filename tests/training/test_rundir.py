"""The folder of a run: what was changed in it between two starts is said, and nothing outside of it is touched."""

import dataclasses
import errno
import fcntl
import json
import logging
import os
import pathlib
import random
import shutil
import subprocess
import sys
import warnings

import pytest

import cnnjax
from cnnjax.ops.errors import InputError
from cnnjax.training import Report, RunError, checkpoint, files, load_run, loop, rundir, train


class Lines(Report):
    """A report that keeps what it is told."""

    def __init__(self):
        super().__init__(quiet=True)
        self.warned = []
        self.noted = []

    def warn(self, text):
        self.warned.append(text)

    def note(self, text):
        self.noted.append(text)


@pytest.fixture(scope="module")
def finished_once():
    return {}


@pytest.fixture
def finished(finished_once, tiny_config, tiny_data, tmp_path, tmp_path_factory):
    """The folder of a finished run, of which each test has its own copy."""
    if not finished_once:
        finished_once["folder"] = tmp_path_factory.mktemp("finished") / "run"
        finished_once["result"] = train(tiny_config, finished_once["folder"], dataset=tiny_data)
    return shutil.copytree(finished_once["folder"], tmp_path / "run")


@pytest.fixture
def again(tiny_config, tiny_data, monkeypatch):
    """`again(folder)` gives the same command again: its result and the warnings."""

    def start(folder):
        report = Lines()
        result = train(tiny_config, folder, dataset=tiny_data, report=report)
        return result, report.warned

    return start


def assert_same(result, other):
    changing = {
        "seconds",
        "compile_seconds",
        "train_seconds",
        "examples_per_second",
        "history",
        "metrics",
        "seal",
        "format",
        "finished",
    }
    strip = lambda values: {name: value for name, value in values.items() if name not in changing}
    assert strip(result) == strip(other)


def resealed(path, change):
    """Edits a record by hand, and seals it again."""
    record = json.loads(path.read_text()) | change
    rundir.write_record(path, record)


def replace_by(path, kind):
    path.unlink()
    {"pipe": os.mkfifo, "folder": os.mkdir, "loop": lambda path: path.symlink_to(path.name)}[kind](path)


# ---- result.json ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_of_a_result_is_noticed(finished, seed):
    rng = random.Random(seed)
    path = finished / "result.json"
    before, content = json.loads(path.read_text()), bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    result, lines = rundir.find_result(finished, rundir.read_config(finished))
    assert result == before if not lines else result is None


def test_a_result_that_was_edited_is_made_again(finished, again, finished_once):
    path = finished / "result.json"
    edited = json.dumps(json.loads(path.read_text()) | {"test_loss": 1e-9})
    path.write_text(edited)
    result, warned = again(finished)
    assert warned == [
        f"{path} is not as it was written: it was edited, or is damaged; it is set aside, and made again from the "
        f"checkpoints"
    ]
    assert_same(result, finished_once["result"])
    assert (finished / "result-set-aside.json").read_text() == edited
    assert again(finished) == (result, [])


def test_a_result_that_was_deleted_is_made_without_training(
    finished, finished_once, tiny_config, tiny_data, monkeypatch
):
    (finished / "result.json").unlink()
    monkeypatch.setattr(loop, "make_step", None)  # which the training step would be compiled from
    report = Lines()
    result = train(tiny_config, finished, dataset=tiny_data, report=report)
    assert "result.json is missing: it is made from checkpoint 24, nothing is trained" in report.noted
    assert report.warned == []
    assert_same(result, finished_once["result"])


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "text", "another run's", "of wrong types"])
def test_what_is_no_result_is_never_shown(finished, again, finished_once, kind):
    path = finished / "result.json"
    if kind == "text":
        path.write_text("nothing")
    elif kind == "another run's":
        resealed(path, {"run": files.seal("another"), "test_accuracy": 1.0})
    elif kind == "of wrong types":
        resealed(path, {"test_accuracy": "high"})
    else:
        replace_by(path, kind)
    result, warned = again(finished)
    assert len(warned) == 1
    assert "result.json" in warned[0]
    assert "it is set aside, and made again from the checkpoints" in warned[0]
    assert_same(result, finished_once["result"])
    assert os.path.lexists(finished / "result-set-aside.json")


def test_a_run_of_an_earlier_version_is_shown_with_a_line(finished, again, finished_once):
    """Its records have no seal."""
    for name in ("result.json", "config.json"):
        record = json.loads((finished / name).read_text())
        (finished / name).write_text(
            json.dumps({key: value for key, value in record.items() if key not in ("seal", "format")})
        )
    result, warned = again(finished)
    assert_same(result, finished_once["result"])
    assert [line.partition(" is ")[2] for line in warned] == [
        f"of an earlier version of cnnjax (recorded as {cnnjax.__version__}), which did not seal it: it is read, but a "
        f"change to it would not be noticed"
    ] * 2
    with pytest.warns(UserWarning, match=r"config.json is of an earlier version of cnnjax \(recorded as"):
        load_run(finished)
    record = json.loads((finished / "config.json").read_text())
    del record["history"][-1]["versions"]
    (finished / "config.json").write_text(json.dumps(record))
    with pytest.warns(UserWarning, match="config.json is of an earlier version of cnnjax, which"):
        load_run(finished)


def test_fields_that_an_earlier_version_did_not_have_are_at_their_defaults(finished, again):
    record = rundir.read_config(finished)
    for name in ("train.ema", "train.microbatches"):
        del record["what"][name]
    rundir.write_record(finished / "config.json", record)
    assert again(finished)[0]["steps"] == 24


# ---- metrics.jsonl -------------------------------------------------------------------------------------------------


def lines_of(folder):
    return (folder / "metrics.jsonl").read_text().splitlines(keepends=True)


@pytest.mark.parametrize("kind", ["a line gone", "a value changed", "another run's", "gone", "pipe", "folder", "loop"])
@pytest.mark.parametrize("shown", [True, False])
def test_lines_of_metrics_that_were_lost_or_changed_are_said(finished, again, finished_once, kind, shown):
    """At a finished run that is shown, and at one that goes on; the result is the same."""
    path = finished / "metrics.jsonl"
    lines = lines_of(finished)
    if kind == "a line gone":
        path.write_text("".join(lines[:2] + lines[3:]))
    elif kind == "a value changed":
        path.write_text("".join([lines[0].replace('"loss": ', '"loss": 1'), *lines[1:]]))
    elif kind == "another run's":
        path.write_text("".join(line.replace("loss", "lost") for line in lines))
    elif kind == "gone":
        path.unlink()
    else:
        replace_by(path, kind)
    if not shown:
        (finished / "result.json").unlink()
    result, warned = again(finished)
    assert_same(result, finished_once["result"])
    if shown and kind == "gone":
        assert warned == [f"{path} is missing"]
    elif shown:
        assert warned == [f"{path} is not as the run wrote it: lines are missing, or were changed"]
    elif kind == "gone":
        assert warned == [f"{path} is missing: the curves begin after step 24"]
    else:
        assert warned == [
            f"{path} is not as the run wrote it up to step 24: the curves begin after step 24, and what it holds is "
            f"set aside as metrics-set-aside.jsonl"
        ]
        assert os.path.lexists(finished / "metrics-set-aside.jsonl")
        assert result["history"][-1]["metrics"] == warned[0]
        assert again(finished) == (result, [])


# ---- config.json ---------------------------------------------------------------------------------------------------


def test_a_configuration_that_was_edited_is_said(finished, again):
    """What matters is in the checkpoints' manifests too: a change to that is refused, to anything else is said."""
    path = finished / "config.json"
    record = rundir.read_config(finished)
    record["config"]["data"]["raw_dir"] = "/elsewhere"
    path.write_text(json.dumps(record))
    with pytest.warns(UserWarning, match="config.json is not as it was written: it was edited, or is damaged"):
        assert load_run(finished).config.data.raw_dir == "/elsewhere"
    for section, name, value in (("derived", "mean", [0.5]), ("config", "train", {"loss": "squared_error"})):
        changed = json.loads(json.dumps(record))
        if section == "derived":
            changed["derived"][name] = value
        else:
            changed["config"][name] |= value
        path.write_text(json.dumps(changed))
        with (
            pytest.warns(UserWarning, match="not as it was written"),
            pytest.raises(RunError, match="belongs to a run"),
        ):
            load_run(finished)
    path.write_text(json.dumps(record))
    (finished / "result.json").unlink()
    assert again(finished)[1] == [
        f"{path} is not as it was written: it was edited, or is damaged; it is written anew if the checkpoints are of "
        f"this very command"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_run(finished)  # it was written anew


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name in ("config", "what", "derived", "history")
        for value in (None, 3, "x", [], {}, [3], {"x": 1})
        if (name, value) != ("history", [])  # which is no wrong type
    ],
)
def test_a_configuration_of_wrong_types_is_one_line(finished, again, finished_once, name, value):
    """With a good seal, as one that was edited by a program."""
    resealed(finished / "config.json", {name: value})
    if name == "history" or not isinstance(value, dict):  # no record at all, but the checkpoints tell whose they are
        result, warned = again(finished.parent / shutil.copytree(finished, finished.parent / "copy").name)
        assert_same(result, finished_once["result"])
        assert "; it is written anew if the checkpoints are of this very command" in warned[0]
        uses = [load_run]
    else:
        uses = [load_run, again]
    if name == "config" and again in uses:
        uses.remove(again)  # which has its own
    if (name, value) == ("what", {}):
        uses.remove(load_run)  # which takes it from the configuration
    for use in uses:
        with pytest.raises((InputError, RunError)) as error:
            use(finished)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name, values in {
            "image_shape": ([-1, 9, 1], [9, 0, 1], [9, 9, -1], [9, 9], "x"),
            "num_classes": (0, -1, 10**12, 1.5),
            "steps": (0, -3),
            "mean": ([float("nan")], ["x"]),
            "std": ([0.0], [-1.0], [float("inf")]),
            "classes": (3, [3]),
            "examples": ([], {"train": "x"}),
            "class_weights": (3, ["x"]),
        }.items()
        for value in values
    ],
)
def test_what_no_data_give_is_one_line(finished, name, value):
    """Within the record of what was derived from the data, with a good seal."""
    derived = json.loads((finished / "config.json").read_text())["derived"]
    resealed(finished / "config.json", {"derived": derived | {name: value}})
    with pytest.raises((InputError, RunError)) as error:
        load_run(finished)
    assert "\n" not in str(error.value)
    if name != "num_classes":
        assert f"config.json: derived.{name}: received" in str(error.value)


@pytest.mark.parametrize("kind", ["pipe", "loop", "folder"])
def test_what_stands_in_the_place_of_a_record_is_said(finished, kind):
    """As it is, and not that there is none."""
    path = finished / "config.json"
    path.unlink()
    {"pipe": os.mkfifo, "loop": lambda path: path.symlink_to(path), "folder": pathlib.Path.mkdir}[kind](path)
    says = {"pipe": "not a regular file", "loop": "symbolic links", "folder": "not a regular file|directory"}[kind]
    with pytest.raises(InputError, match=rf"config\.json can't be read \(.*({says})"):
        load_run(finished)


@pytest.mark.parametrize(
    "change",
    [
        {"step": "x"}, {"seconds": None}, {"best_step": "x"}, {"best_score": 3}, {"latest": []},
        {"window": {"loss": "x"}}, {"metrics": 3}, {"metrics": {"lines": "x", "sha256": ""}}, {"identity": None},
        {"identity": []}, {"data": 3},
    ],
)  # fmt: skip
def test_a_manifests_values_of_wrong_types_are_one_line(finished, again, change):
    path = finished / "checkpoints" / "24.json"
    content = json.loads(path.read_text())["content"]
    content["meta"] |= change
    path.write_text(json.dumps({"content": content, "sha256": files.seal(content)}))
    (finished / "result.json").unlink()
    with pytest.raises(RunError, match="checkpoint 24"):
        again(finished)


@pytest.mark.parametrize("kind", ["gone", "cut", "pipe"])
def test_a_run_is_not_lost_with_its_record(finished, again, finished_once, tiny_config, tiny_data, kind):
    """Its checkpoints say what they are of: the same command writes the record anew, another one is refused."""
    from tests.training.test_loop import change

    path = finished / "config.json"
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif kind == "pipe":
        replace_by(path, "pipe")
    else:
        path.unlink()
    label = tiny_data.train.label.copy()
    label[[0, 1]] = label[[1, 0]]
    other = dataclasses.replace(tiny_data, train=dataclasses.replace(tiny_data.train, label=label))
    for config, dataset, said in (
        (change(tiny_config, "train", seed=1), tiny_data, r"of another configuration \(of train.seed\)"),
        (change(tiny_config, "train", steps=30), tiny_data, "of 24 steps, not of 30"),
        (tiny_config, other, "on other data"),
    ):
        with pytest.raises(RunError, match=f"checkpoint 24 .* belongs to a run {said}"):
            train(config, finished, dataset=dataset)
        assert os.path.lexists(path) == (kind != "gone")
    result, warned = again(finished)
    assert warned[0].endswith("it is written anew if the checkpoints are of this very command")
    assert_same(result, finished_once["result"])
    assert os.path.lexists(finished / "config-set-aside.json") == (kind != "gone")
    assert again(finished) == (result, [])
    assert load_run(finished).step == 24


def test_a_checkpoint_of_another_run_is_refused_wherever_it_is_used(finished, tiny_config, tiny_data, tmp_path, again):
    """Of the same shapes: another seed, and other data of the same configuration."""
    from tests.training.test_loop import change

    train(change(tiny_config, "train", seed=1), tmp_path / "other", dataset=tiny_data)
    shutil.rmtree(finished / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", finished / "checkpoints")
    (finished / "result.json").unlink()
    for use in (load_run, lambda folder: load_run(folder, best=True), again):
        with pytest.raises(RunError, match=r"checkpoint \d+ in .* belongs to a run of another config.*train\.seed"):
            use(finished)


# ---- which checkpoint ----------------------------------------------------------------------------------------------


def test_an_older_checkpoint_is_not_taken_in_silence(finished):
    (finished / "checkpoints" / "24.json").unlink()
    with pytest.warns(
        UserWarning, match="step 21 is used, as there is no good checkpoint of step 24, which the run has"
    ):
        assert load_run(finished).step == 21


def test_a_checkpoint_that_a_run_in_training_has_yet_to_save(finished):
    (finished / "checkpoints" / "24.json").unlink()
    told = "step 21 is used: the run is training, and has not saved step 24 yet$"
    with rundir.lock(finished), pytest.warns(UserWarning, match=told):
        assert load_run(finished).step == 21
    assert not rundir.is_training(finished)


def test_looking_whether_a_run_is_training_does_not_disturb(finished, monkeypatch):
    """Neither one that starts at that moment, nor another look; and what is no lock is not waited for."""
    with (finished / ".lock").open() as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        assert not rundir.is_training(finished)
        monkeypatch.setattr(rundir.time, "sleep", lambda seconds: look.close())
        rundir.lock(finished).close()
    (finished / ".lock").unlink()
    assert not rundir.is_training(finished)
    os.mkfifo(finished / ".lock")
    assert not rundir.is_training(finished)


def test_a_checkpoint_that_the_run_removes_meanwhile(finished, monkeypatch):
    """A run that keeps one, and is being trained: the next good one is taken."""
    directory = finished / "checkpoints"
    for name in ("24", "24.json"):
        (directory / name).rename(finished / name)
    moments = []

    def then(function):
        def wrapped(*arguments, **more):
            if len(moments) < 2:
                moments.append(function.__name__)
                if len(moments) == 2 or function is rundir.check_owner:
                    for name in ("24.json", "24"):  # what was the newest is gone, and a newer one is there
                        if (finished / name).exists():
                            (finished / name).rename(directory / name)
                            (directory / name.replace("24", "21")).rename(finished / name.replace("24", "21"))
            return function(*arguments, **more)

        return wrapped

    monkeypatch.setattr(checkpoint, "read_manifest", then(checkpoint.read_manifest))
    monkeypatch.setattr(checkpoint, "restore", then(checkpoint.restore))
    assert load_run(finished).step == 24
    assert moments == ["read_manifest", "restore"]


_REMOVED_IN_TURN = """
import os, pathlib, shutil, sys, warnings
from cnnjax import models
from cnnjax.training import checkpoint, load_run
from tests.training.conftest import Tiny

models.MODELS["tiny"] = Tiny
directory = pathlib.Path(sys.argv[1], "checkpoints")
load = checkpoint.ocp.load
parts = [path.relative_to(directory / "24") for path in (directory / "24").rglob("*") if path.is_file()]
parts += [pathlib.Path("state"), pathlib.Path()]

def remove_and_load(path, wanted):
    if (directory / "24.json").exists():  # as `Checkpoints` removes one
        os.replace(directory / "24.json", directory / "24.deleting")
        doomed = directory / "24" / part
        shutil.rmtree(doomed) if doomed.is_dir() else doomed.unlink()
    return load(path, wanted)

checkpoint.ocp.load = remove_and_load
shutil.copytree(directory / "24", directory.parent / "whole")
for part in 3 * parts:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        step = load_run(directory.parent).step
    print(step, *[str(warning.message) for warning in told])
    shutil.rmtree(directory / "24", ignore_errors=True)
    shutil.copytree(directory.parent / "whole", directory / "24")
    os.replace(directory / "24.deleting", directory / "24.json")
"""


def test_a_checkpoint_that_vanishes_while_it_is_restored_leaves_no_traceback(finished):
    """Each of its files in turn, and all of them: what Orbax has under way then would print errors later."""
    command = [sys.executable, "-c", _REMOVED_IN_TURN, finished]
    root = pathlib.Path(__file__).parents[2]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert found.stderr == ""
    lines = found.stdout.splitlines()
    assert len(lines) > 24
    for line in lines:
        assert line.startswith("21 ")
        assert line.count("step 21 is used") == 1
        assert len(line.split(": ")) == 2


def test_what_orbax_logs_of_a_checkpoint_is_said_unless_it_fails(caplog):
    def use(error=None):
        with checkpoint._unlogged_if_it_fails("/run/33"):
            logging.getLogger("absl").warning("no file %s", "/run/33/state")
            logging.getLogger().warning("no file in /run/33.")
            logging.getLogger("absl").warning("no file /run/334/state")
            if error:
                raise error

    use()
    assert caplog.messages == ["no file /run/334/state", "no file /run/33/state", "no file in /run/33."]
    caplog.clear()
    with pytest.raises(OSError, match="gone"):
        use(OSError("gone"))
    assert caplog.messages == ["no file /run/334/state"]


# ---- links, pipes and stray files ----------------------------------------------------------------------------------


def test_nothing_is_written_through_a_link(tiny_config, tiny_data, tmp_path):
    """Whatever the names of a run's files point to, it stays as it is, and the run is whole."""
    run, outside = tmp_path / "run", tmp_path / "outside"
    outside.mkdir()
    names = ("metrics.jsonl", "metrics.jsonl.tmp", "result.json", "result.json.tmp", "config.json.tmp", "curves.png",
             "predictions.png", ".curves.tmp.png", ".predictions.tmp.png")  # fmt: skip

    def link():
        for name in names:
            (outside / name).write_text("mine")
            (run / name).unlink(missing_ok=True)
            (run / name).symlink_to(outside / name)

    train(tiny_config, run, dataset=tiny_data)
    (run / "config.json").rename(outside / "config.json")
    (run / "config.json").symlink_to(outside / "config.json")
    before = (outside / "config.json").read_text()
    link()
    report = Lines()
    train(tiny_config, run, dataset=tiny_data, report=report)
    assert len(report.warned) == 2  # of the result and of the metrics
    assert (outside / "config.json").read_text() == before
    assert all((outside / name).read_text() == "mine" for name in names)
    for name in ("config.json", "metrics.jsonl", "result.json", "curves.png", "predictions.png"):
        assert (run / name).is_file()
        assert not (run / name).is_symlink()


def test_checkpoints_may_be_on_another_disk(tiny_config, tiny_data, tmp_path, finished_once, finished):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run2").mkdir()
    (tmp_path / "run2" / ".hidden").write_text("x")
    first = train(tiny_config, tmp_path / "run2", dataset=tiny_data)
    shutil.move(tmp_path / "run2" / "checkpoints", tmp_path / "disk" / "checkpoints")
    (tmp_path / "run2" / "checkpoints").symlink_to(tmp_path / "disk" / "checkpoints")
    (tmp_path / "run2" / "result.json").unlink()
    assert train(tiny_config, tmp_path / "run2", dataset=tiny_data)["fingerprint"] == first["fingerprint"]
    assert load_run(tmp_path / "run2").step == 24


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_a_lock_that_is_none(tiny_config, tiny_data, tmp_path, kind):
    run = tmp_path / "run"
    run.mkdir()
    if kind == "link":
        (run / ".lock").symlink_to(tmp_path / "outside")
    else:
        {"pipe": os.mkfifo, "folder": os.mkdir}[kind](run / ".lock")
    with pytest.raises(InputError, match=f"workdir: {run} can't be written"):
        rundir.lock(run)
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize(
    ("number", "taken"),
    [(errno.EWOULDBLOCK, True), (errno.ENOSYS, False), (errno.EOPNOTSUPP, False), (errno.ENOLCK, False)],
)
def test_a_file_system_without_locks(tmp_path, monkeypatch, number, taken):
    def flock(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    said = []
    if taken:
        with pytest.raises(InputError, match="another process is training"):
            rundir.lock(tmp_path, said.append)
        assert said == []
    else:
        rundir.lock(tmp_path, said.append).close()
        assert said == [
            f"{tmp_path} can't be locked ({os.strerror(number)}): nothing will keep another process from training in "
            f"it at the same time"
        ]


def test_a_folder_with_hidden_files_alone_is_empty(tiny_config, tmp_path):
    (tmp_path / ".DS_Store").write_text("x")
    (tmp_path / "Thumbs.db").write_text("x")
    what = rundir.what(tiny_config, {})
    rundir.examine(tmp_path, what, extend=False)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        rundir.examine(tmp_path, what, extend=False)


# ---- at the end ----------------------------------------------------------------------------------------------------


def test_a_picture_that_fails_costs_no_result(tiny_config, tiny_data, tmp_path, monkeypatch):
    def broken(*arguments, **more):
        assert (tmp_path / "run" / "result.json").exists()
        file = next(value for value in arguments if isinstance(value, pathlib.Path))
        file.write_bytes(b"half a picture")
        raise ValueError("no font")

    monkeypatch.setattr(loop.pictures, "curves", broken)
    monkeypatch.setattr(loop.pictures, "predictions", broken)
    report = Lines()
    result = train(tiny_config, tmp_path / "run", dataset=tiny_data, report=report)
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert report.warned == [
        f"{tmp_path / 'run' / name} can't be drawn (ValueError: no font); the result is whole"
        for name in ("curves.png", "predictions.png")
    ]
    assert not list((tmp_path / "run").glob(".*.tmp.*"))


def test_the_configuration_deleted_during_training(
    tiny_config, tiny_data, tmp_path, monkeypatch, capsys, finished_once, finished
):
    original = loop.fingerprint

    def without_config(state):
        (tmp_path / "other" / "config.json").unlink()
        return original(state)

    monkeypatch.setattr(loop, "fingerprint", without_config)
    result = train(tiny_config, tmp_path / "other", dataset=tiny_data)
    assert_same(result, finished_once["result"])
    path = tmp_path / "other" / "config.json"
    assert f"{path} is missing; it is written anew" in " ".join(capsys.readouterr().err.split())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_run(tmp_path / "other").step == 24


def test_a_run_goes_on_where_its_output_can_not_be_written(monkeypatch, tmp_path):
    """Standard output and standard error on a full disk."""
    full = open("/dev/full", "w")  # noqa: SIM115  (closed below)
    monkeypatch.setattr("sys.stdout", full)
    monkeypatch.setattr("sys.stderr", full)
    report = Report()
    for _ in range(2):
        report.note("x" * 100_000)
        report.warn("x" * 100_000)
    report.result({"experiment": "e", "model": "m", "data": "d", "steps": 3}, tmp_path)
    full.close()  # nothing is left to fail then


def test_a_failure_says_a_checkpoint_is_kept_only_where_there_is_one(tiny_config, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_all_finite", lambda state: next(finite))
    for answers, said in (
        ([False], "step 7: .* no checkpoint was saved yet"),
        ([True, False], "step 14: .*of step 7 in"),
    ):
        finite = iter(answers)
        with pytest.raises(RunError, match=said):
            train(tiny_config, tmp_path / str(len(answers)), dataset=tiny_data)


def test_threads_are_part_of_the_history(finished_once, finished):
    assert finished_once["result"]["history"][0]["threads"] >= 1
