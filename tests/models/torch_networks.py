"""The published networks once more, in PyTorch, written for the tests; modules are called by torchvision's names."""

import pytest

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional


# --- AlexNet and VGG --------------------------------------------------------------------------------------------------


class Sequential(nn.Module):
    """Features, a grid by adaptive pooling, a classifier."""

    def __init__(self, features, grid, classifier):
        super().__init__()
        self.features, self.classifier, self.grid = nn.Sequential(*features), nn.Sequential(*classifier), grid

    def forward(self, x):
        return self.classifier(functional.adaptive_avg_pool2d(self.features(x), self.grid).flatten(1))


def alexnet(classes):
    features = []
    for cin, cout, window, stride, pad, pooled in [
        (3, 64, 11, 4, 2, True),
        (64, 192, 5, 1, 2, True),
        (192, 384, 3, 1, 1, False),
        (384, 256, 3, 1, 1, False),
        (256, 256, 3, 1, 1, True),
    ]:
        features += [nn.Conv2d(cin, cout, window, stride, pad), nn.ReLU()]
        if pooled:
            features.append(nn.MaxPool2d(3, 2))
    hidden = [nn.Dropout(), nn.Linear(9216, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()]
    return Sequential(features, (6, 6), [*hidden, nn.Linear(4096, classes)])


def vgg16_bn(classes):
    features, cin = [], 3
    for cout, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convolutions):
            features += [nn.Conv2d(cin, cout, 3, 1, 1), nn.BatchNorm2d(cout), nn.ReLU()]
            cin = cout
        features.append(nn.MaxPool2d(2))
    hidden = [nn.Linear(25088, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()]
    return Sequential(features, (7, 7), [*hidden, nn.Linear(4096, classes)])


# --- GoogLeNet --------------------------------------------------------------------------------------------------------


class Unit(nn.Module):
    def __init__(self, cin, cout, window, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, window, stride, window // 2, bias=False)
        self.bn = nn.BatchNorm2d(cout, eps=0.001)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    def __init__(self, cin, one, reduce3, three, reduce5, five, project):
        super().__init__()
        self.branch1 = Unit(cin, one, 1)
        self.branch2 = nn.Sequential(Unit(cin, reduce3, 1), Unit(reduce3, three, 3))
        self.branch3 = nn.Sequential(Unit(cin, reduce5, 1), Unit(reduce5, five, 3))  # 3, as in torchvision
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), Unit(cin, project, 1))

    def forward(self, x):
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class Auxiliary(nn.Module):
    def __init__(self, cin, classes):
        super().__init__()
        self.conv = Unit(cin, 128, 1)
        self.fc1, self.fc2 = nn.Linear(2048, 1024), nn.Linear(1024, classes)

    def forward(self, x):
        x = self.conv(functional.adaptive_avg_pool2d(x, (4, 4))).flatten(1)
        return self.fc2(torch.relu(self.fc1(x)))  # without its dropout, for comparison


INCEPTIONS = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


class GoogLeNet(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = Unit(3, 64, 7, 2), Unit(64, 64, 1), Unit(64, 192, 3)
        for name, widths in INCEPTIONS.items():
            setattr(self, f"inception{name}", Inception(*widths))
        self.aux1, self.aux2 = Auxiliary(512, classes), Auxiliary(528, classes)
        self.fc = nn.Linear(1024, classes)

    def forward(self, x):
        pool = lambda x, window=3: functional.max_pool2d(x, window, 2, ceil_mode=True)
        x = pool(self.conv3(self.conv2(pool(self.conv1(x)))))
        x = pool(self.inception3b(self.inception3a(x)))
        x = self.inception4a(x)
        self.aux = [self.aux1(x)]
        x = self.inception4d(self.inception4c(self.inception4b(x)))
        self.aux.append(self.aux2(x))
        x = pool(self.inception4e(x), 2)
        return self.fc(self.inception5b(self.inception5a(x)).mean((2, 3)))


# --- ResNets ----------------------------------------------------------------------------------------------------------


class Basic(nn.Module):
    expansion = 1

    def __init__(self, cin, width, stride, groups, base_width):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(cin, width, stride)

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, cin, width, stride, groups, base_width):
        super().__init__()
        inner = width * base_width // 64 * groups
        self.conv1 = nn.Conv2d(cin, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = shortcut(cin, 4 * width, stride)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


def shortcut(cin, cout, stride):
    if cin == cout and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))


class ResNet(nn.Module):
    def __init__(self, classes, block, sizes, groups=1, base_width=64):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        cin = 64
        for stage, blocks in enumerate(sizes):
            layers = []
            for i in range(blocks):
                layers.append(block(cin, 64 * 2**stage, 2 if stage and i == 0 else 1, groups, base_width))
                cin = 64 * 2**stage * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(cin, classes)

    def forward(self, x):
        x = functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


# --- DenseNet ---------------------------------------------------------------------------------------------------------


class DenseLayer(nn.Module):
    def __init__(self, cin, k):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(cin), nn.Conv2d(cin, 4 * k, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * k), nn.Conv2d(4 * k, k, 3, 1, 1, bias=False)

    def forward(self, x):
        y = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(y)))], 1)


class DenseNet(nn.Module):
    def __init__(self, classes, sizes=(6, 12, 24, 16), k=32, channels=64):
        super().__init__()
        self.features = nn.Sequential()
        self.features.conv0 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        self.features.norm0, self.features.relu0 = nn.BatchNorm2d(channels), nn.ReLU()
        self.features.pool0 = nn.MaxPool2d(3, 2, 1)
        for b, layers in enumerate(sizes, 1):
            block = nn.Sequential()
            for i in range(1, layers + 1):
                setattr(block, f"denselayer{i}", DenseLayer(channels, k))
                channels += k
            setattr(self.features, f"denseblock{b}", block)
            if b < len(sizes):
                transition = nn.Sequential()
                transition.norm, transition.relu = nn.BatchNorm2d(channels), nn.ReLU()
                transition.conv = nn.Conv2d(channels, channels // 2, 1, bias=False)
                transition.pool = nn.AvgPool2d(2)
                channels //= 2
                setattr(self.features, f"transition{b}", transition)
        self.features.norm5 = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x):
        return self.classifier(torch.relu(self.features(x)).mean((2, 3)))


NETWORKS = {
    "alexnet_torchvision": alexnet,
    "vgg16_bn": vgg16_bn,
    "googlenet_torchvision": GoogLeNet,
    "resnet18": lambda classes: ResNet(classes, Basic, (2, 2, 2, 2)),
    "resnet50": lambda classes: ResNet(classes, Bottleneck, (3, 4, 6, 3)),
    "resnext50_32x4d": lambda classes: ResNet(classes, Bottleneck, (3, 4, 6, 3), groups=32, base_width=4),
    "wide_resnet50_2": lambda classes: ResNet(classes, Bottleneck, (3, 4, 6, 3), base_width=128),
    "densenet121": DenseNet,
}
"""By our names: a function from the number of classes to a `torch.nn.Module`."""
