"""The layers that all backbones share: convolution, batch normalisation, classifier, with PyTorch's conventions.

Reproducing the tables of the field needs the field's conventions, which are those of PyTorch: symmetric padding,
batch normalisation whose running variance is unbiased, and its initial distributions.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from orc_jax.conv import conv_general_dilated

# Kaiming normal, fan-out: Normal(0, sqrt(2 / (k * k * out))), not truncated.
he_fan_out = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def torch_uniform(fan_in: int) -> nnx.Initializer:
    """PyTorch's default for weights and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return init


def conv(
    in_features: int,
    features: int,
    kernel_size: int,
    *,
    strides: int = 1,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A square convolution without bias, padded by `kernel_size // 2` on every side."""
    pad = kernel_size // 2
    return nnx.Conv(
        in_features,
        features,
        (kernel_size, kernel_size),
        strides,
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        dtype=dtype,
        kernel_init=he_fan_out,
        conv_general_dilated=conv_general_dilated,
        rngs=rngs,
    )


def linear(in_features: int, features: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """The classifier: always float32, whatever the type of the activations."""
    init = torch_uniform(in_features)
    return nnx.Linear(in_features, features, dtype=jnp.float32, kernel_init=init, bias_init=init, rngs=rngs)


class BatchNorm(nnx.Module):
    """Batch normalisation as PyTorch has it: eps 1e-5, running statistics `0.9 * old + 0.1 * batch`.

    Two things set it apart from `flax.nnx.BatchNorm`: the running variance is the unbiased one (as in every PyTorch
    checkpoint and table), and statistics are float32 also when the activations are bfloat16, in evaluation too.

    With `axis_name` the statistics are those of the global batch over that mapped axis.
    """

    def __init__(self, features: int, *, dtype: DTypeLike = jnp.float32, axis_name: str | None = None):
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))
        self.use_running_average = False  # set by `model.train()` and `model.eval()`
        self.dtype = dtype
        self.axis_name = axis_name

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises `x` `[batch, height, width, features]` over all axes but the last."""
        x = x.astype(jnp.float32)
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            mean, var = self._batch_statistics(x)
        factor = jax.lax.rsqrt(var + 1e-5) * self.scale[...]
        offset = self.bias[...] - mean * factor
        return (x * factor[None, None, None] + offset[None, None, None]).astype(self.dtype)

    def _batch_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        moments = jnp.stack([x.mean((0, 1, 2)), jnp.square(x).mean((0, 1, 2))])
        count = x.size // x.shape[-1]
        if self.axis_name is not None:
            moments = jax.lax.pmean(moments, self.axis_name)
            count *= jax.lax.axis_size(self.axis_name)
        mean = moments[0]
        var = jnp.maximum(moments[1] - jnp.square(mean), 0.0)
        self.mean[...] = 0.9 * self.mean[...] + 0.1 * jax.lax.stop_gradient(mean)
        self.var[...] = 0.9 * self.var[...] + 0.1 * jax.lax.stop_gradient(var) * (count / max(count - 1, 1))
        return mean, var


global_average_pool = functools.partial(jnp.mean, axis=(1, 2), dtype=jnp.float32)
