"""OFD: A Comprehensive Overhaul of Feature Distillation (Heo, Kim, Yun, Park, Kwak, Choi; ICCV 2019; arXiv 1904.01866).

Maps are compared before the activation, but only as far as it would tell: where the teacher's is below a margin m, the
student's may be anything below as well. A *connector* R, a 1x1 convolution and batch normalisation, brings a student's
map to the teacher's channels. Stage i of n weighs `2^(i - n + 1)`, and sums are over channels and pixels:

    CE + w / 1000 sum over i of 2^(i - n + 1) sum [R(f_s) > g or f_t > 0] (R(f_s) - g)^2        g = max(f_t, m)

m of a channel is what the teacher's map is in the mean where it is negative, if it is normal with the shift b and the
scale a of the batch normalisation before the activation: `E[x | x < 0] = b - |a| phi(b / a) / Phi(-b / |a|)`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.scipy.stats import norm as normal

from orc_jax.data.types import Images
from orc_jax.methods.base import Method
from orc_jax.methods.maps import averaged, beside, doubling, moved, starting, weighed
from orc_jax.methods.offline import Adapter, Seen, Unfit, offline
from orc_jax.models.layers import Layers, he_fan_out
from orc_jax.models.network import Network, Params
from orc_jax.verbs import Context, Setup


class Connectors(nnx.Module):
    """The students' maps with the teacher's channels; `channels` has those of student and teacher of each pair."""

    def __init__(self, layers: Layers, *, channels: tuple[tuple[int, int], ...]):
        self.connectors = nnx.List(
            [nnx.List([layers.conv(*pair, 1, kernel_init=he_fan_out), layers.norm(pair[1])]) for pair in channels]
        )

    def __call__(self, maps: list[jax.Array]) -> list[jax.Array]:
        return [norm(conv(x)) for (conv, norm), x in zip(self.connectors, maps, strict=True)]


def ofd(architectures: Sequence[str], *, weight: float = 1.0) -> Method:
    """The method.

    NOTE(paper): the teacher is in evaluation mode; in the authors' code it is in training mode, so that its running
    statistics drift, and the margins are those of another network than the maps. Of networks with different numbers of
    stages the deepest are compared, as in mdistiller.

    Args:
        architectures: the teacher, a ResNet, WRN or VGG, then its students.
        weight: w; 1 in the paper.
    """
    weighed("ofd", weight)

    def triples(student: Seen, teacher: Seen) -> list[tuple[jax.Array, jax.Array, jax.Array]]:
        """The maps of student and teacher, and the teacher's normalisations, of the stages that are compared."""
        lists = student.maps["preact"][1:], teacher.maps["preact"][1:], teacher.maps["norms"]
        if len(lists[1]) != len(lists[2]):
            raise Unfit(
                "the teacher has no batch normalisation before its activations; accepted are ResNets, WRNs, VGGs"
            )
        count = min(map(len, lists))
        return list(zip(*(of[-count:] for of in lists), strict=True))

    def network(setup: Setup, student: Seen, teacher: Seen) -> Network:
        of_pair = triples(student, teacher)
        for s, t, _ in of_pair:
            if s.shape[1] > t.shape[1] or s.shape[2] > t.shape[2]:
                raise Unfit(
                    f"its map of {s.shape[1]}x{s.shape[2]} is larger than the teacher's of {t.shape[1]}x{t.shape[2]}; "
                    "accepted are maps that are not larger"
                )
        return beside(setup, Connectors, channels=tuple((s.shape[-1], t.shape[-1]) for s, t, _ in of_pair))

    def connected(context: Context, student: Seen, teacher: Seen, adapter: Adapter) -> tuple[list[jax.Array], Params]:
        maps = [s for s, _, _ in triples(student, teacher)]
        return moved(network(context.setup, student, teacher), adapter, maps)

    def loss(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        made, _ = connected(context, student, teacher, adapter)
        of_teacher = [(t, margins(*norm)) for _, t, norm in triples(student, teacher)]
        differ = partial_distance(made, of_teacher)
        return context.label_loss(student.logits, batch.labels) + context.value("weight", weight) / 1000.0 * differ

    def keep(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> Params:
        return connected(context, student, teacher, adapter)[1]

    return offline(
        "ofd",
        architectures,
        loss,
        adapter=starting(network),
        keep=keep,
        maps=("preact", "norms"),
        values=("weight",),
    )


def margins(scale: jax.Array, shift: jax.Array) -> jax.Array:
    """Of each channel the mean of its negative values, `[channels]`; of one that has hardly any, three deviations."""
    deviation = jnp.maximum(jnp.abs(scale), 1e-12)
    below = normal.cdf(-shift / deviation)
    some = below > 0.001
    mean = shift - deviation * normal.pdf(shift / deviation) / jnp.where(some, below, 1.0)
    return jnp.where(some, mean, -3.0 * deviation)


def partial_distance(made: list[jax.Array], of_teacher: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """The weighed sum over stages, `[batch]`, of the student's maps at the teacher's channels.

    Args:
        made: `[batch, height, width, channels]` of each stage.
        of_teacher: the teacher's maps, which are averaged down to the student's sides, and their margins `[channels]`.
    """
    stages = []
    for s, (t, margin) in zip(made, of_teacher, strict=True):
        t = averaged(t, s.shape[1:3])
        goal = jnp.maximum(t, margin[None, None, None])
        counts = (s > goal) | (t > 0.0)
        stages.append(jnp.where(counts, (s - goal) ** 2, 0.0).sum((1, 2, 3)))
    return doubling(stages)
