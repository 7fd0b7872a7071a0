"""Losses, in float32 and per sample: nothing here is reduced over the batch or over members.

Float32 matters: as networks agree, the gradient of a KL divergence is the small difference of two large numbers, and
online distillation drives networks into just that regime.
"""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy with integer labels.

    Args:
        logits: `[..., batch, classes]`.
        labels: `[batch]`, integers in `[0, classes)`.

    Returns:
        `[..., batch]`, in nats.
    """
    labels = jnp.broadcast_to(labels, logits.shape[:-1])
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def distillation(logits_s: jax.Array, logits_t: jax.Array, temperature: float) -> jax.Array:
    """`T^2 KL(p_t || p_s)` of the softened distributions (Hinton et al., 2015); the target gets no gradient.

    The factor `T^2` keeps the size of the gradient independent of the temperature. The sum runs over classes; it is
    not divided by their number. Exactly 0 where both logits are equal.

    Args:
        logits_s: `[..., classes]` of the learner.
        logits_t: `[..., classes]` of the source; broadcast against `logits_s`.
        temperature: T > 0.

    Returns:
        `[...]`, in nats.
    """
    log_probs_s = jax.nn.log_softmax(logits_s.astype(jnp.float32) / temperature)
    log_probs_t = jax.nn.log_softmax(jax.lax.stop_gradient(logits_t).astype(jnp.float32) / temperature)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(log_probs_s, log_probs_t)


def pairwise_distillation(logits_s: jax.Array, logits_t: jax.Array, temperature: float) -> jax.Array:
    """`distillation` of every learner from every source.

    Args:
        logits_s: `[learners, batch, classes]`.
        logits_t: `[sources, batch, classes]`.
        temperature: T > 0.

    Returns:
        `[learners, sources, batch]`.
    """
    return distillation(logits_s[:, None], logits_t[None], temperature)


def correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1.0 where the highest logit is that of the label: logits `[members, batch, classes]` -> `[members, batch]`."""
    return (logits.argmax(-1) == labels[None]).astype(jnp.float32)
