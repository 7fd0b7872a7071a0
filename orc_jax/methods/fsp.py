"""FSP: A Gift from Knowledge Distillation (Yim, Joo, Bae, Kim; CVPR 2017).

How a network solves a problem is how its maps flow into each other. Of two neighbouring maps, from the stem to the last
stage, the larger averaged down to the sides of the other, G has the products of all channels:

    G_i[a, b] = mean over pixels of f_(i+1)[a] f_i[b]        L = sum over i of mean (G_i,s - G_i,t)^2

The student's layers up to its last map learn L first, in a stage of its own, which is all that the teacher is for. Then
the whole student learns from the labels alone.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from orc_jax.data.types import Images
from orc_jax.methods.base import Method
from orc_jax.methods.maps import at_one_side, flattened, per_sample
from orc_jax.methods.offline import Adapter, Seen, Unfit, before, offline, require_points
from orc_jax.verbs import Context, Setup


def fsp(architectures: Sequence[str], *, epochs: int = 30) -> Method:
    """The method.

    NOTE(paper): maps are those between which RepDistiller takes the products; the paper takes first and last of each
    stage, and weighs the stages alike, too.

    Args:
        architectures: the teacher, then its students, whose maps have as many channels.
        epochs: of the stage before, on top of those of the run, at the run's rate without drops; 30 in RepDistiller. 0
            leaves it out.
    """

    def loss(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        return context.label_loss(student.logits, batch.labels)

    method = offline("fsp", architectures, loss)
    require_points("fsp", architectures)
    stage = before("flow", "fsp.flow", range(len(architectures)), epochs)
    return method._replace(stages=(*method.stages, *stage))


def flow(architectures: Sequence[str], **options: Any) -> Method:
    """The stage before: the students learn the flow between the teacher's maps."""
    del options  # which are of the run

    def fits(setup: Setup, key: jax.Array, student: Seen, teacher: Seen) -> Adapter:
        channels = [[x.shape[-1] for x in seen.maps["post"]] for seen in (student, teacher)]
        if channels[0] != channels[1]:
            told = [", ".join(map(str, of)) for of in channels]
            raise Unfit(f"its maps have {told[0]} channels and the teacher's {told[1]}; accepted are equal ones")
        return Adapter({}, {})

    def loss(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        return flow_loss(student.maps["post"], teacher.maps["post"])

    return offline("fsp", architectures, loss, adapter=fits, trunk_alone=True, maps=("post",))


def flow_loss(f_s: Sequence[jax.Array], f_t: Sequence[jax.Array]) -> jax.Array:
    """The difference of the flows between lists of maps `[batch, height, width, channels]`: `[batch]`."""
    both = zip(pairwise(f_s), pairwise(f_t), strict=True)
    return sum((per_sample((products(*s) - products(*t)) ** 2) for s, t in both), start=jnp.zeros(len(f_s[0])))


def products(below: jax.Array, above: jax.Array) -> jax.Array:
    """Those of the channels of two maps, in the mean over pixels: `[batch, channels above, channels below]`."""
    below, above = (flattened(x) for x in at_one_side(below, above))
    return jnp.einsum("bip,bjp->bij", above, below, precision="highest") / below.shape[-1]
