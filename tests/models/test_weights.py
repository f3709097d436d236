"""Weights from PyTorch and back: same weights, same outputs; what doesn't fit is named; files."""

import functools
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
