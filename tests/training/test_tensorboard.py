"""Events of a run that was killed: each step once, and nothing lost."""

import struct

import numpy as np
import pytest

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2", reason="needs the tensorboard extra")

from cnnjax.training.tensorboard import Events  # noqa: E402


def as_tensorboard_shows(folder):
    """{tag: [(step, value), ...]} of all files, in their order, with what TensorBoard is told to forget left out."""
    found = {}
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:  # a record: its length, a checksum of that, the event, a checksum of that
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.session_log.status == event_pb2.SessionLog.START:
                found = {tag: [p for p in points if p[0] < event.step] for tag, points in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_a_resumed_run_shows_each_step_once(tmp_path, monkeypatch):
    clock = iter(range(1_700_000_000, 1_800_000_000))
    monkeypatch.setattr("time.time", lambda: next(clock))  # files are named by the second
    killed = Events(tmp_path, 0)
    for step in range(1, 9):
        killed.write(step, "train", {"loss": step / 8})
        if step == 4:
            killed.flush()
            assert [s for s, _ in as_tensorboard_shows(tmp_path)["train/loss"]] == [1, 2, 3, 4]
    killed.flush()
    resumed = Events(tmp_path, 4)
    for step in range(5, 11):
        resumed.write(step, "train", {"loss": step / 8})
    resumed.close()
    killed.close()
    assert as_tensorboard_shows(tmp_path) == {"train/loss": [(s, np.float32(s / 8)) for s in range(1, 11)]}
