"""KD: Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean; 2015), from a fixed teacher.

Member 0 is the teacher: pre-trained, frozen, and in evaluation mode. Every other member learns from it alone.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from orc_jax.data.sets import Images
from orc_jax.errors import require
from orc_jax.losses import cross_entropy, distillation
from orc_jax.methods.base import Method, Stage, pool_roles, require_members, scores
from orc_jax.pool import put, select, take
from orc_jax.step import Context, Stacks, forward, learn, predict


def kd(members: Sequence[str], *, temperature: float = 4.0, alpha: float = 0.9) -> Method:
    """The method: `L = (1 - alpha) CE + alpha T^2 KL(teacher || student)`.

    Args:
        members: architectures in member order.
        temperature: T. NOTE(paper): chosen by task there; 4 is that of the field's tables (RepDistiller).
        alpha: weight of distillation against labels. NOTE(paper): chosen by task there; RepDistiller has 0.9.

    Raises:
        UserError: for an option out of its range, or a pool without a student.
    """
    require("config.kd.temperature", temperature, temperature > 0, "greater than 0")
    require("config.kd.alpha", alpha, 0 <= alpha <= 1, "between 0 and 1")
    require_members("kd", members, 2)

    def iterate(context: Context, stacks: Stacks, batch: Images) -> tuple[Stacks, dict[str, jax.Array]]:
        teacher, students = select(context.pool, [0]), select(context.pool, range(1, len(members)))
        images = context.normalize(batch.images)
        logits_t = predict(teacher, take(teacher, stacks), images).logits
        stacks_s = take(students, stacks)
        passed = forward(students, stacks_s, images)

        def loss(out):
            labels = cross_entropy(out.logits, batch.labels)
            return (1 - alpha) * labels + alpha * distillation(out.logits, logits_t, temperature)

        stacks_s, _ = learn(context, students, stacks_s, passed, loss)
        logits = jnp.concatenate([logits_t, passed.logits])
        return put(students, stacks, stacks_s), scores(context, logits, batch.labels)

    stages = (Stage("pivot", "independent", (0,)),)
    return Method(iterate, pool_roles(len(members), "teacher", "student"), stages=stages, frozen=(0,))
