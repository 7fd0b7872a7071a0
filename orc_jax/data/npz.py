"""Sets in one file of NumPy arrays: MedMNIST's `train_images`, `train_labels` ..., or Keras's `x_train`, `y_train`."""

import os
import zipfile
from typing import Any

import numpy as np

from orc_jax.data import arrays
from orc_jax.data.types import Images
from orc_jax.errors import UserError

KEYS = (("{}_images", "{}_labels"), ("x_{}", "y_{}"), ("X_{}", "y_{}"))
NAMES = "class_names"


def load(path: str, train_split: str, eval_split: str) -> tuple[tuple[str, ...], Images, Images]:
    """The names of the classes, and the two splits in memory.

    The classes are named by an array of strings, `class_names`, or else by the numbers up to the greatest label of the
    training split. Grey images may come as `[n, height, width]`, labels as `[n, 1]`.

    Raises:
        UserError: if there is no such file or split, or it does not hold images with one label each.
    """
    if not os.path.isfile(path):
        raise UserError(f"config.data_dir={path!r}: must be a file of arrays, such as pathmnist.npz, and there is none")
    if not zipfile.is_zipfile(path):
        raise UserError(f"config.data_dir={path!r}: is no .npz file, as numpy.savez writes it, or not the whole of one")
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            train, test = (
                _split(file, field, split, path)
                for field, split in (("train_split", train_split), ("eval_split", eval_split))
            )
            names = _names(file, train.labels, train_split, path)
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"config.data_dir={path!r}: is no .npz file of plain arrays: {error}") from error
    if train.images.shape[1:] != test.images.shape[1:]:
        shapes = [list(split.images.shape[1:]) for split in (train, test)]
        raise UserError(f"config.data_dir={path!r}: training and evaluation images differ in shape: {shapes}")
    return names, train, test


def _names(file: Any, labels: np.ndarray, train_split: str, path: str) -> tuple[str, ...]:
    if NAMES in file.files:
        return arrays.names(f"{path}: {NAMES}", file[NAMES])
    return arrays.class_names(f"config.train_split={train_split!r} of config.data_dir={path!r}", labels)


def _split(file: Any, field: str, split: str, path: str) -> Images:
    for keys in KEYS:
        images, labels = (key.format(split) for key in keys)
        if images in file.files and labels in file.files:
            found = file[images]
            grey = found.ndim == 3 and found.dtype == np.uint8
            return arrays.checked(f"{path}: {split}", found[..., None] if grey else found, file[labels])
    wanted = " or ".join(f"{images.format(split)} and {labels.format(split)}" for images, labels in KEYS[:2])
    raise UserError(f"config.{field}={split!r}: {path} has no {wanted}; it has {', '.join(file.files) or 'nothing'}")
