"""Sets in one file of NumPy arrays: MedMNIST's `train_images`, `train_labels` ..., or Keras's `x_train`, `y_train`."""

import contextlib
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from orc_jax.data import arrays
from orc_jax.data.types import Images
from orc_jax.errors import UserError

KEYS = (("{}_images", "{}_labels"), ("x_{}", "y_{}"), ("X_{}", "y_{}"))
NAMES = "class_names"


def load(
    path: str, wanted: Mapping[str, str], train_split: str, class_names: Sequence[str] = ()
) -> tuple[Sequence[str], dict[str, Images]]:
    """The names of the classes, and by their names the splits that are wanted, with the fields that ask for them.

    The classes are named by an array of strings, `class_names`. In a file without it they are those that are given, or
    where the training split is wanted, or none are given, the numbers up to the greatest label: of the training split,
    or if it is not there of the split that is wanted. Grey images may come as `[n, height, width]`, labels as `[n, 1]`.

    Raises:
        UserError: if there is no such file or split, or it does not hold images with one label each.
    """
    if not os.path.isfile(path):
        raise UserError(f"config.data_dir={path!r}: must be a file of arrays, such as pathmnist.npz, and there is none")
    if not zipfile.is_zipfile(path):
        raise UserError(f"config.data_dir={path!r}: is no .npz file, as numpy.savez writes it, or not the whole of one")
    with contextlib.ExitStack() as stack:
        with _reading(path):
            opened = stack.enter_context(open(path, "rb"))
            file = stack.enter_context(np.load(opened, allow_pickle=False))
        known = NAMES in file.files or (class_names and "train_split" not in wanted.values())
        # Labels alone tell how many classes there are, and those of training tell it best.
        also = {} if known or not _keys(file, train_split) else {train_split: "train_split"}
        fields = {**also, **wanted}
        found = {split: _split(file, field, split, path) for split, field in fields.items()}
        if NAMES in file.files:
            class_names = arrays.names(f"{path}: {NAMES}", _array(file, NAMES, path))
        elif not known:
            split, field = next(iter(fields.items()))
            what = f"config.{field}={split!r} of config.data_dir={path!r} ({_keys(file, split)[-1]})"
            class_names = arrays.class_names(what, found[split].labels)
    shapes = [list(split.images.shape[1:]) for split in found.values()]
    if any(shape != shapes[0] for shape in shapes):
        raise UserError(f"config.data_dir={path!r}: training and evaluation images differ in shape: {shapes}")
    return class_names, found


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # anything can be wrong with a file
        raise UserError(f"config.data_dir={path!r}: is no .npz file of plain arrays: {error}") from error


def _array(file: Any, key: str, path: str) -> np.ndarray:
    with _reading(path):
        found = file[key]
        if not isinstance(found, np.ndarray):  # NumPy gives the bytes of what is none
            raise TypeError(f"{key} is no array")
    return found


def _keys(file: Any, split: str) -> tuple[str, ...]:
    """What the images and the labels of a split are called; empty if it is not there."""
    named = (tuple(key.format(split) for key in keys) for keys in KEYS)
    return next((keys for keys in named if set(keys) <= set(file.files)), ())


def _split(file: Any, field: str, split: str, path: str) -> Images:
    keys = _keys(file, split)
    if not keys:
        wanted = " or ".join(f"{images.format(split)} and {labels.format(split)}" for images, labels in KEYS[:2])
        raise UserError(
            f"config.{field}={split!r}: {path} has no {wanted}; it has {', '.join(file.files) or 'nothing'}"
        )
    images, labels = (_array(file, key, path) for key in keys)
    grey = images.ndim == 3 and images.dtype == np.uint8
    return arrays.checked(f"{path}: {split}", images[..., None] if grey else images, labels)
