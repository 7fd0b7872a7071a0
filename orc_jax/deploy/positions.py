"""Position embeddings of transformers, for images of another size than those that they have seen."""

import math
from collections.abc import Mapping

import jax
import numpy as np

NAME, PATCHES = (
    "pos_embed",
    "patch_embed.proj.kernel",
)  # follow the size and the patch


def patch_of(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The side of a network's patches, by the shapes of its parameters; 0 for one without position embeddings."""
    return shapes[PATCHES][0] if NAME in shapes else 0


def grid(shapes: Mapping[str, tuple[int, ...]], image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Rows and columns of patches."""
    return image_shape[0] // patch_of(shapes), image_shape[1] // patch_of(shapes)


def square(embeddings: np.ndarray) -> int | None:
    """The side of the square of patches that embeddings `[1, 1 + patches, features]` are for; None if it is none."""
    if embeddings.ndim != 3 or embeddings.shape[1] < 2:
        return None
    side = math.isqrt(embeddings.shape[1] - 1)
    return side if side * side == embeddings.shape[1] - 1 else None


def sides(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
    """The sides of the images that the embeddings in a file are for, if a network of such `shapes` has any."""
    patch = patch_of(shapes)
    there = square(arrays[NAME]) if patch and NAME in arrays else None
    return None if there is None else (there * patch, there * patch)


def fits_resized(name: str, embeddings: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is position embeddings that can be resized to `shape`, and has to be."""
    if name != NAME or embeddings.shape == shape or square(embeddings) is None:
        return False
    return embeddings.shape[0] == shape[0] and embeddings.shape[2] == shape[2]


def resized(embeddings: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Embeddings of a class token and a square of patches, float32 `[1, 1 + patches, features]`, for another grid.

    Those of the patches are interpolated as an image is, by cubic functions, and with anti-aliasing where there are
    fewer: as timm does it. That of the class token stays.
    """
    side, features = square(embeddings), embeddings.shape[2]
    assert side is not None
    image = embeddings[0, 1:].reshape(side, side, features)
    changed = np.asarray(jax.image.resize(image, (*grid, features), "cubic", antialias=True))
    return np.concatenate([embeddings[:, :1], changed.reshape(1, -1, features)], axis=1)
