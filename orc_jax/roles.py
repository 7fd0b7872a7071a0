"""From scores to roles: who is promoted, which samples are handed back, who is updated. Values, never Python branches.

A role change is a change of array values, so it never recompiles. Whatever enters here must already be reduced or
gathered over the global batch, so that all devices decide alike.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def top_k_mask(losses: jax.Array, k: int) -> jax.Array:
    """Marks the `k` members with the lowest loss.

    Members whose loss is NaN or infinite rank last (a bare `top_k` would rank NaN first). Ties go to the lower index.

    Args:
        losses: `[members]`.
        k: how many to mark, at most the number of members.

    Returns:
        bool `[members]`, exactly `k` of them true.
    """
    _, best = jax.lax.top_k(-jnp.where(jnp.isfinite(losses), losses, jnp.inf), k)
    return jnp.zeros(losses.shape, bool).at[best].set(True)


RULES = ("hardest", "misclassified")


def hand_back(
    losses: jax.Array, wrong: jax.Array, fraction: float, rule: str = "hardest"
) -> tuple[jax.Array, jax.Array]:
    """The samples of a batch that the students find hard and hand back.

    Args:
        losses: `[students, batch]`, cross-entropy of each student on each sample.
        wrong: bool `[students, batch]`, whether it misclassifies the sample.
        fraction: size of the set over that of the batch.
        rule: within a student's share, its "hardest" samples first, or those it has "misclassified" before all others,
            and of both the hardest first. They differ: among many classes a sample can be right with a higher loss than
            another that is wrong.

    Returns:
        How many each student hands back, and which: see `feedback_shares` and `feedback_indices`.
    """
    size = max(1, round(fraction * losses.shape[1]))
    shares = feedback_shares(losses.mean(1), size)
    return shares, feedback_indices(losses, shares, size, wrong if rule == "misclassified" else None)


def feedback_shares(scores: jax.Array, size: int) -> jax.Array:
    """How many of `size` feedback samples each student hands back: a softmax over the students' losses.

    The real-valued shares are rounded by largest remainder, so they always sum to `size`. A student whose loss is not
    finite hands back nothing (all students share alike if none is finite).

    Args:
        scores: `[students]`, mean cross-entropy of each on the batch.
        size: number of feedback samples.

    Returns:
        int32 `[students]`, with sum `size`.
    """
    finite = jnp.isfinite(scores)
    logits = jnp.where(finite | ~finite.any(), jnp.where(finite, scores, 0.0), -jnp.inf)
    exact = size * jax.nn.softmax(logits)
    whole = jnp.floor(exact)
    # The seats that rounding down left over go to the largest remainders, ties to the lower index.
    place = jnp.argsort(jnp.argsort(whole - exact))
    left = size - whole.sum()
    return (whole + (place < left)).astype(jnp.int32)


def feedback_indices(losses: jax.Array, shares: jax.Array, size: int, first: jax.Array | None = None) -> jax.Array:
    """Which samples of the batch are handed back: each student's share, its hardest samples first.

    The same sample may be handed back by several students.

    Args:
        losses: `[students, batch]`, cross-entropy of each student on each sample; NaN counts as easiest.
        shares: int `[students]`, with sum `size` and each at most `batch`.
        size: number of feedback samples.
        first: bool `[students, batch]`, which samples come before all others, the hardest of them first.

    Returns:
        int32 `[size]`: positions in the batch, first those of student 0, then of student 1 ...
    """
    easiness = -jnp.where(jnp.isnan(losses), -jnp.inf, losses)
    hardest_first = jnp.argsort(easiness, axis=1) if first is None else jnp.lexsort((easiness, ~first), axis=1)
    ends = jnp.cumsum(shares)
    slots = jnp.arange(size)
    student = jnp.searchsorted(ends, slots, side="right")
    rank = slots - (ends - shares)[student]
    return hardest_first[student, rank].astype(jnp.int32)


def gate(learns: jax.Array, new: Tree, old: Tree) -> Tree:
    """Member by member, `new` where `learns` and `old`, bit for bit, elsewhere.

    This gates parameters together with optimizer state: a zeroed gradient would still let momentum and weight decay
    move a member.

    Args:
        learns: bool `[members]`.
        new, old: trees of arrays `[members, ...]`.
    """
    return jax.tree.map(lambda n, o: jnp.where(learns.reshape(-1, *[1] * (n.ndim - 1)), n, o), new, old)
