"""The same float32 training on one device and on meshes of eight: the curves, drawn beside each other.

    python benchmarks/mesh_curves.py --cifar10 FOLDER --fashion-mnist FOLDER --picture docs/images/meshes.png

The eight devices are this machine's processor, eight times. What is asserted of meshes is asserted in float64
(tests/training/test_devices.py); this shows what float32's rounding makes of the same.
"""

import argparse
import dataclasses
import os
import pathlib
import time

os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import jax
import numpy as np

from cnnjax.analysis.pictures import new_figure
from cnnjax.training import Config, Data
from cnnjax.training import mesh as meshes
from cnnjax.training.feed import make_feed
from cnnjax.training.optimizer import make_optimizer
from cnnjax.training.setup import load_data, make_init, make_model, make_step, prepare
from cnnjax.training.step import Preprocess
from experiments import cifar_resnet20, geron_fashion

MESHES = {
    "one device": None,
    "data=8": {"data": 8},
    "fsdp=8": {"fsdp": 8},
    "space=8": {"space": 8},
    "data=4 space=2": {"data": 4, "space": 2},
    "data=2 fsdp=2 space=2": {"data": 2, "fsdp": 2, "space": 2},
}


def losses(config: Config, axes: dict[str, int] | None) -> np.ndarray:
    """The training loss of each step, as `cnnjax run` would make them."""
    mesh = meshes.make_mesh(8 if axes else 1, axes)
    splits, derived = prepare(config, load_data(config))
    model, optimizer = make_model(config, derived.num_classes), make_optimizer(config.optimizer, derived.steps)
    preprocess = Preprocess.of(config.data, derived.mean, derived.std, np.float32)
    init = make_init(config, model, optimizer, derived.image_shape)
    key = jax.random.key(config.train.seed)
    state = jax.jit(init, out_shardings=meshes.state_shardings(jax.eval_shape(init, key), mesh))(key)
    feed = make_feed(splits["train"], mesh, config.data)
    step = make_step(config, model, optimizer, preprocess, mesh)
    take = feed.compile_steps(step, state, config.train.batch_size, 1)
    found = []
    for item in feed.batches(0, derived.steps, config.train.batch_size, config.train.seed):
        state, sums = take(state, [item])
        found.append(sums["loss"] / sums["count"])
    return np.array(jax.device_get(found))


def shortened(config: Config, data: Data, steps: int) -> Config:
    """The first steps of an experiment, of few images, which load soon."""
    return dataclasses.replace(
        config, data=data, train=dataclasses.replace(config.train, steps=steps, epochs=None, batch_size=128)
    )


def draw(curves: dict[str, dict[str, np.ndarray]], path: pathlib.Path) -> None:
    """Losses above, their differences from one device's below, a column for each network."""
    figure, axes = new_figure(11, 7, 2, len(curves), left=0.08, right=0.98, bottom=0.08, top=0.94, wspace=0.2)
    for (name, by_mesh), above, below in zip(curves.items(), *axes, strict=True):
        one = by_mesh["one device"]
        steps = np.arange(1, len(one) + 1)
        # The widest line first, so that curves that coincide are all seen.
        widths = np.linspace(7, 1, len(by_mesh))
        for (mesh, found), width in zip(by_mesh.items(), widths, strict=True):
            (line,) = above.plot(steps, found, lw=width, label=mesh, solid_capstyle="round")
            if mesh != "one device":
                difference = np.maximum(np.abs(found - one), 1e-9)  # equal ones too on a logarithmic axis
                below.plot(steps, difference, lw=1.2, marker=".", ms=3, color=line.get_color(), label=mesh)
        above.set_title(name, fontsize=10)
        above.set_ylabel("training loss")
        above.legend(fontsize=8)
        below.set_yscale("log")
        below.set_ylabel("difference from one device")
        for axis in (above, below):
            axis.set_xlabel("step")
            axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", required=True, help="folder of CIFAR-10's original files")
    parser.add_argument("--fashion-mnist", required=True, help="likewise")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--picture", type=pathlib.Path, default=pathlib.Path("meshes.png"))
    arguments = parser.parse_args()
    resnet, geron = cifar_resnet20.CONFIG, geron_fashion.CONFIG
    configs = {
        "ResNet-20, batch norm, CIFAR-10": shortened(
            resnet, dataclasses.replace(resnet.data, raw_dir=arguments.cifar10), arguments.steps
        ),
        "Géron's network, dropout, Fashion-MNIST": shortened(
            geron, dataclasses.replace(geron.data, raw_dir=arguments.fashion_mnist), arguments.steps
        ),
    }
    curves: dict[str, dict[str, np.ndarray]] = {}
    for name, config in configs.items():
        curves[name] = {}
        for mesh, axes in MESHES.items():
            began = time.monotonic()
            curves[name][mesh] = losses(config, axes)
            apart = np.abs(curves[name][mesh] - curves[name]["one device"])
            print(
                f"{name}: {mesh}: last loss {curves[name][mesh][-1]:.6f}, apart from one device by at most"
                f" {apart[:5].max():.1e} in 5 steps, {apart.max():.1e} in {len(apart)}"
                f" ({time.monotonic() - began:.0f} s)",
                flush=True,
            )
    draw(curves, arguments.picture)
    print(arguments.picture)


if __name__ == "__main__":
    main()
