"""What networks start from: the distributions of the code that the tables of the field were made with."""

import functools

import jax
import numpy as np
import pytest

from orc_jax.models import LARGE, MODELS, efficientnet
from orc_jax.models.network import make_network

# Standard deviations of normal distributions, bounds of uniform ones, and constants. RepDistiller draws convolutions
# with sqrt(2 / (k * k * out)), also grouped ones, DenseNet's code with the input's channels; where a code says nothing,
# PyTorch has U(-1/sqrt(fan_in), 1/sqrt(fan_in)) of k * k * in / groups, for biases too.
NORMAL, UNIFORM, CONSTANT = "normal", "uniform", "constant"
WEIGHTS = {
    "resnet56": {
        "layer3.4.conv1.kernel": (NORMAL, (2 / (9 * 64)) ** 0.5),
        "fc.kernel": (UNIFORM, 1 / 8),
        "fc.bias": (UNIFORM, 1 / 8),
        "bn1.scale": (CONSTANT, 1.0),
        "bn1.bias": (CONSTANT, 0.0),
    },
    "ResNet18": {"layer4.0.shortcut.0.kernel": (NORMAL, (2 / 512) ** 0.5), "linear.kernel": (UNIFORM, 512**-0.5)},
    "wrn_16_2": {
        "block3.layer.1.conv2.kernel": (NORMAL, (2 / (9 * 128)) ** 0.5),
        "fc.kernel": (UNIFORM, 128**-0.5),
        "fc.bias": (CONSTANT, 0.0),
    },
    "vgg8": {
        "block4.0.kernel": (NORMAL, (2 / (9 * 512)) ** 0.5),
        "block4.0.bias": (CONSTANT, 0.0),
        "classifier.kernel": (NORMAL, 0.01),
        "classifier.bias": (CONSTANT, 0.0),
    },
    "MobileNetV2": {
        "blocks.5.1.conv.3.kernel": (NORMAL, (2 / (9 * 480)) ** 0.5),  # depthwise
        "conv2.0.kernel": (NORMAL, (2 / 1280) ** 0.5),
        "classifier.0.kernel": (NORMAL, 0.01),
        "classifier.0.bias": (CONSTANT, 0.0),
    },
    "mobilenet_v2": {
        "features.18.0.kernel": (NORMAL, (2 / 1280) ** 0.5),
        "classifier.1.kernel": (NORMAL, 0.01),
        "classifier.1.bias": (CONSTANT, 0.0),
    },
    "ShuffleV1": {
        "layer3.1.conv1.kernel": (UNIFORM, (960 / 3) ** -0.5),
        "layer3.1.conv2.kernel": (UNIFORM, 1 / 3),  # depthwise
        "linear.kernel": (UNIFORM, 960**-0.5),
    },
    "ShuffleV2": {"conv2.kernel": (UNIFORM, 464**-0.5), "linear.bias": (UNIFORM, 1 / 32)},
    "densenet_40_12": {
        "features.denseblock3.denselayer6.conv1.kernel": (NORMAL, (2 / 120) ** 0.5),
        "features.denseblock3.denselayer6.conv2.kernel": (NORMAL, (2 / (9 * 48)) ** 0.5),
        "fc.kernel": (UNIFORM, 132**-0.5),
        "fc.bias": (CONSTANT, 0.0),
    },
    "plane8": {
        "conv_layers.17.kernel": (UNIFORM, (9 * 128) ** -0.5),
        "conv_layers.17.bias": (UNIFORM, (9 * 128) ** -0.5),
        "fc_layers.0.kernel": (UNIFORM, (2 * 2 * 256) ** -0.5),
        "fc_layers.2.bias": (UNIFORM, 1 / 8),
    },
    # timm's: what it draws normal with 0.02 is cut at 2, and by the fan-out within groups in EfficientNets
    "deit_tiny_patch4_32": {
        "cls_token": (NORMAL, 1e-6),
        "pos_embed": (NORMAL, 0.02),
        "patch_embed.proj.kernel": (UNIFORM, 48**-0.5),
        "patch_embed.proj.bias": (UNIFORM, 48**-0.5),
        "blocks.0.attn.qkv.kernel": (NORMAL, 0.02),
        "blocks.0.mlp.fc2.bias": (CONSTANT, 0.0),
        "blocks.0.norm1.scale": (CONSTANT, 1.0),
        "head.kernel": (NORMAL, 0.02),
    },
    "mixer_s4_32": {
        "blocks.0.mlp_tokens.fc1.kernel": (UNIFORM, (6 / (64 + 256)) ** 0.5),
        "blocks.0.mlp_channels.fc2.bias": (NORMAL, 1e-6),
        "head.kernel": (CONSTANT, 0.0),
    },
    "convnext_atto_32": {
        "stages.3.blocks.0.conv_dw.kernel": (NORMAL, 0.02),
        "stages.3.blocks.0.mlp.fc1.kernel": (NORMAL, 0.02),
        "stages.3.blocks.0.gamma": (CONSTANT, 1e-6),
        "head.fc.kernel": (NORMAL, 0.02),
    },
    "mobilenetv3_small_100": {
        "blocks.0.0.conv_dw.kernel": (NORMAL, (2 / 25) ** 0.5),
        "blocks.0.0.conv_pwl.kernel": (NORMAL, (2 / 96) ** 0.5),
        "blocks.0.0.se.conv_reduce.kernel": (NORMAL, (2 / 24) ** 0.5),
        "classifier.kernel": (UNIFORM, 100**-0.5),
    },
    "resnet18d": {
        "conv1.6.kernel": (NORMAL, (2 / (9 * 64)) ** 0.5),
        "layer4.0.bn2.scale": (CONSTANT, 0.0),
        "layer4.0.bn1.scale": (CONSTANT, 1.0),
    },
}

# Of deep networks of equal blocks a few are enough.
SHALLOW = {
    "deit_tiny_patch4_32": {"blocks": 1},
    "mixer_s4_32": {"blocks": 1},
    "convnext_atto_32": {"blocks": (1, 1, 1, 1)},
    "mobilenetv3_small_100": {"stages": (efficientnet.V3_SMALL[4],)},
    "resnet18d": {"blocks": (1, 1, 1, 1)},
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_initial_distributions(name):
    image_shape = (224, 224, 3) if name in LARGE else (32, 32, 3)
    network = make_network(functools.partial(MODELS[name], **SHALLOW.get(name, {})), 100, image_shape)
    drawn = jax.jit(lambda key: {weight: network.init(key)[0][weight] for weight in WEIGHTS[name]})
    for weight, values in drawn(jax.random.key(1)).items():
        (kind, value), values = WEIGHTS[name][weight], np.asarray(values)
        # Of a sample, the standard deviation is uncertain by 1 / sqrt(2 n).
        rtol = 4 / (2 * values.size) ** 0.5
        if kind == CONSTANT:
            np.testing.assert_array_equal(values, np.float32(value), err_msg=weight)
        elif kind == UNIFORM:
            assert np.abs(values).max() <= value, weight
            np.testing.assert_allclose(values.std(), value / 3**0.5, rtol=rtol, err_msg=weight)
        else:
            np.testing.assert_allclose(values.std(), value, rtol=rtol, err_msg=weight)
            assert values.size < 10_000 or np.abs(values).max() > 3.5 * value, f"{weight} is truncated"
