"""The order of examples is a pure function of (seed, step)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnjax.data import order


@given(st.integers(1, 60), st.data(), st.integers(0, 10))
def test_every_epoch_is_a_permutation(n, draw, seed):
    batch = draw.draw(st.integers(1, 2 * n))
    epochs = 3
    steps = -(-epochs * n // batch)
    stream = np.concatenate([order.batch_indices(n, batch, step, seed) for step in range(steps)])
    assert stream.dtype == np.int32
    for epoch in range(epochs):
        part = stream[epoch * n : (epoch + 1) * n]
        assert sorted(part) == list(range(n))
        assert np.array_equal(part, order.epoch_order(n, epoch, seed))


def test_resumes_from_any_step():
    forward = [order.batch_indices(50, 16, step, 3).copy() for step in range(20)]
    order.epoch_order.cache_clear()
    for step in reversed(range(20)):
        assert np.array_equal(order.batch_indices(50, 16, step, 3), forward[step])


def test_seeds_and_epochs_differ():
    orders = [order.epoch_order(100, epoch, seed) for epoch in range(3) for seed in range(3)]
    assert len({o.tobytes() for o in orders}) == 9


def test_cannot_be_changed_by_a_caller():
    for step in (0, 3):  # within an epoch, and across two
        with pytest.raises(ValueError, match="read-only"):
            order.batch_indices(50, 16, step, 0)[0] = 1


@given(st.integers(0, 50), st.integers(1, 60))
def test_evaluation_drops_nothing(n, batch):
    seen = []
    for index, mask in order.eval_batches(n, batch):
        assert index.shape == mask.shape == (batch,)
        assert (index.dtype, mask.dtype) == (np.int32, np.bool_)
        assert ((index >= 0) & (index < n)).all()
        seen += index[mask].tolist()
    assert seen == list(range(n))
