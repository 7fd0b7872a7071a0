"""Independent training: every member learns from the labels alone. The baseline, and how pivot teachers are made."""

from collections.abc import Sequence

import jax

from orc_jax.data.types import Images
from orc_jax.methods.base import Method, pool_roles, scores
from orc_jax.pool import Pool
from orc_jax.verbs import Context, forward, learn


def independent(architectures: Sequence[str]) -> Method:
    """Cross-entropy training of all members, on the same batches."""

    def iterate(context: Context, pool: Pool, batch: Images) -> tuple[Pool, dict[str, jax.Array]]:
        passed = forward(pool, context.normalize(batch.images))
        pool = learn(context, passed, lambda out: context.label_loss(out.logits, batch.labels))
        return pool, scores(context, passed.logits, batch.labels)

    size = len(architectures)
    return Method(iterate, pool_roles(size, "member", "member"), spares=max(size - 2, 0), decided_by_labels="")
