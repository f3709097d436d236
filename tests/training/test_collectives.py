"""The collectives in a program, and that training steps have those that they should."""

import functools

import jax
import numpy as np
import pytest

from cnnjax import models
from cnnjax.training import Optimizer, metrics
from cnnjax.training import mesh as meshes
from cnnjax.training.collectives import Collective, collectives
from cnnjax.training.optimizer import make_optimizer
from cnnjax.training.state import init_state
from cnnjax.training.step import Preprocess, Update, train_step

PROGRAM = """
HloModule jit_step, entry_computation_layout={(f32[8]{0})->f32[8]{0}}
%add { ROOT %sum = f32[] add(%x, %y) }
ENTRY %main {
  %p = f32[8,16]{1,0} parameter(0)
  %all-reduce.1 = f32[8,16]{1,0} all-reduce(%p), channel_id=1, to_apply=%add
  %all-reduce.2 = (f32[8]{0}, bf16[4]{0}) all-reduce(%a, %b), channel_id=2, to_apply=%add
  %start = (f32[2,16]{1,0}, f32[8,16]{1,0}) all-gather-start(%c), channel_id=3, dimensions={0}
  %done = f32[8,16]{1,0} all-gather-done(%start)
  %permute = (f32[3]{0}, f32[3]{0}, u32[], u32[]) collective-permute-start(%d), channel_id=4
  %over = pred[10]{0} all-to-all(%e), channel_id=5
  %use = f32[8,16]{1,0} add(%all-reduce.1, %done)
}
"""


def test_a_program_by_hand():
    assert collectives(PROGRAM) == {
        "all-reduce": Collective(2, 8 * 16 * 4 + 8 * 4 + 4 * 2),
        "all-gather": Collective(1, 8 * 16 * 4),
        "collective-permute": Collective(1, 3 * 4),
        "all-to-all": Collective(1, 10),
    }
    assert collectives("ENTRY %main { %x = f32[2]{0} add(%all-reduce.1, %p) }") == {}


TPU_PROGRAM = """
%fused.1 (p: bf16[3,3,16,8]) -> (bf16[3,3,16,8], bf16[3,3,16,32]) {
  %p = bf16[3,3,16,8]{2,3,1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[3,3,16,32]{2,3,1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, dimensions={3}
}
%fused.2 (p: bf16[3,3,16,8], x: f32[4]) -> (f32[4], bf16[3,3,16,32]) {
  %all-gather.2 = bf16[3,3,16,32]{2,3,1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, dimensions={3}
}
%all-reduce-scatter.4 (a: f32[16,32], b: f32[8,64]) -> (f32[16,8], f32[8,16]) {
  %all-reduce.71 = (f32[16,32]{1,0:T(8,128)}, f32[8,64]{1,0:T(8,128)}) all-reduce(%a, %b), channel_id=1, to_apply=%add
  %slice = f32[16,8]{1,0:T(8,128)S(1)} dynamic-slice(%a.1, %zero, %i), dynamic_slice_sizes={16,8}
}
ENTRY %main {
  %all-reduce.2 = f32[8]{0:T(128)} all-reduce(%c), channel_id=2, to_apply=%add
  %fusion.9 = (f32[16,8]{1,0}, f32[8,16]{1,0}) fusion(%d, %e), kind=kCustom, calls=%all-reduce-scatter.4
}
"""


def test_a_program_of_a_tpu():
    """A gathering in pieces is one; a sum of which each device takes a part is a reduce-scatter."""
    assert collectives(TPU_PROGRAM) == {
        "all-gather": Collective(1, 3 * 3 * 16 * 32 * 2),
        "reduce-scatter": Collective(1, (16 * 8 + 8 * 16) * 4),
        "all-reduce": Collective(1, 8 * 4),
    }


def compiled_step(axes, conv="xla", **update):
    """The collectives of the training step of a small ResNet on eight devices."""
    mesh = meshes.make_mesh(8, axes)
    model = models.create("cifar_resnet20", stage_sizes=(1, 1, 1), conv=conv)
    optimizer = make_optimizer(Optimizer("sgd", momentum=0.9), 10)
    init = functools.partial(init_state, model=model, optimizer=optimizer, image_shape=(32, 32, 3))
    shapes = jax.eval_shape(init, jax.random.key(0))
    place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
    state = jax.tree.map(place, shapes, meshes.state_shardings(shapes, mesh))
    spread = meshes.over_batch(mesh)
    batch = {
        "image": jax.ShapeDtypeStruct((64, 32, 32, 3), np.uint8, sharding=spread),
        "label": jax.ShapeDtypeStruct((64,), np.int32, sharding=spread),
    }
    step = functools.partial(
        train_step,
        model=model,
        optimizer=optimizer,
        loss=metrics.cross_entropy,
        preprocess=Preprocess((0.5,), (0.25,), flip=True, pad_crop=4),
        update=Update(layout=meshes.Layout(mesh), **update),
    )
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    compiled = jax.jit(step, donate_argnums=0, out_shardings=(placed, meshes.replicated(mesh))).lower(state, batch)
    parameters = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes.params))
    return collectives(compiled.compile().as_text()), parameters


NORMS = 7
"""Batch norms in the network."""


def test_data_parallel_steps_add_up_gradients_and_statistics():
    """No image is gathered; with batch norm of a device's own images, nothing but gradients and running statistics."""
    everywhere, parameters = compiled_step({})
    own, _ = compiled_step({}, norm_batch=8)
    assert set(everywhere) == set(own) == {"all-reduce"}
    # Of the images' statistics forward and of their gradients backward; the compiler combines what it can.
    assert everywhere["all-reduce"].count - own["all-reduce"].count >= 2 * NORMS
    assert own["all-reduce"].count <= 2
    for found in (everywhere, own):
        assert parameters < found["all-reduce"].bytes < 1.02 * parameters


def test_divided_parameters_are_gathered():
    found, parameters = compiled_step({"fsdp": 8})
    assert set(found) <= {"all-reduce", "all-gather", "reduce-scatter"}
    assert 0.9 * parameters < found["all-gather"].bytes < parameters  # each large one once, and no image


@pytest.mark.slow
def test_divided_images_exchange_their_borders():
    found, parameters = compiled_step({"data": 4, "space": 2})
    assert set(found) == {"all-reduce", "collective-permute"}
    assert found["collective-permute"].count >= 2 * NORMS  # a 3x3 convolution needs its neighbours' rows, both ways
    assert found["all-reduce"].bytes < 2.1 * parameters  # along space, then along data
