"""PyTorch definitions of networks with skip connections, and what all definitions are built from.

See `tests.torch_models`, which has all of them by name.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import BatchNorm2d, Linear, ReLU, ReLU6, Sequential


def conv(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=bias)


def pool(x: torch.Tensor) -> torch.Tensor:
    """Global average pool to [batch, channels]."""
    return x.mean((2, 3))


def stage(block: Callable[..., nn.Module], n: int, cin: int, cout: int, stride: int, *args) -> Sequential:
    """n blocks; the stride and the change of channels are in the first."""
    return Sequential(block(cin, cout, stride, *args), *[block(cout, cout, 1, *args) for _ in range(n - 1)])


class Units(nn.Module):
    """Convolutions conv1, conv2, ..., each with its BatchNorm bn1, bn2, ..."""

    def __init__(self, *convs: nn.Conv2d):
        super().__init__()
        for i, module in enumerate(convs, 1):
            self.add_module(f"conv{i}", module)
            self.add_module(f"bn{i}", BatchNorm2d(module.out_channels))

    def unit(self, i: int, x: torch.Tensor) -> torch.Tensor:
        return self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x))


# Post-activation ResNets.


class ResidualBlock(Units):
    def __init__(self, convs: list[nn.Conv2d], stride: int, shortcut: str):
        super().__init__(*convs)
        cin, cout = convs[0].in_channels, convs[-1].out_channels
        project = [conv(cin, cout, 1, stride), BatchNorm2d(cout)] if stride != 1 or cin != cout else []
        self.add_module(shortcut, Sequential(*project))
        self.count, self.shortcut_name, self.last_norm = len(convs), shortcut, f"bn{len(convs)}"

    def forward(self, x):
        y = x
        for i in range(1, self.count):
            y = F.relu(self.unit(i, y))
        return F.relu(self.unit(self.count, y) + self.get_submodule(self.shortcut_name)(x))


def basic(cin: int, cout: int, stride: int, width: int, shortcut: str) -> ResidualBlock:
    return ResidualBlock([conv(cin, width, 3, stride), conv(width, cout, 3)], stride, shortcut)


def bottleneck(cin: int, cout: int, stride: int, width: int, shortcut: str) -> ResidualBlock:
    return ResidualBlock([conv(cin, width, 1), conv(width, width, 3, stride), conv(width, cout, 1)], stride, shortcut)


class ResNet(Units):
    """Stages of blocks (inner widths `widths`, outputs `couts`), with stride 1 in the first and 2 in the others."""

    def __init__(self, stem: nn.Conv2d, block, repeats, widths, couts, names: tuple[str, str], classes: int):
        super().__init__(stem)
        shortcut, self.linear_name = names
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem.stride == (2, 2) else nn.Identity()
        self.layers, cin = [], stem.out_channels
        for i, (n, width, cout) in enumerate(zip(repeats, widths, couts, strict=True), 1):
            self.add_module(f"layer{i}", stage(block, n, cin, cout, 1 if i == 1 else 2, width, shortcut))
            self.layers.append(f"layer{i}")
            cin = cout
        self.add_module(self.linear_name, Linear(cin, classes))

    def forward(self, x):
        x = self.maxpool(F.relu(self.unit(1, x)))
        for name in self.layers:
            x = self.get_submodule(name)(x)
        features = pool(x)
        return self.get_submodule(self.linear_name)(features), features


def resnet_6n2(n: int, stem: int, widths: tuple[int, ...], classes: int) -> ResNet:
    return ResNet(conv(3, stem, 3), basic, [n] * 3, widths, widths, ("downsample", "fc"), classes)


def resnet_9n2(n: int, widths: tuple[int, ...], classes: int) -> ResNet:
    """The bottleneck networks of the PCL reproduction: its resnet110 and, with wider inner layers, its "WRN-20-8"."""
    return ResNet(conv(3, 16, 3), bottleneck, [n] * 3, widths, (64, 128, 256), ("downsample", "fc"), classes)


def resnet_4_stages(stem: tuple[int, int], names: tuple[str, str], block, repeats, classes: int) -> ResNet:
    widths = [64, 128, 256, 512]
    couts = [4 * width for width in widths] if block is bottleneck else widths
    return ResNet(conv(3, 64, *stem), block, repeats, widths, couts, names, classes)


resnet_cifar_stem = partial(resnet_4_stages, (3, 1), ("shortcut", "linear"))
resnet_imagenet = partial(resnet_4_stages, (7, 2), ("downsample", "fc"))


# Wide ResNets.


class PreActivationBlock(nn.Module):
    last_norm = "bn2"

    def __init__(self, cin: int, cout: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = BatchNorm2d(cin), conv(cin, cout, 3, stride)
        self.bn2, self.conv2 = BatchNorm2d(cout), conv(cout, cout, 3)
        self.convShortcut = conv(cin, cout, 1, stride) if cin != cout else None

    def forward(self, x):
        a = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(a))))
        return y + (x if self.convShortcut is None else self.convShortcut(a))


def wide_stage(n: int, cin: int, cout: int, stride: int) -> Sequential:
    return Sequential(OrderedDict(layer=stage(PreActivationBlock, n, cin, cout, stride)))


class WideResNet(nn.Module):
    def __init__(self, depth: int, k: int, classes: int):
        super().__init__()
        n = (depth - 4) // 6
        self.conv1 = conv(3, 16, 3)
        self.block1 = wide_stage(n, 16, 16 * k, 1)
        self.block2 = wide_stage(n, 16 * k, 32 * k, 2)
        self.block3 = wide_stage(n, 32 * k, 64 * k, 2)
        self.bn1 = BatchNorm2d(64 * k)
        self.fc = Linear(64 * k, classes)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        features = pool(F.relu(self.bn1(x)))
        return self.fc(features), features


# MobileNetV2: RepDistiller's half-width network and torchvision's. Stages: expansion, channels, blocks, stride.

HALF = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
FULL = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    def __init__(self, layers: list[nn.Module], skip: bool):
        super().__init__()
        self.conv, self.skip = Sequential(*layers), skip
        self.last_norm = f"conv.{len(layers) - 1}" if skip else None

    def forward(self, x):
        return x + self.conv(x) if self.skip else self.conv(x)


def conv_bn(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, activation=ReLU) -> Sequential:
    return Sequential(conv(cin, cout, kernel, stride, groups), BatchNorm2d(cout), activation())


conv_bn_relu6 = partial(conv_bn, activation=ReLU6)


def half_block(cin: int, cout: int, stride: int, expansion: int) -> InvertedResidual:
    mid = cin * expansion
    layers = [*conv_bn(cin, mid, 1), *conv_bn(mid, mid, 3, stride, mid), conv(mid, cout, 1), BatchNorm2d(cout)]
    return InvertedResidual(layers, stride == 1 and cin == cout)


class MobileNetV2Half(nn.Module):
    """ReLU, and a 1x1 convolution also in the block of expansion 1."""

    def __init__(self, classes: int):
        super().__init__()
        self.conv1 = conv_bn(3, 16, 3, 2)
        self.blocks, cin = Sequential(), 16
        for expansion, cout, n, stride in HALF:
            self.blocks.append(stage(half_block, n, cin, cout, stride, expansion))
            cin = cout
        self.conv2 = conv_bn(160, 1280, 1)
        self.classifier = Sequential(Linear(1280, classes))

    def forward(self, x):
        features = pool(self.conv2(self.blocks(self.conv1(x))))
        return self.classifier(features), features


def full_block(cin: int, cout: int, stride: int, expansion: int) -> InvertedResidual:
    mid = cin * expansion
    expand = [conv_bn_relu6(cin, mid, 1)] if expansion != 1 else []
    layers = [*expand, conv_bn_relu6(mid, mid, 3, stride, mid), conv(mid, cout, 1), BatchNorm2d(cout)]
    return InvertedResidual(layers, stride == 1 and cin == cout)


def eights(channels: float) -> int:
    """Rounded to a multiple of 8, but not down by more than a tenth."""
    rounded = max(8, 8 * int(channels / 8 + 0.5))
    return rounded if rounded >= 0.9 * channels else rounded + 8


class MobileNetV2(nn.Module):
    """torchvision's, its dropout replaced by the identity."""

    def __init__(self, classes: int, width: float = 1.0):
        super().__init__()
        cin, last = eights(32 * width), eights(1280 * max(width, 1.0))
        self.features = Sequential(conv_bn_relu6(3, cin, 3, 2))
        for expansion, channels, n, stride in FULL:
            cout = eights(channels * width)
            self.features.extend(stage(full_block, n, cin, cout, stride, expansion))
            cin = cout
        self.features.append(conv_bn_relu6(cin, last, 1))
        self.classifier = Sequential(nn.Identity(), Linear(last, classes))

    def forward(self, x):
        features = pool(self.features(x))
        return self.classifier(features), features


# SwitOKD's own networks.


class BiasedBlock(nn.Module):
    """Biases everywhere, the stride in the second 3x3, and a shortcut of the raw input."""

    last_norm = "bn2"

    def __init__(self, cin: int, cout: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = BatchNorm2d(cin), conv(cin, cout, 3, bias=True)
        self.bn2, self.conv2 = BatchNorm2d(cout), conv(cout, cout, 3, stride, bias=True)
        changes = stride != 1 or cin != cout
        self.shortcut = Sequential(*([conv(cin, cout, 1, stride, bias=True)] if changes else []))

    def forward(self, x):
        return self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x)))))) + self.shortcut(x)


class BiasedWideResNet(nn.Module):
    """Depth 16; the last BatchNorm has momentum 0.9."""

    def __init__(self, k: int, classes: int):
        super().__init__()
        self.conv1 = conv(3, 16, 3, bias=True)
        self.layer1 = stage(BiasedBlock, 2, 16, 16 * k, 1)
        self.layer2 = stage(BiasedBlock, 2, 16 * k, 32 * k, 2)
        self.layer3 = stage(BiasedBlock, 2, 32 * k, 64 * k, 2)
        self.bn1, self.linear = BatchNorm2d(64 * k, momentum=0.9), Linear(64 * k, classes)

    def forward(self, x):
        features = pool(F.relu(self.bn1(self.layer3(self.layer2(self.layer1(self.conv1(x)))))))
        return self.linear(features), features


class PaddedBlock(Units):
    """Option A: the shortcut takes every second pixel, and has zeros for the channels that are missing."""

    last_norm = "bn2"

    def __init__(self, cin: int, cout: int, stride: int):
        super().__init__(conv(cin, cout, 3, stride), conv(cout, cout, 3))
        self.missing = cout - cin

    def forward(self, x):
        y = self.unit(2, F.relu(self.unit(1, x)))
        if self.missing:
            zeros = x.new_zeros(len(x), self.missing // 2, *y.shape[2:])
            x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)
        return F.relu(y + x)


class PaddedResNet(Units):
    def __init__(self, classes: int):
        super().__init__(conv(3, 16, 3))
        for i, (cin, cout) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
            self.add_module(f"layer{i}", stage(PaddedBlock, 3, cin, cout, 1 if i == 1 else 2))
        self.linear = Linear(64, classes)

    def forward(self, x):
        features = pool(self.layer3(self.layer2(self.layer1(F.relu(self.unit(1, x))))))
        return self.linear(features), features


class SeparableBlock(Units):
    def __init__(self, cin: int, cout: int, stride: int):
        super().__init__(conv(cin, cin, 3, stride, groups=cin), conv(cin, cout, 1))

    def forward(self, x):
        return F.relu(self.unit(2, F.relu(self.unit(1, x))))


class MobileNetV1(Units):
    def __init__(self, classes: int):
        super().__init__(conv(3, 32, 3))
        self.layers, cin = Sequential(), 32
        for cout in (64, 128, 128, 256, 256, *[512] * 6, 1024, 1024):
            self.layers.append(SeparableBlock(cin, cout, 2 if cout > cin >= 64 else 1))
            cin = cout
        self.linear = Linear(1024, classes)

    def forward(self, x):
        features = pool(self.layers(F.relu(self.unit(1, x))))
        return self.linear(features), features
