"""CL-ILR: Collaborative Learning for Deep Neural Networks (Song, Chai; NeurIPS 2018; arXiv 1805.11761).

One network with shared early layers (the *intermediate-level representation*) and a head for each *peer*: here, as in
OKDDip's comparison, its own last stage and classifier. Every peer learns from the labels and from all others together:

    L_i = a CE_i + b T^2 KL(target_i || i)        target_i: softmax of the mean over j != i of z_j, at temperature T

*Backpropagation rescaling*: the gradient that the shared layers get is divided by the number of peers.

Members are the peers (see `orc_jax.methods.branches`), which are alike: the target student, the last one, stands for
any of them. NOTE(paper): heads may branch off at several levels there; here all do at one.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from orc_jax.data.types import Images
from orc_jax.errors import require
from orc_jax.methods.base import Method, pool_roles, rampup, scores
from orc_jax.methods.branches import average, first_tied, is_shared, require_branches, tie, total
from orc_jax.methods.dml import mimicry
from orc_jax.pool import Pool
from orc_jax.verbs import Context, Setup, forward, learn


def cl_ilr(
    architectures: Sequence[str],
    *,
    temperature: float = 2.0,
    label_weight: float = 0.5,
    weight: float = 0.5,
    rampup_fraction: float = 0.0,
    rescaling: bool = True,
    target_gradient: bool = False,
) -> Method:
    """The method.

    Args:
        architectures: that of the peers, once for each.
        temperature: T; 2 in the paper, 3 in OKDDip's comparison.
        label_weight, weight: a and b; beta and 1 - beta with beta = 0.5 in the paper, both 1 in OKDDip's comparison.
        rampup_fraction: share of the run over which b rises from nearly 0, as in `base.rampup`; 0 is none. In OKDDip's
            comparison it is 80 of 300 epochs.
        rescaling: of the gradient of the shared layers; off, it is the sum of the peers'.
        target_gradient: gradients of a term also reach the peers that it learns from, as in OKDDip's comparison.
    """
    require("config.cl_ilr.temperature", temperature, temperature > 0, "greater than 0")
    require("config.cl_ilr.label_weight", label_weight, label_weight >= 0, "at least 0")
    require("config.cl_ilr.weight", weight, weight >= 0, "at least 0")
    require("config.cl_ilr.rampup_fraction", rampup_fraction, 0 <= rampup_fraction <= 1, "between 0 and 1")
    architecture = require_branches("cl_ilr", architectures)
    size, shared = len(architectures), is_shared(architecture)
    guidance = (1.0 - jnp.eye(size)) / (size - 1)

    def start(setup: Setup, pool: Pool, key: jax.Array) -> Pool:
        del setup, key
        return first_tied(pool, architecture)

    def iterate(context: Context, pool: Pool, batch: Images) -> tuple[Pool, dict[str, jax.Array]]:
        passed = forward(pool, context.normalize(batch.images))
        ramp = weight * rampup(context.progress, rampup_fraction)

        def loss(out):
            sources = out.logits if target_gradient else passed.logits
            distilled = mimicry(out.logits, sources, guidance, "mean", temperature)
            return label_weight * context.label_loss(out.logits, batch.labels) + ramp * distilled

        reduce = average if rescaling else total
        pool = learn(context, passed, loss, share=lambda grads: tie(grads, [architecture], shared, reduce))
        return pool, scores(context, passed.logits, batch.labels)

    return Method(iterate, pool_roles(size, "peer", "peer"), start=start, decided_by_labels="", tied=True)
