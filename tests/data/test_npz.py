"""Files of arrays as MedMNIST and Keras have them, and everything that can be wrong with one."""

import re
import zipfile

import numpy as np
import pytest

from orc_jax import config as configs
from orc_jax.data import npz, sets
from orc_jax.errors import UserError

IMAGES = np.arange(6 * 5 * 4, dtype=np.uint8).reshape(6, 5, 4)
LABELS = np.array([0, 1, 2, 0, 1, 2], np.uint8)


def config_for(path, **fields):
    config = configs.default()
    config.update({"dataset": "npz", "data_dir": str(path), "batch_size": 4, **fields})
    return config


def load(path, **fields):
    return sets.load(config_for(path, **fields), pytest.fail)


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
        ({"class_names": np.array(["a", "b", "a"])}, {}, "class_names: 'a' comes twice"),
        (
            {"train_labels": LABELS + 1},
            {},
            r"config.train_split='train' of config.data_dir='.*x.npz' \(train_labels\) has labels 1 to 3: classes",
        ),
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


def test_further_splits_have_the_classes_of_training(tmp_path):
    """Of a file without names, too: their own labels tell nothing of it."""
    whole = {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES, "test_labels": LABELS}
    np.savez(tmp_path / "x.npz", **whole, val_images=IMAGES, val_labels=np.maximum(LABELS, 1))
    found = load(tmp_path / "x.npz", eval_splits="test,val")
    ((name, val),) = found.others
    assert name == "val" and set(val.labels) == {1, 2} and found.class_names == ("0", "1", "2")
    np.savez(tmp_path / "x.npz", **whole, val_images=IMAGES, val_labels=[0, 1, 2, 7, 1, 2])
    with pytest.raises(UserError, match=r"config.eval_splits: 'val' of npz has labels 0 to 7, but only 3 classes"):
        load(tmp_path / "x.npz", eval_splits="test,val")


def test_to_evaluate_the_split_alone_need_be_there(tmp_path):
    """Its classes are those of the network, if it knows them, unless the file names its own."""
    test, path = {"test_images": IMAGES, "test_labels": np.maximum(LABELS, 1)}, tmp_path / "x.npz"
    config = config_for(path)

    def names(given=()):
        found = sets.load(config, pytest.fail, trains=False, class_names=given)
        np.testing.assert_array_equal(found.test.labels, test["test_labels"])
        return found.class_names

    np.savez(path, **test)
    assert names(["a", "b", "c"]) == ("a", "b", "c")
    with pytest.raises(UserError, match=r"config.eval_split='test' of npz has labels 1 to 2, but only 2 classes"):
        names(["a", "b"])
    with pytest.raises(
        UserError, match=r"config.eval_split='test' of config.data_dir=.* \(test_labels\) has labels 1 to"
    ):
        names()
    np.savez(path, **test, train_images=IMAGES, train_labels=LABELS + [0, 0, 0, 0, 0, 1])
    assert names() == ("0", "1", "2", "3"), "as many as training has"
    assert names(["a", "b", "c"]) == ("a", "b", "c")
    np.savez(path, **test, class_names=["x", "y", "z"])
    assert names(["a", "b", "c"]) == ("x", "y", "z")


def test_each_split_is_read_once(tmp_path, monkeypatch):
    read, split = [], npz._split

    def counted(file, field, name, path):
        read.append(name)
        return split(file, field, name, path)

    monkeypatch.setattr(npz, "_split", counted)
    splits = ("train", "test", "val")
    np.savez(tmp_path / "x.npz", **{f"x_{name}": IMAGES for name in splits}, **{f"y_{name}": LABELS for name in splits})
    load(tmp_path / "x.npz", eval_splits="test,val,train")
    load(tmp_path / "x.npz", eval_split="train")
    assert read == ["train", "test", "val", "train"]


def test_damaged_files(tmp_path):
    """One message, whatever the reader stumbles over."""
    path = tmp_path / "x.npz"
    whole = {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES, "test_labels": LABELS}
    np.savez_compressed(path, **whole)
    data = bytearray(path.read_bytes())
    start = data.index(b"train_images.npy") + len("train_images.npy")
    damaged, encrypted, other = (bytearray(data) for _ in range(3))
    damaged[start + 25 : start + 60] = bytes(b ^ 0xFF for b in damaged[start + 25 : start + 60])
    for signature, flags, method in ((b"PK\3\4", 6, 8), (b"PK\1\2", 8, 10)):  # of each member, twice
        for at in (match.start() for match in re.finditer(re.escape(signature), data)):
            encrypted[at + flags] |= 1
            other[at + method] = 97
    for content, text in ((damaged, ""), (encrypted, ".*password"), (other, ".*compression")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"config.data_dir=.*is no .npz file of plain arrays: {text}"):
            load(path)
    np.savez(path, **whole)
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, b"no array" if name == "test_images.npy" else content)
    with pytest.raises(UserError, match=r"is no .npz file of plain arrays: test_images is no array"):
        load(path)
