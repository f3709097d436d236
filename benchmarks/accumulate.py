"""What working through a batch in parts costs: the training step in microbatches against the whole batch at once.

    python benchmarks/accumulate.py [--rounds N]

Networks without batch norm, whose parameters come out the same to rounding (tests/training/test_step.py). Prints
milliseconds a step, how many times as long as the whole batch it takes (interleaved, in one process), and the memory
that the compiler plans for temporary values.
"""

import argparse
import functools
import statistics
from typing import Any

import jax
import numpy as np
from timing import interleave, ratio

from cnnjax import models
from cnnjax.training import Optimizer, metrics
from cnnjax.training.optimizer import make_optimizer
from cnnjax.training.setup import versions
from cnnjax.training.state import init_state
from cnnjax.training.step import Preprocess, Update, train_step

NETWORKS = (("lenet5_modern", 512), ("convnetjs_cifar10", 512), ("cs231n_cifar10", 512), ("convnetjs_cifar10", 128))
PARTS = (1, 2, 4, 8)


def stepper(name: str, batch_size: int, parts: int = 1, **fields: Any):
    """A function that makes one training step, and the megabytes of temporary values that it was compiled to use.

    Args:
      name: of the network.
      batch_size: of random images.
      parts: microbatches.
      fields: of the network.
    """
    model = models.create(name, **fields)
    shape = models.ABOUT[name].input
    optimizer = make_optimizer(Optimizer("sgd", learning_rate=0.01, momentum=0.9), 1)
    rng = np.random.default_rng(0)
    batch = jax.device_put(
        {
            "image": rng.integers(0, 256, (batch_size, *shape)).astype(np.uint8),
            "label": rng.integers(0, 10, batch_size).astype(np.int32),
        }
    )
    init = functools.partial(init_state, model=model, optimizer=optimizer, image_shape=shape)
    held = [jax.jit(init)(jax.random.key(0))]
    step = functools.partial(
        train_step,
        model=model,
        optimizer=optimizer,
        loss=metrics.cross_entropy,
        preprocess=Preprocess((0.5,), (0.25,)),
        update=Update(microbatches=parts),
    )
    compiled = jax.jit(step, donate_argnums=0).lower(held[0], batch).compile()

    def take() -> None:
        held[0], _ = compiled(held[0], batch)
        jax.block_until_ready(held)

    memory = compiled.memory_analysis()
    return take, memory.temp_size_in_bytes / 2**20 if memory else float("nan")


def main() -> None:
    """Prints a table for the results' page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    print("\n| network | batch | microbatches | ms | times the whole batch | temporary MB |\n|---|---|---|---|---|---|")
    for name, batch_size in NETWORKS:
        steppers = {str(parts): stepper(name, batch_size, parts) for parts in PARTS}
        print_rows(f"| {name} | {batch_size}", steppers, arguments.rounds)


def print_rows(title: str, steppers: dict[str, Any], rounds: int) -> None:
    """Prints a row for each of some `stepper`s: its name, milliseconds, how many times the first's, and megabytes."""
    times = interleave({name: take for name, (take, _) in steppers.items()}, rounds, 0.5)
    first = next(iter(times.values()))
    for name, (_, memory) in steppers.items():
        milliseconds = statistics.median(times[name]) * 1000
        print(f"{title} | {name} | {milliseconds:.1f} | {ratio(times[name], first)} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
