"""One update, one evaluation: pure functions, compiled by whoever calls them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cnnjax.data import augment
from cnnjax.models.layers import refuse_lone_values
from cnnjax.training import mesh as meshes
from cnnjax.training import metrics
from cnnjax.training.config import Data, Train
from cnnjax.training.state import TrainState

Batch = dict[
    str, jax.Array
]  # "image" uint8 [batch, height, width, channels], "label" [batch, ...], "mask" bool [batch]


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """From the bytes of a batch to what the network sees: (pixel / 255 - mean) / std, and augmentation in training."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    shift: int = 0
    pad_crop: int = 0
    flip: bool = False
    dtype: Any = jnp.float32

    @classmethod
    def of(cls, data: Data, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any) -> "Preprocess":
        """The preprocessing that a configuration asks for, with the channels' statistics filled in."""
        return cls(mean, std, data.shift, data.pad_crop, data.flip, dtype)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Of an evaluation: uint8 [batch, height, width, channels] to real numbers of the same shape."""
        return augment.normalize(images, self.mean, self.std, self.dtype)

    def augmented(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Of training: moved, mirrored and cropped at random, as far as configured."""
        shift_key, crop_key, flip_key = jax.random.split(key, 3)
        if self.shift:
            images = augment.random_shift(shift_key, images, self.shift, 0)
        images = self(images)
        if self.pad_crop:
            images = augment.pad_crop(crop_key, images, self.pad_crop)
        if self.flip:
            images = augment.random_flip(flip_key, images)
        return images


AUXILIARY_WEIGHT = 0.3
"""What the loss of each auxiliary head counts, whose logits a network sows in "aux_logits" (Szegedy et al. 2014,
section 5)."""


@dataclasses.dataclass(frozen=True)
class Update:
    """How a batch becomes an update, besides the model, the loss and the optimizer."""

    microbatches: int = 1
    """Parts that the batch is worked through in, one after the other."""
    norm_batch: int | None = None
    """Images whose statistics batch norm takes together; all of the (micro)batch when None."""
    ema: float | None = None
    """Decay of the moving average of parameters and statistics; there is none when None."""
    layout: meshes.Layout = meshes.ANYWHERE
    """Where values live on a mesh of devices."""

    @classmethod
    def of(cls, train: Train, mesh: jax.sharding.Mesh) -> "Update":
        """The update that a configuration asks for."""
        return cls(train.microbatches, train.norm_batch, train.ema, meshes.Layout(mesh))


PLAIN = Update()
"""The whole batch at once, and nothing besides."""


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    loss: metrics.Loss,
    preprocess: Preprocess,
    update: Update = PLAIN,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update: the new state, and the batch's metrics as sums and counts.

    Args:
      state: the state before it.
      batch: `image` uint8 [batch, height, width, channels] and `label` [batch].
      model: applied with `train=True`; its batch statistics are those of the whole batch, over all devices, unless
        `update` divides it. What it sows in "aux_logits" adds to the loss, by `AUXILIARY_WEIGHT` each.
      optimizer: made for this model's parameters.
      loss: one number an example, averaged over the batch.
      preprocess: what turns bytes into the network's input.
      update: microbatches, groups of batch norm, moving average, devices.
    """
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    images = preprocess.augmented(augment_key, batch["image"])

    def apply(variables, key, images):
        rngs = {"dropout": key}
        with nn.intercept_methods(refuse_lone_values):
            return model.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats", "aux_logits"])

    def objective(params, batch_stats, key, images, labels):
        images = update.layout.images(images)
        groups = 1 if update.norm_batch is None else len(images) // update.norm_batch
        variables = dataclasses.replace(state, params=params, batch_stats=batch_stats).variables
        outputs, updated = (apply if groups == 1 else in_groups(apply, groups))(variables, key, images)
        losses = loss(outputs, labels)
        total = losses.mean()
        for logits in jax.tree.leaves(updated.get("aux_logits", {})):
            total += AUXILIARY_WEIGHT * loss(logits, labels).mean()
        # Flax makes running statistics float32 and updates them in float64 where the images are.
        after = jax.tree.map(lambda new, old: new.astype(old.dtype), updated.get("batch_stats", {}), batch_stats)
        return total, (losses, outputs, after)

    gradients_of = jax.grad(objective, has_aux=True)
    if update.microbatches > 1:
        gradients_of = accumulated(gradients_of, update.microbatches)
    gradients, (losses, outputs, batch_stats) = gradients_of(
        update.layout.gather(state.params), state.batch_stats, dropout_key, images, batch["label"]
    )
    updates, opt_state = optimizer.update(update.layout.scatter(gradients), state.opt_state, state.params)
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    if update.ema is not None:
        state = dataclasses.replace(state, ema=moving_average(state.ema, state.variables, state.step, update.ema))
    return state, metrics.sums(losses, outputs, batch["label"])


def in_groups(apply: Callable, groups: int) -> Callable:
    """Applies a network to groups of neighbouring images, each with its own batch statistics.

    "Ghost" batch norm (Hoffer et al. 2017, algorithm 1); where a group is a device's part of the batch it is batch norm
    without communication. The running statistics follow the mean of the groups'.

    Args:
      apply: of (variables, key, images [batch, ...]); gives the outputs [batch, ...] and updated collections.
      groups: how many; they divide the batch.
    """

    def grouped(variables, key, images):
        parts = images.reshape(groups, -1, *images.shape[1:])
        outputs, updated = jax.vmap(apply, (None, 0, 0))(variables, jax.random.split(key, groups), parts)
        merge = lambda x: x.reshape(-1, *x.shape[2:])
        merged = {name: jax.tree.map(merge, values) for name, values in updated.items() if name != "batch_stats"}
        statistics = jax.tree.map(lambda x: x.mean(0), updated.get("batch_stats", {}))
        return merge(outputs), merged | {"batch_stats": statistics}

    return grouped


def accumulated(gradients_of: Callable, parts: int) -> Callable:
    """The same gradients from parts of the batch, one after the other: the memory of a part, the time of the whole.

    A part has every `parts`-th image, so that each device has its share of every part. Batch norm sees a part at a
    time, and its running statistics move on with each.

    Args:
      gradients_of: of (params, batch_stats, key, images, labels), as `jax.grad` with an auxiliary output (losses,
        outputs, batch_stats) makes it.
      parts: how many; they divide the batch.
    """

    def split(x):  # [batch, ...] to [parts, batch / parts, ...]
        return jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)

    def join(x):
        return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])

    def gradients(params, batch_stats, key, images, labels):
        def add_part(carry, part):
            total, batch_stats = carry
            number, images, labels = part
            found, (losses, outputs, batch_stats) = gradients_of(
                params, batch_stats, jax.random.fold_in(key, number), images, labels
            )
            return (jax.tree.map(jnp.add, total, found), batch_stats), (losses, outputs)

        nothing = jax.tree.map(jnp.zeros_like, params)
        (total, batch_stats), (losses, outputs) = jax.lax.scan(
            add_part, (nothing, batch_stats), (jnp.arange(parts), split(images), split(labels))
        )
        return jax.tree.map(lambda x: x / parts, total), (join(losses), join(outputs), batch_stats)

    return gradients


def moving_average(average: Any, values: Any, step: jax.Array, decay: float) -> Any:
    """`decay * average + (1 - decay) * values`, with a smaller decay in the first steps, which are soon forgotten.

    Args:
      average: the one so far.
      values: of the same structure.
      step: int32 [], updates made, from 1: the decay is at most (1 + step) / (10 + step).
      decay: between 0 and 1.
    """
    weight = jnp.maximum(1 - decay, 9 / (10 + step))  # which is 1 - (1 + step) / (10 + step)
    return jax.tree.map(lambda old, new: old + weight.astype(old.dtype) * (new - old), average, values)


def repeated(step: Callable) -> Callable:
    """Several steps in one call, for accelerators that wait for the host between short steps.

    Args:
      step: of (state, batch), giving the new state and a dictionary of scalars.

    Returns:
      A function of (state, batches, count): the leaves of `batches` have a leading axis, and the first `count` are
      used. It gives the new state and the scalars as arrays [calls], those beyond `count` being 0.
    """

    def many(state, batches, count):
        pick = lambda i: jax.tree.map(lambda x: x[i], batches)
        calls = len(jax.tree.leaves(batches)[0])
        kinds = jax.eval_shape(step, state, pick(0))[1]
        nothing = jax.tree.map(lambda kind: jnp.zeros((calls, *kind.shape), kind.dtype), kinds)

        def one(i, carry):
            state, rows = carry
            state, values = step(state, pick(i))
            return state, jax.tree.map(lambda row, value: row.at[i].set(value), rows, values)

        return jax.lax.fori_loop(0, count, one, (state, nothing))

    return many


def eval_step(
    variables: dict[str, Any],
    batch: Batch,
    *,
    model: nn.Module,
    loss: metrics.Loss,
    preprocess: Preprocess,
    layout: meshes.Layout = meshes.ANYWHERE,
    by_class: bool = False,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Metrics of a batch as sums and counts over the examples in `mask`, and the outputs [batch, classes].

    With `by_class` the sums of each class are among them (`metrics.sums_by_class`).
    """
    images = layout.images(preprocess(batch["image"]))
    outputs: Any = model.apply(layout.gather(variables), images, train=False)
    sums = metrics.sums(loss(outputs, batch["label"]), outputs, batch["label"], batch["mask"])
    if by_class:
        sums |= metrics.sums_by_class(outputs, batch["label"], batch["mask"])
    return sums, outputs


def from_resident(step: Callable) -> Callable:
    """The same step for data that lives on the device: it takes the arrays and an index in place of a batch.

    Args:
      step: a function of (state, batch).

    Returns:
      A function of (state, arrays, index), plus what else of the batch comes from the host, such as a mask.
    """

    def resident_step(state, arrays, index, **rest):
        return step(state, {name: array[index] for name, array in arrays.items()} | rest)

    return resident_step
