"""A disk that fills, or that becomes read-only: one line, nothing lost, and the run goes on once there is room.

Real file systems of a megabyte, as root writes through permissions; skipped where none can be mounted.
"""

import subprocess
import types

import pytest

from cnnjax.ops.errors import InputError
from cnnjax.training import RunError, checkpoint, feed, train


def mount(*arguments):
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def disk(tmp_path):
    """A folder with a file system of its own, of a megabyte; `mount -o remount,...` changes it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        done = mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder))
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here ({done.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def at_step(monkeypatch):
    """`at_step(n, action)` does something, once, before step n + 1 of the run that follows."""

    def plan(number, action):
        original, todo = feed.batch_indices, [action]

        def acting(n, size, step, seed):
            if step == number and todo:
                todo.pop()()
            return original(n, size, step, seed)

        monkeypatch.setattr(feed, "batch_indices", acting)

    return plan


def fill(folder):
    try:
        with (folder / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        pass


def newest_intact(run):
    """The step of the newest checkpoint, which is good: nothing half-written passes for one."""
    step = checkpoint.steps_with_manifest(run / "checkpoints")[0]
    return checkpoint.read_manifest((run / "checkpoints").absolute(), step).step


def test_a_disk_that_fills(tiny_config, tiny_data, tmp_path, disk, at_step, capfd):
    whole = train(tiny_config, tmp_path / "whole", dataset=tiny_data)
    run = disk / "run"
    at_step(16, lambda: fill(disk))
    with pytest.raises((RunError, OSError), match="No space left on device"):
        train(tiny_config, run, dataset=tiny_data)
    assert "Traceback" not in capfd.readouterr().err
    step = newest_intact(run)
    assert step in (7, 14)  # that of 14 may have been under way
    fill(disk)  # with what the failed save has left
    with pytest.raises((RunError, InputError, OSError), match="No space left on device"):
        train(tiny_config, run, dataset=tiny_data)
    assert newest_intact(run) == step  # nor is it lost by trying
    (disk / "filler").unlink()
    assert train(tiny_config, run, dataset=tiny_data)["fingerprint"] == whole["fingerprint"]


def test_writes_that_outlive_their_save_say_nothing():
    def unraisable(error):
        return types.SimpleNamespace(exc_value=error)

    heard = []
    hook = checkpoint._WithoutLateWrites(heard.append)
    other = unraisable(RuntimeError("something else"))
    for each in (unraisable(RuntimeError("Event loop is closed")), other, unraisable(None)):
        hook(each)
    assert heard[0] is other
    assert len(heard) == 2


def test_a_disk_that_is_read_only(tiny_config, tiny_data, tmp_path, disk, at_step):
    whole = train(tiny_config, tmp_path / "whole", dataset=tiny_data)
    run = disk / "run"

    def stop():
        raise RunError("stopped")

    at_step(16, stop)
    with pytest.raises(RunError, match="stopped"):
        train(tiny_config, run, dataset=tiny_data)
    assert mount("-o", "remount,ro", str(disk)).returncode == 0
    with pytest.raises(InputError, match=f"workdir: {run} can't be written .Read-only file system"):
        train(tiny_config, run, dataset=tiny_data)
    with pytest.raises(InputError, match="can't be written"):
        train(tiny_config, disk / "new", dataset=tiny_data)
    assert newest_intact(run) == 14
    assert mount("-o", "remount,rw", str(disk)).returncode == 0
    assert train(tiny_config, run, dataset=tiny_data)["fingerprint"] == whole["fingerprint"]
