"""Augmentation on the device: uint8 images in, uint8 images out, one key per image."""

import jax
import jax.numpy as jnp


def crop_and_flip(keys: jax.Array, images: jax.Array, padding: int, flip: bool) -> jax.Array:
    """A random crop of the zero-padded image, and a horizontal flip with probability one half.

    Args:
        keys: `[batch]`, one key per image.
        images: uint8 `[batch, height, width, channels]`.
        padding: pixels of padding on every side; 0 for no crop.
        flip: whether to flip.

    Returns:
        uint8 `[batch, height, width, channels]`.
    """
    _, height, width, channels = images.shape

    def one(key, image):
        key_crop, key_flip = jax.random.split(key)
        if padding:
            top, left = jax.random.randint(key_crop, (2,), 0, 2 * padding + 1)
            padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
            image = jax.lax.dynamic_slice(padded, (top, left, 0), (height, width, channels))
        if flip:
            image = jnp.where(jax.random.bernoulli(key_flip), image[:, ::-1], image)
        return image

    return jax.vmap(one)(keys, images)


def normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """uint8 images `[..., height, width, channels]` to float32 with `(x / 255 - mean) / std` per channel."""
    mean, std = (jnp.array(x).reshape([1] * (images.ndim - 1) + [-1]) for x in (mean, std))
    return (images.astype(jnp.float32) / 255.0 - mean) / std
