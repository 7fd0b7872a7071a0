"""KD: Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean; 2015; arXiv 1503.02531)."""

from collections.abc import Sequence

import jax

from orc_jax.data.types import Images
from orc_jax.errors import require
from orc_jax.losses import distillation
from orc_jax.methods.base import Method
from orc_jax.methods.offline import Adapter, Seen, offline
from orc_jax.verbs import Context


def kd(architectures: Sequence[str], *, temperature: float = 4.0, alpha: float = 0.9) -> Method:
    """The method: `L = (1 - alpha) CE + alpha T^2 KL(teacher || student)`.

    Args:
        architectures: the teacher, then its students.
        temperature: T. NOTE(paper): chosen by task there; 4 is that of the field's tables (RepDistiller).
        alpha: weight of distillation against labels. NOTE(paper): chosen by task there; RepDistiller has 0.9.
    """
    require("config.kd.temperature", temperature, temperature > 0, "greater than 0")
    require("config.kd.alpha", alpha, 0 <= alpha <= 1, "between 0 and 1")

    def loss(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        t, a = context.value("temperature", temperature), context.value("alpha", alpha)
        of_labels = context.label_loss(student.logits, batch.labels)
        return (1 - a) * of_labels + a * distillation(student.logits, teacher.logits, t)

    return offline("kd", architectures, loss, values=("temperature", "alpha"))
