"""CC: Correlation Congruence for Knowledge Distillation (Peng, Jin, Liu, Zhou, Wu, Liu, Li, Zhang; ICCV 2019;
arXiv 1904.01802), as RepDistiller has it.

e_s and e_t are linear embeddings of the pooled features of student and teacher, both learnt. Where they differ in a
sample, they are not to differ in the next sample of the batch:

    CE + w mean over b of sum over dims of D[b] D[b + 1]        D[b] = |e_s[b] - e_t[b]|, elementwise

NOTE(paper): it compares the correlations, by a kernel, of all pairs of a batch. RepDistiller's
formula, whose author says that it is the authors' own, is another, and the one that the field's tables are of.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from orc_jax.data.types import Images
from orc_jax.errors import require
from orc_jax.methods.base import Method
from orc_jax.methods.offline import Adapter, Seen, linear, linear_params, offline
from orc_jax.verbs import Context, Setup


def cc(architectures: Sequence[str], *, weight: float = 0.02, dim: int = 128) -> Method:
    """The method.

    Args:
        architectures: the teacher, then its students.
        weight: w; 0.02 in RepDistiller.
        dim: of the embeddings; 128 in RepDistiller.
    """
    require("config.cc.weight", weight, weight >= 0, "at least 0")
    require("config.cc.dim", dim, dim >= 1, "at least 1")

    def embeddings(setup: Setup, key: jax.Array, student: Seen, teacher: Seen) -> Adapter:
        return Adapter(linear_params(key, {"student": student, "teacher": teacher}, dim), {})

    def loss(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        e_s = linear(adapter.params, "student", student.features)
        e_t = linear(adapter.params, "teacher", teacher.features)
        apart = congruence(context.gather(e_s), context.gather(e_t))
        return context.label_loss(student.logits, batch.labels) + context.value("weight", weight) * apart

    return offline("cc", architectures, loss, adapter=embeddings, values=("weight",))


def congruence(e_s: jax.Array, e_t: jax.Array) -> jax.Array:
    """The loss of embeddings of the whole batch, `[batch, dim]`, in its order; 0 for a batch of one."""
    apart = jnp.abs(e_s - e_t)
    return (apart[:-1] * apart[1:]).sum() / max(len(apart) - 1, 1)
