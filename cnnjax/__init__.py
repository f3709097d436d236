"""cnnjax: published convolutional networks in JAX and Flax, as pure functions, proved and reproducible.

cnnjax.ops       convolution and pooling, array in, array out
cnnjax.models    published networks: `models.names()`, `models.create(name, **fields)`
cnnjax.data      data sets, augmentation, the order of examples
cnnjax.training  configuration, loop, checkpoints
cnnjax.load      a run, to predict with: its network, parameters and preprocessing
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from cnnjax import releases, start

__version__ = "0.1.0"
__all__ = ["analysis", "data", "load", "models", "ops", "training"]

# Before a backend exists, whichever part is used first.
if (_line := releases.set_flags(os.environ, releases.installed(), releases.backend_exists())) is not None:
    print(f"cnnjax: warning: {_line}", file=sys.stderr)
if "jax" not in sys.modules:  # which reads JAX_PLATFORMS as it is imported
    start.look_for_no_tpu()

if TYPE_CHECKING:
    from cnnjax import analysis, data, models, ops, training
    from cnnjax.training import load


def __getattr__(name: str) -> Any:
    """Parts are imported when they are first used, so that `import cnnjax` costs nothing."""
    if name == "load":
        return importlib.import_module("cnnjax.training").load
    if name in __all__:
        return importlib.import_module(f"cnnjax.{name}")
    raise AttributeError(f"module 'cnnjax' has no attribute {name!r}")
