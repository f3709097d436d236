"""How the examples of a split reach a compiled step, and evaluation over exactly all of them."""

import functools
from collections.abc import Callable, Generator
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from cnnjax import data as datasets
from cnnjax.data.order import batch_indices, eval_batches
from cnnjax.ops.errors import InputError
from cnnjax.training import mesh as meshes
from cnnjax.training import metrics, processes
from cnnjax.training.errors import RunError
from cnnjax.training.step import Preprocess, eval_step, from_resident, repeated


class Feed:
    """The examples of one split, and how they reach a compiled step."""

    def __init__(self, arrays: datasets.Arrays, *, mesh: jax.sharding.Mesh, limit: float):
        """Puts them on every device where they take at most `limit` bytes, else keeps them on the host."""
        self.mesh = mesh
        self.host = {"image": arrays.image, "label": arrays.label}
        self.length = len(arrays)
        self.resident = sum(array.nbytes for array in self.host.values()) <= limit
        everywhere = meshes.replicated(mesh)
        self._device = {name: meshes.put(array, everywhere) for name, array in self.host.items() if self.resident}
        self._compiled: dict[Any, Callable] = {}

    def compile(
        self,
        step: Callable,
        first: Any,
        batch_size: int,
        *,
        donate: bool = False,
        masked: bool = False,
        repeats: int | None = None,
    ) -> Callable:
        """Compiles `step(first, batch)` for batches of this split.

        Args:
          step: gives (new first or sums, ...).
          first: its first argument, or anything of the same shapes; where its leaves say how they are placed on the
            mesh, they stay so.
          batch_size: of every batch.
          donate: whether the first result takes the place of `first`, and may have its memory.
          masked: whether the batch has a `mask`.
          repeats: makes up to so many steps in one call. Only for examples on the device.

        Returns:
          A function of (first, index int32 [batch_size]), and of `mask` where there is one; with `repeats`, of (first,
          indices [repeats, batch_size], count).
        """
        spread, everywhere = meshes.over_batch(self.mesh), meshes.replicated(self.mesh)
        put = functools.partial(meshes.put, sharding=spread)
        first = meshes.abstract(first, self.mesh)
        placed = jax.tree.map(lambda leaf: leaf.sharding, first)
        jit = functools.partial(
            jax.jit,
            donate_argnums=(0,) if donate else (),
            out_shardings=(placed, everywhere) if donate else everywhere,
        )
        rest = {"mask": jax.ShapeDtypeStruct((batch_size,), bool, sharding=spread)} if masked else {}
        if not self.resident:
            batch = {
                name: jax.ShapeDtypeStruct((batch_size, *array.shape[1:]), array.dtype, sharding=self._place(array))
                for name, array in self.host.items()
            }
            compiled = jit(step).lower(first, batch | rest).compile()
            return lambda first, index, **rest: compiled(first, self._send(index) | jax.tree.map(put, rest))
        arrays, resident_step = self._device, from_resident(step)
        if repeats is None:
            index = jax.ShapeDtypeStruct((batch_size,), np.int32, sharding=spread)
            compiled = jit(resident_step).lower(first, arrays, index, **rest).compile()
            return lambda first, index, **rest: compiled(first, arrays, put(index), **jax.tree.map(put, rest))
        several = jax.NamedSharding(self.mesh, jax.P(None, *spread.spec))
        indices = jax.ShapeDtypeStruct((repeats, batch_size), np.int32, sharding=several)

        def many(first, arrays, indices, count):
            return repeated(lambda first, index: resident_step(first, arrays, index))(first, indices, count)

        compiled = jit(many).lower(first, arrays, indices, jax.ShapeDtypeStruct((), np.int32)).compile()
        return lambda first, indices, count: compiled(first, arrays, meshes.put(indices, several), np.int32(count))

    def compile_steps(self, step: Callable, state: Any, batch_size: int, several: int) -> Callable:
        """Compiles a training step, so that up to `several` are made in one call.

        Args:
          step: of (state, batch), giving the new state and a dictionary of scalars.
          state: the first one.
          batch_size: of every batch.
          several: how many.

        Returns:
          A function of (state, batches), a list of at most `several` of what `batches` gives. It gives the new state
          and the scalars, of several steps as arrays [several].

        Raises:
          InputError: several are wanted and the examples are not on the device.
        """
        if several == 1:
            one = self.compile(step, state, batch_size, donate=True)
            return lambda state, batches: one(state, batches[0])
        if not self.resident:
            raise InputError(
                f"run.steps-per-call: received {several}, allowed: 1 for examples that are not kept on the device "
                f"(--data.resident-mb)"
            )
        many = self.compile(step, state, batch_size, donate=True, repeats=several)

        def take(state: Any, batches: list[np.ndarray]) -> Any:
            padding = [batches[0]] * (several - len(batches))
            return many(state, np.stack(batches + padding), len(batches))

        return take

    def batches(self, start: int, stop: int, batch_size: int, seed: int) -> Generator[np.ndarray]:
        """The batches of the steps from `start` (0 is the first) to before `stop`, as indices int32 [batch_size]."""
        for step in range(start, stop):
            yield batch_indices(self.length, batch_size, step, seed)

    def _place(self, array: np.ndarray) -> jax.sharding.NamedSharding:
        """Where a batch of examples is sent: images by their height too, where it divides."""
        along_space = array.ndim == 4 and array.shape[1] % self.mesh.shape["space"] == 0
        return meshes.over_images(self.mesh) if along_space else meshes.over_batch(self.mesh)

    def _send(self, index: np.ndarray) -> dict[str, jax.Array]:
        """The examples at `index`, each process gathering only what its own devices hold."""

        def send(array: np.ndarray) -> jax.Array:
            if not processes.several():
                return jax.device_put(array[index], self._place(array))
            shape = (len(index), *array.shape[1:])
            # `part` has a slice for each axis of the batch.
            gather = lambda part: array[index[part[0]]][:, *part[1:]]
            return jax.make_array_from_callback(shape, self._place(array), gather)

        return {name: send(array) for name, array in self.host.items()}

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
    variables = meshes.on_mesh(variables, feed.mesh)  # a loaded run's are on one device
    count = meshes.batch_devices(feed.mesh)
    size = -(-min(batch_size, feed.length) // count) * count
    step = functools.partial(eval_step, model=model, loss=loss, preprocess=preprocess, layout=meshes.Layout(feed.mesh))
    evaluate = feed.cached(size, lambda: feed.compile(step, variables, size, masked=True))
    results, masks = [], []
    for index, mask in eval_batches(feed.length, size):
        results.append(evaluate(variables, index, mask=mask))
        masks.append(mask)
        if len(results) > 2:  # not all batches of a large set at once
            results[-3] = jax.device_get(results[-3])
    fetched = jax.device_get(results)
    total = metrics.add(sums for sums, _ in fetched)
    if total["count"] != feed.length:
        raise RunError(f"evaluation counted {total['count']:.0f} examples of {feed.length}")
    outputs = np.concatenate([outputs[mask] for (_, outputs), mask in zip(fetched, masks, strict=True)])
    return total, outputs
