"""Residual networks with post-activation (He et al., CVPR 2016), for small images and for ImageNet.

One class covers the families of the field's tables: RepDistiller's ResNets of depth 6n+2 and their "x4" variants, its
ResNet18/34/50 for small images, the two bottleneck networks of online distillation (ONE, OKDDip, PCL), torchvision's
ResNets for ImageNet, and timm's ResNet-D (He et al., CVPR 2019). All but one have projection shortcuts (option B), and
stride 2 in the 3x3 convolution of a stage's first block.

Attribute names are those of the PyTorch state dicts: `conv1 bn1 layer1.0.conv1 ... layer2.0.downsample.0 ... fc`.
"""

import functools
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from orc_jax.models.layers import (
    Given,
    Layers,
    apply,
    branch_point,
    global_average_pool,
    he_fan_in,
    he_fan_out,
    make_layers,
    max_pool,
)
from orc_jax.models.noise import StochasticDepth
from orc_jax.models.points import note, note_norm


class Block(nnx.Module):
    """A residual block: two 3x3 convolutions ("basic"), or with `inner` features a bottleneck 1x1, 3x3, 1x1.

    `shortcut` is the name of the attribute that holds the projection; a `padded` one has no parameters (option A).
    Where it is `tweaked` the mean of 2x2 pixels comes before the projection, and the branch starts at 0. `drop` is what
    the branch goes through.
    """

    def __init__(
        self, layers: Layers, in_features, features, *, inner, strides, shortcut, drop, padded=False, tweaked=False
    ):
        if inner is None:
            shapes = [(in_features, features, 3, strides), (features, features, 3, 1)]
        else:
            shapes = [(in_features, inner, 1, 1), (inner, inner, 3, strides), (inner, features, 1, 1)]
        for i, (fan_in, fan_out, kernel_size, stride) in enumerate(shapes, start=1):
            setattr(self, f"conv{i}", layers.conv(fan_in, fan_out, kernel_size, strides=stride))
            setattr(self, f"bn{i}", layers.norm(fan_out))
        if tweaked:
            getattr(self, f"bn{len(shapes)}").scale[...] *= 0.0
        projection = []  # none: the identity
        if tweaked and (strides != 1 or in_features != features):
            pooling = halve if strides == 2 else identity
            projection = [pooling, layers.conv(in_features, features, 1), layers.norm(features)]
        elif strides != 1 or in_features != features:
            convolution = layers.conv(in_features, features, 1, strides=strides)
            projection = [functools.partial(pad, features=features)] if padded else [convolution, layers.norm(features)]
        setattr(self, shortcut, nnx.List(projection))
        self.drop = drop
        self.shortcut_name = shortcut
        self.depth = len(shapes)

    def before(self, x):
        """The sum, before the last ReLU."""
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(nnx.relu(y) if i > 1 else y))
        return apply(getattr(self, self.shortcut_name), x) + self.drop(y)

    def __call__(self, x):
        return nnx.relu(self.before(x))


def pad(x: jax.Array, *, features: int) -> jax.Array:
    """Option A: every second pixel, and as many channels of zeros on both sides as are missing to `features`."""
    side = (features - x.shape[-1]) // 2
    for axis in (1, 2):  # not x[:, ::2, ::2], which for a batch of any size is a gather, and ONNX gets none
        x = jax.lax.slice_in_dim(x, 0, None, stride=2, axis=axis)
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (side, side)))


def identity(x: jax.Array) -> jax.Array:
    return x


def halve(x: jax.Array) -> jax.Array:
    """The mean of 2x2 pixels, or of fewer where the sides are odd."""
    if x.shape[1] % 2 == x.shape[2] % 2 == 0:
        return nnx.avg_pool(x, (2, 2), (2, 2))
    return nnx.avg_pool(x, (2, 2), (2, 2), "SAME", count_include_pad=False)


def deep_stem(layers: Layers, channels: int, features: int) -> list:
    """Three 3x3 convolutions in place of the 7x7 one, of half the features but for the last."""
    half = features // 2
    first = [layers.conv(channels, half, 3, strides=2), layers.norm(half), nnx.relu]
    return [*first, layers.conv(half, half, 3), layers.norm(half), nnx.relu, layers.conv(half, features, 3)]


class ResNet(nnx.Module):
    """A residual network of three or four stages, all but the first of which halve the resolution.

    Args:
        blocks: residual blocks of each stage.
        widths: channels of the stem and of each stage.
        inner: channels inside the bottlenecks of each stage; () for basic blocks.
        stem: "small", a 3x3 convolution; "large", a 7x7 convolution and a max-pool that each halve the resolution; or
            "deep", which has three 3x3 convolutions for the 7x7 one, and tweaked blocks: ResNet-D.
        shortcut, head: names of the attributes that hold the projections and the classifier.
        padded: shortcuts without parameters (option A), and He's initial weights by fan-in, of the classifier too: as
            the code of SwitOKD has it.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        blocks: tuple[int, ...],
        widths: tuple[int, ...],
        inner: tuple[int, ...] = (),
        stem: str = "small",
        shortcut: str = "downsample",
        head: str = "fc",
        padded: bool = False,
        image_shape: tuple[int, int, int] = (32, 32, 3),
        **given: Unpack[Given],
    ):
        layers = make_layers(kernel_init=he_fan_in if padded else he_fan_out, **given)
        if stem == "deep":
            self.conv1 = nnx.List(deep_stem(layers, image_shape[-1], widths[0]))
        else:
            kernel_size, strides = {"small": (3, 1), "large": (7, 2)}[stem]
            self.conv1 = layers.conv(image_shape[-1], widths[0], kernel_size, strides=strides)
        self.bn1 = layers.norm(widths[0])
        for i, count in enumerate(blocks):
            stage = nnx.List()
            for j in range(count):
                stage.append(
                    Block(
                        layers,
                        widths[i + 1] if j else widths[i],
                        widths[i + 1],
                        inner=inner[i] if inner else None,
                        strides=2 if i and not j else 1,
                        shortcut=shortcut,
                        drop=StochasticDepth(sum(blocks[:i]) + j + 1, sum(blocks)),
                        padded=padded,
                        tweaked=stem == "deep",
                    )
                )
            setattr(self, f"layer{i + 1}", stage)
        setattr(self, head, layers.linear(widths[-1], num_classes, kernel_init=he_fan_in if padded else None))
        self.stages = tuple(f"layer{i + 1}" for i in range(len(blocks)))
        self.head, self.stem = head, stem

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = apply(self.conv1, images) if isinstance(self.conv1, nnx.List) else self.conv1(images)
        x = nnx.relu(self.bn1(x))
        if self.stem != "small":
            x = max_pool(x, 3, strides=2, padding=1)
        note(post=x, preact=x)
        for stage in self.stages:
            if stage == self.stages[-1]:
                branch_point(self, x)
            *blocks, last = getattr(self, stage)
            y = last.before(apply(blocks, x))
            x = nnx.relu(y)
            note(post=x, preact=y)
            note_norm(getattr(last, f"bn{last.depth}"))
        note(pooled=x)
        features = global_average_pool(x)
        return getattr(self, self.head)(features), features
