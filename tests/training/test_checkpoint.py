"""Checkpoints: what is saved comes back bit for bit, and damage is noticed."""

import dataclasses
import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnnjax.training import RunError, checkpoint
from cnnjax.training import mesh as meshes
from cnnjax.training.state import TrainState, fingerprint


@pytest.fixture
def state():
    params = {"kernel": jnp.arange(12.0).reshape(3, 4) / 7, "bias": jnp.array([jnp.pi, -0.0])}
    return TrainState(jnp.int32(5), params, {"mean": jnp.ones(3)}, optax.adam(0.1).init(params), jax.random.key(7))


def target(state):
    return checkpoint.abstract(state, meshes.replicated(meshes.make_mesh(1)))


@pytest.fixture
def saved(state, tmp_path):
    """A folder with good checkpoints 1, 2 and 3."""
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, state, {"step": step}, score=None)
    checkpoints.wait()
    checkpoints.close()
    return tmp_path


def test_round_trip_is_exact(state, saved):
    manifest = checkpoint.read_manifest(saved, 3)
    assert manifest.meta == {"step": 3}
    restored = checkpoint.restore(saved, manifest, target(state))
    assert fingerprint(restored) == fingerprint(state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    np.testing.assert_array_equal(jax.random.key_data(restored.key), jax.random.key_data(state.key))
    assert np.signbit(restored.params["bias"][1])


def test_the_newest_and_the_best_are_kept(state, tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    for step, score in enumerate([[0.1, -1.0], [0.7, -2.0], [0.7, -3.0], [0.7, -2.0], None, [0.6, -1.0]], 1):
        checkpoints.save(step, state, {}, score)
    checkpoints.wait()
    assert checkpoint.steps_with_manifest(tmp_path) == [6, 5, 2]  # 2 is better than 3 by its loss, and earlier than 4
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["2", "5", "6"]


@pytest.mark.parametrize("seed", range(25))
def test_any_flipped_bit_or_truncation_is_noticed(saved, seed):
    """In any file of the newest checkpoint or in its manifest; the one before is used, the damaged one kept aside."""
    rng = random.Random(seed)
    files = [path for path in (saved / "3").rglob("*") if path.is_file() and path.stat().st_size]
    path = rng.choice([*files, saved / "3.json"])
    content = bytearray(path.read_bytes())
    if rng.random() < 0.3:
        del content[rng.randrange(len(content)) :]
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    if path.suffix == ".json" and path.parent == saved and json_equal(content, path.read_bytes()):
        pytest.skip("the flip changed white space only")
    path.write_bytes(content)

    with pytest.raises(RunError, match="checkpoint 3"):
        checkpoint.read_manifest(saved, 3)
    manifest, complaints = checkpoint.Checkpoints(saved, keep=3).newest_good()
    assert manifest.step == 2
    assert len(complaints) == 1
    assert (saved / "set-aside" / "3").is_dir()


def json_equal(a, b):
    try:
        return json.loads(bytes(a)) == json.loads(b)
    except ValueError:
        return False


def test_a_missing_and_an_added_file_are_noticed(saved):
    victim = next(path for path in (saved / "3").rglob("*") if path.is_file())
    victim.unlink()
    with pytest.raises(RunError, match="is missing"):
        checkpoint.read_manifest(saved, 3)
    (saved / "2" / "extra").write_text("x")
    with pytest.raises(RunError, match="damaged or was added"):
        checkpoint.read_manifest(saved, 2)


def test_a_manifest_of_another_step_is_noticed(saved):
    shutil.copy(saved / "2.json", saved / "3.json")
    with pytest.raises(RunError, match="its manifest is damaged"):
        checkpoint.read_manifest(saved, 3)


def test_what_killed_saves_leave_is_cleared(state, saved):
    (saved / "9.orbax-checkpoint-tmp").mkdir()
    (saved / "9.orbax-checkpoint-tmp" / "half").write_text("x")
    (saved / "4.json.tmp").write_text("{")
    (saved / "4").mkdir()
    (saved / "4" / "whole but without its manifest").write_text("x")
    checkpoints = checkpoint.Checkpoints(saved, keep=3)
    assert not (saved / "9.orbax-checkpoint-tmp").exists()
    assert not (saved / "4.json.tmp").exists()
    assert not (saved / "4").exists()
    assert (saved / "set-aside" / "4").exists()
    assert checkpoints.newest_good()[0].step == 3
    checkpoints.save(4, state, {}, None)
    checkpoints.wait()
    assert not (saved / "set-aside" / "4").exists()  # a good one took its place


def test_a_deletion_cut_short_is_finished(saved):
    """Killed between taking the manifest away and taking the arrays away."""
    (saved / "1.json").rename(saved / "1.deleting")
    checkpoint.Checkpoints(saved, keep=3)
    assert sorted(path.name for path in saved.iterdir()) == ["2", "2.json", "3", "3.json"]


def test_a_damaged_older_manifest_does_not_stop_a_save(state, saved):
    (saved / "1.json").write_text("{")
    checkpoints = checkpoint.Checkpoints(saved, keep=1)
    checkpoints.save(4, state, {}, None)
    checkpoints.wait()
    assert checkpoint.steps_with_manifest(saved) == [4, 1]


def test_another_structure_shape_or_type_is_named(state, saved):
    manifest = checkpoint.read_manifest(saved, 3)
    kernel = r"checkpoint 3 .* another network's state: .*kernel.* is float32\[3, 4\], this run's is "
    for other, message in (
        ({**state.params, "kernel": jnp.zeros((3, 5))}, kernel + r"float32\[3, 5\]"),
        ({**state.params, "kernel": jnp.zeros((3, 4), jnp.int32)}, kernel + r"int32\[3, 4\]"),
        ({"bias": state.params["bias"]}, kernel + "missing"),
        ({**state.params, "scale": jnp.ones(2)}, r"scale.* is missing, this run's is float32\[2\]"),
    ):
        with pytest.raises(RunError, match=message):
            checkpoint.restore(saved, manifest, target(dataclasses.replace(state, params=other)))


def test_a_failing_save_is_reported(state, tmp_path, monkeypatch):
    """By the next save, by `wait`, and in words; no manifest is left that would make it look good."""

    def full(path, text):
        raise OSError(28, "No space left on device")

    checkpoints = checkpoint.Checkpoints(tmp_path, keep=3)
    monkeypatch.setattr(checkpoint, "write_atomically", full)
    checkpoints.save(1, state, {}, None)
    with pytest.raises(RunError, match=r"checkpoint 1 could not be saved to .*No space left on device"):
        checkpoints.save(2, state, {}, None)
    assert checkpoint.steps_with_manifest(tmp_path) == []


def test_the_fingerprint_sees_every_part(state):
    base = fingerprint(state)
    assert fingerprint(dataclasses.replace(state, batch_stats={"mean": jnp.zeros(3)})) != base
    nudged = {**state.params, "bias": jnp.nextafter(state.params["bias"], jnp.inf)}
    assert fingerprint(dataclasses.replace(state, params=nudged)) != base
    opt_state = jax.tree.map(lambda leaf: leaf + 1, state.opt_state)
    assert fingerprint(dataclasses.replace(state, opt_state=opt_state)) != base
    signed = {**state.params, "bias": jnp.array([jnp.pi, 0.0])}
    assert fingerprint(dataclasses.replace(state, params=signed)) != base  # -0.0 is not 0.0, bit for bit
