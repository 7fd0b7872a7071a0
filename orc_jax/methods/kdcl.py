"""KDCL: Online Knowledge Distillation via Collaborative Learning (Guo et al.; CVPR 2020).

A pool from scratch. Every network gets its own augmentation of each image, and learns from the labels and from one
target that is made of all networks' logits z:

    L_i = CE_i + lam T^2 KL(target || i)

The targets of the paper:

    naive      z_k of the network k whose cross-entropy is the least, sample by sample
    linear     sum_i a_i z_i with the a >= 0, sum a = 1, whose cross-entropy is the least
    minlogit   class by class the least, over networks, of the logit minus the network's own logit of the true class
    general    sum_i w_i z_i with w = C^-1 1 / (1^T C^-1 1), C_ij the mean over held-out images of the product of the
               errors of i and j; renewed after every epoch

and two that are not among them: "mean", the mean of the logits, which other work takes for it, and "naive_batch", the
logits of the network whose cross-entropy is the least on the whole mini-batch. NOTE(paper): the formula of the naive
target is written for one example; code that follows it takes the whole mini-batch.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from orc_jax.data.types import Images
from orc_jax.errors import require, require_choice
from orc_jax.losses import cross_entropy, distillation
from orc_jax.methods.base import HeldOut, Method, pool_roles, require_members, scores
from orc_jax.pool import Pool, Stacks, StackState
from orc_jax.verbs import Context, Setup, forward, learn

WEIGHTS = "ensemble_weights"  # what the general target keeps: a stack that is no member's and does not learn
GENERAL = "general"


def kdcl(
    architectures: Sequence[str],
    *,
    temperature: float = 2.0,
    lam: float = 1.0,
    target: str = "minlogit",
    own_augmentation: bool = True,
    held_out: float = 0.1,
) -> Method:
    """The method.

    Args:
        temperature: T; 2 in the paper.
        lam: weight of distillation; 1 in the paper.
        target: "minlogit" (the one that is quoted most), "naive", "naive_batch", "linear", "general" or "mean".
        own_augmentation: every network sees its own crop and flip; off, all see the same.
        held_out: of "general": the share of the training images that the weights are found on, and nobody is trained
            on. NOTE(paper): how many images these are is not known to us.
    """
    require("config.kdcl.temperature", temperature, temperature > 0, "greater than 0")
    require("config.kdcl.lam", lam, lam >= 0, "at least 0")
    require_choice("config.kdcl.target", target, [*TARGETS, GENERAL])
    require("config.kdcl.held_out", held_out, 0 < held_out <= 0.5, "in (0, 0.5]")
    require_members("kdcl", architectures, 2)
    size, renews = len(architectures), target == GENERAL

    def start(setup: Setup, pool: Pool, key: jax.Array) -> Pool:
        del setup, key
        return pool.replace(stacks=pool.stacks | kept(jnp.full(size, 1 / size)))

    def iterate(context: Context, pool: Pool, batch: Images) -> tuple[Pool, dict[str, jax.Array]]:
        passed = forward(pool.select(range(size)), context.normalize(batch.images))
        if renews:
            weights = pool.stacks[WEIGHTS].batch_stats["weights"][0]
            logits_t = jnp.einsum("m,mbc->bc", weights, passed.logits)
        else:
            logits_t = TARGETS[target](context, passed.logits, batch.labels)

        t, weight = context.value("temperature", temperature), context.value("lam", lam)

        def loss(out):
            of_labels = context.label_loss(out.logits, batch.labels)
            return of_labels + weight * distillation(out.logits, logits_t[None], t)

        return pool.put(learn(context, passed, loss)), scores(context, passed.logits, batch.labels)

    return Method(
        iterate,
        pool_roles(size, "peer", "peer"),
        views=size if own_augmentation else 1,
        values=("temperature", "lam"),
        start=start if renews else None,
        decided_by_labels=""
        if renews or target == "mean"
        else f"the target {target!r} (those of 'mean' and 'general' not)",
        held_out=HeldOut(held_out, errors, lambda sums: kept(general_weights(sums))) if renews else None,
    )


def mean(context: Context, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean of the logits `[members, batch, classes]`: `[batch, classes]`."""
    del context, labels
    return logits.mean(0)


def naive(context: Context, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Of each sample the logits of the network that is best at it: `[batch, classes]`."""
    del context
    best = jnp.nanargmin(cross_entropy(logits, labels), axis=0)
    return jnp.take_along_axis(logits, best[None, :, None], axis=0)[0]


def naive_batch(context: Context, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The logits of the network that is best at the global batch: `[batch, classes]`."""
    return logits[jnp.nanargmin(context.mean(cross_entropy(logits, labels).mean(1)))]


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
TARGETS = {"minlogit": minlogit, "naive": naive, "naive_batch": naive_batch, "linear": linear, "mean": mean}


def kept(weights: jax.Array) -> Stacks:
    """What the general target keeps of its weights `[members]` from one epoch to the next."""
    return {WEIGHTS: StackState(params={}, batch_stats={"weights": weights[None]}, opt_state=())}


def errors(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> dict[str, jax.Array]:
    """Sums over a batch of held-out images: of the products of the networks' errors, and of the images.

    The error of a network is `p - y`, its probabilities minus the one-hot label. NOTE(paper): that these are
    probabilities, and not logits, is our reading.

    Args:
        logits: `[members, batch, classes]`.
        labels: `[batch]`.
        weights: `[batch]`, 0 for padding.

    Returns:
        "products" `[members, members]` and "count" `[]`.
    """
    wrong = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])[None]
    return {"products": jnp.einsum("ibc,jbc,b->ij", wrong, wrong, weights), "count": weights.sum()}


def general_weights(sums: dict[str, jax.Array]) -> jax.Array:
    """`w = C^-1 1 / (1^T C^-1 1)` of the sums of `errors`: `[members]`, with sum 1; some may be negative.

    Networks that agree in everything have no C^-1: a millionth of the mean error is added to the diagonal, which makes
    their weights equal.
    """
    products = sums["products"] / sums["count"]
    ridge = 1e-6 * jnp.trace(products) / len(products) + 1e-12
    solved = jnp.linalg.solve(products + ridge * jnp.eye(len(products)), jnp.ones(len(products)))
    return solved / solved.sum()
