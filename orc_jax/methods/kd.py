"""KD: Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean; 2015; arXiv 1503.02531).

With `standardize`: Logit Standardization in Knowledge Distillation (Sun, Ren, Li, Wang, Cao; CVPR 2024;
arXiv 2403.01427), where teacher and student are compared by logits of mean 0 and standard deviation 1.
"""

from collections.abc import Sequence

import jax

from orc_jax.data.types import Images
from orc_jax.errors import require
from orc_jax.losses import distillation, standardized
from orc_jax.methods.base import Method
from orc_jax.methods.offline import Adapter, Seen, offline
from orc_jax.verbs import Context


def kd(
    architectures: Sequence[str],
    *,
    temperature: float = 4.0,
    alpha: float = 0.9,
    weight: float = 1.0,
    standardize: bool = False,
) -> Method:
    """The method: `L = (1 - alpha) CE + alpha w T^2 KL(teacher || student)`.

    Args:
        architectures: the teacher, then its students.
        temperature: T. NOTE(paper): chosen by task there; 4 is that of the field's tables (RepDistiller).
        alpha: weight of distillation against labels. NOTE(paper): chosen by task there; RepDistiller has 0.9.
        weight: w, for recipes whose two weights do not add up to 1. Those of logit standardisation are 0.1 and 9 for
            most pairs, so alpha 0.9 and w 10, with T = 2.
        standardize: compare standardised logits.
    """
    require("config.kd.temperature", temperature, temperature > 0, "greater than 0")
    require("config.kd.alpha", alpha, 0 <= alpha <= 1, "between 0 and 1")
    require("config.kd.weight", weight, weight >= 0, "at least 0")

    def loss(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        t, a, w = (context.value(name, option) for name, option in options.items())
        of_labels = context.label_loss(student.logits, batch.labels)
        logits_s, logits_t = (standardized(x) if standardize else x for x in (student.logits, teacher.logits))
        return (1 - a) * of_labels + a * w * distillation(logits_s, logits_t, t)

    options = {"temperature": temperature, "alpha": alpha, "weight": weight}
    return offline("kd", architectures, loss, values=tuple(options))
