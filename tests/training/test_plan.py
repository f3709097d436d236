"""Plans: what is computed of the compiler's figures, the child, the command; in the slow tests the compiler itself."""

import dataclasses
import importlib.util
import json
import pathlib
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest

from cnnjax import cli, data
from cnnjax.data import synthetic
from cnnjax.ops.errors import InputError
from cnnjax.training import Config, Data, Model, Optimizer, Run, RunError, Train, plan, train

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not installed (the extra `tpu`)"
)
MNIST = plan.IMAGES["mnist"]
LENET = Config(model=Model("lenet5_modern"), data=Data("mnist"), train=Train(batch_size=32))


@pytest.mark.parametrize(
    ("topology", "chips"), [("v5e:2x2", 4), ("v5e:16x16", 256), ("v5p:2x2x4", 16), ("v6e:1x1", 1), ("tpu7x:2x2x1", 4)]
)
def test_chips_of_a_topology(topology, chips):
    chip, count = plan.chip_of(topology)
    assert (chip, count) == (plan.CHIPS[topology.partition(":")[0]], chips)


@pytest.mark.parametrize("topology", ["v5e", "v5e:", "v5e:4", "v5e:0x4", "v5e:axb", "h100:2x2", "v5e:2x2x2x2", ""])
def test_topologies_that_are_not(topology):
    with pytest.raises(InputError, match=r"topology: received .* allowed: CHIP:AxB or CHIP:AxBxC, such as v5e:4x4"):
        plan.chip_of(topology)


def test_bytes_on_the_wire_of_rings():
    found = {kind: {"count": 1, "bytes": 1000} for kind in ("all-reduce", "all-gather", "all-to-all")}
    assert plan.wire_bytes(found, 4) == 1500 + 750 + 750
    assert plan.wire_bytes({"reduce-scatter": {"count": 2, "bytes": 100}}, 4) == 300
    assert plan.wire_bytes({"collective-permute": {"count": 2, "bytes": 100}}, 4) == 100
    assert plan.wire_bytes(found, 1) == 0


def test_the_roofline_by_hand():
    chip = plan.Chip("a chip", flops=100.0, memory=1e3, bandwidth=10.0, links=2.0, accelerator="", cores=1)
    measured = {"flops": 300.0, "bytes": 50.0, "collectives": {"all-reduce": {"count": 1, "bytes": 8}}}
    found = plan.bounds(measured, chip, 2, batch_size=20, multiply_adds=5)
    assert found["seconds"] == {"arithmetic": 3.0, "memory": 5.0, "links": 4.0}
    assert (found["bound_by"], found["step_seconds"], found["examples_per_second"]) == ("memory", 5.0, 4.0)
    assert found["mfu"] == pytest.approx(3 * 2 * 5 * 20 / (5.0 * 100.0 * 2))


def test_the_roofline_of_chips_of_two_devices():
    """Each does half of what a chip of one device would, with half of the chip: the same times, but for the wires."""
    one = plan.Chip("a chip", flops=100.0, memory=1e3, bandwidth=10.0, links=2.0, accelerator="", cores=1)
    two = dataclasses.replace(one, devices=2)
    measured = {"flops": 300.0, "bytes": 50.0, "collectives": {"all-reduce": {"count": 1, "bytes": 8}}}
    halved = measured | {"flops": 150.0, "bytes": 25.0}
    whole, parts = (
        plan.bounds(of, chip, 2, batch_size=20, multiply_adds=5) for of, chip in ((measured, one), (halved, two))
    )
    assert parts["seconds"] == {"arithmetic": 3.0, "memory": 5.0, "links": 2 * 3 / 4 * 8 / 1.0}
    assert whole["seconds"] | {"links": 12.0} == parts["seconds"]
    assert parts["mfu"] == pytest.approx(3 * 2 * 5 * 20 / (12.0 * 100.0 * 2))


def test_the_step_that_a_run_makes():
    """Compiled for the eight devices here: the gradients are added up, and memory grows with the batch."""
    small, large = (
        plan.measure(plan.lower_step(dataclasses.replace(LENET, train=Train(batch_size=size)), MNIST, DEVICES))
        for size in (64, 256)
    )
    assert small["fits"]
    assert small["memory"] == sum(small["memory_parts"].values())
    assert set(small["collectives"]) == {"all-reduce"}
    assert small["collectives"]["all-reduce"]["bytes"] > 61_706 * 4
    assert large["memory_parts"]["temporaries"] > 2 * small["memory_parts"]["temporaries"]
    assert large["flops"] > 3 * small["flops"]


DEVICES = jax.devices()


def program_of_a_run(config, workdir, dataset=None):
    """What `train` compiles first, as text; the run goes no further."""
    seen = []

    def compiling(self, *args, **kwargs):
        seen.append(self.as_text())
        raise RunError("seen enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", compiling)
        with pytest.raises(RunError, match="seen enough"):
            train(config, workdir, dataset=dataset)
    return seen[0]


@pytest.mark.parametrize(
    ("resident_mb", "mesh"),
    [(4096, {}), (0, {}), (0, {"data": 2, "space": 4}), (4096, {"data": 2, "fsdp": 4})],
    ids=["kept", "sent", "sent by height", "kept, parameters divided"],
)
def test_the_program_of_a_run_to_the_letter(tmp_path, resident_mb, mesh):
    """What `train` compiles first is what a plan compiles, text for text."""
    made = np.random.default_rng(0).integers(0, 256, (300, 28, 28, 1), dtype=np.uint8)
    arrays = data.Arrays(made, np.arange(300, dtype=np.int32) % 10)
    dataset = data.Dataset("mnist", arrays, None, None, tuple("0123456789"), {})
    config = Config(
        model=Model("lenet5_modern"),
        data=Data("mnist", mean=(0.5,), std=(0.25,), shift=1, resident_mb=resident_mb),
        optimizer=Optimizer("sgd", 0.1, schedule="cosine"),
        train=Train(batch_size=32, epochs=1, ema=0.9),
        run=Run(mesh=mesh),
    )
    images = dataclasses.replace(MNIST, examples=300)
    assert plan.lower_step(config, images, DEVICES).as_text() == program_of_a_run(config, tmp_path / "run", dataset)


def test_photographs_to_the_letter(tmp_path):
    synthetic.write_imagenet({"train": synthetic.photographs(40, longest=40)}, tmp_path)
    config = Config(
        model=Model("lenet5_modern", {"num_classes": 5}),
        data=Data("tfds:imagenet2012", data_dir=str(tmp_path), crop=28, validation=0, flip=True),
        train=Train(batch_size=8, steps=2, epochs=None),
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, mean=(0.5,) * 3, std=(0.5,) * 3))
    images = dataclasses.replace(plan.images_of(config, None, 5), examples=40)
    assert plan.lower_step(config, images, DEVICES).as_text() == program_of_a_run(config, tmp_path / "run")


def test_images_held_out_are_not_trained_on():
    count = lambda **fields: plan.held_in(Config(data=Data(**fields)), plan.IMAGES[fields["name"]])
    assert count(name="mnist", validation=0.1) == 54_000
    assert count(name="cifar10", validation=5000) == 45_000
    assert count(name="cifar10", validation=0.5, limit=100) == 50
    assert count(name="tfds:imagenet2012", validation=0.1, crop=224) == 1_281_167


def test_it_chooses_convolutions_as_on_the_chips(monkeypatch):
    """Not as on this CPU, which has methods of its own."""
    lowered = plan.lower_step(LENET, MNIST, DEVICES).as_text()

    class Elsewhere:
        platform = "tpu"

    monkeypatch.setattr(plan.meshes, "make_mesh", lambda *_, original=plan.meshes.make_mesh, **__: original(8))
    for_tpu = plan.lower_step(LENET, MNIST, [Elsewhere()]).as_text()
    assert for_tpu.count("stablehlo.convolution") > lowered.count("stablehlo.convolution")


def test_too_large_is_an_answer():
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20G of 16G"
            )

    found = plan.measure(Lowered())
    assert found == {
        "fits": False,
        "reason": "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20G of 16G",
    }


# ---- the child -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "error", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", RunError, r"the compiler crashed for v5e:2x2 \(signal 11\)"),
        ("import time; time.sleep(60)", RunError, "the compiler was stopped after 1 seconds"),
        ("import sys; sys.exit('error: oh no')", RunError, "the compiler failed: oh no"),
        ("import sys; print('error: wrong', file=sys.stderr); sys.exit(2)", InputError, "^wrong$"),
    ],
)
def test_children_that_fail(monkeypatch, program, error, message):
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(error, match=message):
        plan.in_child({"topology": "v5e:2x2"}, [sys.executable, "-c", program], timeout=1)


def test_what_a_child_is_told(monkeypatch):
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: True)
    program = "import json, os, sys; print(json.dumps([json.load(sys.stdin), os.environ['TPU_ACCELERATOR_TYPE']]))"
    request = {"topology": "v5p:2x2x4"}
    assert plan.in_child(request, [sys.executable, "-c", program], timeout=60) == [request, "v5p-32"]


def test_without_the_compiler(monkeypatch):
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"plan: needs the TPU compiler: pip install 'cnnjax\[tpu\]'"):
        plan.in_child({"topology": "v5e:2x2"}, [], timeout=1)


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def compiler(monkeypatch):
    """A compiler whose memory is in proportion to the batch of a chip; the requests that it got."""
    requests = []

    def answer(request, command, *, timeout):
        requests.append(request)
        _, chips = plan.chip_of(request["topology"])
        size = request["config"]["train"]["batch_size"] // chips
        return {
            "fits": True,
            "memory": size * 1e9,
            "memory_parts": {},
            "flops": size * 1e9,
            "bytes": 1e6,
            "collectives": {"all-reduce": {"count": 2, "bytes": 1000}},
            "compile_seconds": 1.0,
        }

    monkeypatch.setattr(plan, "in_child", answer)
    return requests


def command(capsys, *argv, status=0):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["plan", *argv])
    said = capsys.readouterr()
    assert stopped.value.code == status, said.err
    return said


def test_a_plan(compiler, capsys):
    said = command(capsys, "lenet5_modern_mnist", "--topology", "v5e:2x2", "--train.dtype", "bfloat16")
    assert "lenet5_modern_mnist on v5e:2x2: 4 x TPU v5e" in said.out
    assert "2, 1 kB" in said.out
    (request,) = compiler
    assert request["config"]["train"]["dtype"] == "bfloat16"
    assert request["images"] == {"shape": (28, 28, 1), "classes": 10, "examples": 60_000, "validated": False}


def test_a_plan_for_chips_of_two_devices(compiler, capsys):
    options = ("--topology", "tpu7x:2x2x1", "--batch-per-chip", "32")
    found = json.loads(command(capsys, "lenet5_modern_mnist", "--json", *options).out)
    assert (found["chips"], found["devices"], found["mesh"], found["batch_size"]) == (4, 8, {"data": 8}, 128)
    assert found["memory_limit"] == 96 * 2**30
    assert "4 x TPU7x, 8 devices" in command(capsys, "lenet5_modern_mnist", *options).out


def test_plans_beside_each_other(compiler, capsys):
    options = ("--batch-per-chip", "8", "--compare", "mesh fsdp=4", "train.norm-batch 8")
    said = command(capsys, "cifar_resnet20", "--topology", "v5e:2x2", "--json", *options)
    found = json.loads(said.out)
    assert [one["mesh"] for one in found] == [{"data": 4}, {"fsdp": 4}, {"data": 4}]
    assert [one["config"]["train"]["norm_batch"] for one in compiler] == [None, None, 8]
    assert {one["batch_size"] for one in found} == {32}
    said = command(capsys, "cifar_resnet20", "--topology", "v5e:2x2", *options)
    assert "--mesh fsdp=4" in said.out


def test_the_compiler_counts_a_loop_once(compiler, capsys):
    options = ("--topology", "v5e:2x2", "--json", "--batch-per-chip", "8", "--train.microbatches")
    one, four = (json.loads(command(capsys, "cifar_resnet20", *options, number).out) for number in ("1", "4"))
    assert four["flops"] == 4 * one["flops"]
    assert four["bytes"] == 4 * one["bytes"]


def test_the_largest_batch(compiler, capsys):
    said = command(
        capsys, "cifar_resnet20", "--topology", "v5e:2x2", "--largest-batch", "--json", "--batch-per-chip", "2"
    )
    found = json.loads(said.out)
    assert [(one["batch_size"] // 4, one["fits"]) for one in found] == [
        (2, True), (4, True), (8, True), (16, True), (32, False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--topology", "v5e"), "topology: received 'v5e', allowed: CHIP:AxB"),
        (("--topology", "v5e:2x2", "--data.name", "tfds:imagenet2012"), "say what its images are: --input H,W,C"),
        (("--topology", "v5e:2x2", "--input", "big"), "input: received 'big', allowed: H,W,C"),
        (("--topology", "v5e:2x2", "--train.microbatches", "3"), "train.microbatches: received 3"),
        (("--topology", "v5e:2x2", "--train.bach-size", "3"), "did you mean"),
        ((), "topology"),
    ],
)
def test_plans_that_can_not_be(compiler, capsys, options, message):
    said = command(capsys, "cifar_resnet20", *options, status=2)
    assert message in said.err
    assert "Traceback" not in said.err


def test_the_commands_of_the_docs(compiler, capsys):
    page = pathlib.Path(__file__).parents[2] / "docs" / "plan.md"
    commands = [shlex.split(line)[2:] for line in page.read_text().splitlines() if line.startswith("    cnnjax plan ")]
    assert commands
    for argv in commands:
        command(capsys, *argv)


@pytest.mark.slow
@needs_libtpu
def test_by_the_compiler():
    """A real plan, by the command, in a process as a user's."""
    argv = [sys.executable, "-m", "cnnjax", "plan", "lenet5_modern_mnist", "--topology", "v5e:2x2", "--json"]
    done = subprocess.run([*argv, "--batch-per-chip", "64"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["fits"]
    assert found["batch_size"] == 256
    assert 61_706 * 4 <= found["collectives"]["all-reduce"]["bytes"] < 1.1 * 61_706 * 4
    # Three times the forward pass's, without the gradient of the images, which nobody needs.
    multiply_adds = 416_520
    assert 2 * 2 * multiply_adds * 64 < found["flops"] < 4 * 2 * multiply_adds * 64
    assert 0 < found["mfu"] < 1


@pytest.mark.parametrize(
    ("fields", "images"),
    [
        ({"name": "mnist"}, ((28, 28, 1), 10)),
        ({"name": "cifar10", "size": (64, 48)}, ((64, 48, 3), 10)),
        ({"name": "tfds:imagenet2012", "crop": 160}, ((160, 160, 3), 1000)),
    ],
)
def test_images_that_need_not_be_read(fields, images):
    found = plan.images_of(Config(data=Data(**fields)), None, None)
    assert (found.shape, found.classes) == images


def test_images_that_are_said():
    folder = Config(data=Data("folder", crop=96))
    assert plan.images_of(folder, None, 7) == plan.Images((96, 96, 3), 7)
    with pytest.raises(InputError, match="folder is not read; say what its images are"):
        plan.images_of(folder, None, None)


@pytest.mark.slow
@needs_libtpu
def test_a_mesh_that_the_chips_do_not_make():
    argv = [sys.executable, "-m", "cnnjax", "plan", "lenet5_modern_mnist", "--topology", "v5e:2x2", "--mesh", "fsdp=3"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: run.mesh: received fsdp=3, allowed: axes that multiply to the 4 devices" in done.stderr


@pytest.mark.slow
@needs_libtpu
def test_divided_parameters_on_tpus():
    """Each large one is gathered once, in the type that is multiplied, and its gradient added up where it stays."""
    argv = [sys.executable, "-m", "cnnjax", "plan", "cifar_resnet20", "--topology", "v5e:2x2", "--mesh", "fsdp=4"]
    done = subprocess.run(
        [*argv, "--model.fields", "stage_sizes=(1,1,1)", "--json"], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)["collectives"]
    large = 9 * (16 * 32 + 32 * 32 + 32 * 64 + 64 * 64)
    assert found["all-gather"] == {"count": 4, "bytes": 2 * large}  # bfloat16
    assert found["reduce-scatter"]["bytes"] == 4 * large // 4
    assert found["all-reduce"]["bytes"] < 4 * large // 4  # what is not divided, and statistics
