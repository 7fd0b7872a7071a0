"""Mix-up and CutMix of a batch: each image is mixed with another one of it, and so are their labels.

It is done within the step, to images that are augmented, on the global batch: any number of devices mixes the same.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from orc_jax.data.device_changes import within
from orc_jax.data.types import Images
from orc_jax.rngs import symmetric_beta


class Mixing(NamedTuple):
    """The alphas of both; 0 is none. With both, a batch gets the one or the other, with equal probability."""

    mixup: float = 0.0
    cutmix: float = 0.0


class Mixed(NamedTuple):
    """What a mixed image shows besides what its own label says."""

    labels: jax.Array  # of the images that were mixed in: int32 [batch]
    share: jax.Array  # of an image's own label; the rest is that of the other: float32 []


def mix(
    mixing: Mixing, key: jax.Array, examples: Images, slots: jax.Array, gather: Callable[[jax.Array, int], jax.Array]
) -> tuple[jax.Array, Mixed]:
    """A batch, mixed: Zhang et al. 2018 (mix-up) and Yun et al. 2019 (CutMix), with one ratio for the batch.

    Args:
        mixing: which, at least one.
        key: the same on all devices.
        examples: images uint8 `[..., batch, height, width, channels]`, of several views mixed alike, and labels
            `[batch]`: this device's share.
        slots: places of these in the global batch, `[batch]`.
        gather: the global batch of a device's share along an axis.

    Returns:
        Images, float32 in [0, 255] with mix-up, uint8 without, and what they are mixed of.
    """
    images, axis = examples.images, examples.images.ndim - 4
    key_partner, key_kind, key_ratio, key_box = jax.random.split(key, 4)
    all_labels = gather(examples.labels, 0)
    partner = jax.random.permutation(key_partner, all_labels.shape[0])[slots]
    others = jnp.take(gather(images, axis), partner, axis=axis)
    ratios = [symmetric_beta(key_ratio, alpha) if alpha else jnp.ones(()) for alpha in mixing]
    cut = _box(key_box, images.shape[-3:-1], ratios[1]).reshape([1] * (images.ndim - 3) + [*images.shape[-3:-1], 1])
    pasted, of_cut = jnp.where(cut, others, images), 1.0 - cut.mean()
    if not mixing.mixup:
        return pasted, Mixed(all_labels[partner], of_cut)
    blended = ratios[0] * images.astype(jnp.float32) + (1.0 - ratios[0]) * others.astype(jnp.float32)
    cuts = jax.random.bernoulli(key_kind) if mixing.cutmix else jnp.zeros((), bool)
    share = jnp.where(cuts, of_cut, ratios[0])
    return jnp.where(cuts, pasted.astype(jnp.float32), blended), Mixed(all_labels[partner], share)


def _box(key: jax.Array, shape: tuple[int, ...], ratio: jax.Array) -> jax.Array:
    """The box that is pasted, around any pixel, as far as it is in the image: `1 - ratio` of it, or less."""
    sides = jnp.array(shape)
    center = jax.random.randint(key, (2,), 0, sides)
    half = (0.5 * jnp.sqrt(1.0 - ratio) * sides.astype(jnp.float32)).astype(jnp.int32)
    (top, left), (bottom, right) = center - half, center + half
    return within(shape, top, left, bottom, right)
