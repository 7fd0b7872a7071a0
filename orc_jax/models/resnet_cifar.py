"""The ResNets for small images, as RepDistiller defines them (He et al., CVPR 2016, section 4.2; shortcut option B).

Attribute names are those of the PyTorch state dicts: `conv1 bn1 layer1.0.conv1 ... layer2.0.downsample.0 ... fc`.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from orc_jax.models.layers import BatchNorm, conv, global_average_pool, linear

PLAIN = (16, 16, 32, 64)  # channels of the stem and of the three stages
WIDE = (32, 64, 128, 256)  # the "x4" networks


class BasicBlock(nnx.Module):
    def __init__(self, in_features, features, *, strides, dtype, axis_name, rngs):
        self.conv1 = conv(in_features, features, 3, strides=strides, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(features, dtype=dtype, axis_name=axis_name)
        self.conv2 = conv(features, features, 3, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(features, dtype=dtype, axis_name=axis_name)
        self.downsample = nnx.List()  # empty: the identity
        if strides != 1 or in_features != features:
            self.downsample.append(conv(in_features, features, 1, strides=strides, dtype=dtype, rngs=rngs))
            self.downsample.append(BatchNorm(features, dtype=dtype, axis_name=axis_name))

    def __call__(self, x):
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        for layer in self.downsample:
            x = layer(x)
        return nnx.relu(x + y)


class ResNet(nnx.Module):
    """ResNet of depth `6 * blocks + 2`.

    Args:
        num_classes: number of classes.
        blocks: basic blocks in each of the three stages.
        widths: channels of the stem and of the three stages.
        in_channels: channels of the images.
        dtype: type of the activations; parameters, statistics and logits are float32.
        axis_name: mapped axis over which batch normalisation takes its statistics, if any.
        rngs: `nnx.Rngs` with a `params` stream.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        blocks: int,
        widths: tuple[int, int, int, int] = PLAIN,
        in_channels: int = 3,
        dtype: DTypeLike = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        stem = widths[0]
        self.conv1 = conv(in_channels, stem, 3, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(stem, dtype=dtype, axis_name=axis_name)

        def stage(in_features, features, strides):
            shared = {"dtype": dtype, "axis_name": axis_name, "rngs": rngs}
            first = BasicBlock(in_features, features, strides=strides, **shared)
            rest = [BasicBlock(features, features, strides=1, **shared) for _ in range(blocks - 1)]
            return nnx.List([first, *rest])

        self.layer1 = stage(stem, widths[1], 1)
        self.layer2 = stage(widths[1], widths[2], 2)
        self.layer3 = stage(widths[2], widths[3], 2)
        self.fc = linear(widths[3], num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps `[batch, height, width, channels]` to float32 logits `[batch, classes]`, features `[batch, dim]`."""
        x = nnx.relu(self.bn1(self.conv1(images)))
        for block in (*self.layer1, *self.layer2, *self.layer3):
            x = block(x)
        features = global_average_pool(x)
        return self.fc(features), features
