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


def smoothed_cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float | jax.Array) -> jax.Array:
    """`cross_entropy` with labels that leave a share `smoothing` to all classes alike (Szegedy et al., 2016)."""
    hard = cross_entropy(logits, labels)
    if isinstance(smoothing, float) and not smoothing:
        return hard
    return (1.0 - smoothing) * hard - smoothing * jax.nn.log_softmax(logits.astype(jnp.float32)).mean(-1)


def softened_kl(logits_s: jax.Array, logits_t: jax.Array, temperature: float) -> jax.Array:
    """`T^2 KL(p_t || p_s)` of the softened distributions, with gradients to both.

    The factor `T^2` keeps the size of the gradient independent of the temperature. The sum runs over classes; it is
    not divided by their number. Exactly 0 where both logits are equal.

    Args:
        logits_s: `[..., classes]`.
        logits_t: `[..., classes]`; broadcast against `logits_s`.
        temperature: T > 0.

    Returns:
        `[...]`, in nats.
    """
    log_probs_s = jax.nn.log_softmax(logits_s.astype(jnp.float32) / temperature)
    log_probs_t = jax.nn.log_softmax(logits_t.astype(jnp.float32) / temperature)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(log_probs_s, log_probs_t)


def distillation(logits_s: jax.Array, logits_t: jax.Array, temperature: float) -> jax.Array:
    """`softened_kl` of a learner from a source that gets no gradient (Hinton et al., 2015)."""
    return softened_kl(logits_s, jax.lax.stop_gradient(logits_t), temperature)


def guided_distillation(logits_s: jax.Array, logits_t: jax.Array, guidance: jax.Array, temperature: float) -> jax.Array:
    """`distillation` of every learner from the sources that guide it: their terms, weighted, add up.

    Args:
        logits_s: `[learners, batch, classes]`.
        logits_t: `[sources, batch, classes]`; they get no gradient.
        guidance: `[learners, sources]`, how much a source guides a learner.
        temperature: T > 0.

    Returns:
        `[learners, batch]`.
    """
    pairs = distillation(logits_s[:, None], logits_t[None], temperature)
    return jnp.einsum("ls,lsb->lb", guidance, pairs)


def standardized(logits: jax.Array) -> jax.Array:
    """Logits `[..., classes]` with mean 0 and standard deviation 1 over classes (Sun et al., CVPR 2024).

    As in their code the deviation is that of a sample (`classes - 1`), and 1e-7 is added to it. Logits that are all
    equal, up to rounding, are 0 and get no gradient; in their code it would be of the order of 1e7.
    """
    logits = logits.astype(jnp.float32)
    centred = logits - logits.mean(-1, keepdims=True)
    deviation = norm(centred) / (logits.shape[-1] - 1) ** 0.5
    varies = deviation > 1e-6 * jnp.abs(logits).max(-1, keepdims=True)
    return jnp.where(varies, centred / (1e-7 + jnp.where(varies, deviation, 1.0)), 0.0)


def norm(x: jax.Array) -> jax.Array:
    """The L2 norm over the last axis, `[..., 1]`, whose gradient at 0 is 0, as PyTorch's is, and not NaN."""
    squares = jnp.square(x).sum(-1, keepdims=True)
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)


def unit(x: jax.Array, epsilon: float = 1e-12) -> jax.Array:
    """`x / max(|x|, epsilon)` over the last axis; what is no longer than `epsilon` gets no gradient."""
    length = norm(x)
    longer = length > epsilon
    return jnp.where(longer, x / jnp.where(longer, length, 1.0), jax.lax.stop_gradient(x / epsilon))


def correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1.0 where the highest logit is that of the label: logits `[members, batch, classes]` -> `[members, batch]`."""
    return (logits.argmax(-1) == labels[None]).astype(jnp.float32)
