"""What the environment sets of JAX does not change what a run computes, or is said."""

import contextlib
import json

import jax
import numpy as np
import pytest

import cnnjax
from cnnjax.ops.errors import InputError
from cnnjax.training import ambient, train
from cnnjax.training.report import Report

OTHERWISE = {
    "jax_enable_x64": True,
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 7,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_transfer_guard": "disallow",
    "jax_disable_jit": True,
}


@contextlib.contextmanager
def settings(values):
    """JAX's settings changed, as variables of the environment would."""
    before = {name: ambient._setting(name) for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.fixture
def finished(tiny_config, tiny_data, tmp_path):
    return train(tiny_config, tmp_path / "run", dataset=tiny_data)


def test_a_run_is_the_same_whatever_the_environment_sets(tiny_config, tiny_data, tmp_path, finished, capsys):
    with settings(OTHERWISE):
        other = train(tiny_config, tmp_path / "other", dataset=tiny_data, report=Report())
        assert jax.config.jax_default_prng_impl == "rbg"  # it is the user's again
    assert other["fingerprint"] == finished["fingerprint"]
    said = capsys.readouterr().err
    assert [line for line in said.splitlines() if not line.startswith("warning: ")] == []
    assert "jax_enable_x64" in said
    assert "jax_threefry_partitionable" in said
    assert "set aside for the run" in said


def test_what_holds_for_one_thread_alone_is_set_aside_too(tiny_config, tiny_data, tmp_path, finished):
    with jax.enable_x64(True), jax.threefry_partitionable(False), jax.default_prng_impl("rbg"):
        other = train(tiny_config, tmp_path / "other", dataset=tiny_data)
    assert other["fingerprint"] == finished["fingerprint"]


def test_a_run_is_loaded_whatever_the_environment_sets(finished, tmp_path):
    expected = jax.tree.leaves(cnnjax.load(tmp_path / "run")[1])
    with settings(OTHERWISE):
        leaves = jax.tree.leaves(cnnjax.load(tmp_path / "run")[1])
    for leaf, value in zip(leaves, expected, strict=True):
        assert leaf.dtype == value.dtype
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(value))


def test_the_exactness_of_products_is_recorded_and_kept(tiny_config, tiny_data, tmp_path):
    with settings({"jax_default_matmul_precision": "highest"}):
        train(tiny_config, tmp_path / "run", dataset=tiny_data)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["history"][0]["settings"]["jax_default_matmul_precision"] == "highest"
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(InputError, match=r"jax_default_matmul_precision was 'highest', received None \(\$JAX_DEFAULT_"):
        train(tiny_config, tmp_path / "run", dataset=tiny_data)
    with settings({"jax_default_matmul_precision": "highest"}):
        assert train(tiny_config, tmp_path / "run", dataset=tiny_data)["steps"] == 24


def test_double_precision_leaves_no_trace():
    """Not even where it was switched on for one thread."""
    with jax.enable_x64(True), ambient.pinned(double=True) as changed:
        assert jax.numpy.zeros(1).dtype == np.float64
        assert ambient.set_aside(changed, double=True) is None
    assert jax.numpy.zeros(1).dtype == np.float32
    with ambient.pinned(double=True):
        assert jax.numpy.zeros(1).dtype == np.float64
    assert jax.numpy.zeros(1).dtype == np.float32
