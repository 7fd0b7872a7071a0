"""Names of timm and torchvision for networks that are here, and names that are left alone."""

import pytest
from torch import nn

from orc_jax.deploy.import_torch import _alike, choose
from orc_jax.deploy.other_names import known_as, mobilenet_v2, vgg16_linears
from orc_jax.errors import UserError
from orc_jax.models import MODELS
from orc_jax.testing import assert_identical
from tests.deploy.members import network_of, state_of


@pytest.mark.parametrize(
    ("timm", "torchvision"),
    [
        ("conv_stem.weight", "features.0.0.weight"),
        ("bn1.running_mean", "features.0.1.running_mean"),
        ("blocks.0.0.conv_dw.weight", "features.1.conv.0.0.weight"),
        ("blocks.0.0.bn2.bias", "features.1.conv.2.bias"),
        ("blocks.1.0.conv_pw.weight", "features.2.conv.0.0.weight"),
        ("blocks.3.3.bn2.weight", "features.10.conv.1.1.weight"),
        ("blocks.6.0.conv_pwl.weight", "features.17.conv.2.weight"),
        ("conv_head.weight", "features.18.0.weight"),
        ("classifier.bias", "classifier.1.bias"),
        ("layer1.0.bn1.weight", "layer1.0.bn1.weight"),
    ],
)
def test_mobilenet_v2_of_timm(timm, torchvision):
    assert mobilenet_v2(timm) == torchvision


def torchvision_vgg16_bn():
    """Its convolutions and normalisations, in the order of torchvision."""
    layers, channels = [], 3
    for width in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"):
        if width == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers)


def test_vgg16_of_torchvision_is_the_same_layers_in_the_same_order():
    """Its classifier is of linear layers of 512 for small images."""
    theirs = [vgg16_linears(f"features.{name}") for name in torchvision_vgg16_bn().state_dict()]
    ours = [name for name in state_of(network_of("vgg16_linears", 10)) if not name.startswith("classifier")]
    assert theirs == ours
    assert vgg16_linears("classifier.6.weight") == "classifier.6.weight"


@pytest.mark.parametrize(
    ("model", "theirs", "ours"),
    [
        ("ResNet18", "layer2.0.downsample.0.weight", "layer2.0.shortcut.0.weight"),  # with a stem of 3x3
        ("ResNet18", "fc.bias", "linear.bias"),
        ("resnet8", "layer2.0.shortcut.1.running_var", "layer2.0.downsample.1.running_var"),
        ("wrn_16_1", "head.fc.weight", "fc.weight"),
        ("densenet_40_12_norm", "features.norm5.weight", "features.norm_final.weight"),
        ("densenet_40_12_norm", "classifier.weight", "fc.weight"),
        ("mobilenet_v2_1_4", "blocks.0.0.conv_pw.weight", "features.1.conv.1.weight"),
        ("resnet8", "layer1.0._checkpoint_wrapped_module.conv1.weight", "layer1.0.conv1.weight"),
        ("resnet8", "layer1._orig_mod.0.bn1.bias", "layer1.0.bn1.bias"),
        ("resnet8", "head.other.weight", None),
        ("MobileNetV1", "blocks.0.0.conv_dw.weight", None),  # whose stem is another one
    ],
)
def test_parts_that_are_called_otherwise(model, theirs, ours):
    assert known_as(model, {ours, "conv1.weight"})(theirs) == (ours or theirs)


def test_a_network_is_found_by_them():
    arrays = state_of(network_of("resnet8", 10))
    theirs = {
        "model." + name.replace("downsample", "shortcut").replace("fc", "linear"): value
        for name, value in arrays.items()
    }
    label, found = choose({"": theirs}, "resnet8")
    assert label == "model"
    assert_identical(found[:2], choose({"": arrays}, "resnet8")[1][:2])


def test_a_second_head_is_not_taken_for_the_first():
    arrays = state_of(network_of("resnet8", 10))
    with pytest.raises(UserError, match=r"left over: linear.weight \(10, 64\)"):
        choose({"": arrays | {"linear.weight": arrays["fc.weight"]}}, "resnet8")


def test_another_network_of_this_name_is_named():
    """torchvision's resnet50 is not the one of depth 6n+2, and so on."""
    with pytest.raises(UserError, match=r"(?s)another shape: conv1.weight \(32, 3, 3, 3\).* It is --model=resnet8x4$"):
        choose({"": state_of(network_of("resnet8x4", 7))}, "resnet8")
    alike = ["resnet50", "ResNet50", "imagenet_resnet50", "resnet50d"]
    assert [name for name in MODELS if _alike("resnet50", name)] == alike
    assert [name for name in MODELS if _alike("vgg16", name)] == ["vgg16", "vgg16_linears"]
    assert not _alike("wrn_16_1", "wrn_16_10")
