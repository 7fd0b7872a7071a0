"""Arrays as strangers have them: what is taken, what is refused, and the hint."""

import re

import numpy as np
import pytest

from orc_jax.data import arrays, sets
from orc_jax.errors import UserError

IMAGES, LABELS = np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, int)


def zeros(*shape):
    return np.zeros(shape, np.uint8)


@pytest.mark.parametrize(
    ("train_set", "text"),
    [
        ((IMAGES / 255, LABELS), r"train images of float64 \[4, 8, 8, 1\]: must be uint8 .* \(images \* 255\)"),
        (
            (IMAGES[..., 0], LABELS),
            r"train images of uint8 \[4, 8, 8\]: must be uint8 \[n, height.*images\[..., None\]",
        ),
        ((zeros(4, 64), LABELS), r"train images of uint8 \[4, 64\].*images.reshape"),
        ((IMAGES[:0], LABELS[:0]), r"train images of uint8 \[0, 8, 8, 1\]"),
        ((zeros(4, 0, 8, 3), LABELS), r"train images of uint8 \[4, 0, 8, 3\]"),
        ((zeros(4, 3, 28, 28), LABELS), r"28 is no number of channels: .*images.transpose\(0, 2, 3, 1\)"),
        ((zeros(4, 1, 8, 9), LABELS), "9 is no number of channels"),
        ((zeros(4, 13, 64, 64), LABELS), "64 is no number of channels"),
        ((zeros(4, 28, 28, 28), LABELS), "these look like volumes"),
        ((zeros(4, 1, 1, 784), LABELS), "these look like flattened images"),
        (
            (zeros(4, 8, 8, 3).astype(int), LABELS),
            "of values from 0 to 255: images.round().astype".replace("()", r"\(\)"),
        ),
        ((zeros(32, 32, 3, 40), np.zeros(40, int)), r"labels of int64 \[40\]: must be 32 .*transpose\(3, 0, 1, 2\)"),
        ((IMAGES, LABELS[:3]), r"train labels of int64 \[3\]: must be 4 integers"),
        ((IMAGES, np.eye(4, dtype=int)), r"train labels of int64 \[4, 4\]: .*labels.argmax\(1\)"),
        ((IMAGES, LABELS / 2), r"train labels of float64.*labels.astype\('int64'\)"),
        ((IMAGES, LABELS + 0.5), "train labels of float64 .*: must be 4 integers$"),
        ((IMAGES, np.array(["cat"] * 4)), r"must be 4 integers; of names: class_names, labels = np.unique"),
        ((IMAGES, LABELS + 2), r"x \(train\) has labels 2 to 2, but only 2 classes: accepted are 0 to 1"),
        ((IMAGES, LABELS + [0, 0, -1, 0]), "labels -1 to 0, .* example 2 has -1; a negative one stands for a hidden"),
        ((IMAGES, LABELS - 1), r"x \(train\) has no labels: all are -1, as of a test split whose labels are hidden"),
        ((IMAGES, LABELS + 2**32), "has labels 4294967296 to 4294967296"),
        ((IMAGES, LABELS.astype(np.uint64) + 2**63), "has no labels"),
        ((IMAGES[:, :4], LABELS), r"differ in shape: \[\[4, 8, 1\], \[8, 8, 1\]\]"),
    ],
)
def test_arrays_that_do_not_fit(train_set, text):
    with pytest.raises(UserError, match=text):
        sets.from_arrays("x", train_set, (IMAGES, LABELS), ["a", "b"])


@pytest.mark.parametrize(
    ("train_set", "text"),
    [
        (
            ([np.zeros((n, 8, 1), np.uint8) for n in (8, 9)], [0, 1]),
            "train images, a list, are not all of one shape: must",
        ),
        ((IMAGES, [[0], [0, 1], [1], [0]]), "train labels, a list, are not all of one shape: must be 4 integers"),
        (list(zip(IMAGES, LABELS, strict=True)), r"train set, a list of 4: must be \(images, labels\), two arrays"),
        (list(zip(IMAGES, LABELS, strict=True))[:2], "train images, a tuple, are not all of one shape"),
        (IMAGES, r"train set, a ndarray of 4: must be \(images, labels\), two arrays"),
        (7, r"train set, a int: must be \(images, labels\), two arrays"),
    ],
)
def test_what_is_no_pair_of_arrays(train_set, text):
    with pytest.raises(UserError, match=text):
        sets.from_arrays("x", train_set, (IMAGES, LABELS), ["a", "b"])


def test_the_hint_for_pairs_makes_the_same_arrays():
    pairs = list(zip(np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1), range(4), strict=True))
    with pytest.raises(UserError) as refused:
        arrays.pair("train", pairs)
    images, labels = eval(str(refused.value).rpartition("label), ")[2], {"np": np, "pairs": pairs})
    found = arrays.checked("train", images, labels)
    assert found.images.reshape(-1).tolist() == list(range(256)) and found.labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (np.array(["cat", "dog"]), ("cat", "dog")),
        ([3, 7], ("3", "7")),
        (np.array([b"caf\xc3\xa9", b"b"]), ("café", "b")),
        (None, ("0",)),
    ],
)
def test_names_of_classes(given, names):
    """Text, whatever they come as."""
    found = sets.from_arrays("x", (IMAGES, LABELS), (IMAGES, LABELS), given).class_names
    assert found == names and all(type(name) is str for name in found)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("cat", r"class_names of <U3 \[\]: must be one name for each class"),
        ({"cat", "dog"}, "class_names of object .*: must be one name for each class"),
        ([], r"class_names of float64 \[0\]: must be one name for each class"),
        ([["a"], ["b", "c"]], "class_names, a list, are not all of one shape: must be one name for each class"),
        (["cat", "dog", "cat"], "class_names: 'cat' comes twice"),
        ([1, "1"], "class_names: '1' comes twice"),
    ],
)
def test_what_are_no_names_of_classes(given, text):
    with pytest.raises(UserError, match=text):
        sets.from_arrays("x", (IMAGES, LABELS), (IMAGES, LABELS), given)


@pytest.mark.parametrize(
    "shape", [(3, 3, 3), (2, 3, 3), (1, 1, 3), (8, 8, 13), (28, 28, 1), (224, 160, 3), (4, 4, 4), (64, 64, 200)]
)
def test_arrays_that_fit(shape):
    for labels in (LABELS, LABELS[:, None], LABELS.astype(np.uint8)):
        found = arrays.checked("train", zeros(4, *shape), labels)
        assert found.images.shape == (4, *shape) and found.labels.shape == (4,)


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        *((0, 1, np.float32), (-1, 1, np.float64), (0, 255, np.float32), (0, 255, np.int64), (0, 4095, np.uint16)),
        *((0, 1023, np.int32), (0, 65535, np.uint16), (0, 1, bool)),
    ],
)
def test_the_hint_for_other_numbers_makes_the_same_image(low, high, dtype):
    """Black stays black, white stays white, and nothing of what is between begins again at 0."""
    grey = np.linspace(0, 1, 64)
    given = np.round(grey) if dtype is bool else low + grey * (high - low)
    images = given.astype(dtype).reshape(1, 8, 8, 1)
    with pytest.raises(UserError) as refused:
        arrays.checked("train", images, LABELS[:1])
    found = re.search(r": ([^:;]*images[^:;]*\.astype\('uint8'\)( \* 255)?)", str(refused.value))
    made = eval(found[1], {"images": images})
    assert (
        made.dtype == np.uint8
        and np.abs(made.reshape(-1) - (np.round(grey) if dtype is bool else grey) * 255).max() <= 1
    )


@pytest.mark.parametrize(
    ("value", "text"), [(np.nan, "not finite"), (-2.1, "values are from -2.1 to 0, as of normalised images")]
)
def test_numbers_that_no_hint_makes_an_image_of(value, text):
    with pytest.raises(UserError, match=text):
        arrays.checked("train", np.where(np.eye(8) > 0, value, 0).reshape(1, 8, 8, 1), LABELS[:1])


def test_names_of_classes_that_have_none():
    assert arrays.class_names("x", np.array([0, 2, 1])) == ("0", "1", "2")
    assert len(arrays.class_names("x", np.array([999, 0]))) == 1000
    with pytest.raises(UserError, match=r"^x has labels 1 to 2: classes are numbered from 0, and no example has 0"):
        arrays.class_names("x", np.array([1, 2]))
    with pytest.raises(UserError, match=r"^x has labels up to 1000000000 of 2 examples"):
        arrays.class_names("x", np.array([0, 10**9]))
