"""Everything that training changes, in one value."""

import dataclasses
import hashlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnnjax.ops.errors import InputError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of a run after `step` updates."""

    step: jax.Array
    """int32 []: updates made."""
    params: Any
    """Trainable parameters, as `model.init` names them."""
    batch_stats: Any
    """Running statistics of batch norm; {} where there is none."""
    opt_state: optax.OptState
    key: jax.Array
    """Typed PRNG key. The randomness of a step is `fold_in(key, step)`, so that it resumes exactly."""
    ema: Any = dataclasses.field(default_factory=dict)
    """Moving average of `variables`; {} where none is kept."""

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params} | ({"batch_stats": self.batch_stats} if self.batch_stats else {})

    @property
    def evaluated(self) -> dict[str, Any]:
        """What is evaluated and loaded: the moving average, or the variables themselves where there is none."""
        return self.ema or self.variables


def init_state(
    key: jax.Array,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    average: bool = False,
) -> TrainState:
    """The state before the first step.

    Args:
      key: typed PRNG key.
      model: maps [batch, height, width, channels] to [batch, classes].
      optimizer: its state is made for the model's parameters.
      image_shape: (height, width, channels).
      average: keeps a moving average of parameters and statistics, which begins with them.
    """
    init_key, train_key = jax.random.split(key)
    variables = model.init(init_key, jnp.zeros((1, *image_shape)), train=False)
    if "params" not in variables:
        raise InputError(f"model: {type(model).__name__} has no parameters to train")
    params = variables["params"]
    state = TrainState(jnp.int32(0), params, variables.get("batch_stats", {}), optimizer.init(params), train_key)
    # Copied, as a step that is given the memory of a state can be given no array twice.
    return dataclasses.replace(state, ema=jax.tree.map(jnp.copy, state.variables)) if average else state


def fingerprint(state: TrainState) -> str:
    """sha256 over parameters, batch statistics, optimizer state and moving average: equal exactly when all bits are.

    The order is that of the sections named here, and inside each of the leaves' key paths sorted as strings. Each leaf
    contributes its path, dtype and shape as text and then its bytes, C-ordered and little-endian.
    """
    hasher = hashlib.sha256()
    for section in ("params", "batch_stats", "opt_state", "ema"):
        leaves = jax.tree_util.tree_flatten_with_path(getattr(state, section))[0]
        for path, leaf in sorted((jax.tree_util.keystr(path), leaf) for path, leaf in leaves):
            array = np.asarray(jax.device_get(leaf))
            hasher.update(f"{section}{path}:{array.dtype}:{array.shape};".encode())
            hasher.update(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).tobytes())
    return hasher.hexdigest()
