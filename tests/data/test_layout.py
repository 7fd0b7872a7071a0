"""Folders as people have them: Tiny-ImageNet and ImageNet as unpacked, files of labels, what systems leave behind."""

import os
import re
import unicodedata

import numpy as np
import pytest
from scipy.io import savemat

from orc_jax import config as configs
from orc_jax.data import layout, sets
from orc_jax.errors import UserError
from tests.data.pictures import encode, picture
from tests.data.test_folder import load, make_tree

JPEG = encode(picture(20, 20))


def tree(root, *paths):
    return make_tree(root, {path: JPEG for path in paths})


def labels(found):
    return {
        found.test.name(i).rpartition("/")[2]: found.class_names[found.test.labels[i]] for i in range(len(found.test))
    }


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train/n1/again", "."),
        ("train/n1/deep/again", "../.."),
        ("train/n3", ".."),
        ("train/n1/way", "../../aside"),  # where another link leads back
    ],
)
def test_links_without_end(tmp_path, link, target):
    root = tree(tmp_path, *TRAIN, "train/n1/deep/c.jpg", "val/n1/d.jpg", "aside/e.jpg")
    (tmp_path / "aside/back").symlink_to("../train/n1")
    (tmp_path / link).symlink_to(target)
    with pytest.raises(UserError, match=r"/train/n\S+: a link that leads back to a folder which it is in"):
        load(root)


def test_links_to_elsewhere_and_to_themselves(tmp_path):
    root = tree(tmp_path, *TRAIN, "val/n1/d.jpg", "aside/e.jpg", "aside/deep/f.jpg")
    (tmp_path / "train/n3").symlink_to("../aside")
    (tmp_path / "train/n1/also").symlink_to(tmp_path / "aside/deep")
    assert len(load(root).train) == 5
    (tmp_path / "train/n1/self").symlink_to("self")
    with pytest.raises(UserError, match="Too many levels of symbolic links"):
        load(root)


TRAIN = ("train/n1/a.jpg", "train/n2/b.jpg")
FLAT = ("val/v_1.jpg", "val/v_2.jpg", "val/v_3.jpg")
EXPECTED = {"v_1.jpg": "n2", "v_2.jpg": "n1", "v_3.jpg": "n2"}


def test_tiny_imagenet_as_it_is_unpacked(tmp_path):
    root = make_tree(tmp_path, {f"train/{c}/images/{c}_0.JPEG": JPEG for c in ("n1", "n2")})
    make_tree(tmp_path, {f"val/images/{name[:-4]}.JPEG": JPEG for name in EXPECTED})
    make_tree(tmp_path, {f"train/{c}/{c}_boxes.txt": b"n1_0.JPEG\t0\t1\t2\t3\n" for c in ("n1", "n2")})
    lines = "".join(f"{name[:-4]}.JPEG\t{label}\t0\t1\t2\t3\n" for name, label in EXPECTED.items())
    make_tree(tmp_path, {"val/val_annotations.txt": lines.encode()})
    found = load(root)
    assert found.class_names == ("n1", "n2") and len(found.train) == 2
    assert labels(found) == {name.replace("jpg", "JPEG"): label for name, label in EXPECTED.items()}


@pytest.mark.parametrize(
    "text",
    [
        "ImageId,PredictionString\nv_1,n2 85 1 499 272\nv_3,n2 1 2 3 4 n2 1 2 3 4\nv_2,n1 9 9 9 9\n",
        "v_3.jpg n2\nv_2.jpg n1\nv_1.jpg n2\n",
        "﻿id,label\r\nv_1,n2\r\nv_2,n1\r\nv_3,n2\r\nother,n1\r\n",
        "n2\nn1\nn2\n",
        "801\n17\n801\n",
    ],
)
def test_a_flat_split_with_a_file_of_labels(text, tmp_path):
    root = tree(tmp_path, *TRAIN, *FLAT)
    (tmp_path / "labels.txt").write_text(text, "utf-8")
    synsets = np.array([(17, "n1"), (801, "n2")], [("ILSVRC2012_ID", "i4"), ("WNID", "O")])
    savemat(tmp_path / "meta.mat", {"synsets": synsets})
    assert labels(load(root, label_file=str(tmp_path / "labels.txt"))) == EXPECTED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            None,
            r"config.eval_split='val': 3 files in .*val and no class folder: v_1.jpg.*config.label_file names a file",
        ),
        ("v_1.jpg n1\n", "has no line for 2 images: v_2.jpg, v_3.jpg"),
        ("v_1.jpg n1\nv_2.jpg n1\nv_3.jpg n1\nv_1.jpg n2\n", "has two classes for v_1.jpg: n1, n2"),
        ("n1\nn2\n", "has 2 lines for 3 images"),
        ("1\n2\n1\n", "numbers of classes; meta.mat of the same development kit"),
        ("n1\nn2\nn9\n", "1 class that config.train_split='train' lacks: n9"),
    ],
)
def test_flat_splits_that_cannot_be_read(text, message, tmp_path):
    root, options = tree(tmp_path, *TRAIN, *FLAT), {}
    if text is not None:
        (tmp_path / "labels.txt").write_text(text)
        options["label_file"] = str(tmp_path / "labels.txt")
    with pytest.raises(UserError, match=message):
        load(root, **options)
    with pytest.raises(UserError, match=r"config.label_file='none': cannot be read"):
        load(root, label_file="none")


def test_in_a_flat_split_every_file_with_a_line_is_an_image(tmp_path):
    """Whatever it is called; the others are refused or left out, but for the file of labels itself."""
    root = tree(tmp_path, *TRAIN, "val/1.jpg", "val/2", "val/3.dat")
    make_tree(tmp_path, {"val/labels.csv": b"1.jpg,n1\n2,n2\n3,n1\n", "val/meta.mat": b""})
    options = {"label_file": str(tmp_path / "val/labels.csv")}
    assert labels(load(root, **options)) == {"1.jpg": "n1", "2": "n2", "3.dat": "n1"}
    make_tree(tmp_path, {"val/README": b"x", "val/more/x.xml": b"<a/>"})
    (tmp_path / "val/more").rename(tmp_path / "val/images")
    text = (
        r"split='val': 2 files without the name of an image and without a line in \S+labels.csv: README, images/x.xml"
    )
    with pytest.raises(UserError, match=text + ". config.stream.skip_other_files=True would leave out"):
        load(root, **options)
    for skip in ({"skip_other_files": True}, {"skip_corrupt": True}):
        lines = []
        assert len(load(root, warn=lines.append, **skip, **options).test) == 3
        assert len(lines) == 1 and re.search(text + "; left out", lines[0])
    (tmp_path / "val/1.jpg").unlink()
    assert len(load(root, warn=str, skip_other_files=True, **options).test) == 2, "no name of an image is needed"
    (tmp_path / "val/labels.csv").write_text("5,n1\n")
    with pytest.raises(UserError, match=r"val has no image"):
        load(root, warn=str, skip_other_files=True, **options)


def test_names_of_images_in_another_form_of_unicode(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD"))
    root = tree(tmp_path, *TRAIN, f"val/{decomposed}")
    (tmp_path / "labels.txt").write_text(f"{composed} n2\n", "utf-8")
    assert labels(load(root, label_file=str(tmp_path / "labels.txt"))) == {decomposed: "n2"}


def test_a_file_of_labels_that_is_not_read_is_said(tmp_path):
    lines = []
    load(tree(tmp_path, *TRAIN, "val/n1/c.jpg"), label_file="none.txt", warn=lines.append)
    assert lines == ["note: config.label_file='none.txt' is not read, as the images lie in class folders"]


def test_what_systems_leave_behind_is_left_out(tmp_path):
    root = tree(
        tmp_path, *TRAIN, "val/n1/c.jpg", "train/@eaDir/x.jpg", "train/n1/@eaDir/a.jpg/thumb.jpg", "val/__MACOSX/x.jpg"
    )
    for path in ("train/n1/Thumbs.db", "val/n1/desktop.ini", "train/Thumbs.db", "val/.DS_Store", "train/n1/._a.jpg"):
        make_tree(tmp_path, {path: b"no image"})
    found = load(root)
    assert found.class_names == ("n1", "n2") and len(found.train) == 2 and len(found.test) == 1


def test_other_files_that_are_no_images_can_be_left_out(tmp_path):
    root = tree(tmp_path, *TRAIN, "val/n1/c.jpg")
    make_tree(tmp_path, {"train/n1/notes.txt": b"x" * 99})
    with pytest.raises(
        UserError, match=r"notes.txt \(not an image.*config.stream.skip_other_files=True those that are no"
    ):
        load(root)
    make_tree(tmp_path, {"train/labels.csv": b"x"})
    with pytest.raises(UserError, match=r"1 file outside of the class folders .*config.stream.skip_other_files=True"):
        load(root)
    lines = []
    found = load(root, warn=lines.append, skip_other_files=True)
    assert len(found.train) == 2 and len(lines) == 2 and "1 file that are no images" in lines[1]
    assert re.search("train_split='train': 1 file outside of the class folders of .*: labels.csv; left out", lines[0])
    make_tree(tmp_path, {"train/n1/page.jpg": b"<html>"})
    with pytest.raises(UserError, match=r"page\.jpg"):
        load(root, warn=lines.append, skip_other_files=True)
    assert len(load(root, True, warn=lines.append).train) == 2 and "labels.csv; left out" in lines[-2]


def test_folders_that_hold_only_other_files_are_no_classes(tmp_path):
    """Neither of training nor of evaluation, with the field that leaves such files out; content counts, not names."""
    root = tree(tmp_path, *TRAIN, "train/n3/1", "val/n1/c.jpg", "val/n3/2")
    make_tree(tmp_path, {f"{split}/annotations/deep/a.xml": b"<a/>" for split in ("train", "val")})
    with pytest.raises(
        UserError, match=r"No image is left of 1 class: annotations.*config.stream.skip_other_files=True"
    ):
        load(root)
    with pytest.raises(UserError, match=r"a.xml \(not an image.*No image is left of 1 class: annotations"):
        load(root, True, warn=str)
    lines = []
    found = load(root, warn=lines.append, skip_other_files=True)
    assert found.class_names == ("n1", "n2", "n3") and len(found.train) == 3 and len(found.test) == 2
    assert [line.partition(":")[0] for line in lines] == ["config.train_split='train'", "config.eval_split='val'"]
    assert all(re.search(r"1 folder of \S+ without an image: annotations; left out", line) for line in lines)
    assert layout.class_folders(root, "train", skip_other_files=True) == ["n1", "n2", "n3"]
    assert load(root, train=None, warn=str, skip_other_files=True).class_names == ("n1", "n3")
    make_tree(tmp_path, {"val/n4/a.txt": b"x"})
    for path in ("val/n1/c.jpg", "val/n3/2"):
        (tmp_path / path).unlink()
    with pytest.raises(UserError, match=r"config.eval_split='val': .*val has no image"):
        load(root, warn=str, skip_other_files=True)


@pytest.mark.parametrize("options", [{}, {"skip_other_files": True}, {"skip_corrupt": True}])
def test_a_link_that_may_have_been_a_class_is_refused(options, tmp_path):
    root = tree(tmp_path, *TRAIN, "val/n1/c.jpg")
    (tmp_path / "train/z").symlink_to(tmp_path / "none")
    with pytest.raises(UserError, match=r"train_split='train': 1 broken link in \S+: z\. A link there must"):
        load(root, **options)


def test_names_in_another_form_of_unicode_are_the_same_class(tmp_path):
    name = "café"
    composed, decomposed = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    found = load(tree(tmp_path, f"train/{composed}/a.jpg", "train/z/b.jpg", f"val/{decomposed}/c.jpg", "val/z/d.jpg"))
    assert found.class_names == (composed, "z") and list(found.test.labels) == [0, 1]


def test_links(tmp_path):
    """They are followed; one that leads nowhere is a damaged file, one that leads back an error."""
    root = tree(tmp_path, *TRAIN, "val/n1/c.jpg", "other/d.jpg")
    (tmp_path / "train/n1/more").symlink_to(tmp_path / "other")
    (tmp_path / "train/n2/e.jpg").symlink_to(tmp_path / "other/d.jpg")
    assert len(load(root).train) == 4
    (tmp_path / "train/n2/f.jpg").symlink_to("f.jpg")
    with pytest.raises(UserError, match=r"train/n2/f.jpg \(Too many levels of symbolic links\).*skip_corrupt=True"):
        load(root)
    (tmp_path / "train/n1/n2").symlink_to("../n2")
    (tmp_path / "train/n2/n1").symlink_to("../n1")
    with pytest.raises(UserError, match=r"train/n1/n2/n1: a link that leads back to a folder which it is in"):
        load(root)


def test_the_home_folder(tmp_path, monkeypatch):
    """A shell leaves `~` as it is after an equals sign."""
    monkeypatch.setenv("HOME", str(tmp_path))
    tree(tmp_path / "photos", *TRAIN, *FLAT)
    (tmp_path / "labels.txt").write_text("n2\nn1\nn2\n")
    config = configs.default()
    config.update({"dataset": "folder", "data_dir": "~/photos", "label_file": "~/labels.txt", "batch_size": 2})
    config.eval_split = "val"
    assert len(sets.load(config, pytest.fail).test) == 3


def test_an_evaluation_needs_no_training_split(tmp_path):
    root = tree(tmp_path, "val/b/0.jpg", "val/c/1.jpg")
    with pytest.raises(
        UserError, match=r"has no such folder; it has val. An evaluation \(--mode=evaluate\) needs none"
    ):
        load(root)
    found = load(root, train=None)
    assert found.class_names == ("b", "c") and list(found.test.labels) == [0, 1]
    found = load(root, train=None, class_names=("a", "b", "c"))
    assert found.class_names == ("a", "b", "c") and list(found.test.labels) == [1, 2]
    with pytest.raises(UserError, match="1 class that the network lacks: c"):
        load(root, train=None, class_names=("a", "b"))


def test_a_pipe_is_refused(tmp_path):
    """To open it would wait for ever."""
    root = tree(tmp_path, *TRAIN, "val/n1/d.jpg")
    os.mkfifo(tmp_path / "train/n2/c.jpg")
    with pytest.raises(UserError, match=r"train/n2/c.jpg: is a pipe, a socket or a device"):
        load(root)


@pytest.mark.parametrize(
    ("inside", "hint"), [("", r"\. The layout"), ("cat/", ", and in it there are the folders cat, dog. The layout")]
)
def test_one_class_is_nothing_to_tell_apart(inside, hint, tmp_path):
    """As where the folder of an archive lies between a split and its classes."""
    dog = inside.replace("cat", "dog")
    root = tree(
        tmp_path, *(f"{split}/set/{of}{i}.jpg" for split in ("train", "val") for i, of in enumerate((inside, dog)))
    )
    config = configs.default()
    config.update({"dataset": "folder", "data_dir": root, "eval_split": "val", "batch_size": 2})
    with pytest.raises(UserError, match=f"has one class folder, set, and so nothing to tell apart{hint}"):
        sets.load(config, pytest.fail)
    assert sets.load(config, pytest.fail, trains=False).class_names == ("set",)
