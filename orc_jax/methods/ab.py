"""AB: Knowledge Transfer via Distillation of Activation Boundaries (Heo, Lee, Yun, Choi; AAAI 2019; arXiv 1811.03233).

What matters of a map before its activation is its sign: whether a unit is active. In a stage before the training, a
*connector* R brings each map of the student to the shape of the teacher's, a convolution and batch normalisation, or
nothing where the shapes are equal; then each unit shall be on the right side of 0 by a margin of 1:

    w / 1000 sum over i of 2^(i - n + 1) sum [f_t <= 0] max(R(f_s) + 1, 0)^2 + [f_t > 0] max(1 - R(f_s), 0)^2

over stages i of n, channels and pixels. Only connectors and the student's layers up to its last map learn. Then the
whole student is trained, without connectors, by CE + a T^2 KL(teacher || student).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from orc_jax.data.types import Images
from orc_jax.errors import require
from orc_jax.losses import distillation
from orc_jax.methods.base import Method
from orc_jax.methods.fitnets import Regressor, Shape
from orc_jax.methods.maps import beside, doubling, moved, pairs, shape_of, starting, weighed
from orc_jax.methods.offline import Adapter, Seen, Unfit, before, offline, require_points
from orc_jax.models.layers import Layers
from orc_jax.models.network import Network, Params
from orc_jax.verbs import Context, Setup

VALUES = ("weight", "kd_weight", "temperature")


class Connectors(nnx.Module):
    """The student's maps in the shapes of the teacher's; `shapes` has those of student and teacher of each pair."""

    def __init__(self, layers: Layers, *, shapes: tuple[tuple[Shape, Shape], ...]):
        self.connectors = nnx.Dict(
            {
                str(i): Regressor(layers, student=student, teacher=teacher, activated=False)
                for i, (student, teacher) in enumerate(shapes)
                if student != teacher
            }
        )

    def __call__(self, maps: list[jax.Array]) -> list[jax.Array]:
        return [self.connectors[str(i)](x) if str(i) in self.connectors else x for i, x in enumerate(maps)]


def ab(
    architectures: Sequence[str],
    *,
    weight: float = 3.0,
    epochs: int = 30,
    kd_weight: float = 0.0,
    temperature: float = 4.0,
) -> Method:
    """The method.

    NOTE(paper): the last batch normalisation of a WRN, behind its last map, normalises by the batch in the stage, and
    does not learn; in RepDistiller it is left out there. A network without maps before its activations, MobileNetV2,
    has its linear outputs compared.

    Args:
        architectures: the teacher, then its students.
        weight: w of the stage before; 3 in RepDistiller.
        epochs: of the stage before, on top of those of the run, at the run's rate without drops; 30 in RepDistiller. 0
            leaves it out.
        kd_weight: a. NOTE(paper): it goes on with KD; the field's tables (RepDistiller) with labels alone, which is 0.
        temperature: T.
    """
    weighed("ab", weight)
    require("config.ab.kd_weight", kd_weight, kd_weight >= 0, "at least 0")
    require("config.ab.temperature", temperature, temperature > 0, "greater than 0")

    def loss(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        a, t = context.value("kd_weight", kd_weight), context.value("temperature", temperature)
        distilled = distillation(student.logits, teacher.logits, t)
        return context.label_loss(student.logits, batch.labels) + a * distilled

    method = offline("ab", architectures, loss, values=VALUES)
    require_points("ab", architectures)
    stage = before("boundaries", "ab.boundaries", range(len(architectures)), epochs)
    return method._replace(stages=(*method.stages, *stage))


def boundaries(architectures: Sequence[str], *, weight: float, **options: Any) -> Method:
    """The stage before: the students learn the teacher's activation boundaries."""
    del options  # which are of the run

    def network(setup: Setup, student: Seen, teacher: Seen) -> Network:
        counts = [len(seen.maps["preact"]) for seen in (student, teacher)]
        if counts[0] != counts[1]:
            raise Unfit(f"it has {counts[0]} feature points and the teacher {counts[1]}; accepted are as many")
        shapes = tuple((shape_of(s), shape_of(t)) for s, t in pairs(student, teacher, ("preact", "preact")))
        return beside(setup, Connectors, shapes=shapes)

    def connected(context: Context, student: Seen, teacher: Seen, adapter: Adapter) -> tuple[list[jax.Array], Params]:
        return moved(network(context.setup, student, teacher), adapter, list(student.maps["preact"][1:]))

    def loss(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        made, _ = connected(context, student, teacher, adapter)
        return context.value("weight", weight) / 1000.0 * boundary_loss(made, teacher.maps["preact"][1:])

    def keep(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> Params:
        return connected(context, student, teacher, adapter)[1]

    return offline(
        "ab",
        architectures,
        loss,
        adapter=starting(network),
        keep=keep,
        trunk_alone=True,
        maps=("preact", "post"),
        values=VALUES,
    )


def boundary_loss(made: Sequence[jax.Array], f_t: Sequence[jax.Array]) -> jax.Array:
    """The weighed sum over stages, `[batch]`, of the student's maps in the shapes of the teacher's."""
    both = zip(made, f_t, strict=True)
    missing = [jnp.where(t > 0.0, jnp.maximum(1.0 - s, 0.0), jnp.maximum(1.0 + s, 0.0)) for s, t in both]
    return doubling([(x**2).sum((1, 2, 3)) for x in missing])
