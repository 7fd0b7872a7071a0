"""PKT: Learning Deep Representations with Probabilistic Knowledge Transfer (Passalis, Tefas; ECCV 2018;
arXiv 1803.10837).

How likely is it that sample i takes sample j for its neighbour? The student is to answer as its teacher does (with its
cosine kernel K on pooled features):

    CE + w mean over ij of P_t[i, j] log(P_t[i, j] / P_s[i, j])        P[i, j] = K(h_i, h_j) / sum over k of K(h_i, h_k)
    K(a, b) = (cos(a, b) + 1) / 2

NOTE(paper): rows have the diagonal, and all entries are averaged, as in the authors' code and RepDistiller.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from orc_jax.data.types import Images
from orc_jax.errors import require
from orc_jax.losses import norm
from orc_jax.methods.base import Method
from orc_jax.methods.offline import Adapter, Seen, offline
from orc_jax.verbs import Context

EPSILON = 1e-7  # of the authors' code


def pkt(architectures: Sequence[str], *, weight: float = 30000.0) -> Method:
    """The method.

    Args:
        architectures: the teacher, then its students.
        weight: w; 30000 in RepDistiller, for batches of 64: the loss shrinks with the square of the batch.
    """
    require("config.pkt.weight", weight, weight >= 0, "at least 0")

    def loss(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        h_s, h_t = context.gather(student.features), context.gather(teacher.features)
        transferred = context.value("weight", weight) * divergence(h_s, h_t)
        return context.label_loss(student.logits, batch.labels) + transferred

    return offline("pkt", architectures, loss, values=("weight",))


def divergence(h_s: jax.Array, h_t: jax.Array) -> jax.Array:
    """What the student's neighbourhoods lack: features of the whole batch `[batch, dim]`, of any two dims -> []."""
    p_s, p_t = neighbours(h_s), neighbours(h_t)
    return (p_t * jnp.log((p_t + EPSILON) / (p_s + EPSILON))).mean()


def neighbours(h: jax.Array) -> jax.Array:
    """P, `[batch, batch]`. Features that are all 0 are orthogonal to all others, and get no gradient."""
    length = norm(h)
    directions = jnp.where(length > 0, h / (length + EPSILON), 0.0)
    kernel = (directions @ directions.T + 1.0) / 2.0
    return kernel / kernel.sum(1, keepdims=True)
