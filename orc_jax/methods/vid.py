"""VID: Variational Information Distillation (Ahn, Hu, Damianou, Lawrence, Dai; CVPR 2019; arXiv 1904.05835).

The student keeps the information that its maps have about the teacher's: a normal distribution of the teacher's map,
whose mean is regressed from the student's and whose variance is one number a channel, shall explain it. Summed over all
stages, the larger map averaged down to the sides of the other:

    CE + w sum over stages of mean ((mu(f_s) - f_t)^2 / v + log v) / 2        v = log(1 + exp(a)) + 1e-5

mu is three 1x1 convolutions without biases, with ReLUs between them.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from orc_jax.data.types import Images
from orc_jax.methods.base import Method
from orc_jax.methods.maps import at_one_side, beside, pairs, per_sample, starting, weighed
from orc_jax.methods.offline import Adapter, Seen, offline
from orc_jax.models.layers import Layers
from orc_jax.models.network import Network
from orc_jax.verbs import Context, Setup

VARIANCE, LEAST = 5.0, 1e-5  # what v starts from, and what is added to it
START = math.log(math.exp(VARIANCE - LEAST) - 1.0)  # a then


class Explained(nnx.Module):
    """Mean and variance of a teacher's map of `features` channels, from a student's of `in_features`."""

    def __init__(self, layers: Layers, in_features: int, features: int, trained_variance: bool):
        self.conv0 = layers.conv(in_features, features, 1)
        self.conv1 = layers.conv(features, features, 1)
        self.conv2 = layers.conv(features, features, 1)
        self.scale = nnx.Param(jnp.full(features, START)) if trained_variance else None

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean = self.conv2(nnx.relu(self.conv1(nnx.relu(self.conv0(x)))))
        a = jnp.full(mean.shape[-1], START) if self.scale is None else self.scale[...]
        return mean, jax.nn.softplus(a) + LEAST


class Stages(nnx.Module):
    """One for each pair of maps; `channels` has those of student and teacher."""

    def __init__(self, layers: Layers, *, channels: tuple[tuple[int, int], ...], trained_variance: bool):
        self.stages = nnx.List([Explained(layers, *pair, trained_variance) for pair in channels])

    def __call__(self, maps: list[jax.Array]) -> list[tuple[jax.Array, jax.Array]]:
        return [stage(x) for stage, x in zip(self.stages, maps, strict=True)]


def vid(architectures: Sequence[str], *, weight: float = 1.0, trained_variance: bool = True) -> Method:
    """The method.

    Args:
        architectures: the teacher, then its students.
        weight: w; 1 in the field's tables (RepDistiller).
        trained_variance: v is learnt, as in the paper and in RepDistiller. Off, it stays 5, as in mdistiller, where the
            loss is then a tenth of the squared error and a constant.
    """
    weighed("vid", weight)

    def network(setup: Setup, student: Seen, teacher: Seen) -> Network:
        channels = tuple((s.shape[-1], t.shape[-1]) for s, t in pairs(student, teacher))
        return beside(setup, Stages, channels=channels, trained_variance=trained_variance)

    def loss(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        beside_it = network(context.setup, student, teacher)
        maps = [at_one_side(s, t) for s, t in pairs(student, teacher)]
        explained, _ = beside_it.train(adapter.params, adapter.kept, [f_s for f_s, _ in maps])
        unlikely = sum(surprise(f_t, *by) for (_, f_t), by in zip(maps, explained, strict=True))
        return context.label_loss(student.logits, batch.labels) + context.value("weight", weight) * unlikely

    return offline("vid", architectures, loss, adapter=starting(network), maps=("post",), values=("weight",))


def surprise(f_t: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
    """`((mean - f_t)^2 / v + log v) / 2`, the mean over pixels and channels: `[batch]`.

    Args:
        f_t, mean: `[batch, height, width, channels]`.
        variance: v, `[channels]`.
    """
    variance = variance[None, None, None]
    return per_sample(0.5 * ((mean - f_t) ** 2 / variance + jnp.log(variance)))
