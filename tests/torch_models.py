"""PyTorch definitions of the image classifiers, an independent reference for the JAX networks.

They are written from the published structures. State-dict keys are those of RepDistiller (CIFAR networks), torchvision
(ImageNet networks), the PCL reproduction (bottleneck ResNets and DenseNet, as one plain network) and DGKD (plane CNNs).
Every network maps images [batch, 3, height, width] to (logits, features); features is the input of the last linear.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import BatchNorm2d, Linear, ReLU, Sequential

from tests.torch_residual import (  # noqa: F401
    FULL,
    HALF,
    BiasedWideResNet,
    InvertedResidual,
    MobileNetV1,
    MobileNetV2,
    MobileNetV2Half,
    PaddedResNet,
    PreActivationBlock,
    ResidualBlock,
    ResNet,
    Units,
    WideResNet,
    basic,
    bottleneck,
    conv,
    conv_bn,
    conv_bn_relu6,
    full_block,
    half_block,
    pool,
    resnet_4_stages,
    resnet_6n2,
    resnet_9n2,
    resnet_cifar_stem,
    resnet_imagenet,
    stage,
    wide_stage,
)


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


class LinearsVGG(nn.Module):
    """VGG-16 of OKDDip and PCL: a max pool after each of five blocks, and three linear layers, before
    which the features are taken."""

    def __init__(self, classes: int):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 64, 3, bias=True), BatchNorm2d(64)
        self.conv2, self.bn2 = conv(64, 64, 3, bias=True), BatchNorm2d(64)
        cin = 64
        for b, (n, width) in enumerate(((2, 128), (3, 256), (3, 512), (3, 512)), 1):
            layers = []
            for _ in range(n):
                layers += [conv(cin, width, 3, bias=True), BatchNorm2d(width), ReLU()]
                cin = width
            self.add_module(f"layer{b}", Sequential(*layers, nn.MaxPool2d(2)))
        hidden = [Linear(512, 512), ReLU(), nn.Identity(), Linear(512, 512), ReLU(), nn.Identity()]
        self.classifier = Sequential(*hidden, Linear(512, classes))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))), 2)
        features = self.layer4(self.layer3(self.layer2(self.layer1(x)))).flatten(1)
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
    """DenseNet-BC with three blocks of n layers; no BatchNorm after the stem, one after the last block if asked for."""

    def __init__(self, n: int, growth: int, classes: int, last_norm: bool = False):
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
        if last_norm:
            self.features.add_module("norm_final", BatchNorm2d(cin))
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
    "densenet_40_12_norm": partial(DenseNet, 6, 12, last_norm=True),
    "vgg16_linears": LinearsVGG,
    **{f"switokd_wrn_16_{k}": partial(BiasedWideResNet, k) for k in (1, 2, 8, 10)},
    "switokd_resnet20": PaddedResNet,
    "MobileNetV1": MobileNetV1,
    "mobilenet_v2_1_4": partial(MobileNetV2, width=1.4),
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
