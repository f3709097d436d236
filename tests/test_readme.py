"""The README does what it says: its commands and its files are run as they are written."""

import contextlib
import json
import pathlib
import re
from unittest import mock

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

import cnnjax
from cnnjax import cli, data, models
from cnnjax.doctor import checks, examine

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()

# Every fenced block: the name in the comment before it (or ""), its language (or ""), its text.
BLOCKS = re.findall(r"(?:<!-- test: (\S+) -->\n)?^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
FILES = {name: text for name, _, text in BLOCKS if name}


def cnnjax_command(*argv: object) -> None:
    """Runs `cnnjax` with these arguments, which must succeed."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in argv])
    assert stopped.value.code == 0


@contextlib.contextmanager
def nothing_added():
    """What an experiment file adds to the networks and data sets is gone afterwards, as in a new process."""
    with mock.patch.dict(models.MODELS), mock.patch.dict(data.DATASETS):
        yield


# ---- the two files -------------------------------------------------------------------------------------------------


def test_there_are_two_files():
    assert sorted(FILES) == ["my_data.py", "my_network.py"]


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_is_short_and_runs(name, tmp_path, monkeypatch, capsys):
    """It is launched, and `evaluate` knows what it defines."""
    monkeypatch.chdir(tmp_path)
    assert len(FILES[name].splitlines()) < 25
    (tmp_path / name).write_text(FILES[name])
    with nothing_added():
        cnnjax_command("run", name, "--quick", "--workdir", "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["experiment"] == pathlib.Path(name).stem
    assert "my_network" not in models.MODELS
    assert "stripes" not in data.DATASETS
    capsys.readouterr()
    with nothing_added():
        cnnjax_command("evaluate", "run", "--json")
    assert json.loads(capsys.readouterr().out)["accuracy"] == result["test_accuracy"]


def test_the_network_takes_another_convolution(tmp_path, monkeypatch):
    """As the comment in it says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_network.py").write_text(FILES["my_network.py"])
    losses = []
    for conv in ("xla", "reference"):
        with nothing_added():
            argv = ("--quick", "--train.steps", 1, "--data.limit", 64, "--model.fields", f"conv={conv}")
            cnnjax_command("run", "my_network.py", *argv, "--workdir", conv)
        losses.append(json.loads((tmp_path / conv / "result.json").read_text())["test_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# ---- the commands --------------------------------------------------------------------------------------------------


def commands() -> list[list[str]]:
    """The commands of the bash blocks, in order, without their comments."""
    lines = [line for _, language, text in BLOCKS if language == "bash" for line in text.splitlines()]
    return [words for line in lines if (words := line.partition("#")[0].split())]


def test_every_make_target_exists():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert sorted(targets) == sorted(phony.split())  # none of them makes a file of its name
    named = {words[1] for words in commands() if words[0] == "make"} | set(re.findall(r"`make ([a-z-]+)`", README))
    assert {"quickstart", "test"} <= named
    assert named <= set(targets)
    listed = re.search(r"`make help` lists the targets: ([^.]*)\.", README)
    assert listed is not None
    for words in listed[1].split(", "):
        assert any(word.rstrip("s") == target.rstrip("s") for word in words.split() for target in targets) or (
            words.split()[0] == "slow" and "test-slow" in targets
        )


def test_every_command_works(tmp_path, monkeypatch, capsys):
    """In order and in one folder, in this process; FOLDER is a made-up set of MNIST's form, and IMAGE.png a digit.

    Of the doctor one check that takes no time; the others have tests of their own.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CNNJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(examine, "all_checks", lambda: [checks.Check("release of jaxlib", checks.release)])
    digits = data.load("digits", size=(28, 28))
    Image.fromarray(digits.test.image[0, ..., 0]).save("IMAGE.png")
    noise = np.random.default_rng(0).integers(0, 256, (300, 28, 28, 1), dtype=np.uint8)
    arrays = data.Arrays(noise, np.arange(300, dtype=np.int32) % 10)
    asked = []

    def load_mnist(*, raw_dir, **_):
        asked.append(raw_dir)
        return data.Dataset("mnist", arrays, arrays, None, tuple("0123456789"), {})

    monkeypatch.setitem(data.DATASETS, "mnist", load_mnist)
    ran = []
    for words in commands():
        if words[0] in ("make", "source"):  # see above, and what `make quickstart` made
            continue
        if words[:2] == ["python", "-m"]:
            words = ["cnnjax", "run", words[2].removeprefix("experiments.").removeprefix("experiments"), *words[3:]]
        assert words[0] == "cnnjax", f"no way to test this command of the README: {' '.join(words)}"
        if "FOLDER" in words:
            words = [*words, "--quick"]
        cnnjax_command(*(word.replace("/tmp/", f"{tmp_path}/") for word in words[1:]))
        ran.append(words)
    err = capsys.readouterr().err
    assert err == ""
    assert asked == [str(tmp_path / "FOLDER")] * len([words for words in ran if "FOLDER" in words])
    assert {words[1] for words in ran} >= {"run", "evaluate", "predict", "doctor"}

    # What is said of a run's folder, and of loading it.
    (listing,) = [text for _, _, text in BLOCKS if text.startswith("runs/first/\n")]
    names = {line.split()[0].rstrip("/") for line in listing.splitlines()[1:]}
    found = {path.name for path in (tmp_path / "runs" / "first").iterdir() if not path.name.startswith(".")}
    assert names == found
    assert json.loads(pathlib.Path("runs/first/result.json").read_text())["steps"] == 300
    scope: dict = {}
    for snippet in [text for name, language, text in BLOCKS if language == "python" and not name]:
        exec(snippet, scope)
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    (theirs, variables), (ours, _) = [
        layer.init_with_output(jax.random.key(0), image) for layer in (nn.Conv(4, (3, 3)), scope["Conv"](4, (3, 3)))
    ]
    assert set(variables["params"]) == {"kernel", "bias"}
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    model, variables, config = scope["run"]
    assert models.count_parameters(variables) == 61_706
    assert config == cnnjax.load("runs/first").config
    probabilities = scope["run"].predict(["IMAGE.png"])
    assert probabilities.shape == scope["logits"].shape == (1, 10)
    assert probabilities.argmax() == scope["logits"].argmax() == digits.test.label[0]
    assert model.apply(variables, np.zeros((2, 28, 28, 1), np.float32)).shape == (2, 10)


# ---- what it names -------------------------------------------------------------------------------------------------


def test_every_path_it_names_exists():
    linked = {target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target}
    quoted = set(re.findall(r"`((?:cnnjax|experiments|docs|notebooks|benchmarks|tests)(?:/[\w./-]*)?)`", README))
    assert "experiments" in linked
    assert "cnnjax/ops" in quoted
    assert [path for path in sorted(linked | quoted) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_every_relative_link_leads_somewhere(page):
    """To a file or folder of the repository, and to a heading of a page where it names one."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = {target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target}
    assert [target for target in sorted(targets) if not leads_somewhere(ROOT / page, target)] == []


def leads_somewhere(page: pathlib.Path, target: str) -> bool:
    """Whether a link of a page leads to a file of the repository, and to one of its headings."""
    name, _, anchor = target.partition("#")
    path = (page.parent / name).resolve() if name else page
    if not path.is_relative_to(ROOT) or not path.exists():
        return False
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if path.suffix == ".md" else []
    return not anchor or anchor in {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}
