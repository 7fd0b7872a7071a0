"""DenseNet-BC for small images (Huang et al., CVPR 2017), as the code of online distillation (ONE, PCL) defines it.

Attribute names are those of the PyTorch state dicts: `features.conv0 features.denseblock1.denselayer1.norm1 ...
features.transition1.conv ... fc`.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from orc_jax.models.layers import Given, Layers, branch_point, global_average_pool, he_fan_in, make_layers
from orc_jax.models.noise import Dropout


class DenseLayer(nnx.Module):
    """1x1 to four times the growth, 3x3 to the growth, concatenated behind the input."""

    def __init__(self, layers: Layers, in_features, growth):
        self.norm1 = layers.norm(in_features)
        self.conv1 = layers.conv(in_features, 4 * growth, 1)
        self.norm2 = layers.norm(4 * growth)
        self.conv2 = layers.conv(4 * growth, growth, 3)
        self.dropout = Dropout()

    def __call__(self, x):
        y = self.conv1(nnx.relu(self.norm1(x)))
        y = self.dropout(self.conv2(nnx.relu(self.norm2(y))))
        return jnp.concatenate([x, y], axis=-1)


class DenseBlock(nnx.Module):
    """Layers of which each adds `growth` channels to what it is given."""

    def __init__(self, layers: Layers, in_features, growth, count):
        self.names = tuple(f"denselayer{i + 1}" for i in range(count))
        for i, name in enumerate(self.names):
            setattr(self, name, DenseLayer(layers, in_features + i * growth, growth))

    def __call__(self, x):
        for name in self.names:
            x = getattr(self, name)(x)
        return x


class Transition(nnx.Module):
    """Half the features at half the resolution."""

    def __init__(self, layers: Layers, in_features):
        self.norm = layers.norm(in_features)
        self.conv = layers.conv(in_features, in_features // 2, 1)

    def __call__(self, x):
        return nnx.avg_pool(self.conv(nnx.relu(self.norm(x))), (2, 2), (2, 2))


class Features(nnx.Module):
    """All of the network before its classifier, as the PyTorch original names it."""

    def __init__(self, layers: Layers, in_channels, growth, count, last_norm):
        width = 2 * growth
        self.conv0 = layers.conv(in_channels, width, 3)
        self.denseblock1 = DenseBlock(layers, width, growth, count)
        width += count * growth
        self.transition1 = Transition(layers, width)
        self.denseblock2 = DenseBlock(layers, width // 2, growth, count)
        width = width // 2 + count * growth
        self.transition2 = Transition(layers, width)
        self.denseblock3 = DenseBlock(layers, width // 2, growth, count)
        self.dim = width // 2 + count * growth
        self.norm_final = layers.norm(self.dim) if last_norm else None

    def __call__(self, x):
        x = self.transition1(self.denseblock1(self.conv0(x)))
        x = self.transition2(self.denseblock2(x))
        branch_point(self, x)
        x = self.denseblock3(x)
        return nnx.relu(x if self.norm_final is None else self.norm_final(x))


class DenseNet(nnx.Module):
    """DenseNet-BC of depth `6 * count + 4`.

    Args:
        count: layers in each of the three dense blocks.
        growth: channels that each layer adds.
        last_norm: a batch normalisation after the last block, which OKDDip's code has and PCL's reproduction lacks.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        count: int,
        growth: int,
        last_norm: bool = False,
        image_shape: tuple[int, int, int] = (32, 32, 3),
        **given: Unpack[Given],
    ):
        layers = make_layers(kernel_init=he_fan_in, **given)
        self.features = Features(layers, image_shape[-1], growth, count, last_norm)
        self.fc = layers.linear(self.features.dim, num_classes, bias_init=nnx.initializers.zeros)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        features = global_average_pool(self.features(images))
        return self.fc(features), features
