"""Independent training: every member learns from the labels alone. The baseline, and how pivot teachers are made."""

from collections.abc import Sequence

import jax

from orc_jax.data.sets import Images
from orc_jax.losses import correct, cross_entropy
from orc_jax.methods.base import Method
from orc_jax.step import Context, Stacks, forward, learn


def independent() -> Method:
    """Cross-entropy training of all members, on the same batches."""

    def check(members: Sequence[str]) -> None:
        del members  # any pool can be trained

    def iterate(context: Context, stacks: Stacks, batch: Images) -> tuple[Stacks, dict[str, jax.Array]]:
        passed = forward(context.pool, stacks, context.normalize(batch.images))
        stacks, losses = learn(
            context, context.pool, stacks, passed, lambda logits: cross_entropy(logits, batch.labels)
        )
        accuracy = context.mean(correct(passed.logits, batch.labels).mean(1))
        return stacks, {"loss": losses, "accuracy": accuracy}

    return Method(iterate, check, metrics=("loss", "accuracy"))
