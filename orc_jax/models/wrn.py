"""Wide ResNets (Zagoruyko and Komodakis, BMVC 2016), as RepDistiller defines them: pre-activation, no dropout.

Attribute names are those of the PyTorch state dicts: `conv1 block1.layer.0.bn1 ... block2.layer.0.convShortcut ...
bn1 fc`.
"""

from typing import Unpack

import jax
from flax import nnx

from orc_jax.models.layers import Given, Layers, apply, branch_point, global_average_pool, make_layers


class Block(nnx.Module):
    """Pre-activation block; where the width changes, the activated input also feeds the projection."""

    def __init__(self, layers: Layers, in_features, features, *, strides):
        self.bn1 = layers.norm(in_features)
        self.conv1 = layers.conv(in_features, features, 3, strides=strides)
        self.bn2 = layers.norm(features)
        self.conv2 = layers.conv(features, features, 3)
        projects = in_features != features
        self.convShortcut = layers.conv(in_features, features, 1, strides=strides) if projects else None

    def __call__(self, x):
        activated = nnx.relu(self.bn1(x))
        y = self.conv2(nnx.relu(self.bn2(self.conv1(activated))))
        return y + (x if self.convShortcut is None else self.convShortcut(activated))


class Stage(nnx.Module):
    """Blocks of one width; the first may change resolution and width."""

    def __init__(self, layers: Layers, in_features, features, *, blocks, strides):
        first = Block(layers, in_features, features, strides=strides)
        self.layer = nnx.List([first, *(Block(layers, features, features, strides=1) for _ in range(blocks - 1))])

    def __call__(self, x):
        return apply(self.layer, x)


class WideResNet(nnx.Module):
    """Wide ResNet of depth `6 * blocks + 4`.

    Args:
        blocks: blocks in each of the three stages.
        widen: factor on the stages' 16, 32 and 64 channels; the stem has 16.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        blocks: int,
        widen: int,
        image_shape: tuple[int, int, int] = (32, 32, 3),
        **given: Unpack[Given],
    ):
        layers = make_layers(**given)
        self.conv1 = layers.conv(image_shape[-1], 16, 3)
        self.block1 = Stage(layers, 16, 16 * widen, blocks=blocks, strides=1)
        self.block2 = Stage(layers, 16 * widen, 32 * widen, blocks=blocks, strides=2)
        self.block3 = Stage(layers, 32 * widen, 64 * widen, blocks=blocks, strides=2)
        self.bn1 = layers.norm(64 * widen)
        self.fc = layers.linear(64 * widen, num_classes, bias_init=nnx.initializers.zeros)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = self.block2(self.block1(self.conv1(images)))
        branch_point(self, x)
        x = self.block3(x)
        features = global_average_pool(nnx.relu(self.bn1(x)))
        return self.fc(features), features
