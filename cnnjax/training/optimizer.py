"""Optax optimizers and learning-rate schedules by configuration."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cnnjax.ops.errors import unknown
from cnnjax.training.config import Optimizer

_NO_WEIGHTS = ("bias", "scale", "beta", "gamma", "offset")
"""What biases and the parameters of norms are called, in Flax ("bias", "scale") and elsewhere."""


def is_weight(params: Any) -> Any:
    """True for every leaf that weight decay applies to: kernels, and what else multiplies inputs.

    Biases and the parameters of norms are known by their names, whatever their rank: those of a locally connected layer
    have one value a position, those of a norm over several axes one a place. Vectors and single numbers, such as
    LeNet-5's coefficients, are no weights either.
    """

    def multiplies_inputs(path: tuple[Any, ...], leaf: Any) -> bool:
        names = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        last = names[-1].rpartition("/")[-1] if names else ""  # Flax's WeightNorm has "layer/kernel/scale"
        return jnp.ndim(leaf) > 1 and last not in _NO_WEIGHTS

    return jax.tree.map_with_path(multiplies_inputs, params)


# Each is a function of the learning rate (a number or a schedule) and the configuration.
OPTIMIZERS: dict[str, Callable[[Any, Optimizer], optax.GradientTransformation]] = {
    "sgd": lambda rate, o: optax.sgd(rate, momentum=o.momentum or None, nesterov=o.nesterov),
    "adam": lambda rate, o: optax.adam(rate),
    "adamw": lambda rate, o: optax.adamw(rate, weight_decay=o.weight_decay, mask=is_weight),
    "nadam": lambda rate, o: optax.nadam(rate),
    # The defaults of ConvNetJS, whose networks were published with it.
    "adadelta": lambda rate, o: optax.adadelta(rate, rho=0.95, eps=1e-8),
    "rmsprop": lambda rate, o: optax.rmsprop(rate, momentum=o.momentum or None),
    "adagrad": lambda rate, o: optax.adagrad(rate),
    "lamb": lambda rate, o: optax.lamb(rate, weight_decay=o.weight_decay, mask=is_weight),
    "lars": lambda rate, o: optax.lars(rate, trust_ratio_mask=is_weight, momentum=o.momentum),
    "lion": lambda rate, o: optax.lion(rate, weight_decay=o.weight_decay, mask=is_weight),
}
_DECOUPLED = {"adamw", "lamb", "lion"}  # these apply weight decay themselves


def schedule(config: Optimizer, steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, for a run of `steps` updates."""
    warmup = round(config.warmup * steps)
    rate, rest = config.learning_rate, max(1, steps - warmup)
    match config.schedule:
        case "constant":
            course = optax.constant_schedule(rate)
        case "cosine":
            course = optax.cosine_decay_schedule(rate, rest)
        case "linear":
            course = optax.linear_schedule(rate, 0.0, rest)
        case "steps":
            count = len(config.milestones)
            factors = config.factors * count if len(config.factors) == 1 else config.factors
            # Milestones are fractions of the whole run, and `course` starts after the warm-up.
            at = [round(milestone * steps) - warmup for milestone in config.milestones]
            at_step: dict[int, float] = {}
            for step, factor in zip(at, factors, strict=True):  # two may fall on one step of a short run
                at_step[step] = at_step.get(step, 1.0) * factor
            course = optax.piecewise_constant_schedule(rate, at_step)
    if warmup == 0:
        return course
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), course], [warmup])


def make_optimizer(config: Optimizer, steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `steps` updates: clipping, weight decay, the method itself, the schedule.

    Raises:
      InputError: the name is not one of `OPTIMIZERS`.
    """
    if config.name not in OPTIMIZERS:
        raise unknown("optimizer", config.name, OPTIMIZERS)
    parts = []
    if config.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    if config.weight_decay and config.name not in _DECOUPLED:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=is_weight))
    parts.append(OPTIMIZERS[config.name](schedule(config, steps), config))
    return optax.chain(*parts)
