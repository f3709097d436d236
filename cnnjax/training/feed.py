"""How the examples of a split reach a compiled step, and evaluation over exactly all of them."""

import abc
import contextlib
import functools
from collections.abc import Callable, Generator
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from cnnjax import data as datasets
from cnnjax.data import photos as streams
from cnnjax.data.order import batch_indices, eval_batches
from cnnjax.training import config as configs
from cnnjax.training import mesh as meshes
from cnnjax.training import metrics, processes
from cnnjax.training.errors import RunError
from cnnjax.training.setup import Split
from cnnjax.training.step import Preprocess, eval_step, from_resident, repeated

# What the host hands to a compiled step for a batch: the indices of its examples, or the examples.
Item = Any


def place(shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """Where a batch of examples of a shape is sent: images by their height too, where it divides."""
    along_space = len(shape) == 3 and shape[0] % mesh.shape["space"] == 0
    return meshes.over_images(mesh) if along_space else meshes.over_batch(mesh)


def lower_sent(
    step: Callable,
    first: Any,
    example: dict[str, jax.ShapeDtypeStruct],
    batch_size: int,
    mesh: jax.sharding.Mesh,
    *,
    donate: bool = False,
    masked: bool = False,
) -> jax.stages.Lowered:
    """Traces `step(first, batch)` for batches that the host sends.

    Args:
      step: gives (new first or sums, ...).
      first: its first argument, or anything of the same shapes; where its leaves say how they are placed on the mesh,
        they stay so.
      example: shape and dtype of an example's `image` and `label`.
      batch_size: of every batch.
      mesh: of devices, which need not be there.
      donate: whether the first result takes the place of `first`, and may have its memory.
      masked: whether the batch has a `mask`.
    """
    batch = {
        name: jax.ShapeDtypeStruct((batch_size, *kind.shape), kind.dtype, sharding=place(kind.shape, mesh))
        for name, kind in example.items()
    }
    first = meshes.abstract(first, mesh)
    return _jit(step, first, mesh, donate).lower(first, batch | _mask(batch_size, mesh, masked))


def lower_resident(
    step: Callable,
    first: Any,
    arrays: dict[str, Any],
    batch_size: int,
    mesh: jax.sharding.Mesh,
    *,
    donate: bool = False,
    masked: bool = False,
) -> jax.stages.Lowered:
    """Traces `step(first, batch)` for batches picked from `arrays` on every device, by an index int32 [batch_size].

    The function that is traced is of (first, arrays, index); the other arguments are those of `lower_sent`.
    """
    arrays, first = meshes.abstract(arrays, mesh), meshes.abstract(first, mesh)
    index = jax.ShapeDtypeStruct((batch_size,), np.int32, sharding=meshes.over_batch(mesh))
    jitted = _jit(from_resident(step), first, mesh, donate)
    return jitted.lower(first, arrays, index, **_mask(batch_size, mesh, masked))


def _jit(step: Callable, first: Any, mesh: jax.sharding.Mesh, donate: bool) -> Any:
    everywhere = meshes.replicated(mesh)
    if not donate:
        return jax.jit(step, out_shardings=everywhere)
    placed = jax.tree.map(lambda leaf: leaf.sharding, first)
    return jax.jit(step, donate_argnums=0, out_shardings=(placed, everywhere))


def _mask(batch_size: int, mesh: jax.sharding.Mesh, masked: bool) -> dict[str, jax.ShapeDtypeStruct]:
    return {"mask": jax.ShapeDtypeStruct((batch_size,), bool, sharding=meshes.over_batch(mesh))} if masked else {}


class Feed(abc.ABC):
    """The examples of one split, and how they reach a compiled step: on the host, and sent a batch at a time."""

    def __init__(self, length: int, mesh: jax.sharding.Mesh):
        self.mesh = mesh
        self.length = length
        self._compiled: dict[Any, Callable] = {}

    @property
    @abc.abstractmethod
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """An example's `image` and `label`."""

    @abc.abstractmethod
    def send(self, item: Item) -> dict[str, jax.Array]:
        """The examples that an item stands for, on the devices."""

    @abc.abstractmethod
    def batches(self, start: int, stop: int, batch_size: int, seed: int) -> Generator[Item]:
        """The batches of the training steps from `start` (0 is the first) to before `stop`."""

    @abc.abstractmethod
    def eval_batches(self, batch_size: int) -> Generator[tuple[Item, np.ndarray]]:
        """Every example once, in batches of one size, and for each a mask bool [batch_size]: False is padding."""

    @abc.abstractmethod
    def pictures(self, most: int) -> datasets.Arrays:
        """The first examples as evaluation sees them, to be looked at."""

    def compile(
        self, step: Callable, first: Any, batch_size: int, *, donate: bool = False, masked: bool = False
    ) -> Callable:
        """Compiles `step(first, batch)` for batches of this split; the arguments are those of `lower_sent`.

        Returns:
          A function of (first, item), and of `mask` where there is one.
        """
        lowered = lower_sent(step, first, self.example, batch_size, self.mesh, donate=donate, masked=masked)
        compiled = lowered.compile()
        return lambda first, item, **rest: compiled(first, self.send(item) | self._spread(rest))

    def compile_steps(self, step: Callable, state: Any, batch_size: int, several: int) -> Callable:
        """Compiles a training step, so that up to `several` are made in one call.

        Args:
          step: of (state, batch), giving the new state and a dictionary of scalars.
          state: the first one.
          batch_size: of every batch.
          several: how many.

        Returns:
          A function of (state, items), a list of at most `several` of what `batches` gives. It gives the new state
          and the scalars, of several steps as arrays [several].

        """
        assert several == 1, "several steps in one call need the examples on the devices"
        one = self.compile(step, state, batch_size, donate=True)
        return lambda state, items: one(state, items[0])

    def cached(self, key: Any, make: Callable[[], Callable]) -> Callable:
        """What `make` gives, made once for each key."""
        if key not in self._compiled:
            self._compiled[key] = make()
        return self._compiled[key]

    def _spread(self, arrays: Any) -> Any:
        """Arrays that every process has whole, divided as a batch is."""
        return jax.tree.map(lambda array: meshes.put(array, meshes.over_batch(self.mesh)), arrays)


class ArraysFeed(Feed):
    """Arrays in the memory of the host; an item is the indices of its examples, int32 [batch_size]."""

    def __init__(self, arrays: datasets.Arrays, mesh: jax.sharding.Mesh):
        super().__init__(len(arrays), mesh)
        self.host = {"image": arrays.image, "label": arrays.label}

    @property
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for name, array in self.host.items()}

    def send(self, item: np.ndarray) -> dict[str, jax.Array]:
        """The examples at these indices, each process gathering only what its own devices hold."""

        def send(array: np.ndarray) -> jax.Array:
            where = place(array.shape[1:], self.mesh)
            if not processes.several():
                return jax.device_put(array[item], where)
            # `part` has a slice for each axis of the batch.
            gather = lambda part: array[item[part[0]]][:, *part[1:]]
            return jax.make_array_from_callback((len(item), *array.shape[1:]), where, gather)

        return {name: send(array) for name, array in self.host.items()}

    def batches(self, start: int, stop: int, batch_size: int, seed: int) -> Generator[np.ndarray]:
        for step in range(start, stop):
            yield batch_indices(self.length, batch_size, step, seed)

    def eval_batches(self, batch_size: int) -> Generator[tuple[np.ndarray, np.ndarray]]:
        yield from eval_batches(self.length, batch_size)

    def pictures(self, most: int) -> datasets.Arrays:
        return datasets.Arrays(**self.host).take(slice(most))


class ResidentFeed(ArraysFeed):
    """Arrays on every device, where the compiled step picks the examples itself."""

    def __init__(self, arrays: datasets.Arrays, mesh: jax.sharding.Mesh):
        super().__init__(arrays, mesh)
        everywhere = meshes.replicated(mesh)
        self._device = {name: meshes.put(array, everywhere) for name, array in self.host.items()}

    def compile(
        self, step: Callable, first: Any, batch_size: int, *, donate: bool = False, masked: bool = False
    ) -> Callable:
        arrays = self._device
        compiled = lower_resident(step, first, arrays, batch_size, self.mesh, donate=donate, masked=masked).compile()
        return lambda first, item, **rest: compiled(first, arrays, self._spread(item), **self._spread(rest))

    def compile_steps(self, step: Callable, state: Any, batch_size: int, several: int) -> Callable:
        if several == 1:
            return super().compile_steps(step, state, batch_size, 1)
        arrays, one = self._device, from_resident(step)
        where = jax.NamedSharding(self.mesh, jax.P(None, *meshes.over_batch(self.mesh).spec))
        indices = jax.ShapeDtypeStruct((several, batch_size), np.int32, sharding=where)

        def many(state, arrays, indices, count):
            return repeated(lambda state, index: one(state, arrays, index))(state, indices, count)

        state = meshes.abstract(state, self.mesh)
        jitted = _jit(many, state, self.mesh, donate=True)
        compiled = jitted.lower(state, arrays, indices, jax.ShapeDtypeStruct((), np.int32)).compile()

        def take(state: Any, items: list[np.ndarray]) -> Any:
            padding = [items[0]] * (several - len(items))
            return compiled(state, arrays, meshes.put(np.stack(items + padding), where), np.int32(len(items)))

        return take


_PICTURES = 1000
"""Photographs that are decoded at once to be looked at, at the most: 150 MB."""


class PhotosFeed(Feed):
    """Photographs decoded while the devices compute; an item is the examples that this process needs of a batch."""

    def __init__(self, photos: datasets.Photos, mesh: jax.sharding.Mesh, data: configs.Data):
        super().__init__(len(photos), mesh)
        assert data.crop is not None
        self.photos, self.data, self.crop = photos, data, data.crop
        self._decoders: dict[str, Any] = {"workers": data.workers, "threads": data.threads}

    @property
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        image = jax.ShapeDtypeStruct((self.crop, self.crop, 3), np.uint8)
        return {"image": image, "label": jax.ShapeDtypeStruct((), np.int32)}

    def rows(self, batch_size: int) -> np.ndarray:
        """The positions within a batch that this process's devices hold, in ascending order."""
        places = meshes.over_batch(self.mesh).addressable_devices_indices_map((batch_size,)).values()
        return np.unique(np.concatenate([np.arange(batch_size)[place] for place in places]))

    def send(self, item: streams.Batch) -> dict[str, jax.Array]:
        def send(array: np.ndarray) -> jax.Array:
            where = place(array.shape[1:], self.mesh)
            if not processes.several():
                return jax.device_put(array, where)
            batch_size = len(array) * self._share
            rows = self.rows(batch_size)
            # `part` has a slice for each axis of the batch.
            pick = lambda part: array[np.searchsorted(rows, np.arange(batch_size)[part[0]])][:, *part[1:]]
            return jax.make_array_from_callback((batch_size, *array.shape[1:]), where, pick)

        return {name: send(array) for name, array in item.items()}

    @functools.cached_property
    def _share(self) -> int:
        """Of how many rows of a batch this process has one."""
        count = meshes.batch_devices(self.mesh)
        return count // len(self.rows(count))

    def batches(self, start: int, stop: int, batch_size: int, seed: int) -> Generator[streams.Batch]:
        stream = streams.train_batches(
            self.photos,
            seed=seed,
            start=start,
            stop=stop,
            batch_size=batch_size,
            rows=self.rows(batch_size),
            crop=self.crop,
            scale=self.data.crop_area,
            **self._decoders,
        )
        return self._watched(stream)

    def eval_batches(self, batch_size: int) -> Generator[tuple[streams.Batch, np.ndarray]]:
        with contextlib.closing(self._evaluated(self.photos, batch_size, self.rows(batch_size))) as stream:
            for start, batch in zip(range(0, self.length, batch_size), stream, strict=True):
                del batch["mask"]  # of this process's examples alone
                yield batch, np.arange(start, start + batch_size) < self.length

    def pictures(self, most: int) -> datasets.Arrays:
        few = self.photos.take(slice(min(most, _PICTURES)))
        with contextlib.closing(self._evaluated(few, len(few), None)) as stream:
            batch = next(stream)
        return datasets.Arrays(batch["image"], batch["label"])

    def _evaluated(self, photos: datasets.Photos, batch_size: int, rows: np.ndarray | None) -> Generator[streams.Batch]:
        resize = configs.eval_resize(self.data)
        stream = streams.eval_batches(
            photos, batch_size=batch_size, rows=rows, crop=self.crop, resize=resize, **self._decoders
        )
        return self._watched(stream)

    def _watched(self, stream: Generator[streams.Batch]) -> Generator[streams.Batch]:
        """A stream that ends with a line where one of its workers was killed, as for want of memory."""
        with contextlib.closing(stream):
            try:
                yield from stream
            except RuntimeError as error:
                if not self.data.workers or isinstance(error, RunError):
                    raise
                raise RunError(
                    f"a worker that decodes photographs is lost ({error}); the newest good checkpoint is kept, and the "
                    f"same command goes on from it (fewer --data.workers take less memory)"
                ) from error


def make_feed(split: Split, mesh: jax.sharding.Mesh, data: configs.Data) -> Feed:
    """The feed of a split: photographs are streamed; arrays kept on every device where they take at most
    `data.resident_mb`, else on the host."""
    if isinstance(split, datasets.Photos):
        return PhotosFeed(split, mesh, data)
    return (ResidentFeed if is_resident(split, data) else ArraysFeed)(split, mesh)


def is_resident(split: Split, data: configs.Data) -> bool:
    """Whether all examples of a split are kept on the devices."""
    return isinstance(split, datasets.Arrays) and fits(split.image.nbytes + split.label.nbytes, data)


def fits(size: int, data: configs.Data) -> bool:
    """Whether arrays of so many bytes are kept on the devices."""
    return size <= data.resident_mb * 2**20


def evaluate_split(
    variables: dict[str, Any],
    feed: Feed,
    *,
    model: nn.Module,
    loss: metrics.Loss,
    preprocess: Preprocess,
    batch_size: int,
    keep_outputs: bool = False,
    by_class: bool = False,
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Metrics over exactly the examples of a split, as sums and counts, and if wanted the outputs [examples, classes],
    and the sums of each class.

    The last batch is padded and the padding masked; the number of examples counted is checked.
    """
    variables = meshes.on_mesh(variables, feed.mesh)  # a loaded run's are on one device
    count = meshes.batch_devices(feed.mesh)
    size = -(-min(batch_size, feed.length) // count) * count
    step = functools.partial(
        eval_step,
        model=model,
        loss=loss,
        preprocess=preprocess,
        layout=meshes.Layout(feed.mesh),
        by_class=by_class,
    )
    evaluate = feed.cached((size, by_class), lambda: feed.compile(step, variables, size, masked=True))
    results, masks = [], []
    for item, mask in feed.eval_batches(size):
        sums, outputs = evaluate(variables, item, mask=mask)
        results.append((sums, outputs if keep_outputs else None))
        masks.append(mask)
        if len(results) > 2:  # not all batches of a large set at once
            results[-3] = jax.device_get(results[-3])
    fetched = jax.device_get(results)
    total = metrics.add(sums for sums, _ in fetched)
    if total["count"] != feed.length:
        raise RunError(f"evaluation counted {total['count']:.0f} examples of {feed.length}")
    if not keep_outputs:
        return total, None
    return total, np.concatenate([outputs[mask] for (_, outputs), mask in zip(fetched, masks, strict=True)])
