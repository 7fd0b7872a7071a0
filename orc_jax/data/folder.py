"""Image classification sets as folders of image files: root/<split>/<class>/**/<file>, every file looked at first."""

import itertools
import multiprocessing
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image

from orc_jax.data import decode
from orc_jax.data.workers import end_with_parent, interrupts_blocked
from orc_jax.errors import UserError

TAIL = 1024  # bytes in which the end of a JPEG or PNG is looked for: some cameras append a little
ALONE = 10_000  # files that are looked at without help: within a second
CHUNK = 1000  # files that a helping process looks at, at a time
JPEG = ("JPEG", "MPO")  # the latter has several images
END_OF_JPEG = b"\xff\xd9"
SHOWN = 5  # names in a message


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
        with open(self._path(i), "rb") as file:
            return file.read(), int(self.labels[i])

    def name(self, i: int) -> str:
        """The full path of record i, for messages."""
        return os.fsdecode(self._path(i))

    def _path(self, i: int) -> bytes:
        return os.path.join(os.fsencode(self.root), self.paths[i])


def load(
    root: str, train_split: str, eval_split: str, skip_corrupt: bool, warn: Callable[[str], None]
) -> tuple[tuple[str, ...], Records, Records]:
    """The sorted class names, which are those of the training split's folders, and the two splits.

    The order is that of the names and the same on every machine. Names that begin with a dot are ignored. Every file is
    looked at (see `defect`), so that a broken one is found now and not within the first epoch; with `skip_corrupt` it
    is left out, of which `warn` is told, instead of refused. The evaluation split need not have all classes.

    Raises:
        UserError: if a folder is missing, lies elsewhere in this layout, is empty or belongs to no class; if a file
            lies outside of the classes, or is broken and not to be left out.
    """
    try:
        train, evaluation = _classes(root, "train_split", train_split), _classes(root, "eval_split", eval_split)
        unknown = [name for name in evaluation if name not in train]
        if unknown:
            raise UserError(
                f"config.eval_split={eval_split!r} of {root} has {_plural(len(unknown), 'class', 'classes')} that "
                f"config.train_split={train_split!r} lacks: {_first(unknown)}"
            )
        names = _ordered(train)
        empty = [name for name, files in train.items() if not files]
        if empty:
            raise UserError(
                f"config.train_split={train_split!r} of {root} has {_plural(len(empty), 'empty class folder')}: "
                f"{_first(empty)}"
            )
        records = [_records(root, names, files) for files in (train, evaluation)]
    except OSError as error:
        raise UserError(f"config.data_dir={root!r}: cannot be listed: {error}") from error
    fields = (("train_split", train_split), ("eval_split", eval_split))
    splits = [_sound(r, f"config.{f}={s!r}", skip_corrupt, warn) for r, (f, s) in zip(records, fields, strict=True)]
    return names, splits[0], splits[1]


def _ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes in their order: as text, but numbers as numbers, so that 2 comes before 10."""
    names = tuple(names)
    return tuple(sorted(names, key=int)) if all(re.fullmatch("[0-9]+", name) for name in names) else names


def _classes(root: str, field: str, split: str) -> dict[str, list[bytes]]:
    """The files of every class of a split, relative to root; both sorted."""
    if not root:
        raise UserError("config.data_dir='': must be the folder that holds <split>/<class>/<image files>")
    if not os.path.isdir(root):
        reason = "is not a directory" if os.path.exists(root) else "there is no such directory"
        raise UserError(f"config.data_dir={root!r}: {reason}")
    folders, _ = _entries(os.fsencode(root))
    if split not in folders:
        have = f"it has {_first(folders, 20)}" if folders else "it has no folder"
        raise UserError(f"config.{field}={split!r}: {root} has no such folder; {have}")
    path = os.path.join(os.fsencode(root), folders[split])
    classes, strays = _entries(path)
    if strays:
        raise UserError(
            f"config.{field}={split!r}: {_plural(len(strays), 'file')} outside of the class folders of "
            f"{os.fsdecode(path)}: {_first(strays)}. The layout is <split>/<class>/<image files>"
        )
    result = {
        name: _files(os.path.join(path, folder), folders[split] + b"/" + folder) for name, folder in classes.items()
    }
    if not any(result.values()):
        raise UserError(
            f"config.{field}={split!r}: {os.fsdecode(path)} has no image. The layout is <split>/<class>/<image files>"
        )
    return result


def _entries(path: bytes) -> tuple[dict[str, bytes], list[str]]:
    """The folders of a folder by name, and the names of its files; sorted, without those that begin with a dot."""
    with os.scandir(path) as entries:
        seen = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(b"."))
    folders = {os.fsdecode(name): name for name, is_folder in seen if is_folder}
    return folders, [os.fsdecode(name) for name, is_folder in seen if not is_folder]


def _files(path: bytes, prefix: bytes) -> list[bytes]:
    """The files below a folder as prefix/..., sorted."""
    result = []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            name = prefix + b"/" + entry.name
            result += _files(entry.path, name) if entry.is_dir() else [name]
    return sorted(result)


def _records(root: str, names: tuple[str, ...], files: dict[str, list[bytes]]) -> Records:
    numbers = {name: i for i, name in enumerate(names)}
    counts = [len(files[name]) for name in files]
    labels = np.repeat(np.array([numbers[name] for name in files], np.int32), counts)
    return Records(root, np.array([path for name in files for path in files[name]]), labels)


def _sound(records: Records, split: str, skip_corrupt: bool, warn: Callable[[str], None]) -> Records:
    """The records without those whose files are broken, if these are to be left out."""
    defects = find_defects(records)
    if not defects:
        return records
    listed = _first([f"{records.name(i)} ({reason})" for i, reason in defects.items()])
    message = f"{split}: {len(defects)} of {_plural(len(records), 'file')} cannot be used: {listed}"
    if not skip_corrupt:
        raise UserError(f"{message}. config.stream.skip_corrupt=True would leave them out")
    if len(defects) == len(records):
        raise UserError(f"{message}. No image is left")
    warn(f"{message}; left out")
    keep = np.ones(len(records), bool)
    keep[list(defects)] = False
    return Records(records.root, records.paths[keep], records.labels[keep])


def find_defects(records: Records) -> dict[int, str]:
    """The reason for every record whose file is broken; of many records in processes, as threads share one core."""
    if len(records) <= ALONE:
        return dict(_defects_of(records, 0))
    starts = range(0, len(records), CHUNK)
    parts = [Records(records.root, records.paths[i : i + CHUNK], records.labels[i : i + CHUNK]) for i in starts]
    processes = min(len(parts), 2 * (os.cpu_count() or 1))  # half of them wait for the disk
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, spawn, initializer=end_with_parent)
    try:
        with interrupts_blocked():
            found = pool.map(_defects_of, parts, starts)
        return dict(itertools.chain.from_iterable(found))
    finally:
        pool.shutdown(cancel_futures=True)


def _defects_of(records: Records, start: int) -> list[tuple[int, str]]:
    reasons = enumerate((defect(records.name(i)) for i in range(len(records))), start)
    return [(i, reason) for i, reason in reasons if reason]


def defect(path: str) -> str | None:
    """Why a file cannot be used as an image, or None.

    Its header has to be an image's. Of JPEG, PNG and WebP a look at the end, or at the length, then tells whether the
    file is whole. Where it does not, and in other formats, the image is decoded to be sure.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                return "empty file"
            image = decode.open_image(file)
            if not _looks_whole(image, file, size):
                file.seek(0)
                _decode_whole(file.read())
            return None
    except (OSError, ValueError) as error:
        return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _looks_whole(image: Image.Image, file: BinaryIO, size: int) -> bool:
    file.seek(max(0, size - TAIL))
    tail = file.read()
    if image.format in JPEG:
        return END_OF_JPEG in tail
    if image.format == "PNG":
        return b"IEND" in tail
    if image.format == "WEBP":
        file.seek(4)
        return int.from_bytes(file.read(4), "little") + 8 <= size
    return False


def _decode_whole(data: bytes) -> None:
    """Raises ValueError with a short reason."""
    image = decode.open_image(data)
    decode.check_pixels(image)
    # What a crash or a broken copy has never written reads as zeros, which decode to grey.
    written = data.rstrip(b"\0")
    if image.format in JPEG and len(data) - len(written) >= TAIL and END_OF_JPEG not in written[-TAIL:]:
        raise ValueError("zeros instead of its end")


def _first(names: Iterable[str], count: int = SHOWN) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _plural(count: int, word: str, words: str | None = None) -> str:
    return f"{count} {word if count == 1 else words or word + 's'}"
