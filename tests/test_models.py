"""Every registered backbone: exact parameter counts (trainable, as the field's tables give them), and conventions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from orc_jax.models import LARGE, MODELS, ladder
from orc_jax.models.layers import BatchNorm, make_layers
from orc_jax.pool import make_network
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


def abstract_init(name, num_classes):
    shape = (224, 224, 3) if name in LARGE else (32, 32, 3)
    return jax.eval_shape(make_network(name, num_classes, shape, "float32", None).init, jax.random.key(0))


def size(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_every_registered_model_is_in_the_table():
    assert set(COUNTS) == set(MODELS) - set(TINY)
    assert {name: COUNTS[name] for name in PUBLISHED} == PUBLISHED


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    assert tuple(size(abstract_init(name, classes)[0]) for classes in (100, 10)) == COUNTS[name]


@pytest.mark.parametrize("name", STATISTICS)
def test_counts_of_statistics(name):
    assert size(abstract_init(name, 100)[1]) == STATISTICS[name]


def test_names_are_those_of_the_pytorch_state_dicts():
    params, batch_stats = abstract_init("resnet8x4", 100)
    # The stem of the x4 networks is 32, so their first stage has a projection shortcut too.
    assert params["conv1.kernel"].shape == (3, 3, 3, 32)
    assert params["layer1.0.downsample.0.kernel"].shape == (1, 1, 32, 64)
    assert params["layer3.0.conv2.kernel"].shape == (3, 3, 256, 256)
    assert params["fc.kernel"].shape == (256, 100)
    assert batch_stats["layer2.0.downsample.1.var"].shape == (128,)
    assert size(batch_stats) == 2_752  # "BN-stat floats" of the PyTorch class


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_float32_and_the_last_stage_is_a_quarter(dtype):
    network = make_network("resnet8", 7, (28, 20, 1), dtype, None)
    params, batch_stats = network.init(jax.random.key(0))
    images = jnp.ones((2, 28, 20, 1))
    (logits, features), moved = network.train(params, batch_stats, images)
    assert logits.shape == (2, 7) and logits.dtype == jnp.float32
    assert features.shape == (2, 64) and features.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((params, moved)))


def test_initial_distributions():
    params, _ = make_network("resnet56", 100, (32, 32, 3), "float32", None).init(jax.random.key(1))
    kernel = np.asarray(params["layer3.4.conv1.kernel"])  # He fan-out: sqrt(2 / (3 * 3 * 64))
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.02)
    assert np.abs(kernel).max() > 3.5 * kernel.std()  # not truncated
    weight = np.asarray(params["fc.kernel"])  # PyTorch's default: U(-1/8, 1/8)
    np.testing.assert_allclose([weight.min(), weight.max(), weight.std()], [-1 / 8, 1 / 8, 1 / 8 / 3**0.5], rtol=0.02)
    assert np.abs(params["fc.bias"]).max() <= 1 / 8


def test_batch_norm_follows_pytorch():
    """Golden, from the definition: biased variance to normalise, unbiased in the running value, momentum 0.1."""
    x = np.random.default_rng(0).normal(3.0, 2.0, (4, 2, 3, 5)).astype(np.float32)
    layer = BatchNorm(5)
    layer.scale[...], layer.bias[...] = jnp.arange(1.0, 6.0), jnp.arange(5.0)
    flat = x.reshape(-1, 5).astype(np.float64)
    expected = (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5) * np.arange(1, 6) + np.arange(5)
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(layer.mean[...], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(layer.var[...], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    layer.use_running_average = True
    mean, var = np.asarray(layer.mean[...]), np.asarray(layer.var[...])
    expected = (x - mean) / np.sqrt(var + 1e-5) * np.arange(1, 6) + np.arange(5)
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-4)


def test_batch_norm_keeps_float32_statistics_in_bfloat16():
    x = 100.0 + jax.random.normal(jax.random.key(0), (64, 4, 4, 1))
    layer = BatchNorm(1, dtype=jnp.bfloat16)
    assert layer(x).dtype == jnp.bfloat16
    np.testing.assert_allclose(layer.mean[...], [0.1 * x.mean()], rtol=1e-5)


def test_convolution_padding_is_symmetric_at_stride_two():
    layer = make_layers(jnp.float32, None, nnx.Rngs(0)).conv(1, 1, 3, strides=2)
    layer.kernel[...] = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1.0)  # looks one pixel up and to the left
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(layer(image)[0, ..., 0], [[0, 0], [0, 5]])


def test_ladder():
    assert ladder("resnet56", "resnet20", 3) == ("resnet44", "resnet32", "resnet26")
    assert ladder("resnet20", "resnet8", 3) == ("resnet14", "resnet14", "resnet8")
    assert ladder("resnet32x4", "resnet8x4", 2) == ("resnet20x4", "resnet14x4")
    assert ladder("resnet20", "resnet20", 2) == ("resnet20", "resnet20")
    assert ladder("wrn_40_2", "wrn_16_2", 3) == ("wrn_34_2", "wrn_22_2", "wrn_22_2")
    assert ladder("wrn_16_8", "wrn_16_1", 2) == ("wrn_16_4", "wrn_16_2")
    assert ladder("vgg13", "vgg8", 1) == ("vgg11",)
    assert ladder("plane10", "plane2", 3) == ("plane6", "plane4", "plane2")
    assert ladder("resnet34", "resnet18", 1) == ("resnet18",)
    assert ladder("resnet32x4", "resnet20", 2) == ("resnet20", "resnet20")  # no ladder between families
    assert ladder("vgg13", "MobileNetV2", 1) == ("MobileNetV2",)
    assert ladder("resnet56", "resnet20", 0) == ()
