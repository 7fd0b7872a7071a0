"""The families of the backbones: assistants between teacher and student, and what the last stage of a network is."""

import re

import pytest

from orc_jax.models import LADDERS, LARGE, LAST_STAGE, MODELS, VGGS, ladder
from orc_jax.models.network import make_network, weight_shapes
from tests.conftest import TINY
from tests.models.test_parameter_counts import COUNTS


def test_ladder():
    assert ladder("resnet56", "resnet20", 3) == ("resnet44", "resnet32", "resnet26")
    assert ladder("resnet20", "resnet8", 3) == ("resnet14", "resnet14", "resnet8")
    assert ladder("resnet32x4", "resnet8x4", 2) == ("resnet20x4", "resnet14x4")
    assert ladder("resnet20", "resnet20", 2) == ("resnet20", "resnet20")
    assert ladder("wrn_40_2", "wrn_16_2", 3) == ("wrn_34_2", "wrn_22_2", "wrn_22_2")
    assert ladder("wrn_40_1", "wrn_16_1", 1) == ("wrn_22_1",)
    assert ladder("wrn_16_8", "wrn_16_1", 2) == ("wrn_16_4", "wrn_16_2")
    assert ladder("vgg13", "vgg8", 1) == ("vgg11",)
    assert ladder("vgg19", "vgg8", 3) == ("vgg16", "vgg11", "vgg11")
    assert ladder("plane10", "plane2", 3) == ("plane6", "plane4", "plane2")
    assert ladder("resnet34", "resnet18", 1) == ("resnet18",)
    assert ladder("resnet34", "resnet10", 1) == ("resnet18",)
    assert ladder("ResNet34", "ResNet18", 1) == ("ResNet18",)
    assert ladder("deit_base_patch16_224", "deit_tiny_patch16_224", 1) == ("deit_small_patch16_224",)
    assert ladder("convnext_tiny", "convnext_atto", 3) == ("convnext_nano", "convnext_pico", "convnext_femto")
    assert ladder("resnet32x4", "resnet20", 2) == ("resnet20", "resnet20")  # no ladder between families
    assert ladder("vgg13", "MobileNetV2", 1) == ("MobileNetV2",)
    assert ladder("resnet56", "resnet20", 0) == ()
    assert ladder("resnet20", "resnet56", 3) == ("resnet26", "resnet32", "resnet44")  # upwards, if that is asked for


def weights_of(name):
    """Shapes of the parameters, and of what the network is fed with."""
    image_shape = (64, 64, 3) if name in LARGE else (32, 32, 3)
    return weight_shapes(make_network(MODELS[name], 100, image_shape))[0]


def test_ladders_are_in_order_of_size():
    for family in LADDERS:
        names = sorted(family, key=lambda name: family[name])
        counts = [COUNTS[name][0] for name in names]
        assert counts == sorted(counts) and len(set(family.values())) == len(family) > 1
    assert {name: size for family in LADDERS for name, size in family.items() if name in VGGS} == {
        name: sum(x.ndim == 4 for x in weights_of(name).values())
        for name in VGGS  # convolutions
    }


FIRST = {parts: name for name, parts in reversed(LAST_STAGE.items())}  # one network for each way of naming the parts


SLOW = ("tf_efficientnetv2_s", "mobilenetv3_large_100", "mixer_s4_32")  # of a family that another one stands for


@pytest.mark.parametrize("name", [pytest.param(x, marks=[pytest.mark.slow] * (x in SLOW)) for x in FIRST.values()])
def test_every_last_stage_is_the_last(name):
    """Names of parts that no longer exist would share everything, or nothing."""
    weights, parts = weights_of(name), LAST_STAGE[name]
    of_parts = {part: {weight for weight in weights if weight.startswith(f"{part}.")} for part in parts}
    assert all(of_parts.values())
    own = set().union(*of_parts.values())
    # Stages or blocks are numbered: of the last all is a network's own, of those before nothing, nor the first layer.
    numbered = r"(?:features\.)?(?:layer|block|denseblock|blocks\.|stages\.)(\d+)\."
    stages = {weight: re.match(numbered, weight) for weight in weights}
    numbers = {weight: int(match[1]) for weight, match in stages.items() if match}
    assert len(set(numbers.values())) >= 3
    first_own = min(number for weight, number in numbers.items() if weight in own)
    assert {weight for weight, number in numbers.items() if number >= first_own} == own & set(numbers)
    assert first_own > max(numbers.values()) / 2
    classifiers = {weight for weight, x in weights.items() if x.ndim == 2 and x.shape[1] == 100}
    (first,) = (weight for weight, x in weights.items() if x.ndim == 4 and x.shape[2] == 3)
    assert classifiers and classifiers <= own and first not in own


def test_which_networks_have_a_last_stage():
    """All but those whose parts have no names: the plain networks and the MobileNets."""
    without = {name for name in MODELS if name not in LAST_STAGE}
    mobile = {"MobileNetV1", "MobileNetV2", "mobilenet_v2", "mobilenet_v2_1_4"}
    assert without == mobile | {*(f"plane{depth}" for depth in (2, 4, 6, 8, 10))}
    assert set(LAST_STAGE) <= set(MODELS) | set(TINY)
