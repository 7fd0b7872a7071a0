"""Where the images of a folder lie, and of which class they are: split/class/**/file, or flat with a file of labels.

Names are compared in Unicode's composed form (NFC), as a Mac writes them decomposed. Left out are names that begin with
a dot, and what systems and data sets put beside the images (`BESIDE`).
"""

import fnmatch
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from orc_jax.data import checks, deep, label_file
from orc_jax.data.checks import looks_like_image
from orc_jax.errors import UserError, first, plural

Classes = dict[str, list[bytes]]  # class -> paths of its files, relative to the root
Warn = Callable[[str], None]

BESIDE = (
    *(".*", "Thumbs.db", "ehthumbs.db", "desktop.ini", "Icon\r", "*_boxes.txt", "val_annotations.txt"),
    *("@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
)
ANNOTATIONS = "val_annotations.txt"  # Tiny-ImageNet's


class Options(NamedTuple):
    """How the files of a folder are taken; fields of the config by the same names."""

    label_file: str = ""
    check: str = "quick"
    skip_corrupt: bool = False
    skip_other_files: bool = False
    pixel_range: deep.Range = ()


def classes_of(root: str, field: str, split: str, options: Options, known: Sequence[str], warn: Warn) -> Classes:
    """The files of every class of a split, relative to root; both sorted.

    `field` is that of the split, for messages. `known` are the names of the classes, if they are known already. Files
    beside the classes that are no images by their names are left out with `skip_other_files` or `skip_corrupt`, and
    folders that hold nothing but other files with `skip_other_files`, of which `warn` is told.

    Raises:
        UserError: if there is no such folder, it holds no image, it is not known of which class an image is, or a link
            beside the classes, which may have been one of them, leads nowhere.
    """
    if not root:
        raise UserError("config.data_dir='': must be the folder that holds <split>/<class>/<image files>")
    if not os.path.isdir(root):
        reason = "is not a directory" if os.path.exists(root) else "there is no such directory"
        raise UserError(f"config.data_dir={root!r}: {reason}")
    splits, _ = _entries(os.fsencode(root))
    if split not in splits:
        have = f"it has {first(splits, 20)}" if splits else "it has no folder"
        hint = ". An evaluation (--mode=evaluate) needs none" if field == "train_split" else ""
        raise UserError(f"config.{field}={split!r}: {root} has no such folder; {have}{hint}")
    folder = splits[split][0]
    path = os.path.join(os.fsencode(root), folder)
    folders, files = _entries(path)
    what = f"config.{field}={split!r}"
    if labels := _label_file(os.fsdecode(path), folders, files, options.label_file):
        return _flat(path, folder, labels, options, known, what, warn)
    _look_beside(path, files, bool(folders), options, what, warn)
    result = _files_of(path, folder, folders)
    others = _without_images(root, result) if options.skip_other_files else []
    if others:
        where = f"{plural(len(others), 'folder')} of {os.fsdecode(path)} without an image"
        warn(f"{what}: {where}: {first(others)}; left out")
    result = {name: paths for name, paths in result.items() if name not in others}
    if not any(result.values()):
        raise UserError(f"{what}: {os.fsdecode(path)} has no image. The layout is <split>/<class>/<image files>")
    return result


def _look_beside(path: bytes, files: list[str], has_folders: bool, options: Options, what: str, warn: Warn) -> None:
    """Refuses the files beside the folders of the classes, or tells of those that are left out."""
    if lost := [name for name in files if not looks_like_image(name) and _leads_nowhere(path, name)]:
        raise UserError(
            f"{what}: {plural(len(lost), 'broken link')} in {os.fsdecode(path)}: {first(lost)}. A link there must lead "
            "to the folder of a class"
        )
    strays = [name for name in files if looks_like_image(name) or not _others_too(options)]
    if strays and not has_folders:
        raise UserError(
            f"{what}: {plural(len(strays), 'file')} in {os.fsdecode(path)} and no class folder: {first(strays)}. The "
            f"layout is <split>/<class>/<image files>; of other sets config.label_file names {label_file.ACCEPTED}"
        )
    if strays:
        skippable = not any(map(looks_like_image, strays))
        hint = ". config.stream.skip_other_files=True would leave out what is no image" if skippable else ""
        raise UserError(f"{what}: {_outside(path, strays)}. The layout is <split>/<class>/<image files>{hint}")
    if files:
        warn(f"{what}: {_outside(path, files)}; left out")


def _leads_nowhere(path: bytes, name: str) -> bool:
    return not os.path.exists(os.path.join(path, os.fsencode(name)))


def _others_too(options: Options) -> bool:
    return options.skip_other_files or options.skip_corrupt


def _outside(path: bytes, files: Sequence[str]) -> str:
    return f"{plural(len(files), 'file')} outside of the class folders of {os.fsdecode(path)}: {first(files)}"


def _files_of(path: bytes, prefix: bytes, folders: Mapping[str, Sequence[bytes]]) -> Classes:
    """The files of the folders of a split, which lie in `path`, as prefix/..., sorted."""
    return {
        name: sorted(file for one in same for file in _files(os.path.join(path, one), prefix + b"/" + one))
        for name, same in folders.items()
    }


def _without_images(root: str, classes: Classes) -> list[str]:
    """The classes whose files, of which there are some, are no images, neither by name nor by content."""

    def has_image(files: Sequence[bytes]) -> bool:
        return any(looks_like_image(os.fsdecode(file)) for file in files) or any(
            checks.look(os.path.join(os.fsencode(root), file)).is_image for file in files
        )

    return [name for name, files in classes.items() if files and not has_image(files)]


def class_folders(root: str, split: str, skip_other_files: bool = False) -> list[str]:
    """The names of the class folders of a split, sorted; none if it is not there, or has no such folders."""
    path = os.path.join(root, split)
    folders = _entries(os.fsencode(path))[0] if root and os.path.isdir(path) else {}
    if folders.keys() <= {"images"}:
        return []
    files = _files_of(os.fsencode(path), os.fsencode(split), folders) if skip_other_files else {}
    others = _without_images(root, files)
    return [name for name in folders if name not in others]


def is_flat(root: str, split: str) -> bool:
    """Whether a split that is there has files and no class folders."""
    (folder, *_) = _entries(os.fsencode(root))[0][split]
    return _lies_flat(*_entries(os.path.join(os.fsencode(root), folder)))


def _lies_flat(folders: Iterable[str], files: Sequence[str]) -> bool:
    return set(folders) <= {"images"} and bool(folders or files)


def _entries(path: bytes) -> tuple[dict[str, list[bytes]], list[str]]:
    """The folders of a folder by name, usually one each, and the names of its files; sorted, without `BESIDE`."""
    with os.scandir(path) as entries:
        seen = sorted((entry.name, _is_folder(entry)) for entry in entries if not _beside(entry.name))
    folders: dict[str, list[bytes]] = {}
    for name in (name for name, is_folder in seen if is_folder):
        folders.setdefault(unicodedata.normalize("NFC", os.fsdecode(name)), []).append(name)
    files = [os.fsdecode(name) for name, is_folder in seen if not is_folder]
    return dict(sorted(folders.items())), files


def _beside(name: bytes) -> bool:
    return any(fnmatch.fnmatchcase(os.fsdecode(name), pattern) for pattern in BESIDE)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say, of which opening it tells more
        return False


def _is_special(entry: os.DirEntry) -> bool:
    """Whether an entry is neither a file nor a folder: to read from a pipe may take for ever."""
    return not (entry.is_file(follow_symlinks=False) or _is_folder(entry)) and (
        os.path.exists(entry.path) and not os.path.isfile(entry.path)
    )


def _files(path: bytes, prefix: bytes, above: frozenset = frozenset()) -> list[bytes]:
    """The files below a folder as prefix/..., sorted; `above` are the folders that it is in.

    Raises:
        UserError: if a link leads back to one of these, and for a pipe, a socket or a device.
    """
    result, own = [], os.stat(path)
    here = (own.st_dev, own.st_ino)
    if here in above:
        raise UserError(f"{os.fsdecode(path)}: a link that leads back to a folder which it is in")
    with os.scandir(path) as entries:
        for entry in entries:
            if not _beside(entry.name):
                name = prefix + b"/" + entry.name
                if _is_special(entry):
                    raise UserError(f"{os.fsdecode(entry.path)}: is a pipe, a socket or a device, no file of an image")
                result += _files(entry.path, name, above | {here}) if _is_folder(entry) else [name]
    return sorted(result)


def _label_file(path: str, folders: Iterable[str], files: Sequence[str], given: str) -> Path | None:
    """The file that has the classes of a split without class folders; None if it has class folders."""
    if not _lies_flat(folders, files):
        return None
    there = Path(path) / ANNOTATIONS
    return Path(given).expanduser() if given else there if there.is_file() else None


def _flat(
    path: bytes, folder: bytes, labels: Path, options: Options, known: Sequence[str], what: str, warn: Warn
) -> Classes:
    """The images of a split without class folders, by the classes that a file of labels, which may lie there, says."""
    own = {os.path.realpath(os.fsencode(of)) for of in (labels, labels.with_name(label_file.META))}
    files = [
        file
        for file in _files(path, b"")
        if looks_like_image(os.fsdecode(file)) or os.path.realpath(path + file) not in own
    ]
    names = [unicodedata.normalize("NFC", os.fsdecode(file).lstrip("/")) for file in files]
    classes = label_file.classes_of(labels, names, known)
    without = [name for name, label in zip(names, classes, strict=True) if label is None]
    if images := [name for name in without if looks_like_image(name)]:
        raise UserError(f"{what}: {labels} has no line for {plural(len(images), 'image')}: {first(images)}")
    told = f"{what}: {label_file.others(without)} and without a line in {labels}: {first(without)}"
    if without and not _others_too(options):
        raise UserError(f"{told}. config.stream.skip_other_files=True would leave out what is no image")
    if without:
        warn(f"{told}; left out")
    result: Classes = {}
    for file, label in zip(files, classes, strict=True):
        if label is not None:
            result.setdefault(label, []).append(folder + file)
    if not result:
        raise UserError(f"{what}: {os.fsdecode(path)} has no image")
    return dict(sorted(result.items()))
