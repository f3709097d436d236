"""The networks of the benchmarks in PyTorch, as its users write them.

Each has the architecture and the parameters of `plain_flax.py`'s of that name, registered in the same order, and maps
[batch, channels, height, width] to [batch, 10]. Activations are computed in place, as torchvision's are.

Importing this file imports torch.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

relu = functools.partial(F.relu, inplace=True)
halve = functools.partial(F.max_pool2d, kernel_size=2)


class LeNet5Modern(nn.Module):
    """LeNet-5 of today: [batch, 1, 28, 28] -> [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.dense1 = nn.Linear(400, 120)
        self.dense2 = nn.Linear(120, 84)
        self.output = nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = halve(relu(self.conv1(x)))
        x = halve(relu(self.conv2(x)))
        x = x.flatten(1)
        x = relu(self.dense1(x))
        x = relu(self.dense2(x))
        return self.output(x)


class ConvNetJS(nn.Module):
    """ConvNetJS's network for CIFAR-10: [batch, 3, 32, 32] -> [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 5, padding=2)
        self.conv2 = nn.Conv2d(16, 20, 5, padding=2)
        self.conv3 = nn.Conv2d(20, 20, 5, padding=2)
        self.output = nn.Linear(320, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in (self.conv1, self.conv2, self.conv3):
            x = halve(relu(conv(x)))
        return self.output(x.flatten(1))


class GeronFashion(nn.Module):
    """Géron's network for Fashion-MNIST, with dropout: [batch, 1, 28, 28] -> [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 7, padding=3)
        self.conv2 = nn.Conv2d(64, 128, 3, padding=1)
        self.conv3 = nn.Conv2d(128, 128, 3, padding=1)
        self.conv4 = nn.Conv2d(128, 256, 3, padding=1)
        self.conv5 = nn.Conv2d(256, 256, 3, padding=1)
        self.dense1 = nn.Linear(2304, 128)
        self.dense2 = nn.Linear(128, 64)
        self.output = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = halve(relu(self.conv1(x)))
        x = halve(relu(self.conv3(relu(self.conv2(x)))))
        x = halve(relu(self.conv5(relu(self.conv4(x)))))
        x = x.flatten(1)
        for dense in (self.dense1, self.dense2):
            x = F.dropout(relu(dense(x)), 0.5, self.training)
        return self.output(x)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [batch, c, h, w] -> [batch, features, h/stride, w/stride]."""

    def __init__(self, inputs: int, features: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(features)
        self.stride, self.added = stride, features - inputs
        self.shortcut = None
        if project and self.added:
            conv = nn.Conv2d(inputs, features, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.added:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        y += x
        return relu(y)


class ResNet(nn.Module):
    """A residual network of basic blocks for small images: [batch, 3, 32, 32] -> [batch, 10]."""

    def __init__(self, widths: Sequence[int], blocks: int, project: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        self.blocks = nn.Sequential()
        inputs = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                self.blocks.append(BasicBlock(inputs, width, 2 if stage > 0 and block == 0 else 1, project))
                inputs = width
        self.output = nn.Linear(inputs, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = relu(self.norm(self.conv(x)))
        x = self.blocks(x)
        return self.output(x.mean((2, 3)))


cifar_resnet20 = functools.partial(ResNet, widths=(16, 32, 64), blocks=3, project=False)
resnet18 = functools.partial(ResNet, widths=(64, 128, 256, 512), blocks=2, project=True)


@torch.no_grad()
def copy_parameters(module: nn.Module, parameters: Sequence[np.ndarray]) -> None:
    """Gives a network of this file the parameters of one written in Flax.

    Args:
      module: the network; its parameters are overwritten.
      parameters: Flax's, in the order of creation: kernels of convolutions [height, width, input, output] and of dense
        layers [input, output], and vectors.

    Raises:
      ValueError: there are more or fewer, or one has another shape.
    """
    channels = 0  # of what the last convolution gave, until the first dense layer has seen it
    for target, value in zip(module.parameters(), parameters, strict=True):
        if value.ndim == 4:
            channels = value.shape[-1]
            value = value.transpose(3, 2, 0, 1)
        elif value.ndim == 2:
            if channels:  # the input is a flattened image, whose channels come last in Flax and first in PyTorch
                value = value.reshape(-1, channels, value.shape[-1]).swapaxes(0, 1).reshape(value.shape)
                channels = 0
            value = value.T
        if target.shape != value.shape:
            raise ValueError(f"a parameter of {type(module).__name__}: {tuple(target.shape)} is given {value.shape}")
        target.copy_(torch.from_numpy(np.array(value)))
