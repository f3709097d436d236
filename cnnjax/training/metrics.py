"""Losses and metrics. Metrics are sums and counts, so that batches of any size and mask add up exactly."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnnjax.models import lenet
from cnnjax.ops.errors import unknown

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.0) -> jax.Array:
    """-sum_k q_k log softmax(logits)_k for each example, q being the smoothed one-hot label.

    Args:
      logits: [batch, classes].
      labels: [batch] class numbers.
      smoothing: weight spread over all classes alike (Szegedy et al. 2016, section 7).

    Returns:
      [batch] losses.
    """
    if smoothing:
        target = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), smoothing)
        return optax.softmax_cross_entropy(logits, target)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """The squared error of each example, averaged over its outputs.

    Args:
      outputs: [batch, outputs].
      targets: [batch] or [batch, outputs] real numbers (regression), or [batch] class numbers, taken as one-hot.

    Returns:
      [batch] losses.
    """
    if jnp.issubdtype(targets.dtype, jnp.integer):
        targets = jax.nn.one_hot(targets, outputs.shape[-1], dtype=outputs.dtype)
    return jnp.square(outputs - targets.reshape(outputs.shape).astype(outputs.dtype)).mean(-1)


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "squared_error": squared_error,
    "lenet5_map": lenet.map_loss,
    "lenet5_mse": lenet.mse_loss,
}


def probabilities(loss: str, outputs: np.ndarray) -> np.ndarray:
    """The probability of each class that a network's outputs stand for, by the loss that it was trained with.

    Losses of other names, which are a user's own, are taken for losses of logits.

    Args:
      loss: its name.
      outputs: [n, classes].

    Returns:
      float64 [n, classes]. Rows sum to 1, but for `lenet5_map` and `lenet5_mse`, where the rest is the probability of
      none of the classes, and `squared_error`.
    """
    return _PROBABILITIES.get(loss, _softmax)(np.asarray(outputs, np.float64))


def _softmax(logits: np.ndarray, more: Sequence[float] = ()) -> np.ndarray:
    """exp(logits) over its sum, to which exp of `more` is added."""
    extended = np.concatenate([logits, np.broadcast_to(np.asarray(more, np.float64), (len(logits), len(more)))], -1)
    exponentials = np.exp(extended - extended.max(-1, keepdims=True))
    return (exponentials / exponentials.sum(-1, keepdims=True))[:, : logits.shape[-1]]


_PROBABILITIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "cross_entropy": _softmax,
    # Least for the mean of the one-hot target, which is the probability of each class.
    "squared_error": lambda outputs: outputs.clip(0, 1),
    # Equation 9 of the paper: the outputs are -y_i, and none of the classes has the penalty j.
    "lenet5_map": lambda outputs: _softmax(outputs, [-lenet.NO_CLASS]),
    "lenet5_mse": lambda outputs: _softmax(outputs, [-lenet.NO_CLASS]),
}


WITH_NONE = ("lenet5_map", "lenet5_mse")
"""Losses by which an image may be none of the classes: what is missing from a sum of 1 is the probability of that."""


def make_loss(name: str, smoothing: float, class_weights: Sequence[float] | None = None) -> Loss:
    """The loss of that name, as a function of (outputs, labels) that gives one number an example.

    Args:
      name: one of `LOSSES`.
      smoothing: of the labels; 0 for none.
      class_weights: what the loss of an example of each class is multiplied by; nothing when None.

    Raises:
      InputError: there is no such loss, or it knows no label smoothing.
    """
    if name not in LOSSES:
        raise unknown("loss", name, LOSSES)
    if smoothing and name != "cross_entropy":
        raise unknown("loss with label smoothing", name, ["cross_entropy"])
    loss = functools.partial(cross_entropy, smoothing=smoothing) if smoothing else LOSSES[name]
    if class_weights is None:
        return loss

    def weighted(outputs: jax.Array, labels: jax.Array) -> jax.Array:
        losses = loss(outputs, labels)
        return losses * jnp.asarray(class_weights, losses.dtype)[labels]

    return weighted


def balanced(labels: np.ndarray, classes: int) -> tuple[float, ...]:
    """Weights by which classes of unequal size count alike: N / (K n_k) for the n_k of N examples that are of class k.

    K is the number of classes that there are examples of; those of none, which are never asked for, weigh 0.

    Args:
      labels: [n] class numbers.
      classes: how many there are.
    """
    counts = np.bincount(labels, minlength=classes)
    here = np.count_nonzero(counts)
    return tuple(float(len(labels) / (here * n)) if n else 0.0 for n in counts)


def sums(losses: jax.Array, outputs: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> dict[str, Any]:
    """Sums over the examples of a batch, those outside the mask left out.

    Args:
      losses: [batch].
      outputs: [batch, classes].
      labels: [batch] class numbers, or real targets.
      mask: [batch] booleans, True for examples that count.

    Returns:
      `loss` and `count`, and for class labels `correct` and `correct5`: how often the true class is the first, or among
      the first five. Equal logits count against the network, except that the lower class number wins, as in argmax.
    """
    weight = jnp.ones(losses.shape, bool) if mask is None else mask
    found = {"loss": jnp.where(weight, losses, 0).sum(), "count": weight.sum()}
    if jnp.issubdtype(labels.dtype, jnp.integer):
        true = jnp.take_along_axis(outputs, labels[:, None], -1)
        ahead = (outputs > true) | ((outputs == true) & (jnp.arange(outputs.shape[-1]) < labels[:, None]))
        # A NaN compares as False, which would put the true class first.
        valid = weight & ~jnp.isnan(outputs).any(-1)
        rank = ahead.sum(-1)
        found |= {"correct": (valid & (rank < 1)).sum(), "correct5": (valid & (rank < 5)).sum()}
    return found


def sums_by_class(outputs: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, Any]:
    """How many examples of each class there are in a batch, and how many of them are recognized.

    Args:
      outputs: [batch, classes].
      labels: [batch] class numbers.
      mask: [batch] booleans, True for examples that count.

    Returns:
      `class_count` and `class_correct`: [classes].
    """
    of = jax.nn.one_hot(labels, outputs.shape[-1], dtype=jnp.int32)
    right = mask & (outputs.argmax(-1) == labels) & ~jnp.isnan(outputs).any(-1)
    return {"class_count": (of * mask[:, None]).sum(0), "class_correct": (of * right[:, None]).sum(0)}


def add(batches: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums of several batches added up, on the host and in float64: a float, or an array, for each name."""
    total: dict[str, Any] = {}
    for batch in batches:
        for name, value in batch.items():
            array = np.asarray(value, np.float64)
            total[name] = total.get(name, 0.0) + (array if array.ndim else float(array))
    return total


def averages(total: Mapping[str, Any], classes: int) -> dict[str, float]:
    """What is reported of sums: `loss`, `accuracy`, and `top5` where there are more than five classes."""
    count = total["count"]
    found = {"loss": total["loss"] / count}
    if "correct" in total:
        found["accuracy"] = total["correct"] / count
        if classes > 5:
            found["top5"] = total["correct5"] / count
    return found
