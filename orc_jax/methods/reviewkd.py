"""ReviewKD: Distilling Knowledge via Knowledge Review (Chen, Liu, Zhao, Jia; CVPR 2021; arXiv 2104.09044).

Every level of the teacher teaches all levels of the student from there on. From the deepest to the shallowest, a fusion
module brings the student's map to one width, blends in what the level before has handed on (attention-based fusion,
ABF), hands that on, and makes of it the teacher's map:

    x_i = BN(conv1x1 f_s,i)    x_i <- g_0 x_i + g_1 up(x_{i+1}),  g = sigmoid(conv1x1 [x_i, up(x_{i+1})])
    F_i = BN(conv3x3 up(x_i))
    CE + w(epoch) sum over i of HCL(F_i, f_t,i)

HCL, the hierarchical context loss, is the mean squared error of the maps and of what they are averaged to 4x4, 2x2 and
1x1, where these are smaller, with weights 1, 1/2, 1/4, 1/8 in the order of use, divided by their sum. A student's maps
are those after, a teacher's before the activation; the deepest level of both are the pooled features.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from orc_jax.data.types import Images
from orc_jax.errors import require
from orc_jax.methods.base import Method
from orc_jax.methods.maps import averaged, beside, moved, nearest, per_sample, shape_of, starting, weighed
from orc_jax.methods.offline import Adapter, Seen, Unfit, offline
from orc_jax.models.layers import Layers, torch_uniform
from orc_jax.models.network import Network, Params
from orc_jax.verbs import Context, Setup

Shape = tuple[int, int, int]  # height, width, channels
uniform = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")  # Kaiming's with a = 1
MOST = 512  # channels inside


class Fusion(nnx.Module):
    """One level: the student's map, and what the deeper level has handed on -> the teacher's map, what is handed on."""

    def __init__(self, layers: Layers, student: Shape, teacher: Shape, width: int, deepest: bool):
        self.conv1 = layers.conv(student[-1], width, 1, kernel_init=uniform)
        self.bn1 = layers.norm(width)
        self.gate = None if deepest else layers.conv(2 * width, 2, 1, bias_init=torch_uniform(2 * width))
        self.conv2 = layers.conv(width, teacher[-1], 3, kernel_init=uniform)
        self.bn2 = layers.norm(teacher[-1])
        self.sides = teacher[:2]

    def __call__(self, x: jax.Array, deeper: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        x = self.bn1(self.conv1(x))
        if self.gate is not None and deeper is not None:
            deeper = nearest(deeper, x.shape[1:3])
            gates = nnx.sigmoid(self.gate(jnp.concatenate([x, deeper], axis=-1)))
            x = x * gates[..., :1] + deeper * gates[..., 1:]
        x = nearest(x, self.sides)
        return self.bn2(self.conv2(x)), x


class Review(nnx.Module):
    """The fusion modules, number 0 that of the deepest level; shapes are from shallow to deep."""

    def __init__(self, layers: Layers, *, student: tuple[Shape, ...], teacher: tuple[Shape, ...]):
        width, levels = min(MOST, student[-1][-1]), list(zip(student, teacher, strict=True))[::-1]
        self.levels = nnx.List([Fusion(layers, *of, width, deepest=not i) for i, of in enumerate(levels)])

    def __call__(self, maps: list[jax.Array]) -> list[jax.Array]:
        """The student's maps as the teacher's, both from shallow to deep."""
        fused, deeper = [], None
        for level, x in zip(self.levels, maps[::-1], strict=True):
            of_teacher, deeper = level(x, deeper)
            fused.append(of_teacher)
        return fused[::-1]


def reviewkd(architectures: Sequence[str], *, weight: float = 5.0, warmup_epochs: int = 20) -> Method:
    """The method.

    Args:
        architectures: the teacher, then its students, of as many feature points each.
        weight: w. NOTE(paper): chosen by pair; 5 for pairs of WRN, of x4 ResNets and with ShuffleV1, 8 with ShuffleV2,
            0.6 and 1 for ResNets of one width.
        warmup_epochs: over which it rises, a step an epoch; 20 in the code. 0 is none. NOTE(paper): the first epoch is
            the first step, as in mdistiller; in the authors' code it is without the loss.
    """
    weighed("reviewkd", weight)
    require("config.reviewkd.warmup_epochs", warmup_epochs, warmup_epochs >= 0, "at least 0")

    def network(setup: Setup, student: Seen, teacher: Seen) -> Network:
        levels_s, levels_t = shapes(student, "post"), shapes(teacher, "preact")
        if len(levels_s) != len(levels_t):
            raise Unfit(
                f"it has {len(levels_s)} feature points, the teacher {len(levels_t)}; accepted are as many of both"
            )
        return beside(setup, Review, student=levels_s, teacher=levels_t)

    def loss(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        fused, _ = moved(network(context.setup, student, teacher), adapter, levels(student, "post"))
        differ = sum(context_loss(s, t) for s, t in zip(fused, levels(teacher, "preact"), strict=True))
        risen = jnp.minimum((context.epoch + 1.0) / warmup_epochs, 1.0) if warmup_epochs else 1.0
        return context.label_loss(student.logits, batch.labels) + context.value("weight", weight) * risen * differ

    def keep(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> Params:
        return moved(network(context.setup, student, teacher), adapter, levels(student, "post"))[1]

    return offline(
        "reviewkd",
        architectures,
        loss,
        adapter=starting(network),
        keep=keep,
        maps=("post", "preact"),
        values=("weight",),
    )


def levels(seen: Seen, kind: str) -> list[jax.Array]:
    """What is reviewed, from shallow to deep: the maps from the second on, and the pooled features as a map."""
    return [*seen.maps[kind][1:], seen.features[:, None, None]]


def shapes(seen: Seen, kind: str) -> tuple[Shape, ...]:
    """Those of the `levels`."""
    return (*map(shape_of, seen.maps[kind][1:]), (1, 1, seen.features.shape[-1]))


def context_loss(f_s: jax.Array, f_t: jax.Array) -> jax.Array:
    """The hierarchical context loss of two maps of one shape: `[batch]`."""
    total, weights = per_sample((f_s - f_t) ** 2), [1.0]
    for side in (4, 2, 1):
        if side < f_s.shape[1]:
            weights.append(weights[-1] / 2)
            total += weights[-1] * per_sample((averaged(f_s, (side, side)) - averaged(f_t, (side, side))) ** 2)
    return total / sum(weights)
