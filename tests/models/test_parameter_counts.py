"""Every registered backbone: exact counts of its trainable parameters, as the field's tables give them."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from orc_jax.models import LARGE, MODELS, sides
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
# Of timm's classes, for 100 and for 10 classes; those with 32 in their names are timm's with other patches.
TIMM = {
    "deit_tiny_patch4_32": (5_380_132, 5_362_762),
    "deit_small_patch4_32": (21_376_996, 21_342_346),
    "deit_base_patch4_32": (85_221_220, 85_152_010),
    "deit_tiny_patch16_224": (5_543_716, 5_526_346),
    "deit_small_patch16_224": (21_704_164, 21_669_514),
    "deit_base_patch16_224": (85_875_556, 85_806_346),
    "vit_tiny_patch16_224": (5_543_716, 5_526_346),
    "vit_small_patch16_224": (21_704_164, 21_669_514),
    "vit_base_patch16_224": (85_875_556, 85_806_346),
    "mixer_s4_32": (17_156_196, 17_110_026),
    "mixer_s16_224": (18_066_564, 18_020_394),
    "convnext_atto_32": (3_404_820, 3_375_930),
    "convnext_femto_32": (4_869_124, 4_834_474),
    "convnext_pico_32": (8_581_092, 8_534_922),
    "convnext_nano_32": (15_013_060, 14_955_370),
    "convnext_tiny_32": (27_892_708, 27_823_498),
    "convnext_atto": (3_406_620, 3_377_730),
    "convnext_femto": (4_871_284, 4_836_634),
    "convnext_pico": (8_583_972, 8_537_802),
    "convnext_nano": (15_016_660, 14_958_970),
    "convnext_tiny": (27_897_028, 27_827_818),
    "resnet18d": (11_247_044, 11_200_874),
    "resnet34d": (21_355_204, 21_309_034),
    "resnet50d": (23_732_164, 23_547_754),
    "efficientnet_b0": (4_135_648, 4_020_358),
    "efficientnet_b1": (6_641_284, 6_525_994),
    "tf_efficientnetv2_s": (20_305_588, 20_190_298),
    "mobilenetv3_small_100": (1_620_356, 1_528_106),
    "mobilenetv3_large_100": (4_330_132, 4_214_842),
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
COUNTS |= TIMM


def shapes(name, num_classes):
    image_shape = (224, 224, 3) if name in LARGE else (32, 32, 3)
    return weight_shapes(make_network(MODELS[name], num_classes, image_shape))


def size(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_every_registered_model_is_in_the_table():
    assert set(COUNTS) == set(MODELS) - set(TINY)
    assert {name: COUNTS[name] for name in PUBLISHED} == PUBLISHED


# Those that differ from others in patches alone, or in their names, run with `-m slow`.
ALIKE = [name for name in TIMM if name.startswith("vit") or name.endswith("_32") or name == "resnet34d"]


@pytest.mark.parametrize("name", [name for name in COUNTS if name not in TIMM])
def test_parameter_counts(name):
    assert tuple(size(shapes(name, classes)[0]) for classes in (100, 10)) == COUNTS[name]


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ALIKE)) for name in TIMM])
def test_parameter_counts_of_timm(name):
    """Of one pass, which takes most of the time: the classifier alone differs with the number of classes."""
    model, side = MODELS[name], sides(name)
    given = {"image_shape": (side, side, 3), "dtype": jnp.float32, "axis_name": None}
    network = nnx.eval_shape(lambda: model(10, **given, rngs=nnx.Rngs(0)))
    params = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(network, nnx.Param))}
    (dim,) = (x.shape[0] for x in params.values() if x.ndim == 2 and x.shape[1] == 10)
    assert (size(params) + 90 * (dim + 1), size(params)) == COUNTS[name]


def test_counts_of_timm_are_the_published_ones():
    """timm's tables are of 1000 classes."""
    published = {"deit_tiny_patch16_224": 5_717_416, "convnext_tiny": 28_589_128, "efficientnet_b0": 5_288_548}
    published |= {"mobilenetv3_large_100": 5_483_032, "mixer_s16_224": 18_528_264, "resnet50d": 25_576_264}
    published |= {"tf_efficientnetv2_s": 21_458_488, "deit_base_patch16_224": 86_567_656}
    assert {name: TIMM[name][0] + 10 * (TIMM[name][0] - TIMM[name][1]) for name in published} == published


@pytest.mark.parametrize("name", STATISTICS)
def test_counts_of_statistics(name):
    assert size(shapes(name, 100)[1]) == STATISTICS[name]
