"""A look at every image file before training, so that a broken one is found now and not within the first epoch."""

import contextlib
import itertools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import BinaryIO, NamedTuple

from PIL import Image

from orc_jax.data import decode, deep
from orc_jax.data.types import Records
from orc_jax.data.workers import end_with_parent, interrupts_blocked, sharing, start_tracker
from orc_jax.errors import LIMITS, UserError, of_system

TAIL = 1024  # bytes in which the end of a JPEG or PNG is looked for: some cameras append a little
ALONE = {"quick": 10_000, "full": 200}  # files that are looked at without help: within a second or two
CHUNK = {"quick": 1000, "full": 50}  # files that a helping process looks at, at a time
JPEG = ("JPEG", "MPO")  # the latter has several images
END_OF_JPEG = b"\xff\xd9"


class Seen(NamedTuple):
    """What a look at a file has told."""

    defect: str | None = None  # why it cannot be used
    is_image: bool = True  # by what is in it, whole or not
    size: tuple[int, int] = (0, 0)  # width, height in pixels
    values: deep.Values | None = None  # of more than 8 bits a channel


def look_at_all(records: Records, check: str) -> list[Seen]:
    """What a look at every record tells; at many of them in processes, as threads share one core.

    `check` is "quick" (see `look`) or "full": every image is decoded.
    """
    count = len(records)
    if count <= ALONE[check]:
        return [_look_at(records, i, check) for i in range(count)]
    starts = range(0, count, CHUNK[check])
    processes = min(
        len(starts), (2 if check == "quick" else 1) * (os.cpu_count() or 1)
    )  # half of them wait for the disk
    spawn = multiprocessing.get_context("spawn")
    with sharing(), contextlib.ExitStack() as stack:
        start_tracker()
        pool = ProcessPoolExecutor(processes, spawn, initializer=_start, initargs=(records, check))
        stack.callback(pool.shutdown, cancel_futures=True)
        with interrupts_blocked():
            found = pool.map(_look_at_some, starts)
        return list(itertools.chain.from_iterable(found))


_looking: list = []  # in a helping process: the records and the check, which are sent once


def _start(*what) -> None:
    end_with_parent()
    _looking[:] = what


def _look_at_some(start: int) -> list[Seen]:
    records, check = _looking
    return [_look_at(records, i, check) for i in range(start, min(start + CHUNK[check], len(records)))]


def _look_at(records: Records, i: int, check: str) -> Seen:
    path = getattr(records, "path", None)  # of records that are files
    if path and check == "quick":
        return look(path(i))
    try:
        data = records.read(i)[0]
    except OSError as error:
        return _unreadable(error)
    return _decoded(data)


def look(path: str | bytes) -> Seen:
    """What a quick look at a file tells.

    Its header has to be an image's. Of JPEG, PNG and WebP a look at the end, or at the length, then tells whether the
    file is whole. Where it does not, in other formats, and of more than 8 bits a channel, the image is decoded.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                return Seen("empty file")
            try:
                image = decode.open_image(file)
            except ValueError as error:
                return Seen(str(error), is_image=False)
            if not deep.kind(image) and _looks_whole(image, file, size):
                return Seen(size=image.size)
            file.seek(0)
            return _decoded(file.read())
    except OSError as error:
        return _unreadable(error)


def looks_like_image(name: str) -> bool:
    """Whether a name ends as those of images that Pillow reads do."""
    return os.path.splitext(name)[1].lower() in Image.registered_extensions()


def _unreadable(error: OSError) -> Seen:
    """A file that cannot be read; that no more may be open is no defect of it."""
    if error.errno in LIMITS:
        raise UserError(f"images cannot be looked at: {of_system(error)}") from error
    return Seen(error.strerror or str(error))


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


def _decoded(data: bytes) -> Seen:
    if not data:
        return Seen("empty file")
    try:
        image = decode.open_image(data)
    except ValueError as error:
        return Seen(str(error), is_image=False)
    try:
        values = decode.deep_values(image)
        decode.check_pixels(image)
    except ValueError as error:
        return Seen(str(error))
    # What a crash or a broken copy has never written reads as zeros, which decode to grey.
    written = data.rstrip(b"\0")
    if image.format in JPEG and len(data) - len(written) >= TAIL and END_OF_JPEG not in written[-TAIL:]:
        return Seen("zeros instead of its end")
    return Seen(size=image.size, values=values)
