"""What training asks of a network and a loss, proved by abstract evaluation before the first step."""

import inspect
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.models import count_parameters
from cnnjax.models.fields import tracing
from cnnjax.models.layers import refuse_lone_values
from cnnjax.ops.errors import InputError
from cnnjax.ops.primitives import as_primitives
from cnnjax.training.config import Config
from cnnjax.training.metrics import Loss
from cnnjax.training.state import TrainState


def first_state(config: Config, model: nn.Module, init: Callable[[jax.Array], TrainState], key: Any) -> TrainState:
    """The state before the first step, as shapes.

    Args:
      config: of the run.
      model: its network.
      init: makes the state of a key.
      key: typed PRNG key.

    Raises:
      InputError: the network can't be initialised as training does it, its fields don't fit each other, or there is
        less memory than its parameters and the optimizer's state need.
    """
    if "train" not in (parameters := inspect.signature(type(model).__call__).parameters) and not any(
        p.kind is p.VAR_KEYWORD for p in parameters.values()
    ):
        raise InputError(
            f"model {config.model.name}: its __call__ takes no `train`; expected: __call__(self, x, *, train=False)"
        )
    with tracing(model, config.model.fields):
        state = _in_training(config, lambda: jax.eval_shape(init, key))
    needed, there = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)), memory(jax.devices())
    if needed > there:
        parameters = count_parameters(state.variables)
        raise InputError(
            f"model {config.model.name}: its {parameters:,} parameters and the optimizer's state "
            f"need {needed / 2**30:,.1f} GiB; allowed: less than the {there / 2**30:,.1f} GiB that there are"
        )
    return state


def memory(devices: Sequence[jax.Device]) -> float:
    """Bytes of memory of the devices together, infinity where they don't say. Those of a CPU share the machine's."""
    if devices[0].platform == "cpu":
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, OSError, ValueError):  # not on this system
            return math.inf
    limits = [(device.memory_stats() or {}).get("bytes_limit", math.inf) for device in jax.local_devices()]
    return sum(limits) / len(limits) * len(devices)


def check(
    config: Config,
    model: nn.Module,
    state: TrainState,
    losses: tuple[Loss, Loss],
    images: jax.ShapeDtypeStruct,
    labels: jax.ShapeDtypeStruct,
    classes: int,
) -> None:
    """Refuses a network or a loss that would fail, or be wrong in silence, in the first step or evaluation.

    Args:
      config: of the run.
      model: its network.
      state: as shapes.
      losses: of training and of evaluation.
      images: one preprocessed image, [height, width, channels].
      labels: one label.
      classes: how many classes there are; 0 where labels are targets, of which there is one for each output.

    Raises:
      InputError: the output is not one array [batch, classes] of floating-point numbers, or has too few columns; batch
        norm has one value a channel; the network needs collections or random numbers that training doesn't give; or
        the loss is not one number an example.
    """
    who = f"model {config.model.name}"
    part = config.train.batch_size // config.train.microbatches
    group = config.train.norm_batch or part  # what batch norm sees together
    columns = classes or max(1, labels.size)

    def in_training(variables, key, x):
        with nn.intercept_methods(refuse_lone_values):
            return model.apply(variables, x, train=True, rngs={"dropout": key}, mutable=["batch_stats", "aux_logits"])

    def in_evaluation(variables, x):
        return model.apply(variables, x, train=False)

    def many(one: jax.ShapeDtypeStruct, count: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *one.shape), one.dtype)

    with as_primitives():  # which are quick to trace
        outputs, updated = _in_training(
            config, lambda: jax.eval_shape(in_training, state.variables, state.key, many(images, group))
        )
        evaluated = _in_training(
            config,
            lambda: jax.eval_shape(in_evaluation, state.variables, many(images, config.run.eval_batch_size)),
        )
    exact = not classes
    # Most gradients of float16 underflow unless the loss is scaled, which nobody does here.
    halves = [leaf for leaf in jax.tree.leaves((state.params, outputs)) if getattr(leaf, "dtype", None) == jnp.float16]
    if halves or getattr(model, "dtype", None) == jnp.float16:
        raise InputError(f"{who}: it computes in float16; allowed: float32, or bfloat16, which needs no loss scaling")
    _check_output(f"{who}: its output", outputs, group, columns, exact)
    for logits in jax.tree.leaves(updated.get("aux_logits", {})):
        _check_output(f"{who}: what it sows in 'aux_logits'", logits, group, columns, exact)
    _check_output(f"{who}: its output", evaluated, config.run.eval_batch_size, columns, exact)
    for loss in losses:
        values = jax.eval_shape(
            loss, jax.ShapeDtypeStruct((part, *outputs.shape[1:]), outputs.dtype), many(labels, part)
        )
        if not _is_floats(values) or values.shape != (part,):
            raise InputError(
                f"train.loss: {config.train.loss!r} gives {_kind(values)} for {part} examples; expected: [{part}] "
                "floating-point numbers, one an example"
            )


_NOT_GIVEN = (
    flax.errors.InvalidRngError,
    flax.errors.ModifyScopeVariableError,
    flax.errors.ScopeCollectionNotFound,
    flax.errors.ScopeParamNotFoundError,
    flax.errors.ScopeVariableNotFoundError,
)


def _in_training(config: Config, call: Callable[[], Any]) -> Any:
    """What `call` gives; a network's need for what training doesn't give is an `InputError`."""
    try:
        return call()
    except _NOT_GIVEN as error:
        reason = str(error).splitlines()[0].split(" (https://")[0].rstrip(".")
        raise InputError(
            f"model {config.model.name}: {reason}; expected: a network with variables in 'params' and 'batch_stats' "
            "alone, the same in training and evaluation, that draws from 'dropout'"
        ) from error


def _check_output(what: str, output: Any, batch: int, columns: int, exact: bool) -> None:
    expected = f"[{batch}, {columns}{'' if exact else ' or more'}] floating-point numbers, a row for each image"
    rows_and_columns = _is_floats(output) and len(output.shape) == 2 and output.shape[0] == batch
    if not rows_and_columns or output.shape[1] < columns or (exact and output.shape[1] != columns):
        raise InputError(f"{what} is {_kind(output)} for {batch} images; expected: {expected}")


def _is_floats(value: Any) -> bool:
    return isinstance(value, jax.ShapeDtypeStruct) and jnp.issubdtype(value.dtype, jnp.floating)


def _kind(value: Any) -> str:
    """What a function returned, in words."""
    if isinstance(value, jax.ShapeDtypeStruct):
        return f"{list(value.shape)} {value.dtype}"
    return "None" if value is None else f"a {type(value).__name__}"
