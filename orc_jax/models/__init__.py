"""The backbones, by the names that the field's tables use.

A model is a Flax NNX module `Model(num_classes, *, image_shape, dtype, axis_name, rngs)`; called on images
`[batch, height, width, channels]` it returns `(logits [batch, classes] float32, features [batch, dim])`. `image_shape`
is (height, width, channels), and the last three are those of `orc_jax.models.layers.make_layers`.
"""

from collections.abc import Callable
from functools import partial

from flax import nnx

from orc_jax.models import efficientnet
from orc_jax.models.convnext import ConvNeXt
from orc_jax.models.densenet import DenseNet
from orc_jax.models.efficientnet import EfficientNet
from orc_jax.models.mobilenetv1 import MobileNetV1
from orc_jax.models.mobilenetv2 import MobileNetV2, MobileNetV2Half
from orc_jax.models.plane import Plane
from orc_jax.models.resnet import ResNet
from orc_jax.models.shufflenet import ShuffleV1, ShuffleV2
from orc_jax.models.vgg import VGG, LinearsVGG
from orc_jax.models.vit import Mixer, VisionTransformer, last_quarter
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

# Vision transformers, all of 12 blocks: DeiT's and timm's are the same networks, with other weights and recipes.
VIT_SIZES = {
    "tiny": {"features": 192, "heads": 3},
    "small": {"features": 384, "heads": 6},
    "base": {"features": 768, "heads": 12},
}
SMALL_VITS: dict[str, Model] = {
    f"deit_{size}_patch4_32": partial(VisionTransformer, patch=4, image_shape=(32, 32, 3), **numbers)
    for size, numbers in VIT_SIZES.items()
}
LARGE_VITS: dict[str, Model] = {
    f"{family}_{size}_patch16_224": partial(VisionTransformer, **numbers)
    for family in ("deit", "vit")
    for size, numbers in VIT_SIZES.items()
}
mixer_small = partial(Mixer, features=512, blocks=8)
CONVNEXT_SIZES = {
    "atto": {"blocks": (2, 2, 6, 2), "widths": (40, 80, 160, 320)},
    "femto": {"blocks": (2, 2, 6, 2), "widths": (48, 96, 192, 384)},
    "pico": {"blocks": (2, 2, 6, 2), "widths": (64, 128, 256, 512)},
    "nano": {"blocks": (2, 2, 8, 2), "widths": (80, 160, 320, 640)},
    "tiny": {"blocks": (3, 3, 9, 3), "widths": (96, 192, 384, 768), "convolutional": False},
}
SMALL_CONVNEXTS: dict[str, Model] = {
    f"convnext_{size}_32": partial(ConvNeXt, patch=1, image_shape=(32, 32, 3), **numbers)
    for size, numbers in CONVNEXT_SIZES.items()
}
LARGE_CONVNEXTS: dict[str, Model] = {
    f"convnext_{size}": partial(ConvNeXt, **numbers) for size, numbers in CONVNEXT_SIZES.items()
}
EFFICIENTNETS: dict[str, dict] = {
    "efficientnet_b0": {"stages": efficientnet.B0, "stem": 32, "style": efficientnet.efficient()},
    "efficientnet_b1": {"stages": efficientnet.B1, "stem": 32, "style": efficientnet.efficient()},
    "tf_efficientnetv2_s": {
        "stages": efficientnet.V2_S,
        "stem": 24,
        "style": efficientnet.efficient(same=True, eps=1e-3),
    },
    "mobilenetv3_small_100": {"stages": efficientnet.V3_SMALL, "stem": 16, "style": efficientnet.mobile(head=1024)},
    "mobilenetv3_large_100": {"stages": efficientnet.V3_LARGE, "stem": 16, "style": efficientnet.mobile()},
}

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
    **SMALL_VITS,
    "mixer_s4_32": partial(mixer_small, patch=4, image_shape=(32, 32, 3)),
    **SMALL_CONVNEXTS,
}
# Networks for larger images, most of 224x224 pixels: torchvision's, and from `resnet18d` on timm's. `resnet50` is the
# name of a network of depth 6n+2.
large_resnet = partial(ResNet, stem="large", image_shape=(224, 224, 3))
LARGE: dict[str, Model] = {
    "resnet10": partial(large_resnet, blocks=(1, 1, 1, 1), **FOUR_STAGES),
    "resnet18": partial(large_resnet, blocks=(2, 2, 2, 2), **FOUR_STAGES),
    "resnet34": partial(large_resnet, blocks=(3, 4, 6, 3), **FOUR_STAGES),
    "imagenet_resnet50": partial(large_resnet, blocks=(3, 4, 6, 3), **FOUR_BOTTLENECK_STAGES),
    "mobilenet_v2": MobileNetV2,
    "resnet18d": partial(large_resnet, stem="deep", blocks=(2, 2, 2, 2), **FOUR_STAGES),
    "resnet34d": partial(large_resnet, stem="deep", blocks=(3, 4, 6, 3), **FOUR_STAGES),
    "resnet50d": partial(large_resnet, stem="deep", blocks=(3, 4, 6, 3), **FOUR_BOTTLENECK_STAGES),
    **LARGE_VITS,
    "mixer_s16_224": mixer_small,
    **LARGE_CONVNEXTS,
    **{name: partial(EfficientNet, **numbers) for name, numbers in EFFICIENTNETS.items()},
}
# The sides of the images that a network is made for, where they are not those of its group.
SIDES: dict[str, int] = {"efficientnet_b1": 240, "tf_efficientnetv2_s": 300}
# Whose weights for ImageNet at timm have seen images in [-1, 1], by half as mean and deviation.
HALF = (*(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base")), "mixer_s16_224", "tf_efficientnetv2_s")

MODELS: dict[str, Model] = {**SMALL, **LARGE}


def last_blocks(blocks: int) -> tuple[str, ...]:
    """The parts of the last stage of a transformer or a mixer."""
    return (*(f"blocks.{i}" for i in range(last_quarter(blocks), blocks)), "norm", "head")


# The parts of a network that are its last stage and its classifier: what a peer of PCL has for itself.
LAST_STAGE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys([*RESNETS, *RESNETS_X4, "wrn_20_8", "resnet110_bottleneck"], ("layer3", "fc")),
    **dict.fromkeys(WRNS, ("block3", "bn1", "fc")),
    **dict.fromkeys(VGGS, ("block4", "classifier")),
    **dict.fromkeys(("ResNet18", "ResNet34", "ResNet50"), ("layer4", "linear")),
    **dict.fromkeys(("resnet10", "resnet18", "resnet34", "imagenet_resnet50"), ("layer4", "fc")),
    **dict.fromkeys(("resnet18d", "resnet34d", "resnet50d"), ("layer4", "fc")),
    "ShuffleV1": ("layer3", "linear"),
    "ShuffleV2": ("layer3", "conv2", "bn2", "linear"),
    "densenet_40_12": ("features.denseblock3", "fc"),
    "densenet_40_12_norm": ("features.denseblock3", "features.norm_final", "fc"),
    "vgg16_linears": ("layer4", "classifier"),
    **{f"switokd_wrn_16_{k}": ("layer3", "bn1", "linear") for k in (1, 2, 8, 10)},
    "switokd_resnet20": ("layer3", "linear"),
    # without stages: the last quarter of the blocks
    **dict.fromkeys([*SMALL_VITS, *LARGE_VITS], last_blocks(12)),
    **dict.fromkeys(("mixer_s4_32", "mixer_s16_224"), last_blocks(8)),
    **dict.fromkeys([*SMALL_CONVNEXTS, *LARGE_CONVNEXTS], ("stages.3", "head")),
    **{
        name: efficientnet.parts_of_last_stage(numbers["stages"], numbers["style"])
        for name, numbers in EFFICIENTNETS.items()
    },
}

# How many feature points a network has (see `orc_jax.models.points`): what methods compare that look inside.
FEATURE_POINTS: dict[str, int] = {
    **dict.fromkeys([*RESNETS, *RESNETS_X4, *WRNS, "wrn_20_8", "resnet110_bottleneck", "switokd_resnet20"], 4),
    **dict.fromkeys(VGGS, 5),
    "MobileNetV2": 5,
    **dict.fromkeys(("ShuffleV1", "ShuffleV2"), 4),
    **dict.fromkeys(("ResNet18", "ResNet34", "ResNet50", "resnet10", "resnet18", "resnet34", "imagenet_resnet50"), 5),
    **dict.fromkeys(("resnet18d", "resnet34d", "resnet50d"), 5),
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
    {"resnet18d": 8, "resnet34d": 16},
    # by width, as the parameters of a block grow with its square
    *(
        {name.format(size): numbers["features"] for size, numbers in VIT_SIZES.items()}
        for name in ("deit_{}_patch4_32", "deit_{}_patch16_224", "vit_{}_patch16_224")
    ),
    *(
        {name.format(size): numbers["widths"][0] for size, numbers in CONVNEXT_SIZES.items()}
        for name in ("convnext_{}", "convnext_{}_32")
    ),
    {"efficientnet_b0": 16, "efficientnet_b1": 23},
    {"mobilenetv3_small_100": 11, "mobilenetv3_large_100": 15},
)


def sides(name: str) -> int:
    """Height and width of the images that a network is made for."""
    return SIDES.get(name, 224 if name in LARGE else 32)


def ladder(teacher: str, student: str, count: int) -> tuple[str, ...]:
    """The architectures of `count` assistants between `teacher` and `student`, from large to small.

    Within one family the sizes fall geometrically, so that each network is smaller than the one before it by about the
    same factor: resnet56 and resnet20 give resnet44, resnet32, resnet26. Each is the nearest that there is, so where
    these lie far apart sizes repeat. Networks of different families have no ladder between them: the assistants are
    then copies of the student.
    """
    for family in LADDERS:
        if teacher in family and student in family:
            top, ratio = family[teacher], family[student] / family[teacher]
            sizes = [top * ratio ** ((i + 1) / (count + 1)) for i in range(count)]
            return tuple(min(family, key=lambda name, size=size: abs(family[name] - size)) for size in sizes)
    return (student,) * count
