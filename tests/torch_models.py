"""PyTorch definitions of the image classifiers, an independent reference for the JAX networks.

They are written from the published structures. State-dict keys are those of RepDistiller (CIFAR networks), torchvision
(ImageNet networks), the PCL reproduction (bottleneck ResNets and DenseNet, as one plain network) and DGKD (plane CNNs).
Every network maps images [batch, 3, height, width] to (logits, features); features is the input of the last linear.
"""

import math
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


class VGG(nn.Module):
    """With BatchNorm. Maps of 32, 16, 8, 4 and 4; a fourth max pool only for 64x64 images."""

    def __init__(self, repeats: tuple[int, ...], classes: int):
        super().__init__()
        cin = 3
        for b, (n, width) in enumerate(zip(repeats, (64, 128, 256, 512, 512), strict=True)):
            layers = []
            for _ in range(n):
                layers += [conv(cin, width, 3, bias=True), BatchNorm2d(width), ReLU()]
                cin = width
            self.add_module(f"block{b}", Sequential(*layers))
        self.classifier = Linear(512, classes)

    def forward(self, x):
        pools = 4 if x.shape[2] == 64 else 3
        for b in range(5):
            x = self.get_submodule(f"block{b}")(x)
            x = F.max_pool2d(x, 2) if b < pools else x
        features = pool(x)
        return self.classifier(features), features


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


class MobileNetV2(nn.Module):
    """torchvision's, its dropout replaced by the identity."""

    def __init__(self, classes: int):
        super().__init__()
        self.features, cin = Sequential(conv_bn_relu6(3, 32, 3, 2)), 32
        for expansion, cout, n, stride in FULL:
            self.features.extend(stage(full_block, n, cin, cout, stride, expansion))
            cin = cout
        self.features.append(conv_bn_relu6(320, 1280, 1))
        self.classifier = Sequential(nn.Identity(), Linear(1280, classes))

    def forward(self, x):
        features = pool(self.features(x))
        return self.classifier(features), features


# ShuffleNets.


def shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleV1Block(Units):
    """With a ReLU after the depthwise convolution too. At stride 2 the pooled input is concatenated, not added."""

    def __init__(self, cin: int, cout: int, stride: int):
        cout = cout - cin if stride == 2 else cout
        mid, groups = cout // 4, 1 if cin == 24 else 3
        depthwise = conv(mid, mid, 3, stride, groups=mid)
        super().__init__(conv(cin, mid, 1, groups=groups), depthwise, conv(mid, cout, 1, groups=3))
        self.stride, self.groups, self.last_norm = stride, groups, "bn3" if stride == 1 else None

    def forward(self, x):
        y = shuffle(F.relu(self.unit(1, x)), self.groups)
        y = self.unit(3, F.relu(self.unit(2, y)))
        if self.stride == 2:
            return F.relu(torch.cat([y, F.avg_pool2d(x, 3, 2, 1, count_include_pad=True)], 1))
        return F.relu(y + x)


class ShuffleV1(Units):
    def __init__(self, classes: int):
        super().__init__(conv(3, 24, 1))
        for i, (cin, cout, n) in enumerate(((24, 240, 4), (240, 480, 8), (480, 960, 4)), 1):
            self.add_module(f"layer{i}", stage(ShuffleV1Block, n, cin, cout, 2))
        self.linear = Linear(960, classes)

    def forward(self, x):
        features = pool(self.layer3(self.layer2(self.layer1(F.relu(self.unit(1, x))))))
        return self.linear(features), features


class ShuffleV2Down(Units):
    def __init__(self, cin: int, cout: int):
        half = cout // 2
        left = conv(cin, cin, 3, 2, groups=cin), conv(cin, half, 1)
        super().__init__(*left, conv(cin, half, 1), conv(half, half, 3, 2, groups=half), conv(half, half, 1))

    def forward(self, x):
        left = F.relu(self.unit(2, self.unit(1, x)))
        right = F.relu(self.unit(5, self.unit(4, F.relu(self.unit(3, x)))))
        return shuffle(torch.cat([left, right], 1), 2)


class ShuffleV2Block(Units):
    def __init__(self, channels: int):
        half = channels // 2
        super().__init__(conv(half, half, 1), conv(half, half, 3, groups=half), conv(half, half, 1))

    def forward(self, x):
        kept, y = x.chunk(2, 1)
        y = F.relu(self.unit(3, self.unit(2, F.relu(self.unit(1, y)))))
        return shuffle(torch.cat([kept, y], 1), 2)


class ShuffleV2(Units):
    def __init__(self, classes: int):
        super().__init__(conv(3, 24, 1), conv(464, 1024, 1))
        for i, (cin, cout, n) in enumerate(((24, 116, 3), (116, 232, 7), (232, 464, 3)), 1):
            rest = [ShuffleV2Block(cout) for _ in range(n)]
            self.add_module(f"layer{i}", Sequential(ShuffleV2Down(cin, cout), *rest))
        self.linear = Linear(1024, classes)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.unit(1, x)))))
        features = pool(F.relu(self.unit(2, x)))
        return self.linear(features), features


# DenseNet.


class DenseLayer(nn.Module):
    def __init__(self, cin: int, growth: int):
        super().__init__()
        self.norm1, self.conv1 = BatchNorm2d(cin), conv(cin, 4 * growth, 1)
        self.norm2, self.conv2 = BatchNorm2d(4 * growth), conv(4 * growth, growth, 3)

    def forward(self, x):
        y = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y)))], 1)


class Transition(nn.Module):
    def __init__(self, cin: int):
        super().__init__()
        self.norm, self.conv = BatchNorm2d(cin), conv(cin, cin // 2, 1)

    def forward(self, x):
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class DenseNet(nn.Module):
    """DenseNet-BC with three blocks of n layers; no BatchNorm after the stem and none after the last block."""

    def __init__(self, n: int, growth: int, classes: int):
        super().__init__()
        cin = 2 * growth
        self.features = Sequential()
        self.features.add_module("conv0", conv(3, cin, 3))
        for b in (1, 2, 3):
            block = Sequential()
            for i in range(n):
                block.add_module(f"denselayer{i + 1}", DenseLayer(cin + i * growth, growth))
            self.features.add_module(f"denseblock{b}", block)
            cin += n * growth
            if b < 3:
                self.features.add_module(f"transition{b}", Transition(cin))
                cin //= 2
        self.fc = Linear(cin, classes)

    def forward(self, x):
        features = pool(F.relu(self.features(x)))
        return self.fc(features), features


# DGKD's plane CNNs: widths of the convolutions, M for a max pool, F for a hidden linear layer.

PLANE_10 = {
    2: "16 M 16 M",
    4: "16 16 M 32 32 M",
    6: "16 16 M 32 32 M 64 64 M",
    8: "16 16 M 32 32 M 64 64 M 128 128 M F64",
    10: "32 32 M 64 64 M 128 128 M 256 256 256 256 M F128",
}
PLANE_100 = {
    2: "32 M 32 M",
    4: "32 32 M 64 64 M",
    6: "32 32 M 64 64 M 128 128",
    8: "32 32 M 64 64 M 128 128 M 256 256 M F64",
    10: "32 32 M 64 64 M 128 128 M 256 256 256 256 M F512",
}


class Plane(nn.Module):
    """For 32x32 images: the maps are flattened, channels first."""

    def __init__(self, depth: int, classes: int):
        super().__init__()
        self.conv_layers, self.fc_layers = Sequential(), Sequential()
        cin, size = 3, 32
        for item in (PLANE_10 if classes <= 10 else PLANE_100)[depth].split():
            if item == "M":
                self.conv_layers.append(nn.MaxPool2d(2))
                size //= 2
            elif item.startswith("F"):
                self.fc_layers.extend([Linear(cin * size**2, int(item[1:])), ReLU()])
                cin, size = int(item[1:]), 1
            else:
                self.conv_layers.extend([conv(cin, int(item), 3, bias=True), BatchNorm2d(int(item)), ReLU()])
                cin = int(item)
        self.fc_layers.append(Linear(cin * size**2, classes))

    def forward(self, x):
        features = self.fc_layers[:-1](self.conv_layers(x).flatten(1))
        return self.fc_layers[-1](features), features


MODELS: dict[str, Callable[[int], nn.Module]] = {
    **{f"resnet{6 * n + 2}": partial(resnet_6n2, n, 16, (16, 32, 64)) for n in range(1, 19)},
    **{f"resnet{6 * n + 2}x4": partial(resnet_6n2, n, 32, (64, 128, 256)) for n in range(1, 6)},
    **{f"wrn_{d}_{k}": partial(WideResNet, d, k) for d in (16, 22, 28, 34, 40) for k in (1, 2)},
    **{f"wrn_{d}_{k}": partial(WideResNet, d, k) for d, k in ((16, 4), (40, 4), (16, 8), (16, 10), (28, 10))},
    "wrn_20_8": partial(resnet_9n2, 2, (128, 256, 512)),
    "resnet110_bottleneck": partial(resnet_9n2, 12, (16, 32, 64)),
    "vgg8": partial(VGG, (1, 1, 1, 1, 1)),
    "vgg11": partial(VGG, (1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, (2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, (2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, (2, 2, 4, 4, 4)),
    "MobileNetV2": MobileNetV2Half,
    "ShuffleV1": ShuffleV1,
    "ShuffleV2": ShuffleV2,
    "ResNet18": partial(resnet_cifar_stem, basic, (2, 2, 2, 2)),
    "ResNet34": partial(resnet_cifar_stem, basic, (3, 4, 6, 3)),
    "ResNet50": partial(resnet_cifar_stem, bottleneck, (3, 4, 6, 3)),
    "densenet_40_12": partial(DenseNet, 6, 12),
    **{f"plane{depth}": partial(Plane, depth) for depth in PLANE_100},
    # For ImageNet.
    "resnet10": partial(resnet_imagenet, basic, (1, 1, 1, 1)),
    "resnet18": partial(resnet_imagenet, basic, (2, 2, 2, 2)),
    "resnet34": partial(resnet_imagenet, basic, (3, 4, 6, 3)),
    "imagenet_resnet50": partial(resnet_imagenet, bottleneck, (3, 4, 6, 3)),
    "mobilenet_v2": MobileNetV2,
}


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> nn.Module:
    """Draws every parameter and buffer, at scales that keep the activations of deep networks moderate in both modes."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | Linear):
            module.weight.normal_(0, math.sqrt(2 / module.weight[0].numel()), generator=generator)
            if module.bias is not None:
                module.bias.normal_(0, 0.1, generator=generator)
        elif isinstance(module, BatchNorm2d):
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(0, 0.2, generator=generator)
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.num_batches_tracked.random_(1, 1000, generator=generator)
    for module in model.modules():
        if getattr(module, "last_norm", None):  # of a residual branch, whose sums would grow otherwise
            module.get_submodule(module.last_norm).weight.mul_(0.3)
    return model
