"""KDCL: Online Knowledge Distillation via Collaborative Learning (Guo et al.; CVPR 2020).

A pool from scratch. Every network gets its own augmentation of each image, and learns from the labels and from one
target that is made of all networks' logits:

    L_i = CE_i + lam T^2 KL(target || i)

The targets of the paper: "naive", the mean of the logits; "linear", the convex combination of the logits with the
lowest cross-entropy; "minlogit", class by class the least, over networks, of the logit minus the network's own logit of
the true class. The fourth, which weighs networks by their errors on held-out images, is not here.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from orc_jax.data.types import Images
from orc_jax.errors import require, require_choice
from orc_jax.losses import cross_entropy, distillation
from orc_jax.methods.base import Method, pool_roles, require_members, scores
from orc_jax.pool import Pool
from orc_jax.verbs import Context, forward, learn


def kdcl(
    architectures: Sequence[str],
    *,
    temperature: float = 2.0,
    lam: float = 1.0,
    target: str = "minlogit",
    own_augmentation: bool = True,
) -> Method:
    """The method.

    Args:
        temperature: T; 2 in the paper.
        lam: weight of distillation; 1 in the paper.
        target: "minlogit" (the one that is quoted most), "naive" or "linear".
        own_augmentation: every network sees its own crop and flip; off, all see the same.
    """
    require("config.kdcl.temperature", temperature, temperature > 0, "greater than 0")
    require("config.kdcl.lam", lam, lam >= 0, "at least 0")
    require_choice("config.kdcl.target", target, TARGETS)
    require_members("kdcl", architectures, 2)

    def iterate(context: Context, pool: Pool, batch: Images) -> tuple[Pool, dict[str, jax.Array]]:
        passed = forward(pool, context.normalize(batch.images))
        logits_t = TARGETS[target](context, passed.logits, batch.labels)

        def loss(out):
            return cross_entropy(out.logits, batch.labels) + lam * distillation(out.logits, logits_t[None], temperature)

        pool = learn(context, passed, loss)
        return pool, scores(context, passed.logits, batch.labels)

    views = len(architectures) if own_augmentation else 1
    return Method(iterate, pool_roles(len(architectures), "peer", "peer"), views=views)


def naive(context: Context, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean of the logits `[members, batch, classes]`: `[batch, classes]`."""
    del context, labels
    return logits.mean(0)


def minlogit(context: Context, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Class by class the least `z_i - z_i[label]` over the networks i: `[batch, classes]`, 0 at the label."""
    del context
    true = jnp.take_along_axis(logits, labels[None, :, None], axis=-1)
    return (logits - true).min(0)


def linear(context: Context, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`sum_i a_i z_i` with the weights a >= 0, sum a = 1 that give the lowest cross-entropy on the global batch.

    The problem is convex. It is solved by exponentiated gradient descent, whose rate doubles with every step that does
    not pass the lowest point on its way, and falls to a quarter with every other, which is not taken: no one rate would
    do for logits of all sizes. NOTE(paper): by which solver is not said; the weights are found anew for every
    mini-batch.
    """

    def combine(a):
        return jnp.einsum("m,mbc->bc", a, logits)

    def slope(a):
        return context.mean(jax.grad(lambda a: cross_entropy(combine(a), labels).mean())(a))

    def descend(_, state):
        a, slope_a, rate = state
        b = jax.nn.softmax(jnp.log(a) - rate * slope_a)
        b = jnp.maximum(b, 1e-12)  # a weight of exactly 0 could not come back
        slope_b = slope(b)
        taken = jnp.dot(slope_b, b - a) <= 0
        return jnp.where(taken, b, a), jnp.where(taken, slope_b, slope_a), rate * jnp.where(taken, 2.0, 0.25)

    equal = jnp.full(len(logits), 1 / len(logits))
    weights, *_ = jax.lax.fori_loop(0, LINEAR_STEPS, descend, (equal, slope(equal), jnp.ones(())))
    return combine(weights)


LINEAR_STEPS = 100
TARGETS = {"minlogit": minlogit, "naive": naive, "linear": linear}
