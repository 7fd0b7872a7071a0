"""What is changed of an image that has been cropped, by NumPy and Pillow: colours, and parts that are hidden.

Worker processes import this module: no JAX. Its twin for devices is `orc_jax.data.device_changes`, whose functions do
the same to the pixels and draw from the same distributions. Both follow torchvision's definitions. Images are uint8
`[height, width, 3]`.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]

ERASED_AREA = (0.02, 0.33)  # share of the image that is erased, at least and at most
ERASED_RATIOS = (0.3, 3.3)  # height to width of what is erased; log-uniform
TRIES = 10  # boxes that are drawn until one fits


def changed(
    data: bytes,
    rng: np.random.Generator,
    decode: Callable[[bytes, np.random.Generator], np.ndarray],
    changes: Sequence[Change],
) -> np.ndarray:
    """The image that `decode` makes of encoded `data`, after all `changes`."""
    image = decode(data, rng)
    for change in changes:
        image = change(image, rng)
    return image


def factor_range(strength: float) -> tuple[float, float]:
    """Smallest and largest factor of a colour: 1 more or less `strength`, and not below 0."""
    return max(0.0, 1.0 - strength), 1.0 + strength


def jitter(image: np.ndarray, rng: np.random.Generator, strengths: Sequence[float]) -> np.ndarray:
    """Brightness, contrast, saturation and hue, changed at random and in random order, as by ColorJitter.

    Args:
        strengths: of the four; the factors of the first three are uniform in `factor_range`, the hue turns by a uniform
            share of the circle, at most the last.
    """
    picture = Image.fromarray(image)
    factors = [rng.uniform(*factor_range(strength)) for strength in strengths[:3]]
    factors.append(rng.uniform(-strengths[3], strengths[3]))
    for i in rng.permutation(len(COLOURS)):
        if strengths[i]:
            picture = COLOURS[i](picture, factors[i])
    return np.asarray(picture)


def turn_hue(picture: Image.Image, share: float) -> Image.Image:
    """The hue turned by a share of the circle, in the 256 steps of Pillow's HSV."""
    hue, saturation, value = picture.convert("HSV").split()
    turned = np.asarray(hue) + np.array(int(share * 255)).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


COLOURS: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    lambda picture, factor: ImageEnhance.Brightness(picture).enhance(factor),
    lambda picture, factor: ImageEnhance.Contrast(picture).enhance(factor),
    lambda picture, factor: ImageEnhance.Color(picture).enhance(factor),
    turn_hue,
)


def cutout(image: np.ndarray, rng: np.random.Generator, size: int, fill: Sequence[int]) -> np.ndarray:
    """A square of `size` pixels around any pixel, as far as it is in the image, gets the colour `fill`."""
    top, left = (int(rng.integers(side)) - size // 2 for side in image.shape[:2])
    return _filled(image, max(top, 0), max(left, 0), top + size, left + size, fill)


def erase(image: np.ndarray, rng: np.random.Generator, probability: float, fill: Sequence[int]) -> np.ndarray:
    """With `probability`, a random box gets the colour `fill`, as by RandomErasing; none, if ten boxes do not fit."""
    if rng.random() >= probability:
        return image
    height, width = image.shape[:2]
    low, high = (math.log(ratio) for ratio in ERASED_RATIOS)
    for _ in range(TRIES):
        pixels, ratio = height * width * rng.uniform(*ERASED_AREA), math.exp(rng.uniform(low, high))
        h, w = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if h < height and w < width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return _filled(image, top, left, top + h, left + w, fill)
    return image


def _filled(image: np.ndarray, top: int, left: int, bottom: int, right: int, fill: Sequence[int]) -> np.ndarray:
    image = image.copy()
    image[top:bottom, left:right] = fill
    return image


KINDS = {"jitter": jitter, "cutout": cutout, "erase": erase}
