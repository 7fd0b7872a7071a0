"""Every registered backbone: exact counts of its trainable parameters, as the field's tables give them."""

import jax
import pytest

from orc_jax.models import LARGE, MODELS
from orc_jax.models.network import make_network, weight_shapes
from tests.conftest import TINY

# Trainable parameters for 100 and for 10 classes, from the PyTorch classes. A block of each stage more adds 97,216 to
# the plain networks (4,640 + 18,560 + 74,016) and 1,550,080 to the "x4" ones.
PUBLISHED = {
    "resnet8": (83_892, 78_042),
    "resnet14": (181_108, 175_258),
    "resnet20": (278_324, 272_474),
    "resnet26": (375_540, 369_690),
    "resnet32": (472_756, 466_906),
    "resnet38": (569_972, 564_122),
    "resnet44": (667_188, 661_338),
    "resnet50": (764_404, 758_554),
    "resnet56": (861_620, 855_770),
    "resnet110": (1_736_564, 1_730_714),
    "resnet8x4": (1_233_540, 1_210_410),
    "resnet32x4": (7_433_860, 7_410_730),
    "wrn_16_1": (180_916, 175_066),
    "wrn_16_2": (703_284, 691_674),
    "wrn_16_4": (2_772_020, 2_748_890),
    "wrn_16_8": (11_007_540, 10_961_370),
    "wrn_16_10": (17_174_324, 17_116_634),
    "wrn_28_10": (36_536_884, 36_479_194),
    "wrn_40_1": (569_780, 563_930),
    "wrn_40_2": (2_255_156, 2_243_546),
    "wrn_40_4": (8_972_340, 8_949_210),
    "wrn_20_8": (6_871_220, 6_848_090),
    "resnet110_bottleneck": (1_170_868, 1_147_738),
    "densenet_40_12": (187_828, 175_858),
    "densenet_40_12_norm": (188_092, 176_122),
    "vgg16_linears": (15_299_748, 15_253_578),
    "switokd_wrn_16_1": (181_476, 175_626),
    "switokd_wrn_16_2": (704_420, 692_810),
    "switokd_wrn_16_8": (11_012_036, 10_965_866),
    "switokd_wrn_16_10": (17_179_940, 17_122_250),
    "switokd_resnet20": (275_572, 269_722),
    "MobileNetV1": (3_309_476, 3_217_226),
    "mobilenet_v2_1_4": (4_495_076, 4_333_706),
    "vgg8": (3_965_028, 3_918_858),
    "vgg11": (9_277_284, 9_231_114),
    "vgg13": (9_462_180, 9_416_010),
    "vgg16": (14_774_436, 14_728_266),
    "vgg19": (20_086_692, 20_040_522),
    "MobileNetV2": (812_836, 697_546),
    "ShuffleV1": (949_258, 862_768),
    "ShuffleV2": (1_355_528, 1_263_278),
    "ResNet18": (11_220_132, 11_173_962),
    "ResNet34": (21_328_292, 21_282_122),
    "ResNet50": (23_705_252, 23_520_842),
    "plane2": (215_172, 13_082),
    "plane4": (475_652, 37_338),
    "plane6": (1_107_204, 82_778),
    "plane8": (1_246_276, 327_962),
    "plane10": (2_931_460, 2_487_850),
}
# For 1000 classes; that of resnet10 follows from resnet18's by its blocks.
PUBLISHED_IMAGENET = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "imagenet_resnet50": 25_557_032,
    "mobilenet_v2": 3_504_872,
}
# "BN-stat floats" of the PyTorch classes: running means and variances.
STATISTICS = {
    "resnet20": 1_568,
    "resnet110": 8_288,
    "resnet8x4": 2_752,
    "resnet32x4": 9_920,
    "wrn_16_1": 928,
    "wrn_40_2": 5_408,
    "vgg19": 11_008,
    "MobileNetV2": 18_368,
    "ShuffleV1": 23_736,
    "ShuffleV2": 16_180,
    "ResNet18": 9_600,
    "ResNet34": 17_024,
    "ResNet50": 53_120,
}
COUNTS = {f"resnet{6 * n + 2}": tuple(c + 97_216 * (n - 1) for c in PUBLISHED["resnet8"]) for n in range(1, 19)}
COUNTS |= {f"resnet{6 * n + 2}x4": tuple(c + 1_550_080 * (n - 1) for c in PUBLISHED["resnet8x4"]) for n in range(1, 6)}
COUNTS |= {f"wrn_{6 * n + 4}_1": tuple(c + 97_216 * (n - 2) for c in PUBLISHED["wrn_16_1"]) for n in range(2, 7)}
COUNTS |= {f"wrn_{6 * n + 4}_2": tuple(c + 387_968 * (n - 2) for c in PUBLISHED["wrn_16_2"]) for n in range(2, 7)}
COUNTS |= PUBLISHED
# A classifier for fewer classes has 512 + 1, 2048 + 1 or 1280 + 1 parameters less for each of them.
IMAGENET_DIMS = {"resnet10": 512, "resnet18": 512, "resnet34": 512, "imagenet_resnet50": 2048, "mobilenet_v2": 1280}
IMAGENET = PUBLISHED_IMAGENET | {"resnet10": 11_689_512 - (73_984 + 295_424 + 1_180_672 + 4_720_640)}
COUNTS |= {
    name: tuple(IMAGENET[name] - (1000 - n) * (dim + 1) for n in (100, 10)) for name, dim in IMAGENET_DIMS.items()
}


def shapes(name, num_classes):
    image_shape = (224, 224, 3) if name in LARGE else (32, 32, 3)
    return weight_shapes(make_network(MODELS[name], num_classes, image_shape))


def size(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_every_registered_model_is_in_the_table():
    assert set(COUNTS) == set(MODELS) - set(TINY)
    assert {name: COUNTS[name] for name in PUBLISHED} == PUBLISHED


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    assert tuple(size(shapes(name, classes)[0]) for classes in (100, 10)) == COUNTS[name]


@pytest.mark.parametrize("name", STATISTICS)
def test_counts_of_statistics(name):
    assert size(shapes(name, 100)[1]) == STATISTICS[name]
