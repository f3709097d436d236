"""A data set and a network so small that a whole run takes a second."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import data, models
from cnnjax.training import Config, Data, Model, Optimizer, Run, Train


class Tiny(nn.Module):
    """A convolution with batch norm, dropout and a dense layer."""

    num_classes: int = 3
    rate: float = 0.2
    dtype: object = None
    param_dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x, *, train=False):
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.Conv(4, (3, 3), strides=2, padding=((1, 1), (1, 1)), **kinds)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, **kinds)(x))
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, **kinds)(x.reshape(len(x), -1))


@pytest.fixture
def tiny_model(monkeypatch):
    """The name of a network that `create` knows for the length of a test."""
    monkeypatch.setitem(models.MODELS, "tiny", Tiny)
    return "tiny"


def make_arrays(n: int, seed: int) -> data.Arrays:
    """Images whose brightest third tells the class, plus noise."""
    rng = np.random.default_rng(seed)
    label = (np.arange(n) % 3).astype(np.int32)
    image = rng.integers(0, 100, (n, 9, 9, 1))
    for i, k in enumerate(label):
        image[i, 3 * k : 3 * k + 3] += 120
    return data.Arrays(image.astype(np.uint8), label)


@pytest.fixture
def tiny_data():
    """100 training and 31 test images of 9x9 in 3 classes: numbers that no batch divides."""
    return data.Dataset(
        "tiny", make_arrays(100, 0), make_arrays(31, 1), None, ("top", "middle", "bottom"), {"made": "by the tests"}
    )


@pytest.fixture
def tiny_config(tiny_model):
    """24 steps of batch 16 with everything random switched on."""
    return Config(
        model=Model(tiny_model),
        data=Data("tiny", validation=0.1, shift=1, flip=True, pad_crop=1),
        optimizer=Optimizer("sgd", learning_rate=0.1, weight_decay=1e-4, schedule="cosine", warmup=0.1),
        train=Train(steps=24, epochs=None, batch_size=16, evaluate_every=7),
        run=Run(devices=1, log_every=5, eval_batch_size=8),
    )
