"""Augmentation, made from the config: of sets in memory on the device, of streamed ones in worker processes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from orc_jax.data import changes, decode, device_changes, device_operations, operations
from orc_jax.data.policies import BINS, POLICIES
from orc_jax.data.types import Dataset
from orc_jax.errors import UserError, require, require_choice

ON_HOST = changes.KINDS | {"policy": operations.apply}
ON_DEVICE = device_changes.KINDS | {"policy": device_operations.apply}
TITLES = {
    "rand": "RandAugment",
    "trivial": "TrivialAugment",
    "auto_cifar": "AutoAugment of CIFAR",
    "auto_imagenet": "AutoAugment of ImageNet",
}

Augmentation = Callable[[jax.Array, jax.Array], jax.Array]  # keys [batch], uint8 images [batch, ...] -> uint8 images


def check(config: ConfigDict) -> None:
    """Checks the fields by themselves.

    Raises:
        UserError: naming the first that is wrong, its value and what would be accepted.
    """
    if config.auto_augment:
        require_choice("config.auto_augment", config.auto_augment, POLICIES)
    given = tuple(config.rand_augment)
    fine = len(given) == 2 and all(x == int(x) for x in given) and 1 <= given[0] <= 10 and 0 <= given[1] < BINS
    told = f"(operations, magnitude): whole numbers from 1 to 10 and from 0 to {BINS - 1}"
    require("config.rand_augment", given, fine, told)
    strengths = tuple(config.color_jitter)
    fine = not strengths or (len(strengths) == 4 and min(strengths) >= 0 and strengths[3] <= 0.5)
    told = "(brightness, contrast, saturation, hue) of 0 or more, hue at most 0.5, or ()"
    require("config.color_jitter", strengths, fine, told)
    require("config.cutout", config.cutout, config.cutout >= 0, "at least 0")
    require("config.random_erasing", config.random_erasing, 0 <= config.random_erasing <= 1, "between 0 and 1")
    for field in ("mixup", "cutmix"):
        require(f"config.{field}", config[field], 0 <= config[field] <= 100, "from 0 to 100")
    require("config.label_smoothing", config.label_smoothing, 0 <= config.label_smoothing < 1, "in [0, 1)")


def check_images(config: ConfigDict, dataset: Dataset) -> None:
    """Checks what depends on the images.

    Raises:
        UserError: naming the field that does not fit them.
    """
    height, width, channels = dataset.image_shape
    for field, none in (("auto_augment", "''"), ("color_jitter", "()")):
        if config[field] and channels not in (1, 3):
            raise UserError(
                f"config.{field}={config[field]!r}: images of {dataset.name} have {channels} channels, and colours are "
                f"those of grey (1) and colour images (3); accepted is {none}"
            )
    least = min(height, width)
    fits = f"at most {least}: images of {dataset.name} are {height}x{width}"
    require("config.cutout", config.cutout, config.cutout <= least, fits)
    some = f"less than {least}, so that every crop has some of the image: those of {dataset.name} are {height}x{width}"
    require("config.crop_padding", config.crop_padding, config.crop_padding < least, some)


def check_method(config: ConfigDict, decided: str | None) -> None:
    """Checks what of labels has to fit the method, of which `decided` says what it decides by them (see `Method`).

    Raises:
        UserError: naming the field that does not fit, and why.
    """
    fields = [field for field in ("label_smoothing", "mixup", "cutmix") if config[field]]
    if decided is None and fields:
        raise UserError(
            f"config.{fields[0]}={config[fields[0]]}: config.method={config.method!r} does not say what it does with "
            "labels; accepted is 0, or a Method with decided_by_labels that learns from them by context.label_loss"
        )
    mixing = [field for field in fields if field != "label_smoothing"]
    if decided and mixing:
        raise UserError(
            f"config.{mixing[0]}={config[mixing[0]]}: a mixed image has two labels, and by the one label of each image "
            f"config.method={config.method!r} decides {decided}; accepted is 0"
        )


def _changes(config: ConfigDict, dataset: Dataset) -> list[tuple[str, dict[str, Any]]]:
    """What is changed of an image that has been cropped, in this order: names and arguments, for memory and streams.

    What is hidden gets the mean colour, which the networks see as 0.
    """
    fill = tuple(round(255 * value) for value in dataset.mean)
    policy = None
    if config.auto_augment:
        policy = POLICIES[config.auto_augment](dataset.image_shape[:2], *map(int, config.rand_augment))
    asked = {
        "policy": (policy, {"policy": policy}),
        "jitter": (any(config.color_jitter), {"strengths": tuple(config.color_jitter)}),
        "cutout": (config.cutout, {"size": config.cutout, "fill": fill}),
        "erase": (config.random_erasing, {"probability": config.random_erasing, "fill": fill}),
    }
    return [(name, arguments) for name, (on, arguments) in asked.items() if on]


def of_memory(config: ConfigDict, dataset: Dataset) -> Augmentation:
    """That of a set in memory: one key per image."""
    crop = functools.partial(crop_and_flip, padding=config.crop_padding, flip=config.flip)
    asked = _changes(config, dataset)
    if not asked:
        return crop
    steps = [functools.partial(ON_DEVICE[name], **arguments) for name, arguments in asked]

    def one(key, image):
        for i, change in enumerate(steps):
            # The first numbers are those of the keys that a split makes for the crop and the flip.
            image = change(jax.random.fold_in(key, 2 + i), image)
        return image

    return lambda keys, images: jax.vmap(one)(keys, crop(keys, images))


def of_stream(config: ConfigDict, dataset: Dataset) -> Callable[[bytes, np.random.Generator], np.ndarray]:
    """That of a streamed set, which decodes as well, and which worker processes get a pickled copy of.

    Small images are taken whole, see `orc_jax.data.types.Dataset`.
    """
    size, values = config.stream.image_size, tuple(config.stream.pixel_range)
    given = {"size": size, "flip": config.flip, "values": values}
    if dataset.whole:
        crop = functools.partial(decode.padded_crop, padding=config.crop_padding, **given)
    else:
        crop = functools.partial(decode.random_resized_crop, area=tuple(config.stream.crop_area), **given)
    asked = _changes(config, dataset)
    if not asked:
        return crop
    steps = [functools.partial(ON_HOST[name], **arguments) for name, arguments in asked]
    return functools.partial(changes.changed, decode=crop, changes=steps)


def center_of_stream(config: ConfigDict, whole: bool) -> Callable[[bytes], np.ndarray]:
    """What an evaluation sees of a streamed set; worker processes get a pickled copy."""
    size, values = config.stream.image_size, tuple(config.stream.pixel_range)
    if whole:
        return functools.partial(decode.resize, image_shape=(size, size, 3), values=values)
    return functools.partial(decode.resize_and_center_crop, size=size, crop=config.stream.eval_crop, values=values)


def in_words(config: ConfigDict, *, streamed: bool) -> str:
    """What happens to a training image before a network sees it: "cropped and flipped at random"."""
    moved = ["cropped"] if streamed or config.crop_padding else []
    moved += ["flipped"] if config.flip else []
    told = [f"{' and '.join(moved)} at random"] if moved else []
    told += [TITLES[config.auto_augment]] if config.auto_augment else []
    told += ["colours jittered"] if any(config.color_jitter) else []
    told += [f"{config.cutout} x {config.cutout} pixels cut out"] if config.cutout else []
    told += [f"a box erased of {config.random_erasing:.0%}"] if config.random_erasing else []
    mixed = [name for name, alpha in (("mix-up", config.mixup), ("CutMix", config.cutmix)) if alpha]
    told += [f"mixed by {' or '.join(mixed)}"] if mixed else []
    return ", ".join(told) or "not augmented"


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
