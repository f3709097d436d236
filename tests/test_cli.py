"""The `cnnjax` command: what each part of it prints and leaves behind."""

import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import cnnjax
from cnnjax import cli, data, models, training
from cnnjax.ops.errors import InputError
from cnnjax.training import rundir

ROOT = pathlib.Path(__file__).resolve().parent.parent
SUBCOMMANDS = ["run", "evaluate", "predict", "models", "summary", "data", "plan", "doctor"]


def command(*argv: object) -> int:
    """The exit status of `cnnjax` with these arguments."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in argv])
    return stopped.value.code


@pytest.fixture
def output(capsys):
    """`output(*argv)`: what `cnnjax` printed, having succeeded without a word on standard error."""

    def run(*argv: object) -> str:
        capsys.readouterr()
        assert command(*argv) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of 60 steps, which reads most digits."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert command("run", "quickstart", "--workdir", folder, "--train.steps", 60, "--train.evaluate-every", 20) == 0
    return folder


@pytest.fixture(scope="module")
def result(run):
    return json.loads((run / "result.json").read_text())


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", size=(28, 28))


def files(folder: pathlib.Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of change of every file."""
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- help ----------------------------------------------------------------------------------------------------------


def test_help_names_every_command(output, capsys):
    assert list(cli.COMMANDS) == SUBCOMMANDS
    text = output("--help")
    for name in SUBCOMMANDS:
        assert f"\n  {name} " in text
    assert output("-h") == output("help") == text
    assert command() == 2
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_help_of_each_command(name, output):
    text = output(name, "--help")
    assert text.startswith(f"usage: cnnjax {name} ")
    assert len(text.splitlines()) > 5


def test_version(output):
    assert output("--version") == f"cnnjax {cnnjax.__version__}\n"


def test_an_experiments_help_teaches(output):
    """What it is, examples, the ten options that matter; the names of all others, which `--help-all` explains."""
    import experiments.quickstart as experiment

    for flag in ("--help", "--help-all"):
        text = output("run", "quickstart", flag)
        words = " ".join(text.split())
        assert " ".join(experiment.__doc__.split()) in words
        for option in ("workdir", "quick", "extend", "model.fields", "data.raw-dir", "optimizer.learning-rate"):
            assert f"\n  --{option}" in text
        assert "Parameter updates, in place of epochs." in words
        assert "(default: 64)" in words  # the experiment's defaults, not the library's
        for noise in ("{None}", "STR", "(default: )", "(default: None)", "(default: False)"):
            assert noise not in text
    assert "(default: lenet5_modern)" in words
    short = output("run", "quickstart", "--help")
    assert len(re.findall(r"^  --[a-z.-]+ ?[A-Z]*", short.partition("\n\nand ")[0], re.MULTILINE)) == 10
    examples = re.findall(r"^  cnnjax (run quickstart .*)", short, re.MULTILINE)
    assert len(examples) == 3
    everything = {flag[2:] for flag in re.findall(r"^  (--[a-z.-]+)", text, re.MULTILINE)}
    assert len(everything) > 50
    for name in everything:
        assert name in short or name.rpartition(".")[2] in short.partition("--help-all")[2]


@pytest.mark.parametrize("argv", [[], ["run"], ["data"], ["models"], ["models", "resnet"], ["summary", "resnet50"],
                                  ["summary", "googlenet"], ["run", "quickstart", "--help"],
                                  ["run", "imagenet_resnet50", "--help-all"], ["plan", "--help"]])  # fmt: skip
def test_everything_fits_80_columns(argv, capsys, monkeypatch):
    """On a terminal: no line is longer, and no word is broken that stands in the output of a pipe."""
    command(*argv)
    words = set(capsys.readouterr().out.split())
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    command(*argv)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    new = {word for word in text.split() if word not in words and "…" not in word}
    if argv[:1] != ["summary"]:  # whose numbers are shortened
        assert new <= {"left", "out", "at", "this", "width:", "input,", "classes,", "published", "with", "─" * 80}


def test_models_of_a_name(output):
    names = [row["name"] for row in json.loads(output("models", "ResNeXt", "--json"))]
    assert names == [name for name in models.names() if "resnext" in name]
    assert len(names) >= 2
    assert command("models", "resnxt50") == 2


def test_the_experiments_there_are(output):
    text = output("run")
    for path in (ROOT / "experiments").glob("*.py"):
        assert (f"\n  {path.stem} " in text) == (not path.stem.startswith("_"))
    assert "LeNet-5 as published in 1998" in text


# ---- run -----------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_shown_and_left_alone(run, result, output):
    before = files(run)
    text = output("run", "quickstart", "--workdir", run, "--train.steps", 60, "--train.evaluate-every", 20)
    assert files(run) == before
    for shown in (f"{result['test_accuracy']:.2%}", "61,706", result["fingerprint"][:16], str(run / "curves.png")):
        assert shown in text
    assert "epoch" not in text  # nothing was trained
    assert f"finished on {result['finished'][:16].replace('T', ' ')} UTC, nothing computed" in text


def test_a_result_names_what_was_changed(result):
    """From the experiment's defaults: which the command named, and what follows from it."""
    assert result["changed"] == {"train.steps": 60, "train.epochs": None, "train.evaluate_every": 20}


def test_an_extended_run_goes_on(run, result, output, tmp_path):
    half, whole = tmp_path / "half", ("--train.evaluate-every", 20, "--optimizer.schedule", "constant")
    output("run", "quickstart", "--workdir", half, "--train.steps", 20, *whole)
    text = output("run", "quickstart", "--workdir", half, "--train.steps", 40, "--extend", *whole)
    assert "resuming from step 20" in text
    assert json.loads((half / "result.json").read_text())["steps"] == 40


def test_without_a_workdir_the_same_command_finds_its_run(output, tmp_path, monkeypatch):
    """As a module too: `python -m experiments NAME` is `cnnjax run NAME`."""
    monkeypatch.chdir(tmp_path)
    output("run", "quickstart", "--quick")
    (folder,) = (tmp_path / "runs" / "quickstart").iterdir()
    assert re.fullmatch(r"seed0-quick-[0-9a-f]{8}", folder.name)
    before = files(tmp_path)
    again = [sys.executable, "-m", "experiments", "quickstart", "--quick"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(again, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert str(folder.relative_to(tmp_path)) in done.stdout
    assert done.stderr == ""
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("", "seed0"),
        ("--train.seed 3 --run.log-every 7", "seed3"),
        ("--model.fields act=tanh pool=avg --train.steps 60", "seed0-act_tanh-pool_avg-steps_60"),
        ("--model.name lenet5 --optimizer.warmup 0.5 --data.flip", "seed0-model_lenet5-flip_true-warmup_0.5"),
        ("--data.name tfds:mnist/3.0 --optimizer.name sgd", "seed0-data_tfds_mnist_3.0-optimizer_sgd"),
        ("--data.size 20 24 --quick", "seed0-quick-size_20_24"),
        (f"--model.fields act={'tanh' * 30} a=1 conv={'xla' * 30} b=2", f"seed0-act_{('tanh' * 30)[:26]}-a_1"),
    ],
)
def test_a_folder_is_named_by_what_was_changed(argv, words):
    """Short, of letters, digits, dots, hyphens and underscores, and never the same for two configurations."""
    from cnnjax.training.launch import _folder_name, read_arguments

    path = ROOT / "experiments" / "quickstart.py"
    config = cli.load_experiment("quickstart").CONFIG
    name = _folder_name(config, path, read_arguments(config, path, argv.split()))
    start, _, digest = name.rpartition("-")
    assert start.startswith(words)
    assert re.fullmatch("[0-9a-f]{8}", digest)
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,90}", name)


def test_quick_yields_to_what_is_asked_for(output, tmp_path):
    output("run", "quickstart", "--quick", "--train.steps", 2, "--data.limit", 100, "--workdir", tmp_path / "run")
    config = rundir.read_config(tmp_path / "run")["config"]
    assert (config["train"]["steps"], config["data"]["limit"], config["train"]["batch_size"]) == (2, 100, 32)


def test_a_file_is_an_experiment_too(output, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text((ROOT / "experiments" / "quickstart.py").read_text().replace("epochs=40", "steps=2"))
    output("run", file, "--quick", "--workdir", tmp_path / "run")
    record = rundir.read_config(tmp_path / "run")
    assert (record["experiment"], record["experiment_file"]) == ("mine", str(file))


def test_profile_leaves_a_trace(output, tmp_path):
    text = output("run", "quickstart", "--quick", "--profile", "--workdir", tmp_path / "run")
    assert str(tmp_path / "run" / "profile") in text
    (trace,) = (tmp_path / "run" / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000


def test_tensorboard_events_hold_the_metrics(output, tmp_path):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2", reason="needs the tensorboard extra")
    output("run", "quickstart", "--quick", "--run.tensorboard", "--workdir", tmp_path / "run")
    (file,) = (tmp_path / "run" / "tensorboard").iterdir()
    content, found = file.read_bytes(), {}
    while content:  # a record: its length, a checksum of that, the event, a checksum of that
        (length,) = struct.unpack("<Q", content[:8])
        event = event_pb2.Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        found |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
    expected = {
        (row["step"], f"{row['split']}/{name}"): np.float32(value)
        for row in rundir.read_metrics(tmp_path / "run" / "metrics.jsonl")
        for name, value in row.items()
        if name not in ("step", "split")
    }
    assert len(expected) > 10
    assert found == expected


# ---- evaluate ------------------------------------------------------------------------------------------------------


def test_evaluate_gives_what_the_run_reported(run, result, output):
    before = files(run)
    values = json.loads(output("evaluate", run, "--json"))
    assert values["accuracy"] == result["test_accuracy"]
    assert values["top5"] == result["test_top5"]
    assert values["loss"] == result["test_loss"]
    assert (values["step"], values["data"], values["split"], values["examples"]) == (60, "digits", "test", 360)
    parts = values["class_accuracy"]
    assert list(parts) == list("0123456789")
    assert values["balanced_accuracy"] == pytest.approx(np.mean(list(parts.values())))
    text = output("evaluate", run)
    lowest = min(parts, key=parts.get)
    for shown in (
        str(run),
        "step 60",
        "360 test images of digits",
        f"{result['test_accuracy']:.2%}",
        f"by class  {values['balanced_accuracy']:.2%} on average; lowest: {lowest} ({parts[lowest]:.2%})",
    ):
        assert shown in text
    assert files(run) == before


def test_evaluate_best(run, result, output):
    values = json.loads(output("evaluate", run, "--best", "--json"))
    assert values["step"] == result["best_step"]
    assert values["accuracy"] == result["best_test_accuracy"]
    values = json.loads(output("evaluate", run, "--best", "--split", "validation", "--json"))
    assert values["accuracy"] == result["best_validation_accuracy"]
    assert values["examples"] == 144


def test_evaluate_on_other_data(run, capsys, tmp_path, digits):
    """A folder with some of the run's classes, whose own numbers are others, and fewer images than a batch."""
    some = [i for i in range(60) if digits.test.label[i] in (3, 5, 8)]
    for split in ("train", "test"):
        for i in some:
            name = digits.classes[digits.test.label[i]]
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(digits.test.image[i, ..., 0]).save(folder / f"{i}.png")
    argv = ("--data.name", "folder", "--data.raw-dir", tmp_path / "images", "--data.cache-dir", tmp_path / "cache")
    assert command("evaluate", run, "--json", *argv) == 0
    said = capsys.readouterr()
    values = json.loads(said.out)
    assert said.err == (
        f"cnnjax: {tmp_path / 'images'} holds images of 3 classes: {len(some)} in train, {len(some)} in test\n"
    )
    shutil.rmtree(tmp_path / "images" / "train")  # which an evaluation on test images doesn't need
    assert command("evaluate", run, "--json", *argv) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == values
    assert said.err == f"cnnjax: {tmp_path / 'images'} holds images of 3 classes: {len(some)} in test\n"
    model, variables, _ = cnnjax.load(run)
    derived = rundir.read_config(run)["derived"]
    x = np.float32((digits.test.image[some] / 255 - derived["mean"]) / derived["std"])
    right = np.asarray(model.apply(variables, x)).argmax(-1) == digits.test.label[some]
    assert right.mean() > 0.5
    assert (values["data"], values["examples"]) == ("folder", len(some))
    assert values["accuracy"] == pytest.approx(right.mean())


def test_a_run_on_a_folder_is_evaluated_from_anywhere(tmp_path, monkeypatch, capsys):
    """Named relative to the folder it was started in, with ~ for the home folder, and images of other proportions."""
    rng = np.random.default_rng(0)
    for name in ("train/a/0", "train/a/1", "train/b/0", "train/b/1", "test/a/0", "test/b/0"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (28, 40), np.uint8)).save(tmp_path / "set" / f"{name}.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CNNJAX_CACHE", "~/cache")
    monkeypatch.chdir(tmp_path)
    options = "--data.name folder --data.raw-dir set --data.size 28 28 --data.fit crop --data.stratify"
    options += " --data.validation 2 --train.steps 2 --train.batch-size 2 --run.devices 1 --workdir ~/run"
    assert command("run", "quickstart", *options.split()) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert not (tmp_path / "~").exists()
    capsys.readouterr()
    assert command("evaluate", "~/run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 2
    assert command("predict", "~/run", "~/set/test/a/0.png", "--json") == 0
    top = json.loads(capsys.readouterr().out)["top"][0]
    loaded = training.load_run(tmp_path / "run")
    crop = data.open_image(tmp_path / "set/test/a/0.png", 28, 28, 1, "crop")[None]
    logits = loaded.model.apply(loaded.variables, loaded.preprocess(crop), train=False)[0]
    assert top["class"] == "ab"[int(logits[:2].argmax())]
    assert top["probability"] == pytest.approx(float(jax.nn.softmax(logits).max()), rel=1e-4)
    assert command("data", "show", "folder", "--raw-dir", "~/set", "--size", 7, 10) == 0
    assert "4 images of 7×10×1" in capsys.readouterr().out


# ---- predict -------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(digits, tmp_path):
    """Two test images as PNG files."""
    paths = [tmp_path / "first.png", tmp_path / "second.png"]
    for path, image in zip(paths, digits.test.image[:2, ..., 0], strict=True):
        Image.fromarray(image).save(path)
    return paths


def test_predict_says_what_the_network_says(run, images, digits, output):
    lines = [json.loads(line) for line in output("predict", run, *images, "--json").splitlines()]
    model, variables, _ = cnnjax.load(run)
    derived = rundir.read_config(run)["derived"]
    x = np.float32((digits.test.image[:2] / 255 - derived["mean"]) / derived["std"])
    logits = np.asarray(model.apply(variables, x), np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for line, path, row in zip(lines, images, probabilities, strict=True):
        assert line["image"] == str(path)
        assert [found["class"] for found in line["top"]] == [digits.classes[k] for k in np.argsort(-row)[:5]]
        expected = np.sort(row)[::-1][:5]
        np.testing.assert_allclose([found["probability"] for found in line["top"]], expected, rtol=1e-4)


def test_predict_prints_percentages(run, images, output):
    (line,) = output("predict", run, images[0], "--top", 3, "--json").splitlines()
    top = json.loads(line)["top"]
    assert len(top) == 3
    text = output("predict", run, images[0], "--top", 3)
    assert text.splitlines() == [str(images[0]), *(f"  {t['probability']:7.2%}  {t['class']}" for t in top)]


def test_predict_takes_any_image(run, images, digits, output, tmp_path):
    """Colour, another size, black on white: the same digit."""
    image = Image.fromarray(255 - digits.test.image[0, ..., 0]).convert("RGB").resize((56, 56))
    image.save(tmp_path / "large.bmp")
    plain = json.loads(output("predict", run, images[0], "--json"))["top"][0]
    inverted = json.loads(output("predict", run, tmp_path / "large.bmp", "--invert", "--json"))["top"][0]
    assert inverted["class"] == plain["class"]


def test_predict_knows_a_tenth_class_at_most(run, images, output):
    assert len(json.loads(output("predict", run, images[0], "--top", 50, "--best", "--json"))["top"]) == 10


def test_names_of_classes_are_neither_formulas_nor_commands(output, tmp_path, digits, images, monkeypatch):
    """From end to end: what begins a formula in a picture, or is markup. (What a terminal would obey is refused.)"""
    names = ["$x$", "[bold]a  b[/bold] :dog:", "$\\frac{"]
    arrays = data.Arrays(digits.train.image[:60], np.arange(60, dtype=np.int32) % 3)
    odd = data.Dataset("odd", arrays, arrays, None, tuple(names), {})
    monkeypatch.setitem(data.DATASETS, "odd", lambda **_: odd)
    output("run", "quickstart", "--quick", "--train.steps", 2, "--data.name", "odd", "--workdir", tmp_path / "run")
    for file in ("result.json", "curves.png", "predictions.png"):
        assert (tmp_path / "run" / file).stat().st_size > 100
    image = images[0]
    shown = [output("predict", tmp_path / "run", image), output("data", "show", "odd")]
    for text in shown:
        assert all(name in text for name in names)
    lines = [json.loads(line) for line in output("predict", tmp_path / "run", image, "--json").splitlines()]
    assert {found["class"] for line in lines for found in line["top"]} == set(names)  # to a program, as they are


# ---- models and data -----------------------------------------------------------------------------------------------


def test_models_lists_every_network(output):
    rows = {row["name"]: row for row in json.loads(output("models", "--json"))}
    assert sorted(rows) == list(models.names())
    assert rows["lenet5"]["parameters"] == 60_000
    assert rows["lenet5_modern"]["parameters"] == 61_706
    resnet = rows["resnet50_v1"]
    assert (resnet["authors"], resnet["year"]) == ("He et al.", 2015)
    assert resnet["published"] == "ImageNet, 24.7 % top-1 error"
    assert rows["resnet50"]["multiply_adds"] == 4_089_184_256
    text = output("models")
    for name, row in rows.items():
        assert any(name in line and f"{row['parameters']:,}" in line for line in text.splitlines())


def test_summary(output, tmp_path):
    text = output("summary", "lenet5", "--svg", tmp_path / "lenet5.svg")
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    assert ["C3", "PartialConv", "10×10×16", "5×5", "1,516", "240,000", "14×14", "6.25 KiB", "auto"] in lines
    assert ["S2", "Subsample", "14×14×6", "2×2 /2", "12", "6×6", "4.59 KiB"] in lines
    assert ["total", "60,000", "415,680", "16×16", "31.6 KiB"] in lines
    assert (tmp_path / "lenet5.svg").read_text().startswith("<svg ")
    rows = json.loads(output("summary", "resnet18", "--input", "64x48x3", "--depth", 1, "--json"))
    assert rows["input"] == [64, 48, 3]
    assert rows["parameters"] == 11_689_512
    assert next(row for row in rows["layers"] if row["name"] == "stage4_block2")["output"] == [2, 2, 512]


def test_summary_of_an_experiments_network(output, tmp_path):
    """A file's own network, with the fields that its CONFIG has and those of the command line."""
    (tmp_path / "mine.py").write_text(
        "from cnnjax.training import Config, Data, Model, Optimizer, Train, launch\n"
        "NETWORK = Model('cifar_resnet20', {'norm': 'group'})\n"
        "CONFIG = Config(NETWORK, Data('digits'), Optimizer('adam', 1e-3), Train())\n"
        "def main(argv=None): return launch(CONFIG, __file__, argv)\n"
    )
    rows = json.loads(output("summary", tmp_path / "mine.py", "--fields", "num_classes=3", "--json"))
    assert {row["kind"] for row in rows["layers"]} == {"Conv", "GroupNorm", "add", "global average", "Dense"}
    assert rows["layers"][-1]["output"] == [3]


def test_summary_of_an_experiments_images(output):
    """The size that its CONFIG enlarges them to, and the classes that they have."""
    rows = json.loads(output("summary", ROOT / "experiments" / "quickstart.py", "--json"))
    assert rows["input"] == [28, 28, 1]
    rows = json.loads(output("summary", ROOT / "experiments" / "cs231n_cifar10.py", "--json"))
    assert (rows["input"], rows["layers"][-1]["output"]) == ([32, 32, 3], [10])


def test_summary_of_a_run(run, output):
    rows = json.loads(output("summary", run, "--json"))
    assert (rows["model"], rows["input"], rows["parameters"]) == ("lenet5_modern", [28, 28, 1], 61_706)
    assert command("summary", run.parent) == 2


def test_data_list(output):
    text = output("data")
    assert output("data", "list") == text
    assert [line.split()[0] for line in text.splitlines()] == data.names()


def test_what_a_line_about_data_advises_can_be_typed(output, capsys):
    """They call options as experiments do, and `cnnjax data` knows these names too."""
    assert command("data", "show", "digits", "--size", 12, 10) == 0
    assert "lost their proportions; --data.fit letterbox or crop keeps them" in capsys.readouterr().err
    assert "1,437 images of 12×10×1" in output("data", "show", "digits", "--size", 12, 10, "--data.fit", "crop")
    assert command("data", "show", "digits", "--data.size", 12) == 2
    assert "error: --size: received '12', allowed: two numbers, such as --size 12 12" in capsys.readouterr().err
    assert command("data", "show", "digits", "--fit", "squash") == 2
    assert "error: --fit: received 'squash', allowed: stretch, letterbox, crop" in capsys.readouterr().err


def test_data_show(output, tmp_path):
    text = output("data", "show", "digits", "--picture", tmp_path / "digits.png")
    for shown in ("1,437 images of 8×8×1", "360 images of 8×8×1", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9", "sha256"):
        assert shown in text
    with Image.open(tmp_path / "digits.png") as picture:
        assert min(picture.size) > 200


def test_a_folder_of_its_name_does_not_keep_a_set_from_being_prepared(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(data, "prepare", lambda name, **_: f"prepared {name}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet2012").mkdir()
    assert command("data", "prepare", "imagenet2012") == 0
    assert capsys.readouterr().out == "prepared imagenet2012\n"
    assert command("data", "show", "imagenet2012") == 2
    assert "show folder --raw-dir imagenet2012" in capsys.readouterr().err


@pytest.mark.parametrize("platforms", ["nonsense", "cuda"])  # of which JAX says little, and nothing
def test_platforms_that_are_not_there_are_a_line_of_every_command(run, images, platforms, tmp_path):
    workdir = str(run)
    commands = [
        ["evaluate", workdir],
        ["predict", workdir, str(images[0])],
        ["summary", "lenet5"],
        ["summary", workdir],
        ["doctor"],
        ["run", "quickstart", "--quick", "--workdir", str(tmp_path / "new")],
    ]
    program = f"""
from cnnjax.cli import main
for argv in {commands}:
    try:
        main(argv)
    except SystemExit as left:
        print(left.code)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"JAX_PLATFORMS": platforms},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["2"] * len(commands)
    lines = done.stderr.splitlines()
    assert len(lines) == len(commands)
    assert all(line.startswith(f"error: devices: received JAX_PLATFORMS={platforms}") for line in lines)


def test_the_library_raises_what_the_command_prints(run, capsys):
    """For a program the same mistakes are `InputError`s."""
    with pytest.raises(InputError, match="no such file") as raised:
        cli.load_experiment("nowhere.py")
    assert command("run", "nowhere.py") == 2
    assert capsys.readouterr().err == f"error: {raised.value}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "digits", "--made-up", "3"), "--made-up: allowed: with cnnjax data prepare imagenet2012"),
        (("prepare", "mnist", "--made-up", "3"), "--made-up: allowed: with cnnjax data prepare imagenet2012"),
        (("prepare", "imagenet2012", "--made-up", "0"), "--made-up: received 0, allowed: 1 or more"),
        (("prepare", "imagenet2012", "--made-up", "3"), "--made-up: needs --data-dir, a folder apart"),
    ],
)
def test_made_up_photographs_are_asked_for_rightly(arguments, message, capsys):
    assert command("data", *arguments) == 2
    assert message in capsys.readouterr().err
