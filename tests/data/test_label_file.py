"""Which class a file of labels says that an image is of; whole folders with one are in test_layout.py."""

import unicodedata

import pytest

from orc_jax.data import label_file
from orc_jax.errors import UserError

NAMES = ("1.png", "2.png")


def read(folder, text, names=NAMES, known=()):
    (folder / "labels").write_text(text, "utf-8")
    return label_file.classes_of(folder / "labels", names, known)


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("1.png,n1 1 2 3 4\n2.png,n1 1 2 3 4 n1 5 6 7 8 \n", ["n1", "n1"]),
        ("1.png n1 1 2 3 4\n2.png\tn2\t1\t2\t3\t4\n", ["n1", "n2"]),
        ("1.png,stage 1\n2.png,stage 2\n", ["stage 1", "stage 2"]),
        ("1.png stage 1\n2.png stage 2\n", ["stage 1", "stage 2"]),
        ("1.png,take 1 2 3\n2.png,take 1 2 3 4 five 1 2 3 4\n", ["take 1 2 3", "take 1 2 3 4 five 1 2 3 4"]),
        ("1.png,red panda\n2.png red panda\n", ["red panda", "red panda"]),
        ("1.png,red 1 2 3 4\n2.png red 1 2 3 4", ["red", "red"]),
        ("1.png,as it is 1 2 3 4\n2.png\tblue\n3.png,\n", ["as it is 1 2 3 4", "blue"]),
        ("1.png,n1\n", ["n1", None]),
    ],
)
def test_a_class_may_have_several_words(text, classes, tmp_path):
    """Cut off are boxes alone: four numbers each, after the class, as of ImageNet's."""
    for known in ((), ("red", "blue")):
        assert read(tmp_path, text, known=known) == classes
    assert read(tmp_path, text, known=("n1 1 2 3 4",))[0] in (classes[0], "n1 1 2 3 4")


@pytest.mark.parametrize("text", ["1.png,\n2.png,n1\n", "1.png\t\n2.png\tn1\n", "1.png\n2.png n1\n", ",n\n1.png,\n2,n"])
def test_a_line_without_a_class(text, tmp_path):
    with pytest.raises(
        UserError, match=r"config.label_file='.*labels': has no class in the line of 1 image: 1.png; acc"
    ):
        read(tmp_path, text)
    assert read(tmp_path, text, NAMES[1:])[0][0] == "n", "of what is not there it does not matter"


@pytest.mark.parametrize(
    "names", [("img1.png", "img10.png", "img2.png"), ("a/9.png", "a/11.png"), ("1b.png", "10.png")]
)
def test_classes_alone_need_names_of_one_order(names, tmp_path):
    text = "n1\n" * (len(names) - 1) + "n2\n"
    with pytest.raises(UserError, match=r"as text \S+ comes before \S+, as a number after it; accepted is a line with"):
        read(tmp_path, text, names)


def test_classes_alone_are_in_the_order_of_the_names(tmp_path):
    padded = ("img01.png", "img02.png", "img10.png", "notes.txt", "x-1.png", "x1.png")
    assert read(tmp_path, "a\nb\nc\nd\ne\n", padded) == ["a", "b", "c", None, "d", "e"]


def test_as_many_classes_as_images(tmp_path):
    with pytest.raises(
        UserError, match=r"has 3 lines for 2 images and 1 file without the name of an image: 3; accepted"
    ):
        read(tmp_path, "a\nb\nc\n", (*NAMES, "3"))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_in_another_form_of_unicode_are_the_same(form, tmp_path):
    """That of a file of labels; names and classes come composed."""
    assert read(tmp_path, unicodedata.normalize(form, "é.png,café\n"), ["é.png"]) == ["café"]
