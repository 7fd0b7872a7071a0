"""ShuffleNet V1 (Zhang et al., CVPR 2018) and V2 (Ma et al., ECCV 2018), as RepDistiller defines them for 32x32 images.

Attribute names are those of the PyTorch state dicts: `conv1 bn1 layer1.0.conv1 ... linear`.
"""

from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from orc_jax.models.layers import Given, Layers, apply, branch_point, global_average_pool, make_layers, torch_default
from orc_jax.models.points import asked, note


def shuffle(x: jax.Array, groups: int) -> jax.Array:
    """Interleaves the channels of `groups` groups: channel `i` of group `g` becomes channel `i * groups + g`."""
    shape = x.shape
    return x.reshape(*shape[:-1], groups, -1).swapaxes(-1, -2).reshape(shape)


class UnitV1(nnx.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1. The first unit of a stage concatenates, the others add."""

    def __init__(self, layers: Layers, in_features, features, *, strides, groups):
        self.is_first, self.groups = strides == 2, 1 if in_features == 24 else groups
        if self.is_first:
            features -= in_features
        inner = features // 4
        self.conv1 = layers.conv(in_features, inner, 1, groups=self.groups)
        self.bn1 = layers.norm(inner)
        self.conv2 = layers.conv(inner, inner, 3, strides=strides, groups=inner)
        self.bn2 = layers.norm(inner)
        self.conv3 = layers.conv(inner, features, 1, groups=groups)
        self.bn3 = layers.norm(features)

    def before(self, x):
        """Its output before the last ReLU."""
        y = shuffle(nnx.relu(self.bn1(self.conv1(x))), self.groups)
        y = nnx.relu(self.bn2(self.conv2(y)))  # the ReLU is RepDistiller's, not the paper's
        y = self.bn3(self.conv3(y))
        if not self.is_first:
            return x + y
        sides: Any = ((1, 1), (1, 1))
        pooled = nnx.avg_pool(x, (3, 3), (2, 2), sides)  # the padding counts in the mean
        return jnp.concatenate([y, pooled], axis=-1)

    def __call__(self, x):
        return nnx.relu(self.before(x))


class DownUnitV2(nnx.Module):
    """The first unit of a stage: two branches, each half of the features at half the resolution."""

    def __init__(self, layers: Layers, in_features, features):
        half = features // 2
        self.conv1 = layers.conv(in_features, in_features, 3, strides=2, groups=in_features)
        self.bn1 = layers.norm(in_features)
        self.conv2 = layers.conv(in_features, half, 1)
        self.bn2 = layers.norm(half)
        self.conv3 = layers.conv(in_features, half, 1)
        self.bn3 = layers.norm(half)
        self.conv4 = layers.conv(half, half, 3, strides=2, groups=half)
        self.bn4 = layers.norm(half)
        self.conv5 = layers.conv(half, half, 1)
        self.bn5 = layers.norm(half)

    def __call__(self, x):
        left = nnx.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = nnx.relu(self.bn3(self.conv3(x)))
        right = nnx.relu(self.bn5(self.conv5(self.bn4(self.conv4(right)))))
        return shuffle(jnp.concatenate([left, right], axis=-1), 2)


class UnitV2(nnx.Module):
    """One half of the channels passes, the other goes through 1x1, depthwise 3x3, 1x1. A stage's `last` is noted."""

    def __init__(self, layers: Layers, features, *, last):
        self.last = last
        half = features // 2
        self.conv1 = layers.conv(half, half, 1)
        self.bn1 = layers.norm(half)
        self.conv2 = layers.conv(half, half, 3, groups=half)
        self.bn2 = layers.norm(half)
        self.conv3 = layers.conv(half, half, 1)
        self.bn3 = layers.norm(half)

    def __call__(self, x):
        passed, x = jnp.split(x, 2, axis=-1)
        x = nnx.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.bn2(self.conv2(x))))
        x = shuffle(jnp.concatenate([passed, nnx.relu(y)], axis=-1), 2)
        if self.last:
            note(post=x)
            if asked("preact"):  # not shuffled, so that channels are in another order, as RepDistiller has it
                note(preact=jnp.concatenate([passed, y], axis=-1))
        return x


class ShuffleV1(nnx.Module):
    """ShuffleNet V1 with three groups and stages of 240, 480 and 960 channels."""

    def __init__(self, num_classes: int, *, image_shape: tuple[int, int, int] = (32, 32, 3), **given: Unpack[Given]):
        layers = make_layers(kernel_init=torch_default, **given)
        self.conv1 = layers.conv(image_shape[-1], 24, 1)
        self.bn1 = layers.norm(24)

        def stage(in_features, features, count):
            first = UnitV1(layers, in_features, features, strides=2, groups=3)
            rest = [UnitV1(layers, features, features, strides=1, groups=3) for _ in range(count - 1)]
            return nnx.List([first, *rest])

        self.layer1, self.layer2, self.layer3 = stage(24, 240, 4), stage(240, 480, 8), stage(480, 960, 4)
        self.linear = layers.linear(960, num_classes)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nnx.relu(self.bn1(self.conv1(images)))
        note(post=x, preact=x)
        for stage in (self.layer1, self.layer2, self.layer3):
            if stage is self.layer3:
                branch_point(self, x)
            *units, last = stage
            y = last.before(apply(units, x))
            x = nnx.relu(y)
            note(post=x, preact=y)
        note(pooled=x)
        features = global_average_pool(x)
        return self.linear(features), features


class ShuffleV2(nnx.Module):
    """ShuffleNet V2, width 1: stages of 116, 232 and 464 channels."""

    def __init__(self, num_classes: int, *, image_shape: tuple[int, int, int] = (32, 32, 3), **given: Unpack[Given]):
        layers = make_layers(kernel_init=torch_default, **given)
        self.conv1 = layers.conv(image_shape[-1], 24, 1)
        self.bn1 = layers.norm(24)

        def stage(in_features, features, count):
            return nnx.List(
                [
                    DownUnitV2(layers, in_features, features),
                    *(UnitV2(layers, features, last=i == count - 1) for i in range(count)),
                ]
            )

        self.layer1, self.layer2, self.layer3 = stage(24, 116, 3), stage(116, 232, 7), stage(232, 464, 3)
        self.conv2 = layers.conv(464, 1024, 1)
        self.bn2 = layers.norm(1024)
        self.linear = layers.linear(1024, num_classes)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nnx.relu(self.bn1(self.conv1(images)))
        note(post=x, preact=x)
        x = apply(self.layer2, apply(self.layer1, x))
        branch_point(self, x)
        x = apply(self.layer3, x)
        x = nnx.relu(self.bn2(self.conv2(x)))
        note(pooled=x)
        features = global_average_pool(x)
        return self.linear(features), features
