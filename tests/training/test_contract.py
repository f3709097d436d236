"""What a network, a loss and a data set must give: one line before the first step that says what was expected."""

import dataclasses
import functools
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cnnjax
from cnnjax import data, models
from cnnjax.models.layers import refuse_lone_values
from cnnjax.ops.errors import InputError
from cnnjax.training import Config, Data, Model, Optimizer, Run, Train, config, contract, launch, metrics, train
from cnnjax.training.evaluate import evaluate
from cnnjax.training.setup import sameness


def net(body):
    """A network with `body(module, x, logits, train)` in place of its output."""

    class Net(nn.Module):
        num_classes: int = 3

        @nn.compact
        def __call__(self, x, *, train=False):
            return body(self, x, nn.Dense(self.num_classes)(x.reshape(len(x), -1)), train)

    return Net


class WithoutTrain(nn.Module):
    num_classes: int = 3

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


class WithoutParameters(nn.Module):
    num_classes: int = 3

    @nn.compact
    def __call__(self, x, *, train=False):
        return x.reshape(len(x), -1)[:, : self.num_classes]


def counting(module, x, logits, train):
    count = module.variable("counts", "calls", lambda: jnp.zeros(()))
    if not module.is_initializing():
        count.value += 1
    return logits


def noisy(module, x, logits, train):
    return logits + jax.random.normal(module.make_rng("noise"), logits.shape)


def training_layer(module, x, logits, train):
    return nn.Dense(3)(logits) if train else logits


def sowing(module, x, logits, train):
    if not module.is_initializing():
        module.sow("aux_logits", "aux1", logits[:1])
    return logits


SHAPE = r"expected: \[16, 3 or more\] floating-point numbers, a row for each image"
NETWORKS = {
    "tuple": (net(lambda m, x, y, t: (y, x)), rf"its output is a tuple for 16 images; {SHAPE}"),
    "None": (net(lambda m, x, y, t: None), "its output is None for 16 images"),
    "dict": (net(lambda m, x, y, t: {"logits": y}), "its output is a dict"),
    "vector": (net(lambda m, x, y, t: y[:, 0]), rf"its output is \[16\] float32 for 16 images; {SHAPE}"),
    "one row": (net(lambda m, x, y, t: y[:1]), rf"its output is \[1, 3\] float32 for 16 images; {SHAPE}"),
    "map": (net(lambda m, x, y, t: y[:, None, None]), r"its output is \[16, 1, 1, 3\] float32"),
    "integers": (net(lambda m, x, y, t: y.argmax(-1)), r"its output is \[16\] int32"),
    "too few": (net(lambda m, x, y, t: y[:, :2]), rf"its output is \[16, 2\] float32 for 16 images; {SHAPE}"),
    "in evaluation": (net(lambda m, x, y, t: y if t else y[0]), r"its output is \[3\] float32 for 8 images"),
    "aux": (net(sowing), rf"what it sows in 'aux_logits' is \[1, 3\] float32 for 16 images; {SHAPE}"),
    "collection": (net(counting), '"counts".*expected: a network with variables in .params. and .batch_stats. alone'),
    "rng": (net(noisy), 'needs PRNG for "noise"; expected: .* that draws from .dropout.'),
    "layer": (net(training_layer), "Dense_1.*the same in training and evaluation"),
    "train": (WithoutTrain, r"its __call__ takes no `train`; expected: __call__\(self, x, \*, train=False\)"),
    "parameters": (WithoutParameters, "WithoutParameters has no parameters to train"),
    "function": (lambda num_classes: print, "what stands in MODELS made .*print.*; expected: a flax.linen.Module"),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_that_breaks_the_contract(kind, tiny_config, tiny_data, tmp_path, monkeypatch):
    made, says = NETWORKS[kind]
    monkeypatch.setitem(models.MODELS, "mine", made)
    with pytest.raises(InputError, match=rf"^model( mine)?: .*{says}") as caught:
        train(dataclasses.replace(tiny_config, model=Model("mine")), tmp_path / "run", dataset=tiny_data)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


LOSSES = {
    "a mean": (lambda y, t: metrics.cross_entropy(y, t).mean(), r"gives \[\] float32 for 16 examples"),
    "a loss a class": (lambda y, t: jnp.square(y), r"gives \[16, 3\] float32"),
    "a tuple": (lambda y, t: (metrics.cross_entropy(y, t), y), "gives a tuple"),
    "errors": (lambda y, t: y.argmax(-1) != t, r"gives \[16\] bool"),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_a_loss_that_breaks_the_contract(kind, tiny_config, tiny_data, tmp_path, monkeypatch):
    made, says = LOSSES[kind]
    monkeypatch.setitem(metrics.LOSSES, "mine", made)
    cfg = dataclasses.replace(tiny_config, train=dataclasses.replace(tiny_config.train, loss="mine"))
    with pytest.raises(InputError, match=rf"^train\.loss: 'mine' {says}.*; expected: \[16\] floating-point numbers"):
        train(cfg, tmp_path / "run", dataset=tiny_data)


def test_a_mistake_in_the_users_own_code_keeps_its_traceback(tiny_config, tiny_data, tmp_path, monkeypatch):
    def wrong(module, x, logits, train):
        return logits + jnp.ones(7)

    monkeypatch.setitem(models.MODELS, "mine", net(wrong))
    with pytest.raises((TypeError, ValueError), match="ncompatible shapes for broadcasting") as caught:
        train(dataclasses.replace(tiny_config, model=Model("mine")), tmp_path / "run", dataset=tiny_data)
    assert any(entry.path.name == "test_contract.py" and entry.name == "wrong" for entry in caught.traceback
               if hasattr(entry.path, "name"))  # fmt: skip


def test_targets_need_an_output_each(tiny_config, tiny_data, tmp_path):
    """Regression: exactly as many outputs as targets."""
    split = data.Arrays(tiny_data.train.image, np.zeros((100, 2), np.float32))
    targets = data.Dataset("numbers", split, split, None, (), {})
    cfg = dataclasses.replace(
        tiny_config,
        model=Model("tiny", {"num_classes": 5}),
        train=dataclasses.replace(tiny_config.train, loss="squared_error"),
    )
    with pytest.raises(InputError, match=r"output is \[16, 5\] float32 for 16 images; expected: \[16, 2\] float"):
        train(cfg, tmp_path / "run", dataset=targets)


# ---- batch norm over one value a channel ---------------------------------------------------------------------------


def resnet(train_fields, side=4, **run):
    """ResNet-20 on images of 4x4, whose last maps are 1x1."""
    return Config(
        model=Model("cifar_resnet20", {"stage_sizes": (1, 1, 1)}),
        data=Data("tiny", validation=0),
        optimizer=Optimizer("sgd", learning_rate=0.1),
        train=Train(**{"steps": 2, "epochs": None, "batch_size": 8} | train_fields),
        run=Run(**{"devices": 1, "eval_batch_size": 8} | run),
    )


def squares(side):
    rng = np.random.default_rng(0)
    arrays = data.Arrays(rng.integers(0, 256, (32, side, side, 1), np.uint8), np.arange(32, dtype=np.int32) % 3)
    return data.Dataset("tiny", arrays, None, None, ("a", "b", "c"), {})


@pytest.mark.parametrize(
    ("fields", "run"),
    [
        ({"batch_size": 1}, {}),
        ({"norm_batch": 1}, {}),
        ({"microbatches": 8}, {}),
        ({"norm_batch": 1}, {"devices": 4}),
        ({"microbatches": 2, "norm_batch": 1}, {"devices": 2}),
    ],
)
def test_batch_norm_over_one_value_a_channel_is_refused(fields, run, tmp_path):
    with pytest.raises(
        InputError, match=r"^batch norm stage3_block1/norm1: received \[1, 1, 1, 64\] to train on, one value a channel"
    ):
        train(resnet(fields, **run), tmp_path / "run", dataset=squares(4))
    assert not (tmp_path / "run").exists()


def test_batch_norm_over_two_values_a_channel_is_not(tmp_path):
    """Of two images, or on a mesh of a device for each image: the statistics are of the global batch."""
    assert contract_of(resnet({"norm_batch": 2}), squares(4)) is None
    assert contract_of(resnet({"batch_size": 1}), squares(8)) is None
    assert contract_of(resnet({}, devices=8), squares(4)) is None


def contract_of(cfg, dataset):
    """What `contract.check` says of a run, without making it."""
    model = models.create(cfg.model.name, num_classes=3, **cfg.model.fields)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *dataset.train.image.shape[1:])))
    state = dataclasses.replace(
        jax.eval_shape(lambda key: contract.TrainState(0, {}, {}, (), key), jax.random.key(0)),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
    )
    image = jax.ShapeDtypeStruct(dataset.train.image.shape[1:], jnp.float32)
    loss = metrics.cross_entropy
    return contract.check(cfg, model, state, (loss, loss), image, jax.ShapeDtypeStruct((), jnp.int32), 3)


def test_batch_norm_says_so_by_itself_and_in_anyones_network():
    """Our networks whoever applies them, and others' under the interceptor that training sets."""
    model = models.create("cifar_resnet20", stage_sizes=(1, 1, 1), conv="xla")
    x = jnp.ones((1, 4, 4, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    jax.eval_shape(model.apply, variables, x)  # evaluation takes no statistics
    jax.eval_shape(functools.partial(model.init, train=True), jax.random.key(0), x)  # and the first variables none
    with pytest.raises(InputError, match="batch norm stage3_block1/norm1"):
        jax.eval_shape(functools.partial(model.apply, train=True, mutable=["batch_stats"]), variables, x)
    theirs = nn.BatchNorm(use_running_average=False)
    x = jnp.ones((1, 5))
    variables = theirs.init(jax.random.key(0), x)
    with (
        nn.intercept_methods(refuse_lone_values),
        pytest.raises(InputError, match=r"batch norm .*: received \[1, 5\] to train on, one value a channel"),
    ):
        theirs.apply(variables, x, mutable=["batch_stats"])


@pytest.mark.parametrize("fields", [{"num_classes": 10**12}, {"dense": (10**10,)}])
def test_memory_that_can_not_be_had(fields, tmp_path):
    """How much was wanted, and how much there is; before anything is allocated."""
    cfg = dataclasses.replace(resnet({}), model=Model("fully_connected", fields))
    with pytest.raises(
        InputError, match=r"^model fully_connected: its [\d,]{15,} parameters and .* need [\d,]+\.\d GiB"
    ):
        train(cfg, tmp_path / "run", dataset=squares(8))
    assert not (tmp_path / "run").exists()


def test_fields_that_do_not_fit_each_other(tmp_path):
    cfg = dataclasses.replace(resnet({}), model=Model("cifar_resnet20", {"norm": "group3"}))
    with pytest.raises(InputError, match=r"^model\.fields: ResNet can't be built with norm='group3': ") as caught:
        train(cfg, tmp_path / "run", dataset=squares(8))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fields", [{"dtype": "float16"}, {"param_dtype": "float16"}])
def test_float16_is_refused(fields, tiny_config, tiny_data, tmp_path):
    """Gradients of float16 underflow without loss scaling, in silence."""
    cfg = dataclasses.replace(tiny_config, model=Model("tiny", fields))
    with pytest.raises(InputError, match="model tiny: it computes in float16; allowed: float32, or bfloat16"):
        train(cfg, tmp_path / "run", dataset=tiny_data)


@pytest.mark.parametrize(
    ("section", "fields", "says"),
    [
        ("train", {"seed": np.int64(3)}, r"train\.seed: received np\.int64\(3\) \(numpy\.int64\), allowed: int"),
        ("train", {"steps": "100"}, r"train\.steps: received '100' \(str\), allowed: int \| None"),
        ("train", {"steps": True}, r"train\.steps: received True \(bool\), allowed: int \| None"),
        (
            "train",
            {"dtype": "float16"},
            r"train\.dtype: received 'float16' .*allowed: 'float32', 'bfloat16', 'float64'",
        ),
        ("train", {"batch_size": 16.0}, r"train\.batch-size: received 16\.0 \(float\), allowed: int"),
        ("optimizer", {"learning_rate": np.float32(0.1)}, r"optimizer\.learning-rate: received .*numpy\.float32"),
        (
            "optimizer",
            {"factors": 0.1},
            r"optimizer\.factors: received 0\.1 \(float\), allowed: tuple\[float, \.\.\.\]",
        ),
        (
            "data",
            {"mean": np.array([0.5])},
            r"data\.mean: received array\(\[0\.5\]\) \(numpy\.ndarray\), allowed: tuple",
        ),
        ("data", {"size": (28,)}, r"data\.size: received \(28,\) \(tuple\), allowed: tuple\[int, int\] \| None"),
        (
            "model",
            {"fields": {"act": nn.relu}},
            r"model\.fields: received act=.*allowed: texts \(names of functions too",
        ),
        ("model", {"fields": {"widths": (np.int32(4),)}}, r"model\.fields: received widths=.*, allowed: texts"),
        ("model", {"fields": [1]}, r"model\.fields: received \[1\] \(list\), allowed: dict"),
        ("model", {"name": nn.Dense}, r"model\.name: received .*, allowed: str"),
        (None, "lenet5", r"model: received 'lenet5' \(str\), allowed: a cnnjax\.training\.Model"),
        (None, None, r"model: received None \(NoneType\), allowed: a cnnjax\.training\.Model"),
    ],
)
def test_a_configuration_holds_plain_values(section, fields, says, tiny_config, tiny_data, tmp_path, capsys):
    """Given to `train`, or in an experiment file's CONFIG, which says so before it parses its command line."""
    changed = dataclasses.replace(getattr(tiny_config, section), **fields) if section else fields
    cfg = dataclasses.replace(tiny_config, **{section or "model": changed})
    with pytest.raises(InputError, match=f"^{says}"):
        train(cfg, tmp_path / "run", dataset=tiny_data)
    (tmp_path / "mine.py").write_text('"""Mine."""\n')
    assert launch(cfg, str(tmp_path / "mine.py"), []) == 2
    out, err = capsys.readouterr()
    assert re.match(f"^error: {says}[^\n]*\n$", err)
    assert out == ""


def test_a_configuration_may_have_what_json_gives(tiny_config):
    """NumPy's float64 is a float; lists stand for tuples, whole numbers for real ones."""
    optimizer = Optimizer(learning_rate=np.float64(0.1), weight_decay=0, milestones=[0.5, 0.75])
    config.check_types(dataclasses.replace(tiny_config, optimizer=optimizer, data=Data(size=[28, 28])))


# ---- data ----------------------------------------------------------------------------------------------------------


def arrays(n=20):
    return data.Arrays(np.zeros((n, 9, 9, 1), np.uint8), np.arange(n, dtype=np.int32) % 2)


@pytest.mark.parametrize(
    ("loader", "says"),
    [
        (lambda **_: (arrays(), arrays()), "its function returned tuple; expected: a cnnjax.data.Dataset"),
        (lambda **_: None, "its function returned NoneType"),
        (
            lambda raw_dir: None,
            "its function can't be called with raw_dir, data_dir, cache_dir, size: got an",
        ),
        (lambda **_: data.Dataset("odd", None, None, None, ("a", "b"), {}), "train is of type NoneType; expected"),
        (lambda **_: data.Dataset("odd", arrays(), ([], []), None, ("a", "b"), {}), "split 'test': received tuple"),
        (lambda **_: data.Dataset("odd", arrays(), None, None, 2, {}), "classes must be a tuple of names, received 2"),
        (lambda **_: data.Dataset("odd", arrays(), None, None, (0, 1), {}), r"a tuple of names, received \(0, 1\)"),
    ],
)
def test_a_data_set_that_is_something_else(loader, says, monkeypatch):
    monkeypatch.setitem(data.DATASETS, "odd", loader)
    with pytest.raises(InputError, match=rf"^data set 'odd'.*{says}"):
        data.load("odd")


def test_one_class_is_refused_or_said(tiny_config, tiny_data, tmp_path):
    """A set of one class can't be got wrong; where a split has only one of several, accuracy says nothing."""
    alone = data.Arrays(tiny_data.train.image, np.zeros(100, np.int32))
    with pytest.raises(InputError, match="data set 'one': received one class only, 'a'; allowed: at least 2"):
        train(tiny_config, tmp_path / "run", dataset=data.Dataset("one", alone, None, None, ("a",), {}))
    assert sameness({"train": alone, "test": tiny_data.test}, ("a", "b", "c")) == [
        "data: all 100 train images are of one class, 'a': accuracy says nothing"
    ]


def test_balanced_classes_train_on_weighted_losses(tiny_config, tiny_data, tmp_path):
    """As the same run with a loss that has the weights; they stand in the record, and evaluation has none."""
    few = np.flatnonzero((tiny_data.train.label != 1) | (np.arange(100) % 5 == 0))
    uneven = dataclasses.replace(tiny_data, train=tiny_data.train.take(few))
    results = {}
    for name, weights in (("balanced", "balanced"), ("equal", "equal")):
        cfg = dataclasses.replace(tiny_config, train=dataclasses.replace(tiny_config.train, class_weights=weights))
        results[name] = train(cfg, tmp_path / name, dataset=uneven)
    derived = {name: json.loads((tmp_path / name / "config.json").read_text())["derived"] for name in results}
    assert derived["equal"]["class_weights"] is None
    weights = derived["balanced"]["class_weights"]
    assert weights[1] == max(weights) > 2
    assert results["balanced"]["fingerprint"] != results["equal"]["fingerprint"]
    run = cnnjax.load(tmp_path / "balanced")
    assert evaluate(run, dataset=uneven)["loss"] == pytest.approx(results["balanced"]["test_loss"], rel=1e-5)
    metrics.LOSSES["by_hand"] = lambda outputs, labels: (
        metrics.cross_entropy(outputs, labels) * jnp.asarray(weights, outputs.dtype)[labels]
    )
    try:
        cfg = dataclasses.replace(tiny_config, train=dataclasses.replace(tiny_config.train, loss="by_hand"))
        by_hand = train(cfg, tmp_path / "by hand", dataset=uneven)
    finally:
        del metrics.LOSSES["by_hand"]
    assert by_hand["fingerprint"] == results["balanced"]["fingerprint"]


def test_class_weights_need_classes(tiny_config, tiny_data, tmp_path):
    numbers = lambda arrays: data.Arrays(arrays.image, arrays.label.astype(np.float32)[:, None])
    heights = data.Dataset("heights", numbers(tiny_data.train), numbers(tiny_data.test), None, (), {"made": "here"})
    cfg = dataclasses.replace(
        tiny_config,
        train=dataclasses.replace(tiny_config.train, loss="squared_error", class_weights="balanced"),
    )
    with pytest.raises(InputError, match=r"^train\.class-weights: received 'balanced', allowed: for classes"):
        train(cfg, tmp_path / "run", dataset=heights)


@pytest.mark.parametrize(
    ("own", "stratify", "advised"), [(False, False, True), (False, True, False), (True, False, False)]
)
def test_what_would_hold_out_every_class_is_said(own, stratify, advised, tiny_config, tiny_data, tmp_path, capsys):
    """Where the validation images were chosen without regard to their classes."""
    label = np.zeros(100, np.int32)
    label[0] = 1  # so rare a class that none of it is held out
    images = dataclasses.replace(tiny_data.train, label=label)
    dataset = dataclasses.replace(tiny_data, train=images, validation=images.take(slice(1, 9)) if own else None)
    config = dataclasses.replace(
        tiny_config,
        data=dataclasses.replace(tiny_config.data, stratify=stratify, split_seed=1),
        train=dataclasses.replace(tiny_config.train, steps=1, evaluate_every=None),
    )
    train(config, tmp_path / "run", dataset=dataset)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "validation images are of one class" in line]
    assert line.endswith("accuracy says nothing" + "; --data.stratify holds out some of each class" * advised)


def test_smoothing_leaves_something_of_the_label(tiny_config, tiny_data, tmp_path):
    cfg = dataclasses.replace(tiny_config, train=dataclasses.replace(tiny_config.train, label_smoothing=1.0))
    with pytest.raises(InputError, match=r"train\.label-smoothing: received 1\.0, allowed: at least 0 and below 1"):
        train(cfg, tmp_path / "run", dataset=tiny_data)
