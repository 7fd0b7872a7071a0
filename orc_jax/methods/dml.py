"""DML: Deep Mutual Learning (Zhang, Xiang, Hospedales, Lu; CVPR 2018).

A pool of peers from scratch, each of which learns from the labels and from all others:

    L_i = CE_i + mean over j != i KL(p_j || p_i)

NOTE(paper): the paper updates one network after the other, each from the others' newest predictions. Here all are
updated at once, from one forward pass, as most later work does.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from orc_jax.data.types import Images
from orc_jax.errors import require
from orc_jax.losses import cross_entropy, guided_distillation
from orc_jax.methods.base import Method, pool_roles, require_members, scores
from orc_jax.pool import Pool
from orc_jax.verbs import Context, forward, learn


def dml(architectures: Sequence[str], *, temperature: float = 1.0) -> Method:
    """The method.

    Args:
        temperature: T of the mimicry loss, which is multiplied by T^2; 1 in the paper.
    """
    require("config.dml.temperature", temperature, temperature > 0, "greater than 0")
    require_members("dml", architectures, 2)
    size = len(architectures)

    def iterate(context: Context, pool: Pool, batch: Images) -> tuple[Pool, dict[str, jax.Array]]:
        passed = forward(pool, context.normalize(batch.images))
        guidance = (1.0 - jnp.eye(size)) / (size - 1)

        def loss(out):
            mimicry = guided_distillation(out.logits, passed.logits, guidance, temperature)
            return cross_entropy(out.logits, batch.labels) + mimicry

        pool = learn(context, passed, loss)
        return pool, scores(context, passed.logits, batch.labels)

    return Method(iterate, pool_roles(size, "peer", "peer"))
