"""The first losses of two networks in float32 on one device and, sharing the work in several ways, on eight.

    python benchmarks/mesh_curves.py --raw-dir FOLDER [--steps 40] [--out docs/images/mesh_curves.png]
    python benchmarks/mesh_curves.py --losses FILE [--out ...]

FOLDER has `cifar10_jpeg` and `fashion_mnist`. The recipes are those of `experiments`, in batches of 128: ResNet-20 with
batch norm, crops and mirroring on CIFAR-10, and Géron's network with dropout on Fashion-MNIST. The devices are virtual
ones of the CPU. Draws the losses, and below them how far each mesh's are from one device's; prints them as one line of
JSON, from which `--losses` draws again.

Nothing is asserted here: training multiplies differences of rounding. That a mesh computes the same is asserted where
rounding is 1e-16 (tests/training/test_devices.py).
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")  # before jax is first imported

import jax
import numpy as np
from matplotlib.figure import Figure

from cnnjax.training import Config, feed, setup
from cnnjax.training import mesh as meshes
from cnnjax.training.optimizer import make_optimizer
from cnnjax.training.step import Preprocess
from experiments import cifar_resnet20, geron_fashion

MESHES: dict[str, dict[str, int]] = {
    "one device": {},
    "data=8": {"data": 8},
    "fsdp=8": {"fsdp": 8},
    "space=8": {"space": 8},
    "data=4 space=2": {"data": 4, "space": 2},
    "data=2 fsdp=2 space=2": {"data": 2, "fsdp": 2, "space": 2},
}
NETWORKS = {
    "ResNet-20, CIFAR-10": (cifar_resnet20.CONFIG, "cifar10_jpeg"),
    "Géron's network with dropout, Fashion-MNIST": (geron_fashion.CONFIG, "fashion_mnist"),
}
COLOURS = ("#333333", "#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756")


def losses(config: Config, splits: dict[str, Any], derived: setup.Derived, axes: dict[str, int], steps: int):
    """The loss of each of the first steps on one mesh.

    Args:
      config: of the run.
      splits: as `setup.prepare` gives them, with `derived`.
      derived: what the configuration leaves to the data.
      axes: of the mesh, over all devices; {} for one device.
      steps: how many.
    """
    mesh = meshes.make_mesh(None if axes else 1, axes)
    model = setup.make_model(config, derived.num_classes)
    optimizer = make_optimizer(config.optimizer, derived.steps)
    init = setup.make_init(config, model, optimizer, derived.image_shape)
    key = jax.random.key(config.train.seed)
    placement = meshes.state_shardings(jax.eval_shape(init, key), mesh)
    state = jax.jit(init, out_shardings=placement)(key)
    preprocess = Preprocess.of(config.data, derived.mean, derived.std, np.float32)
    examples = feed.ArraysFeed(splits["train"], mesh)
    step = setup.make_step(config, model, optimizer, preprocess, mesh)
    take = examples.compile(step, state, config.train.batch_size, donate=True)
    found = []
    for index in examples.batches(0, steps, config.train.batch_size, config.train.seed):
        state, sums = take(state, index)
        found.append(float(sums["loss"] / sums["count"]))
    return found


def measure(raw_dir: pathlib.Path, steps: int) -> dict[str, dict[str, list[float]]]:
    """By network and mesh, the losses."""
    found: dict[str, dict[str, list[float]]] = {}
    for title, (config, folder) in NETWORKS.items():
        config = dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, raw_dir=str(raw_dir / folder)),
            train=dataclasses.replace(config.train, batch_size=128),
        )
        splits, derived = setup.prepare(config, setup.load_data(config))
        found[title] = {}
        for name, axes in MESHES.items():
            found[title][name] = losses(config, splits, derived, axes, steps)
            print(f"{title}, {name}: {found[title][name][-1]:.6f}", file=sys.stderr, flush=True)
    return found


def draw(found: dict[str, dict[str, list[float]]], path: pathlib.Path) -> None:
    """Draws the losses of each network above, and their distances from one device's below."""
    width = 5.5 * len(found)
    room = {"left": 0.75 / width, "right": 1 - 0.2 / width, "bottom": 0.09, "top": 0.88, "wspace": 0.22, "hspace": 0.12}
    figure = Figure(figsize=(width, 6.4))
    axes = figure.subplots(2, len(found), squeeze=False, sharex="col", gridspec_kw=room | {"height_ratios": (3, 2)})
    for (above, below), (title, curves) in zip(axes.T, found.items(), strict=True):
        one = np.array(curves["one device"])
        steps = np.arange(1, len(one) + 1)
        for colour, (name, values) in zip(COLOURS, curves.items(), strict=True):
            # The later, the thinner: what lies on top of each other is seen all the same.
            above.plot(steps, values, lw=6.5 - len(above.lines), color=colour, label=name)
            if name != "one device":
                distance = np.abs(np.array(values) - one)
                below.plot(steps, np.where(distance > 0, distance, np.nan), "o-", ms=2.5, lw=1, color=colour)
        above.set_title(title, fontsize=10)
        below.set_yscale("log")
        below.set_xlabel("step")
        for axis, label in ((above, "loss"), (below, "distance from one device")):
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper center", ncols=len(MESHES), fontsize=9)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Trains, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--raw-dir", type=pathlib.Path)
    source.add_argument("--losses", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/images/mesh_curves.png"))
    arguments = parser.parse_args()
    if arguments.losses:
        found = json.loads(arguments.losses.read_text())
    else:
        found = measure(arguments.raw_dir, arguments.steps)
        print(json.dumps(found))
    draw(found, arguments.out)


if __name__ == "__main__":
    main()
