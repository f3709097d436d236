"""Several processes as one run: the same results, one folder, and an end together."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from cnnjax.data import synthetic
from cnnjax.ops.errors import InputError
from cnnjax.training import Distributed, load_run, processes

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHORT = ("--train.steps", "6", "--train.evaluate-every", "3", "--train.dtype", "float64")


def start(count, workdir, *options, each=()):
    """The quickstart in as many processes of one device each; `each` are options with the process's {number}."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    several = ("--distributed.coordinator", f"127.0.0.1:{port}", "--distributed.num-processes", str(count))
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "experiments.quickstart", "--workdir", str(workdir), *options),
                *(word.format(number=number) for word in each),
                *((*several, "--distributed.process-id", str(number)) if count > 1 else ()),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
        )
        for number in range(count)
    ]


def finish(started, statuses=(0,)):
    """What each process said, all of them having ended as expected within two minutes."""
    deadline = time.monotonic() + 120
    said = [process.communicate(timeout=deadline - time.monotonic()) for process in started]
    for process, (_, error) in zip(started, said, strict=True):
        assert process.returncode in statuses, error
    return said


def result(workdir):
    return json.loads((workdir / "result.json").read_text())


def assert_same_parameters(one, other):
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    jax.tree.map(close, load_run(one).variables, load_run(other).variables)


def wait_for(path, started):
    for _ in range(1200):
        if path.exists():
            return
        assert all(process.poll() is None for process in started), finish(started)
        time.sleep(0.1)
    raise AssertionError(f"{path} did not appear")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run of two processes, the parameters divided among them."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    said = finish(start(2, workdir, *SHORT, "--run.mesh", "fsdp=2"))
    assert "fingerprint" in said[0][0]
    assert "fingerprint" not in said[1][0]  # the first one alone reports
    return workdir


@pytest.mark.slow
def test_two_processes_are_one(two, tmp_path):
    finish(start(1, tmp_path / "run", *SHORT))
    assert_same_parameters(two, tmp_path / "run")
    assert result(two)["devices"] == {
        "platform": "cpu", "kind": "cpu", "count": 2, "processes": 2, "mesh": {"data": 1, "fsdp": 2, "space": 1},
    }  # fmt: skip
    steps = [(row["step"], row["split"]) for row in map(json.loads, (two / "metrics.jsonl").read_text().splitlines())]
    assert len(steps) == len(set(steps)) > 2


def resumed(workdir, tmp_path, count, *options):
    """The fingerprint that processes give for the state they restore, no step being left to make."""

    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    (copy / "result.json").unlink()
    said = finish(start(count, copy, *SHORT, *options))
    assert "resuming from step 6" in said[0][0]
    return result(copy)["fingerprint"]


@pytest.mark.slow
def test_one_process_restores_what_two_saved(two, tmp_path):
    assert resumed(two, tmp_path, 1) == result(two)["fingerprint"]


@pytest.mark.slow
def test_four_processes_restore_what_two_saved_on_another_mesh(two, tmp_path):
    assert resumed(two, tmp_path, 4, "--run.mesh", "data=2", "space=2") == result(two)["fingerprint"]


@pytest.mark.slow
def test_four_processes_are_one(two, tmp_path):
    finish(start(4, tmp_path / "run", *SHORT))
    assert_same_parameters(two, tmp_path / "run")


def test_the_mistake_that_one_finds_ends_all(tmp_path):
    """The first alone looks into the folder."""
    (tmp_path / "notes.txt").write_text("mine")
    said = finish(start(2, tmp_path, *SHORT), statuses=(2,))
    for _, error in said:
        assert f"error: workdir: {tmp_path} is not empty and holds no run" in error
        assert "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=2", "space=2"])
def test_photographs_are_decoded_where_they_are_needed(tmp_path, mesh):
    """Two processes, each with its part of the batch or of the height, are one process on one device."""
    splits = {"train": 0, "validation": 1}
    made = {split: synthetic.photographs(40, seed=seed, longest=60) for split, seed in splits.items()}
    synthetic.write_folder(made, tmp_path / "set")
    photographs = f"--data.name folder --data.raw-dir {tmp_path / 'set'} --data.crop 28 --data.size None --data.flip"
    options = (*SHORT, *photographs.split(), "--train.batch-size", "16")
    finish(start(1, tmp_path / "one", *options))
    finish(start(2, tmp_path / "two", *options, "--run.mesh", mesh, "--data.threads", "1"))
    assert_same_parameters(tmp_path / "two", tmp_path / "one")
    assert result(tmp_path / "two")["validation_loss"] == pytest.approx(result(tmp_path / "one")["validation_loss"])


@pytest.mark.slow
def test_processes_that_were_told_different_things(tmp_path):
    said = finish(start(2, tmp_path / "run", *SHORT, each=("--train.seed", "{number}")), statuses=(1, 2))
    assert "process 1 has" in said[0][1]
    assert "error: configuration: process 1 has" in said[1][1]
    assert not (tmp_path / "run").exists()
    said = finish(start(2, tmp_path / "run", *SHORT, "--run.devices", "1"), statuses=(2,))
    assert "run.devices: received 1, allowed: 2, all those of the processes" in said[0][1]


LONG = ("--train.steps", "60", "--train.evaluate-every", "20", "--run.checkpoint-every", "10")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_ends_the_others_and_the_run_goes_on(tmp_path, victim):
    whole, run = tmp_path / "whole", tmp_path / "run"
    finish(start(2, whole, *LONG))
    started = start(2, run, *LONG)
    wait_for(run / "checkpoints" / "10.json", started)
    started[victim].kill()
    said = finish(started, statuses=(-signal.SIGKILL, 1, -signal.SIGABRT))
    assert started[1 - victim].returncode != 0
    assert "another" in said[1 - victim][1]  # cnnjax's message, or JAX's where its watch was quicker
    assert not (run / "result.json").exists()
    finish(start(2, run, *LONG))
    assert result(run)["fingerprint"] == result(whole)["fingerprint"]


@pytest.mark.slow
def test_one_process_asked_to_stop_stops_all(tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    finish(start(2, whole, *LONG))
    started = start(2, run, *LONG)
    wait_for(run / "checkpoints" / "10.json", started)
    started[1].send_signal(signal.SIGTERM)
    said = finish(started, statuses=(128 + signal.SIGTERM,))
    for _, error in said:
        assert "stopped at step" in error
    finish(start(2, run, *LONG))
    assert result(run)["fingerprint"] == result(whole)["fingerprint"]


# ---- in one process ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"SLURM_NTASKS": "8"}, None),  # an allocation, in which nothing was started by srun
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "node[1-2]"}, "Slurm"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "host-0,host-1"}, "Cloud TPU on GKE"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
    ],
)
def test_who_started_the_process(monkeypatch, environment, name):
    for variable in (
        "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS", "SLURM_STEP_NODELIST", "TPU_WORKER_HOSTNAMES",
        "KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX",
    ):  # fmt: skip
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert processes.launcher() == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("host:1", None, None), "--distributed.num-processes, --distributed.process-id is missing"),
        ((None, 2, 0), "--distributed.coordinator is missing"),
        (("host", 2, 0), "distributed.coordinator: received 'host', allowed: HOST:PORT"),
        (("host:port", 2, 0), "distributed.coordinator: received 'host:port', allowed: HOST:PORT"),
        (("host:99999", 2, 0), "distributed.coordinator: received 'host:99999', allowed: HOST:PORT"),
        (("host:1", 0, 0), "distributed.num-processes: received 0, allowed: 1 or more"),
        (("host:1", 2, 2), "distributed.process-id: received 2, allowed: 0 to 1"),
        (("host:1", 2, -1), "distributed.process-id: received -1, allowed: 0 to 1"),
    ],
)
def test_options_that_can_not_be(options, message):
    with pytest.raises(InputError, match=message):
        processes.join(Distributed(*options))


def test_a_process_alone_does_as_it_is_told():
    assert processes.from_first(lambda: {"a": (1, 2)}) == {"a": (1, 2)}
    assert processes.together(lambda: 3) == 3
    assert processes.is_first()
    assert not processes.asked_to_stop(1)
    with pytest.raises(InputError, match="no"):
        processes.together(lambda: (_ for _ in ()).throw(InputError("no")))
