"""What a person sees who asks for something that can't be: a line that says what, an exit status, and nothing lost."""

import dataclasses
import functools
import gzip
import hashlib
import json
import pathlib
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cnnjax import cli, data
from cnnjax.data import originals
from cnnjax.training import rundir

ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Case:
    """A command that must fail.

    Attributes:
      name: of the case.
      command: the arguments of `cnnjax`; a word in braces is the path of one of `PLACES`.
      words: what the line must say (places may be named again).
      status: the exit status: 2 for a mistake in what was asked, 1 for a run that failed.
      sets_aside: damaged checkpoints are moved away, with a warning about each.
    """

    name: str
    command: str
    words: tuple[str, ...]
    status: int = 2
    sets_aside: bool = False


RUN = "run quickstart --quick --workdir {new}"
MNIST = "run lenet5_modern_mnist --quick --workdir {new}"
FOLDER = RUN + " --data.name folder"
AGAIN = "run quickstart --quick --workdir"  # {finished} was made by this

CASES = [
    # ---- names, with the nearest one
    Case("no such command", "evalute {finished}", ("command", "'evalute'", "did you mean 'evaluate'")),
    Case("no such experiment", "run lenet5_minst", ("experiment", "'lenet5_minst'", "did you mean 'lenet5_mnist'")),
    Case("no such file", "run {nowhere}.py", ("experiment", "no such file", "{nowhere}.py")),
    Case("a file that is not Python", "run {a_file}", ("experiment", "{a_file}", "Python")),
    Case("a file that is no experiment", "run {no_experiment}", ("{no_experiment}", "main(argv)")),
    Case("no such model", RUN + " --model.name lenet5_moden", ("model", "lenet5_moden", "mean 'lenet5_modern'")),
    Case("no such field", RUN + " --model.fields akt=relu", ("field of lenet5_modern", "'akt'", "mean 'act'")),
    Case("no such data set", RUN + " --data.name fashion-mnist", ("data set", "'fashion-mnist'", "'fashion_mnist'")),
    Case("no such optimizer", RUN + " --optimizer.name adamm", ("optimizer", "'adamm'", "did you mean 'adam'")),
    Case("no such activation", RUN + " --model.fields act=rellu", ("activation", "'rellu'", "did you mean 'relu'")),
    Case("no such loss", RUN + " --train.loss cross_entrop", ("loss", "'cross_entrop'", "mean 'cross_entropy'")),
    Case("no such option", RUN + " --train.stepz 4", ("--train.stepz", "did you mean --train.steps")),
    Case("an option of another group", RUN + " --train.lr 1", ("--train.lr", "did you mean --optimizer.learning-rate")),
    Case("an option without its group", RUN + " --batch-size 1", ("--batch-size", "did you mean --train.batch-size")),
    Case("one number for two", RUN + " --data.size 28", ("--data.size: received '28'", "such as --data.size 28 28")),
    Case("a shorter run", AGAIN + " {finished} --train.steps 2", ("train.steps", "can't be shortened", "--workdir")),
    Case("a part of no network's name", "models resnxt", ("network", "'resnxt'")),
    # ---- networks to look at
    Case("no such network", "summary resnet55", ("model", "'resnet55'", "did you mean 'resnet50'")),
    Case("the end of a network's name", "summary resnet20", ("'resnet20'", "did you mean 'cifar_resnet20'")),
    Case("a network's field that is not", "summary vgg11 --fields pol=avg", ("field of vgg11", "'pol'", "mean 'pool'")),
    Case("a size that is none", "summary resnet18 --input big", ("--input", "'big'", "HEIGHT,WIDTH,CHANNELS")),
    Case("a size without channels", "summary resnet18 --input 32,32", ("input", "(32, 32)", "positive integers")),
    Case("a size of nothing", "summary resnet18 --input 0,32,3", ("input", "(0, 32, 3)", "positive integers")),
    Case("a size too small", "summary vgg11 --input 31,31,3", ("31x31", "32x32 or larger")),
    Case("a field of another type", "summary resnet18 --fields widths=3", ("widths", "received 3", "allowed: a tuple")),
    Case("a size beyond measure", "summary resnet18 --input 99999999999999999999,3,3", ("input", "99999999999")),
    Case("no depth", "summary vgg11 --depth 0", ("--depth", "received 0", "1 or more")),
    Case("a drawing that can't be written", "summary lenet5 --svg {nowhere}/a.svg", ("--svg", "{nowhere}", "written")),
    Case("no such implementation", "summary lenet5 --fields conv=winograd:xl", ("'xl'", "did you mean 'xla'")),
    Case("an implementation that can't", "summary resnet18 --fields conv=winograd", ("'winograd'", "strides", "xla")),
    # ---- numbers
    Case("no steps", RUN + " --train.steps 0", ("train.steps", "received 0", "above 0")),
    Case("negative steps", RUN + " --train.steps -5", ("train.steps", "received -5", "above 0")),
    Case("half a step", RUN + " --train.steps 2.5", ("--train.steps", "a whole number", "'2.5'")),
    Case("negative epochs", RUN + " --train.epochs -1", ("train.epochs", "received -1", "above 0")),
    Case("endless epochs", RUN + " --train.epochs inf", ("train.epochs", "received inf")),
    Case("a rate that is a word", RUN + " --optimizer.learning-rate fast", ("--optimizer.learning-rate", "'fast'")),
    Case("a rate that is not a number", RUN + " --optimizer.learning-rate nan", ("optimizer.learning-rate", "nan")),
    Case("a negative rate", RUN + " --optimizer.learning-rate -0.1", ("optimizer.learning-rate", "received -0.1")),
    Case("a negative seed", RUN + " --train.seed -1", ("train.seed", "received -1", "allowed: 0 to")),
    Case("steps and epochs", RUN + " --train.steps 4 --train.epochs 40", ("--train.steps", "--train.epochs", "both")),
    Case("too few classes", RUN + " --model.fields num_classes=3", ("num_classes=3", "10 or more")),
    Case("steps beyond int32", RUN + " --train.steps 100000000000000000000", ("train.steps", "at most 2,147,483,647")),
    Case("steps of 5,000 digits", RUN + " --train.steps " + "9" * 5000, ("--train.steps", "999")),
    Case("calls without end", RUN + " --run.steps-per-call 1000000000000", ("run.steps-per-call", "at most 100,000")),
    Case("images of 10^10 pixels", RUN + " --data.size 100000 100000", ("data.size", "received 100000", "32,768")),
    Case("a negative factor", RUN + " --optimizer.factors -1", ("optimizer.factors", "received -1.0", "0 to 1e+09")),
    Case("a factor that is none", RUN + " --optimizer.factors nan", ("optimizer.factors", "received nan")),
    Case("an infinite deviation", RUN + " --data.std inf", ("data.std", "received inf")),
    Case("brackets without end", RUN + " --model.fields num_classes=" + "[" * 100_000, ("--model.fields", "4096")),
    Case("a network's name", RUN + " --model.fields name=x", ("--model.fields", "name is no field")),
    Case("a set", RUN + " --model.fields act={{1,2}}", ("model.fields", "act={{1, 2}} (set)")),
    Case("a digit that is not", "plan quickstart --topology v5e:²x4", ("topology", "'v5e:²x4'", "CHIP:AxB")),
    Case("a port that is not", RUN + " --distributed.coordinator h:² --distributed.num-processes 2"
         " --distributed.process-id 0", ("distributed.coordinator", "'h:²'", "HOST:PORT")),
    Case("a quote not closed", 'plan quickstart --topology v5e:4x4 --compare "train', ("--compare", "No closing quot")),
    Case("a picture of no kind", "data show digits --picture {new}.unknown", ("--picture", ".unknown", ".png")),
    Case("digits of another script", RUN + " --train.steps ١٠", ("--train.steps", "'١٠'", "a whole number")),
    Case("digits in groups", RUN + " --train.steps 1_0", ("--train.steps: received '1_0'", "a whole number")),
    Case("a real number in groups", RUN + " --optimizer.learning-rate 1_0.5", ("learning-rate", "'1_0.5'", "a number")),
    Case("sizes in groups", RUN + " --data.size 1_0 28", ("--data.size: received '1_0 28'", "two numbers")),
    Case("wide digits", "summary lenet5 --input ９,９,１", ("--input", "'９,９,１'", "HEIGHT,WIDTH,CHANNELS")),
    Case("a part that is all", RUN + " --data.validation 1.0", ("data.validation", "1.0", "below 1", "2 or more")),
    # ---- switches, and what is given twice
    Case("a value for a switch", RUN + " --data.flip maybe", ("--data.flip: received 'maybe'", "no value")),
    Case("and behind its sign", RUN + " --data.flip=maybe", ("--data.flip: received 'maybe'", "no value")),
    Case("a value of no option", RUN + " maybe", ("received 'maybe', which belongs to no option",)),
    Case("a field twice", RUN + " --model.fields act=relu act=tanh", ("--model.fields", "act was given twice")),
    Case("fields twice", RUN + " --model.fields act=relu --model.fields conv=xla", ("--model.fields", "twice", "once")),
    Case("fields to see twice", "summary lenet5 --fields act=relu --fields act=tanh", ("--fields", "twice", "once")),
    # ---- batches and devices
    Case("a batch above the set", RUN + " --train.batch-size 512", ("train.batch-size", "512", "most the 230")),
    Case("a batch that devices can't share", RUN + " --train.batch-size 20", ("train.batch-size", "20", "8 devices")),
    Case("more devices than there are", RUN + " --run.devices 9", ("run.devices", "received 9", "allowed: 1 to 8")),
    Case("a deviation without end", RUN + " --data.std inf", ("data.std", "received inf", "allowed: 1e-06 to 1e+06")),
    Case("no deviation", RUN + " --data.std 0", ("data.std", "received 0", "allowed: 1e-06 to 1e+06")),
    Case("a mean that is not a number", RUN + " --data.mean nan", ("data.mean", "received nan", "-1e+06 to 1e+06")),
    Case("no such fit", RUN + " --data.fit squash", ("--data.fit", "squash", "letterbox")),
    Case("a fit without a size", RUN + " --data.size None --data.fit crop", ("data.fit", "'crop'", "data.size")),
    Case("a home of nobody", RUN + " --workdir ~nobody-at-all/run", ("~nobody-at-all/run", "home")),
    # ---- the folder with a set's original files
    Case("no raw folder", MNIST + " --data.raw-dir {nowhere}", ("raw_dir", "{nowhere}", "does not exist")),
    Case("a file as raw folder", MNIST + " --data.raw-dir {a_file}", ("raw_dir", "{a_file}", "is a file")),
    Case("an empty raw folder", MNIST + " --data.raw-dir {empty}", ("raw_dir", "{empty}", "is empty")),
    Case("one file lacking", MNIST + " --data.raw-dir {lacking}", ("{lacking}", "lacks t10k-labels-idx1-ubyte.gz")),
    Case("a truncated file", MNIST + " --data.raw-dir {truncated}", ("train-images-idx3-ubyte.gz", "is truncated")),
    Case("an altered file", MNIST + " --data.raw-dir {altered}", ("train-labels-idx1-ubyte.gz", "altered", "sha256")),
    Case("another set's files", MNIST + " --data.raw-dir {fashion}", ("of fashion_mnist", "of mnist", "another set")),
    Case("raw files where there are none", RUN + " --data.raw-dir {empty}", ("raw_dir", "digits")),
    Case("a set not prepared", RUN + " --data.name tfds:mnist --data.data-dir {empty}", ("tfds:mnist", "not prepared")),
    # ---- images and labels that an experiment file supplies
    Case("images of rank 3", RUN + " --data.name rank", ("'rank'", "[n, height, width, channels]", "(40, 28, 28)")),
    Case("images of 4 channels", RUN + " --data.name channels", ("'channels'", "1 or 3 channels", "received 4")),
    Case("images of another type", RUN + " --data.name floats", ("'floats'", "uint8", "received float32")),
    Case("a label out of range", RUN + " --data.name label", ("'label'", "label 10 of example 7", "0 to 9")),
    Case("a negative label", RUN + " --data.name negative", ("'negative'", "label -1 of example 7", "0 to 9")),
    Case("labels of another type", RUN + " --data.name type", ("'type'", "int32", "received int64")),
    Case("fewer labels than images", RUN + " --data.name fewer", ("'fewer'", "40 images", "(39,)")),
    Case("a bad set of a file's own", "run {own} --workdir {new}", ("'own'", "label 2 of example 0", "0 to 1")),
    Case("images the network can't take", RUN + " --data.name colour --model.name lenet5", ("3 channels", "allowed")),
    # ---- folders of images
    Case("no folder of images", FOLDER, ("'folder'", "--data.raw-dir")),
    Case("a folder without images", FOLDER + " --data.raw-dir {no_images}", ("{no_images}", "no images", "<class>")),
    Case("one class only", FOLDER + " --data.raw-dir {one_class}", ("one class only", "'cat'", "at least 2")),
    Case("an unreadable image", FOLDER + " --data.raw-dir {unreadable}", ("train/dog/1.png", "cannot be read")),
    Case("a class that train lacks", FOLDER + " --data.raw-dir {surplus}", ("'fox'", "not in train", "test/fox/0.png")),
    # ---- the run's folder
    Case("a workdir that is a file", AGAIN + " {a_file}", ("workdir", "{a_file}", "is a file")),
    Case("a workdir below a file", AGAIN + " {a_file}/run", ("workdir", "{a_file}/run", "can't be written")),
    Case("a workdir that can't be made", AGAIN + " /proc/run", ("workdir", "/proc/run", "can't be written")),
    Case("a workdir of too long a name", AGAIN + " {too_long}", ("workdir", "can't be read", "too long")),
    Case("a workdir with other things", AGAIN + " {other_things}", ("workdir", "{other_things}", "holds no run")),
    Case("another seed", AGAIN + " {finished} --train.seed 1", ("{finished}", "train.seed was 0, received 1")),
    Case("more steps", AGAIN + " {finished} --train.steps 9", ("train.steps was 8, received 9", "--extend")),
    Case("fewer steps", AGAIN + " {finished} --train.steps 7 --extend", ("train.steps", "received 7", "8 or more")),
    # The run's own command writes it anew from what the checkpoints say (tests/training/test_rundir.py); no other does.
    Case("a config cut short", "evaluate {cut_config}", ("config.json", "not a readable JSON")),
    Case("a config cut short, extended", AGAIN + " {cut_config} --extend", ("config.json", "not a readable JSON")),
    Case(
        "a config cut short, and another command",
        "run quickstart --quick --train.seed 1 --workdir {cut_config}",
        ("belongs to a run of another configuration", "train.seed"),
        status=1,
        sets_aside=True,  # a warning comes before it, and nothing is deleted
    ),
    Case("extend without a workdir", "run quickstart --quick --extend", ("--extend", "--workdir")),
    # ---- checkpoints
    Case("all damaged", AGAIN + " {damaged}", ("no good checkpoint is left", "start from step 0"), 1, sets_aside=True),
    Case("another run's", AGAIN + " {foreign}", ("checkpoint 8", "another configuration"), 1),
    Case("evaluating a damaged one", "evaluate {damaged}", ("no good checkpoint", "damaged"), 1),
    Case("loading a foreign one", "evaluate {wider}", ("checkpoint 8", "another configuration"), 1),
    Case("none yet", "evaluate {unfinished}", ("{unfinished}", "no checkpoint")),
    # ---- evaluate, predict, data
    Case("evaluating nothing", "evaluate {nowhere}", ("{nowhere}", "not a run's folder")),
    Case("evaluating what is no run", "evaluate {other_things}", ("{other_things}", "config.json")),
    Case("no such split", "evaluate {finished} --split tset", ("--split", "'tset'", "'test'")),
    Case("other images", "evaluate {finished} --data.name colour", ("data.name", "(28, 28, 3)", "(28, 28, 1)")),
    Case("other classes", "evaluate {finished} --data.name letters", ("letters", "class 'a'", "0, 1")),
    Case("predicting no image", "predict {finished}", ("images", "none")),
    Case("predicting what is no image", "predict {finished} {a_file}", ("{a_file}", "cannot be read")),
    Case("predicting a missing image", "predict {finished} {nowhere}", ("{nowhere}", "not there")),
    Case("predicting a folder", "predict {finished} {empty}", ("{empty}", "folder")),
    Case("the top 0", "predict {finished} {an_image} --top 0", ("--top", "received 0", "1 or more")),
    Case("a folder to show", "data show {finished}", ("{finished} is a folder", "show folder --raw-dir {finished}")),
    Case("nothing to show", "data show", ("data show", "name", "digits")),
    Case("nothing to prepare", "data prepare", ("data prepare", "name", "mnist")),
    Case("preparing what TFDS lacks", "data prepare mnisd --data-dir {empty}", ("'mnisd'", "did you mean 'mnist'")),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_line_a_status_and_nothing_lost(case, places, bad_sets, tmp_path, capsys):
    argv = [word.format_map(places) for word in case.command.split()]
    words = [word.format_map(places) for word in case.words]
    before = contents(tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    out, err = capsys.readouterr()
    *warnings, line = err.splitlines()
    assert stopped.value.code == case.status, err
    assert line.startswith("error: ")
    assert [word for word in words if word not in line] == [], line
    assert all(warning.startswith("warning: ") for warning in warnings)
    assert bool(warnings) == case.sets_aside
    assert "Traceback" not in out + err
    if case.sets_aside:  # nothing is deleted
        assert {digest for _, digest in before.items()} <= {digest for _, digest in contents(tmp_path).items()}
    else:
        assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("{python} -m experiments quikstart", ("experiment", "'quikstart'", "did you mean 'quickstart'")),
        ("{python} -m experiments.quickstart --workdir {work}/run --train.steps 0", ("train.steps", "received 0")),
        ("{scripts}/cnnjax evaluate {work}", ("{work}", "not a run's folder")),
    ],
)
def test_as_a_process(program, words, tmp_path):
    python = pathlib.Path(sys.executable)
    names = {"python": python, "scripts": python.parent, "work": tmp_path}
    command = [word.format_map(names) for word in program.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert [word for word in words if word.format_map(names) not in done.stderr] == []
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


# ---- places to be named in a command -------------------------------------------------------------------------------


def contents(folder: pathlib.Path) -> dict[str, str]:
    """Every folder and file below `folder`, each file with a digest of what is in it; but what Python compiles to."""
    paths = sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder" for p in paths}


def quick_run(folder: pathlib.Path, *more: str) -> None:
    """The run that `AGAIN` asks for, in `folder`."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([*AGAIN.split(), str(folder), *more])
    assert stopped.value.code == 0


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    quick_run(folder)
    return folder


@pytest.fixture(scope="module")
def other_run(tmp_path_factory):
    """A run of another seed."""
    folder = tmp_path_factory.mktemp("other") / "run"
    quick_run(folder, "--train.seed", "1")
    return folder


def idx(array: np.ndarray) -> bytes:
    """A uint8 array as a gzipped idx file."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


@functools.cache
def mnist_files(seed: int) -> dict[str, bytes]:
    """A small set in the four files of MNIST."""
    rng = np.random.default_rng(seed)
    return {
        f"{part}-{name}-ubyte.gz": idx(array)
        for part, n in (("train", 50), ("t10k", 20))
        for name, array in (
            ("images-idx3", rng.integers(0, 256, (n, 28, 28))),
            ("labels-idx1", rng.integers(0, 10, n)),
        )
    }


@pytest.fixture
def places(tmp_path, monkeypatch, tmp_path_factory, request):
    """`places["name"]` is the path of what `PLACES` says of that name, made when it is asked for."""
    monkeypatch.setenv("CNNJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
    for name, seed in (("mnist", 0), ("fashion_mnist", 1)):
        known = tuple(
            originals.Original(file, len(content), hashlib.sha256(content).hexdigest())
            for file, content in mnist_files(seed).items()
        )
        monkeypatch.setitem(originals.ORIGINALS, name, known)

    class Places(dict):
        def __missing__(self, name):
            self[name] = tmp_path / (name + PLACES[name][1])
            PLACES[name][0](self[name], request)
            return self[name]

    return Places()


def _nothing(path, request):
    pass


def _a_file(path, request):
    path.write_text("neither a folder nor an image\n")


def _an_image(path, request):
    Image.new("L", (28, 28)).save(path)


def _no_experiment(path, request):
    path.write_text('"""It has no main."""\n')


def _own(path, request):
    path.write_text(
        '"""Labels as 1 and 2 where 0 and 1 are meant."""\n'
        "import numpy as np\n"
        "from cnnjax import data\n"
        "from cnnjax.training import Config, Data, launch\n"
        "arrays = data.Arrays(np.zeros((20, 32, 32, 1), np.uint8), np.full(20, 2, np.int32))\n"
        'data.DATASETS["own"] = lambda **_: data.Dataset("own", arrays, arrays, None, ("a", "b"), {})\n'
        "def main(argv=None):\n"
        '    return launch(Config(data=Data("own")), __file__, argv)\n'
    )
    request.addfinalizer(lambda: data.DATASETS.pop("own"))


def _empty(path, request):
    path.mkdir()


def _other_things(path, request):
    path.mkdir()
    (path / "thesis.txt").write_text("the only copy")


def _mnist(change):
    def make(path, request):
        path.mkdir()
        for name, content in change(dict(mnist_files(0))).items():
            (path / name).write_bytes(content)

    return make


def _without(files):
    del files["t10k-labels-idx1-ubyte.gz"]
    return files


def _truncate(files):
    return files | {"train-images-idx3-ubyte.gz": files["train-images-idx3-ubyte.gz"][:-100]}


def _alter(files):
    content = bytearray(files["train-labels-idx1-ubyte.gz"])
    content[-10] ^= 1
    return files | {"train-labels-idx1-ubyte.gz": bytes(content)}


def _images(*names, damaged=()):
    def make(path, request):
        for i, name in enumerate(names):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (28, 28), 20 * i).save(path / name)
        for name in damaged:
            (path / name).write_bytes((path / name).read_bytes()[:40])

    return make


def _no_images(path, request):
    (path / "train" / "cat").mkdir(parents=True)


def _copy(change=None):
    """The finished run, changed."""

    def make(path, request):
        shutil.copytree(request.getfixturevalue("finished_run"), path)
        if change:
            change(path, request)

    return make


def _cut_config(path, request):
    text = (path / "config.json").read_text()
    (path / "config.json").write_text(text[: len(text) // 2])


def _damage(path, request):
    """A bit of every checkpoint's largest file is flipped, and the run has still to finish."""
    (path / "result.json").unlink()
    for checkpoint in (path / "checkpoints").iterdir():
        if checkpoint.is_dir():
            largest = max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
            content = bytearray(largest.read_bytes())
            content[len(content) // 2] ^= 1
            largest.write_bytes(content)


def _foreign(path, request):
    (path / "result.json").unlink()
    shutil.rmtree(path / "checkpoints")
    shutil.copytree(request.getfixturevalue("other_run") / "checkpoints", path / "checkpoints")


def _wider(path, request):
    """The configuration says that the network has 12 outputs; its checkpoints have 10."""
    record = json.loads((path / "config.json").read_text())
    record["config"]["model"]["fields"] = {"num_classes": 12}
    rundir.write_record(path / "config.json", record)


def _unfinished(path, request):
    shutil.rmtree(path / "checkpoints")


CATS = ("train/cat/0.png", "train/cat/1.png")
DOGS = ("train/dog/0.png", "train/dog/1.png")

# Name to what makes it, and the ending of its file name.
PLACES = {
    "new": (_nothing, ""),
    "nowhere": (_nothing, ""),
    "too_long": (_nothing, "-" * 300),
    "a_file": (_a_file, ".txt"),
    "an_image": (_an_image, ".png"),
    "no_experiment": (_no_experiment, ".py"),
    "own": (_own, ".py"),
    "empty": (_empty, ""),
    "other_things": (_other_things, ""),
    "lacking": (_mnist(_without), ""),
    "truncated": (_mnist(_truncate), ""),
    "altered": (_mnist(_alter), ""),
    "fashion": (_mnist(lambda files: mnist_files(1)), ""),
    "no_images": (_no_images, ""),
    "one_class": (_images(*CATS), ""),
    "unreadable": (_images(*CATS, *DOGS, damaged=DOGS[1:]), ""),
    "surplus": (_images(*CATS, *DOGS, "test/fox/0.png"), ""),
    "finished": (_copy(), ""),
    "cut_config": (_copy(_cut_config), ""),
    "damaged": (_copy(_damage), ""),
    "foreign": (_copy(_foreign), ""),
    "wider": (_copy(_wider), ""),
    "unfinished": (_copy(_unfinished), ""),
}


@pytest.fixture
def bad_sets(monkeypatch):
    """Data sets by name, each wrong in one way ("colour" and "letters" are right, but not for a run on digits)."""
    image = np.zeros((40, 28, 28, 1), np.uint8)
    label = np.arange(40, dtype=np.int32) % 10
    at_7 = np.arange(40) == 7

    def add(name, image, label, classes="0123456789"):
        def load(**_):
            arrays = data.Arrays(image, label)
            return data.Dataset(name, arrays, arrays, None, tuple(classes), {})

        monkeypatch.setitem(data.DATASETS, name, load)

    add("rank", image[..., 0], label)
    add("channels", image.repeat(4, axis=3), label)
    add("floats", image.astype(np.float32), label)
    add("label", image, np.where(at_7, 10, label).astype(np.int32))
    add("negative", image, np.where(at_7, -1, label).astype(np.int32))
    add("type", image, label.astype(np.int64))
    add("fewer", image, label[:-1])
    noise = np.random.default_rng(0).integers(0, 256, (40, 28, 28, 3), dtype=np.uint8)
    add("colour", noise, label)
    add("letters", noise[..., :1], label, "abcdefghij")
