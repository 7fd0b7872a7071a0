"""DGKD: Densely Guided Knowledge Distillation using Multiple Teacher Assistants (Son, Na, Choi, Hwang; ICCV 2021;
arXiv 2009.08825).

Members are a teacher, assistants of decreasing size, and the target student. They are trained one after the other, the
teacher from the labels, each other one from *all* larger ones, which are frozen by then and in evaluation mode:

    L = (1 - lam) CE + lam T^2 sum over guides KL(guide || learner)

Stochastic teaching: in every mini-batch some guides, drawn at random, are left out.

The run of a pool trains its last member; its stages are the runs of the smaller pools before it.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from orc_jax.data.types import Images
from orc_jax.errors import require, require_choice
from orc_jax.losses import guided_distillation
from orc_jax.methods.base import Method, Stage, pool_roles, require_members, scores
from orc_jax.pool import Pool
from orc_jax.verbs import Context, forward, learn, predict


def dgkd(
    architectures: Sequence[str],
    *,
    temperature: float = 5.0,
    lam: float = 1.0,
    drop: int = 1,
    kl_reduction: str = "sum",
) -> Method:
    """The method.

    Args:
        temperature: T; 5 in the authors' code.
        lam: weight of distillation against labels; 1 in the authors' code, so that labels teach the teacher alone.
        drop: guides that are left out in each mini-batch, at least one remains; 1 in the authors' code, which with a
            teacher and three assistants is the survival probability 0.75 that the paper finds best. NOTE(paper):
            described for the student; the code does it wherever it is told to, here it is done in every stage.
        kl_reduction: "sum" over classes, the formula of the paper, or "mean", the authors' code, in which PyTorch's
            default also divides by the number of classes.
    """
    require("config.dgkd.temperature", temperature, temperature > 0, "greater than 0")
    require("config.dgkd.lam", lam, 0 <= lam <= 1, "between 0 and 1")
    require("config.dgkd.drop", drop, drop >= 0, "at least 0")
    require_choice("config.dgkd.kl_reduction", kl_reduction, ("sum", "mean"))
    require_members("dgkd", architectures, 2)
    guides = range(len(architectures) - 1)

    def guidance(key: jax.Array) -> jax.Array:
        return keep_guides(key, len(guides), drop)

    iterate = guided_iteration(guides, guidance, temperature, lam, kl_reduction)
    roles = pool_roles(len(architectures), "teacher", "assistant")
    before, frozen = stages("dgkd", len(architectures)), tuple(guides)
    return Method(iterate, roles, stages=before, frozen=frozen, values=VALUES, decided_by_labels="")


VALUES = ("temperature", "lam")


def keep_guides(key: jax.Array, count: int, drop: int) -> jax.Array:
    """Which of `count` guides teach this mini-batch: float `[count]` of 0 and 1, `max(count - drop, 1)` of them 1."""
    order = jax.random.permutation(key, count)
    return (order < max(count - drop, 1)).astype(jnp.float32)


def stages(method: str, size: int) -> tuple[Stage, ...]:
    """One stage for each member but the last: the teacher by itself, then every assistant with all before it."""
    pools = [tuple(range(i + 1)) for i in range(1, size - 1)]
    assistants = [Stage(f"assistant_{members[-1]}", method, members) for members in pools]
    return (Stage("pivot", "independent", (0,)), *assistants)


def guided_iteration(
    guides: Sequence[int], guidance: Callable[[jax.Array], jax.Array], temperature: float, lam: float, kl_reduction: str
) -> Callable:
    """The iteration in which the last member learns from frozen `guides`: that of DGKD, and of TAKD.

    Args:
        guides: members that teach.
        guidance: key of the mini-batch -> weights `[guides]`.
        temperature, lam, kl_reduction: as of `dgkd`.
    """

    def iterate(context: Context, pool: Pool, batch: Images) -> tuple[Pool, dict[str, jax.Array]]:
        frozen, student = pool.select(range(pool.size - 1)), pool.select([pool.size - 1])
        images = context.normalize(batch.images)
        # All of them, for their metrics, also where fewer guide: TAKD's cost has those in it.
        logits_t = predict(frozen, images).logits
        sources, weights = logits_t[jnp.array(guides)], guidance(context.key)
        passed = forward(student, images)
        t, share = context.value("temperature", temperature), context.value("lam", lam)

        def loss(out):
            distilled = guided_distillation(out.logits, sources, weights[None], t)
            if kl_reduction == "mean":
                distilled = distilled / out.logits.shape[-1]
            return (1 - share) * context.label_loss(out.logits, batch.labels) + share * distilled

        logits = jnp.concatenate([logits_t, passed.logits])
        return pool.put(learn(context, passed, loss)), scores(context, logits, batch.labels)

    return iterate
