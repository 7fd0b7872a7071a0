"""ORC: Network Group-based Knowledge Distillation using Online Role Change (Choi, Cho, Cheung, Hwang; ICCV 2023;
arXiv 2206.01186).

The pool is a *pivot teacher* (member 0, pre-trained) and a *student group* (all others; the last is the *target
student*). In every iteration, on one mini-batch:

1. Evaluation and role change: the k students with the lowest cross-entropy become *temporary teachers*; with the pivot
   teacher they are the *teacher group*. Every student hands back the samples it finds hard.
2. Intensive teaching: the pivot teacher learns from a mix-up of the batch and the feedback samples.
3. Private teaching: each temporary teacher learns from the pivot teacher.
4. Group teaching: each remaining student learns from the whole teacher group.
5. Demotion: roles last for one iteration.

One forward pass of the student group serves evaluation, roles and losses: nothing has changed in between.

The paper's code was never published. Where the paper leaves a choice open, the line says `NOTE(paper)`, and the choice
is an option with a default.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from orc_jax import rngs
from orc_jax.data.types import Images
from orc_jax.errors import require, require_choice
from orc_jax.losses import correct, cross_entropy, guided_distillation
from orc_jax.methods.base import Method, Share, Stage, pool_roles, scores
from orc_jax.pool import Outputs, Pool
from orc_jax.roles import RULES, hand_back, top_k_mask
from orc_jax.verbs import Context, forward, learn, learn_and_look, predict


def orc(
    architectures: Sequence[str],
    *,
    num_temporary_teachers: int = 1,
    temperature: float = 4.0,
    beta: float = 0.5,
    mixup_alpha: float = 1.0,
    feedback_fraction: float = 1.0,
    feedback_rule: str = "hardest",
    intensive_samples: str = "mixup",
    intensive_teaching: bool = True,
    private_teaching: bool = True,
    group_teaching: bool = True,
    teaching: str = "individual",
    role_change: bool = True,
    temporary_teacher_logits: str = "after",
    pivot_batch_norm: str = "running",
    pivot_lr_multiplier: float = 0.1,
) -> Method:
    """The method.

    Args:
        num_temporary_teachers: k, the students promoted in each iteration; 1 was best in the paper.
        temperature: T of the distillation terms. NOTE(paper): not known to us; 4 is usual for CIFAR-100.
        beta: weight of distillation against labels, in [0, 1]. NOTE(paper): not known to us.
        mixup_alpha: the mix-up ratio is drawn from Beta(alpha, alpha), once per batch. NOTE(paper): not known to us.
        feedback_fraction: size of the feedback set over that of the batch. NOTE(paper): not known to us; a smaller
            set is repeated, so that each sample of the batch has one to be mixed with.
        feedback_rule: which samples a student hands back: its "hardest", by their loss, or those it has
            "misclassified" and then the hardest. NOTE(paper): not known to us. The abstract has "error samples of the
            student group", which speaks for the second; the text speaks of difficult ones.
        intensive_samples: what the pivot teacher learns from: "mixup" (best in the paper), "feedback" or "training".
        intensive_teaching: off, the pivot teacher stays as it is, as in conventional distillation.
        private_teaching: off, temporary teachers learn from the labels alone.
        group_teaching: off, the remaining students learn from the labels alone. NOTE(paper): what a student does
            without a teaching is not known to us; with no update at all it would not be trained.
        teaching: "individual", one distillation term per teacher (best in the paper), or "ensemble", one term from the
            mean logits of the teacher group.
        role_change: off, members 1 ... k are fixed temporary teachers, pre-trained and frozen, as in DGKD.
        temporary_teacher_logits: a temporary teacher teaches with its logits "after" its private update, the order of
            the paper, or with those from "before", which saves a forward and a backward pass of that teacher.
            NOTE(paper): implied by the order of the teachings.
        pivot_batch_norm: the pivot teacher teaches with "running" statistics, or with those of the "batch".
            NOTE(paper): not known to us.
        pivot_lr_multiplier: the pivot teacher's learning rate over that of the students. NOTE(paper): not known to us.
    """
    require("config.num_temporary_teachers", num_temporary_teachers, num_temporary_teachers >= 1, "at least 1")
    require("config.orc.temperature", temperature, temperature > 0, "greater than 0")
    require("config.orc.beta", beta, 0 <= beta <= 1, "between 0 and 1")
    require("config.orc.mixup_alpha", mixup_alpha, mixup_alpha > 0, "greater than 0")
    require("config.orc.feedback_fraction", feedback_fraction, 0 < feedback_fraction <= 1, "in (0, 1]")
    require("config.orc.pivot_lr_multiplier", pivot_lr_multiplier, pivot_lr_multiplier > 0, "greater than 0")
    require_choice("config.orc.feedback_rule", feedback_rule, RULES)
    require_choice("config.orc.intensive_samples", intensive_samples, ("mixup", "feedback", "training"))
    require_choice("config.orc.teaching", teaching, ("individual", "ensemble"))
    require_choice("config.orc.temporary_teacher_logits", temporary_teacher_logits, ("after", "before"))
    require_choice("config.orc.pivot_batch_norm", pivot_batch_norm, ("running", "batch"))

    k = num_temporary_teachers
    fixed = () if role_change else tuple(range(1, k + 1))
    num_students = len(architectures) - 1
    enough = f"config.num_networks={len(architectures)} would have to be at least {k + 2}"
    fits = f"less than the {num_students} networks of the student group; {enough}"
    require("config.num_temporary_teachers", k, k < num_students, fits)
    handed_back_by = functools.partial(hand_back, fraction=feedback_fraction, rule=feedback_rule)

    def iterate(context: Context, pool: Pool, batch: Images) -> tuple[Pool, dict[str, jax.Array]]:
        pivot, students = pool.select([0]), pool.select(range(1 + len(fixed), pool.size))
        images, labels = context.normalize(batch.images), batch.labels
        t, b = context.value("temperature", temperature), context.value("beta", beta)

        # Evaluation and role change, on the global batch.
        passed = forward(students, images)
        losses = context.gather(cross_entropy(passed.logits, labels), axis=1)
        promoted = top_k_mask(losses.mean(1), k) if role_change else jnp.zeros(students.size, bool)
        wrong = context.gather(correct(passed.logits, labels) == 0.0, axis=1)
        shares, handed_back = handed_back_by(losses, wrong)

        # Intensive teaching.
        if intensive_teaching:
            ratio = mix_ratio(context.key, intensive_samples, mixup_alpha)
            rate = context.value("pivot_lr_multiplier", pivot_lr_multiplier)
            pivot = teach_pivot(context, pivot, batch, handed_back, ratio, rate)
        logits_p = (predict if pivot_batch_norm == "running" else forward)(pivot, images).logits

        # Private and group teaching.
        def teaching_by(logits_t: jax.Array, teaches: jax.Array) -> Callable[..., jax.Array]:
            """The losses of all students, or of one, as a function of their outputs."""
            sources, guidance = teacher_group(logits_p, logits_t, teaches, promoted, teaching)
            guidance *= jnp.where(promoted, private_teaching, group_teaching)[:, None]

            def loss(out: Outputs, student: jax.Array | None = None) -> jax.Array:
                guided = guidance if student is None else guidance[student][None]
                return teaching_loss(out.logits, labels, sources, guided, t, b, context.label_loss)

            return loss

        logits_f = logits_p[:0]  # of fixed temporary teachers
        if not role_change:
            logits_f = predict(pool.select(fixed), images).logits
            students = learn(context, passed, teaching_by(logits_f, jnp.ones(k, bool)))
        elif temporary_teacher_logits == "before":
            students = learn(context, passed, teaching_by(passed.logits, promoted))
        else:
            private = teaching_by(logits_p[:0], jnp.zeros(0, bool))
            # NOTE(paper): the second look is in training mode, as the first.
            students, logits_t = learn_and_look(context, passed, promoted, k, private, images)
            # Whom its private update has thrown out of the range of numbers teaches nobody any more.
            finite = context.mean(jnp.isfinite(logits_t).all((1, 2)).astype(jnp.float32)) == 1.0
            group = teaching_by(logits_t, finite)
            students = learn(context, passed._replace(pool=students), group, learns=~promoted)

        logits = jnp.concatenate([logits_p, logits_f, passed.logits])
        in_student_group = lambda x: jnp.zeros(pool.size).at[-students.size :].set(x)  # noqa: E731
        return pool.put(pivot).put(students), scores(context, logits, labels) | {
            "promoted": in_student_group(promoted),
            "feedback_share": in_student_group(shares / shares.sum()),
        }

    roles = pool_roles(len(architectures), "pivot teacher", "assistant")
    metrics = ("loss", "accuracy", "promoted", "feedback_share")
    stages, spares = (Stage("pivot", "independent", (0, *fixed)),), num_students - k
    return Method(
        iterate,
        roles,
        metrics,
        (PROMOTED,),
        stages=stages,
        frozen=fixed,
        spares=spares,
        hand_back=handed_back_by,
        decided_by_labels="who is promoted and what is handed back to the pivot teacher, whose own mix-up "
        "(config.orc.mixup_alpha) is part of the method",
        values=("temperature", "beta", "pivot_lr_multiplier"),
    )


PROMOTED = Share(
    "promoted",
    "Temporary teachers",
    "Which student was promoted to temporary teacher, for the lowest cross-entropy on the batch, in which share of an "
    "epoch's iterations (the paper's Fig. 4).",
    adds_up=True,
)


def mix_ratio(key: jax.Array, samples: str, alpha: float) -> jax.Array | float:
    """lam of intensive teaching: 1 for the training samples alone, 0 for the feedback samples, else drawn."""
    if samples == "mixup":
        return rngs.symmetric_beta(key, alpha)
    return 1.0 if samples == "training" else 0.0


def teach_pivot(
    context: Context, pivot: Pool, batch: Images, handed_back: jax.Array, ratio: jax.Array | float, multiplier: float
) -> Pool:
    """Intensive teaching: L_1 = lam CE(y, p(x~)) + (1 - lam) CE(y_F, p(x~)) with x~ = lam x + (1 - lam) x_F.

    Args:
        context: for the gathering of feedback samples over devices, and for the update.
        pivot: the pivot teacher.
        batch: x and y, this device's share.
        handed_back: positions of the feedback samples x_F in the global batch; repeated if there are fewer.
        ratio: lam.
        multiplier: of the learning rate.
    """
    all_images, all_labels = context.gather(batch.images), context.gather(batch.labels)
    partner = context.local(jnp.resize(handed_back, all_labels.shape), batch.labels.shape[0])
    feedback = Images(all_images[partner], all_labels[partner])
    mixed = ratio * context.normalize(batch.images) + (1 - ratio) * context.normalize(feedback.images)

    def loss(out: Outputs) -> jax.Array:
        of_batch, of_feedback = (context.label_loss(out.logits, y) for y in (batch.labels, feedback.labels))
        return ratio * of_batch + (1 - ratio) * of_feedback

    return learn(context, forward(pivot, mixed), loss, lr_multiplier=multiplier)


def teacher_group(
    logits_p: jax.Array, logits_t: jax.Array, teaches: jax.Array, promoted: jax.Array, teaching: str
) -> tuple[jax.Array, jax.Array]:
    """Who learns from whom: the promoted from the pivot teacher, the rest from the whole teacher group.

    Args:
        logits_p: `[1, batch, classes]` of the pivot teacher.
        logits_t: `[candidates, batch, classes]` of those among whom the temporary teachers are.
        teaches: bool `[candidates]`, who of them is a temporary teacher.
        promoted: bool `[students]`, who of the learners is one (all false with fixed temporary teachers).
        teaching: "individual" or "ensemble".

    Returns:
        Logits of the sources `[sources, batch, classes]`, and the guidance `[students, sources]`, 1 where the student
        learns from the source. Several temporary teachers add up. NOTE(paper): sum or mean is not known to us; for
        k = 1 it is the same.
    """
    # A candidate that does not teach must not reach a loss, not even as 0 * NaN.
    logits_t = jnp.where(teaches[:, None, None], logits_t, 0.0)
    if teaching == "individual":
        sources = jnp.concatenate([logits_p, logits_t])
        private = jnp.zeros(1 + teaches.size).at[0].set(1.0)
        group = jnp.concatenate([jnp.ones(1), teaches.astype(jnp.float32)])
    else:
        ensemble = (logits_p + logits_t.sum(0, keepdims=True)) / (1 + teaches.sum())
        sources = jnp.concatenate([logits_p, ensemble])
        private, group = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    return sources, jnp.where(promoted[:, None], private[None], group[None])


def teaching_loss(
    logits_s: jax.Array,
    labels: jax.Array,
    sources: jax.Array,
    guidance: jax.Array,
    temperature: float,
    beta: float,
    label_loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
) -> jax.Array:
    """`(1 - beta) CE + beta * sum over sources of KD`: the losses L_P and L_G of private and group teaching.

    A student whom nobody guides learns from the labels with weight 1.

    Args:
        logits_s: `[students, batch, classes]`.
        labels: `[batch]`.
        sources: `[sources, batch, classes]`; they get no gradient.
        guidance: `[students, sources]`.
        temperature, beta: as in `orc`.
        label_loss: CE; of labels that are smoothed it is another.

    Returns:
        `[students, batch]`.
    """
    guided = guided_distillation(logits_s, sources, guidance, temperature)
    weight = jnp.where(guidance.any(1), beta, 0.0)[:, None]
    return (1 - weight) * label_loss(logits_s, labels) + weight * guided
