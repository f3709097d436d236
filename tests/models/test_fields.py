"""Every field of every network, with values of every kind: a network that can be traced, or one line."""

import functools
import inspect
import itertools
from typing import Protocol, TypeVar, get_origin, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from cnnjax import models
from cnnjax.models.fields import tracing
from cnnjax.ops.errors import InputError
from cnnjax.ops.primitives import as_primitives

T = TypeVar("T")

VALUES = [
    0, -1, 1, 3, 2**31, 10**10, 10**12, 2**63, 10**5000, 0.0, 1.5, -0.5, 1e300, float("nan"), float("inf"),
    "", "x", "None", "float16", None, True, False, (), (0,), (1,), (-1,), ("a",), (1.5,), ((1,),), [], [0], {},
    (2, 2), [2, 2], (10**10, 10**10), (3, 3, 3), (1, 2, 3, 4), object(),
]  # fmt: skip
"""What a command line or a configuration can say, and what it can't. Functions are the user's own to get right."""

CHOSEN = ("fully_connected", "lenet5", "convnetjs_mnist", "cifar_resnet20")


def shallow(name):
    """One block a stage, so that a network is quick to trace."""
    defaults = {field: p.default for field, p in inspect.signature(models.MODELS[name]).parameters.items()}
    return {f: (1,) * len(defaults[f]) for f in ("stage_sizes", "block_sizes") if isinstance(defaults.get(f), tuple)}


def outcome(name, field, value):
    """The line that refuses a network with that value, "" where it can be traced; anything else is raised."""
    fields = {**shallow(name), field: value}
    if field == "widths" and isinstance(value, tuple | list) and len(value) != 3:
        fields["stage_sizes"] = (1,) * len(value)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    x = jax.ShapeDtypeStruct((2, *models.ABOUT[name].input), jnp.float32)
    try:
        model = models.create(name, **fields)
        with as_primitives(), tracing(model, fields):
            variables = jax.eval_shape(model.init, rngs, x)
            apply = functools.partial(model.apply, train=True, rngs=rngs, mutable=["batch_stats", "aux_logits"])
            jax.eval_shape(apply, variables, x)
        return ""
    except InputError as error:
        return str(error)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in CHOSEN else pytest.mark.slow) for name in models.names()]
)
def test_any_value_of_any_field(name):
    found = [
        outcome(name, field, value)
        for field in inspect.signature(models.MODELS[name]).parameters
        if field not in ("name", "parent")
        for value in VALUES
    ]
    assert all("\n" not in line and len(line) < 1500 for line in found)
    assert 5 < found.count("") < 0.3 * len(found)


@pytest.mark.parametrize(
    ("name", "field", "value", "says"),
    [
        ("fully_connected", "dense", (0,), r"dense: received (0,); allowed: a tuple, each an integer, 1 or more"),
        ("fully_connected", "dense", 3, r"dense: received 3; allowed: a tuple, each an integer, 1 or more"),
        ("resnet18", "widths", (64, "x", 1, 1), "widths: received (64, 'x', 1, 1); allowed: a tuple, each an integer"),
        ("resnet18", "stage_sizes", (10**6,) * 4, "allowed: a tuple, each an integer, 1 to 10,000"),
        ("resnet18", "stem_features", 0, "stem_features: received 0; allowed: an integer, 1 or more or None"),
        ("resnet18", "drop_path", "x", "drop_path: received 'x'; allowed: a finite number"),
        ("resnet18", "preactivated", 1, "preactivated: received 1; allowed: True or False"),
        ("resnet18", "num_classes", 10**5000, "received a number of thousands of digits; allowed: fewer"),
        ("resnet18", "block", "BasicBlock", "block: received 'BasicBlock'; allowed: a function"),
        ("resnet18", "dtype", "int8", "unknown dtype 'int8'"),
        ("resnet18", "dtype", "10**20", "unknown dtype '10**20'"),
        ("resnet18", "param_dtype", "(1,", "unknown param_dtype '(1,'"),
        ("resnet18", "dtype", ("f4", -1), "unknown dtype"),
        ("resnet18", "dtype", jnp.int32, "unknown dtype"),
        ("densenet121", "growth", 1.5, "growth: received 1.5; allowed: an integer, 1 or more"),
        ("vgg11", "grid", (7,), "grid: received (7,); allowed: a tuple of 2, each an integer, 1 to 256"),
        ("vgg11", "grid", (7, 10**10), "allowed: a tuple of 2, each an integer, 1 to 256"),
        ("vgg11", "layers", (1,), "layers: received (1,); allowed: a tuple, each Conv or Pool or Lrn"),
        ("geron_fashion", "stages", ((4,), 3, 2), "allowed: a tuple, each Stage"),
        ("alexnet", "lrn", None, "lrn: received None; allowed: a function"),
    ],
    ids=itertools.count(),
)
def test_what_is_allowed_is_said(name, field, value, says):
    with pytest.raises(InputError) as caught:
        models.create(name, **{field: value})
    assert says in str(caught.value)


def test_lists_stand_for_tuples():
    """As JSON has them."""
    assert models.create("cifar_resnet20", stage_sizes=[1, 1, 1]).stage_sizes == (1, 1, 1)


def test_other_peoples_networks_are_held_to_what_their_class_says(monkeypatch):
    class Mine(nn.Module):
        num_classes: int = 10
        offset: int = 0
        rate: float = 0.5
        parts: "tuple[NotDefined, ...]" = ()  # noqa: F821

        @nn.compact
        def __call__(self, x, *, train=False):
            return nn.Dense(self.num_classes)(x.reshape(len(x), -1)) / self.offset

    monkeypatch.setitem(models.MODELS, "mine", Mine)
    assert models.create("mine", offset=-3, rate=1, parts=3).offset == -3  # nothing is known of types without a meaning
    with tracing(models.create("mine", offset=0), {"offset": 0}), pytest.raises(ZeroDivisionError):
        1 / 0  # noqa: B018


class Norm(Protocol):
    """What a user's network calls."""

    def __call__(self, x: jax.Array) -> jax.Array: ...


@runtime_checkable
class Named(Protocol):
    """Of data members, for which `isinstance` looks."""

    name: str


class Mapped(Protocol[T]):
    def __call__(self, x: T) -> T: ...


@pytest.mark.parametrize("hint", [Norm, Named, Mapped, Mapped[jax.Array], Norm | None, tuple[Norm, ...]])
def test_a_field_may_be_of_a_protocol(hint, monkeypatch):
    """Of which there are no instances: whatever is given is the network's own to use."""

    class Mine(nn.Module):
        num_classes: int = 10
        layer: hint = None
        depth: int = 1

        @nn.compact
        def __call__(self, x, *, train=False):
            return nn.Dense(self.num_classes)(self.layer(x.reshape(len(x), -1)))

    given = (jnp.tanh,) if get_origin(hint) is tuple else jnp.tanh
    monkeypatch.setitem(models.MODELS, "mine", Mine)
    assert models.create("mine", layer=given).layer == given
    with pytest.raises(InputError, match="depth: received 'x'; allowed: an integer"):
        models.create("mine", layer=given, depth="x")
