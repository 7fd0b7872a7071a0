"""How fast a device computes the layers of a network, measured in a second or two."""

import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from orc_jax import cost, parallel, processor
from orc_jax.models.conv import NHWC, convolution_for

# Seconds of an iteration over those of its convolutions and products at the measured rate: what normalisation,
# activations, losses and the optimizer add. Measured on a CPU, of pools of ResNets, wide ResNets and VGGs.
BESIDES = 1.3
MEASURED = 3  # layers
REPEATS = 3


class Layer(NamedTuple):
    """A convolution of a network."""

    image: tuple[int, ...]  # (height, width, channels)
    kernel: tuple[int, ...]  # (height, width, channels in, channels out)
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]


@functools.lru_cache(maxsize=64)
def seconds_per_flop(layer: Layer, batch: int, device: Any, dtype: str) -> float:
    """Of a forward and a backward pass of a layer and ReLU on `batch` images, measured on `device`."""

    convolution = convolution_for(device.platform)

    def convolve(images, kernel):
        return convolution(images, kernel, layer.strides, layer.padding, dimension_numbers=NHWC)

    def loss(images, kernel):
        return jax.nn.relu(convolve(images, kernel)).astype(jnp.float32).mean()

    args = jnp.ones((batch, *layer.image), dtype), jnp.full(layer.kernel, 0.01, dtype)
    operations = 3 * cost.flops(convolve, *args)
    args = jax.device_put(args, device)
    program = parallel.compiled(jax.jit(jax.grad(loss, (0, 1))).lower(*args), device.platform, long=True)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(program(*args))
        seconds.append(time.perf_counter() - start)
    return min(seconds) / operations


def bfloat16_pays(device: Any) -> bool:
    """Whether convolutions of bfloat16 take less time than those of float32 on a CPU: by oneDNN, where it is there."""
    if not processor.multiplies_bfloat16():
        return False
    convolve = functools.partial(
        convolution_for(device.platform), window_strides=(1, 1), padding=((1, 1), (1, 1)), dimension_numbers=NHWC
    )
    args = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((8, 8, 8, 16), (3, 3, 16, 16)))
    program = parallel.compiled(jax.jit(convolve).lower(*args), device.platform, long=True)
    return parallel.ONEDNN in (program.as_text() or "")


def seconds(layers: Mapping[Layer, float], batch: int, device: Any, dtype: str) -> float:
    """How long `device` takes for an operation, on average over the layers that take most of them; all else included.

    `layers` are those of a pool, with the operations of each on one image.
    """
    largest = sorted(layers, key=lambda layer: layers[layer], reverse=True)[:MEASURED]
    total = sum(layers[layer] for layer in largest)
    each = (layers[layer] / total * seconds_per_flop(layer, batch, device, dtype) for layer in largest)
    return BESIDES * sum(each)
