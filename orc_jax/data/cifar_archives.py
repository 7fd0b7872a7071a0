"""CIFAR-10 and CIFAR-100 from their published archives, prepared as TFDS does, but without TensorFlow.

The examples, their order, ids and labels and the bytes of their images are those of the set that TFDS prepares.
"""

import hashlib
import os
import shutil
import tarfile
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from orc_jax.data import png

NAMES = ("cifar10", "cifar100")
SHAPE = (3, 32, 32)  # of an image in a file: channels first
AT_ONCE = 500  # images that are encoded together


def prepare(builder: Any) -> None:
    """Prepares the set of a builder of TFDS. An archive that lies in the data directory is taken, else downloaded.

    Raises:
        OSError, ValueError: if it cannot be had, or is not the published one.
    """
    about, data_dir = builder._cifar_info, Path(os.fspath(builder.data_path)).parent.parent
    archive = data_dir / _name(builder)
    downloaded = data_dir / "downloads" / archive.name
    if not archive.is_file():
        archive = downloaded
    _have(archive, about.url, builder.url_infos[about.url].checksum)
    folder = data_dir / "downloads" / f"{builder.name}.extracted"
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    there = folder / about.prefix
    for key, name in zip(about.label_keys, about.label_files, strict=True):
        builder.info.features[key].names = (there / name).read_text().split()

    def split_generators(download_manager) -> dict[str, Iterator[tuple[int, dict]]]:
        del download_manager
        return {
            split: _examples(split, [there / name for name in files], about.label_keys)
            for split, files in (("train", about.train_files), ("test", about.test_files))
        }

    # What of the builder reads with TensorFlow; the rest, which shuffles and writes, does without.
    builder._split_generators = split_generators
    builder._make_download_manager = lambda **options: SimpleNamespace(downloaded_size=archive.stat().st_size)
    builder.download_and_prepare()
    shutil.rmtree(folder)


def wanted(builder: Any) -> str:
    """The name of the archive that `prepare` reads, and what of the same set lies in the data directory instead."""
    name, data_dir = _name(builder), Path(os.fspath(builder.data_path)).parent.parent
    others = sorted(path.name for path in data_dir.glob(name.replace("binary.tar.gz", "*py*")))  # that for Python
    return f"{name} ({', '.join(others)}, which is there, is another form and not read)" if others else name


def _name(builder: Any) -> str:
    return builder._cifar_info.url.rpartition("/")[2]


def _have(archive: Path, url: str, checksum: str) -> None:
    """Downloads an archive unless it is there; the published one has this SHA-256."""
    if not archive.is_file():
        part = archive.with_name(archive.name + ".part")
        with urllib.request.urlopen(url, timeout=60) as source:
            archive.parent.mkdir(parents=True, exist_ok=True)  # not without a network: the folder may be a slip
            with part.open("wb") as file:
                shutil.copyfileobj(source, file)
        part.replace(archive)
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != checksum:
        raise ValueError(f"{archive} is not the published archive: its SHA-256 is {found}, not {checksum}; delete it")


def _examples(split: str, files: Sequence[Path], label_keys: Sequence[str]) -> Iterator[tuple[int, dict]]:
    """Key and example of every record; the key is what TFDS shuffles by."""
    key = 0
    for path in files:
        records = np.fromfile(path, np.uint8).reshape(-1, len(label_keys) + int(np.prod(SHAPE)))
        for start in range(0, len(records), AT_ONCE):
            part = records[start : start + AT_ONCE]
            images = part[:, len(label_keys) :].reshape(-1, *SHAPE).transpose(0, 2, 3, 1)
            for labels, image in zip(part[:, : len(label_keys)].tolist(), png.encode(images), strict=True):
                yield key, dict(zip(label_keys, labels, strict=True)) | {"id": f"{split}_{key:05d}", "image": image}
                key += 1
