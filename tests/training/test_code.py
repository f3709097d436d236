"""The code that a user gives a run: it belongs to what the run is, and is executed only where it is that."""

import json
import os
import shutil
import subprocess
import sys

import pytest

import cnnjax
from cnnjax import cli, models
from cnnjax.ops.errors import InputError
from cnnjax.training import checkpoint, code, files, rundir
from cnnjax.training.launch import docstring

EXPERIMENT = '''"""A network in a file of one's own, with a part of it in another."""

import flax.linen as nn
from cnnjax import models
from cnnjax.training import Config, Data, Model, Optimizer, Run, Train, launch
from parts import blocks


class Mine(nn.Module):
    num_classes: int = 10

    @nn.compact
    def __call__(self, x, *, train=False):
        x = blocks.act(nn.Conv(4, (3, 3), strides=4)(x))
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


models.MODELS["mine"] = Mine
TRAIN = Train(steps=2, epochs=None, batch_size=16)
CONFIG = Config(Model("mine"), Data("digits", limit=64), Optimizer("adam"), TRAIN, Run(devices=1))


def main(argv=None):
    return launch(CONFIG, __file__, argv)
'''
FILES = {"mine.py": EXPERIMENT, "parts/__init__.py": "", "parts/blocks.py": "import flax.linen as nn\nact = nn.relu\n"}


def command(*argv: object) -> int:
    """The exit status of `cnnjax` with these arguments."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in argv])
    return stopped.value.code


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


SAID = "{}: mine.py has changed since the run, and is executed as it is now: this is not the network that was trained"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with an experiment in `project` and a run of it in `runs/run`."""
    folder = tmp_path_factory.mktemp("code")
    write(folder / "project", FILES)
    assert command("run", folder / "project" / "mine.py", "--workdir", folder / "runs" / "run") == 0
    return folder


@pytest.fixture
def place(made):
    """That folder, which is as it was before for the next test."""
    kept = made.with_name(made.name + "-kept")
    shutil.copytree(made, kept)
    yield made
    inside = [(kept / name, made / name) for name in ("project", "runs/run")]
    for source, target in inside:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        shutil.copytree(source, target, dirs_exist_ok=True)
    models.MODELS.pop("mine", None)
    shutil.rmtree(kept)


def change_record(run, **values):
    record = rundir.read_config(run)
    rundir.write_record(run / "config.json", record | values)


# ---- what a run is -------------------------------------------------------------------------------------------------


def test_a_run_records_its_code(made):
    record = rundir.read_config(made / "runs" / "run")
    assert set(record["what"]["code"]) == set(FILES)
    assert record["history"][0]["code"] == record["what"]["code"]
    manifest = checkpoint.read_manifest(made / "runs" / "run" / "checkpoints", 2)
    assert manifest.meta["identity"]["code"] == record["what"]["code"]


@pytest.mark.parametrize(
    ("name", "old", "new"), [("mine.py", "strides=4", "strides=2"), ("parts/blocks.py", "nn.relu", "nn.tanh")]
)
def test_changed_code_is_refused_by_every_command(place, capsys, name, old, new):
    """Not the old result as if it were the new network's, not two networks in one run, not another one's accuracy."""
    run, file = place / "runs" / "run", place / "project" / "mine.py"
    edit(place / "project" / name, old, new)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for argv in (
        ("run", file, "--workdir", run),
        ("run", file, "--workdir", run, "--train.steps", 4, "--extend"),
        ("evaluate", run),
        ("predict", run, "none.png"),
    ):
        capsys.readouterr()
        assert command(*argv) == 2
        out, err = capsys.readouterr()
        assert f"{name} has changed since" in err
        assert len(err.splitlines()) == 1
        assert out == ""
    with pytest.raises(InputError, match=f"network 'mine' was defined in {file}.* {name} has changed since the run"):
        cnnjax.load(run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_changed_code_goes_on_where_it_is_accepted(place, capsys):
    """From a checkpoint of the code before; both are recorded, and then it is the run's own."""
    run, file = place / "runs" / "run", place / "project" / "mine.py"
    edit(place / "project" / "parts" / "blocks.py", "nn.relu", "nn.tanh")
    longer = ("run", file, "--workdir", run, "--train.steps", 3, "--extend")
    assert command(*longer, "--accept-code") == 0
    assert "parts/blocks.py has changed since" in capsys.readouterr().err
    record = rundir.read_config(run)
    first, second = (part["code"] for part in record["history"])
    assert second == record["what"]["code"] != first
    assert {name for name in first if first[name] != second[name]} == {"parts/blocks.py"}
    assert command("evaluate", run) == 0
    (run / "result.json").unlink()
    for name in ("3", "3.json"):  # as if killed before: what is left is of the code before
        path = run / "checkpoints" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert command(*longer) == 0
    assert "resuming from step 2" in capsys.readouterr().out


def test_unchanged_code_elsewhere_is_the_same_run(place, capsys):
    """Moved and renamed, a finished run is shown, and found again by what reads it."""
    run, moved = place / "runs" / "run", place / "project" / "elsewhere"
    moved.mkdir()
    for name in ("mine.py", "parts"):
        (place / "project" / name).rename(moved / name)
    (moved / "mine.py").rename(moved / "ours.py")
    models.MODELS.pop("mine", None)
    assert command("evaluate", run) == 2
    err = capsys.readouterr().err
    assert f"network 'mine' was defined in {place / 'project' / 'mine.py'}, and no such file is there" in err
    assert "alexnet" not in err
    assert command("run", moved / "ours.py", "--workdir", run) == 0
    assert "nothing computed" in capsys.readouterr().out
    assert rundir.read_config(run)["experiment_file"] == str(moved / "ours.py")
    assert command("evaluate", run) == 0


def test_a_run_of_an_earlier_version_goes_on_with_a_line(place, capsys):
    run, file = place / "runs" / "run", place / "project" / "mine.py"
    record = rundir.read_config(run)
    for part in (record["what"], *record["history"]):
        del part["code"]
    change_record(run, what=record["what"], history=record["history"])
    manifest = run / "checkpoints" / "2.json"
    content = json.loads(manifest.read_text())["content"]
    del content["meta"]["identity"]["code"]
    manifest.write_text(json.dumps({"content": content, "sha256": files.seal(content)}))
    assert command("evaluate", run) == 2
    assert "earlier version" in capsys.readouterr().err
    assert command("run", file, "--workdir", run, "--train.steps", 3, "--extend") == 0
    out, err = capsys.readouterr()
    assert "does not say which code it was begun with" in err
    assert "resuming from step 2" in out
    assert command("evaluate", run) == 0


def test_a_checkpoint_of_other_code_is_another_runs(place, capsys):
    run, file = place / "runs" / "run", place / "project" / "mine.py"
    manifest = run / "checkpoints" / "2.json"
    content = json.loads(manifest.read_text())["content"]
    content["meta"]["identity"]["code"]["mine.py"] = "0" * 64
    manifest.write_text(json.dumps({"content": content, "sha256": files.seal(content)}))
    assert command("run", file, "--workdir", run, "--train.steps", 3, "--extend") == 1
    assert "belongs to a run of another configuration" in capsys.readouterr().err


# ---- which files -----------------------------------------------------------------------------------------------------


def test_own_modules_are_those_that_are_imported(tmp_path):
    """Anywhere in a file, by any of its forms, and by each other; not what is installed, and not what lies beside."""
    write(
        tmp_path,
        {
            "main.py": "import os, numpy, jax.numpy\nimport pytest, one\nfrom two import three\n"
            "def later():\n    import four.five\n    from six import name\n",
            "one.py": "try:\n    import absent\nexcept ImportError:\n    import seven\n",
            "two/__init__.py": "",
            "two/three.py": "from . import eight\nfrom .eight import x\nfrom ..beyond import y\n",
            "two/eight.py": "",
            "four/five.py": "this is not Python",
            "six.py": "",
            "seven.py": "import main",
            "beside.py": "",
            "os.py": "",
        },
    )
    expected = {"main.py", "one.py", "two/__init__.py", "two/three.py", "two/eight.py", "four/five.py", "seven.py"}
    assert set(code.hashes(tmp_path / "main.py")) == expected | ({"six.py"} if "six" not in sys.modules else set())
    assert code.hashes(None) == {}


def test_modules_named_when_they_are_imported_count_too(tmp_path):
    write(tmp_path, {"main.py": "import importlib\nimportlib.import_module('dynamic')\n", "dynamic.py": "import more"})
    write(tmp_path, {"more.py": "x = 1"})
    code.execute(tmp_path / "main.py")
    found = code.hashes(tmp_path / "main.py")
    assert set(found) == {"main.py", "dynamic.py", "more.py"}
    assert code.hashes_now(tmp_path / "main.py", found) == found


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ({"a.py": "1", "b.py": "2"}, []),
        ({"c.py": "1", "b.py": "2"}, []),
        ({"a.py": "3", "b.py": "2"}, ["a.py has changed"]),
        ({"a.py": "1"}, ["b.py is missing"]),
        ({"a.py": "1", "b.py": "2", "c.py": "3"}, ["c.py is new"]),
        ({"a.py": "1", "b.py": "1"}, ["b.py has changed"]),
        ({"a.py": "1", "b.py": "2", "c.py": "2"}, ["files of equal content were added or removed"]),
    ],
)
def test_what_is_said_of_a_change(new, said):
    assert code.changed({"a.py": "1", "b.py": "2"}, new) == said


# ---- executing -------------------------------------------------------------------------------------------------------


def test_own_modules_are_always_those_of_the_file(tmp_path):
    """Not another experiment's of the same name, and not what Python compiled of another text of the same second."""
    for name, value in (("one", 1), ("two", 2)):
        write(tmp_path / name, {"main.py": "import part\nvalue = part.value\n", "part.py": f"value = {value}\n"})
    assert code.execute(tmp_path / "one" / "main.py").value == 1
    assert code.execute(tmp_path / "two" / "main.py").value == 2
    part = tmp_path / "one" / "part.py"
    subprocess.run([sys.executable, "-c", "import part"], cwd=part.parent, check=True)  # which compiles it
    when = part.stat()
    part.write_text("value = 3\n")
    os.utime(part, ns=(when.st_atime_ns, when.st_mtime_ns))
    module = code.execute(tmp_path / "one" / "main.py")
    assert module.value == 3
    part.write_text("value = 4\n")  # edited while it runs: the run is of what was executed
    hashes = code.hashes(tmp_path / "one" / "main.py")
    assert hashes != code.hashes_now(tmp_path / "one" / "main.py")


NESTED = {
    "all folders": {"main.py": "from a.b.c import value\n", "a/b/c.py": "from .d import value\n", "a/b/d.py": "{}"},
    "one in a package": {
        "main.py": "import pkg.sub.c\nvalue = pkg.sub.c.value\n",
        "pkg/__init__.py": "",
        "pkg/sub/c.py": "{}",
    },
}


@pytest.mark.parametrize("kind", NESTED)
def test_folders_without_init_hold_own_modules(tmp_path, kind):
    """Found wherever Python was started, and not those of another experiment that are in `sys.modules`."""
    (tmp_path / "runs" / "run").mkdir(parents=True)
    mains = [tmp_path / name / "main.py" for name in ("one", "two")]
    for main in mains:
        value = f"value = {main.parent.name!r}\n"
        write(main.parent, {name: text.replace("{}", value) for name, text in NESTED[kind].items()})
    for main in (*mains, mains[0]):
        found = code.hashes_now(main)
        assert set(found) == set(NESTED[kind])
        record = {"experiment_file": str(main), "what": {"code": found}}
        assert code.why_not_executed(record, tmp_path / "runs" / "run") is None
        assert code.execute(main, found.values()).value == main.parent.name
        assert code.hashes(main) == found


def test_a_run_with_modules_in_nested_folders_is_evaluated(tmp_path, capsys):
    experiment = EXPERIMENT.replace("from parts import blocks", "from a.b import c as blocks")
    write(tmp_path / "project", {"mine.py": experiment, "a/b/c.py": FILES["parts/blocks.py"]})
    run = tmp_path / "runs" / "run"
    assert command("run", tmp_path / "project" / "mine.py", "--workdir", run) == 0
    code.execute(tmp_path / "project" / "a" / "b" / "c.py")  # which forgets the run's modules, as a new process
    capsys.readouterr()
    assert command("evaluate", run) == 0
    assert capsys.readouterr().err == ""
    edit(tmp_path / "project" / "a" / "b" / "c.py", "nn.relu", "nn.tanh")
    assert command("evaluate", run) == 2
    assert "a/b/c.py has changed since the run" in capsys.readouterr().err
    models.MODELS.pop("mine", None)


def test_modules_of_another_run_are_not_taken_for_a_runs_own(tmp_path):
    """Two experiments, each with a `blocks.py` of its own: in either order, whichever was executed before."""
    experiment = EXPERIMENT.replace("from parts import blocks", "import blocks")
    for name, act in (("one", "relu"), ("two", "tanh")):
        file = tmp_path / name / "mine.py"
        write(file.parent, {"mine.py": experiment, "blocks.py": f"import flax.linen as nn\nact = nn.{act}\n"})
        assert command("run", file, "--workdir", tmp_path / "runs" / name) == 0
    for name, other in (("one", "two"), ("two", "one")):
        code.execute(tmp_path / other / "mine.py")
        run = tmp_path / "runs" / name
        assert code.why_not_executed(rundir.read_config(run), run) is None
    for name in ("one", "two", "one"):
        assert cnnjax.load(tmp_path / "runs" / name).not_executed is None
    models.MODELS.pop("mine", None)


def test_nothing_but_what_is_allowed_is_executed(tmp_path):
    write(tmp_path, {"main.py": "import part\n", "part.py": "raise SystemExit('executed')\n"})
    allowed = {code.hashes_now(tmp_path / "main.py")["main.py"]}
    with pytest.raises(InputError, match=r"part\.py is not what the run was made with, and is not executed"):
        code.execute(tmp_path / "main.py", allowed)
    with pytest.raises(InputError, match=r"main\.py is not what the run was made with"):
        code.execute(tmp_path / "main.py", [])


def test_what_others_import_later_is_none_of_the_experiments(tmp_path, monkeypatch):
    """And what its own functions import later is: read anew, and only if it is allowed."""
    write(
        tmp_path / "one", {"main.py": "def later():\n    import late\n    return late.value\n", "late.py": "value = 1"}
    )
    write(tmp_path / "two", {"theirs.py": "value = 5"})
    main, late = tmp_path / "one" / "main.py", tmp_path / "one" / "late.py"
    monkeypatch.syspath_prepend(str(tmp_path / "two"))
    allowed = code.hashes_now(main).values()
    assert len(allowed) == 2
    module = code.execute(main, allowed)
    assert __import__("theirs").value == 5
    assert module.later() == 1
    module = code.execute(main, allowed)
    late.write_text("value = 2")
    with pytest.raises(InputError, match=r"late\.py is not what the run was made with"):
        module.later()
    monkeypatch.delitem(sys.modules, "theirs")


@pytest.fixture
def unpacked(tmp_path):
    """A run's folder as someone else made it, with a file beside it whose sha256 it names."""
    (tmp_path / "pack" / "run" / "inside").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    for folder in ("pack", "pack/run/inside", "mine"):
        (tmp_path / folder / "evil.py").write_text("raise SystemExit('executed')\n")
    (tmp_path / "mine" / "link.py").symlink_to(tmp_path / "mine" / "evil.py")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("evil.py", "relative"),
        ("../evil.py", "relative"),
        ("{}/mine/../pack/evil.py", "a link, or lies behind one"),
        ("/proc/self/cwd/evil.py", "a link, or lies behind one"),
        ("{}/mine/link.py", "a link, or lies behind one"),
        ("{}/pack/run/inside/evil.py", "in the run's folder"),
        ("{}/pack/evil.py", "beside the run's folder"),
        ("{}/mine/none.py", "no such file"),
        (["{}/mine/evil.py"], "no path"),
        ("{}/mine/evil.py", None),
    ],
)
def test_what_may_have_come_with_a_run_is_not_executed(unpacked, monkeypatch, file, reason):
    monkeypatch.chdir(unpacked / "pack")
    sha256 = code.hashes_now(unpacked / "mine" / "evil.py")["evil.py"]
    named = file.format(unpacked) if isinstance(file, str) else file
    record = {"experiment_file": named, "what": {"code": {"evil.py": sha256}}}
    found = code.why_not_executed(record, unpacked / "pack" / "run")
    assert (found is None) if reason is None else (reason in found)


def test_a_file_beside_a_run_that_was_made_here_is_executed(unpacked):
    run, file = unpacked / "pack" / "run", unpacked / "pack" / "evil.py"
    record = {"experiment_file": str(file), "what": {"code": code.hashes_now(file)}, "place": code.place(run)}
    assert code.why_not_executed(record, run) is None
    record["what"]["code"] = {"evil.py": "0" * 64}
    assert code.why_not_executed(record, run) == "evil.py has changed since the run"


def test_trusted_code_is_executed(place, capsys):
    """And where it is not the run's, that is said, and not taken for the run's accuracy."""
    run, file = place / "runs" / "run", place / "project" / "mine.py"
    for same in (True, False):
        assert command("evaluate", run, "--json", "--trust-code") == 0
        out, err = capsys.readouterr()
        assert json.loads(out)["same_code"] is same
        assert err == ("" if same else f"warning: {SAID.format(run)}\n")
        if same:
            edit(file, "strides=4", "strides=(4, 4)")
    with pytest.warns(UserWarning, match=SAID.format(run)):
        run = cnnjax.load(run, trust_code=True)
    assert (type(run.model).__name__, run.config.model.name, run.same_code) == ("Mine", "mine", False)


def test_a_run_is_summarized_without_a_checkpoint(place, capsys):
    """And of code that is not executed `--trust-code` has the summary, as the line about it says."""
    run, file = place / "runs" / "run", place / "project" / "mine.py"
    shutil.rmtree(run / "checkpoints")
    capsys.readouterr()
    assert command("summary", run, "--json") == 0
    before, err = capsys.readouterr()
    assert err == ""
    edit(file, "strides=4", "strides=2")
    assert command("summary", run) == 2
    assert "mine.py has changed since the run (--trust-code" in capsys.readouterr().err
    assert command("summary", run, "--json", "--trust-code") == 0
    out, err = capsys.readouterr()
    assert err == f"warning: {SAID.format(run)}\n"
    assert json.loads(out)["parameters"] > json.loads(before)["parameters"]


def test_a_network_of_ours_needs_no_file(place, capsys):
    """A run of an experiment that has changed, whose network and data are cnnjax's: evaluated, and said."""
    run, file = place / "runs" / "ours", place / "project" / "ours.py"
    write(place / "project", {"ours.py": EXPERIMENT.replace('Model("mine")', 'Model("fully_connected")')})
    assert command("run", file, "--workdir", run) == 0
    edit(file, "strides=4", "strides=2")
    capsys.readouterr()
    assert command("evaluate", run) == 0
    assert f"warning: {run} was made by {file}, which is not executed: ours.py has changed" in capsys.readouterr().err
    shutil.rmtree(run)


# ---- beside it -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbf'''K\xc3\xa4se'''\n", b"# -*- coding: latin-1 -*-\n'''K\xe4se'''\n", "'''Käse'''".encode()],
)
def test_files_of_any_coding(tmp_path, content):
    (tmp_path / "main.py").write_bytes(content)
    assert docstring(tmp_path / "main.py") == "Käse"
    assert code.execute(tmp_path / "main.py").__doc__ == "Käse"
    assert set(code.hashes(tmp_path / "main.py")) == {"main.py"}


def test_git_state(tmp_path):
    file = tmp_path / "main.py"
    file.write_text("x = 1\n")
    assert code.git_state(file) is None
    assert code.git_state(None) is None
    git = ("git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert code.git_state(file) == {"commit": commit, "dirty": False}
    file.write_text("x = 2\n")
    assert code.git_state(file) == {"commit": commit, "dirty": True}


def test_files_of_one_name_have_folders_of_their_own(tmp_path, monkeypatch, capsys):
    """And changed code has the folder that it had, where it is refused."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        write(tmp_path / name, FILES)
        assert command("run", f"{name}/mine.py", "--train.steps", 1) == 0
    folders = sorted(path.name for path in (tmp_path / "runs" / "mine").iterdir())
    assert len(folders) == 2
    assert {name.rpartition("-")[0] for name in folders} == {"seed0-steps_1"}
    edit(tmp_path / "one" / "mine.py", "strides=4", "strides=2")
    assert command("run", "one/mine.py", "--train.steps", 1) == 2
    assert "mine.py has changed since" in capsys.readouterr().err
    models.MODELS.pop("mine", None)
