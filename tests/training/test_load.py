"""A loaded run: all it takes to use it, and that it says what `evaluate` counted."""

import dataclasses
import json
import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageDraw

import cnnjax
from cnnjax import cli, data
from cnnjax.models import lenet
from cnnjax.ops.errors import InputError
from cnnjax.training import checkpoint, metrics, predict
from cnnjax.training.evaluate import evaluate


def command(*argv: object) -> int:
    """The exit status of `cnnjax` with these arguments."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in argv])
    return stopped.value.code


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 60 steps on digits, whose 8x8 originals are enlarged."""
    folder = tmp_path_factory.mktemp("load") / "run"
    argv = ("--train.steps", 60, "--train.evaluate-every", 30, "--run.devices", 1)
    assert command("run", "quickstart", "--workdir", folder, *argv) == 0
    return folder


@pytest.fixture(scope="module")
def run(trained):
    return cnnjax.load(trained)


@pytest.fixture(scope="module")
def originals():
    """The digits as they come: 8x8."""
    return data.load("digits")


# ---- what it is ------------------------------------------------------------------------------------------------------


def test_predictions_are_those_that_evaluate_counts(run, trained, originals):
    """To the last image, whether they come in the run's size or in their own; and with `preprocess` by hand."""
    result = json.loads((trained / "result.json").read_text())
    counted = evaluate(run)
    assert counted["accuracy"] == result["test_accuracy"]
    assert (counted["step"], counted["examples"], counted["same_data"]) == (60, 360, True)
    label = originals.test.label
    for images in (originals.test.image, data.load("digits", size=(28, 28)).test.image):
        probabilities = run.predict(images)
        assert (probabilities.argmax(-1) == label).sum() == round(counted["accuracy"] * 360)
        np.testing.assert_allclose(probabilities.sum(-1), 1)
        logits = run.model.apply(run.variables, run.preprocess(images))
        assert (np.argmax(logits, -1) == label).sum() == round(counted["accuracy"] * 360)


def test_the_accuracy_of_each_class(run):
    """By what the network says of each image, of nine of ten classes."""
    enlarged = data.load("digits", size=(28, 28))
    test = enlarged.test.take(enlarged.test.label != 2)
    with pytest.warns(UserWarning, match="these are not the data"):
        values = evaluate(run, dataset=dataclasses.replace(enlarged, test=test))
    right = run.predict(test.image).argmax(-1) == test.label
    expected = {run.info.classes[k]: right[test.label == k].mean() for k in np.unique(test.label)}
    assert values["class_accuracy"] == pytest.approx(expected)
    assert values["balanced_accuracy"] == pytest.approx(np.mean(list(expected.values())))
    assert values["accuracy"] == pytest.approx(right.mean())


def test_a_run_unpacks_into_what_is_used_most(run, trained):
    model, variables, config = run
    assert (model, variables, config) == (run.model, run.variables, run.config) == (run[0], run[1], run[2])
    assert len(list(run)) == 3
    assert run.info.classes == tuple("0123456789")
    assert run.info.image_shape == (28, 28, 1)
    assert len(run.info.mean) == len(run.info.std) == 1
    assert run.folder == trained
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.info.mean = (0.0,)


def test_only_what_is_used_is_restored(trained, monkeypatch):
    """Not the optimizer's state, which is twice the parameters."""
    asked = []
    original = checkpoint.ocp.load

    def load(path, target):
        asked.append(target)
        return original(path, target)

    monkeypatch.setattr(checkpoint.ocp, "load", load)
    run = cnnjax.load(trained)
    (target,) = asked
    wanted = [leaf for leaf in jax.tree.leaves(target) if leaf is not checkpoint.ocp.PLACEHOLDER]
    assert len(wanted) == len(jax.tree.leaves(run.variables))


def test_predictions_of_a_moving_average(tiny_config, tiny_data, tmp_path):
    """Of odd numbers of images, streamed through batches; they are what the run's result has."""
    config = dataclasses.replace(tiny_config, train=dataclasses.replace(tiny_config.train, ema=0.9))
    result = cnnjax.training.train(config, tmp_path / "run", dataset=tiny_data)
    run = cnnjax.load(tmp_path / "run")
    found = evaluate(run, dataset=tiny_data)
    assert (found["accuracy"], found["loss"]) == (result["test_accuracy"], result["test_loss"])
    assert (run.predict(tiny_data.test.image).argmax(-1) == tiny_data.test.label).mean() == found["accuracy"]
    plain = predict.outputs(run, tiny_data.test.image, 31)
    np.testing.assert_allclose(predict.outputs(run, tiny_data.test.image, 8), plain, rtol=1e-5, atol=1e-6)
    assert predict.outputs(run, tiny_data.test.image[:0]).shape == (0, 3)


# ---- images ----------------------------------------------------------------------------------------------------------


def test_images_of_any_kind(run, originals, tmp_path):
    """Files, grey arrays, colours, single ones, lists of several sizes: the same digit."""
    image = data.load("digits", size=(28, 28)).test.image[3]
    path = tmp_path / "three.png"
    Image.fromarray(image[..., 0]).save(path)
    expected = run.predict(image[None])
    grey = image[..., 0]
    for same in (
        image,
        grey,
        grey[None],
        path,
        str(path),
        [path],
        [image],
        np.repeat(image, 3, -1),
        jnp.asarray(image),
    ):
        np.testing.assert_allclose(run.predict(same), expected, rtol=1e-5)
    several = run.predict([path, originals.test.image[3], np.asarray(Image.fromarray(grey).resize((60, 60)))])
    assert several.shape == (3, 10)
    assert set(several.argmax(-1)) == {expected[0].argmax()}
    assert run.predict([]).shape == (0, 10)
    inside = jax.jit(lambda variables, images: run.model.apply(variables, run.preprocess(images)))
    np.testing.assert_allclose(
        inside(run.variables, image[None]), run.model.apply(run.variables, run.preprocess(image)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 28, 28, 1), np.float32), "received float32, allowed: uint8, the pixels of 0 to 255"),
        (np.zeros((28, 28)), "received float64, allowed: uint8"),
        (np.zeros((28, 28), np.int64), "received int64, allowed: uint8"),
        ([np.zeros((28, 28), bool)], "received bool, allowed: uint8"),
        (np.zeros((2, 28, 28, 4), np.uint8), r"shape \(2, 28, 28, 4\), allowed: \[n, height, width, channels\]"),
        (np.zeros(5, np.uint8), r"shape \(5,\)"),
        (np.zeros((0, 5), np.uint8), r"shape \(0, 5\)"),
        ([np.zeros((2, 28, 28, 1), np.uint8)], "received 2 images as one of a list"),
        ("none.png", "none.png' is not there"),
        (Image.new("P", (8, 8)), "received a Pillow image"),
    ],
)
def test_what_is_no_image_is_refused(run, images, message):
    """Above all pixels divided by 255, of which a network makes something else in silence."""
    for taken in (run.predict, run.preprocess):
        with pytest.raises(InputError, match=message):
            taken(images)
    if isinstance(images, np.ndarray):
        with pytest.raises(InputError, match="images: received"):
            jax.jit(run.preprocess)(images)


def test_photographs_are_cropped_as_in_evaluation(tmp_path):
    """An array of a photograph as the file of it, which is not compressed."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 61, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    of = cnnjax.training.Data("folder", crop=24)
    file, array = (predict.as_images(image, of, (24, 24, 3)) for image in (tmp_path / "photo.png", pixels))
    np.testing.assert_array_equal(file, array)
    np.testing.assert_array_equal(file[0], data.open_photo(tmp_path / "photo.png", crop=24, resize=27))
    np.testing.assert_array_equal(predict.as_images(file, of, (24, 24, 3)), file)  # which has the run's size


# ---- what the outputs mean -------------------------------------------------------------------------------------------


def test_probabilities_are_what_the_loss_makes_of_outputs():
    outputs = np.random.default_rng(0).normal(size=(5, 4)) * 30
    labels = np.arange(5) % 4
    softmax = metrics.probabilities("cross_entropy", outputs)
    with jax.enable_x64(True):
        for loss in ("cross_entropy", "lenet5_map"):
            found = metrics.probabilities(loss, outputs)[np.arange(5), labels]
            np.testing.assert_allclose(-np.log(found), metrics.LOSSES[loss](jnp.asarray(outputs), labels), rtol=1e-9)
    np.testing.assert_allclose(softmax.sum(-1), 1)
    np.testing.assert_array_equal(metrics.probabilities("someone's own", outputs), softmax)
    np.testing.assert_array_equal(metrics.probabilities("squared_error", np.array([[1.2, -0.1]])), [[1, 0]])


def test_distances_are_no_certainty():
    """Penalties of LeNet-5, of which a softmax makes 100 % whatever they are: far from every digit, it is none."""
    near, far = metrics.probabilities("lenet5_map", -np.array([[0.1, 80.0, 90.0], [20.0, 60.0, 90.0]]))
    assert near[0] == pytest.approx(np.exp(-0.1) / (np.exp(-0.1) + np.exp(-lenet.NO_CLASS)))
    assert 0.6 < near[0] < 0.75
    assert far.max() < 1e-8
    np.testing.assert_array_equal(metrics.probabilities("lenet5_mse", -np.array([[0.1, 80.0]])) > 0.5, [[True, False]])


# ---- by command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(originals, tmp_path):
    """Three digits, in a folder with a subfolder and things that are no images."""
    (tmp_path / "digits" / "more").mkdir(parents=True)
    for i, name in enumerate(("0.png", "1.png", "more/2.png")):
        Image.fromarray(originals.test.image[i, ..., 0]).save(tmp_path / "digits" / name)
    (tmp_path / "digits" / ".hidden.png").write_bytes(b"no")
    (tmp_path / "digits" / "notes.txt").write_text("no")
    return tmp_path / "digits"


def test_a_folder_and_files_of_which_one_is_bad(trained, folder, originals, capsys, monkeypatch):
    """In batches: the bad one's line, the others' classes, and status 1 at the end."""
    monkeypatch.setattr(predict, "BATCH", 2)
    (folder / "0bad.png").write_bytes(b"no image")
    assert command("predict", trained, folder, folder / "none.png", folder / "0.png", "--json") == 1
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["image"] for line in lines] == [str(folder / n) for n in ("0.png", "1.png", "more/2.png", "0.png")]
    expected = cnnjax.load(trained).predict(originals.test.image[[0, 1, 2, 0]])
    found = [{each["class"]: each["probability"] for each in line["top"]} for line in lines]
    for row, probabilities in zip(expected, found, strict=True):
        for k in np.argsort(-row)[:5]:
            assert probabilities[str(k)] == pytest.approx(row[k], rel=1e-4)
    first, second, last = err.splitlines()
    assert "0bad.png' cannot be read" in first
    assert "none.png' is not there" in second
    assert last == "error: 2 of 6 images can't be read"
    (folder / "more" / "2.png").unlink()
    assert command("predict", trained, folder / "more") == 2
    assert "holds no images" in capsys.readouterr().err


def test_a_folder_that_cannot_be_read_is_refused(folder, monkeypatch):
    """Wherever it lies: its images would be missed without a word."""
    (folder / "more").mkdir(exist_ok=True)
    scan = os.scandir

    def closed(path):
        if os.fspath(path).endswith("more"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    for start in (folder, folder / "more"):
        with pytest.raises(InputError) as caught:
            predict.files_in([start])
        assert str(caught.value) == f"images: the folder {folder / 'more'} can't be read (Permission denied)"


def test_an_image_with_black_and_white_swapped_is_noticed(trained, folder, originals, capsys):
    Image.fromarray(255 - originals.test.image[1, ..., 0]).save(folder / "swapped.png")
    assert command("predict", trained, folder / "0.png", folder / "swapped.png") == 0
    line = f"warning: {folder / 'swapped.png'} is unlike the training images, and like them with --invert\n"
    assert capsys.readouterr().err == line
    assert command("predict", trained, folder / "swapped.png", "--invert") == 0
    assert capsys.readouterr().err == ""
    assert command("predict", trained, folder / "0.png", "--invert") == 0
    assert "like them without --invert" in capsys.readouterr().err


def test_a_drawing_on_white_is_noticed(trained, folder, capsys):
    """A thin digit is so bright that its negative is darker than any training image, but nearer to them."""
    paper = Image.new("L", (280, 280), 255)
    ImageDraw.Draw(paper).line((140, 40, 140, 240), 0, 12)
    paper.save(folder / "drawn.png")
    assert command("predict", trained, folder / "drawn.png") == 0
    said = f"warning: {folder / 'drawn.png'} is brighter than nearly all training images; with --invert it is nearer"
    assert capsys.readouterr().err == f"{said} to them\n"
    assert command("predict", trained, folder / "drawn.png", "--invert") == 0
    assert capsys.readouterr().err.endswith("is darker than nearly all training images\n")
    Image.new("L", (28, 28), 0).save(folder / "black.png")
    assert command("predict", trained, folder / "black.png") == 0
    assert capsys.readouterr().err.endswith("black.png is darker than nearly all training images\n")


def test_brightness_beyond_the_range_of_the_training_images():
    """Above 0 brighter, below darker; a twentieth of the range's width is allowed on both sides, and a grey level."""
    images = np.round(255 * np.array([0.2, 0.195, 0.17, 0.3, 0.42, 0.9]))[:, None, None, None].astype(np.uint8)
    beyond = predict.excess(images, (0.2, 0.4))
    np.testing.assert_allclose(beyond, [0, 0, -0.03, 0, 0.02, 0.5], atol=0.003)
    assert list(predict.looks_inverted(images, (0.2, 0.4))) == [False, False, False, False, False, True]
    assert not predict.excess(images[:1], (0.2, 0.2)).any()
    assert not predict.excess(images, None).any()
    assert predict.excess(images[:0], (0.2, 0.4)).shape == (0,)


def test_a_loss_that_knows_none_of_the_classes_says_how_likely_that_is(run, folder):
    """And others don't."""
    (plain,) = predict.predict_files(run, [folder / "0.png"])
    assert plain.none is None
    lenet5 = dataclasses.replace(run.config, train=dataclasses.replace(run.config.train, loss="lenet5_map"))
    (found,) = predict.predict_files(dataclasses.replace(run, config=lenet5), [folder / "0.png"])
    assert found.none is not None
    assert sum(p for _, p in found.classes) + found.none == pytest.approx(1)
    assert [name for name, _ in found.classes] == [name for name, _ in plain.classes]


@pytest.mark.parametrize(("name", "most"), [("mnist", 0.0), ("fashion_mnist", 0.002)])
def test_test_images_are_not_taken_for_swapped_ones(real_data, name, most):
    """And of swapped ones all of MNIST's are; Fashion-MNIST has dark and bright things alike."""
    dataset = data.load(name, raw_dir=real_data(name))
    low, high = np.quantile(data.brightness(dataset.train.image), (0.001, 0.999))
    assert predict.looks_inverted(dataset.test.image, (low, high)).mean() <= most
    assert np.count_nonzero(predict.excess(dataset.test.image, (low, high))) < 0.001 * len(dataset.test)
    assert predict.looks_inverted(255 - dataset.test.image, (low, high)).mean() > (0.98 if name == "mnist" else 0.05)
    assert not predict.looks_inverted(255 - dataset.test.image, None).any()


@pytest.mark.parametrize("split", ["test", "train"])
def test_evaluation_on_a_folder_of_few_images(run, trained, originals, tmp_path, capsys, split):
    """Four test images alone, of which the run's tenth for validation would be none; and so of training images."""
    assert run.config.data.validation == 0.1
    chosen = [int(np.flatnonzero(originals.test.label == k)[0]) for k in range(4)]
    for k, i in enumerate(chosen):
        (tmp_path / split / str(k)).mkdir(parents=True)
        Image.fromarray(originals.test.image[i, ..., 0]).save(tmp_path / split / str(k) / "image.png")
    argv = ("--data.name", "folder", "--data.raw-dir", tmp_path, "--split", split, "--json")
    assert command("evaluate", trained, *argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["examples"], found["split"], found["same_data"]) == (4, split, None)
    right = run.predict(originals.test.image[chosen]).argmax(-1) == originals.test.label[chosen]
    assert found["accuracy"] == right.mean()
    if split == "test":  # as other test images of a run on a folder
        own = dataclasses.replace(run.config.data, name="folder", raw_dir=str(tmp_path / "elsewhere"))
        with pytest.warns(UserWarning, match="not the data that"):
            again = evaluate(
                dataclasses.replace(run, config=dataclasses.replace(run.config, data=own)), raw_dir=tmp_path
            )
        assert (again["accuracy"], again["loss"], again["same_data"]) == (found["accuracy"], found["loss"], False)


def test_test_images_alone_are_held_to_their_own_checksum(run):
    """Where training images are missing, test images stand for them."""
    digits = data.load("digits", size=(28, 28))
    alone = dataclasses.replace(digits, train=digits.test, validation=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluate(run, dataset=alone)["same_data"] is True
        unknown = dataclasses.replace(run, info=dataclasses.replace(run.info, split_sha256=None))
        assert evaluate(unknown, dataset=alone)["same_data"] is None
    changed = dataclasses.replace(digits.test, label=np.roll(digits.test.label, 1))
    with pytest.warns(UserWarning, match="these are not the data that"):
        assert evaluate(run, dataset=dataclasses.replace(alone, train=changed, test=changed))["same_data"] is False


def test_evaluation_tells_that_a_limit_once_took_other_images(run):
    """Of a run of a version that took the first images; without a limit they are all the same."""
    limited = dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, limit=256))
    earlier = dataclasses.replace(run, unsealed=True)
    with pytest.warns(UserWarning, match="took the first 256 images of a split for data.limit: these.* may be other"):
        assert evaluate(dataclasses.replace(earlier, config=limited))["same_data"] is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluate(earlier)["same_data"] is True
        assert evaluate(dataclasses.replace(run, config=limited))["same_data"] is True


def test_evaluation_tells_data_that_have_changed(trained, run, originals, capsys, monkeypatch):
    """Two labels of test images swapped; of any split, as all of a set is compared."""
    assert command("evaluate", trained, "--split", "validation") == 0
    assert capsys.readouterr().err == ""
    enlarged = data.load("digits", size=(28, 28))
    label = enlarged.test.label.copy()
    first, second = 0, int(np.flatnonzero(label != label[0])[0])
    label[[first, second]] = label[[second, first]]
    changed = dataclasses.replace(enlarged, test=data.Arrays(enlarged.test.image, label))
    for split in ("test", "train"):
        with pytest.warns(UserWarning, match=f"not the data that {trained} was made with: their sha256 is "):
            assert evaluate(run, split, dataset=changed)["same_data"] is False
    monkeypatch.setitem(data.DATASETS, "digits", lambda **_: changed)
    assert command("evaluate", trained) == 0
    out, err = capsys.readouterr()
    assert err.startswith("warning: these are not the data that")
    assert "at step 60 on 360 test images" in out
    with warnings.catch_warnings():
        assert evaluate(run, name="digits")["same_data"] is None  # another set, by request
