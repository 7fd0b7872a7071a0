"""SwitOKD: Switchable Online Knowledge Distillation (Qian, Wang, Yin, Hong, Wang; ECCV 2022; arXiv
2209.04996).

Teacher and student start from scratch together. When the gap between them is too large for the student to follow, the
teacher pauses (*expert mode*) until the student has caught up; otherwise both learn (*learning mode*). With
probabilities p, one-hot labels y, and L1 distances averaged over the batch:

    G = ||p_s - p_t||   s = ||p_s - y||   t = ||p_t - y||
    threshold:  delta = s - exp(-t / (s + t)) t
    expert mode:  G > delta

    student, always:            CE + KL(p_t || p_s)
    teacher, in learning mode:  CE + KL(p_s || p_t)

With several teachers or students every pair has its switch. A teacher that learns does so from the students with which
it is in learning mode and from the other teachers, and pauses if there is no such student; a student learns from all
others. That gives the paper's 2T1S (three networks, two of them teachers) and 1T2S. NOTE(paper): the authors' code of
these two has slips, which are options: the exponent of student 1's threshold has the gaps of student 2 (1T2S), that of
teacher 2's those of teacher 1 (2T1S); and with 1T2S a paused teacher still takes steps, on a loss of zero.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from orc_jax.data.types import Images
from orc_jax.errors import UserError, require, require_choice
from orc_jax.losses import guided_distillation
from orc_jax.methods.base import Method, Share, pool_roles, require_members, scores
from orc_jax.pool import Pool
from orc_jax.verbs import Context, forward, learn


def switokd(
    architectures: Sequence[str],
    *,
    num_teachers: int = 1,
    temperature: float = 1.0,
    teacher_must_lead: bool = True,
    paused_statistics: str = "moved",
    exponent: str = "own",
    paused_step: str = "skipped",
) -> Method:
    """The method.

    Args:
        architectures: in member order: teachers first, then students.
        num_teachers: how many of them are teachers.
        temperature: T of the distillation terms; 1 in the authors' code.
        teacher_must_lead: expert mode needs t < s as well, as in the authors' code; off, the formula alone decides.
        paused_statistics: a paused teacher's running statistics are "moved", as in the authors' code, where its forward
            pass is in training mode, or "kept".
        exponent: of each pair's threshold its "own" gaps t / (s + t), the formula, or of three networks those that the
            authors' "code" has.
        paused_step: of a paused teacher: "skipped", the paper and the authors' code of 1T1S and 2T1S, or "zero_loss",
            their code of 1T2S, where momentum and weight decay go on moving it.
    """
    require_members("switokd", architectures, 2)
    if not 1 <= num_teachers < len(architectures):
        raise UserError(
            f"config.switokd.num_teachers={num_teachers}: must be at least 1, and less than "
            f"config.num_networks={len(architectures)}, so that there is a student"
        )
    require("config.switokd.temperature", temperature, temperature > 0, "greater than 0")
    require_choice("config.switokd.paused_statistics", paused_statistics, ("moved", "kept"))
    require_choice("config.switokd.exponent", exponent, ("own", "code"))
    require_choice("config.switokd.paused_step", paused_step, ("skipped", "zero_loss"))
    if exponent == "code" and len(architectures) != 3:
        raise UserError(
            f"config.switokd.exponent='code': that code is of three networks, but config.num_networks="
            f"{len(architectures)}; accepted is 'own'"
        )
    if paused_step == "zero_loss" and paused_statistics == "kept":
        raise UserError(
            "config.switokd.paused_statistics='kept': a teacher that takes steps (config.switokd.paused_step="
            "'zero_loss') moves its statistics; accepted is 'moved'"
        )
    size = len(architectures)

    def iterate(context: Context, pool: Pool, batch: Images) -> tuple[Pool, dict[str, jax.Array]]:
        labels = batch.labels
        passed = forward(pool, context.normalize(batch.images))
        gap, threshold, leads = switches(context, passed.logits, labels, num_teachers, exponent)
        expert = (gap > threshold) & (leads if teacher_must_lead else True)  # [teachers, students]
        learns = jnp.ones(size, bool).at[:num_teachers].set(~expert.all(1))
        # Who learns from whom: everyone from all others, but a teacher from no student with whom it is in expert mode.
        guidance = (1.0 - jnp.eye(size)).at[:num_teachers, num_teachers:].set(~expert)

        def loss(out):
            mutual = guided_distillation(out.logits, passed.logits, guidance, temperature)
            losses = context.label_loss(out.logits, labels) + mutual
            return losses if paused_step == "skipped" else jnp.where(learns[:, None], losses, 0.0)

        gated = learns if paused_step == "skipped" else None
        pool = learn(context, passed, loss, learns=gated, pauses_statistics=paused_statistics == "kept")
        # Of each teacher the mean over its students, of each student the mean over its teachers.
        of_members = lambda x: jnp.concatenate([x.mean(1), x.mean(0)])  # noqa: E731
        return pool, scores(context, passed.logits, labels) | {
            "gap": of_members(gap),
            "threshold": of_members(threshold),
            "expert_mode": of_members(expert.astype(jnp.float32)),
        }

    roles = (*["teacher"] * num_teachers, *pool_roles(size - num_teachers, "student", "student"))
    metrics = ("loss", "accuracy", "gap", "threshold", "expert_mode")
    decided = "which teachers pause, by the distances of all networks to them"
    return Method(iterate, roles, metrics, shares=(EXPERT_MODE,), decided_by_labels=decided)


EXPERT_MODE = Share(
    "expert_mode",
    "Expert mode",
    "The share of an epoch's iterations in which a teacher was too far ahead and paused: of each teacher the mean over "
    "its students, of each student over its teachers.",
)


def switches(
    context: Context, logits: jax.Array, labels: jax.Array, num_teachers: int, exponent: str = "own"
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gap G, threshold delta, and whether the teacher leads (t < s), of every pair, on the global batch.

    Args:
        context: for the mean over devices.
        logits: `[members, batch, classes]`, teachers first.
        labels: `[batch]`.
        num_teachers: how many members are teachers.
        exponent: as of `switokd`.

    Returns:
        Three arrays `[teachers, students]`.
    """
    probs = jax.nn.softmax(logits)
    pairs = jnp.abs(probs[:num_teachers, None] - probs[None, num_teachers:])
    gap = context.mean(pairs.sum(-1).mean(-1))
    to_labels = jnp.abs(probs - jax.nn.one_hot(labels, logits.shape[-1])[None])
    to_labels = context.mean(to_labels.sum(-1).mean(-1))
    t, s = to_labels[:num_teachers, None], to_labels[None, num_teachers:]
    t, s = jnp.broadcast_to(t, gap.shape), jnp.broadcast_to(s, gap.shape)
    share = t / jnp.maximum(s + t, 1e-12)  # both are 0 where both networks are certain and right
    if exponent == "code":
        # 1T2S: that of student 2 in both; 2T1S: that of teacher 1 in both
        share = jnp.broadcast_to(share[:, -1:] if num_teachers == 1 else share[:1], gap.shape)
    return gap, s - jnp.exp(-share) * t, t < s
