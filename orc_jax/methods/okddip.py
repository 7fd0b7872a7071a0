"""OKDDip: Online Knowledge Distillation with Diverse Peers (Chen, Mei, Wang, Feng, Chen; AAAI 2020;
arXiv 1912.00350).

A pool from scratch: *auxiliary peers*, and a *group leader*, the last member, which is the one to deploy. The members
are whole networks (the paper's network-based setting), or, with `branches`, share all but their last stage (its
branch-based one). Every peer has its own target, a mixture of the peers' logits z whose weights come from their
features h through two learnt projections L and E:

    a_ij = softmax over j of L(h_i) . E(h_j)        target of peer i: sum_j a_ij z_j

    peer i:  CE_i + w T^2 KL(target_i || i)         leader:  CE + w T^2 KL(mean of the peers' z || leader)

w rises with the epoch e from nearly 0 to 1: w = exp(-5 (1 - e / r)^2) up to epoch r, 80 of 300 in the paper.

The projections learn through the targets, so the targets carry gradients. In the authors' code the peers, too, are
pulled towards what they teach.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from orc_jax.data.types import Images
from orc_jax.errors import require
from orc_jax.losses import softened_kl
from orc_jax.methods.base import Method, pool_roles, rampup, require_members, scores
from orc_jax.methods.branches import first_tied, is_shared, require_branches, tie, total
from orc_jax.models.layers import torch_uniform
from orc_jax.models.network import Params
from orc_jax.pool import Outputs, Pool, PoolSpec
from orc_jax.verbs import Context, Setup, forward, learn, new_stack, predict

ATTENTION = "attention"  # the head that holds the projections


def okddip(
    architectures: Sequence[str],
    *,
    temperature: float = 3.0,
    weight: float = 1.0,
    rampup_fraction: float = 0.2667,
    projection_divisor: int = 8,
    peers_follow_targets: bool = True,
    branches: bool = False,
) -> Method:
    """The method.

    Args:
        architectures: in member order: auxiliary peers, then the leader.
        temperature: T; 3 in the paper.
        weight: of distillation once w has risen; 1 in the paper.
        rampup_fraction: r as a share of the run.
        projection_divisor: the projections have the peers' smallest feature dimension divided by this; 8 in the
            authors' code. Peers of one architecture share theirs, as there.
        peers_follow_targets: gradients of the targets reach the peers' logits, as in the authors' code; off, they reach
            the projections alone. NOTE(paper): the paper does not say.
        branches: peers and leader are branches of one network; its shared layers get the gradient of the sum of all
            losses, as in the authors' code.
    """
    require("config.okddip.temperature", temperature, temperature > 0, "greater than 0")
    require("config.okddip.weight", weight, weight >= 0, "at least 0")
    require("config.okddip.rampup_fraction", rampup_fraction, 0 <= rampup_fraction <= 1, "between 0 and 1")
    require("config.okddip.projection_divisor", projection_divisor, projection_divisor >= 1, "at least 1")
    require_members("okddip", architectures, 3)
    peers = len(architectures) - 1
    trunk = require_branches("okddip with config.okddip.branches=True", architectures) if branches else ""

    def share(grads: dict[str, Params]) -> dict[str, Params]:
        return tie(grads, [trunk], is_shared(trunk), total)

    def start(setup: Setup, pool: Pool, key: jax.Array) -> Pool:
        pool = first_tied(pool, trunk) if trunk else pool
        images = jax.ShapeDtypeStruct((1, *setup.image_shape), jnp.float32)
        features = jax.eval_shape(lambda images: predict(pool, images).features, images)
        dims = {stack.name: features[stack.name].shape[-1] for stack in pool.spec.stacks if min(stack.members) < peers}
        width = max(min(dims.values()) // projection_divisor, 1)
        params = {}
        for i, (name, dim) in enumerate(dims.items()):
            for j, kind in enumerate(("query", "key")):
                init = torch_uniform(dim)
                params[f"{name}.{kind}"] = init(jax.random.fold_in(key, 2 * i + j), (1, dim, width))
        return pool.replace(stacks=pool.stacks | {ATTENTION: new_stack(setup, params, {})})

    def iterate(context: Context, pool: Pool, batch: Images) -> tuple[Pool, dict[str, jax.Array]]:
        passed = forward(pool, context.normalize(batch.images))
        ramp = weight * rampup(context.progress, rampup_fraction)

        def loss(out):
            logits_p, logits_l = out.logits[:peers], out.logits[peers:]
            queries, keys = (project(pool.spec, out, kind)[:peers] for kind in ("query", "key"))
            taught = logits_p if peers_follow_targets else jax.lax.stop_gradient(logits_p)
            targets = jnp.concatenate([mixtures(queries, keys, taught), taught.mean(0, keepdims=True)])
            distilled = softened_kl(jnp.concatenate([logits_p, logits_l]), targets, temperature)
            return context.label_loss(out.logits, batch.labels) + ramp * distilled

        pool = learn(context, passed, loss, share=share if trunk else None)
        return pool, scores(context, passed.logits, batch.labels)

    roles = pool_roles(len(architectures), "auxiliary peer", "auxiliary peer")
    return Method(iterate, roles, start=start, decided_by_labels="", tied=branches)


def project(spec: PoolSpec, out: Outputs, kind: str) -> jax.Array:
    """Every member's features through the projection `kind` of its architecture: `[members, batch, width]`.

    A leader of an architecture that no peer has is not projected: its place holds zeros, which nobody looks at.
    """
    head: Params = out.heads[ATTENTION]
    width = next(iter(head.values())).shape[-1]
    projected = [jnp.zeros(0)] * spec.size
    for stack in spec.stacks:
        for position, features in zip(spec.positions(stack), out.features[stack.name], strict=True):
            kernel = head.get(f"{stack.name}.{kind}")
            projected[position] = jnp.zeros((len(features), width)) if kernel is None else features @ kernel[0]
    return jnp.stack(projected)


def mixtures(queries: jax.Array, keys: jax.Array, logits: jax.Array) -> jax.Array:
    """The peers' targets: for each peer and sample its attention over all peers, applied to their logits.

    Args:
        queries, keys: `[peers, batch, width]`.
        logits: `[peers, batch, classes]`.

    Returns:
        `[peers, batch, classes]`.
    """
    attention = jax.nn.softmax(jnp.einsum("ibw,jbw->bij", queries, keys), axis=-1)
    return jnp.einsum("bij,jbc->ibc", attention, logits)
