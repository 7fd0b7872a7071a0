"""The backbones, by the names that the field's tables use.

A model is a Flax NNX module `Model(num_classes, *, image_shape, dtype, axis_name, rngs)`; called on images
`[batch, height, width, channels]` it returns `(logits [batch, classes] float32, features [batch, dim])`. `image_shape`
is (height, width, channels), and the last three are those of `orc_jax.models.layers.make_layers`.
"""

from collections.abc import Callable
from functools import partial

from flax import nnx

from orc_jax.models.densenet import DenseNet
from orc_jax.models.mobilenetv1 import MobileNetV1
from orc_jax.models.mobilenetv2 import MobileNetV2, MobileNetV2Half
from orc_jax.models.plane import Plane
from orc_jax.models.resnet import ResNet
from orc_jax.models.shufflenet import ShuffleV1, ShuffleV2
from orc_jax.models.vgg import VGG, LinearsVGG
from orc_jax.models.wrn import BiasedWideResNet, WideResNet

Model = Callable[..., nnx.Module]

# RepDistiller's ResNets: every depth 6n+2, and the "x4" ones with four times the channels (the stem has twice).
RESNETS: dict[str, Model] = {
    f"resnet{6 * n + 2}": partial(ResNet, blocks=(n, n, n), widths=(16, 16, 32, 64)) for n in range(1, 19)
}
RESNETS_X4: dict[str, Model] = {
    f"resnet{6 * n + 2}x4": partial(ResNet, blocks=(n, n, n), widths=(32, 64, 128, 256)) for n in range(1, 6)
}
# Its wide ResNets, wrn_<depth 6n+4>_<width>.
WRNS: dict[str, Model] = {
    f"wrn_{6 * n + 4}_{k}": partial(WideResNet, blocks=n, widen=k)
    for n, k in [*((n, k) for k in (1, 2) for n in range(2, 7)), (2, 4), (6, 4), (2, 8), (2, 10), (4, 10)]
}
VGGS: dict[str, Model] = {
    "vgg8": partial(VGG, convolutions=(1, 1, 1, 1, 1)),
    "vgg11": partial(VGG, convolutions=(1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, convolutions=(2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, convolutions=(2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, convolutions=(2, 2, 4, 4, 4)),
}
PLANES: dict[str, Model] = {f"plane{depth}": partial(Plane, depth=depth) for depth in (2, 4, 6, 8, 10)}

# SwitOKD's own: its code has other networks under the usual names.
SWITOKDS: dict[str, Model] = {
    **{f"switokd_wrn_16_{k}": partial(BiasedWideResNet, blocks=2, widen=k) for k in (1, 2, 8, 10)},
    "switokd_resnet20": partial(
        ResNet, blocks=(3, 3, 3), widths=(16, 16, 32, 64), shortcut="shortcut", head="linear", padded=True
    ),
    "MobileNetV1": MobileNetV1,
    "mobilenet_v2_1_4": partial(MobileNetV2, width=1.4, image_shape=(64, 64, 3)),
}

# RepDistiller's ResNets with the blocks and widths of ImageNet's and a stem for small images.
small_resnet = partial(ResNet, shortcut="shortcut", head="linear")
FOUR_STAGES = {"widths": (64, 64, 128, 256, 512)}
FOUR_BOTTLENECK_STAGES = {"widths": (64, 256, 512, 1024, 2048), "inner": (64, 128, 256, 512)}

# Networks for images of 32x32 pixels.
SMALL: dict[str, Model] = {
    **RESNETS,
    **RESNETS_X4,
    **WRNS,
    **VGGS,
    "MobileNetV2": MobileNetV2Half,
    "ShuffleV1": ShuffleV1,
    "ShuffleV2": ShuffleV2,
    "ResNet18": partial(small_resnet, blocks=(2, 2, 2, 2), **FOUR_STAGES),
    "ResNet34": partial(small_resnet, blocks=(3, 4, 6, 3), **FOUR_STAGES),
    "ResNet50": partial(small_resnet, blocks=(3, 4, 6, 3), **FOUR_BOTTLENECK_STAGES),
    # Of online distillation (ONE, OKDDip, PCL): ResNets of bottlenecks. This WRN-20-8 is no pre-activation network.
    "wrn_20_8": partial(ResNet, blocks=(2, 2, 2), widths=(16, 64, 128, 256), inner=(128, 256, 512)),
    "resnet110_bottleneck": partial(ResNet, blocks=(12, 12, 12), widths=(16, 64, 128, 256), inner=(16, 32, 64)),
    "densenet_40_12": partial(DenseNet, count=6, growth=12),
    "densenet_40_12_norm": partial(DenseNet, count=6, growth=12, last_norm=True),
    "vgg16_linears": LinearsVGG,
    **PLANES,
    **SWITOKDS,
}
# Networks for images of 224x224 pixels: torchvision's. `resnet50` is the name of a network of depth 6n+2.
large_resnet = partial(ResNet, stem="large", image_shape=(224, 224, 3))
LARGE: dict[str, Model] = {
    "resnet10": partial(large_resnet, blocks=(1, 1, 1, 1), **FOUR_STAGES),
    "resnet18": partial(large_resnet, blocks=(2, 2, 2, 2), **FOUR_STAGES),
    "resnet34": partial(large_resnet, blocks=(3, 4, 6, 3), **FOUR_STAGES),
    "imagenet_resnet50": partial(large_resnet, blocks=(3, 4, 6, 3), **FOUR_BOTTLENECK_STAGES),
    "mobilenet_v2": MobileNetV2,
}

MODELS: dict[str, Model] = {**SMALL, **LARGE}

# The parts of a network that are its last stage and its classifier: what a peer of PCL has for itself.
LAST_STAGE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys([*RESNETS, *RESNETS_X4, "wrn_20_8", "resnet110_bottleneck"], ("layer3", "fc")),
    **dict.fromkeys(WRNS, ("block3", "bn1", "fc")),
    **dict.fromkeys(VGGS, ("block4", "classifier")),
    **dict.fromkeys(("ResNet18", "ResNet34", "ResNet50"), ("layer4", "linear")),
    **dict.fromkeys(("resnet10", "resnet18", "resnet34", "imagenet_resnet50"), ("layer4", "fc")),
    "ShuffleV1": ("layer3", "linear"),
    "ShuffleV2": ("layer3", "conv2", "bn2", "linear"),
    "densenet_40_12": ("features.denseblock3", "fc"),
    "densenet_40_12_norm": ("features.denseblock3", "features.norm_final", "fc"),
    "vgg16_linears": ("layer4", "classifier"),
    **{f"switokd_wrn_16_{k}": ("layer3", "bn1", "linear") for k in (1, 2, 8, 10)},
    "switokd_resnet20": ("layer3", "linear"),
}

# How many feature points a network has (see `orc_jax.models.points`): what methods compare that look inside.
FEATURE_POINTS: dict[str, int] = {
    **dict.fromkeys([*RESNETS, *RESNETS_X4, *WRNS, "wrn_20_8", "resnet110_bottleneck", "switokd_resnet20"], 4),
    **dict.fromkeys(VGGS, 5),
    "MobileNetV2": 5,
    **dict.fromkeys(("ShuffleV1", "ShuffleV2"), 4),
    **dict.fromkeys(("ResNet18", "ResNet34", "ResNet50", "resnet10", "resnet18", "resnet34", "imagenet_resnet50"), 5),
}

# Families whose members differ in size alone, with that size: what a ladder of assistants is taken from.
LADDERS: tuple[dict[str, int], ...] = (
    {name: n for n, name in enumerate(RESNETS, start=1)},
    {name: n for n, name in enumerate(RESNETS_X4, start=1)},
    *({f"wrn_{6 * n + 4}_{k}": n for n in range(2, 7)} for k in (1, 2)),  # by depth
    {f"wrn_16_{k}": k for k in (1, 2, 4, 8, 10)},  # by width
    {"vgg8": 5, "vgg11": 8, "vgg13": 10, "vgg16": 13, "vgg19": 16},
    {f"plane{depth}": depth for depth in (2, 4, 6, 8, 10)},
    {"resnet10": 4, "resnet18": 8, "resnet34": 16},
    {"ResNet18": 8, "ResNet34": 16},
)


def ladder(teacher: str, student: str, count: int) -> tuple[str, ...]:
    """The architectures of `count` assistants between `teacher` and `student`, from large to small.

    Within one family the sizes fall geometrically, so that each network is smaller than the one before it by about the
    same factor: resnet56 and resnet20 give resnet44, resnet32, resnet26. Where there are fewer sizes between the two
    than assistants, sizes repeat. Networks of different families have no ladder between them: the assistants are then
    copies of the student.
    """
    for family in LADDERS:
        if teacher in family and student in family:
            top, ratio = family[teacher], family[student] / family[teacher]
            sizes = [top * ratio ** ((i + 1) / (count + 1)) for i in range(count)]
            return tuple(min(family, key=lambda name, size=size: abs(family[name] - size)) for size in sizes)
    return (student,) * count
