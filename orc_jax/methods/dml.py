"""DML: Deep Mutual Learning (Zhang, Xiang, Hospedales, Lu; CVPR 2018; arXiv 1706.00384).

A pool of peers from scratch, each of which learns from the labels and from all others:

    L_i = CE_i + mean over j != i KL(p_j || p_i)

The paper updates one network after the other, each from the others' newest predictions (`sequential`). By default all
are updated at once, from one forward pass, as most later work does.

In the comparison of OKDDip's code DML has T = 3, one term from the mean of the others' logits (`targets="mean"`), and
targets that pass gradients on, so that a network is also pulled towards those it teaches (`target_gradient`).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from orc_jax.data.types import Images
from orc_jax.errors import UserError, require, require_choice
from orc_jax.losses import softened_kl
from orc_jax.methods.base import Method, pool_roles, require_members, scores
from orc_jax.pool import Pool
from orc_jax.verbs import Context, forward, learn


def dml(
    architectures: Sequence[str],
    *,
    temperature: float = 1.0,
    targets: str = "each",
    target_gradient: bool = False,
    sequential: bool = False,
) -> Method:
    """The method.

    Args:
        temperature: T of the mimicry loss, which is multiplied by T^2; 1 in the paper.
        targets: "each", one term for each other network, as in the paper, or "mean", one term from the mean of the
            others' logits, as in OKDDip's comparison.
        target_gradient: gradients of a term also reach the networks that it learns from, as in OKDDip's comparison.
        sequential: one network after the other, each from the others' newest predictions, as in the paper. The second
            look at a network that was updated is in training mode, and does not move its statistics again.
    """
    require("config.dml.temperature", temperature, temperature > 0, "greater than 0")
    require_choice("config.dml.targets", targets, ("each", "mean"))
    if target_gradient and sequential:
        raise UserError(
            "config.dml.target_gradient=True: needs config.dml.sequential=False, as networks that are updated one "
            "after the other have no gradients of one pass"
        )
    require_members("dml", architectures, 2)
    size = len(architectures)
    guidance = (1.0 - jnp.eye(size)) / (size - 1)

    def losses(of_labels: jax.Array, logits: jax.Array, sources: jax.Array, guided: jax.Array) -> jax.Array:
        return of_labels + mimicry(logits, sources, guided, targets, temperature)

    def at_once(context: Context, pool: Pool, batch: Images) -> tuple[Pool, dict[str, jax.Array]]:
        passed = forward(pool, context.normalize(batch.images))

        def loss(out):
            sources = out.logits if target_gradient else passed.logits
            return losses(context.label_loss(out.logits, batch.labels), out.logits, sources, guidance)

        return learn(context, passed, loss), scores(context, passed.logits, batch.labels)

    def in_turn(context: Context, pool: Pool, batch: Images) -> tuple[Pool, dict[str, jax.Array]]:
        images = context.normalize(batch.images)
        passes = [forward(pool.select([i]), images) for i in range(size)]
        first = newest = jnp.concatenate([passed.logits for passed in passes])
        for i, passed in enumerate(passes):

            def loss(out, i=i, newest=newest):
                of_labels = context.label_loss(out.logits, batch.labels)
                return losses(of_labels, out.logits, newest, guidance[i : i + 1])

            one = learn(context, passed, loss)
            pool = pool.put(one)
            if i < size - 1:  # nobody learns from the last
                newest = newest.at[i].set(forward(one, images).logits[0])
        return pool, scores(context, first, batch.labels)

    return Method(in_turn if sequential else at_once, pool_roles(size, "peer", "peer"), decided_by_labels="")


def mimicry(logits: jax.Array, sources: jax.Array, guidance: jax.Array, targets: str, temperature: float) -> jax.Array:
    """How far learners are from the sources that guide them, with gradients to both.

    Args:
        logits: `[learners, batch, classes]`.
        sources: `[sources, batch, classes]`.
        guidance: `[learners, sources]`, weights with sum 1 for each learner.
        targets: "each" or "mean", as of `dml`.
        temperature: T.

    Returns:
        `[learners, batch]`.
    """
    if targets == "mean":
        return softened_kl(logits, jnp.einsum("ls,sbc->lbc", guidance, sources), temperature)
    return jnp.einsum("ls,lsb->lb", guidance, softened_kl(logits[:, None], sources[None], temperature))
