"""The operations of RandAugment, TrivialAugment and AutoAugment, by Pillow, as torchvision calls it.

Worker processes import this module: no JAX. Its twin is `orc_jax.data.device_operations`.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from orc_jax.data.policies import OPERATIONS, SIGNED, Policy


def moved(picture: Image.Image, *matrix: float) -> Image.Image:
    """The picture whose pixel (x, y) is that of (a x + b y + c, d x + e y + f); black where there is none."""
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


KINDS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda picture, m: picture,
    "shear_x": lambda picture, m: moved(picture, 1, m, 0, 0, 1, 0),
    "shear_y": lambda picture, m: moved(picture, 1, 0, 0, m, 1, 0),
    "translate_x": lambda picture, m: moved(picture, 1, 0, -math.trunc(m), 0, 1, 0),
    "translate_y": lambda picture, m: moved(picture, 1, 0, 0, 0, 1, -math.trunc(m)),
    "rotate": lambda picture, m: picture.rotate(m),
    "brightness": lambda picture, m: ImageEnhance.Brightness(picture).enhance(1.0 + m),
    "color": lambda picture, m: ImageEnhance.Color(picture).enhance(1.0 + m),
    "contrast": lambda picture, m: ImageEnhance.Contrast(picture).enhance(1.0 + m),
    "sharpness": lambda picture, m: ImageEnhance.Sharpness(picture).enhance(1.0 + m),
    "posterize": lambda picture, m: ImageOps.posterize(picture, int(m)),
    "solarize": lambda picture, m: ImageOps.solarize(picture, m),  # pyright: ignore[reportArgumentType]
    "autocontrast": lambda picture, m: ImageOps.autocontrast(picture),
    "equalize": lambda picture, m: ImageOps.equalize(picture),
    "invert": lambda picture, m: ImageOps.invert(picture),
}


def apply(image: np.ndarray, rng: np.random.Generator, policy: Policy) -> np.ndarray:
    """An image, uint8 `[height, width, 3]`, after what is drawn of a policy."""
    picture = Image.fromarray(image)
    for _ in range(policy.draws):
        row = rng.integers(len(policy.operations))
        for number, probability, size in zip(*(column[row] for column in policy[1:]), strict=True):
            name, happens, negative = OPERATIONS[number], rng.random() < probability, rng.random() < 0.5
            if happens:
                picture = KINDS[name](picture, float(-size if negative and name in SIGNED else size))
    return np.asarray(picture)
