"""EfficientNet (Tan, Le; ICML 2019, and V2, ICML 2021) and MobileNetV3 (Howard et al., ICCV 2019) as timm has them.

Attribute names are those of timm's state dicts: `conv_stem bn1 blocks.0.0.conv_dw ... conv_head bn2 classifier`.
"""

from collections.abc import Callable
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from orc_jax.models.blocks import ZEROS, Patches, SqueezeExcite
from orc_jax.models.layers import (
    Given,
    Layers,
    branch_point,
    global_average_pool,
    he_fan_in,
    he_fan_out,
    make_layers,
    torch_uniform,
)
from orc_jax.models.mobilenetv2 import divisible
from orc_jax.models.noise import Dropout, StochasticDepth


class Row(NamedTuple):
    """Blocks of a stage that are alike.

    kind: "ds", depthwise and 1x1 convolutions; "ir", 1x1, depthwise, 1x1; "er", square and 1x1; "cn", one convolution.
    """

    kind: str
    count: int
    kernel_size: int
    stride: int  # of the first
    expansion: float
    channels: int
    squeezes: bool = False  # has squeeze-and-excitation
    relu: bool = False  # its activation is ReLU, whatever that of the network is
    skips: bool = True  # adds its input where it can


B0 = (
    (Row("ds", 1, 3, 1, 1, 16, True),),
    (Row("ir", 2, 3, 2, 6, 24, True),),
    (Row("ir", 2, 5, 2, 6, 40, True),),
    (Row("ir", 3, 3, 2, 6, 80, True),),
    (Row("ir", 3, 5, 1, 6, 112, True),),
    (Row("ir", 4, 5, 2, 6, 192, True),),
    (Row("ir", 1, 3, 1, 6, 320, True),),
)
# A tenth more blocks, rounded up in each stage.
B1 = tuple((row._replace(count=-(-row.count * 11 // 10)),) for (row,) in B0)
V2_S = (
    (Row("cn", 2, 3, 1, 1, 24),),
    (Row("er", 4, 3, 2, 4, 48),),
    (Row("er", 4, 3, 2, 4, 64),),
    (Row("ir", 6, 3, 2, 4, 128, True),),
    (Row("ir", 9, 3, 1, 6, 160, True),),
    (Row("ir", 15, 3, 2, 6, 256, True),),
)
V3_SMALL = (
    (Row("ds", 1, 3, 2, 1, 16, True, True),),
    (Row("ir", 1, 3, 2, 4.5, 24, relu=True), Row("ir", 1, 3, 1, 3.67, 24, relu=True)),
    (Row("ir", 1, 5, 2, 4, 40, True), Row("ir", 2, 5, 1, 6, 40, True)),
    (Row("ir", 2, 5, 1, 3, 48, True),),
    (Row("ir", 3, 5, 2, 6, 96, True),),
    (Row("cn", 1, 1, 1, 1, 576, skips=False),),
)
V3_LARGE = (
    (Row("ds", 1, 3, 1, 1, 16, relu=True),),
    (Row("ir", 1, 3, 2, 4, 24, relu=True), Row("ir", 1, 3, 1, 3, 24, relu=True)),
    (Row("ir", 3, 5, 2, 3, 40, True, True),),
    (Row("ir", 1, 3, 2, 6, 80), Row("ir", 1, 3, 1, 2.5, 80), Row("ir", 2, 3, 1, 2.3, 80)),
    (Row("ir", 2, 3, 1, 6, 112, True),),
    (Row("ir", 3, 5, 2, 6, 160, True),),
    (Row("cn", 1, 1, 1, 1, 960, skips=False),),
)


class Style(NamedTuple):
    """What the families differ in.

    activation, gate: of the network, and of squeeze-and-excitation, as `flax.nnx` calls them.
    squeezed: (channels of a block's input, channels within) -> the channels that a block is squeezed to.
    head: units before the classifier.
    pools_first: the head is a layer on means over the image, not a convolution and a normalisation before them.
    same, eps: padding as TensorFlow has it, and what its batch normalisation adds to variances.
    """

    activation: str
    gate: str
    squeezed: Callable[[int, int], int]
    head: int = 1280
    pools_first: bool = False
    same: bool = False
    eps: float = 1e-5


def efficient(**changes) -> Style:
    """EfficientNet's."""
    return Style("silu", "sigmoid", lambda outer, inner: outer // 4, **changes)


def mobile(**changes) -> Style:
    """MobileNetV3's."""
    return Style("hard_swish", "hard_sigmoid", lambda outer, inner: divisible(inner / 4), pools_first=True, **changes)


class Block(nnx.Module):
    """Convolutions, each with a normalisation and all but the last of several with an activation."""

    def __init__(self, layers: Layers, style: Style, row: Row, in_features: int, strides: int, share, *, dtype, rngs):
        inner = divisible(in_features * row.expansion)
        strided = (row.kernel_size, strides)
        # name, channels, (kernel size, strides), whether it is depthwise
        convolutions = {
            "ds": [("conv_dw", in_features, strided, True), ("conv_pw", row.channels, (1, 1), False)],
            "ir": [
                ("conv_pw", inner, (1, 1), False),
                ("conv_dw", inner, strided, True),
                ("conv_pwl", row.channels, (1, 1), False),
            ],
            "er": [("conv_exp", inner, strided, False), ("conv_pwl", row.channels, (1, 1), False)],
            "cn": [("conv", row.channels, strided, False)],
        }[row.kind]
        features, names = in_features, []
        for i, (name, channels, (kernel_size, stride), is_depthwise) in enumerate(convolutions, start=1):
            options = {"groups": channels, "kernel_init": he_fan_in} if is_depthwise else {}
            convolution = layers.conv(features, channels, kernel_size, strides=stride, same=style.same, **options)
            setattr(self, name, convolution)
            setattr(self, f"bn{i}", layers.norm(channels, eps=style.eps))
            if is_depthwise and row.squeezes:
                activation = getattr(nnx, "relu" if style.pools_first else style.activation)
                hidden, gate = style.squeezed(in_features, channels), getattr(nnx, style.gate)
                self.se = SqueezeExcite(
                    channels, hidden, activation, gate, kernel_init=he_fan_out, dtype=dtype, rngs=rngs
                )
            names.append(name)
            features = channels
        self.names, self.squeezed_after = tuple(names), "conv_dw" if row.squeezes else ""
        self.activation = getattr(nnx, "relu" if row.relu else style.activation)
        self.has_skip = row.skips and strides == 1 and in_features == row.channels
        self.drop_path = StochasticDepth(*share)

    def __call__(self, x):
        y = x
        for i, name in enumerate(self.names, start=1):
            y = getattr(self, f"bn{i}")(getattr(self, name)(y))
            if i < len(self.names) or len(self.names) == 1:
                y = self.activation(y)
            if name == self.squeezed_after:
                y = self.se(y)
        return x + self.drop_path(y) if self.has_skip else y


class EfficientNet(nnx.Module):
    """A network of inverted residuals.

    Args:
        stages: their rows.
        stem: channels of the first convolution.
        style: see `Style`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        stages: tuple[tuple[Row, ...], ...],
        stem: int,
        style: Style,
        image_shape: tuple[int, int, int] = (224, 224, 3),
        **given: Unpack[Given],
    ):
        layers = make_layers(kernel_init=he_fan_out, **given)
        own = {"dtype": given["dtype"], "rngs": given["rngs"]}
        self.conv_stem = layers.conv(image_shape[-1], stem, 3, strides=2, same=style.same)
        self.bn1 = layers.norm(stem, eps=style.eps)
        self.blocks, features = nnx.List(), stem
        number, total = 0, sum(row.count for rows in stages for row in rows)
        for rows in stages:
            stage = nnx.List()
            for row in rows:
                for i in range(row.count):
                    strides, share = 1 if i else row.stride, (number, total)
                    stage.append(Block(layers, style, row, features, strides, share, **own))
                    features, number = row.channels, number + 1
            self.blocks.append(stage)
        if style.pools_first:
            self.conv_head = Patches(features, style.head, kernel_init=he_fan_out, **own)
        else:
            self.conv_head = layers.conv(features, style.head, 1)
            self.bn2 = layers.norm(style.head, eps=style.eps)
        self.drop = Dropout()
        # uniform by the number of classes, as in the code of Google and timm
        uniform = torch_uniform(num_classes)
        self.classifier = layers.linear(style.head, num_classes, kernel_init=uniform, bias_init=ZEROS)
        self.activation, self.pools_first = getattr(nnx, style.activation), style.pools_first
        self.last_stage = last_stage(stages)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = self.activation(self.bn1(self.conv_stem(images)))
        for i, stage in enumerate(self.blocks):
            if i == self.last_stage:
                branch_point(self, x)
            for block in stage:
                x = block(x)
        if self.pools_first:
            pooled = self.conv_head(global_average_pool(x)[:, None, None])
            features = self.activation(pooled).squeeze((1, 2)).astype(jnp.float32)
        else:
            features = global_average_pool(self.activation(self.bn2(self.conv_head(x))))
        return self.classifier(self.drop(features)), features


def last_stage(stages: tuple[tuple[Row, ...], ...]) -> int:
    """The first of the stages at the last resolution."""
    return max(i for i, rows in enumerate(stages) if rows[0].stride > 1)


def parts_of_last_stage(stages: tuple[tuple[Row, ...], ...], style: Style) -> tuple[str, ...]:
    """The names of what is in the last stage and after it."""
    blocks = tuple(f"blocks.{i}" for i in range(last_stage(stages), len(stages)))
    return (*blocks, "conv_head", *(() if style.pools_first else ("bn2",)), "classifier")
