"""MobileNetV2 (Sandler et al., CVPR 2018): RepDistiller's half-width network for small images, and torchvision's.

Attribute names are those of the PyTorch state dicts: `conv1.0 blocks.0.0.conv.0 ... classifier.0` of the first,
`features.0.0 features.1.conv.0.0 ... classifier.1` of the second.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from orc_jax.models.layers import Given, Layers, apply, global_average_pool, make_layers
from orc_jax.models.noise import Dropout
from orc_jax.models.points import note

# (expansion, channels at width 1, blocks, stride of the first block); the last two for small images and for ImageNet.
SETTINGS = (
    (1, 16, 1, 1, 1),
    (6, 24, 2, 1, 2),
    (6, 32, 3, 2, 2),
    (6, 64, 4, 2, 2),
    (6, 96, 3, 1, 1),
    (6, 160, 3, 2, 2),
    (6, 320, 1, 1, 1),
)
POINTS = (1, 2, 4, 6)  # the stages whose outputs are feature points
NORMAL, ZEROS = nnx.initializers.normal(0.01), nnx.initializers.zeros


def relu6(x: jax.Array) -> jax.Array:
    return jnp.clip(x, 0.0, 6.0)


def unit(layers: Layers, in_features, features, kernel_size, activation, *, strides=1, groups=1) -> list:
    """Convolution, normalisation, activation."""
    convolution = layers.conv(in_features, features, kernel_size, strides=strides, groups=groups)
    return [convolution, layers.norm(features), activation]


class InvertedResidual(nnx.Module):
    """The 1x1 expansion, the 3x3 depthwise convolution, and the 1x1 projection without activation, as a sequence."""

    def __init__(self, conv: list, *, has_skip: bool):
        self.conv = nnx.List(conv)
        self.has_skip = has_skip

    def __call__(self, x):
        y = apply(self.conv, x)
        return x + y if self.has_skip else y


class MobileNetV2Half(nnx.Module):
    """RepDistiller's MobileNetV2 "mobile_half" for 32x32 images: half the width, ReLU, an expansion also by 1."""

    def __init__(self, num_classes: int, *, image_shape: tuple[int, int, int] = (32, 32, 3), **given: Unpack[Given]):
        layers = make_layers(**given)

        def block(in_features, features, expansion, strides):
            inner = in_features * expansion
            sequence = [
                *unit(layers, in_features, inner, 1, nnx.relu),
                *unit(layers, inner, inner, 3, nnx.relu, strides=strides, groups=inner),
                *unit(layers, inner, features, 1, nnx.relu)[:2],
            ]
            return InvertedResidual(sequence, has_skip=strides == 1 and in_features == features)

        self.conv1 = nnx.List(unit(layers, image_shape[-1], 16, 3, nnx.relu, strides=2))
        self.blocks = nnx.List()
        in_features = 16
        for expansion, width, count, stride, _ in SETTINGS:
            features, stage = width // 2, nnx.List()
            for i in range(count):
                stage.append(block(in_features, features, expansion, 1 if i else stride))
                in_features = features
            self.blocks.append(stage)
        self.conv2 = nnx.List(unit(layers, in_features, 1280, 1, nnx.relu))
        self.classifier = nnx.List([layers.linear(1280, num_classes, kernel_init=NORMAL, bias_init=ZEROS)])

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = apply(self.conv1, images)
        note(post=x, preact=x)
        for i, stage in enumerate(self.blocks):
            x = apply(stage, x)
            if i in POINTS:
                note(post=x, preact=x)  # a bottleneck has no last activation
        x = apply(self.conv2, x)
        note(pooled=x)
        features = global_average_pool(x)
        return apply(self.classifier, features), features


def divisible(channels: float) -> int:
    """The multiple of 8 that is nearest, and not more than a tenth less."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


class MobileNetV2(nnx.Module):
    """torchvision's MobileNetV2 for ImageNet, by default of width 1.

    NOTE: torchvision trains it with a dropout of 0.2 before the classifier; here it is `config.dropout`, which is 0. In
    a pool the members' logits are targets for each other, and dropout makes them noisy.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        width: float = 1.0,
        image_shape: tuple[int, int, int] = (224, 224, 3),
        **given: Unpack[Given],
    ):
        layers = make_layers(**given)

        def block(in_features, features, expansion, strides):
            inner = in_features * expansion
            expand = [nnx.List(unit(layers, in_features, inner, 1, relu6))] if expansion > 1 else []
            depthwise = nnx.List(unit(layers, inner, inner, 3, relu6, strides=strides, groups=inner))
            project = unit(layers, inner, features, 1, relu6)[:2]
            return InvertedResidual([*expand, depthwise, *project], has_skip=strides == 1 and in_features == features)

        sequence: list[nnx.Module] = [
            nnx.List(unit(layers, image_shape[-1], divisible(32 * width), 3, relu6, strides=2))
        ]
        in_features, last = divisible(32 * width), divisible(1280 * max(width, 1.0))
        for expansion, channels, count, _, stride in SETTINGS:
            features = divisible(channels * width)
            for i in range(count):
                sequence.append(block(in_features, features, expansion, 1 if i else stride))
                in_features = features
        self.features = nnx.List([*sequence, nnx.List(unit(layers, in_features, last, 1, relu6))])
        self.classifier = nnx.List([Dropout(), layers.linear(last, num_classes, kernel_init=NORMAL, bias_init=ZEROS)])

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        features = global_average_pool(apply(self.features, images))
        return apply(self.classifier, features), features
