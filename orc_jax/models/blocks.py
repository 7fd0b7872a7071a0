"""The layers of transformers and of the convolutional networks of today: what several of these families share.

What mixes channels, and what looks at patches that do not overlap, is one matrix product here, whatever the PyTorch
original calls it: `jax.vmap` over the members of a pool makes it one batched product, where convolutions would be
grouped. Shapes and names of parameters are those of the originals.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from orc_jax.models.layers import global_average_pool

# timm's "truncated" normal cuts at 100 standard deviations: nothing.
SMALL_NORMAL, ZEROS = nnx.initializers.normal(0.02), nnx.initializers.zeros
gelu = functools.partial(nnx.gelu, approximate=False)
Activation = Callable[[jax.Array], jax.Array]


def layer_norm(features: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer normalisation of the last axis, eps 1e-6 as in all the families here; its moments are float32."""
    return nnx.LayerNorm(features, epsilon=1e-6, dtype=dtype, use_fast_variance=False, rngs=rngs)


def dense(
    in_features: int,
    features: int,
    *,
    kernel_init: nnx.Initializer = SMALL_NORMAL,
    bias_init: nnx.Initializer = ZEROS,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """A linear layer within a network: of the activations' type, where `layers.linear`, a classifier, is float32."""
    return nnx.Linear(in_features, features, dtype=dtype, kernel_init=kernel_init, bias_init=bias_init, rngs=rngs)


class Patches(nnx.Module):
    """A convolution of windows of `size` that do not overlap, as one matrix product; of size 1, a 1x1 convolution.

    Pixels at the right and at the bottom that fill no window are left out, as a convolution leaves them out.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        size: int = 1,
        *,
        kernel_init: nnx.Initializer = SMALL_NORMAL,
        bias_init: nnx.Initializer = ZEROS,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (size, size, in_features, features), jnp.float32))
        self.bias = nnx.Param(bias_init(rngs.params(), (features,), jnp.float32))
        self.size, self.dtype = size, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, height, width, in_features]` to `[batch, height / size, width / size, features]`."""
        batch, height, width, channels = x.shape
        rows, columns, size = height // self.size, width // self.size, self.size
        if size > 1:
            x = x[:, : rows * size, : columns * size].reshape(batch, rows, size, columns, size, channels)
            x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, size * size * channels)
        kernel = self.kernel[...].reshape(size * size * channels, -1).astype(self.dtype)
        return x.astype(self.dtype) @ kernel + self.bias[...].astype(self.dtype)[None, None, None]


class Mlp(nnx.Module):
    """Two layers with GELU between them; `layer` makes them, `dense` or `Patches` with types and streams of keys."""

    def __init__(self, features: int, hidden: int, layer: Callable[[int, int], Callable]):
        self.fc1, self.fc2 = layer(features, hidden), layer(hidden, features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`x` is `[..., features]`."""
        return self.fc2(gelu(self.fc1(x)))


class Attention(nnx.Module):
    """Self-attention of several heads; queries, keys and values are one matrix product.

    XLA's everywhere: cuDNN's, as JAX calls it, trains on an even number of tokens alone, and patches with a class
    token are odd in number (65 of 32x32 pixels, 197 of 224x224).
    """

    def __init__(self, features: int, heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.qkv = dense(features, 3 * features, dtype=dtype, rngs=rngs)
        self.proj = dense(features, features, dtype=dtype, rngs=rngs)
        self.heads = heads

    def __call__(self, x: jax.Array) -> jax.Array:
        """`x` is `[batch, tokens, features]`."""
        batch, tokens, features = x.shape
        qkv = jnp.split(self.qkv(x), 3, axis=-1)
        query, key, value = (part.reshape(batch, tokens, self.heads, features // self.heads) for part in qkv)
        seen = jax.nn.dot_product_attention(query, key, value)
        return self.proj(seen.reshape(x.shape))


class SqueezeExcite(nnx.Module):
    """Weighs channels by what a small network makes of their means (Hu et al., CVPR 2018)."""

    def __init__(
        self,
        features: int,
        hidden: int,
        activation: Activation,
        gate: Activation,
        *,
        kernel_init: nnx.Initializer,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.conv_reduce = Patches(features, hidden, kernel_init=kernel_init, dtype=dtype, rngs=rngs)
        self.conv_expand = Patches(hidden, features, kernel_init=kernel_init, dtype=dtype, rngs=rngs)
        self.activation, self.gate = activation, gate

    def __call__(self, x: jax.Array) -> jax.Array:
        """`x` is `[batch, height, width, features]`."""
        means = global_average_pool(x)[:, None, None].astype(x.dtype)
        return x * self.gate(self.conv_expand(self.activation(self.conv_reduce(means))))
