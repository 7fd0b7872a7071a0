"""The layers that all backbones share: convolution, batch normalisation, classifier, with PyTorch's conventions.

Reproducing the tables of the field needs the field's conventions, which are those of PyTorch: symmetric padding,
batch normalisation whose running variance is unbiased, and its initial distributions.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

# Kaiming normal, fan-out: Normal(0, sqrt(2 / (k * k * out))), not truncated; `out` is not divided by groups.
he_fan_out = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
he_fan_in = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
# Xavier uniform with gain sqrt 2.
xavier_sqrt_2 = nnx.initializers.variance_scaling(2.0, "fan_avg", "uniform")
# PyTorch's default of convolutions: U(-1/sqrt(fan_in), 1/sqrt(fan_in)), where fan_in = k * k * in / groups.
torch_default = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_uniform(fan_in: int) -> nnx.Initializer:
    """PyTorch's default for biases and linear weights: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return init


class Layers(NamedTuple):
    """The layers of one network, given what all of them share.

    conv: `(in_features, features, kernel_size, *, strides=1, groups=1, bias_init=None, ...) -> nnx.Conv`
    norm: `(features, *, momentum=0.1, eps=1e-5) -> BatchNorm`
    linear: `(in_features, features, *, kernel_init, bias_init) -> nnx.Linear`
    """

    conv: Callable[..., nnx.Conv]
    norm: Callable[..., "BatchNorm"]
    linear: Callable[..., nnx.Linear]


class Given(TypedDict):
    """What every network is given by its pool: the first arguments of `make_layers`."""

    dtype: DTypeLike
    axis_name: str | None
    rngs: nnx.Rngs


def make_layers(
    dtype: DTypeLike, axis_name: str | None, rngs: nnx.Rngs, kernel_init: nnx.Initializer = he_fan_out
) -> Layers:
    """The layers of a network.

    Args:
        dtype: of the activations; parameters, statistics and logits are float32.
        axis_name: mapped axis over which batch normalisation takes its statistics, if any.
        rngs: with a `params` stream.
        kernel_init: what convolutions start from.
    """
    return Layers(
        conv=functools.partial(conv, kernel_init=kernel_init, dtype=dtype, rngs=rngs),
        norm=functools.partial(BatchNorm, dtype=dtype, axis_name=axis_name),
        linear=functools.partial(linear, rngs=rngs),
    )


def conv(
    in_features: int,
    features: int,
    kernel_size: int,
    *,
    strides: int = 1,
    groups: int = 1,
    bias_init: nnx.Initializer | None = None,
    padding: int | None = None,
    input_dilation: int = 1,
    same: bool = False,
    kernel_init: nnx.Initializer,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A square convolution; with a bias if there is an initializer.

    It is padded on every side by `padding`, or `kernel_size // 2`; with `same` as TensorFlow does: at the right and the
    bottom by one more, where strides ask for it. With `input_dilation` d it is a transposed one of stride d: PyTorch's
    with padding p has the kernel flipped, and `kernel_size - 1 - p` here.
    """
    pad = kernel_size // 2 if padding is None else padding
    sides: Any = "SAME" if same else ((pad, pad), (pad, pad))
    return nnx.Conv(
        in_features,
        features,
        (kernel_size, kernel_size),
        strides,
        padding=sides,
        input_dilation=input_dilation,
        feature_group_count=groups,
        use_bias=bias_init is not None,
        dtype=dtype,
        kernel_init=kernel_init,
        bias_init=bias_init or nnx.initializers.zeros,
        rngs=rngs,
    )


def linear(
    in_features: int,
    features: int,
    *,
    kernel_init: nnx.Initializer | None = None,
    bias_init: nnx.Initializer | None = None,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """A linear layer, by default with PyTorch's initial weights; always float32, whatever the activations are."""
    default = torch_uniform(in_features)
    return nnx.Linear(
        in_features,
        features,
        dtype=jnp.float32,
        kernel_init=kernel_init or default,
        bias_init=bias_init or default,
        rngs=rngs,
    )


class BatchNorm(nnx.Module):
    """Batch normalisation as PyTorch has it: running statistics `0.9 * old + 0.1 * batch`.

    Two things set it apart from `flax.nnx.BatchNorm`: the running variance is the unbiased one (as in every PyTorch
    checkpoint and table), and statistics are float32 also when the activations are bfloat16, in evaluation too.

    With `axis_name` the statistics are those of the global batch over that mapped axis. `momentum` is PyTorch's: how
    far a batch moves the running statistics; `eps`, 1e-5 there, is added to the variance.
    """

    def __init__(
        self,
        features: int,
        *,
        momentum: float = 0.1,
        eps: float = 1e-5,
        dtype: DTypeLike = jnp.float32,
        axis_name: str | None = None,
    ):
        self.momentum, self.eps = momentum, eps
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
        factor = jax.lax.rsqrt(var + self.eps) * self.scale[...]
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
        moves, stays = self.momentum, round(1 - self.momentum, 6)
        self.mean[...] = stays * self.mean[...] + moves * jax.lax.stop_gradient(mean)
        self.var[...] = stays * self.var[...] + moves * jax.lax.stop_gradient(var) * (count / max(count - 1, 1))
        return mean, var


def apply(layers: Iterable, x: jax.Array) -> jax.Array:
    """`x` through `layers` in turn, lists of layers among them: what a `torch.nn.Sequential` does."""
    for layer in layers:
        x = apply(layer, x) if isinstance(layer, nnx.List) else layer(x)
    return x


def branch_point(network: nnx.Module, x: jax.Array) -> None:
    """Notes what goes into a network's last stage, `[batch, height, width, channels]`, as its early features.

    They are the mean over the image, `[batch, channels]`; a method that asks for them finds them in `Outputs.early`.
    """
    setattr(network, "early", nnx.Intermediate(global_average_pool(x)))  # noqa: B010, no attribute of every Module


def max_pool(x: jax.Array, size: int, *, strides: int, padding: int = 0) -> jax.Array:
    """The maximum over square windows of `[batch, height, width, channels]`; padding never wins."""
    sides: Any = ((padding, padding), (padding, padding))
    return nnx.max_pool(x, (size, size), (strides, strides), sides)


global_average_pool = functools.partial(jnp.mean, axis=(1, 2), dtype=jnp.float32)
