"""Independent training: every member learns from the labels alone. The baseline, and how pivot teachers are made."""

from collections.abc import Sequence

import jax

from orc_jax.data.sets import Images
from orc_jax.losses import cross_entropy
from orc_jax.methods.base import Method, pool_roles, scores
from orc_jax.step import Context, Stacks, forward, learn


def independent(members: Sequence[str]) -> Method:
    """Cross-entropy training of all members, on the same batches."""

    def iterate(context: Context, stacks: Stacks, batch: Images) -> tuple[Stacks, dict[str, jax.Array]]:
        passed = forward(context.pool, stacks, context.normalize(batch.images))
        stacks, _ = learn(context, context.pool, stacks, passed, lambda out: cross_entropy(out.logits, batch.labels))
        return stacks, scores(context, passed.logits, batch.labels)

    return Method(iterate, pool_roles(len(members), "member", "member"), isolates=True)
