"""RKD: Relational Knowledge Distillation (Park, Kim, Lu, Cho; CVPR 2019; arXiv 1904.05068).

A student takes over how its teacher places samples relative to each other, whatever the dimensions of the two. With
pooled features h, l the Huber loss with its corner at 1, and means over all pairs and triplets of the batch:

    CE + w_d mean over ij of l(psi_s, psi_t)   + w_a mean over ijk of l(cos_s, cos_t)
    psi_ij = |h_i - h_j| / mean of these over pairs       cos_ijk = <u_ij, u_ik>, u_ij = (h_j - h_i) / |h_j - h_i|
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from orc_jax.data.types import Images
from orc_jax.errors import require
from orc_jax.losses import unit
from orc_jax.methods.base import Method
from orc_jax.methods.offline import Adapter, Seen, offline
from orc_jax.verbs import Context


def rkd(architectures: Sequence[str], *, distance_weight: float = 25.0, angle_weight: float = 50.0) -> Method:
    """The method.

    Args:
        architectures: the teacher, then its students.
        distance_weight: w_d; 25 in its code.
        angle_weight: w_a; 50 in its code. Angles take `[batch, batch, batch]` numbers of each student.
    """
    require("config.rkd.distance_weight", distance_weight, distance_weight >= 0, "at least 0")
    require("config.rkd.angle_weight", angle_weight, angle_weight >= 0, "at least 0")

    def loss(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        w_d, w_a = (context.value(name, option) for name, option in options.items())
        h_s, h_t = context.gather(student.features), context.gather(teacher.features)
        relations = w_d * of_distances(h_s, h_t) + w_a * of_angles(h_s, h_t)
        return context.label_loss(student.logits, batch.labels) + relations

    options = {"distance_weight": distance_weight, "angle_weight": angle_weight}
    return offline("rkd", architectures, loss, values=tuple(options))


def of_distances(h_s: jax.Array, h_t: jax.Array) -> jax.Array:
    """The loss of the distances between samples: features `[batch, dim]`, of any two dims -> []."""
    return optax.losses.huber_loss(distances(h_s), distances(h_t)).mean()


def of_angles(h_s: jax.Array, h_t: jax.Array) -> jax.Array:
    """The loss of the angles at which a sample sees two others; shapes as of `of_distances`."""
    return optax.losses.huber_loss(angles(h_s), angles(h_t)).mean()


def distances(h: jax.Array) -> jax.Array:
    """Euclidean ones `[batch, batch]`, over their mean; 0 from each sample to itself.

    Those of equal samples are 1e-6, without a gradient, as in RepDistiller.
    """
    squares = jnp.maximum(jnp.square(differences(h)).sum(-1), 1e-12)
    apart = ~jnp.eye(len(h), dtype=bool)
    found = jnp.where(apart, jnp.sqrt(squares), 0.0)
    return found / jnp.maximum(found.sum() / max(apart.size - len(h), 1), 1e-12)


def angles(h: jax.Array) -> jax.Array:
    """Cosines `[batch, batch, batch]`: of ijk, that between the ways from sample i to j and to k."""
    ways = unit(differences(h))
    return jnp.einsum("ijd,ikd->ijk", ways, ways)


def differences(h: jax.Array) -> jax.Array:
    """`h_j - h_i`, `[batch, batch, dim]`."""
    return h[None] - h[:, None]
