"""Vision transformers (Dosovitskiy et al., ICLR 2021; DeiT: Touvron et al., ICML 2021) and MLP-Mixer (Tolstikhin et
al., NeurIPS 2021), as timm has them.

Attribute names are those of timm's state dicts: `cls_token pos_embed patch_embed.proj blocks.0.attn.qkv ... norm head`
of the first, `stem.proj blocks.0.mlp_tokens.fc1 ... norm head` of the second.
"""

import functools
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from orc_jax.errors import UserError
from orc_jax.models.blocks import SMALL_NORMAL, ZEROS, Attention, Mlp, Patches, dense, layer_norm
from orc_jax.models.layers import Given, branch_point, make_layers, torch_default, torch_uniform
from orc_jax.models.noise import Dropout, StochasticDepth

# timm's of the Mixer, which are not those of the transformers.
XAVIER, NEARLY_ZERO = nnx.initializers.xavier_uniform(), nnx.initializers.normal(1e-6)
LECUN = nnx.initializers.lecun_normal()


def grid_of(image_shape: tuple[int, int, int], patch: int) -> tuple[int, int]:
    """Rows and columns of patches.

    Raises:
        UserError: for images whose sides are no multiples of the patch.
    """
    height, width, _ = image_shape
    if height % patch or width % patch:
        raise UserError(
            f"the size of the images={image_shape}: must be a multiple of {patch} for a network of patches of "
            f"{patch}x{patch}, such as {max(height // patch, 1) * patch}x{max(width // patch, 1) * patch}"
        )
    return height // patch, width // patch


def last_quarter(blocks: int) -> int:
    """The first of the blocks that are a network's last stage: of 12 it is number 9."""
    return blocks - max(blocks // 4, 1)


class PatchEmbed(nnx.Module):
    """Patches as tokens: `[batch, height, width, channels]` to `[batch, patches, features]`."""

    def __init__(self, *args, **options):
        self.proj = Patches(*args, **options)

    def __call__(self, images):
        x = self.proj(images)
        return x.reshape(x.shape[0], -1, x.shape[-1])


class Block(nnx.Module):
    """Attention and MLP, each behind a layer normalisation and beside the identity."""

    def __init__(self, features, heads, share, *, dtype, rngs):
        self.norm1 = layer_norm(features, dtype=dtype, rngs=rngs)
        self.attn = Attention(features, heads, dtype=dtype, rngs=rngs)
        self.drop_path1 = StochasticDepth(*share)
        self.norm2 = layer_norm(features, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(features, 4 * features, functools.partial(dense, dtype=dtype, rngs=rngs))
        self.drop_path2 = StochasticDepth(*share)

    def __call__(self, x):
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class VisionTransformer(nnx.Module):
    """A transformer on the patches of an image and a class token, whose last state are the features.

    Args:
        features: of each token.
        blocks, heads: how many.
        patch: its height and width, in pixels.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        features: int,
        heads: int,
        blocks: int = 12,
        patch: int = 16,
        image_shape: tuple[int, int, int] = (224, 224, 3),
        **given: Unpack[Given],
    ):
        rows, columns = grid_of(image_shape, patch)
        own = {"dtype": given["dtype"], "rngs": given["rngs"]}
        key, fan_in = given["rngs"].params, patch * patch * image_shape[-1]
        self.cls_token = nnx.Param(nnx.initializers.normal(1e-6)(key(), (1, 1, features)))
        self.pos_embed = nnx.Param(SMALL_NORMAL(key(), (1, 1 + rows * columns, features)))
        inits = {"kernel_init": torch_default, "bias_init": torch_uniform(fan_in)}
        self.patch_embed = PatchEmbed(image_shape[-1], features, patch, **inits, **own)
        # timm's rule: from 0 in the first block to the whole rate in the last.
        self.blocks = nnx.List(Block(features, heads, (i, max(blocks - 1, 1)), **own) for i in range(blocks))
        self.norm = layer_norm(features, **own)
        self.head_drop = Dropout()
        self.head = make_layers(**given).linear(features, num_classes, kernel_init=SMALL_NORMAL, bias_init=ZEROS)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = self.patch_embed(images)
        # The class token is added where its place is, to zeros: nothing is as large as the batch but what is of images.
        places = self.pos_embed[...]
        places = jnp.concatenate([places[:, :1] + self.cls_token[...], places[:, 1:]], axis=1)
        x = jnp.pad(x, ((0, 0), (1, 0), (0, 0))) + places.astype(x.dtype)
        for i, block in enumerate(self.blocks):
            if i == last_quarter(len(self.blocks)):
                branch_point(self, x[:, None])
            x = block(x)
        features = self.norm(jax.lax.index_in_dim(x, 0, axis=1, keepdims=False)).astype(jnp.float32)
        return self.head(self.head_drop(features)), features


class MixerBlock(nnx.Module):
    """An MLP over the tokens of each channel, and one over the channels of each token."""

    def __init__(self, features, tokens, *, dtype, rngs):
        layer = functools.partial(dense, kernel_init=XAVIER, bias_init=NEARLY_ZERO, dtype=dtype, rngs=rngs)
        self.norm1 = layer_norm(features, dtype=dtype, rngs=rngs)
        self.mlp_tokens = Mlp(tokens, features // 2, layer)
        self.norm2 = layer_norm(features, dtype=dtype, rngs=rngs)
        self.mlp_channels = Mlp(features, 4 * features, layer)
        self.drop_path = StochasticDepth(1, 1)  # timm's rule: the whole rate in every block

    def __call__(self, x):
        x = x + self.drop_path(self.mlp_tokens(self.norm1(x).swapaxes(1, 2)).swapaxes(1, 2))
        return x + self.drop_path(self.mlp_channels(self.norm2(x)))


class Mixer(nnx.Module):
    """A network of MLPs alone. It is for images of one size: the MLPs over tokens are.

    Args:
        features: of each token.
        blocks: how many.
        patch: its height and width, in pixels.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        features: int,
        blocks: int,
        patch: int = 16,
        image_shape: tuple[int, int, int] = (224, 224, 3),
        **given: Unpack[Given],
    ):
        rows, columns = grid_of(image_shape, patch)
        own = {"dtype": given["dtype"], "rngs": given["rngs"]}
        self.stem = PatchEmbed(image_shape[-1], features, patch, kernel_init=LECUN, **own)
        self.blocks = nnx.List(MixerBlock(features, rows * columns, **own) for _ in range(blocks))
        self.norm = layer_norm(features, **own)
        self.head_drop = Dropout()
        self.head = make_layers(**given).linear(features, num_classes, kernel_init=ZEROS, bias_init=ZEROS)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = self.stem(images)
        for i, block in enumerate(self.blocks):
            if i == last_quarter(len(self.blocks)):
                branch_point(self, x[:, None])
            x = block(x)
        features = jnp.mean(self.norm(x), axis=1, dtype=jnp.float32)
        return self.head(self.head_drop(features)), features
