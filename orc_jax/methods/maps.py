"""What methods share that compare maps of feature points: equal sides, and networks that are trained beside a student.

Maps are `[batch, height, width, channels]`, of any two networks.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from orc_jax.errors import require
from orc_jax.methods.offline import Adapter, MakeAdapter, Seen
from orc_jax.models.layers import make_layers, torch_default
from orc_jax.models.network import Network, Params, make_network
from orc_jax.verbs import Setup


def pairs(student: Seen, teacher: Seen, kinds: tuple[str, str] = ("post", "post")) -> Iterator[tuple[Any, Any]]:
    """The maps of student and teacher from the second point on, side by side from the front.

    A network of more points than the other has its deepest ones left out, as in RepDistiller and mdistiller.
    """
    return zip(student.maps[kinds[0]][1:], teacher.maps[kinds[1]][1:], strict=False)


def averaged(x: jax.Array, sides: tuple[int, ...]) -> jax.Array:
    """Maps averaged down to `sides`, as PyTorch's adaptive average pooling does it: bins overlap that do not divide."""
    if x.shape[1:3] == sides:
        return x
    height, width = (_bins(old, new) for old, new in zip(x.shape[1:3], sides, strict=True))
    return jnp.einsum("ih,jw,bhwc->bijc", height, width, x, precision="highest")


@cache
def _bins(old: int, new: int) -> np.ndarray:
    """The mean over bin i, from floor(i old / new) up to ceil((i + 1) old / new): `[new, old]`."""
    first = np.arange(new)[:, None] * old // new
    last = -(-(np.arange(new)[:, None] + 1) * old // new)
    inside = (np.arange(old)[None] >= first) & (np.arange(old)[None] < last)
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)


def at_one_side(one: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two maps, the larger averaged down to the sides of the other."""
    sides = tuple(min(pair) for pair in zip(one.shape[1:3], other.shape[1:3], strict=True))
    return averaged(one, sides), averaged(other, sides)


def nearest(x: jax.Array, sides: tuple[int, ...]) -> jax.Array:
    """Maps at other sides, each pixel that of the nearest: number floor(i old / new), as PyTorch has it."""
    for axis, new in enumerate(sides, start=1):
        if x.shape[axis] != new:
            x = jnp.take(x, np.arange(new) * x.shape[axis] // new, axis)
    return x


def flattened(x: jax.Array) -> jax.Array:
    """Of each sample, and each channel, all pixels: `[batch, channels, pixels]`."""
    return x.reshape(x.shape[0], -1, x.shape[-1]).swapaxes(1, 2)


def per_sample(x: jax.Array) -> jax.Array:
    """The mean over all of a sample: `[batch]`."""
    return x.mean(range(1, x.ndim))


def doubling(stages: Sequence[jax.Array]) -> jax.Array:
    """The sum of what stages differ by: the last counts whole, each before it half of the next one."""
    return sum((2.0 ** (i - len(stages) + 1) * x for i, x in enumerate(stages)), start=jnp.zeros(len(stages[0])))


def weighed(name: str, weight: float) -> float:
    """A weight of a method, which may be any that is not below 0."""
    require(f"config.{name}.weight", weight, weight >= 0, "at least 0")
    return weight


# A module `(layers, **options)` that is called with what it is given of a student.
Module = Callable[..., nnx.Module]


@cache
def _network(module: Module, options: tuple[tuple[str, Any], ...], axis_name: str | None, convolution: Any) -> Network:
    def model(num_classes, *, image_shape, dtype, axis_name, rngs):
        del num_classes, image_shape
        return module(make_layers(dtype, axis_name, rngs, torch_default), **dict(options))

    return make_network(model, 0, (0, 0, 0), "float32", axis_name, convolution)


def beside(setup: Setup | None, module: Module, **options: Any) -> Network:
    """The pure functions of a module, in float32, whose batch normalisation is over the global batch.

    `module(layers, **options)` makes it; options can be hashed. Without a setup it is for one student, in evaluation.
    """
    given = (setup.axis_name, setup.convolution) if setup else (None, jax.lax.conv_general_dilated)
    return _network(module, tuple(options.items()), *given)


def starting(network_of: Callable[[Setup, Seen, Seen], Network]) -> MakeAdapter:
    """The adapter of a student is what this network starts from."""

    def adapter(setup: Setup, key: jax.Array, student: Seen, teacher: Seen) -> Adapter:
        return Adapter(*network_of(setup, student, teacher).init(key))

    return adapter


def moved(network: Network, adapter: Adapter, x: Any) -> tuple[Any, Params]:
    """What a network beside a student makes of `x` in training mode, and its statistics after."""
    return network.train(adapter.params, adapter.kept, x)


def shape_of(x: Any) -> tuple[int, int, int]:
    """Height, width and channels of maps."""
    return tuple(x.shape[1:])
