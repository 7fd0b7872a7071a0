"""Wide ResNets (Zagoruyko and Komodakis, BMVC 2016), as RepDistiller and as SwitOKD define them.

Attribute names are those of the PyTorch state dicts: `conv1 block1.layer.0.bn1 ... block2.layer.0.convShortcut ...
bn1 fc`.
"""

from typing import Unpack

import jax
from flax import nnx

from orc_jax.models.layers import Given, Layers, apply, branch_point, global_average_pool, make_layers, xavier_sqrt_2
from orc_jax.models.noise import Dropout
from orc_jax.models.points import note, note_norm


class Block(nnx.Module):
    """Pre-activation block; where the width changes, the activated input also feeds the projection.

    One that `follows` a stage notes its first normalisation: that of the stage's output.
    """

    def __init__(self, layers: Layers, in_features, features, *, strides, follows):
        self.bn1 = layers.norm(in_features)
        self.conv1 = layers.conv(in_features, features, 3, strides=strides)
        self.bn2 = layers.norm(features)
        self.dropout = Dropout()
        self.conv2 = layers.conv(features, features, 3)
        projects = in_features != features
        self.convShortcut = layers.conv(in_features, features, 1, strides=strides) if projects else None
        self.follows = follows

    def __call__(self, x):
        normed = self.bn1(x)
        if self.follows:
            note(preact=normed)
            note_norm(self.bn1)
        activated = nnx.relu(normed)
        y = self.conv2(self.dropout(nnx.relu(self.bn2(self.conv1(activated)))))
        return y + (x if self.convShortcut is None else self.convShortcut(activated))


class Stage(nnx.Module):
    """Blocks of one width; the first may change resolution and width. Its output is noted raw, a sum of both signs."""

    def __init__(self, layers: Layers, in_features, features, *, blocks, strides, follows):
        first = Block(layers, in_features, features, strides=strides, follows=follows)
        rest = [Block(layers, features, features, strides=1, follows=False) for _ in range(blocks - 1)]
        self.layer = nnx.List([first, *rest])

    def __call__(self, x):
        x = apply(self.layer, x)
        note(post=x)
        return x


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
        self.block1 = Stage(layers, 16, 16 * widen, blocks=blocks, strides=1, follows=False)
        self.block2 = Stage(layers, 16 * widen, 32 * widen, blocks=blocks, strides=2, follows=True)
        self.block3 = Stage(layers, 32 * widen, 64 * widen, blocks=blocks, strides=2, follows=True)
        self.bn1 = layers.norm(64 * widen)
        self.fc = layers.linear(64 * widen, num_classes, bias_init=nnx.initializers.zeros)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = self.conv1(images)
        note(post=x, preact=x)
        x = self.block2(self.block1(x))
        branch_point(self, x)
        normed = self.bn1(self.block3(x))
        x = nnx.relu(normed)
        note(preact=normed, pooled=x)
        note_norm(self.bn1)
        features = global_average_pool(x)
        return self.fc(features), features


class BiasedBlock(nnx.Module):
    """SwitOKD's block: biases, the stride in the second convolution, and a projection of the raw input."""

    def __init__(self, layers: Layers, in_features, features, *, strides):
        zeros = nnx.initializers.zeros
        self.bn1 = layers.norm(in_features)
        self.conv1 = layers.conv(in_features, features, 3, bias_init=zeros)
        self.bn2 = layers.norm(features)
        self.conv2 = layers.conv(features, features, 3, strides=strides, bias_init=zeros)
        projects = strides != 1 or in_features != features
        projection = layers.conv(in_features, features, 1, strides=strides, bias_init=zeros) if projects else None
        self.shortcut = nnx.List([projection] if projects else [])

    def __call__(self, x):
        y = self.conv2(nnx.relu(self.bn2(self.conv1(nnx.relu(self.bn1(x))))))
        return y + apply(self.shortcut, x)


class BiasedWideResNet(nnx.Module):
    """The wide ResNet of SwitOKD's code, which is another network than the one above; its dropout is not called there.

    Attribute names are those of its state dicts: `conv1 layer1.0.bn1 ... layer2.0.shortcut.0 ... bn1 linear`.

    Args:
        blocks, widen: as of `WideResNet`.
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
        layers = make_layers(kernel_init=xavier_sqrt_2, **given)
        self.conv1 = layers.conv(image_shape[-1], 16, 3, bias_init=nnx.initializers.zeros)

        def stage(in_features, features, strides):
            first = BiasedBlock(layers, in_features, features, strides=strides)
            return nnx.List([first, *(BiasedBlock(layers, features, features, strides=1) for _ in range(blocks - 1))])

        self.layer1 = stage(16, 16 * widen, 1)
        self.layer2 = stage(16 * widen, 32 * widen, 2)
        self.layer3 = stage(32 * widen, 64 * widen, 2)
        self.bn1 = layers.norm(64 * widen, momentum=0.9)
        self.linear = layers.linear(64 * widen, num_classes)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = apply(self.layer2, apply(self.layer1, self.conv1(images)))
        branch_point(self, x)
        features = global_average_pool(nnx.relu(self.bn1(apply(self.layer3, x))))
        return self.linear(features), features
