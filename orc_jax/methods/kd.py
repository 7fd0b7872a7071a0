"""KD: Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean; 2015; arXiv 1503.02531).

From a fixed teacher: member 0 is pre-trained, frozen, and in evaluation mode. Every other member learns from it alone.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from orc_jax.data.types import Images
from orc_jax.errors import require
from orc_jax.losses import distillation
from orc_jax.methods.base import Method, Stage, pool_roles, require_members, scores
from orc_jax.pool import Pool
from orc_jax.verbs import Context, forward, learn, predict


def kd(architectures: Sequence[str], *, temperature: float = 4.0, alpha: float = 0.9) -> Method:
    """The method: `L = (1 - alpha) CE + alpha T^2 KL(teacher || student)`.

    Args:
        temperature: T. NOTE(paper): chosen by task there; 4 is that of the field's tables (RepDistiller).
        alpha: weight of distillation against labels. NOTE(paper): chosen by task there; RepDistiller has 0.9.
    """
    require("config.kd.temperature", temperature, temperature > 0, "greater than 0")
    require("config.kd.alpha", alpha, 0 <= alpha <= 1, "between 0 and 1")
    require_members("kd", architectures, 2)

    def iterate(context: Context, pool: Pool, batch: Images) -> tuple[Pool, dict[str, jax.Array]]:
        teacher, students = pool.select([0]), pool.select(range(1, len(architectures)))
        images = context.normalize(batch.images)
        logits_t = predict(teacher, images).logits
        passed = forward(students, images)

        t, a = context.value("temperature", temperature), context.value("alpha", alpha)

        def loss(out):
            labels = context.label_loss(out.logits, batch.labels)
            return (1 - a) * labels + a * distillation(out.logits, logits_t, t)

        logits = jnp.concatenate([logits_t, passed.logits])
        return pool.put(learn(context, passed, loss)), scores(context, logits, batch.labels)

    stages = (Stage("pivot", "independent", (0,)),)
    roles = pool_roles(len(architectures), "teacher", "student")
    return Method(iterate, roles, stages=stages, frozen=(0,), values=("temperature", "alpha"), decided_by_labels="")
