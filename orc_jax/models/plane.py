"""The plain convolutional networks of DGKD (Son, Na, Choi, Hwang; ICCV 2021), as its code defines them.

Attribute names are those of the PyTorch state dicts: `conv_layers.0` (convolution) `conv_layers.1` (batch
normalisation) ... `fc_layers.0`, counting ReLUs and poolings.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from orc_jax.errors import UserError
from orc_jax.models.layers import Given, apply, make_layers, max_pool, torch_default, torch_uniform

# By depth: channels of the 3x3 convolutions, "M" for a 2x2 max-pool, and hidden units of the linear layers before the
# classifier. The code has one table for CIFAR-100 and a narrower one for CIFAR-10.
CIFAR100 = {
    2: ((32, "M", 32, "M"), ()),
    4: ((32, 32, "M", 64, 64, "M"), ()),
    6: ((32, 32, "M", 64, 64, "M", 128, 128), ()),
    8: ((32, 32, "M", 64, 64, "M", 128, 128, "M", 256, 256, "M"), (64,)),
    10: ((32, 32, "M", 64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M"), (512,)),
}
CIFAR10 = {
    2: ((16, "M", 16, "M"), ()),
    4: ((16, 16, "M", 32, 32, "M"), ()),
    6: ((16, 16, "M", 32, 32, "M", 64, 64, "M"), ()),
    8: ((16, 16, "M", 32, 32, "M", 64, 64, "M", 128, 128, "M"), (64,)),
    10: ((32, 32, "M", 64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M"), (128,)),
}


class Plane(nnx.Module):
    """A plain network of `depth` convolutions. With at most ten classes it is that of CIFAR-10, else of CIFAR-100.

    Args:
        depth: number of convolutions: 2, 4, 6, 8 or 10.
        image_shape: (height, width, channels); the first linear layer depends on it.

    Raises:
        UserError: if the poolings would leave nothing of the images.
    """

    def __init__(
        self, num_classes: int, *, depth: int, image_shape: tuple[int, int, int] = (32, 32, 3), **given: Unpack[Given]
    ):
        layers = make_layers(kernel_init=torch_default, **given)
        convolutions, hidden = (CIFAR10 if num_classes <= 10 else CIFAR100)[depth]
        height, width, channels = image_shape
        self.conv_layers = nnx.List()
        for item in convolutions:
            if item == "M":
                self.conv_layers.append(halve)
                height, width = height // 2, width // 2
            else:
                bias_init = torch_uniform(channels * 3 * 3)
                self.conv_layers.extend(
                    [layers.conv(channels, item, 3, bias_init=bias_init), layers.norm(item), nnx.relu]
                )
                channels = item
        if not height * width:
            halvings = convolutions.count("M")
            raise UserError(
                f"plane{depth}: its {halvings} poolings leave nothing of images of {image_shape[0]}x{image_shape[1]} "
                f"pixels; accepted are images of at least {2**halvings}x{2**halvings}"
            )
        self.fc_layers = nnx.List()
        units = height * width * channels
        for features in hidden:
            self.fc_layers.extend([layers.linear(units, features), nnx.relu])
            units = features
        self.fc_layers.append(layers.linear(units, num_classes))

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = apply(self.conv_layers, images)
        # flattened in PyTorch's order, channels first, so that its weights fit
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1).astype(jnp.float32)
        features = apply(self.fc_layers[:-1], x)
        return self.fc_layers[-1](features), features


def halve(x: jax.Array) -> jax.Array:
    return max_pool(x, 2, strides=2)
