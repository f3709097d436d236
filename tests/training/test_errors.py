"""What is said of errors that are the machine's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.training.errors import explained
from cnnjax.training.launch import exit_status


def test_out_of_memory_says_what_takes_less(capsys):
    with exit_status() as status:
        np.zeros((10**6, 10**9))
    said = capsys.readouterr().err
    assert status.value == 1
    assert said.startswith("error: out of memory: Unable to allocate")
    assert "--train.microbatches" in said
    assert "--run.eval-batch-size" in said
    assert said.count("\n") == 1


def test_out_of_memory_of_a_device_too(capsys):
    with exit_status() as status:
        jax.block_until_ready(jnp.zeros((10**6, 10**8)))
    said = capsys.readouterr().err
    assert status.value == 1
    assert said.startswith("error: out of memory: RESOURCE_EXHAUSTED")


def test_what_is_a_fault_of_ours_keeps_its_traceback():
    assert explained(RuntimeError("dictionary changed size during iteration")) is None
    assert "ulimit -u" in (explained(RuntimeError("can't start new thread")) or "")
    with pytest.raises(RuntimeError, match="size"), exit_status():
        raise RuntimeError("dictionary changed size during iteration")


def test_a_long_message_is_cut(capsys):
    with exit_status():
        raise OSError("x" * 10_000)
    assert len(capsys.readouterr().err) < 2100
