"""How the examples of a split reach a compiled step, and evaluation over exactly all of them."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from cnnjax import data as datasets
from cnnjax.data.order import eval_batches
from cnnjax.training import checkpoint, metrics
from cnnjax.training import mesh as meshes
from cnnjax.training.errors import RunError
from cnnjax.training.step import Preprocess, eval_step, from_resident


class Feed:
    """The examples of one split, and how they reach a compiled step."""

    def __init__(self, arrays: datasets.Arrays, *, mesh: jax.sharding.Mesh, limit: float):
        """Puts them on every device where they take at most `limit` bytes, else keeps them on the host."""
        self.mesh = mesh
        self.host = {"image": arrays.image, "label": arrays.label}
        self.length = len(arrays)
        resident = sum(array.nbytes for array in self.host.values()) <= limit
        self._device = jax.device_put(self.host, meshes.replicated(mesh)) if resident else None
        self._compiled: dict[Any, Callable] = {}

    def compile(self, step: Callable, first: Any, batch_size: int, *, donate: bool = False, masked: bool = False):
        """Compiles `step(first, batch)` for batches of this split.

        Args:
          step: gives (new first or sums, ...).
          first: its first argument, or anything of the same shapes.
          batch_size: of every batch.
          donate: whether the memory of `first` may be used for the result.
          masked: whether the batch has a `mask`.

        Returns:
          A function of (first, index int32 [batch_size]), and of `mask` where there is one.
        """
        spread, everywhere = meshes.over_batch(self.mesh), meshes.replicated(self.mesh)
        put = functools.partial(jax.device_put, device=spread)

        def spec(array: np.ndarray) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((batch_size, *array.shape[1:]), array.dtype, sharding=spread)

        first = checkpoint.abstract(first, everywhere)
        rest = {"mask": jax.ShapeDtypeStruct((batch_size,), bool, sharding=spread)} if masked else {}
        jit = functools.partial(jax.jit, donate_argnums=(0,) if donate else ())
        if self._device is None:
            batch = {name: spec(array) for name, array in self.host.items()}
            compiled = jit(step).lower(first, batch | rest).compile()
            return lambda first, index, **rest: compiled(
                first, {name: put(array[index]) for name, array in self.host.items()} | jax.tree.map(put, rest)
            )
        arrays = self._device
        index = jax.ShapeDtypeStruct((batch_size,), np.int32, sharding=spread)
        compiled = jit(from_resident(step)).lower(first, arrays, index, **rest).compile()
        return lambda first, index, **rest: compiled(first, arrays, put(index), **jax.tree.map(put, rest))

    def cached(self, key: Any, make: Callable[[], Callable]) -> Callable:
        """What `make` gives, made once for each key."""
        if key not in self._compiled:
            self._compiled[key] = make()
        return self._compiled[key]


def evaluate_split(
    variables: dict[str, Any],
    feed: Feed,
    *,
    model: nn.Module,
    loss: metrics.Loss,
    preprocess: Preprocess,
    batch_size: int,
) -> tuple[dict[str, float], np.ndarray]:
    """Metrics over exactly the examples of a split, as sums and counts, and the outputs [examples, classes].

    The last batch is padded and the padding masked; the number of examples counted is checked.
    """
    variables = jax.device_put(variables, meshes.replicated(feed.mesh))  # a loaded run's are on one device
    size = min(batch_size, feed.length)
    size = -(-size // feed.mesh.size) * feed.mesh.size
    step = feed.cached(
        size,
        lambda: feed.compile(
            functools.partial(eval_step, model=model, loss=loss, preprocess=preprocess), variables, size, masked=True
        ),
    )
    results, masks = [], []
    for index, mask in eval_batches(feed.length, size):
        results.append(step(variables, index, mask=mask))
        masks.append(mask)
        if len(results) > 2:  # not all batches of a large set at once
            results[-3] = jax.device_get(results[-3])
    fetched = jax.device_get(results)
    total = metrics.add(sums for sums, _ in fetched)
    if total["count"] != feed.length:
        raise RunError(f"evaluation counted {total['count']:.0f} examples of {feed.length}")
    outputs = np.concatenate([outputs[mask] for (_, outputs), mask in zip(fetched, masks, strict=True)])
    return total, outputs
