"""The order of examples: pure functions of (seed, step), so that a resumed run sees what an uninterrupted one would.

All epochs' permutations are laid end to end; batch i takes the positions from i * batch_size on. So nothing is dropped
when the batch size doesn't divide the number of examples: a batch may end one epoch and begin the next.
"""

import functools
from collections.abc import Iterator

import numpy as np


@functools.lru_cache(maxsize=8)
def epoch_order(n: int, epoch: int, seed: int) -> np.ndarray:
    """The order of the `n` examples in `epoch`: a permutation, int32 `[n]`, read-only."""
    order = np.random.default_rng((seed, epoch)).permutation(n).astype(np.int32)
    order.flags.writeable = False  # it is shared by every caller through the cache
    return order


def batch_indices(n: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """The examples of training step `step`.

    Args:
      n: the number of examples.
      batch_size: examples per step.
      step: the step, from 0.
      seed: the run's seed, not negative.

    Returns:
      int32 `[batch_size]`, read-only.
    """
    start, stop = step * batch_size, (step + 1) * batch_size
    first, last = start // n, (stop - 1) // n
    if first == last:
        return epoch_order(n, first, seed)[start - first * n : stop - first * n]
    parts = [
        epoch_order(n, epoch, seed)[max(start - epoch * n, 0) : min(stop - epoch * n, n)]
        for epoch in range(first, last + 1)
    ]
    indices = np.concatenate(parts)
    indices.flags.writeable = False
    return indices


def eval_batches(n: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All `n` examples once, in their own order, in batches of one size: the last is padded.

    Args:
      n: the number of examples.
      batch_size: examples per batch.

    Yields:
      (index, mask): int32 `[batch_size]`, bool `[batch_size]`. Where the mask is False the index is padding (0), and
      that example must not count.
    """
    for start in range(0, n, batch_size):
        position = np.arange(start, start + batch_size, dtype=np.int32)
        mask = position < n
        yield np.where(mask, position, 0).astype(np.int32), mask
