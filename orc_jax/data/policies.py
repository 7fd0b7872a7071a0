"""RandAugment, TrivialAugment and AutoAugment: which operations are drawn, how often, and how strong, as numbers.

The numbers are torchvision's: of RandAugment (Cubuk et al., 2020) and AutoAugment (Cubuk et al., 2019) with 31 and 10
magnitudes, and of TrivialAugmentWide (Müller, Hutter; 2021). Worker processes import this module: no JAX.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# In the order of their numbers. The first has no effect; RandAugment and TrivialAugment have all but the last.
OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "color", "contrast", "sharpness"),
    *("posterize", "solarize", "autocontrast", "equalize", "invert"),
)
SIGNED = frozenset(OPERATIONS[1:10])  # whose magnitude is as often negative
BINS, AUTO_BINS = 31, 10  # magnitudes of an operation, from none to the most

# Pairs of operations, each with its probability and the number of its magnitude of ten. A 0 stands for operations that
# have none, too.
CIFAR = """
invert 0.1 0 contrast 0.2 6, rotate 0.7 2 translate_x 0.3 9, sharpness 0.8 1 sharpness 0.9 3,
shear_y 0.5 8 translate_y 0.7 9, autocontrast 0.5 0 equalize 0.9 0, shear_y 0.2 7 posterize 0.3 7,
color 0.4 3 brightness 0.6 7, sharpness 0.3 9 brightness 0.7 9, equalize 0.6 0 equalize 0.5 0,
contrast 0.6 7 sharpness 0.6 5, color 0.7 7 translate_x 0.5 8, equalize 0.3 0 autocontrast 0.4 0,
translate_y 0.4 3 sharpness 0.2 6, brightness 0.9 6 color 0.2 8, solarize 0.5 2 invert 0.0 0,
equalize 0.2 0 autocontrast 0.6 0, equalize 0.2 0 equalize 0.6 0, color 0.9 9 equalize 0.6 0,
autocontrast 0.8 0 solarize 0.2 8, brightness 0.1 3 color 0.7 0, solarize 0.4 5 autocontrast 0.9 0,
translate_y 0.9 9 translate_y 0.7 9, autocontrast 0.9 0 solarize 0.8 3, equalize 0.8 0 invert 0.1 0,
translate_y 0.7 9 autocontrast 0.9 0
"""
IMAGENET = """
posterize 0.4 8 rotate 0.6 9, solarize 0.6 5 autocontrast 0.6 0, equalize 0.8 0 equalize 0.6 0,
posterize 0.6 7 posterize 0.6 6, equalize 0.4 0 solarize 0.2 4, equalize 0.4 0 rotate 0.8 8,
solarize 0.6 3 equalize 0.6 0, posterize 0.8 5 equalize 1.0 0, rotate 0.2 3 solarize 0.6 8,
equalize 0.6 0 posterize 0.4 6, rotate 0.8 8 color 0.4 0, rotate 0.4 9 equalize 0.6 0,
equalize 0.0 0 equalize 0.8 0, invert 0.6 0 equalize 1.0 0, color 0.6 4 contrast 1.0 8,
rotate 0.8 8 color 1.0 2, color 0.8 8 solarize 0.8 7, sharpness 0.4 7 invert 0.6 0,
shear_x 0.6 5 equalize 1.0 0, color 0.4 0 equalize 0.6 0, equalize 0.4 0 solarize 0.2 4,
solarize 0.6 5 autocontrast 0.6 0, invert 0.6 0 equalize 1.0 0, color 0.6 4 contrast 1.0 8,
equalize 0.8 0 equalize 0.6 0
"""


class Policy(NamedTuple):
    """So many `draws` of a row, each as likely as any other; the operations of a row come one after the other."""

    draws: int
    operations: np.ndarray  # numbers of `OPERATIONS`, int32 [rows, steps]
    probabilities: np.ndarray  # float32 [rows, steps]
    magnitudes: np.ndarray  # float32 [rows, steps]; of a signed operation its size


def magnitudes(operation: str, bins: int, wide: bool, size: tuple[int, int]) -> np.ndarray:
    """Those of an operation, from none to the most: degrees, pixels, shares, bits or values, float `[bins]`.

    Args:
        operation: one of `OPERATIONS`.
        bins: how many.
        wide: TrivialAugment's, which reach further.
        size: height and width of the image, in pixels.
    """
    if operation == "posterize":  # bits that are kept
        return 8 - np.round(np.arange(bins) / ((bins - 1) / (6 if wide else 4)))
    if operation == "solarize":  # the least value that is inverted
        return np.linspace(255.0, 0.0, bins)
    side = size[1] if operation == "translate_x" else size[0]
    most = {"shear": (0.3, 0.99), "translate": (150.0 / 331.0 * side, 32.0), "rotate": (30.0, 135.0)}
    others = (0.9, 0.99) if operation in SIGNED else (0.0, 0.0)
    return np.linspace(0.0, most.get(operation.partition("_")[0], others)[wide], bins)


def _single(draws: int, wide: bool, size: tuple[int, int], numbers: slice) -> Policy:
    """Any operation but inversion, with any of the magnitudes of these `numbers`."""
    found = [magnitudes(name, BINS, wide, size)[numbers] for name in OPERATIONS[:-1]]
    operations = np.repeat(np.arange(len(found)), len(found[0]))[:, None]
    strengths = np.concatenate(found)[:, None]
    return Policy(draws, operations.astype(np.int32), np.ones_like(strengths, np.float32), strengths.astype(np.float32))


def _searched(pairs: str, size: tuple[int, int]) -> Policy:
    """Pairs of operations that AutoAugment's search has found."""
    rows = [pair.split() for pair in pairs.split(",")]
    steps = [[(row[i], float(row[i + 1]), int(row[i + 2])) for i in (0, 3)] for row in rows]
    numbers = [[OPERATIONS.index(name) for name, _, _ in row] for row in steps]
    strengths = [[magnitudes(name, AUTO_BINS, False, size)[number] for name, _, number in row] for row in steps]
    probabilities = [[probability for _, probability, _ in row] for row in steps]
    return Policy(1, np.array(numbers, np.int32), *(np.array(x, np.float32) for x in (probabilities, strengths)))


# By the name of `config.auto_augment`: (size of the image, RandAugment's operations and magnitude) -> policy.
POLICIES: dict[str, Callable[[tuple[int, int], int, int], Policy]] = {
    "rand": lambda size, count, number: _single(count, False, size, slice(number, number + 1)),
    "trivial": lambda size, count, number: _single(1, True, size, slice(None)),
    "auto_cifar": lambda size, count, number: _searched(CIFAR, size),
    "auto_imagenet": lambda size, count, number: _searched(IMAGENET, size),
}
