"""Kills runs at random moments and damages their checkpoints, and checks that nothing is lost: `make torture`.

Not collected by pytest: it takes a quarter of an hour. Everything goes through the command but most of the damage,
which is done and detected in this process.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings

import jax
import numpy as np
from rich.progress import track

from cnnjax.training import checkpoint
from cnnjax.training.load import load_run

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUN = (
    *(sys.executable, "-m", "experiments.quickstart", "--train.steps", "120", "--train.evaluate-every", "40"),
    *("--run.checkpoint-every", "3", "--run.log-every", "10"),
)


def start(workdir: pathlib.Path) -> subprocess.Popen:
    """The command, in a folder: it begins the run or goes on with it."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COMPILATION_CACHE_DIR": "",  # a file that a kill cut short would stay there
    }
    return subprocess.Popen(
        [*RUN, "--workdir", str(workdir)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(workdir: pathlib.Path) -> tuple[str, str]:
    """The fingerprint of the finished run, and what was said on standard error."""
    process = start(workdir)
    _, said = process.communicate()
    assert process.returncode == 0, said
    return json.loads((workdir / "result.json").read_text())["fingerprint"], said


def interrupt(folder: pathlib.Path, number: int, kind: signal.Signals, seconds: float, expected: str) -> dict[str, int]:
    """Sends `number` signals to runs, each at a random moment of the time that a run takes; counts where they hit."""
    found: collections.Counter[str] = collections.Counter()
    run = 0
    for _ in track(range(number), f"{kind.name} {number} times"):
        while True:
            workdir = folder / f"{kind.name}-{run}"
            process = start(workdir)
            time.sleep(random.uniform(0.3, 1) * seconds)
            if process.poll() is None:
                break
            run += 1  # it had finished
            check(workdir, expected)
        saving = any("orbax-checkpoint-tmp" in path.name for path in workdir.glob("checkpoints/*"))
        begun = (workdir / "checkpoints").exists()
        process.send_signal(kind)
        _, said = process.communicate()
        if process.returncode == 0:
            check(workdir, expected)
            run += 1
        else:
            assert process.returncode in (-kind, 128 + kind, 130), (process.returncode, said)
        found["while saving" if saving else "in training" if begun else "before training"] += 1
    for last in sorted(folder.glob(f"{kind.name}-*")):
        fingerprint, _ = finish(last)
        assert fingerprint == expected, last
    return dict(found) | {"runs": len([*folder.glob(f"{kind.name}-*")])}


def check(workdir: pathlib.Path, expected: str) -> None:
    """The finished run in a folder is that of an uninterrupted one."""
    result = json.loads((workdir / "result.json").read_text())
    assert result["fingerprint"] == expected, workdir
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    places = [(line["step"], line["split"]) for line in lines]
    assert len(places) == len(set(places)), workdir


def damage(checkpoints: pathlib.Path, step: int) -> str:
    """Flips one bit of a random file of a checkpoint, or cuts it short; says what was done."""
    files = [path for path in (checkpoints / str(step)).rglob("*") if path.is_file() and path.stat().st_size]
    return spoil(random.choice([*files, checkpoints / f"{step}.json"]))


def spoil(path: pathlib.Path) -> str:
    """Flips one bit of a file, or cuts it short; says what was done."""
    content = bytearray(path.read_bytes())
    if random.random() < 0.5:
        position = random.randrange(len(content))
        content[position] ^= 1 << random.randrange(8)
        done = f"bit of byte {position} flipped"
    else:
        del content[random.randrange(len(content)) :]
        done = f"cut to {len(content)} bytes"
    path.write_bytes(content)
    return f"{path}: {done}"


def detect(workdir: pathlib.Path, folder: pathlib.Path, number: int) -> int:
    """Damages the newest checkpoint `number` times, in copies: each time it must be found, and the one before good."""
    newest, before = checkpoint.steps_with_manifest(workdir / "checkpoints")[:2]
    whole = load_run(workdir)  # of the newest
    for i in track(range(number), f"damage {number} times, in process"):
        copy = folder / "copy"
        shutil.copytree(workdir, copy)
        what = damage(copy / "checkpoints", newest)
        opened = checkpoint.Checkpoints(copy / "checkpoints", 2)
        manifest, complaints = opened.newest_good()
        assert manifest is not None, what
        assert manifest.step == before, what
        assert len(complaints) == 1, what
        if i % 20 == 0:  # and what is restored then is that step's
            run = load_run(copy)
            assert run.step == before
            leaves = zip(jax.tree.leaves(run.variables), jax.tree.leaves(whole.variables), strict=True)
            assert any((np.asarray(a) != np.asarray(b)).any() for a, b in leaves)
        opened.close()
        shutil.rmtree(copy)
    return number


def recover(workdir: pathlib.Path, folder: pathlib.Path, number: int, expected: str) -> int:
    """The same through the command, which must warn, go on from the checkpoint before, and end as if nothing was."""
    newest = checkpoint.steps_with_manifest(workdir / "checkpoints")[0]
    for i in track(range(number), f"damage {number} times, through the command"):
        copy = folder / f"damaged-{i}"
        shutil.copytree(workdir, copy)
        (copy / "result.json").unlink()
        what = damage(copy / "checkpoints", newest)
        fingerprint, said = finish(copy)
        assert fingerprint == expected, what
        assert "set aside" in said, (what, said)
        shutil.rmtree(copy)
    return number


def meaning(path: pathlib.Path) -> object:
    """The values in a file of JSON lines or of one object; its text where it is not that, None where it is gone."""
    if not path.exists():
        return None
    text = path.read_text(errors="replace")
    try:
        return [json.loads(line) for line in (text.splitlines() if path.suffix == ".jsonl" else [text])]
    except ValueError:
        return text


def survive(workdir: pathlib.Path, folder: pathlib.Path, number: int, expected: str) -> int:
    """Damages a record of the finished run, `number` times: said, made anew, and the result is the same."""
    for i in track(range(number), f"damage records {number} times, through the command"):
        copy = folder / f"records-{i}"
        shutil.copytree(workdir, copy)
        path = copy / ("config.json", "result.json", "metrics.jsonl")[i % 3]
        before = meaning(path)
        if random.random() < 0.2:
            path.unlink()
            what = f"{path.name} deleted"
        else:
            what = spoil(path)
        changed = meaning(path) != before
        fingerprint, said = finish(copy)
        assert fingerprint == expected, what
        assert not changed or said or what == "result.json deleted", what  # as of a run killed before its result
        if path.name != "metrics.jsonl":  # a finished run is shown with a warning, and left as it is
            check(copy, expected)
        shutil.rmtree(copy)
    return number


@dataclasses.dataclass
class Counts:
    """How often each thing is done."""

    kills: int = 50
    terms: int = 50
    damages: int = 200
    commands: int = 20
    records: int = 30


def main() -> None:
    """Prints a line for each kind of harm; an assertion fails where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Counts):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    warnings.simplefilter("ignore", UserWarning)  # of an older checkpoint being loaded, as is meant
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        whole = folder / "whole"
        started = time.monotonic()
        expected, _ = finish(whole)
        seconds = time.monotonic() - started
        print(f"uninterrupted: {seconds:.1f} s, fingerprint {expected[:16]}")
        for kind, number in ((signal.SIGKILL, arguments.kills), (signal.SIGTERM, arguments.terms)):
            found = interrupt(folder, number, kind, seconds, expected)
            places = ", ".join(f"{count} {where}" for where, count in found.items())
            print(f"{kind.name}: {number} sent ({places}), every run ended with that fingerprint")
        print(f"damage: {detect(whole, folder, arguments.damages)} of {arguments.damages} found in process")
        done = recover(whole, folder, arguments.commands, expected)
        print(f"damage: {done} of {arguments.commands} recovered from by the command, with that fingerprint")
        done = survive(whole, folder, arguments.records, expected)
        print(f"damage: {done} of {arguments.records} of records survived, with that fingerprint")


if __name__ == "__main__":
    main()
