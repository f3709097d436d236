"""Weights from PyTorch and back: same weights, same outputs; what doesn't fit is named; files."""

import argparse
import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models
from cnnjax.models import weights
from cnnjax.ops import InputError

torch = pytest.importorskip("torch")

from torch_networks import NETWORKS  # noqa: E402  after it is known that there is PyTorch

IMAGES = {"alexnet_torchvision": 67, "vgg16_bn": 40, "googlenet_torchvision": 66}
"""The sides of the images, where not 64: such that windows reach over borders."""


def randomized(name, classes=7):
    """PyTorch's network in double precision: all that can be mixed up differs from 0 and 1."""
    torch.manual_seed(0)
    net = NETWORKS[name](classes).double()
    with torch.no_grad():
        for key, value in net.state_dict().items():
            if key.endswith("running_var") or (value.ndim == 1 and key.endswith("weight")):
                value.uniform_(0.5, 1.5)
            elif value.ndim == 1:
                value.normal_(0, 0.1)
            elif value.ndim > 1:
                value.normal_(0, (2 / value[0].numel()) ** 0.5)
    return net


def image(name, batch=2):
    side = IMAGES.get(name, 64)
    return np.random.default_rng(0).normal(size=(batch, side, side + 1, 3))


LARGE = set(NETWORKS) - {"alexnet_torchvision", "resnet18"}  # five seconds and more each


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in NETWORKS]
)
def test_same_weights_same_outputs_and_back(name, x64):
    """PyTorch's outputs, in float64 to 1e-9 and in float32 to 1e-4. What came from PyTorch goes back bit for bit, under
    the names that strict loading wants."""
    net, x = randomized(name).eval(), image(name)
    with torch.no_grad():
        expected = net(torch.tensor(x).permute(0, 3, 1, 2)).numpy()
    # By XLA's convolution in float64, which is quicker to compile, and as it comes in float32.
    for dtype, tolerance, conv in (("float64", 1e-9, "xla"), ("float32", 1e-4, "auto")):
        net = net.to(getattr(torch, dtype))
        model = models.create(name, num_classes=7, dtype=dtype, param_dtype=dtype, conv=conv)
        variables = weights.from_torch(net.state_dict(), model, x.shape[1:])
        got = jax.jit(model.apply)(variables, jnp.asarray(x, dtype))
        assert got.dtype == jnp.dtype(dtype)
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())
        back = weights.to_torch(variables, model)
        assert set(back) == set(net.state_dict())
        for key, value in net.state_dict().items():
            np.testing.assert_array_equal(back[key], value.numpy(), err_msg=key)
        net.load_state_dict({key: torch.from_numpy(value) for key, value in back.items()})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_training_mode_and_every_gradient(name, x64):
    """With the batch's statistics, in float64: logits, and the gradient of each parameter, to 1e-6."""
    net, x = randomized(name).train(), image(name, batch=3)
    model = models.create(name, num_classes=7, dtype="float64", param_dtype="float64")
    variables = weights.from_torch(net.state_dict(), model, x.shape[1:])
    weight = np.random.default_rng(1).normal(size=(3, 7))

    def energy(params):
        logits, _ = model.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])
        return (logits * weight).sum(), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(energy, has_aux=True))(variables["params"])
    expected = net(torch.tensor(x).permute(0, 3, 1, 2))
    (expected * torch.tensor(weight)).sum().backward()
    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=0, atol=1e-6 * expected.abs().max().item())
    ours = weights.to_torch(variables | {"params": gradients}, model)  # under the names of the parameters
    theirs = {key: value.grad.numpy() for key, value in net.named_parameters()}
    assert len(theirs) == len(jax.tree.leaves(gradients))
    for key, value in theirs.items():
        np.testing.assert_allclose(ours[key], value, rtol=0, atol=1e-6 * np.abs(value).max(), err_msg=key)


def test_auxiliary_logits():
    """Those of the side heads in training, dropout aside."""
    name = "googlenet_torchvision"
    net, x = randomized(name).float().train(), image(name).astype(np.float32)
    model = models.create(name, num_classes=7, conv="xla", dropout=0.0, aux_dropout=0.0)
    variables = weights.from_torch(net.state_dict(), model, x.shape[1:])
    run = jax.jit(functools.partial(model.apply, train=True, mutable=["aux_logits", "batch_stats"]))
    logits, changed = run(variables, x)
    with torch.no_grad():
        expected = net(torch.tensor(x).permute(0, 3, 1, 2))
    for ours, theirs in zip(
        (logits, *(changed["aux_logits"][k][0] for k in ("aux1", "aux2"))), (expected, *net.aux), strict=True
    ):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=2e-3 * theirs.abs().max().item())


def test_what_does_not_fit_is_named():
    model = models.create("resnet18", num_classes=7, conv="xla")
    state = randomized("resnet18").state_dict()
    state["layer9.weight"] = state.pop("fc.bias")
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    with pytest.raises(InputError) as caught:
        weights.from_torch(state, model, (64, 64, 3))
    assert str(caught.value) == (
        "weights: they don't fit ResNet: missing: fc.bias; not of this network: layer9.weight; "
        "of another shape: conv1.weight (64, 3, 3, 3) instead of (64, 3, 7, 7)"
    )
    with pytest.raises(InputError, match="model: received LeNet5; allowed: a network of the AlexNet"):
        weights.from_torch(state, models.create("lenet5"), (32, 32, 1))


def test_what_people_have_in_their_files():
    """Names of a parallel module, bfloat16, tensors with gradients, heads that are not wanted."""
    net = randomized("resnet18").float()
    plain = weights.from_torch(net.state_dict(), models.create("resnet18", num_classes=7), (64, 64, 3))
    parallel = {f"module.{key}": value for key, value in net.state_dict().items()}
    again = weights.from_torch(parallel, models.create("resnet18", num_classes=7), (64, 64, 3))
    jax.tree.map(np.testing.assert_array_equal, again, plain)
    half = models.load_torch(net.bfloat16().state_dict(), "resnet18", num_classes=7)
    assert half["params"]["conv1"]["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        half["params"]["output"]["bias"], plain["params"]["output"]["bias"].astype(jnp.bfloat16)
    )
    learnt = {**dict(net.float().named_parameters()), **dict(net.named_buffers())}
    body = models.load_torch(learnt, "resnet18", num_classes=0)
    assert set(plain["params"]) - set(body["params"]) == {"output"}
    inception = randomized("googlenet_torchvision").float().state_dict()
    without = models.load_torch(inception, "googlenet_torchvision", num_classes=7, aux=False)
    assert not {name for name in without["params"] if name.startswith("aux")}
    with pytest.raises(InputError, match=r"missing: bn1\.bias"):
        models.load_torch({}, "resnet18")


def test_torchvisions_own_files():
    """Its files of DenseNet have older names than its network; its GoogLeNet with weights brings images to another
    mean and deviation first."""
    net = randomized("densenet121").float()
    state = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value for key, value in net.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    old = models.load_torch(state, "densenet121", num_classes=7)
    jax.tree.map(np.testing.assert_array_equal, old, models.load_torch(net.state_dict(), "densenet121", num_classes=7))
    x = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    plain, moved = (
        models.create("googlenet_torchvision", num_classes=7, aux=False, conv="xla", transform_input=it)
        for it in (False, True)
    )
    state = randomized("googlenet_torchvision").float().state_dict()
    variables = models.load_torch(state, "googlenet_torchvision", num_classes=7, aux=False)
    pixels = x * std + mean
    expected = jax.jit(plain.apply)(variables, jnp.asarray((pixels - 0.5) / 0.5, jnp.float32))
    np.testing.assert_allclose(jax.jit(moved.apply)(variables, x), expected, rtol=1e-3, atol=1e-3)


def test_other_channels_and_heads(draw):
    """The image's channels are those of the first kernel; a dense layer behind a map sees it position by position."""
    model = models.create("vgg11", num_classes=3, dense=(), grid=(2, 2), conv="xla")
    state = weights.to_torch(draw(model, jnp.ones((1, 32, 32, 1))), model)
    assert state["features.0.weight"].shape == (64, 1, 3, 3)
    variables = models.load_torch(state, "vgg11", num_classes=3, dense=(), grid=(2, 2))
    feature, channel, row, column = 1, 5, 0, 1
    kernel = variables["params"]["output"]["kernel"].reshape(2, 2, 512, 3)
    np.testing.assert_allclose(
        kernel[row, column, channel, feature],
        state["classifier.0.weight"].reshape(3, 512, 2, 2)[feature, channel, row, column],
        rtol=1e-6,
    )


def test_the_way_back_checks_too():
    model = models.create("resnet18", num_classes=7, conv="xla")
    variables = weights.from_torch(randomized("resnet18").float().state_dict(), model, (64, 64, 3))
    for wrong, net in (
        ({}, model),
        (variables["params"], model),
        (variables, models.create("resnet34", num_classes=7)),
        (variables, models.create("vgg11", num_classes=7)),
    ):
        with pytest.raises(InputError, match="weights: they don't fit") as caught:
            weights.to_torch(wrong, net)
        assert len(str(caught.value)) < 5000


class Trap:
    """What a pickle that executes looks like."""

    def __reduce__(self):
        return (pytest.fail, ("code in a file of weights was run",))


def test_files(tmp_path):
    """A state dict from either format; never code from a pickle; one line for what is none."""
    state = randomized("resnet18").float().state_dict()
    torch.save(state, tmp_path / "weights.pth")
    read = weights.read_torch(tmp_path / "weights.pth")
    assert set(read) == set(state)
    np.testing.assert_array_equal(read["fc.weight"], state["fc.weight"].numpy())
    loaded = models.load_torch(tmp_path / "weights.pth", "resnet18", num_classes=7)
    np.testing.assert_array_equal(loaded["params"]["output"]["kernel"], state["fc.weight"].numpy().T)
    torch.save({"weight": Trap()}, tmp_path / "trap.pth")
    (tmp_path / "text.pth").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "checkpoint.pth")
    assert set(weights.read_torch(tmp_path / "checkpoint.pth")) == set(state)
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "text.safetensors").write_text("hello")
    for name, says in {
        "trap.pth": "cannot be read as weights alone",
        "text.pth": "cannot be read as weights alone",
        "list.pth": "holds no state dict",
        "none.pth": "there is none",
        "empty.pth": "cannot be read as weights alone",
        "folder.pth": "a folder",
        "text.safetensors": "is no safetensors file",
    }.items():
        with pytest.raises(InputError, match=says) as caught:
            weights.read_torch(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="path: received NoneType; allowed: a file of weights"):
        weights.read_torch(None)


SMALL = {"num_classes": 3, "stage_sizes": (1, 1), "widths": (4, 8), "conv": "xla"}


@pytest.fixture(scope="module")
def small():
    """A state dict of a small ResNet, of arrays."""
    model = models.create("resnet18", **SMALL)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    rng = np.random.default_rng(0)
    return weights.to_torch(jax.tree.map(lambda leaf: rng.uniform(1, 2, leaf.shape).astype(np.float32), shapes), model)


def load_small(state):
    return models.load_torch(state, "resnet18", **SMALL)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_floats_are_converted_where_they_must_be_and_the_rest_is_refused(small):
    """float64 becomes float32, with a warning where digits are lost; what is no floating-point number is no weight."""
    expected = load_small(small)
    widened = {name: value.astype(np.float64) for name, value in small.items()}
    same(load_small(widened), expected)  # no digit is lost, and nothing said: warnings are errors here
    widened["fc.bias"] = widened["fc.bias"] + 1e-12
    with pytest.warns(UserWarning, match=r"digits are lost in fc\.bias \(float64 to float32\); jax\.config\.update"):
        assert load_small(widened)["params"]["output"]["bias"].dtype == jnp.float32
    with jax.enable_x64(True):
        assert load_small(widened)["params"]["output"]["bias"].dtype == jnp.float64
    bias = torch.from_numpy(small["fc.bias"])
    eighths = bias.to(torch.float8_e4m3fn)
    got = load_small({**small, "fc.bias": eighths})["params"]["output"]["bias"]
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, eighths.float().numpy())
    for wrong, says in (
        (widened["fc.bias"] + 1e300, "fc.bias is float64 with values that float32 can't hold"),
        (small["fc.bias"].astype(np.longdouble), "fc.bias is float128"),
        (small["fc.bias"].astype(np.uint16), "fc.bias is uint16; allowed: floating-point numbers"),
        (bias.long(), "fc.bias is int64; allowed: floating-point numbers"),
        (bias.to(torch.complex64), "fc.bias is complex64; allowed: floating-point numbers"),
        (bias.to_sparse(), "fc.bias is sparse; allowed: its to_dense()"),
        (bias.to("meta"), "fc.bias is on the meta device"),
        ([1.0, 2.0, 3.0], "fc.bias is of type list; allowed: tensors and arrays"),
        (None, "fc.bias is of type NoneType"),
    ):
        with pytest.raises(InputError) as caught:
            load_small({**small, "fc.bias": wrong})
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_said(small, tmp_path):
    """A file of a training that diverged: taken as it is, and named."""
    infinite = np.full_like(small["fc.weight"], np.inf)
    diverged = {**small, "fc.bias": small["fc.bias"] * np.float32("nan"), "fc.weight": infinite}
    says = "weights: there is NaN or infinity in (fc.weight, fc.bias|fc.bias, fc.weight)$"
    with pytest.warns(UserWarning, match=says):
        variables = load_small(diverged)
    weights.save_safetensors(tmp_path / "it.safetensors", variables)
    with pytest.warns(UserWarning, match="NaN or infinity in params/output/bias, params/output/kernel"):
        same(weights.load_safetensors(tmp_path / "it.safetensors"), variables)


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation")
def test_quantized_tensors_are_refused(small):
    bias = torch.quantize_per_tensor(torch.from_numpy(small["fc.bias"]), 0.1, 0, torch.qint8)
    with pytest.raises(InputError, match=r"fc\.bias is quantized; allowed: its dequantize\(\)"):
        load_small({**small, "fc.bias": bias})


def test_names_of_wrapped_modules(small):
    """Of parallel and compiled ones, whole or in part, in any order of wrapping, and of lightning's."""
    expected = load_small(small)
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "module.model."):
        same(load_small({prefix + name: value for name, value in small.items()}), expected)
    averaged = {f"module.{name}": value for name, value in small.items()} | {"n_averaged": np.int64(3)}
    same(load_small(averaged), expected)
    in_part = {name.replace("layer1.", "layer1.module."): value for name, value in small.items()}
    same(load_small(in_part), expected)
    for wrong, says in (
        ({**small, 3: small["fc.bias"]}, r"received the name 3 \(int\); allowed: text"),
        (
            {**small, "module.fc.bias": small["fc.bias"]},
            r"fc\.bias and module\.fc\.bias are both the network's fc\.bias",
        ),
        ("weights.pth", "path: received weights.pth; allowed: a file of weights"),
        (3, "weights: received int; allowed: a state dict, or a file of one"),
        ({"epoch": 3, "optimizer": {}}, "weights: no state dict of names to tensors; its keys: epoch, optimizer"),
    ):
        with pytest.raises(InputError, match=says):
            load_small(wrong)


def test_a_module_in_place_of_a_file():
    net, fields = randomized("resnet18", classes=3).float(), {"num_classes": 3, "conv": "xla"}
    same(models.load_torch(net, "resnet18", **fields), models.load_torch(net.state_dict(), "resnet18", **fields))
    with pytest.raises(InputError, match=r"weights: they don't fit ResNet: missing: bn1\.bias"):
        load_small(torch.nn.Linear(2, 2))


def test_the_stem_is_found_by_its_name_in_a_sorted_file(tmp_path):
    """Sorted, GoogLeNet's state dict begins with a convolution of an auxiliary head, of 512 channels."""
    state = randomized("googlenet_torchvision").float().state_dict()
    fields = {"num_classes": 7, "conv": "xla"}
    expected = models.load_torch(state, "googlenet_torchvision", **fields)
    safetensors = pytest.importorskip("safetensors.torch")  # whose files are sorted
    safetensors.save_file(dict(sorted(state.items())), tmp_path / "it.safetensors")
    assert next(iter(weights.read_torch(tmp_path / "it.safetensors"))).startswith("aux1")
    same(models.load_torch(tmp_path / "it.safetensors", "googlenet_torchvision", **fields), expected)


def test_files_of_training_scripts(small, tmp_path):
    """As torchvision's and timm's write them, with a Namespace; a moving average beside is said; other things named."""
    tensors = {name: torch.from_numpy(value) for name, value in small.items()}
    args = argparse.Namespace(lr=0.1, data="somewhere")
    expected, path = load_small(small), tmp_path / "it.pth"
    for content in (
        {"model": tensors, "optimizer": {"state": {}}, "epoch": 3, "args": args},
        {"epoch": 3, "arch": "resnet18", "state_dict": tensors, "version": 2, "args": args},
        {"model_state_dict": {f"module.{name}": value for name, value in tensors.items()}},
    ):
        torch.save(content, path)
        same(load_small(path), expected)
    torch.save({"model": tensors, "model_ema": tensors, "args": args}, path)
    with pytest.warns(UserWarning, match="'model' is taken; the moving average beside it is 'model_ema'"):
        same(load_small(path), expected)
    for content, says in (
        ({"epoch": 3, "args": args}, "no state dict of names to tensors; its keys: epoch, args"),
        (args, "holds no state dict of names to tensors, but Namespace"),
        (
            {"model": tensors, "at": pathlib.PurePosixPath("x")},
            r"holds pathlib\.PurePosixPath, and no code in a file is",
        ),
        ({"fc.weight": tensors["fc.weight"], "fc.bias": 3}, r"fc\.bias is of type int"),
    ):
        torch.save(content, path)
        with pytest.raises(InputError, match=says):
            load_small(path)


def test_safetensors_round_trip(tmp_path, draw):
    """Equal bit for bit, statistics and bfloat16 included."""
    model = models.create("cifar_resnet20", stage_sizes=(1, 1, 1), param_dtype="bfloat16")
    variables = draw(model, jnp.ones((1, 8, 8, 3)))
    weights.save_safetensors(tmp_path / "it.safetensors", variables)
    again = weights.load_safetensors(tmp_path / "it.safetensors")
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(again), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match=r"nowhere/it\.safetensors can't be written"):
        weights.save_safetensors(tmp_path / "nowhere" / "it.safetensors", variables)


def test_safetensors_keeps_types_and_names_or_says_that_it_cannot(tmp_path):
    path, third = tmp_path / "it.safetensors", np.ones(2) / 3
    eighth = np.arange(3).astype(jnp.float8_e4m3fn)
    odd = {"a": {"x": third, "n": np.int64([7]), "e": eighth, "t": np.arange(6.0, dtype="f").reshape(2, 3).T}}
    weights.save_safetensors(path, odd)
    with jax.enable_x64(True):
        again = weights.load_safetensors(path)["a"]
        for name, leaf in odd["a"].items():
            assert again[name].dtype == leaf.dtype
            np.testing.assert_array_equal(again[name], leaf)
    with pytest.warns(UserWarning, match=r"digits are lost in a/x \(float64 to float32\)"):
        again = weights.load_safetensors(path)["a"]
    assert again["n"] == 7
    weights.save_safetensors(path, {"n": np.int64([2**40])})
    with pytest.raises(InputError, match="n is int64 with values that int32 can't hold"):
        weights.load_safetensors(path)
    before = path.read_bytes()
    for wrong, says in (
        ({"params": {"a": {"b": third}, "a/b": third}}, "received the name 'a/b'; allowed: text without '/'"),
        ({"params": {1: third}}, "received the name 1; allowed: text"),
        ({"params": [third]}, "params is of type list; allowed: arrays of numbers"),
        ({"params": {"key": jax.random.key(0)}}, "params/key is of type .*; allowed: arrays of numbers"),
        ({"params": {"x": np.array(["text"])}}, "can't be written: Unknown dtype"),
    ):
        with pytest.raises(InputError, match=says):
            weights.save_safetensors(path, wrong)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file({"params/x": third, "params/x/y": third}, path)
    with pytest.raises(InputError, match="holds both params/x and params/x/y"):
        weights.load_safetensors(path)


def test_a_full_disk_is_said_and_the_file_before_stays(tmp_path, monkeypatch):
    """A limit on the size of files stands for the disk."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "it.safetensors"
    weights.save_safetensors(path, {"x": np.zeros(3, np.float32)})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"it\.safetensors can't be written: .*File too large"):
            weights.save_safetensors(path, {"x": np.zeros(100_000, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
