"""AT: Paying More Attention to Attention (Zagoruyko, Komodakis; ICLR 2017; arXiv 1612.03928).

A student looks where its teacher looks. The attention of a map is the mean of its channels' squares, at unit length;
summed over all stages, the larger map averaged down to the sides of the other:

    CE + w sum over stages of mean over pixels (Q_s - Q_t)^2        Q = unit(mean over channels of f^p)
"""

from collections.abc import Sequence

import jax

from orc_jax.data.types import Images
from orc_jax.errors import require
from orc_jax.losses import unit
from orc_jax.methods.base import Method
from orc_jax.methods.maps import at_one_side, pairs, weighed
from orc_jax.methods.offline import Adapter, Seen, offline
from orc_jax.verbs import Context


def at(architectures: Sequence[str], *, weight: float = 1000.0, power: int = 2) -> Method:
    """The method.

    Args:
        architectures: the teacher, then its students.
        weight: w; 1000 in the field's tables (RepDistiller).
        power: p; 2 in the paper. The power is plain, without an absolute value, as in RepDistiller.
    """
    weighed("at", weight)
    require("config.at.power", power, power >= 1, "at least 1")

    def loss(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        differ = sum(attention_loss(s, t, power) for s, t in pairs(student, teacher))
        return context.label_loss(student.logits, batch.labels) + context.value("weight", weight) * differ

    return offline("at", architectures, loss, maps=("post",), values=("weight",))


def attention_loss(f_s: jax.Array, f_t: jax.Array, power: int) -> jax.Array:
    """The difference of the attention of two maps `[batch, height, width, channels]`: `[batch]`."""
    attention_s, attention_t = (attention(f, power) for f in at_one_side(f_s, f_t))
    return ((attention_s - attention_t) ** 2).mean(-1)


def attention(f: jax.Array, power: int) -> jax.Array:
    """Where a map is strong, `[batch, pixels]` of unit length; a map of zeros has none, and no gradient."""
    strength = (f**power).mean(-1)
    return unit(strength.reshape(len(f), -1))
