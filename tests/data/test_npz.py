"""Files of arrays as MedMNIST and Keras have them, and everything that can be wrong with one."""

import numpy as np
import pytest

from orc_jax import config as configs
from orc_jax.data import sets
from orc_jax.errors import UserError

IMAGES = np.arange(6 * 5 * 4, dtype=np.uint8).reshape(6, 5, 4)
LABELS = np.array([0, 1, 2, 0, 1, 2], np.uint8)


def load(path, **fields):
    config = configs.default()
    config.update({"dataset": "npz", "data_dir": str(path), "batch_size": 4, **fields})
    return sets.load(config, pytest.fail)


def test_medmnist(tmp_path):
    """Grey without an axis of channels, labels as a column; any of the splits."""
    arrays = {f"{split}_images": IMAGES for split in ("train", "val", "test")}
    labels = {"train": LABELS, "val": LABELS[::-1], "test": LABELS * 0}
    np.savez(tmp_path / "x.npz", **arrays, **{f"{split}_labels": of[:, None] for split, of in labels.items()})
    found = load(tmp_path / "x.npz", eval_split="val")
    assert found.class_names == ("0", "1", "2") and found.image_shape == (5, 4, 1) and not found.is_streamed
    np.testing.assert_array_equal(found.train.images[..., 0], IMAGES)
    np.testing.assert_array_equal(found.test.labels, LABELS[::-1])
    assert found.train.labels.dtype == np.int32
    assert set(load(tmp_path / "x.npz").test.labels) == {0}


def test_keras_in_colour_with_names(tmp_path):
    colour = np.stack([IMAGES] * 3, -1)
    np.savez(tmp_path / "x.npz", x_train=colour, y_train=LABELS, x_test=colour, y_test=LABELS, class_names=list("abcd"))
    found = load(tmp_path / "x.npz")
    assert found.class_names == ("a", "b", "c", "d") and found.image_shape == (5, 4, 3)


@pytest.mark.parametrize(
    ("arrays", "fields", "text"),
    [
        ({}, {"train_split": "trian"}, "config.train_split='trian': .*has no trian_images and trian_labels or x_trian"),
        ({"train_images": IMAGES / 255}, {}, "train images of float64"),
        ({"train_labels": np.eye(6, dtype=int)}, {}, r"train labels of int64 \[6, 6\].* one-hot"),
        ({"test_labels": LABELS + 1}, {}, "config.eval_split='test' of npz has labels 1 to 3, but only 3 classes"),
        ({"test_labels": np.full(6, -1)}, {}, "config.eval_split='test' of npz has no labels"),
        ({"test_images": IMAGES[:, :4]}, {}, r"differ in shape: \[\[5, 4, 1\], \[4, 4, 1\]\]"),
        (
            {"train_labels": LABELS * 0, "test_labels": LABELS * 0},
            {},
            "'npz': has 1 class and so nothing to tell apart",
        ),
        ({"class_names": np.array("abc")}, {}, r"class_names of <U3 \[\]: must be one name for each class"),
        ({"class_names": np.array([["a", "b", "c"]])}, {}, r"class_names of <U1 \[1, 3\]: must be one name"),
        ({"train_images": np.array([{}] * 6)}, {}, "no .npz file of plain arrays: Object arrays"),
    ],
)
def test_files_that_do_not_fit(arrays, fields, text, tmp_path):
    whole = {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES, "test_labels": LABELS}
    np.savez(tmp_path / "x.npz", **whole | arrays)
    with pytest.raises(UserError, match=text):
        load(tmp_path / "x.npz", **fields)


def test_what_is_no_such_file(tmp_path):
    np.save(tmp_path / "one.npy", IMAGES)
    (tmp_path / "page.npz").write_text("<html>")
    (tmp_path / "cut.npz").write_bytes(b"PK\3\4" + bytes(99))
    for name, text in (
        ("none.npz", "there is none"),
        ("one.npy", "is no .npz"),
        ("page.npz", "is no .npz"),
        ("cut.npz", "is no .npz"),
    ):
        with pytest.raises(UserError, match=text):
            load(tmp_path / name)
