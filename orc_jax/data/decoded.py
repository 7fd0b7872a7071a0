"""Splits in memory that were decoded before: kept in the user's cache, so that the next start has them at once.

What is kept is used only while the files that it was made of are the same, by their names, sizes and times, and while
its own checksums are right. It can be deleted at any time.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orc_jax import cache
from orc_jax.data.types import Images

FILE = "description.json"


class Decoded(NamedTuple):
    """A split in memory, the names of its classes, and the folder that its source lies in."""

    class_names: Sequence[str]
    examples: Images
    source: Path


def kept(asked: Sequence[str], decode: Callable[[], Decoded | None]) -> Decoded | None:
    """The split that was kept as `asked` (set, folder, split), or else the one that `decode` reads, kept now.

    None if `decode` has none that can be kept.
    """
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    place = cache.folder() / "sets" / f"{re.sub(r'[^0-9A-Za-z_]', '_', asked[0])}-{digest}"
    found = _read(place)
    if found is None and (found := decode()) is not None:
        _write(place, found)
    return found


def _state(source: Path) -> list[Any]:
    """What changes if the set is prepared anew, or in another version beside this."""
    files = sorted(path for path in source.iterdir() if path.is_file())
    stats = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    return [sorted(path.name for path in source.parent.iterdir()), stats]


def _read(place: Path) -> Decoded | None:
    try:
        described = json.loads((place / FILE).read_text())
        source = Path(described["source"])
        if _state(source) != described["state"]:
            return None
        # `asarray`: a plain array on the mapped file, which is read as it is used
        arrays = [np.asarray(np.load(place / f"{name}.npy", mmap_mode="r")) for name in Images._fields]
        if [zlib.crc32(array.data) for array in arrays] != described["checksums"]:
            return None
        return Decoded(tuple(described["class_names"]), Images(*arrays), source)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # nothing there, or damaged: it is decoded anew


def _write(place: Path, found: Decoded) -> None:
    """Keeps a split. That there is no room, or no right to write, is no reason to stop."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=place.parent))
    except OSError:
        return
    try:
        for name, array in found.examples._asdict().items():
            np.save(new / f"{name}.npy", array)
        checksums = [zlib.crc32(np.ascontiguousarray(array).data) for array in found.examples]
        described = {"class_names": list(found.class_names), "checksums": checksums}
        described |= {"source": str(found.source.absolute()), "state": _state(found.source)}
        (new / FILE).write_text(json.dumps(described))
        shutil.rmtree(place, ignore_errors=True)
        os.rename(new, place)
    except OSError:
        shutil.rmtree(new, ignore_errors=True)
