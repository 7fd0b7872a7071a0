"""DIST: Knowledge Distillation from A Stronger Teacher (Huang, You, Wang, Qian, Xu; NeurIPS 2022; arXiv 2205.10536).

A student need not have its teacher's probabilities, only their relations: its prediction Y = softmax(z / T), `[batch,
classes]`, is to be correlated with the teacher's, each sample over the classes and each class over the samples (rho is
Pearson's correlation):

    CE + T^2 (beta L_inter + gamma L_intra)
    L_inter = 1 - mean over samples of rho(Y_s[i, :], Y_t[i, :])
    L_intra = 1 - mean over classes of rho(Y_s[:, j], Y_t[:, j])
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from orc_jax.data.types import Images
from orc_jax.errors import require
from orc_jax.losses import norm
from orc_jax.methods.base import Method
from orc_jax.methods.offline import Adapter, Seen, offline
from orc_jax.verbs import Context


def dist(architectures: Sequence[str], *, temperature: float = 4.0, beta: float = 2.0, gamma: float = 2.0) -> Method:
    """The method.

    Args:
        architectures: the teacher, then its students.
        temperature: T; 4 in its code's config of CIFAR-100, 1 of ImageNet. NOTE(paper): the factor T^2 is the code's.
        beta, gamma: weights of the two relations; 2 in its code's config of CIFAR-100, where each is 1 and both are
            taken twice.
    """
    require("config.dist.temperature", temperature, temperature > 0, "greater than 0")
    require("config.dist.beta", beta, beta >= 0, "at least 0")
    require("config.dist.gamma", gamma, gamma >= 0, "at least 0")

    def loss(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        t, b, c = (context.value(name, option) for name, option in options.items())
        logits_s, logits_t = context.gather(student.logits), context.gather(teacher.logits)
        relations = b * inter(logits_s, logits_t, t).mean() + c * intra(logits_s, logits_t, t).mean()
        return context.label_loss(student.logits, batch.labels) + relations

    options = {"temperature": temperature, "beta": beta, "gamma": gamma}
    return offline("dist", architectures, loss, values=tuple(options))


def inter(logits_s: jax.Array, logits_t: jax.Array, temperature: float) -> jax.Array:
    """`T^2 (1 - rho)` of each sample over the classes: logits `[batch, classes]` -> `[batch]`."""
    y_s, y_t = (jax.nn.softmax(logits.astype(jnp.float32) / temperature) for logits in (logits_s, logits_t))
    return temperature**2 * (1.0 - correlation(y_s, y_t))


def intra(logits_s: jax.Array, logits_t: jax.Array, temperature: float) -> jax.Array:
    """`T^2 (1 - rho)` of each class over the samples: logits of the whole batch `[batch, classes]` -> `[classes]`."""
    y_s, y_t = (jax.nn.softmax(logits.astype(jnp.float32) / temperature) for logits in (logits_s, logits_t))
    return temperature**2 * (1.0 - correlation(y_s.T, y_t.T))


def correlation(a: jax.Array, b: jax.Array) -> jax.Array:
    """Pearson's, over the last axis; 0, without a gradient, where one does not vary but for rounding."""
    a, b = centred(a), centred(b)
    return (a * b).sum(-1) / ((norm(a) * norm(b))[..., 0] + 1e-8)


def centred(x: jax.Array) -> jax.Array:
    """`x` without its mean over the last axis; what is left of equal entries is 0."""
    around = x - x.mean(-1, keepdims=True)
    varies = norm(around) > 1e-6 * jnp.abs(x).max(-1, keepdims=True)
    return jnp.where(varies, around, 0.0)
