"""LeNet-5's training step on this machine: cnnjax against the same network written plainly in Flax.

    python benchmarks/lenet5.py

The peer is what a careful user writes without cnnjax: a Linen module, Optax, one jitted step with a donated state,
batches gathered by NumPy on the host. Both train on the same uint8 images with the same optimizer, and both compute
loss and accuracy at each step. cnnjax runs its whole loop body: order, gathering on the device, metrics, fetching them
every 50 steps. Rounds are interleaved in one process, so that a machine whose speed drifts slows both; the ratio of
each round is what counts.
"""

import argparse
import functools
import json
import platform
import statistics
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from plain_flax import LeNet5Modern as PlainLeNet5Modern

from cnnjax import models
from cnnjax.data import Arrays, batch_indices
from cnnjax.models.lenet import C3_INPUTS, CODES
from cnnjax.training import Optimizer, metrics
from cnnjax.training import mesh as meshes
from cnnjax.training.feed import ResidentFeed
from cnnjax.training.optimizer import make_optimizer
from cnnjax.training.setup import versions
from cnnjax.training.state import init_state
from cnnjax.training.step import Preprocess, train_step

MEAN, STD = 0.1 / 1.275, 1 / 1.275


class PlainLeNet5(nn.Module):
    """The network of 1998 as one would write it: masked C3, average pooling times a coefficient, distances."""

    @nn.compact
    def __call__(self, x):
        def squash(a):
            return 1.7159 * jnp.tanh(2 / 3 * a)

        def subsample(x, name):
            maps = x.shape[-1]
            coefficient = self.param(f"{name}_coefficient", nn.initializers.ones, (maps,))
            bias = self.param(f"{name}_bias", nn.initializers.zeros, (maps,))
            return squash(4 * nn.avg_pool(x, (2, 2), strides=(2, 2)) * coefficient + bias)

        x = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=-0.1)
        x = subsample(squash(nn.Conv(6, (5, 5), padding="VALID")(x)), "s2")
        mask = np.zeros((5, 5, 6, 16), np.float32)
        for output, inputs in enumerate(C3_INPUTS):
            mask[:, :, list(inputs), output] = 1
        x = subsample(squash(nn.Conv(16, (5, 5), padding="VALID", mask=jnp.asarray(mask))(x)), "s4")
        x = squash(nn.Conv(120, (5, 5), padding="VALID")(x)).reshape(len(x), -1)
        x = squash(nn.Dense(84)(x))
        return -jnp.square(x[:, None, :] - jnp.asarray(CODES, jnp.float32)).sum(-1)


def plain(module: nn.Module, images: np.ndarray, labels: np.ndarray, batch_size: int):
    """A function that trains for some steps and returns when they are done."""
    params = module.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
    tx = optax.sgd(0.01, momentum=0.9)
    held = [params, tx.init(params)]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, image, label):
        image = (image.astype(jnp.float32) / 255 - MEAN) / STD

        def objective(params):
            logits: Any = module.apply({"params": params}, image)
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean(), logits

        (loss, logits), gradients = jax.value_and_grad(objective, has_aux=True)(params)
        updates, opt_state = tx.update(gradients, opt_state, params)
        accuracy = (logits.argmax(-1) == label).mean()
        return optax.apply_updates(params, updates), opt_state, loss, accuracy

    order = np.random.default_rng(0).permutation(len(images))

    def train(steps: int) -> None:
        for i in range(steps):
            index = order[(i * batch_size) % (len(images) - batch_size) :][:batch_size]
            *held[:], loss, accuracy = step(*held, images[index], labels[index])
            if i % 50 == 49:
                float(loss), float(accuracy)
        jax.block_until_ready(held)

    return train


def ours(name: str, images: np.ndarray, labels: np.ndarray, batch_size: int):
    """The same with cnnjax's step and feed, as `training.loop` runs them."""
    model = models.create(name)
    optimizer = make_optimizer(Optimizer("sgd", learning_rate=0.01, momentum=0.9), 1)
    mesh = meshes.make_mesh(1)
    init = functools.partial(init_state, model=model, optimizer=optimizer, image_shape=(28, 28, 1))
    held = [jax.jit(init, out_shardings=meshes.replicated(mesh))(jax.random.key(0))]
    take_step = ResidentFeed(Arrays(images, labels), mesh).compile(
        functools.partial(
            train_step,
            model=model,
            optimizer=optimizer,
            loss=metrics.make_loss("cross_entropy", 0.0),
            preprocess=Preprocess((MEAN,), (STD,)),
        ),
        held[0],
        batch_size,
        donate=True,
    )

    def train(steps: int) -> None:
        window = []
        for i in range(steps):
            held[0], sums = take_step(held[0], batch_indices(len(images), batch_size, i, 0))
            window.append(sums)
            if len(window) > 2:
                window[-3]["loss"].block_until_ready()
            if i % 50 == 49:
                metrics.add(jax.device_get(window))
                window.clear()
        jax.block_until_ready(held)

    return train


def main() -> None:
    """Times both and prints the ratio of each round, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60_000, 28, 28, 1)).astype(np.uint8)
    labels = rng.integers(0, 10, 60_000).astype(np.int32)
    report = {"versions": versions(), "machine": platform.machine(), "device": jax.devices()[0].device_kind}
    for name, module in (("lenet5", PlainLeNet5()), ("lenet5_modern", PlainLeNet5Modern())):
        contestants = {
            "cnnjax": ours(name, images, labels, arguments.batch_size),
            "plain Flax": plain(module, images, labels, arguments.batch_size),
        }
        for train in contestants.values():
            train(20)  # compile and warm up
        rates: dict[str, list[float]] = {contestant: [] for contestant in contestants}
        for number in range(arguments.rounds):
            for contestant in sorted(contestants, reverse=number % 2 == 1):
                started = time.perf_counter()
                contestants[contestant](arguments.steps)
                seconds = time.perf_counter() - started
                rates[contestant].append(arguments.steps * arguments.batch_size / seconds)
        ratios = [a / b for a, b in zip(rates["cnnjax"], rates["plain Flax"], strict=True)]
        print(f"{name}, batch {arguments.batch_size}, {arguments.rounds} rounds of {arguments.steps} steps")
        for contestant, values in rates.items():
            print(f"  {contestant:11} {statistics.median(values):10,.0f} examples per second (median)")
        print(f"  ratio       {statistics.median(ratios):10.2f} (median; {min(ratios):.2f} to {max(ratios):.2f})")
        report[name] = {"examples_per_second": rates, "ratios": ratios, "median_ratio": statistics.median(ratios)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
