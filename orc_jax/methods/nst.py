"""NST: Like What You Like: Knowledge Distill via Neuron Selectivity Transfer (Huang, Wang; 2017; arXiv 1707.01219).

The channels of a map are samples of where a network's neurons respond; those of student and teacher should be of one
distribution. The squared maximum mean discrepancy, with the kernel k(a, b) = <a, b>^2 of channels at unit length over
pixels, summed over all stages; the larger map is averaged down to the sides of the other:

    CE + w sum over stages of mean k(t, t') + mean k(s, s') - 2 mean k(s, t)
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from orc_jax.data.types import Images
from orc_jax.losses import unit
from orc_jax.methods.base import Method
from orc_jax.methods.maps import at_one_side, flattened, pairs, weighed
from orc_jax.methods.offline import Adapter, Seen, offline
from orc_jax.verbs import Context


def nst(architectures: Sequence[str], *, weight: float = 50.0) -> Method:
    """The method.

    Args:
        architectures: the teacher, then its students.
        weight: w; 50 in the field's tables (RepDistiller).
    """
    weighed("nst", weight)

    def loss(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        differ = sum(discrepancy(s, t) for s, t in pairs(student, teacher))
        return context.label_loss(student.logits, batch.labels) + context.value("weight", weight) * differ

    return offline("nst", architectures, loss, maps=("post",), values=("weight",))


def discrepancy(f_s: jax.Array, f_t: jax.Array) -> jax.Array:
    """That of the channels of two maps `[batch, height, width, channels]`: `[batch]`."""
    s, t = (unit(flattened(f)) for f in at_one_side(f_s, f_t))
    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


def kernel(a: jax.Array, b: jax.Array) -> jax.Array:
    """The mean of `<a, b>^2` over all pairs of channels, of `[batch, channels, pixels]`: `[batch]`."""
    products = jnp.matmul(a, b.swapaxes(1, 2), precision="highest")
    return (products**2).mean((1, 2))
