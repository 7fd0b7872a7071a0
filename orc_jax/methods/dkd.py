"""DKD: Decoupled Knowledge Distillation (Zhao, Cui, Song, Qiu, Liang; CVPR 2022; arXiv 2203.08679).

KL(p_t || p_s) is the sum of two parts: that of the *binary* distribution b = (p_y, 1 - p_y), whether a sample is of its
class y, and, by the teacher's share 1 - p_y, that of the distribution q over the *other* classes. Here each part has a
weight of its own:

    CE + w T^2 (alpha KL(b_t || b_s) + beta KL(q_t || q_s))        w = min(epoch / 20, 1), epochs from 1

With `standardize`: on standardised logits (see `orc_jax.methods.kd`).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from orc_jax.data.types import Images
from orc_jax.errors import require
from orc_jax.losses import standardized
from orc_jax.methods.base import Method
from orc_jax.methods.offline import Adapter, Seen, offline
from orc_jax.verbs import Context


def dkd(
    architectures: Sequence[str],
    *,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    warmup_epochs: int = 20,
    standardize: bool = False,
) -> Method:
    """The method.

    Args:
        architectures: the teacher, then its students.
        temperature: T; 4 in the paper's tables of CIFAR-100, 1 of ImageNet. With logit standardisation mostly 2.
        alpha: weight of the binary part; 1 in the paper, with logit standardisation 9 to 18 by pair.
        beta: weight of the part of the other classes. NOTE(paper): chosen by pair; in its code 8 is the default, 6 for
            pairs of WRN and vgg, 2 for ResNets of one width. With logit standardisation alpha times as much.
        warmup_epochs: over which both rise, a step an epoch; 20 in the code. 0 is none.
        standardize: compare standardised logits.
    """
    require("config.dkd.temperature", temperature, temperature > 0, "greater than 0")
    require("config.dkd.alpha", alpha, alpha >= 0, "at least 0")
    require("config.dkd.beta", beta, beta >= 0, "at least 0")
    require("config.dkd.warmup_epochs", warmup_epochs, warmup_epochs >= 0, "at least 0")

    def loss(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        t, a, b = (context.value(name, option) for name, option in options.items())
        logits_s, logits_t = (standardized(x) if standardize else x for x in (student.logits, teacher.logits))

        def decoupled(logits: jax.Array, labels: jax.Array) -> jax.Array:
            binary, others = parts(logits, logits_t, labels, t)
            return a * binary + b * others

        risen = jnp.minimum((context.epoch + 1.0) / warmup_epochs, 1.0) if warmup_epochs else 1.0
        # NOTE(paper): of a mixed batch, by both labels of each sample.
        distilled = context.by_labels(decoupled, logits_s, batch.labels)
        return context.label_loss(student.logits, batch.labels) + risen * distilled

    options = {"temperature": temperature, "alpha": alpha, "beta": beta}
    return offline("dkd", architectures, loss, values=tuple(options))


def parts(
    logits_s: jax.Array, logits_t: jax.Array, labels: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """`T^2 KL(b_t || b_s)` and `T^2 KL(q_t || q_s)`, each `[batch]`, with gradients to both logits.

    p_y is the sigmoid of the *odds*, z_y over the logsumexp of the other logits. The code takes logarithms of sums of
    probabilities, which are infinite where logits are far apart.

    Args:
        logits_s, logits_t: `[batch, classes]`.
        labels: `[batch]`.
        temperature: T > 0.
    """
    others = jnp.arange(logits_s.shape[-1])[None] != labels[:, None]

    def of(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The odds of y, `[batch]`, and the logarithms of q, which at y is 0."""
        scaled = logits.astype(jnp.float32) / temperature
        rest = jax.nn.logsumexp(scaled, -1, where=others)
        own = jnp.take_along_axis(scaled, labels[:, None], -1)[:, 0]
        return own - rest, jnp.where(others, scaled - rest[:, None], 0.0)

    (odds_s, q_s), (odds_t, q_t) = of(logits_s), of(logits_t)
    log_s, log_t = (jax.nn.log_sigmoid(jnp.stack([odds, -odds])) for odds in (odds_s, odds_t))
    binary = (jnp.exp(log_t) * (log_t - log_s)).sum(0)
    return temperature**2 * binary, temperature**2 * (others * jnp.exp(q_t) * (q_t - q_s)).sum(-1)
