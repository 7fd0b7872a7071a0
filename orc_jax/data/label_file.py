"""Files that say of which class the images of a folder are: by their names, or in their order."""

import csv
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from orc_jax.data.checks import looks_like_image
from orc_jax.errors import UserError, first, plural

META = "meta.mat"  # of ImageNet's development kit: which of its numbers is which class
ACCEPTED = (
    "a file with a line for each image, its name and its class, such as Tiny-ImageNet's val_annotations.txt or "
    "LOC_val_solution.csv, or with their classes alone, in the order of the names, such as "
    "ILSVRC2012_validation_ground_truth.txt"
)
BOXES = re.compile(r"(\S+)( +-?\d+){4}( +\1( +-?\d+){4})*")  # one or several of a class, by two corners each
LONGEST = 255  # characters of a name


def classes_of(path: Path, names: Sequence[str], known: Sequence[str]) -> list[str | None]:
    """The class of each file, named relative to its split, by a file of labels; None where this has none.

    `known` are the names of the classes, if they are known already.

    Raises:
        UserError: if it cannot be read, or does not say which class belongs to which image.
    """
    try:
        text = unicodedata.normalize("NFC", path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"config.label_file={str(path)!r}: cannot be read: {error}; accepted is {ACCEPTED}") from error
    rows = [_cells(line) for line in text.splitlines() if line.strip()]
    if all(len(row) == 1 for row in rows):
        labels = _in_order(path, [row[0] for row in rows], names, known)
    else:
        labels = _by_name(path, rows, known)
    keys = ((name, os.path.basename(name), Path(name).stem) for name in names)
    found = [next((labels[key] for key in of if key in labels), None) for of in keys]
    if blank := [name for name, label in zip(names, found, strict=True) if label == ""]:
        raise UserError(
            f"config.label_file={str(path)!r}: has no class in the line of {plural(len(blank), 'image')}: "
            f"{first(blank)}; accepted is {ACCEPTED}"
        )
    return found


def _in_order(path: Path, labels: list[str], names: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Labels that stand alone, by the names of the images in whose order they are: as text, if that is the only one."""
    images = sorted(filter(looks_like_image, names))
    if len(labels) != len(images):
        rest = [name for name in names if not looks_like_image(name)]
        beside = f" and {others(rest)}: {first(rest)}" if rest else ""
        raise UserError(
            f"config.label_file={str(path)!r}: has {len(labels)} lines for {len(images)} images{beside}; accepted is "
            f"{ACCEPTED}"
        )
    by_number = sorted(images, key=lambda name: re.sub("[0-9]+", lambda digits: digits[0].zfill(LONGEST), name))
    for one, other in zip(images, by_number, strict=True):
        if one != other:
            raise UserError(
                f"config.label_file={str(path)!r}: has classes without names, and their order is not known: as text "
                f"{one} comes before {other}, as a number after it; accepted is a line with name and class, or names "
                "of images padded with zeros"
            )
    return dict(zip(images, _of_numbers(path, labels, known), strict=True))


def _by_name(path: Path, rows: Sequence[Sequence[str]], known: Sequence[str]) -> dict[str, str]:
    """The class that a file of labels has for each name, or "" where it has none."""
    labels: dict[str, str] = {}
    for name, *cells in rows:
        label = _class(cells[0], known) if cells else ""
        if (before := labels.setdefault(name, label)) != label:
            both = f"{before or 'none'}, {label or 'none'}"
            raise UserError(f"config.label_file={str(path)!r}: has two classes for {name}: {both}")
    return labels


def _cells(line: str) -> list[str]:
    if "\t" in line:
        return [cell.strip() for cell in line.split("\t")]
    return [cell.strip() for cell in next(csv.reader([line]))] if "," in line else line.strip().split(maxsplit=1)


def _class(text: str, known: Sequence[str]) -> str:
    """The class that a cell says, which in ImageNet's `LOC_val_solution.csv` stands before each box."""
    boxes = BOXES.fullmatch(text)
    return boxes[1] if boxes and text not in known else text


def _of_numbers(path: Path, labels: list[str], known: Sequence[str]) -> list[str]:
    """Labels of ImageNet's development kit, which are numbers, as the names of the classes."""
    meta = path.with_name(META)
    if not all(label.isdigit() for label in labels) or set(labels) <= set(known):
        return labels
    if not meta.is_file():
        raise UserError(
            f"config.label_file={str(path)!r}: has numbers of classes; {META} of the same development kit, which says "
            "which these are, must lie beside it"
        )
    from scipy.io import loadmat  # takes its time

    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        wnids = {str(int(synset["ILSVRC2012_ID"])): str(synset["WNID"]) for synset in synsets}
        return [wnids[label] for label in labels]
    except Exception as error:  # anything can be wrong with a file
        raise UserError(
            f"{meta}: is not that of ImageNet's development kit: {type(error).__name__}: {error}"
        ) from error


def others(names: Sequence[str]) -> str:
    """How many files there are that are no images by their names, for a message."""
    return f"{plural(len(names), 'file')} without the name of an image"
