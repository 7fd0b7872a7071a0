"""SP: Similarity-Preserving Knowledge Distillation (Tung, Mori; ICCV 2019; arXiv 1907.09682).

Samples that are alike to the teacher become alike to the student. With F the last map of each sample, flattened, and B
the size of the global batch:

    CE + w / B^2 sum over ij (G_s - G_t)^2        G = F F^T, each row at unit length
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from orc_jax.data.types import Images
from orc_jax.losses import unit
from orc_jax.methods.base import Method
from orc_jax.methods.maps import weighed
from orc_jax.methods.offline import Adapter, Seen, offline
from orc_jax.verbs import Context


def sp(architectures: Sequence[str], *, weight: float = 3000.0) -> Method:
    """The method.

    Args:
        architectures: the teacher, then its students; their last maps may differ in anything.
        weight: w; 3000 in the field's tables (RepDistiller), for batches of 64.
    """
    weighed("sp", weight)

    def loss(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        rows = []
        for seen in (student, teacher):
            own = seen.maps["post"][-1].reshape(len(batch.labels), -1)
            rows.append(similarities(own, context.gather(own)))
        differ = similarity_loss(*rows)
        return context.label_loss(student.logits, batch.labels) + context.value("weight", weight) * differ

    return offline("sp", architectures, loss, maps=("post",), values=("weight",))


def similarities(own: jax.Array, of_all: jax.Array) -> jax.Array:
    """How alike samples `[batch, dim]` are to the global batch: `[batch, global batch]`, rows of unit length."""
    return unit(jnp.matmul(own, of_all.T, precision="highest"))


def similarity_loss(rows_s: jax.Array, rows_t: jax.Array) -> jax.Array:
    """What each sample adds, `[batch]`: the mean over the global batch is the loss."""
    return ((rows_s - rows_t) ** 2).sum(-1) / rows_s.shape[-1]
