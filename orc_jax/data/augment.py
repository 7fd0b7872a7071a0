"""Augmentation, made from the config: of sets in memory on the device, of streamed ones in worker processes."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from orc_jax.data import decode

Augmentation = Callable[[jax.Array, jax.Array], jax.Array]  # keys [batch], uint8 images [batch, ...] -> uint8 images


def of_memory(config: ConfigDict) -> Augmentation:
    """That of a set in memory: one key per image."""
    return functools.partial(crop_and_flip, padding=config.crop_padding, flip=config.flip)


def of_stream(config: ConfigDict, whole: bool) -> Callable[[bytes, np.random.Generator], np.ndarray]:
    """That of a streamed set, which decodes as well, and which worker processes get a pickled copy of.

    Small images are taken `whole`, see `orc_jax.data.types.Dataset`.
    """
    size, values = config.stream.image_size, tuple(config.stream.pixel_range)
    given = {"size": size, "flip": config.flip, "values": values}
    if whole:
        return functools.partial(decode.padded_crop, padding=config.crop_padding, **given)
    return functools.partial(decode.random_resized_crop, area=tuple(config.stream.crop_area), **given)


def center_of_stream(config: ConfigDict, whole: bool) -> Callable[[bytes], np.ndarray]:
    """What an evaluation sees of a streamed set; worker processes get a pickled copy."""
    size, values = config.stream.image_size, tuple(config.stream.pixel_range)
    if whole:
        return functools.partial(decode.resize, image_shape=(size, size, 3), values=values)
    return functools.partial(decode.resize_and_center_crop, size=size, crop=config.stream.eval_crop, values=values)


def in_words(config: ConfigDict, *, streamed: bool) -> str:
    """What happens to a training image before a network sees it: "cropped and flipped at random"."""
    changes = ["cropped"] if streamed or config.crop_padding else []
    changes += ["flipped"] if config.flip else []
    return f"{' and '.join(changes)} at random" if changes else "not augmented"


def none(keys: jax.Array, images: jax.Array) -> jax.Array:
    """Images as they are."""
    del keys
    return images


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
    shift, scale = (jnp.array(x).reshape([1] * (images.ndim - 1) + [-1]) for x in (mean, std))
    return (images.astype(jnp.float32) / 255.0 - shift) / scale
