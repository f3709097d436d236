"""One update, one evaluation: pure functions, compiled by whoever calls them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cnnjax.data import augment
from cnnjax.training import metrics
from cnnjax.training.config import Data
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


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    loss: metrics.Loss,
    preprocess: Preprocess,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update: the new state, and the batch's metrics as sums and counts.

    Args:
      state: the state before it.
      batch: `image` uint8 [batch, height, width, channels] and `label` [batch].
      model: applied with `train=True`; its batch statistics are those of the whole batch, over all devices. What it
        sows in "aux_logits" adds to the loss, by `AUXILIARY_WEIGHT` each.
      optimizer: made for this model's parameters.
      loss: one number an example, averaged over the batch.
      preprocess: what turns bytes into the network's input.
    """
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    images = preprocess.augmented(augment_key, batch["image"])

    def objective(params):
        variables = dataclasses.replace(state, params=params).variables
        outputs, updated = model.apply(
            variables, images, train=True, rngs={"dropout": dropout_key}, mutable=["batch_stats", "aux_logits"]
        )
        losses = loss(outputs, batch["label"])
        total = losses.mean()
        for logits in jax.tree.leaves(updated.get("aux_logits", {})):
            total += AUXILIARY_WEIGHT * loss(logits, batch["label"]).mean()
        return total, (losses, outputs, updated.get("batch_stats", {}))

    gradients, (losses, outputs, batch_stats) = jax.grad(objective, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        # Flax makes running statistics float32 and updates them in float64 where the images are.
        batch_stats=jax.tree.map(lambda new, old: new.astype(old.dtype), batch_stats, state.batch_stats),
        opt_state=opt_state,
    )
    return state, metrics.sums(losses, outputs, batch["label"])


def eval_step(
    variables: dict[str, Any], batch: Batch, *, model: nn.Module, loss: metrics.Loss, preprocess: Preprocess
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Metrics of a batch as sums and counts over the examples in `mask`, and the outputs [batch, classes]."""
    outputs: Any = model.apply(variables, preprocess(batch["image"]), train=False)
    return metrics.sums(loss(outputs, batch["label"]), outputs, batch["label"], batch["mask"]), outputs


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
