"""VGG networks with batch normalisation (Simonyan and Zisserman, ICLR 2015), as RepDistiller defines them.

Attribute names are those of the PyTorch state dicts: `block0.0` (convolution) `block0.1` (batch normalisation) ...
`classifier`.
"""

from typing import Unpack

import jax
from flax import nnx

from orc_jax.errors import require
from orc_jax.models.layers import Given, apply, branch_point, global_average_pool, make_layers, max_pool
from orc_jax.models.noise import Dropout
from orc_jax.models.points import note, note_norm

WIDTHS = (64, 128, 256, 512, 512)  # channels of the five blocks


class VGG(nnx.Module):
    """VGG with one linear layer.

    Args:
        convolutions: 3x3 convolutions in each of the five blocks.

    Raises:
        UserError: if the images are smaller than 8 pixels, which three poolings would leave nothing of.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        convolutions: tuple[int, int, int, int, int],
        image_shape: tuple[int, int, int] = (32, 32, 3),
        **given: Unpack[Given],
    ):
        require("the size of the images", image_shape, min(image_shape[:2]) >= 8, "at least 8x8 for a VGG")
        layers = make_layers(**given)
        zeros = nnx.initializers.zeros
        in_features = image_shape[-1]
        for i, (count, features) in enumerate(zip(convolutions, WIDTHS, strict=True)):
            block = nnx.List()
            for _ in range(count):
                block.extend([layers.conv(in_features, features, 3, bias_init=zeros), layers.norm(features), nnx.relu])
                in_features = features
            setattr(self, f"block{i}", block)
        normal = nnx.initializers.normal(0.01)
        self.classifier = layers.linear(in_features, num_classes, kernel_init=normal, bias_init=zeros)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = images
        for i in range(len(WIDTHS)):
            if i == len(WIDTHS) - 1:
                branch_point(self, x)
            *layers, activation = getattr(self, f"block{i}")
            y = apply(layers, x)
            x = activation(y)
            note(post=x, preact=y if i else x)
            if i:
                note_norm(layers[-1])
            if i < 3 or (i == 3 and images.shape[1] == 64):
                x = max_pool(x, 2, strides=2)
        note(pooled=x)
        features = global_average_pool(x)
        return self.classifier(features), features


class LinearsVGG(nnx.Module):
    """VGG-16 of online distillation (OKDDip, PCL): five poolings and three linear layers.

    Attribute names are those of OKDDip's state dict: `conv1 bn1 conv2 bn2 layer1.0 layer1.1 ... classifier.0 ...`. Its
    dropout has the rate 0 there. Features are what goes into the linear layers, as in both papers' code.
    """

    def __init__(self, num_classes: int, *, image_shape: tuple[int, int, int] = (32, 32, 3), **given: Unpack[Given]):
        require("the size of the images", image_shape, min(image_shape[:2]) >= 32, "at least 32x32 for five poolings")
        layers, zeros, normal = make_layers(**given), nnx.initializers.zeros, nnx.initializers.normal(0.01)
        self.conv1 = layers.conv(image_shape[-1], 64, 3, bias_init=zeros)
        self.bn1 = layers.norm(64)
        self.conv2 = layers.conv(64, 64, 3, bias_init=zeros)
        self.bn2 = layers.norm(64)
        in_features = 64
        for i, (count, features) in enumerate(((2, 128), (3, 256), (3, 512), (3, 512)), start=1):
            block = nnx.List()
            for _ in range(count):
                block.extend([layers.conv(in_features, features, 3, bias_init=zeros), layers.norm(features), nnx.relu])
                in_features = features
            setattr(self, f"layer{i}", block)
        linear = [layers.linear(512, n, kernel_init=normal, bias_init=zeros) for n in (512, 512, num_classes)]
        self.classifier = nnx.List([linear[0], nnx.relu, Dropout(), linear[1], nnx.relu, Dropout(), linear[2]])

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nnx.relu(self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(images))))))
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = max_pool(x, 2, strides=2)
            if name == "layer4":
                branch_point(self, x)
            x = apply(getattr(self, name), x)
        features = global_average_pool(max_pool(x, 2, strides=2))
        return apply(self.classifier, features), features
