"""Runs on photographs that stream from disk: the same as any other, whatever decodes them."""

import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from cnnjax import data
from cnnjax.cli import main
from cnnjax.data import order, synthetic
from cnnjax.ops.errors import InputError
from cnnjax.training import RunError, config, feed, load_run, metrics, train
from cnnjax.training import mesh as meshes
from cnnjax.training.setup import IMAGENET_MEAN, IMAGENET_STD

TRAIN, VALIDATION = 40, 11
"""Numbers that no batch divides."""


@pytest.fixture(scope="module")
def made():
    """(file name, JPEG, label) of photographs of about 48x36."""
    examples = synthetic.photographs(TRAIN + VALIDATION, longest=48)
    return {"train": examples[:TRAIN], "validation": examples[TRAIN:]}


@pytest.fixture(scope="module")
def prepared(made, tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    synthetic.write_imagenet(made, root)
    return root


@pytest.fixture
def cfg(tiny_config, prepared):
    """24 steps of batch 16 on crops of 24x24."""
    photographs = config.Data("tfds:imagenet2012", data_dir=str(prepared), crop=24, resize=28, flip=True)
    return dataclasses.replace(tiny_config, data=photographs)


def change(cfg, part, **fields):
    return dataclasses.replace(cfg, **{part: dataclasses.replace(getattr(cfg, part), **fields)})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.fixture
def result(cfg, whole):
    """Of the run in `whole`, which nothing interrupted."""
    return train(cfg, whole)


def metrics_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stop_at", [9, 16])
def test_a_stopped_run_resumes_whatever_decodes(cfg, whole, result, tmp_path, monkeypatch, stop_at):
    """Threads before, a worker process or a single thread after: the same parameters bit for bit."""
    original = data.photos.train_batches

    def stopping(*args, start, **kwargs):
        for step, batch in enumerate(original(*args, start=start, **kwargs), start):
            if step == stop_at:
                raise RunError("stopped")
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(data.photos, "train_batches", stopping)
        with pytest.raises(RunError, match="stopped"):
            train(cfg, tmp_path / "run")
    others = {"workers": 1} if stop_at == 9 else {"threads": 1}
    assert train(change(cfg, "data", **others), tmp_path / "run")["fingerprint"] == result["fingerprint"]
    assert metrics_of(tmp_path / "run") == metrics_of(whole)


def test_eight_devices_are_one(cfg, whole, result, tmp_path):
    """In parts of the batch and, where it divides, of the height; to float32's rounding."""
    spread = change(cfg, "run", devices=8, mesh={"data": 4, "space": 2})
    train(spread, tmp_path / "run")
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, load_run(tmp_path / "run").variables, load_run(whole).variables)


def test_the_loop_adds_nothing_to_the_stream(cfg, prepared, monkeypatch, tmp_path):
    """What a step gets are the crops of `train_batches`, in the order of `batch_indices`."""
    seen = []
    original = feed.PhotosFeed.send

    def sending(self, item):
        seen.append(item)
        return original(self, item)

    monkeypatch.setattr(feed.PhotosFeed, "send", sending)
    train(change(cfg, "train", steps=3, evaluate_every=3), tmp_path / "run")
    photos = data.open_photos("tfds:imagenet2012", data_dir=prepared)
    expected = list(data.photos.train_batches(photos, seed=0, start=0, stop=3, batch_size=16, crop=24))
    for step, batch in enumerate(expected):
        np.testing.assert_array_equal(seen[step]["image"], batch["image"])
        index = order.batch_indices(TRAIN, 16, step, 0)
        np.testing.assert_array_equal(seen[step]["label"], [photos.source[int(i)][1] for i in index])


def test_evaluation_is_exact(cfg, whole, result, made):
    """Every validation image once, its centre as Pillow gives it."""
    run = load_run(whole)
    assert run.info.examples == {"train": TRAIN, "validation": VALIDATION}
    assert run.info.image_shape == (24, 24, 3)
    assert (run.info.mean, run.info.std) == (IMAGENET_MEAN, IMAGENET_STD)
    images = []
    for name, content, _ in made["validation"]:
        path = whole.parent / name
        path.write_bytes(content)
        images.append(data.open_photo(path, crop=24, resize=28))
    images = np.stack(images)
    logits = run.model.apply(run.variables, run.preprocess(images), train=False)
    losses = metrics.cross_entropy(logits, np.array([label for _, _, label in made["validation"]]))
    assert result["validation_loss"] == pytest.approx(float(losses.mean()), rel=1e-5)


def test_held_out_and_limited(cfg, made, tmp_path):
    """A folder without validation images: some are held out, the same as of arrays."""
    root = synthetic.write_folder({"train": made["train"], "test": made["validation"]}, tmp_path / "set")
    folder = config.Data("folder", raw_dir=str(root), crop=24, validation=0.25, limit=24)
    result = train(dataclasses.replace(cfg, data=folder), tmp_path / "run")
    assert load_run(tmp_path / "run").info.examples == {"train": 18, "validation": 6, "test": 11}
    assert "test_accuracy" in result
    assert (tmp_path / "run" / "predictions.png").stat().st_size > 0
    photos = data.open_photos("folder", raw_dir=root)
    rest, held = data.split(photos, 0.25, 0)
    arrays = data.Arrays(np.zeros((TRAIN, 1, 1, 1), np.uint8), np.array([label for _, label in photos.source]))
    for some, same in zip((rest, held), data.split(arrays, 0.25, 0), strict=True):
        assert [label for _, label in some.source] == same.label.tolist()


def test_a_damaged_photograph_ends_the_run_and_nothing_is_lost(cfg, made, tmp_path):
    """Of a set too large to be verified beforehand."""
    root = synthetic.write_folder(made, tmp_path / "set")
    folder = dataclasses.replace(cfg, data=config.Data("folder", raw_dir=str(root), crop=24, resize=28))
    whole = train(folder, tmp_path / "whole")
    victim = next(iter(sorted((root / "train").rglob("*.JPEG"))))
    original = victim.read_bytes()
    at = int(np.flatnonzero(order.epoch_order(TRAIN, 0, 0) == 0)[0]) // 16

    victim.write_bytes(bytes(len(original)))  # of the same size: nothing tells before it is read
    with pytest.raises(InputError, match=f"{victim.name}.* cannot be read"):
        train(change(folder, "run", checkpoint_every=1), tmp_path / "run")
    assert at > 0
    assert (tmp_path / "run" / "checkpoints" / f"{at}.json").exists()
    victim.write_bytes(original)
    assert train(folder, tmp_path / "run")["fingerprint"] == whole["fingerprint"]
    victim.unlink()
    with pytest.raises(InputError, match=r"data: examples is .* was"):
        train(change(folder, "data", raw_dir=str(root.rename(tmp_path / "moved"))), tmp_path / "run")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop": 0}, r"data.crop: received 0, allowed: a number above 0"),
        ({"size": (24, 24)}, r"data.size and data.crop: allowed: one of them"),
        ({"resize": 23}, r"data.resize: received 23, allowed: data.crop, which is 24, or more"),
        ({"crop": None}, r"data.resize: allowed: with data.crop"),
        ({"crop_area": (0.0, 1.0)}, r"data.crop-area: received 0 1, allowed: two parts of 1"),
        ({"crop_area": (0.5, 0.25)}, r"data.crop-area: received 0.5 0.25"),
        ({"workers": -1}, r"data.workers: received -1"),
        ({"threads": 0}, r"data.threads: received 0"),
        ({"name": "digits"}, r"unknown set of photographs 'digits': allowed: folder, tfds:NAME"),
        ({"name": "folder", "data_dir": None}, r"photographs from a 'folder' need raw_dir"),
        ({"data_dir": "nowhere"}, r"'tfds:imagenet2012' is not prepared in .*nowhere"),
    ],
)
def test_mistakes(cfg, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        train(change(cfg, "data", **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_several_steps_a_call_need_data_on_the_device(cfg, tmp_path):
    with pytest.raises(InputError, match=r"run.steps-per-call: received 2, allowed: 1"):
        train(change(cfg, "run", steps_per_call=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_arrays_can_not_be_cropped_so(cfg, tiny_data, prepared, tmp_path):
    with pytest.raises(InputError, match=r"data.crop: tiny is in memory; allowed: photographs"):
        train(cfg, tmp_path / "run", dataset=tiny_data)
    photographs = data.open_photo_set("tfds:imagenet2012", data_dir=prepared)
    with pytest.raises(InputError, match=r"data.crop: allowed: a number of pixels, as tfds:imagenet2012 is photo"):
        train(change(cfg, "data", crop=None, resize=None), tmp_path / "run", dataset=photographs)


def test_a_lost_worker_ends_the_run_and_nothing_is_lost(cfg, result, tmp_path, monkeypatch):
    original, sent = feed.PhotosFeed.send, []

    def sending(self, item):
        sent.append(item)
        if len(sent) == 12:  # after the first evaluation
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)
        return original(self, item)

    with monkeypatch.context() as patch:
        patch.setattr(feed.PhotosFeed, "send", sending)
        with pytest.raises(RunError, match="a worker that decodes photographs is lost"):
            train(change(cfg, "data", workers=1), tmp_path / "run")
    assert train(cfg, tmp_path / "run")["fingerprint"] == result["fingerprint"]


def has_workers(pid):
    """Whether a process has begun to start some, by any of its threads."""
    try:
        threads = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
        children = [child for thread in threads for child in thread.read_text().split()]
        return any(b"spawn_main" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes() for child in children)
    except OSError:  # one has just ended
        return False


@pytest.mark.parametrize(
    ("number", "early"),
    [(signal.SIGTERM, False), (signal.SIGINT, True), pytest.param(signal.SIGINT, False, marks=pytest.mark.slow)],
)
def test_a_signal_to_the_whole_group_stops_and_saves(made, tmp_path, number, early):
    """As Slurm's and the terminal's: workers hear it too, even as they start, and go on as long as they are needed."""
    root = synthetic.write_folder(made, tmp_path / "set")
    options = f"--data.name folder --data.raw-dir {root} --data.size None --data.crop 28 --data.resize 28"
    options += " --data.workers 1 --train.steps 100000 --train.batch-size 16 --run.log-every 1"
    options += f" --workdir {tmp_path / 'run'}"
    run = subprocess.Popen(
        [sys.executable, "-m", "experiments.quickstart", *options.split()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=pathlib.Path(__file__).resolve().parents[2],
    )
    for _ in range(1200):
        metrics_file = tmp_path / "run" / "metrics.jsonl"
        begun = metrics_file.exists() and len(metrics_file.read_text().splitlines()) > 3
        if run.poll() is not None or (has_workers(run.pid) if early else begun):
            break
        time.sleep(0.05)
    else:
        raise AssertionError("nothing happened in a minute")
    assert run.poll() is None, run.communicate()[1]
    os.killpg(run.pid, number)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 128 + number, said
    assert "Traceback" not in said
    step = int(re.search(r"stopped at step ([\d,]+) of 100,000 and saved", said)[1].replace(",", ""))
    assert (tmp_path / "run" / "checkpoints" / f"{step}.json").exists()


def command(capsys, *arguments, status=0):
    """What the command says."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == status
    said = capsys.readouterr()
    return said.err if status else said.out


def test_evaluate_and_predict_by_command(whole, result, made, tmp_path, capsys):
    found = json.loads(command(capsys, "evaluate", whole, "--split", "validation", "--json"))
    assert found["examples"] == VALIDATION
    assert found["loss"] == pytest.approx(result["validation_loss"], rel=1e-6)
    name, content, _ = made["validation"][0]
    path = tmp_path / name
    path.write_bytes(content)
    top = json.loads(command(capsys, "predict", whole, path, "--json"))["top"][0]
    run = load_run(whole)
    image = data.open_photo(path, crop=24, resize=28)[None]
    logits = run.model.apply(run.variables, run.preprocess(image), train=False)[0]
    assert top["class"] == synthetic.CLASSES[int(logits.argmax())]
    assert top["probability"] == pytest.approx(float(jax.nn.softmax(logits).max()), rel=1e-5)
    assert "none.jpg' is not there" in command(capsys, "predict", whole, tmp_path / "none.jpg", status=2)


def test_another_set_with_the_classes_in_another_order(whole, result, made, tmp_path, capsys):
    """Labels follow the names of the classes."""
    turned = [(name, content, label) for name, content, label in made["validation"] if label in (1, 3)]
    root = synthetic.write_folder({"train": turned, "test": turned}, tmp_path / "set")
    set_named = ("--data.name", "folder", "--data.raw-dir", root)
    found = json.loads(command(capsys, "evaluate", whole, *set_named, "--json"))
    assert found["examples"] == len(turned)
    run = load_run(whole)
    files = [root / "test" / synthetic.CLASSES[label] / name for name, _, label in turned]
    images = np.stack([data.open_photo(path, crop=24, resize=28) for path in files])
    losses = metrics.cross_entropy(
        run.model.apply(run.variables, run.preprocess(images), train=False), np.array([each[2] for each in turned])
    )
    assert found["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)


def test_a_process_alone_decodes_all(prepared):
    """The rows that its devices hold are all, in order, for every mesh."""
    photos = data.open_photos("tfds:imagenet2012", data_dir=prepared)
    for axes in ({}, {"fsdp": 2}, {"space": 4}, {"data": 2, "fsdp": 2, "space": 2}):
        mesh = meshes.make_mesh(8, axes)
        rows = feed.PhotosFeed(photos, mesh, config.Data(crop=24)).rows(16)
        np.testing.assert_array_equal(rows, np.arange(16))


def test_photographs_of_any_kind_are_opened_as_the_evaluation_does(tmp_path):
    Image.new("L", (60, 40), 7).save(tmp_path / "grey.png")
    image = data.open_photo(tmp_path / "grey.png", crop=24, resize=28)
    np.testing.assert_array_equal(image, np.full((24, 24, 3), 7, np.uint8))
    with pytest.raises(InputError, match="is a folder"):
        data.open_photo(tmp_path, crop=24, resize=28)
    pathlib.Path(tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no")
    with pytest.raises(InputError, match=r"broken.jpg' cannot be read"):
        data.open_photo(tmp_path / "broken.jpg", crop=24, resize=28)
