"""MobileNet (Howard et al., 2017) for small images, at full width, as SwitOKD's code of three networks has it.

Attribute names are those of the PyTorch state dict: `conv1 bn1 layers.0.conv1 layers.0.bn1 layers.0.conv2 ... linear`.
"""

import math
from typing import Unpack

import jax
from flax import nnx

from orc_jax.models.layers import Given, Layers, apply, global_average_pool, make_layers

# (channels, stride) of each block.
SETTINGS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)),
)


def by_filter(key: jax.Array, shape, dtype, out_sharding=None) -> jax.Array:
    """Normal(0, 1 / n) where n is the number of weights of one filter: much less than is usual, as that code has it."""
    del out_sharding
    return jax.random.normal(key, shape, dtype) / math.prod(shape[:-1])


class Block(nnx.Module):
    """A depthwise 3x3 convolution and a 1x1 convolution, each normalised and activated."""

    def __init__(self, layers: Layers, in_features, features, strides):
        self.conv1 = layers.conv(in_features, in_features, 3, strides=strides, groups=in_features)
        self.bn1 = layers.norm(in_features)
        self.conv2 = layers.conv(in_features, features, 1)
        self.bn2 = layers.norm(features)

    def __call__(self, x):
        x = nnx.relu(self.bn1(self.conv1(x)))
        return nnx.relu(self.bn2(self.conv2(x)))


class MobileNetV1(nnx.Module):
    """Thirteen blocks behind a stem that keeps the resolution."""

    def __init__(self, num_classes: int, *, image_shape: tuple[int, int, int] = (32, 32, 3), **given: Unpack[Given]):
        layers = make_layers(kernel_init=by_filter, **given)
        self.conv1 = layers.conv(image_shape[-1], 32, 3)
        self.bn1 = layers.norm(32)
        self.layers, in_features = nnx.List(), 32
        for features, strides in SETTINGS:
            self.layers.append(Block(layers, in_features, features, strides))
            in_features = features
        self.linear = layers.linear(in_features, num_classes, kernel_init=by_filter)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        features = global_average_pool(apply(self.layers, nnx.relu(self.bn1(self.conv1(images)))))
        return self.linear(features), features
