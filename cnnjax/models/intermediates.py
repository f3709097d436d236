"""What a network computes on the way, by the names of its parts, without changing it."""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.core.scope import DenyList
from flax.traverse_util import flatten_dict

from cnnjax.ops.errors import unknown


def features(
    model: nn.Module,
    variables: Mapping[str, Any],
    x: jax.Array,
    names: str | Iterable[str] | None = None,
    *,
    train: bool = False,
    rngs: Any = None,
) -> dict[str, Any]:
    """The outputs of parts of a network: of its modules, and of what else it sows.

    Of cnnjax's networks that is "stage1", "stage2" and so on in AlexNet, ZFNet, VGG and the stacks, up to a pooling
    each and with it; "stem", "last_map" and "pooled" in the ResNets and DenseNets; "pooled" in GoogLeNet.

    For instance `features(model, variables, images, ["stage2_block1", "stage2_block1/conv1"])`. Inside `jax.jit`
    nothing is computed that these do not need.

    Args:
      model: any Flax module that maps x to something and takes a keyword `train`.
      variables: those of `model`.
      x: [batch, height, width, channels].
      names: of parts, one or several: modules as they stand in the variables, levels separated by "/". None for all.
      train: what `model` is called with; what it changes then, such as batch statistics, is dropped.
      rngs: keys for dropout and the like, which training needs.

    Returns:
      Each name with its output; with a list of outputs if the part was called several times.

    Raises:
      InputError: the network has no part of a name; the nearest is suggested.
    """
    kept = DenyList("params")  # what training changes beside, such as statistics, is taken and dropped
    _, collections = model.apply(variables, x, train=train, rngs=rngs, capture_intermediates=True, mutable=kept)
    outputs: dict[str, Any] = {}
    for path, value in flatten_dict(collections["intermediates"]).items():
        name = "/".join(path[:-1] if path[-1] == "__call__" else path)
        if name:  # the whole network has none
            outputs[name] = list(value) if len(value) > 1 else value[0]
    if names is None:
        return outputs
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in outputs:
            raise unknown("part of the network", name, outputs)
    return {name: outputs[name] for name in names}
