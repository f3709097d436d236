"""ResNets against an independent definition in PyTorch, and what their parts promise."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models
from cnnjax.models import resnet
from cnnjax.models.layers import BatchNorm, bind_norm, drop_examples, square_conv

KEY = jax.random.key(0, impl="unsafe_rbg")  # compiles in a fraction of the default generator's time


def torch_resnet(blocks, widths, stem, shortcut, num_classes):
    """A ResNet of basic blocks, written for this test from He et al.; modules are called by torchvision's names."""
    torch = pytest.importorskip("torch")
    tnn = torch.nn

    class Pad(tnn.Module):  # shortcut A
        def __init__(self, extra, stride):
            super().__init__()
            self.extra, self.stride = extra, stride

        def forward(self, x):
            return tnn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))

    class Block(tnn.Module):
        def __init__(self, cin, cout, stride):
            super().__init__()
            self.conv1 = tnn.Conv2d(cin, cout, 3, stride, 1, bias=False)
            self.bn1 = tnn.BatchNorm2d(cout)
            self.conv2 = tnn.Conv2d(cout, cout, 3, 1, 1, bias=False)
            self.bn2 = tnn.BatchNorm2d(cout)
            self.downsample = tnn.Identity()
            if stride != 1 or cin != cout:
                projection = tnn.Sequential(tnn.Conv2d(cin, cout, 1, stride, bias=False), tnn.BatchNorm2d(cout))
                self.downsample = projection if shortcut == "B" else Pad(cout - cin, stride)

        def forward(self, x):
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            return torch.relu(y + self.downsample(x))

    class Net(tnn.Module):
        def __init__(self):
            super().__init__()
            if stem == "imagenet":
                self.conv1 = tnn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
                self.pool = tnn.MaxPool2d(3, 2, 1)
            else:
                self.conv1 = tnn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
                self.pool = tnn.Identity()
            self.bn1 = tnn.BatchNorm2d(widths[0])
            cin = widths[0]
            for s, (n, width) in enumerate(zip(blocks, widths, strict=True), 1):
                stage = [Block(cin if b == 0 else width, width, 2 if s > 1 and b == 0 else 1) for b in range(n)]
                setattr(self, f"layer{s}", tnn.Sequential(*stage))
                cin = width
            self.fc = tnn.Linear(cin, num_classes)

        def forward(self, x):
            x = self.pool(torch.relu(self.bn1(self.conv1(x))))
            for s in range(1, len(blocks) + 1):
                x = getattr(self, f"layer{s}")(x)
            return self.fc(x.mean((2, 3)))

    return Net().double()


def pairs(variables, net):
    """(our parameters, our statistics, torch's module) of each layer that has any."""
    torch = pytest.importorskip("torch")
    params, stats = variables["params"], variables["batch_stats"]
    yield params["conv1"], None, net.conv1
    yield params["norm1"], stats["norm1"], net.bn1
    yield params["output"], None, net.fc
    for name in params:
        if not name.startswith("stage"):
            continue
        stage, block = name.removeprefix("stage").split("_block")
        theirs = getattr(net, f"layer{stage}")[int(block) - 1]
        for i in (1, 2):
            yield params[name][f"conv{i}"], None, getattr(theirs, f"conv{i}")
            yield params[name][f"norm{i}"], stats[name][f"norm{i}"], getattr(theirs, f"bn{i}")
        if isinstance(theirs.downsample, torch.nn.Sequential):
            yield params[name]["shortcut_conv"], None, theirs.downsample[0]
            yield params[name]["shortcut_norm"], stats[name]["shortcut_norm"], theirs.downsample[1]


def load(variables, net):
    """Gives torch's network our weights, and checks that none was left out."""
    torch = pytest.importorskip("torch")
    loaded = 0
    with torch.no_grad():
        for params, stats, module in pairs(variables, net):
            loaded += models.count_parameters(params)
            if stats is not None:
                module.weight.copy_(torch.tensor(params["scale"]))
                module.bias.copy_(torch.tensor(params["bias"]))
                module.running_mean.copy_(torch.tensor(stats["mean"]))
                module.running_var.copy_(torch.tensor(stats["var"]))
            elif params["kernel"].ndim == 4:
                module.weight.copy_(torch.tensor(params["kernel"].transpose(3, 2, 0, 1)))
            else:
                module.weight.copy_(torch.tensor(params["kernel"].T))
                module.bias.copy_(torch.tensor(params["bias"]))
    assert loaded == models.count_parameters(variables) == sum(p.numel() for p in net.parameters())


def both(draw, name, blocks, widths, side, num_classes, **fields):
    """Our model with random weights, torch's with the same, and images for each."""
    torch = pytest.importorskip("torch")
    model = models.create(name, num_classes=num_classes, dtype="float64", param_dtype="float64", **fields)
    x = np.random.default_rng(1).normal(size=(4, side, side, 3))
    variables = jax.tree.map(np.asarray, draw(model, x))
    net = torch_resnet(blocks, widths, model.stem, model.shortcut, num_classes)
    load(variables, net)
    return model, variables, x, net, torch.tensor(x.transpose(0, 3, 1, 2))


def relative_error(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def test_resnet18_against_pytorch(draw, x64):
    torch = pytest.importorskip("torch")
    model, variables, x, net, x_torch = both(draw, "resnet18", (2, 2, 2, 2), (64, 128, 256, 512), 64, 1000)
    with torch.no_grad():
        theirs = net.eval()(x_torch).numpy()
    assert relative_error(jax.jit(model.apply)(variables, x), theirs) < 1e-9


@pytest.mark.parametrize(("shortcut", "side"), [("A", 32), ("B", 15)])
def test_cifar_resnet20_against_pytorch(shortcut, side, draw, x64):
    torch = pytest.importorskip("torch")
    model, variables, x, net, x_torch = both(
        draw, "cifar_resnet20", (3, 3, 3), (16, 32, 64), side, 10, shortcut=shortcut
    )
    with torch.no_grad():
        theirs = net.eval()(x_torch).numpy()
    assert relative_error(jax.jit(model.apply)(variables, x), theirs) < 1e-9


def test_cifar_resnet20_training_against_pytorch(draw, x64):
    """Training mode: logits, every gradient, and the running statistics that follow."""
    torch = pytest.importorskip("torch")
    model, variables, x, net, x_torch = both(draw, "cifar_resnet20", (3, 3, 3), (16, 32, 64), 16, 10)
    labels = np.array([3, 1, 4, 1])

    @jax.jit
    def step(params):
        def loss(params):
            logits, new = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return -jax.nn.log_softmax(logits)[jnp.arange(4), labels].mean(), (logits, new["batch_stats"])

        return jax.grad(loss, has_aux=True)(params)

    gradients, (logits, stats) = step(variables["params"])
    sizes = {}  # how many values each norm averaged over
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(lambda m, args, out: sizes.update({m: args[0].numel() // args[0].shape[1]}))
    theirs = net.train()(x_torch)
    torch.nn.functional.cross_entropy(theirs, torch.tensor(labels)).backward()
    assert relative_error(logits, theirs.detach().numpy()) < 1e-9

    before = {module: old for _, old, module in pairs(variables, net)}
    for gradient, new, module in pairs({"params": gradients, "batch_stats": stats}, net):
        expected = module.weight.grad.numpy()
        if new is not None:
            assert relative_error(gradient["scale"], expected) < 1e-8
            assert relative_error(gradient["bias"], module.bias.grad.numpy()) < 1e-8
            assert relative_error(new["mean"], module.running_mean.numpy()) < 1e-9
            # torch keeps the unbiased variance, Flax the biased one.
            n, old = sizes[module], before[module]["var"]
            biased = 0.9 * old + (module.running_var.numpy() - 0.9 * old) * (n - 1) / n
            assert relative_error(new["var"], biased) < 1e-9
        elif expected.ndim == 4:
            assert relative_error(gradient["kernel"], expected.transpose(2, 3, 1, 0)) < 1e-8
        else:
            assert relative_error(gradient["kernel"], expected.T) < 1e-8


def test_shortcut_a_subsamples_and_has_zeros_in_the_new_channels():
    x = jax.random.normal(jax.random.key(0), (2, 6, 7, 3))
    y = resnet.pad_channels(x, 5, 2, conv=None, norm=None)
    assert y.shape == (2, 3, 4, 5)
    np.testing.assert_array_equal(y[..., :3], x[:, ::2, ::2])
    np.testing.assert_array_equal(y[..., 3:], 0)
    np.testing.assert_array_equal(resnet.pad_channels(2 * x + 1, 3, 2, conv=None, norm=None), 2 * y[..., :3] + 1)


def make_block(block, zero):
    norm = bind_norm(BatchNorm, train=True, dtype=None, param_dtype=jnp.float32)
    last = functools.partial(norm, scale_init=nn.initializers.zeros) if zero else norm
    conv = functools.partial(square_conv, conv=jax.lax.conv_general_dilated)
    drop = drop_examples(0.0, train=True)
    return block(8, 1, conv=conv, norm=norm, last_norm=last, act=nn.relu, shortcut=resnet.project, drop=drop)


@pytest.mark.parametrize(("block", "channels"), [(resnet.BasicBlock, 8), (resnet.BottleneckBlock, 32)])
def test_a_block_with_zero_gamma_is_an_identity(block, channels):
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, channels))
    for zero in (True, False):
        y, _ = jax.jit(make_block(block, zero).init_with_output)(KEY, x)
        assert (y == nn.relu(x)).all() == zero


def test_zero_init_residual_is_off_as_published_and_zeroes_the_last_scale_of_each_branch():
    for zero in (False, True):
        model = models.create("resnet50", stage_sizes=(1, 2), widths=(4, 8), zero_init_residual=zero)
        params = jax.jit(model.init)(KEY, jnp.ones((1, 16, 16, 3)))["params"]
        for name in ("stage1_block1", "stage2_block1", "stage2_block2"):
            for norm in ("norm1", "norm2"):
                np.testing.assert_array_equal(params[name][norm]["scale"], 1)
            np.testing.assert_array_equal(params[name]["norm3"]["scale"], 0 if zero else 1)
    assert not models.create("resnet50").zero_init_residual


def test_kernels_start_he_normal_by_fan_out():
    params = jax.jit(models.create("cifar_resnet20").init)(KEY, jnp.ones((1, 8, 8, 3)))["params"]
    kernel = params["stage3_block1"]["conv1"]["kernel"]
    assert kernel.shape == (3, 3, 32, 64)
    np.testing.assert_allclose(kernel.var(), 2 / (9 * 64), rtol=0.05)


def test_only_training_changes_the_batch_statistics(draw):
    model = models.create("cifar_resnet20", stage_sizes=(1, 1, 1))
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    variables = draw(model, x)
    apply = jax.jit(functools.partial(model.apply, mutable=["batch_stats"]), static_argnames="train")
    _, evaluated = apply(variables, x, train=False)
    _, trained = apply(variables, x, train=True)
    jax.tree.map(np.testing.assert_array_equal, evaluated["batch_stats"], variables["batch_stats"])
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), trained["batch_stats"], variables["batch_stats"])
    assert all(jax.tree.leaves(changed))


@pytest.mark.parametrize("norm", ["group", "layer", "none"])
def test_other_norms_keep_no_statistics_and_train_as_they_evaluate(norm, draw):
    model = models.create("cifar_resnet20", stage_sizes=(1, 1, 1), norm=norm)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    variables = draw(model, x)
    assert set(variables) == {"params"}
    apply = jax.jit(model.apply, static_argnames="train")
    np.testing.assert_array_equal(apply(variables, x, train=True), apply(variables, x, train=False))


def test_explicit_padding_is_not_same_padding_on_an_even_input():
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
    ours = square_conv(4, 3, 2, 1, conv=jax.lax.conv_general_dilated)
    same = ours.clone(padding="SAME")
    variables = ours.init(jax.random.key(1), x)
    assert ours.apply(variables, x).shape == same.apply(variables, x).shape
    assert (ours.apply(variables, x) != same.apply(variables, x)).any()


def test_v1_has_its_stride_on_the_first_1x1():
    fields = {"stage_sizes": (1, 1), "widths": (4, 8), "stem": "cifar", "num_classes": 3}
    model = models.create("resnet50", **fields, block=functools.partial(resnet.BottleneckBlock, stride_on="1x1"))
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    capture = functools.partial(model.apply, capture_intermediates=True, mutable=["intermediates"])
    inside = jax.eval_shape(capture, variables, x)[1]["intermediates"]["stage2_block1"]
    assert [inside[f"conv{i}"]["__call__"][0].shape[1] for i in (1, 2, 3)] == [4, 4, 4]
    with pytest.raises(ValueError, match="unknown stride_on '3x1'"):
        make_block(functools.partial(resnet.BottleneckBlock, stride_on="3x1"), zero=False)
