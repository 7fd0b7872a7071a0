"""Folders of images: their order, and everything that can be wrong with a file or a folder."""

import os
import pickle
import re

import numpy as np
import pytest

from orc_jax.data import checks, decode, folder
from orc_jax.errors import UserError
from tests.data.pictures import encode, picture

JPEG, PNG = encode(picture(200, 150)), encode(picture(60, 40), "PNG")
BROKEN = {  # data of a file, and why it cannot be used
    "empty.jpg": (b"", "empty file"),
    "page.jpg": (b"<html>not found</html>" * 9, "not an image of a known format"),
    "cut.jpg": (JPEG[:-300], "image file is truncated"),
    "header.jpg": (JPEG[:150], "."),
    "zeros.jpg": (JPEG[: len(JPEG) // 2] + bytes(9999), "zeros instead of its end"),
    "cut.png": (PNG[: len(PNG) // 2], "image file is truncated"),
    "cut.webp": (encode(picture(60, 40), "WEBP")[:-100], "."),
    "cut.bmp": (encode(picture(60, 40), "BMP")[:-100], "image file is truncated"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_defects(name, tmp_path):
    data, reason = BROKEN[name]
    (tmp_path / name).write_bytes(data)
    assert re.match(reason, checks.look(str(tmp_path / name)).defect)
    if name != "zeros.jpg":  # which decodes
        with pytest.raises(ValueError, match=r"."):
            decode.resize_and_center_crop(data, 32, 1.0)


@pytest.mark.parametrize("data", [JPEG + b"of a camera" * 999, JPEG + bytes(9999), PNG, encode(picture(9, 9), "GIF")])
def test_whole_files_have_no_defect(data, tmp_path):
    (tmp_path / "x").write_bytes(data)
    assert checks.look(str(tmp_path / "x")).defect is None


def make_tree(root, files):
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return str(root)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """21 training images of three classes, one of them in a folder of its own, and 7 for evaluation of two."""
    files = {f"train/{'cab'[i % 3]}/{i:02d}.jpg": encode(picture(60 + i, 50, i)) for i in range(20)}
    files |= {"train/b/more/x.png": PNG, "train/.hidden": b"", "train/a/.hidden": b"", "notes.txt": b""}
    files |= {f"val/{'ca'[i % 2]}/{i}.jpg": encode(picture(50, 60 + i, i)) for i in range(7)}
    return make_tree(tmp_path_factory.mktemp("tree"), files)


def load(root, skip_corrupt=False, warn=pytest.fail, train="train", val="val", class_names=(), **options):
    options = folder.Options(skip_corrupt=skip_corrupt, **options)
    return folder.load(root, train, val, options, warn, class_names)


def test_a_folder(tree):
    names, train, val, largest = load(tree)
    assert names == ("a", "b", "c") and len(train) == 21 and len(val) == 7 and largest == 79
    assert train.labels.dtype == np.int32 and list(train.labels) == sorted(train.labels)
    assert [os.path.relpath(val.name(i), tree) for i in range(3)] == ["val/a/1.jpg", "val/a/3.jpg", "val/a/5.jpg"]
    assert train.name(13).endswith("train/b/more/x.png") and train.read(13) == (PNG, 1)
    assert list(val.labels) == [0, 0, 0, 2, 2, 2, 2]
    again = pickle.loads(pickle.dumps(train))
    assert again.read(5) == train.read(5) and len(pickle.dumps(train)) < 2000


@pytest.mark.parametrize(
    ("files", "fields", "text"),
    [
        ({}, {"root": ""}, "config.data_dir='': must be the folder that holds <split>/<class>"),
        ({}, {"root": "{}/none"}, "config.data_dir='.*/none': there is no such directory"),
        ({}, {"root": "{}/train/a/0.jpg"}, "config.data_dir='.*0.jpg': is not a directory"),
        ({}, {"train": "trian"}, "config.train_split='trian': .* no such folder; it has train, val"),
        ({}, {"val": "test"}, "config.eval_split='test': .* no such folder; it has train, val"),
        ({"val/d/0.jpg": JPEG}, {}, "config.eval_split='val' .* 1 class that config.train_split='train' lacks: d"),
        ({"train/d/.x": JPEG}, {}, "config.train_split='train' .* 1 empty class folder: d"),
        ({"val/0.jpg": JPEG}, {}, "config.eval_split='val': 1 file outside of the class folders of .*val: 0.jpg"),
        ({"test/d/.x": b""}, {"val": "test"}, "config.eval_split='test': .*test has no image"),
    ],
)
def test_wrong_folders(files, fields, text, tmp_path):
    root = make_tree(tmp_path, {"train/a/0.jpg": JPEG, "val/a/0.jpg": JPEG} | files)
    fields = {"root": "{}"} | fields
    with pytest.raises(UserError, match=text):
        load(**fields | {"root": fields["root"].format(root)})


@pytest.mark.parametrize("alone", [100, 0])
def test_broken_files_are_named_before_training(alone, tmp_path, monkeypatch):
    monkeypatch.setitem(checks.ALONE, "quick", alone)
    files = {f"train/a/{name}": data for name, (data, _) in BROKEN.items()}
    root = make_tree(tmp_path, files | {"train/a/fine.jpg": JPEG, "val/a/fine.jpg": JPEG})
    text = r"config.train_split='train': 8 of 9 files .*a/cut.bmp \(image.* and 3 more. config.stream.skip_corrupt=True"
    with pytest.raises(UserError, match=text):
        load(root)
    warnings = []
    train = load(root, True, warnings.append).train
    assert [train.name(i) for i in range(len(train))] == [f"{root}/train/a/fine.jpg"]
    assert len(warnings) == 1 and re.search("8 of 9 files cannot be used.*left out", warnings[0])
    (tmp_path / "train/a/fine.jpg").unlink()
    with pytest.raises(UserError, match=r"8 of 8 files cannot be used.*No image is left"):
        load(root, True)


@pytest.mark.parametrize("skip_corrupt", [False, True])
def test_a_class_to_train_on_keeps_an_image(skip_corrupt, tmp_path):
    """One without any would be learnt by no network; for evaluation it may be empty."""
    root = make_tree(tmp_path, {f"{split}/{name}/0.png": PNG for split in ("train", "val") for name in "ab"})
    make_tree(tmp_path, {"val/b/0.png": b""})
    assert load(root, True, str).class_names == ("a", "b")
    make_tree(tmp_path, {"train/b/0.png": b""})
    text = (
        r"config.train_split='train': 1 of 2 files cannot be used: \S+ \(empty file\). No image is left of 1 class: b$"
    )
    with pytest.raises(UserError, match=text):
        load(root, skip_corrupt)


@pytest.mark.parametrize("alone", [100, 0])
def test_damage_within_is_found_by_the_full_check(alone, tmp_path, monkeypatch):
    monkeypatch.setitem(checks.ALONE, "full", alone)
    broken = bytearray(encode(picture(60, 40), "PNG"))
    broken[len(broken) // 2] ^= 1
    root = make_tree(tmp_path, {"train/a/0.png": PNG, "train/a/1.png": bytes(broken), "val/a/0.jpg": JPEG})
    assert len(load(root).train) == 2, "its beginning and its end are whole"
    with pytest.raises(UserError, match=r"1 of 2 files cannot be used: .*train/a/1.png"):
        load(root, check="full")
    lines = []
    assert len(load(root, True, lines.append, check="full").train) == 1 and "1.png" in lines[0]


def test_classes_called_by_numbers(tmp_path):
    """In the order of the numbers; those of a trained network in its order, if they are the same."""
    names = ("1", "2", "10")
    root = make_tree(tmp_path, {f"{split}/{name}/0.png": PNG for split in ("train", "val") for name in names})
    assert load(root).class_names == names
    assert load(root, class_names=("1", "10", "2")).class_names == ("1", "10", "2")
    assert load(root, class_names=("1", "10", "3")).class_names == names
    assert list(load(root, class_names=("10", "1", "2")).train.labels) == [1, 0, 2]
