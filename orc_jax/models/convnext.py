"""ConvNeXt (Liu et al., CVPR 2022) as timm has it, with its smaller sizes from atto to nano.

Attribute names are those of timm's state dicts: `stem.0 stem.1 stages.0.blocks.0.conv_dw ... stages.1.downsample.0 ...
head.norm head.fc`.
"""

import functools
from typing import Unpack

import jax
from flax import nnx

from orc_jax.models.blocks import SMALL_NORMAL, ZEROS, Mlp, Patches, dense, layer_norm
from orc_jax.models.layers import Given, Layers, apply, branch_point, global_average_pool, make_layers
from orc_jax.models.noise import Dropout, StochasticDepth


class Block(nnx.Module):
    """A 7x7 depthwise convolution and an MLP over channels, which starts a millionth as large as it is (`gamma`).

    With `convolutional` the weights of the MLP have the shapes of 1x1 convolutions, as in the sizes below "tiny".
    """

    def __init__(self, layers: Layers, features, share, *, convolutional, dtype, rngs):
        self.conv_dw = layers.conv(features, features, 7, groups=features, bias_init=ZEROS)
        self.norm = layer_norm(features, dtype=dtype, rngs=rngs)
        layer = functools.partial(Patches if convolutional else dense, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(features, 4 * features, layer)
        self.gamma = nnx.Param(nnx.initializers.constant(1e-6)(rngs.params(), (features,)))
        self.drop_path = StochasticDepth(*share)

    def __call__(self, x):
        y = self.mlp(self.norm(self.conv_dw(x)))
        return x + self.drop_path(y * self.gamma[...].astype(y.dtype)[None, None, None])


class Stage(nnx.Module):
    """Blocks, behind a normalisation and a 2x2 convolution that halves the resolution, but in the first stage."""

    def __init__(self, downsample: list, blocks: list[Block]):
        self.downsample, self.blocks = nnx.List(downsample), nnx.List(blocks)

    def __call__(self, x):
        return apply(self.blocks, apply(self.downsample, x))


class Head(nnx.Module):
    """Normalisation of the means over the image, which are the features, and the classifier."""

    def __init__(self, layers: Layers, features, num_classes, *, dtype, rngs):
        self.norm = layer_norm(features, dtype=dtype, rngs=rngs)
        self.drop = Dropout()
        self.fc = layers.linear(features, num_classes, kernel_init=SMALL_NORMAL, bias_init=ZEROS)

    def __call__(self, x):
        features = self.norm(global_average_pool(x)).astype("float32")
        return self.fc(self.drop(features)), features


class ConvNeXt(nnx.Module):
    """A network of four stages.

    Args:
        blocks, widths: of each stage.
        patch: height and width of the patches that the stem makes pixels of: 4, or 1 for small images.
        convolutional: see `Block`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        blocks: tuple[int, ...],
        widths: tuple[int, ...],
        patch: int = 4,
        convolutional: bool = True,
        image_shape: tuple[int, int, int] = (224, 224, 3),
        **given: Unpack[Given],
    ):
        layers = make_layers(kernel_init=SMALL_NORMAL, **given)
        own = {"dtype": given["dtype"], "rngs": given["rngs"]}
        self.stem = nnx.List([Patches(image_shape[-1], widths[0], patch, **own), layer_norm(widths[0], **own)])
        self.stages = nnx.List()
        for i, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            before = widths[i - 1]
            downsample = [layer_norm(before, **own), Patches(before, width, 2, **own)] if i else []
            shares = [(sum(blocks[:i]) + j, max(sum(blocks) - 1, 1)) for j in range(count)]
            of_stage = [Block(layers, width, share, convolutional=convolutional, **own) for share in shares]
            self.stages.append(Stage(downsample, of_stage))
        self.head = Head(layers, widths[-1], num_classes, **own)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = apply(self.stem, images)
        for stage in self.stages[:-1]:
            x = stage(x)
        branch_point(self, x)
        return self.head(self.stages[-1](x))
