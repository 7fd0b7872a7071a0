"""Sets of TFDS: in memory if their images are of one size, else streamed."""

import difflib
import functools
import importlib.util
import os
import shlex
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from orc_jax.data import cifar_archives, decoded
from orc_jax.data.decoded import Decoded
from orc_jax.data.types import Images
from orc_jax.errors import UserError, unknown
from orc_jax.places import place
from orc_jax.plugins import Plugins, is_own

ARRAY_RECORD = "array_record"  # the format that is read in any order, and without TensorFlow


class EncodedImages(NamedTuple):
    """A split in `array_record`, which is read without TensorFlow. `read` and `name` make it a `Records`."""

    source: Any  # of TFDS; leaves the images encoded
    image_key: str
    label_key: str
    title: str
    num_classes: int

    def __len__(self) -> int:
        return len(self.source)

    def read(self, i: int) -> tuple[bytes, int]:
        """The encoded image and the label of example `i`. Raises UserError if the label is no class."""
        example = self.source[int(i)]
        label = int(example[self.label_key])
        if not 0 <= label < self.num_classes:
            raise UserError(f"{self.name(i)} has the label {label}: must be 0 to {self.num_classes - 1}")
        return example[self.image_key], label

    def some_labels(self, most: int) -> np.ndarray:
        """Labels of at most so many examples, evenly spaced, as they are: int64 `[n]`."""
        rows = np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).astype(int))
        return np.array([self.source[int(i)][self.label_key] for i in rows], np.int64)

    def name(self, i: int) -> str:
        """What to call example `i` in a message."""
        return f"example {i} of {self.title}"


class Source(NamedTuple):
    """A set that is prepared, and which of its features are read."""

    dataset: str  # as the config names it
    builder: Any  # of TFDS
    image_key: str
    label_key: str

    @property
    def class_names(self) -> Sequence[str]:
        """In the order of the labels."""
        return self.builder.info.features[self.label_key].names

    @property
    def is_streamed(self) -> bool:
        """Whether its images are of many sizes."""
        return None in self.builder.info.features[self.image_key].shape


def load(
    config: ConfigDict, wanted: Mapping[str, str], plugins: Plugins
) -> tuple[Sequence[str], dict[str, Images | EncodedImages]]:
    """Names of the classes of the set `config.dataset`, prepared if need be, and the splits that are wanted.

    They are wanted by their names, with the fields that ask for them. A builder of a person's own is among `plugins`.

    Raises:
        UserError: if there is no such set or split, it is not one of images with one label each, or it is neither
            prepared nor can be downloaded.
    """
    if config.data_dir and os.path.exists(config.data_dir) and not os.path.isdir(config.data_dir):
        raise UserError(f"config.data_dir={config.data_dir!r} is not a directory")
    opened = functools.cache(lambda: _opened(config, plugins))  # imports TFDS, which takes its time
    if is_own(config.dataset):
        return opened().class_names, {split: _examples(opened(), field, split) for split, field in wanted.items()}
    place("TFDS_DATA_DIR", os.environ.get("TFDS_DATA_DIR", ""))
    where = os.path.abspath(config.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    keys = [key for key in (config.image_key, config.label_key) if key]
    names: Sequence[str] = ()
    found: dict[str, Images | EncodedImages] = {}
    for split, field in wanted.items():
        decode = functools.partial(_decoded, opened, field, split)
        kept = decoded.kept([config.dataset, where, split, *keys], decode)
        names = kept.class_names if kept else opened().class_names
        found[split] = kept.examples if kept else _examples(opened(), field, split)
    return names, found


def _decoded(opened: Callable[[], Source], field: str, split: str) -> Decoded | None:
    """A split in memory; None if the set is streamed, or does not lie on this machine."""
    source = opened()
    folder = Path(os.fspath(source.builder.data_path))
    if source.is_streamed or not folder.is_dir():
        return None
    return Decoded(source.class_names, _examples(source, field, split), folder)


def _opened(config: ConfigDict, plugins: Plugins) -> Source:
    import tensorflow_datasets as tfds

    name = _name(config.dataset, plugins)
    where = {"data_dir": config.data_dir} if config.data_dir else {}
    try:
        builder: Any = tfds.builder(name, **where)
    except tfds.core.DatasetNotFoundError:
        near = difflib.get_close_matches(config.dataset, ["digits", "folder", "npz", *tfds.list_builders()], n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UserError(
            f"config.dataset={config.dataset!r} is not known.{hint} Accepted: digits, folder, npz, or any image "
            "classification set of TFDS, such as cifar10, cifar100, mnist, fashion_mnist, svhn_cropped."
        ) from None
    except ImportError as error:
        raise UserError(f"config.dataset={config.dataset!r} is not prepared, and {_missing(error)}") from error
    except (ValueError, KeyError, OSError, AssertionError) as error:
        raise UserError(f"config.dataset={config.dataset!r} cannot be opened: {error}") from error
    features = dict(builder.info.features.items())
    named = builder.info.supervised_keys or ()
    image_key = _key(config, "image_key", features, tfds.features.Image, named)
    label_key = _key(config, "label_key", features, tfds.features.ClassLabel, named)
    if features[image_key].np_dtype != np.uint8:
        raise UserError(f"config.dataset={config.dataset!r} has images of {features[image_key].np_dtype}, not of bytes")
    return Source(config.dataset, _prepare(builder, name, config), image_key, label_key)


def _examples(source: Source, field: str, split: str) -> Any:
    """A split of a set: `EncodedImages` of one that is streamed, else `Images`."""
    builder = source.builder
    try:
        return (_open if source.is_streamed else _read)(builder, split, source.image_key, source.label_key)
    except ImportError as error:
        format = builder.info.file_format.value
        raise UserError(
            f"config.dataset={source.dataset!r} is prepared as {format}, and to read that {_missing(error)}"
        ) from error
    except (ValueError, KeyError) as error:
        have = ", ".join(f"{name} ({info.num_examples})" for name, info in builder.info.splits.items())
        raise UserError(f"config.{field}={split!r}: {error} {source.dataset} has {have}.") from error


def _key(config: ConfigDict, field: str, features: dict[str, Any], kind: type, named: Sequence[Any]) -> str:
    """The feature that a field names, or the set itself, or the only one of its kind."""
    fitting = [key for key, feature in features.items() if isinstance(feature, kind)]
    usual = field.removesuffix("_key")
    likely = [key for key in fitting if key in named] or [key for key in fitting if key == usual] or fitting
    if config[field]:
        if config[field] not in fitting:
            raise unknown(f"config.{field}", config[field], fitting)
        return config[field]
    if not likely:
        raise UserError(
            f"config.dataset={config.dataset!r} is not an image classification set: has {list(features)}, of which "
            f"none is a {kind.__name__}"
        )
    if len(likely) > 1:
        raise UserError(
            f"config.dataset={config.dataset!r}: config.{field} must say which: {', '.join(sorted(likely))}"
        )
    return likely[0]


def _name(dataset: str, plugins: Plugins) -> str:
    """The name by which TFDS knows a set; a builder of a person's own is known to it once it is imported."""
    if not is_own(dataset):
        return dataset
    builder = plugins[dataset]
    if not hasattr(builder, "name"):
        raise UserError(f"config.dataset={dataset!r} is not a builder of TFDS (tfds.core.GeneratorBasedBuilder)")
    return builder.name


def _prepare(builder: Any, name: str, config: ConfigDict):
    """Downloads and prepares the set unless it already lies in the data directory."""
    import tensorflow_datasets as tfds

    if builder.info.splits:
        return builder
    _check_depth(builder, config)
    # array_record can be read without TensorFlow; preparing other sets than CIFAR's needs it.
    from_archive = builder.name in cifar_archives.NAMES
    missing = f"config.dataset={config.dataset!r} is not prepared in {builder.data_path.parent.parent}, and"
    point = f"Point config.data_dir (or TFDS_DATA_DIR) at a directory that holds {config.dataset}/{builder.version}"
    if not from_archive and importlib.util.find_spec("tensorflow") is None:
        raise UserError(f"{missing} {_missing()}, and then give the same command again. {point}")
    builder = tfds.builder(name, data_dir=config.data_dir or None, file_format=ARRAY_RECORD)
    try:
        if from_archive:
            cifar_archives.prepare(builder)
        else:
            _check_network(builder)
            builder.download_and_prepare()
    except Exception as error:  # TFDS raises whatever its downloader, TensorFlow or the disk does
        archive = f", or at one with its published archive, {cifar_archives.wanted(builder)}" if from_archive else ""
        raise UserError(
            f"{missing} preparing it failed: {type(error).__name__}: {error}\n{point}{archive}, or run once where "
            "there is a network."
        ) from error
    return builder


def _check_depth(builder: Any, config: ConfigDict) -> None:
    """Raises `UserError` if the data directory is the folder of the set itself, prepared, or that of its version."""
    data_dir, inside = builder.data_path.parent.parent, Path(builder.name, str(builder.version))
    for tfds_dir in Path(os.path.abspath(data_dir)).parents:
        there = tfds_dir / inside
        if there.is_relative_to(os.path.abspath(data_dir)) and (there / "dataset_info.json").is_file():
            field = "config.data_dir" if config.data_dir else "TFDS_DATA_DIR"
            raise UserError(
                f"{field}={os.fspath(data_dir)!r}: must be the folder that {config.dataset} lies in as {inside}, "
                f"which is {os.fspath(tfds_dir)!r}"
            )


def _missing(error: ImportError | None = None) -> str:
    """The one command that installs what TFDS needs where a set is not prepared, or not as array_record."""
    if error is not None and "tensorflow" not in str(error):
        return f"a package is missing ({error}); requirements.txt has all"
    if sys.version_info >= (3, 14):
        return (
            "TFDS needs TensorFlow, which there is not for Python 3.14; an environment of an older one can prepare it"
        )
    repository = Path(__file__).parents[2] / "requirements-prepare.txt"
    what = f"-r {shlex.quote(str(repository))}" if repository.is_file() else "'orc_jax[prepare]'"
    return f"TFDS needs TensorFlow, once: {shlex.quote(sys.executable)} -m pip install {what}"


def _check_network(builder) -> None:
    """Raises OSError if the set's servers cannot be found; TFDS itself would try for minutes."""
    if urllib.request.getproxies():
        return  # a proxy looks names up, not this machine
    for host in {urllib.parse.urlsplit(url).hostname for url in builder.url_infos or ()} - {None}:
        try:
            socket.getaddrinfo(host, 443)
        except OSError as error:
            raise OSError(f"no network, {host} cannot be found ({error})") from error


def _open(builder: Any, split: str, image_key: str, label_key: str) -> EncodedImages:
    """One split to be streamed."""
    import tensorflow_datasets as tfds

    if builder.info.file_format.value != ARRAY_RECORD:
        raise UserError(
            f"config.dataset={builder.name!r} is prepared as {builder.info.file_format.value} in {builder.data_path}, "
            "which cannot be read in any order; streaming needs it prepared as array_record"
        )
    source = builder.as_data_source(split=split, decoders={image_key: tfds.decode.SkipDecoding()})
    num_classes = builder.info.features[label_key].num_classes
    return EncodedImages(source, image_key, label_key, f"{builder.info.full_name} {split}", num_classes)


def _read(builder: Any, split: str, image_key: str, label_key: str) -> Images:
    """One split into memory; sets in random-access formats are read without TensorFlow."""
    import tensorflow_datasets as tfds

    if builder.info.file_format.value == ARRAY_RECORD:
        source = builder.as_data_source(split=split)
        examples = (source[i] for i in range(len(source)))
    else:
        examples = tfds.as_numpy(builder.as_dataset(split=split))
    images, labels = [], []
    for example in examples:
        images.append(example[image_key])
        labels.append(example[label_key])
    shape = builder.info.features[image_key].shape
    return Images(np.array(images, np.uint8).reshape(-1, *shape), np.array(labels, np.int32))
