"""Checkpoints: what is saved comes back bit for bit, and damage is noticed."""

import asyncio
import dataclasses
import json
import os
import pathlib
import random
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cnnjax
from cnnjax.ops.errors import InputError
from cnnjax.training import RunError, checkpoint, files
from cnnjax.training import mesh as meshes
from cnnjax.training.state import TrainState, fingerprint


@pytest.fixture(scope="module")
def state():
    params = {"kernel": jnp.arange(12.0).reshape(3, 4) / 7, "bias": jnp.array([jnp.pi, -0.0])}
    return TrainState(jnp.int32(5), params, {"mean": jnp.ones(3)}, optax.adam(0.1).init(params), jax.random.key(7))


def target(state):
    return checkpoint.abstract(state, meshes.replicated(meshes.make_mesh(1)))


@pytest.fixture(scope="module")
def saved_once(state, tmp_path_factory):
    checkpoints = checkpoint.Checkpoints(tmp_path_factory.mktemp("saved"), keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, state, {"step": step}, score=None)
    checkpoints.wait()
    checkpoints.close()
    return checkpoints.directory


@pytest.fixture
def saved(saved_once, tmp_path):
    """A folder with good checkpoints 1, 2 and 3."""
    return pathlib.Path(shutil.copytree(saved_once, tmp_path / "saved"))


def test_round_trip_is_exact(state, saved):
    manifest = checkpoint.read_manifest(saved, 3)
    assert manifest.meta == {"step": 3}
    restored = checkpoint.restore(saved, manifest, target(state))
    assert fingerprint(restored) == fingerprint(state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    np.testing.assert_array_equal(jax.random.key_data(restored.key), jax.random.key_data(state.key))
    assert np.signbit(restored.params["bias"][1])


def test_a_state_of_a_version_without_moving_averages_is_restored(state, tmp_path):
    """Whole, and without what is not used."""
    names = [field.name for field in dataclasses.fields(state) if field.name != "ema"]
    earlier = dataclasses.make_dataclass("TrainState", names, frozen=True)
    jax.tree_util.register_dataclass(earlier, data_fields=names, meta_fields=[])
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, earlier(**{name: getattr(state, name) for name in names}), {}, score=None)
    checkpoints.wait()
    checkpoints.close()
    manifest = checkpoint.read_manifest(tmp_path, 1)
    restored = checkpoint.restore(tmp_path, manifest, target(state))
    assert fingerprint(restored) == fingerprint(state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    few = checkpoint.restore(tmp_path, manifest, target(state), without=("step", "key", "opt_state", "ema"))
    np.testing.assert_array_equal(few.evaluated["params"]["kernel"], state.params["kernel"])
    assert few.ema == {}


def test_another_structure_of_the_same_arrays_is_one_line_with_the_versions(state, saved):
    """Not Orbax's, which advises what only a program can do."""
    other = target(dataclasses.replace(state, batch_stats=state.batch_stats | {"nothing": {}}))
    manifest = checkpoint.read_manifest(saved, 3)
    for version, by in (("0.0.9", " by cnnjax 0.0.9"), (None, "")):
        with pytest.raises(RunError) as error:
            checkpoint.restore(saved, manifest, other, version=version)
        assert str(error.value) == (
            f"checkpoint 3 in {saved} was saved{by} with a state of another structure, though of the same arrays; "
            f"this is cnnjax {cnnjax.__version__}, allowed: the version that saved it"
        )


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


def test_a_missing_file_is_noticed(saved):
    victim = next(path for path in (saved / "3").rglob("*") if path.is_file())
    victim.unlink()
    with pytest.raises(RunError, match="is missing"):
        checkpoint.read_manifest(saved, 3)


def test_stray_files_do_no_harm(state, saved):
    """Only what the manifest lists counts; what a file manager leaves while a checkpoint is saved is not listed."""
    for folder in (saved, saved / "3", saved / "3" / "state"):
        (folder / ".DS_Store").write_text("x")
        (folder / "Thumbs.db").write_text("x")
        os.mkfifo(folder / "pipe")
        (folder / "loop").symlink_to("loop")
    (saved / "4.orbax-checkpoint-tmp").mkdir()
    checkpoints = checkpoint.Checkpoints(saved, keep=3)
    manifest, complaints = checkpoints.newest_good()
    assert (manifest.step, complaints) == (3, [])
    assert fingerprint(checkpoint.restore(saved, manifest, target(state))) == fingerprint(state)
    assert not {".DS_Store", "state/.DS_Store"} & set(checkpoint._hashes(saved / "3"))


def kinds_of_damage(path):
    """A file put in the place of another, in turn a pipe, a folder, a loop of links, a link to nothing, and nothing."""

    def put(make):
        path.unlink()
        make(path)

    return {
        "pipe": lambda: put(os.mkfifo),
        "folder": lambda: put(os.mkdir),
        "loop": lambda: put(lambda path: path.symlink_to(path.name)),
        "dead link": lambda: put(lambda path: path.symlink_to("nowhere")),
        "gone": lambda: put(lambda path: None),
    }


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "dead link", "gone"])
@pytest.mark.parametrize("name", ["3.json", "3/commit_success.txt", "3/state/manifest.ocdbt"])
def test_anything_in_the_place_of_a_file_is_noticed(saved, name, kind):
    kinds_of_damage(saved / name)[kind]()
    with pytest.raises(RunError, match=r"checkpoint 3 .*(is missing|can't be read)"):
        checkpoint.read_manifest(saved, 3)
    manifest, complaints = checkpoint.Checkpoints(saved, keep=3).newest_good()
    assert manifest.step == 2
    assert len(complaints) == ((name, kind) != ("3.json", "gone"))  # of which nothing is left to complain
    assert not (saved / "3").exists()
    assert not os.path.lexists(saved / "3.json")


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    "name",
    [
        "...deleting", "..deleting", ".deleting", "2..deleting", "x.deleting", "２.deleting", "².deleting", "²",
        "².json", "02", "02.json", "02.deleting", "-1.json", "1e3.json", "2 .json", "99999999999999999999.json",
        "notes.txt",
        "x.tmp", ".tmp", "..tmp", "orbax-checkpoint-tmp", "my.orbax-checkpoint-tmp", "set-aside.deleting", "2.deleting",
    ],
)  # fmt: skip
def test_other_names_among_checkpoints_are_left_alone(saved, name):
    """Whatever they are, and nothing else is lost for them; `2.deleting` is of no deletion, 2.json being there."""
    inside = saved / "checkpoints"
    inside.mkdir()
    (saved / "config.json").write_text("{}")
    for path in [path for path in saved.iterdir() if path.name[0] in "123"]:
        path.rename(inside / path.name)
    for make in (lambda path: path.write_text("x"), os.mkfifo, os.mkdir, lambda path: path.symlink_to(saved)):
        make(inside / name)
        before = everything(saved)
        checkpoints = checkpoint.Checkpoints(inside, keep=3)
        assert checkpoint.steps_with_manifest(inside) == [3, 2, 1]
        assert checkpoints.newest_good()[0].step == 3
        assert everything(saved) == before
        if (inside / name).is_dir() and not (inside / name).is_symlink():
            os.rmdir(inside / name)
        else:
            os.unlink(inside / name)


def test_nothing_is_lost_through_links(state, saved, tmp_path_factory):
    """Of names that are put aside, cleared or written, links alone are touched, not what they point to."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "mine").write_text("mine")
    for name in ("9.orbax-checkpoint-tmp", "9.json.tmp", "8"):
        (saved / name).symlink_to(outside)
    (saved / "4.json.tmp").symlink_to(outside / "mine")
    checkpoints = checkpoint.Checkpoints(saved, keep=3)
    (saved / "5.json.tmp").symlink_to(outside / "mine")
    (saved / "5.json").symlink_to(outside / "mine")
    checkpoints.save(5, state, {}, None)
    checkpoints.close()
    assert checkpoint.read_manifest(saved, 5).step == 5
    assert [path.name for path in outside.iterdir()] == ["mine"]
    assert (outside / "mine").read_text() == "mine"


def test_set_aside_is_a_folder_of_the_run(saved, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "3").write_text("mine")
    (saved / "set-aside").symlink_to(outside)
    (saved / "3.json").write_text("{")
    with pytest.raises(RunError, match=r"set-aside is a link, allowed: a folder, where checkpoint 3 can be set aside"):
        checkpoint.Checkpoints(saved, keep=3).newest_good()
    assert (outside / "3").read_text() == "mine"
    assert (saved / "3").is_dir()


def test_a_file_in_the_place_of_set_aside(saved):
    (saved / "set-aside").write_text("mine")
    (saved / "3.json").write_text("{")
    with pytest.raises(RunError, match=r"set-aside is no folder, allowed: a folder, where checkpoint 3 can be set"):
        checkpoint.Checkpoints(saved, keep=3).newest_good()
    assert (saved / "set-aside").read_text() == "mine"


def test_a_folder_in_the_place_of_what_a_deletion_begins_with(saved, state):
    (saved / "1.deleting").mkdir()
    checkpoints = checkpoint.Checkpoints(saved, keep=1)
    checkpoints.save(4, state, {}, None)
    checkpoints.close()
    assert sorted(path.name for path in saved.iterdir()) == ["4", "4.json"]


@pytest.mark.parametrize("name", ["result.json", "result.json.tmp"])
def test_a_folder_in_the_place_of_a_file(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(IsADirectoryError, match=f"a folder stands where a file is to be written: .*{name}'"):
        files.replace(tmp_path / "result.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_folder_may_be_a_link(state, tmp_path):
    """To a larger disk, say."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "disk")
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints", keep=1)
    for step in (1, 2):
        checkpoints.save(step, state, {}, None)
    checkpoints.wait()
    assert sorted(os.listdir(tmp_path / "disk")) == ["2", "2.json"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(RunError, match="loop: no folder of checkpoints"):
        checkpoint.steps_with_manifest(tmp_path / "loop")


ODD = (
    "exp[1]", "[lr=0.1]", "a[!b]", "run?", "a*", "a\\b", "two  spaces", "Käse", "名前", "a#b%20c", "{x,y}", "~",
    "$HOME", "a|b;c&d", "'\"", "-x", "gs:", "file:", "[bold]x [b]", "line\nbreak", "..x",
)  # fmt: skip


@pytest.mark.parametrize("parent", ["plain", "up[1]"])
def test_folders_named_as_people_name_them(state, tmp_path, monkeypatch, parent):
    """Saved over one another, pruned, restored, and nothing written beside them."""
    (tmp_path / parent).mkdir()
    monkeypatch.chdir(tmp_path / parent)  # a relative folder, in an oddly named one
    for name in ODD:
        directory = pathlib.Path(name, "checkpoints")
        checkpoints = checkpoint.Checkpoints(directory, keep=1)
        for step in (1, 2):
            checkpoints.save(step, state, {}, None)
        checkpoints.wait()
        checkpoints.close()
        manifest = checkpoint.read_manifest(directory, 2)
        assert fingerprint(checkpoint.restore(directory, manifest, target(state))) == fingerprint(state)
        assert sorted(os.listdir(directory)) == ["2", "2.json"]
    assert sorted(os.listdir()) == sorted(ODD)


def test_without_proc_such_names_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    checkpoint.check_path(tmp_path / "plain, with spaces")
    with pytest.raises(InputError, match=r"workdir: .* holds '\['"):
        checkpoint.check_path(tmp_path / "a[1]")


def test_only_a_whole_checkpoint_is_sealed(state, saved, monkeypatch):
    """Orbax may give up bringing the arrays of its processes together with no more than a line in a log."""
    manifest = json.loads((saved / "3.json").read_text())
    del manifest["content"]["files"]["state/manifest.ocdbt"]
    manifest["sha256"] = checkpoint.files.seal(manifest["content"])
    (saved / "3.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=r"checkpoint 3 .* was sealed before it was whole"):
        checkpoint.read_manifest(saved, 3)
    monkeypatch.setattr(checkpoint, "_hashes", lambda folder: manifest["content"]["files"])
    checkpoints = checkpoint.Checkpoints(saved, keep=3)
    checkpoints.save(4, state, {}, None)
    with pytest.raises(RunError, match="Orbax did not bring the arrays together"):
        checkpoints.wait()
    assert not (saved / "4.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": "3"}, "step: received '3', allowed: int"),
        ({"files": {"a": 1}}, "files: received"),
        ({"files": []}, "files: received"),
        ({"leaves": None}, "leaves: received None"),
        ({"meta": 3}, "meta: received 3"),
        ({"score": ["x"]}, "score: received"),
        ({"more": 1}, "has no field more"),
    ],
)
def test_a_manifest_edited_and_sealed_again(saved, change, message):
    content = json.loads((saved / "3.json").read_text())["content"] | change
    (saved / "3.json").write_text(json.dumps({"content": content, "sha256": checkpoint.files.seal(content)}))
    with pytest.raises(RunError, match=f"checkpoint 3 .*: its manifest is not one .*{message}"):
        checkpoint.read_manifest(saved, 3)


@pytest.mark.parametrize("years", [-10, 10])
def test_the_clock_may_be_set_while_a_checkpoint_is_saved(state, tmp_path, monkeypatch, years):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=10)
    checkpoints.save(1, state, {}, None)
    checkpoints.wait()
    original = time.time
    for step in range(2, 8):
        with monkeypatch.context() as patch:
            checkpoints.save(step, state, {}, None)
            patch.setattr(time, "time", lambda: original() + years * 365 * 86400)
            checkpoints.wait()
    assert checkpoint.steps_with_manifest(tmp_path) == [7, 6, 5, 4, 3, 2, 1]


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
    monkeypatch.setattr(checkpoint.files, "replace", full)
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


@pytest.mark.parametrize("nested", [False, True])
def test_reads_beside_a_failed_one_end_before_it_is_raised(nested):
    """Where Orbax is within an event loop of its own, it starts another one in a thread."""
    from orbax.checkpoint._src import asyncio_utils

    ended = []

    async def fail():
        raise OSError("gone")

    async def go_on():
        await asyncio.sleep(0.05)
        ended.append(True)
        raise OSError("gone as well")

    async def read():
        await asyncio.gather(fail(), go_on())

    async def read_within():
        asyncio_utils.run_sync(read())

    with pytest.raises(OSError, match=r"^gone$"):
        asyncio_utils.run_sync(read_within() if nested else read())
    assert ended == [True]
