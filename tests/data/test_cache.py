"""The cache: equal, atomic, and never in the way."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from cnnjax import data
from cnnjax.data import cache
from cnnjax.ops.errors import InputError


def tiny():
    rng = np.random.default_rng(0)
    train = data.Arrays(rng.integers(0, 256, (6, 3, 3, 1), dtype=np.uint8), np.arange(6, dtype=np.int32))
    test = data.Arrays(train.image[:2], np.ones((2, 3), np.float32))
    return data.Dataset("tiny", train, None, test, ("Ä", "b"), {"file": "abc"})


def same(a, b):
    assert (a.name, a.classes, a.provenance) == (b.name, b.classes, b.provenance)
    assert a.splits().keys() == b.splits().keys()
    for name, arrays in a.splits().items():
        other = b.splits()[name]
        assert arrays.image.dtype == other.image.dtype
        assert arrays.label.dtype == other.label.dtype
        assert np.array_equal(arrays.image, other.image)
        assert np.array_equal(arrays.label, other.label)


def refuse():
    raise AssertionError("built again")


def test_second_load_is_equal_and_does_not_build(tmp_path):
    same(cache.cached("tiny", {"a": 1}, tiny, tmp_path), tiny())
    same(cache.cached("tiny", {"a": 1}, refuse, tmp_path), tiny())
    with pytest.raises(AssertionError, match="built again"):
        cache.cached("tiny", {"a": 2}, refuse, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1  # no temporary file is left


def test_any_damage_is_noticed(tmp_path, capsys):
    cache.cached("tiny", {}, tiny, tmp_path)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    rebuilt = 0
    for position in [*range(0, len(good), 7), *rng.integers(0, len(good), 20)]:
        path.write_bytes(good[:position] + bytes([good[position] ^ (1 << rng.integers(8))]) + good[position + 1 :])
        same(cache.cached("tiny", {}, tiny, tmp_path), tiny())  # some bytes, such as a member's date, carry nothing
        rebuilt += "damaged" in capsys.readouterr().err
    assert rebuilt > 100
    for length in (0, 10, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        same(cache.cached("tiny", {}, tiny, tmp_path), tiny())
        assert "damaged" in capsys.readouterr().err
    same(cache.cached("tiny", {}, refuse, tmp_path), tiny())


def test_cannot_be_written(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    same(cache.cached("tiny", {}, tiny, tmp_path / "file" / "below"), tiny())
    assert "warning" in capsys.readouterr().err

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    same(cache.cached("tiny", {}, tiny, tmp_path / "full"), tiny())
    assert "No space left" in capsys.readouterr().err
    assert not os.listdir(tmp_path / "full")


def test_where_it_is(monkeypatch, tmp_path):
    assert cache.cache_directory("a").name == "a"
    assert cache.cache_directory() == tmp_path / "cache"
    monkeypatch.delenv("CNNJAX_CACHE")
    assert cache.cache_directory().parts[-3:] == (".cache", "cnnjax", "data")


KILLED = """
import os, signal, sys
from cnnjax.data import cache
import pathlib
def write(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
cache.write_atomically(pathlib.Path(sys.argv[1]) / "x.npz", write)
"""


def test_what_a_killed_process_left_is_removed(tmp_path, monkeypatch):
    """At the next start; what another process is writing stays."""
    subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".x.npz.")
    monkeypatch.setattr(cache, "_YOUNG", -1)

    def during(file):
        file.write(b"all")
        cache.remove_abandoned(tmp_path)

    assert cache.write_atomically(tmp_path / "y.npz", during)
    assert [path.name for path in tmp_path.iterdir()] == ["y.npz"]


def test_a_pipe_is_not_waited_for(tmp_path, monkeypatch, capsys):
    """Neither where unfinished files are removed nor in place of a cached set, which is written anew."""
    monkeypatch.setattr(cache, "_YOUNG", -1)
    cache.cached("tiny", {}, tiny, tmp_path)
    (path,) = tmp_path.iterdir()
    path.unlink()
    pipes = [tmp_path / ".x.npz.0123.unfinished", path]
    held = []
    for pipe in pipes:
        os.mkfifo(pipe)
        held.append(os.open(pipe, os.O_RDWR))  # so that opening one doesn't wait here
        os.write(held[-1], b"x" * 100)
    same(cache.cached("tiny", {}, tiny, tmp_path), tiny())
    for descriptor in held:
        os.close(descriptor)
    assert "is no file); building it again" in capsys.readouterr().err
    assert path.is_file()
    assert pipes[0].is_fifo()


def test_for_other_users(tmp_path, capsys, monkeypatch):
    """Readable as the umask says; and what can't be read is not called damaged, nor written over."""
    before = os.umask(0o022)
    try:
        cache.cached("tiny", {}, tiny, tmp_path)
    finally:
        os.umask(before)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o644

    def closed(self, *arguments):
        raise PermissionError(13, "Permission denied")

    content = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "open", closed)
        same(cache.cached("tiny", {}, tiny, tmp_path), tiny())
    said = capsys.readouterr().err
    assert "cannot be read (Permission denied); going on without it" in said
    assert "damaged" not in said
    assert path.read_bytes() == content


def test_without_a_home_folder(monkeypatch, capsys, tmp_path):
    def nowhere(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("CNNJAX_CACHE")
    monkeypatch.setattr(pathlib.Path, "expanduser", nowhere)
    same(cache.cached("tiny", {}, tiny), tiny())
    assert "this user has no home folder, so tiny is decoded at each start" in capsys.readouterr().err
    assert len(data.load("digits").train) == 1437
    with pytest.raises(InputError, match=r"name one by --data.data-dir"):
        data.load("tfds:mnist")
    with pytest.raises(InputError, match="cache_dir '~/x'"):
        data.load("digits", cache_dir="~/x")
