"""Images and labels as arrays of strangers: taken if they can only mean one thing, else refused with a hint."""

from collections import Counter
from typing import Any

import numpy as np

from orc_jax.data.types import Images
from orc_jax.errors import UserError

LAYOUT = "[n, height, width, channels]"
COLOURS = 4  # channels that a photo has at most
UNNAMED = 1000  # classes that labels alone may stand for, if there are fewer examples


def pair(split: str, given: Any) -> tuple[Any, Any]:
    """The images and the labels of a split that is given as these two.

    Raises:
        UserError: if it is something else, such as a list of examples.
    """
    try:
        images, labels = given
    except (TypeError, ValueError):
        length = f" of {len(given)}" if hasattr(given, "__len__") else ""
        raise UserError(
            f"{split} set, a {type(given).__name__}{length}: must be (images, labels), two arrays; of pairs (image, "
            "label), tuple(map(np.stack, zip(*pairs)))"
        ) from None
    return images, labels


def checked(split: str, images: Any, labels: Any) -> Images:
    """Images and labels of a split, labels as int64 `[n]`; they may come as `[n, 1]`.

    Raises:
        UserError: if they are not uint8 `[n, height, width, channels]` and n integers, or seem to lie in another order.
    """
    images = _array(
        f"{split} images", images, f"uint8 {LAYOUT}; images of many sizes are read by config.dataset=folder"
    )
    labels = _array(f"{split} labels", labels, f"{len(images) if images.ndim else 'n'} integers")
    told = f"{split} images of {images.dtype} {list(images.shape)}: must be uint8 {LAYOUT}"
    if images.ndim != 4 or images.dtype != np.uint8 or not images.size:
        raise UserError(told + _hint(images))
    if order := _other_order(images.shape[1:]):
        raise UserError(f"{told}; {order}")
    if labels.shape == (len(images), 1):
        labels = labels[:, 0]
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{split} labels of {labels.dtype} {list(labels.shape)}: must be {len(images)} integers"
            f"{_hint_of_labels(images, labels)}"
        )
    return Images(images, labels.astype(np.int64))  # int32 could make a class of what is none


def _array(what: str, given: Any, accepted: str) -> np.ndarray:
    try:
        return np.asarray(given)
    except ValueError as error:  # NumPy's of a list whose parts differ in shape
        raise UserError(f"{what}, a {type(given).__name__}, are not all of one shape: must be {accepted}") from error


def _hint(images: np.ndarray) -> str:
    """What a person may have meant by images that cannot be taken."""
    if images.ndim == 3 and images.dtype == np.uint8:
        return "; of grey images [n, height, width]: images[..., None]"
    if images.ndim == 2:
        return "; of flattened ones: images.reshape(n, height, width, channels)"
    if images.dtype == bool:
        return "; of black and white: images.astype('uint8') * 255"
    numbers = np.issubdtype(images.dtype, np.floating) or np.issubdtype(images.dtype, np.integer)
    return _hint_of_values(images) if numbers and images.size and images.dtype != np.uint8 else ""


def _hint_of_values(images: np.ndarray) -> str:
    """What makes bytes of numbers, by the values that there are: those that do not fit would begin again at 0."""
    low, high = float(images.min()), float(images.max())
    told = f"; the values are from {low:g} to {high:g}"
    if not np.isfinite((low, high)).all():
        return f"{told}: what is not finite has to be found first"
    if low >= 0 and high > 255:
        white = 65535 if high > 4095 else 4095 if high > 1023 else 1023
        return f"{told}: (images * (255 / {white})).round().astype('uint8'), if {white} is white"
    if low >= 0 and (high > 1 or np.issubdtype(images.dtype, np.integer)):
        return "; of values from 0 to 255: images.round().astype('uint8')"
    if low >= 0:
        return "; of values in [0, 1]: (images * 255).round().astype('uint8')"
    if low >= -1 and high <= 1:
        return "; of values in [-1, 1]: ((images + 1) * 127.5).round().astype('uint8')"
    return f"{told}, as of normalised images: undo that, so that they are from 0 to 255"


def _other_order(shape: tuple[int, ...]) -> str:
    """Why `[height, width, channels]` of this shape are most likely something else; empty if they are not."""
    height, width, channels = shape
    if channels > COLOURS and height < width and height < channels:
        return f"{channels} is no number of channels: of [n, channels, height, width], images.transpose(0, 2, 3, 1)"
    if channels > COLOURS and height == width == 1:
        return "these look like flattened images: images.reshape(n, height, width, channels)"
    if channels > COLOURS and channels == height == width:
        return "these look like volumes, not like images"
    return ""


def _hint_of_labels(images: np.ndarray, labels: np.ndarray) -> str:
    if labels.shape == images.shape[-1:]:
        return "; of images [height, width, channels, n]: images.transpose(3, 0, 1, 2)"
    if labels.ndim == 2 and len(labels) == len(images):
        return "; of one-hot labels: labels.argmax(1). Several labels for an image cannot be learnt here"
    if labels.shape == images.shape[:1] and labels.dtype.kind in "SU":
        return "; of names: class_names, labels = np.unique(labels, return_inverse=True)"
    if labels.shape == images.shape[:1] and labels.dtype.kind in "fb" and (labels == np.floor(labels)).all():
        return "; of whole numbers: labels.astype('int64')"
    return ""


def names(what: str, given: Any) -> tuple[str, ...]:
    """Names of classes as text, of which bytes are UTF-8; `what` they are of, for messages.

    Raises:
        UserError: if they are not several names, or one comes twice.
    """
    array = _array(what, given, "one name for each class")
    if array.ndim != 1 or not array.size:
        raise UserError(
            f"{what} of {array.dtype} {list(array.shape)}: must be one name for each class, such as ['cat', 'dog']"
        )
    found = tuple(name.decode(errors="backslashreplace") if isinstance(name, bytes) else str(name) for name in given)
    if twice := [name for name, count in Counter(found).items() if count > 1]:
        raise UserError(f"{what}: {twice[0]!r} comes twice, and must be the name of one class")
    return found


def class_names(what: str, labels: np.ndarray) -> tuple[str, ...]:
    """Names for the classes of labels that have none: their numbers; `what` they are the labels of, for messages.

    Raises:
        UserError: if a label is so large that it cannot be the number of a class, or they are numbered from 1.
    """
    if labels.size and labels.min() > 0:
        raise UserError(
            f"{what} has labels {labels.min()} to {labels.max()}: classes are numbered from 0, and no example has 0; "
            "accepted are labels - 1, or class_names that name all classes"
        )
    count = int(labels.max(initial=0)) + 1
    if count > max(UNNAMED, len(labels)):
        raise UserError(f"{what} has labels up to {count - 1} of {len(labels)} examples: classes are numbered from 0")
    return tuple(str(label) for label in range(count))


def check_labels(what: str, labels: np.ndarray, num_classes: int) -> None:
    """Checks that every label is the number of a class.

    Raises:
        UserError: naming `what`, the labels there are, and the first that is none.
    """
    wrong = (labels < 0) | (labels >= num_classes)
    if not wrong.any():
        return
    if (labels < 0).all():
        raise UserError(f"{what} has no labels: all are {labels[0]}, as of a test split whose labels are hidden")
    hidden = "; a negative one stands for a hidden label" if labels.min() < 0 else ""
    raise UserError(
        f"{what} has labels {labels.min()} to {labels.max()}, but only {num_classes} classes: accepted are 0 to "
        f"{num_classes - 1}, and example {int(wrong.argmax())} has {labels[wrong.argmax()]}{hidden}"
    )
