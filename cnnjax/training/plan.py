"""What a training step needs on TPUs, from the TPU compiler, which needs no TPU.

`lower_step` and `measure` compile the step that a run would make, for chips that are not there, in a process of its own
(`in_child`): libtpu reads its environment when it is loaded, and a crash of it ends the process. `bounds` sets what the
compiler says against what the chips can do.
"""

import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax import data as datasets
from cnnjax.analysis.summary import summarize
from cnnjax.models.fields import tracing
from cnnjax.ops.auto import compiling_for
from cnnjax.ops.errors import InputError
from cnnjax.training import ambient, feed
from cnnjax.training import config as configs
from cnnjax.training import mesh as meshes
from cnnjax.training.collectives import collectives
from cnnjax.training.config import Config
from cnnjax.training.errors import RunError
from cnnjax.training.optimizer import make_optimizer
from cnnjax.training.setup import amount, make_init, make_model, make_step
from cnnjax.training.step import Preprocess


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of a TPU chip."""

    name: str
    flops: float
    """bfloat16 operations a second."""
    memory: float
    """Bytes of HBM."""
    bandwidth: float
    """Bytes a second between HBM and the cores."""
    links: float
    """Bytes a second to other chips, over all links, one way. A slice that is no torus does not use all of them."""
    accelerator: str
    """How its slices are called: TPU_ACCELERATOR_TYPE, with the number of `cores`."""
    cores: int
    """TensorCores of a chip."""
    devices: int = 1
    """JAX's devices in a chip: equal parts of all of it."""
    layout: str | None = None
    """What the compiler calls that, where it would by itself take each core for a device."""


CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * 2**30, 1200e9, 300e9, "v4", 2, layout="megacore"),
    "v5e": Chip("TPU v5e", 197e12, 16 * 2**30, 819e9, 200e9, "v5litepod", 1),
    "v5p": Chip("TPU v5p", 459e12, 95 * 2**30, 2765e9, 600e9, "v5p", 2),
    "v6e": Chip("TPU v6e", 918e12, 32 * 2**30, 1640e9, 400e9, "v6e", 1),
    "tpu7x": Chip("TPU7x", 2307e12, 192 * 2**30, 7380e9, 600e9, "tpu7x", 2, devices=2),
}
"""From Google's pages, docs.cloud.google.com/tpu/docs/v6e (of editions with v5e beside it), .../v5p, .../v4 and
.../tpu7x (Ironwood), read in November 2026. They give the links of a chip in both directions together: 400, 1200, 800
and 1200 GB/s of v5e, v5p, v6e and tpu7x. v4's, six of 50 GB/s one way, are in Jouppi et al. 2023 (ISCA)."""


@dataclasses.dataclass(frozen=True)
class Images:
    """What a training step must know of a data set."""

    shape: tuple[int, ...] | None
    """Height, width and channels; None where they are of many sizes."""
    classes: int
    examples: int | None = None
    """Training images, those held out for validation included, where they are known."""
    validated: bool = False
    """Whether the set has validation images of its own, so that none are held out."""


IMAGES = {
    "digits": Images((8, 8, 1), 10, 1437),
    "mnist": Images((28, 28, 1), 10, 60_000),
    "fashion_mnist": Images((28, 28, 1), 10, 60_000),
    "cifar10": Images((32, 32, 3), 10, 50_000),
    "tfds:imagenet2012": Images(None, 1000, 1_281_167, validated=True),
}
"""Sets that need not be read to know them."""


def chip_of(topology: str) -> tuple[Chip, int]:
    """The chip and how many there are: of "v5e:4x4", TPU v5e and 16.

    Raises:
      InputError: it is no such text, or the chip is not known.
    """
    kind, _, shape = topology.partition(":")
    sizes = shape.split("x")
    if (
        kind not in CHIPS
        or len(sizes) not in (2, 3)
        or not all(re.fullmatch("0*[1-9][0-9]{0,5}", size) for size in sizes)
    ):
        raise InputError(
            f"topology: received {topology!r}, allowed: CHIP:AxB or CHIP:AxBxC, such as v5e:4x4, with a chip of "
            f"{', '.join(CHIPS)}"
        )
    return CHIPS[kind], math.prod(int(size) for size in sizes)


def lower_step(config: Config, images: Images, devices: Sequence[Any]) -> jax.stages.Lowered:
    """The training step of a configuration, traced for a mesh of devices that need not be here.

    It is what a run compiles, to the letter where the data's statistics are given: with the data among its arguments
    where a run would keep them on the devices.

    Args:
      config: with the batch over all devices.
      images: those of the data set, of one shape.
      devices: those of the mesh.
    """
    image_shape, classes = images.shape, images.classes
    assert image_shape is not None
    mesh = meshes.make_mesh(None, config.run.mesh, among=devices)
    meshes.check_batch(config.train.batch_size, mesh, config.train.microbatches)
    model = make_model(config, classes)
    examples = held_in(config, images)
    steps = configs.total_steps(config, examples) if examples else config.train.steps or 1000
    optimizer = make_optimizer(config.optimizer, steps)
    init = make_init(config, model, optimizer, image_shape)
    channels = (0.5,) * image_shape[-1]
    mean, std = config.data.mean or channels, config.data.std or channels
    preprocess = Preprocess.of(config.data, mean, std, jnp.dtype(config.train.dtype))
    class_weights = None if config.train.class_weights == "equal" else (1.0,) * classes
    step = make_step(config, model, optimizer, preprocess, mesh, class_weights)
    with compiling_for(devices[0].platform), ambient.pinned(double=config.train.dtype == "float64"):
        with tracing(model, config.model.fields):
            shapes = jax.eval_shape(init, ambient.key(0))
        placement = meshes.state_shardings(shapes, mesh)
        place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
        state, size = jax.tree.map(place, shapes, placement), config.train.batch_size
        numbers = config.train.loss == "squared_error" and examples is None  # the known sets all have classes
        label = ((classes,), np.float32) if numbers else ((), np.int32)
        example = {"image": jax.ShapeDtypeStruct(image_shape, np.uint8), "label": jax.ShapeDtypeStruct(*label)}
        arrays = {
            name: jax.ShapeDtypeStruct((examples or 0, *kind.shape), kind.dtype) for name, kind in example.items()
        }
        streamed = examples is None or config.data.crop is not None
        if streamed or not feed.fits(sum(array.size * array.dtype.itemsize for array in arrays.values()), config.data):
            return feed.lower_sent(step, state, example, size, mesh, donate=True)
        return feed.lower_resident(step, state, arrays, size, mesh, donate=True)


def held_in(config: Config, images: Images) -> int | None:
    """Training images that a run would have, where that can be known: without those held out for validation."""
    if images.examples is None:
        return None
    count = min(images.examples, config.data.limit or images.examples)
    return count if images.validated else count - datasets.held_out(count, amount(config.data.validation))


def measure(lowered: Any) -> dict[str, Any]:
    """Compiles, and reads what the compiler says; all figures are of one device.

    Returns:
      `fits`; where it does not, `reason`; else `memory` (bytes at the peak, and its parts), `flops`, `bytes` moved
      between memory and cores, `collectives` by kind, and `compile_seconds`.
    """
    started = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"fits": False, "reason": " ".join(str(error).split("\n")[0].split())}
    seconds = time.monotonic() - started
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    return {
        "fits": True,
        "memory": sum(parts.values()),
        "memory_parts": parts,
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "collectives": {kind: dataclasses.asdict(one) for kind, one in collectives(compiled.as_text()).items()},
        "compile_seconds": seconds,
    }


def wire_bytes(found: dict[str, dict[str, int]], devices: int) -> float:
    """Bytes that one device sends for the collectives of a step, each as a ring over all devices would do it."""
    n = devices
    sent = {
        "all-reduce": 2 * (n - 1) / n,
        "all-gather": (n - 1) / n,
        "reduce-scatter": n - 1,  # its result is a part of what is added up
        "all-to-all": (n - 1) / n,
        "collective-permute": 1,
    }
    return sum(sent[kind] * one["bytes"] for kind, one in found.items())


def bounds(measured: dict[str, Any], chip: Chip, chips: int, batch_size: int, multiply_adds: int) -> dict[str, Any]:
    """The roofline of a step (Williams et al. 2009), with a third roof for the wires.

    Every unit works at its peak here, all links of a chip too, and everything overlaps, so real steps take longer by
    that. But the compiler counts bytes of each operation, those too that stay in the cores' own memory: where memory is
    the bound, a step may take less.

    Args:
      measured: by `measure`, where it fits.
      chip: of which there are `chips`.
      chips: how many.
      batch_size: over all chips.
      multiply_adds: of an image, forward.

    Returns:
      `seconds` by roof, the `step_seconds`, what it is `bound_by`, `examples_per_second`, and `mfu`: the part of the
      chips' peak that the network's own operations make up then, three times its forward pass (Chowdhery et al. 2022,
      appendix B).
    """
    share = 1 / chip.devices  # of a chip, that a device has
    seconds = {
        "arithmetic": measured["flops"] / (chip.flops * share),
        "memory": measured["bytes"] / (chip.bandwidth * share),
        "links": wire_bytes(measured["collectives"], chips * chip.devices) / (chip.links * share),
    }
    bound_by = max(seconds, key=lambda name: seconds[name])
    step_seconds = seconds[bound_by]
    return {
        "seconds": seconds,
        "bound_by": bound_by,
        "step_seconds": step_seconds,
        "examples_per_second": batch_size / step_seconds,
        "mfu": 3 * 2 * multiply_adds * batch_size / (step_seconds * chip.flops * chips),
    }


# ---- in a process of its own ---------------------------------------------------------------------------------------


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What the child does: `request` has `config`, `images`, `topology`."""
    from jax.experimental import topologies

    config = configs.from_dict(Config, request["config"])
    chip, chips = chip_of(request["topology"])
    layout = {"chip_config_name": chip.layout} if chip.layout else {}
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=request["topology"], **layout).devices
    except Exception as error:  # of several kinds
        raise RunError(f"topology: the compiler can't make {request['topology']}: {error}") from error
    if len(devices) != chips * chip.devices:
        raise RunError(f"topology: the compiler makes {len(devices)} devices of {chips} x {chip.name}")
    images = configs.from_dict(Images, request["images"])
    return measure(lower_step(config, images, devices))


def in_child(request: dict[str, Any], command: Sequence[str], *, timeout: float) -> dict[str, Any]:
    """The answer of a child process with the environment that the compiler needs.

    Args:
      request: for `answer`, as JSON on the child's standard input.
      command: starts the child, which prints its answer as the last line.
      timeout: seconds.

    Raises:
      InputError: libtpu is not installed, or the child says that the request can't be.
      RunError: the child failed, crashed or took too long.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("plan: needs the TPU compiler: pip install 'cnnjax[tpu]'")
    chip, chips = chip_of(request["topology"])
    environment = os.environ | {
        "TPU_SKIP_MDS_QUERY": "1",
        "JAX_PLATFORMS": "cpu",
        "TPU_ACCELERATOR_TYPE": f"{chip.accelerator}-{chips * chip.cores}",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    try:
        done = subprocess.run(
            [*command], input=json.dumps(request), capture_output=True, text=True, env=environment, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise RunError(f"plan: the compiler was stopped after {timeout:.0f} seconds (--timeout)") from None
    if done.returncode < 0:
        raise RunError(f"plan: the compiler crashed for {request['topology']} (signal {-done.returncode})")
    last = done.stderr.strip().splitlines()[-1:] or [""]
    if done.returncode == 2:
        raise InputError(last[0].removeprefix("error: "))
    if done.returncode:
        raise RunError(f"plan: the compiler failed: {last[0].removeprefix('error: ')}")
    return json.loads(done.stdout.strip().splitlines()[-1])


# ---- the whole plan ------------------------------------------------------------------------------------------------


def image_and_classes(config: Config) -> tuple[tuple[int, ...] | None, int | None]:
    """The image (height, width, channels) that a network is given, and the number of classes; None where not known."""
    known = IMAGES.get(config.data.name, Images(None, 0))
    shape = known.shape
    if config.data.crop is not None:
        shape = (config.data.crop, config.data.crop, 3)
    elif shape is not None:
        shape = (*(config.data.size or shape[:2]), shape[2])
    return shape, known.classes or None


def images_of(config: Config, shape: tuple[int, ...] | None, classes: int | None) -> Images:
    """The images that a configuration's data have, without reading them.

    Args:
      config: of the run.
      shape: (height, width, channels), where it is said.
      classes: where they are said.

    Raises:
      InputError: the set is not known and they are not said.
    """
    known = IMAGES.get(config.data.name, Images(None, 0))
    of_the_set = image_and_classes(config)
    shape, classes = shape or of_the_set[0], classes or of_the_set[1]
    if shape is None or classes is None:
        raise InputError(f"plan: {config.data.name} is not read; say what its images are: --input H,W,C --classes N")
    if len(shape) != 3 or min(shape) < 1 or classes < 1:
        raise InputError(f"input: received {shape} and {classes} classes, allowed: H,W,C and N, numbers of 1 and more")
    return dataclasses.replace(known, shape=shape, classes=classes)


def plan(
    config: Config,
    topology: str,
    command: Sequence[str],
    *,
    batch_per_chip: int | None = None,
    shape: tuple[int, ...] | None = None,
    classes: int | None = None,
    extra: dict[str, Any] | None = None,
    timeout: float = 1800,
) -> dict[str, Any]:
    """A training step on a slice: what the compiler says of it, and what bounds it.

    Args:
      config: of the run.
      topology: the slice, such as "v5e:4x4".
      command: starts a child that gives `answer` the request.
      batch_per_chip: images for each chip, in place of the batch of the configuration.
      shape: of the images, where the data set is not known.
      classes: likewise.
      extra: more of the request, for the child.
      timeout: seconds that a compilation may take.

    Returns:
      The `topology`, `chip`, `chips`, `devices`, `mesh`, `batch_size`, `memory_limit` of a device, all of `measure`,
      and of `bounds` where it fits.
    """
    chip, chips = chip_of(topology)
    images = images_of(config, shape, classes)
    if batch_per_chip is not None:
        batch_size = batch_per_chip * chips
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=batch_size))
    configs.check(config)
    request = {
        "config": configs.to_dict(config),
        "images": dataclasses.asdict(images),
        "topology": topology,
    } | (extra or {})
    measured = in_child(request, command, timeout=timeout)
    for name in {"flops", "bytes"} & set(measured):
        # The compiler counts once what a loop goes round, which is all of the step but the update.
        measured[name] *= config.train.microbatches
    devices, limit = chips * chip.devices, chip.memory / chip.devices
    found = {
        "topology": topology,
        "chip": chip.name,
        "chips": chips,
        "devices": devices,
        "mesh": config.run.mesh or {"data": devices},
        "batch_size": config.train.batch_size,
        "memory_limit": limit,
    } | measured
    # The compiler lets through some of what leaves no room for its own use.
    found["fits"] = bool(measured["fits"] and measured["memory"] <= limit)
    if measured["fits"]:
        assert images.shape is not None
        multiply_adds = summarize(make_model(config, images.classes), images.shape).multiply_adds
        found |= bounds(measured, chip, chips, config.train.batch_size, multiply_adds)
    return found


def child_command() -> list[str]:
    """Starts this Python's `cnnjax` as the child of a plan."""
    return [sys.executable, "-m", "cnnjax", "plan", "--child"]
