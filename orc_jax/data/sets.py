"""Image classification sets that fit in memory, as uint8 arrays: the embedded digits, and any such set of TFDS."""

import difflib
import os
import socket
import urllib.parse
import urllib.request
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from orc_jax.errors import UserError, unknown

# Published per-channel constants of images in [0, 1]; of other sets they are computed from the training images.
CONSTANTS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


class Images(NamedTuple):
    """A labelled set, or a batch of one, on the host or on a device."""

    images: np.ndarray | jax.Array  # uint8 [n, height, width, channels]
    labels: np.ndarray | jax.Array  # int32 [n]


class Dataset(NamedTuple):
    """A training and an evaluation set in host memory, and what a network must know about them."""

    name: str
    train: Images  # uint8 [n, height, width, channels], int32 [n]
    test: Images
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load(config: ConfigDict) -> Dataset:
    """The set that `config.dataset` names, prepared first if need be.

    Raises:
        UserError: if there is no such set, it is not one of images of one size with integer labels, it is neither
            prepared nor can be downloaded, or it does not fit the batch size or the constants.
    """
    if config.dataset == "digits":
        train, test, num_classes = _digits(config)
    else:
        train, test, num_classes = _tfds(config)
    for field, images in (("train_split", train), ("eval_split", test)):
        if not len(images.labels):
            raise UserError(f"config.{field}={config[field]!r} of {config.dataset} has no example")
        low, high = images.labels.min(), images.labels.max()
        if low < 0 or high >= num_classes:
            raise UserError(f"{config.dataset} has labels {low} to {high}, but only {num_classes} classes")
    if config.batch_size > len(train.labels):
        raise UserError(
            f"config.batch_size={config.batch_size}: must be at most the {len(train.labels)} training examples of "
            f"{config.dataset} ({config.train_split})"
        )
    mean, std = _constants(config, train)
    return Dataset(config.dataset, train, test, num_classes, mean, std)


def _digits(config: ConfigDict) -> tuple[Images, Images, int]:
    """Scikit-learn's 1,797 handwritten digits, 8x8 grey: a fixed, stratified split of four to one."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    halves = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    splits = {"train": Images(halves[0], halves[2]), "test": Images(halves[1], halves[3])}
    for field in ("train_split", "eval_split"):
        if config[field] not in splits:
            raise unknown(f"config.{field}", config[field], splits)
    return splits[config.train_split], splits[config.eval_split], 10


def _tfds(config: ConfigDict) -> tuple[Images, Images, int]:
    import tensorflow_datasets as tfds

    if config.data_dir and os.path.exists(config.data_dir) and not os.path.isdir(config.data_dir):
        raise UserError(f"config.data_dir={config.data_dir!r} is not a directory")
    where = {"data_dir": config.data_dir} if config.data_dir else {}
    try:
        builder = tfds.builder(config.dataset, **where)
    except tfds.core.DatasetNotFoundError:
        near = difflib.get_close_matches(config.dataset, ["digits", *tfds.list_builders()], n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UserError(
            f"config.dataset={config.dataset!r} is not known.{hint} Accepted: digits, or any image classification set "
            "of TFDS, such as cifar10, cifar100, mnist, fashion_mnist, svhn_cropped."
        ) from None
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"config.dataset={config.dataset!r} cannot be opened: {error}") from error
    features = dict(builder.info.features.items())
    keys = builder.info.supervised_keys or ("image", "label")
    if len(keys) != 2 or not (
        isinstance(features.get(keys[0]), tfds.features.Image)
        and isinstance(features.get(keys[1]), tfds.features.ClassLabel)
    ):
        raise UserError(f"config.dataset={config.dataset!r} is not an image classification set: has {list(features)}")
    image_key, label_key = keys
    if None in features[image_key].shape or features[image_key].np_dtype != np.uint8:
        raise UserError(
            f"config.dataset={config.dataset!r} has images of shape {features[image_key].shape}: only sets whose "
            "images are of one size can be held in memory"
        )
    builder = _prepare(builder, config)
    splits = []
    for field in ("train_split", "eval_split"):
        try:
            splits.append(_read(builder, config[field], image_key, label_key))
        except ImportError as error:
            raise UserError(
                f"config.dataset={config.dataset!r} is prepared as {builder.info.file_format.value}, and a package "
                f"that reading it needs is missing (requirements.txt has all): {error}"
            ) from error
        except (ValueError, KeyError) as error:
            have = ", ".join(f"{name} ({info.num_examples})" for name, info in builder.info.splits.items())
            raise UserError(f"config.{field}={config[field]!r}: {error} {config.dataset} has {have}.") from error
    return splits[0], splits[1], features[label_key].num_classes


def _prepare(builder, config: ConfigDict):
    """Downloads and prepares the set unless it already lies in the data directory."""
    import tensorflow_datasets as tfds

    if builder.info.splits:
        return builder
    # array_record can be read without TensorFlow; preparing a set needs it.
    builder = tfds.builder(config.dataset, data_dir=config.data_dir or None, file_format="array_record")
    try:
        _check_network(builder)
        builder.download_and_prepare()
    except Exception as error:  # TFDS raises whatever its downloader, TensorFlow or the disk does
        raise UserError(
            f"config.dataset={config.dataset!r} is not prepared in {builder.data_path.parent.parent}, and preparing it "
            f"failed: {type(error).__name__}: {error}\nPoint config.data_dir (or TFDS_DATA_DIR) at a directory that "
            f"holds {config.dataset}/{builder.version}, or run once where there is a network."
        ) from error
    return builder


def _check_network(builder) -> None:
    """Raises OSError if the set's servers cannot be found; TFDS itself would try for minutes."""
    if urllib.request.getproxies():
        return  # a proxy looks names up, not this machine
    for host in {urllib.parse.urlsplit(url).hostname for url in builder.url_infos} - {None}:
        try:
            socket.getaddrinfo(host, 443)
        except OSError as error:
            raise OSError(f"no network, {host} cannot be found ({error})") from error


def _read(builder, split: str, image_key: str, label_key: str) -> Images:
    """One split into memory; sets in random-access formats are read without TensorFlow."""
    import tensorflow_datasets as tfds

    if builder.info.file_format is tfds.core.file_adapters.FileFormat.ARRAY_RECORD:
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


def _constants(config: ConfigDict, train: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    channels = train.images.shape[-1]
    if config.mean or config.std:
        for field in ("mean", "std"):
            if len(config[field]) != channels:
                raise UserError(f"config.{field}={tuple(config[field])}: must have {channels} values, one per channel")
        if min(config.std) <= 0:
            raise UserError(f"config.std={tuple(config.std)}: must be greater than 0")
        return tuple(config.mean), tuple(config.std)
    if config.dataset in CONSTANTS:
        return CONSTANTS[config.dataset]
    # Exact sums over integers, so that the constants do not depend on the order of a reduction.
    counts = [np.bincount(train.images[..., c].reshape(-1), minlength=256) for c in range(channels)]
    values = np.arange(256) / 255.0
    mean = [float(np.average(values, weights=count)) for count in counts]
    std = [float(np.sqrt(np.average((values - m) ** 2, weights=count))) for m, count in zip(mean, counts, strict=True)]
    return tuple(mean), tuple(max(s, 1e-6) for s in std)
