"""Image classification sets as folders of image files, every file looked at first."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from orc_jax.data import checks, deep, layout
from orc_jax.data.checks import Seen, looks_like_image
from orc_jax.data.layout import Classes, Options, Warn
from orc_jax.errors import UserError, first, plural


@dataclass(frozen=True, eq=False)
class Records:
    """The files of a split in their fixed order. Small enough to be sent to processes: 50 MB for ImageNet."""

    root: str
    paths: np.ndarray  # bytes [n], relative to root, as the file system encodes them
    labels: np.ndarray  # int32 [n]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int) -> tuple[bytes, int]:
        """The encoded image and the label of record i. Raises OSError if the file cannot be read."""
        with open(self.path(i), "rb") as file:
            return file.read(), int(self.labels[i])

    def name(self, i: int) -> str:
        """The full path of record i, for messages."""
        return os.fsdecode(self.path(i))

    def path(self, i: int) -> bytes:
        """The full path of record i."""
        return os.path.join(os.fsencode(self.root), self.paths[i])


class Folder(NamedTuple):
    """A set in a folder."""

    class_names: tuple[str, ...]
    train: Records  # where nothing is trained, the same as `test`
    test: Records
    largest: int  # pixels of the longest side of any image


def load(
    root: str,
    train_split: str | None,
    eval_split: str,
    options: Options,
    warn: Warn,
    class_names: Sequence[str] = (),
) -> Folder:
    """The two splits, or with `train_split=None` the evaluation split alone, and the names of their classes.

    These are the sorted ones of the training split, or `class_names` if they are the same in the order of a trained
    network. Without a training split they are `class_names`, or if there are none, the ones of the evaluation split. It
    need not have all of them. The order of the files is that of their names and the same on every machine.

    Every file is looked at (see `checks.look`), so that a broken one is found now and not within the first epoch; with
    `skip_corrupt` it is left out, of which `warn` is told, instead of refused. With `skip_other_files` so are files
    that are no images, and folders that hold nothing else are no classes.

    Raises:
        UserError: if a folder is missing, lies elsewhere in this layout, is empty or belongs to no class; if a file
            lies outside of the classes, or is broken and not to be left out; if of a class to train on no image is
            left; if values of over 8 bits lack a range.
    """
    fields = (
        {"eval_split": eval_split} if train_split is None else {"train_split": train_split, "eval_split": eval_split}
    )
    try:
        names, splits = tuple(class_names), {}
        for field, split in fields.items():
            splits[field] = layout.classes_of(root, field, split, options, names, warn)
            found = in_order(splits[field])
            if field == "train_split" and set(found) != set(names):
                names = ()
            names = names or found
    except OSError as error:
        raise UserError(f"config.data_dir={root!r}: cannot be listed: {error}") from error
    if options.label_file and not any(layout.is_flat(root, split) for split in fields.values()):
        warn(f"note: config.label_file={options.label_file!r} is not read, as the images lie in class folders")
    whose = "the network" if names == tuple(class_names) else f"config.train_split={train_split!r}"
    if unknown := [name for name in splits["eval_split"] if name not in names]:
        raise UserError(
            f"config.eval_split={eval_split!r} of {root} has {plural(len(unknown), 'class', 'classes')} that {whose} "
            f"lacks: {first(unknown)}"
        )
    if empty := [name for name, files in splits.get("train_split", {}).items() if not files]:
        raise UserError(
            f"config.train_split={train_split!r} of {root} has {plural(len(empty), 'empty class folder')}: "
            f"{first(empty)}"
        )
    sound, seen = {}, []
    for field, files in splits.items():
        records = _records(root, names, files)
        needed = names if field == "train_split" else ()
        sound[field], looks = _sound(records, f"config.{field}={fields[field]!r}", needed, options, warn)
        seen += looks
    _check_values(seen, options.pixel_range, root, warn)
    largest = max(max(one.size) for one in seen)
    return Folder(names, sound.get("train_split", sound["eval_split"]), sound["eval_split"], largest)


def require_classes(names: Sequence[str], root: str, train_split: str) -> None:
    """Checks that there are several classes to train on: one, as where a folder lies between, is learnt at once.

    Raises:
        UserError: naming the one there is, and what is in it.
    """
    if len(names) > 1:
        return
    inside = layout.class_folders(root, os.path.join(train_split, names[0]))
    hint = f", and in it there are the folders {first(inside)}" if inside else ""
    raise UserError(
        f"config.train_split={train_split!r} of {root} has one class folder, {names[0]}, and so nothing to tell "
        f"apart{hint}. The layout is <split>/<class>/<image files>"
    )


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes, sorted as text, in their order: where all are numbers as numbers, so that 2 comes before 10."""
    names = tuple(names)
    return tuple(sorted(names, key=int)) if all(re.fullmatch("[0-9]+", name) for name in names) else names


def _records(root: str, names: tuple[str, ...], files: Classes) -> Records:
    numbers = {name: i for i, name in enumerate(names)}
    counts = [len(files[name]) for name in files]
    labels = np.repeat(np.array([numbers[name] for name in files], np.int32), counts)
    return Records(root, np.array([path for name in files for path in files[name]]), labels)


def _sound(
    records: Records, split: str, needed: Sequence[str], options: Options, warn: Warn
) -> tuple[Records, list[Seen]]:
    """The records without those whose files are broken or no images, if these are to be left out, and what was seen.

    Each of the `needed` classes must keep an image, and if there are none, the split.
    """
    seen = checks.look_at_all(records, options.check)
    others = [i for i, one in enumerate(seen) if not one.is_image and not looks_like_image(records.name(i))]
    left_out = others if options.skip_other_files else []
    told = f"{split}: {plural(len(left_out), 'file')} that are no images: {_named(records, left_out)}"
    if left_out:
        warn(f"{told}; left out")
    defects = sorted({i for i, one in enumerate(seen) if one.defect}.difference(left_out))
    if defects:
        listed = first([f"{records.name(i)} ({seen[i].defect})" for i in defects])
        told = f"{split}: {len(defects)} of {plural(len(records), 'file')} cannot be used: {listed}"
    keep = np.ones(len(records), bool)
    keep[[*left_out, *defects]] = False
    skippable = others and not left_out
    if lack := _lack(records.labels[keep], needed):
        hint = ". config.stream.skip_other_files=True would leave out what is no image" if skippable else ""
        raise UserError(f"{told}. {lack}{hint}")
    if defects and not options.skip_corrupt:
        also = ", config.stream.skip_other_files=True those that are no images" if skippable else ""
        raise UserError(f"{told}. config.stream.skip_corrupt=True would leave them out{also}")
    if defects:
        warn(f"{told}; left out")
    kept = records if keep.all() else Records(records.root, records.paths[keep], records.labels[keep])
    return kept, [one for one, is_kept in zip(seen, keep, strict=True) if is_kept]


def _lack(labels: np.ndarray, needed: Sequence[str]) -> str:
    """What lacks images, where these are the labels of all that are left; nothing if all that is needed is there."""
    counts = np.bincount(labels, minlength=len(needed))
    lost = [name for name, count in zip(needed, counts, strict=False) if not count]
    if lost:
        return f"No image is left of {plural(len(lost), 'class', 'classes')}: {first(lost)}"
    return "" if len(labels) else "No image is left"


def _named(records: Records, rows: Iterable[int]) -> str:
    return first(records.name(i) for i in sorted(rows))


def _check_values(seen: Sequence[Seen], given: deep.Range, root: str, warn: Warn) -> None:
    """Refuses images of more than 8 bits whose black and white are not known; tells what is cut off."""
    for values in deep.united([one.values for one in seen if one.values is not None]):
        if objection := deep.objection(values, given):
            raise UserError(f"config.data_dir={root!r}: has images of {objection}")
        if deep.cut_off(values, given):
            warn(
                f"note: {values.kind} have values from {values.low:g} to {values.high:g}; what is beyond "
                f"config.stream.pixel_range={tuple(given)} is black or white"
            )
