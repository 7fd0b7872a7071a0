"""Image classification sets: the embedded digits, a folder of images, a file of arrays, and any set of TFDS.

Arrays, and sets of TFDS whose images are of one size, are held in memory. A folder, and sets of TFDS whose images are
of many sizes, such as ImageNet, are streamed: their images are read and decoded when a batch needs them.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from orc_jax.data import arrays, checks, folder, layout, npz, splits, tfds_sets
from orc_jax.data.types import Dataset, Images, Records, size
from orc_jax.errors import UserError, first, require, unknown
from orc_jax.plugins import Plugins

SMALL = 96  # pixels up to which images that need not be made smaller are seen whole
LOOKED_AT = 1000  # examples of a streamed set whose labels are looked at before training: a second or two
Wanted = Mapping[str, str]  # splits by their names, the training split first, and the fields that ask for them
FILES = ("folder", "npz")  # sets that config.data_dir alone tells; of others it is where they are prepared
USUAL_CROPS = ((0.08, 1.0), 0.875)  # the defaults of stream.crop_area and stream.eval_crop
# Published per-channel constants of images in [0, 1]. Of other sets in memory they are computed from the training
# images; other sets that are streamed get ImageNet's.
CONSTANTS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def from_arrays(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    class_names: Sequence[str] | None = None,
    config: ConfigDict | None = None,
) -> Dataset:
    """A set in memory of arrays that are there already.

    `train` and `test` are images, uint8 `[n, height, width, channels]`, and labels, integers in `[0, classes)`, `[n]`
    or `[n, 1]`. Classes without names are called by their numbers. With a `config`, its constants and its number of
    examples per class hold, as for a set that it names.

    Raises:
        UserError: if the arrays are not of these shapes and types, labels are out of range, names are not one for each
            class, or the set does not fit the config.
    """
    both = [arrays.checked(split, *arrays.pair(split, given)) for split, given in (("train", train), ("test", test))]
    if class_names is None:
        names = arrays.class_names(f"{name} (train)", both[0].labels)
    else:
        names = arrays.names("class_names", class_names)
    for split, examples in zip(("train", "test"), both, strict=True):
        arrays.check_labels(f"{name} ({split})", examples.labels, len(names))
    both = [examples._replace(labels=examples.labels.astype(np.int32)) for examples in both]
    if both[0].images.shape[1:] != both[1].images.shape[1:]:
        raise UserError(f"train and test images differ in shape: {[list(s.images.shape[1:]) for s in both]}")
    if config is not None:
        return _split_arrays(config, name, names, *both)
    mean, std = _computed_constants(both[0].images)
    return Dataset(name, both[0], both[1], names, both[0].images.shape[1:], mean, std)


def _split_arrays(config: ConfigDict, name: str, class_names: Sequence[str], train: Images, test: Images) -> Dataset:
    """A set of arrays as the config wants it: what a name other than the held-out split's means is `test`."""
    names, held_out = splits.eval_splits(config), None
    if config.validation_share:
        train, held_out = splits.hold_out(train, config)
    found = [held_out if held_out is not None and split == splits.HELD_OUT else test for split in names]
    if sum(split is test for split in found) > 1:
        raise UserError(f"config.eval_splits={config.eval_splits!r}: {name} have one evaluation set")
    dataset = _fitted(config, name, class_names, train, found[0])
    return dataset._replace(others=tuple(zip(names[1:], found[1:], strict=True)))


def load(
    config: ConfigDict,
    warn: Callable[[str], None],
    plugins: Plugins | None = None,
    *,
    trains: bool = True,
    class_names: Sequence[str] = (),
) -> Dataset:
    """The set that `config.dataset` names, prepared first if need be.

    `warn` is told what is left out of a folder. `plugins` has the builder of TFDS that `config.dataset` names, if it is
    one of a person's own. What is not trained on need not fill a batch, and need not be there: it is not read. The
    classes of a folder or a file are then `class_names`, those of the trained networks if these know them.

    Raises:
        UserError: if there is no such set, it is not one of images with one label each, it is neither prepared nor can
            be downloaded, or it does not fit the batch size or the constants.
    """
    names, share = splits.eval_splits(config), config.validation_share
    holds_out = share > 0 and (trains or splits.HELD_OUT in names)
    own = [name for name in names if not (share and name == splits.HELD_OUT)]
    wanted = {config.train_split: "train_split"} if trains or holds_out else {}
    for name in own[:1]:
        wanted.setdefault(name, "eval_split")
    class_names, found, whole = _read(config, wanted, warn, plugins, class_names)
    train = found[next(iter(wanted))]
    for name in own[1:]:
        if name in found:
            continue
        try:
            _, only, small = _read(config, {name: "eval_split"}, warn, plugins, class_names)
        except UserError as error:  # it names a field that a person has not set
            raise UserError(re.sub(r"^config\.eval_split=", "config.eval_splits: ", str(error))) from error
        found, whole = found | only, whole and small
    if holds_out:
        train, found[splits.HELD_OUT] = splits.hold_out(train, config)
    _check_shapes(config, found)
    dataset = _fitted(config, config.dataset, class_names, train, found[names[0]], trains)
    return dataset._replace(whole=whole, others=tuple((name, found[name]) for name in names[1:]))


def _check_shapes(config: ConfigDict, found: dict[str, Images | Records]) -> None:
    shapes = {name: list(split.images.shape[1:]) for name, split in found.items() if isinstance(split, Images)}
    if len(set(map(tuple, shapes.values()))) > 1:
        raise UserError(f"config.eval_splits: images of {config.dataset} differ in shape: {shapes}")


def _read(
    config: ConfigDict,
    wanted: Wanted,
    warn: Callable[[str], None],
    plugins: Plugins | None,
    class_names: Sequence[str],
) -> tuple[Sequence[str], dict[str, Images | Records], bool]:
    """Names of the classes, the splits that are wanted, and whether images are seen whole.

    The names are the training split's if it is wanted, else `class_names` if the set itself has none.
    """
    whole = False
    found: Mapping[str, Images | Records]
    if config.dataset == "digits":
        class_names, found = _digits(wanted)
    elif config.dataset == "folder":
        class_names, found, largest = _folder(config, wanted, warn, class_names)
        usual = (config.stream.crop_area, config.stream.eval_crop) == USUAL_CROPS
        whole = usual and largest <= config.stream.image_size <= SMALL
    elif config.dataset == "npz":
        class_names, found = npz.load(os.path.expanduser(config.data_dir), wanted, config.train_split, class_names)
    else:
        class_names, found = tfds_sets.load(config, wanted, plugins or {})
        if config.stream.check == "full":
            _check_all(config, [split for split in found.values() if not isinstance(split, Images)])
    for name, field in wanted.items():
        split = found[name]
        if not size(split):
            raise UserError(f"config.{field}={name!r} of {config.dataset} has no example")
        if not isinstance(split, folder.Records):  # whose labels are numbers of its folders
            # Of a streamed set a look at some; each is looked at when it is read.
            labels = split.labels if isinstance(split, Images) else split.some_labels(LOOKED_AT)
            arrays.check_labels(f"config.{field}={name!r} of {config.dataset}", labels, len(class_names))
    return class_names, {name: _narrow(found[name]) for name in wanted}, whole


def _narrow(split: Images | Records) -> Images | Records:
    return split._replace(labels=split.labels.astype(np.int32)) if isinstance(split, Images) else split


def _fitted(
    config: ConfigDict,
    name: str,
    class_names: Sequence[str],
    train: Images | Records,
    test: Images | Records,
    trains: bool = True,
) -> Dataset:
    """The set as the config wants it: so many examples of each class, and its constants."""
    if trains and config.examples_per_class:
        train = _balanced(config, train, class_names)
    if trains and config.batch_size > size(train):
        raise UserError(
            f"config.batch_size={config.batch_size}: must be at most the {size(train)} training examples of "
            f"{name} ({config.train_split})"
        )
    if trains and len(class_names) < 2:
        raise UserError(f"config.dataset={name!r}: has {len(class_names)} class and so nothing to tell apart")
    if trains and config.balanced_sampling:
        splits.require_labels(train, "config.balanced_sampling=True", name, "False, or a set in memory or of a folder")
    image_shape = train.images.shape[1:] if isinstance(train, Images) else (*[config.stream.image_size] * 2, 3)
    mean, std = _constants(config, name, train, image_shape[-1])
    return Dataset(name, train, test, tuple(class_names), image_shape, mean, std)


def _digits(wanted: Wanted) -> tuple[list[str], dict[str, Images]]:
    """Scikit-learn's 1,797 handwritten digits, 8x8 grey: a fixed, stratified split of four to one."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits: Any = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    halves = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    splits = {"train": Images(halves[0], halves[2]), "test": Images(halves[1], halves[3])}
    for name, field in wanted.items():
        if name not in splits:
            raise unknown(f"config.{field}", name, splits)
    return [str(digit) for digit in digits.target_names], splits


def _folder(
    config: ConfigDict, wanted: Wanted, warn: Callable[[str], None], class_names: Sequence[str]
) -> tuple[Sequence[str], dict[str, folder.Records], int]:
    """Names of the classes, the splits, and the pixels of the longest side of any image."""
    require("config.data_dir", repr(config.data_dir), bool(config.data_dir), "the folder with train/<class>/<image>")
    root = os.path.expanduser(config.data_dir)
    fields = {name: config.stream[name] for name in folder.Options._fields if name in config.stream}
    options = folder.Options(label_file=config.label_file, **fields)
    # Where nothing is trained, a training split tells at most the names of the classes.
    train_split = config.train_split if "train_split" in wanted.values() else None
    if train_split is None and not class_names:
        class_names = folder.in_order(layout.class_folders(root, config.train_split, options.skip_other_files))
    *_, eval_split = wanted
    found = folder.load(root, train_split, eval_split, options, warn, class_names)
    if train_split is None:
        return found.class_names, {eval_split: found.test}, found.largest
    folder.require_classes(found.class_names, root, train_split)
    return found.class_names, {train_split: found.train} | {eval_split: found.test}, found.largest


def _check_all(config: ConfigDict, splits: Sequence[Any]) -> None:
    """Decodes every image of streamed splits, and looks at every label."""
    for split in splits:
        seen = checks.look_at_all(split, config.stream.check)
        broken = [f"{split.name(i)} ({one.defect})" for i, one in enumerate(seen) if one.defect]
        if broken and not config.stream.skip_corrupt:
            raise UserError(
                f"config.dataset={config.dataset!r}: {len(broken)} of {len(split)} images cannot be used: "
                f"{first(broken)}. config.stream.skip_corrupt=True would leave them out"
            )


def _balanced(config: ConfigDict, train: Images | Records, class_names: Sequence[str]) -> Images:
    """The first `config.examples_per_class` training examples of each class, in the order of the set."""
    count = config.examples_per_class
    field = f"config.examples_per_class={count}"
    if not isinstance(train, Images):
        raise UserError(f"{field}: only for sets in memory, and {config.dataset} is streamed; accepted is 0")
    rows = [np.flatnonzero(train.labels == label)[:count] for label in range(len(class_names))]
    least = min(range(len(rows)), key=lambda label: len(rows[label]))
    if len(rows[least]) < count:
        raise UserError(
            f"{field}: must be at most {len(rows[least])}, all that there are of class {class_names[least]}"
        )
    kept = np.sort(np.concatenate(rows))
    return Images(train.images[kept], train.labels[kept])


def _constants(
    config: ConfigDict, name: str, train: Images | Records, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if config.mean or config.std:
        require_constants("config.", config.mean, config.std, channels)
        return tuple(config.mean), tuple(config.std)
    known = name.partition(":")[0]  # cifar100:3.0.2 is a version of it
    if known in CONSTANTS:
        return CONSTANTS[known]
    if not isinstance(train, Images):
        return CONSTANTS["imagenet2012"]
    return _computed_constants(train.images)


def require_constants(where: str, mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    """Checks the constants of images that are given as `mean` and `std` after `where`, such as "config.".

    Raises:
        UserError: if they are not one for each channel, or not those of images in [0, 1].
    """
    for field, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise UserError(f"{where}{field}={tuple(values)}: must have {channels} values, one per channel")
    scale = "of images in [0, 1]; of values from 0 to 255, divide by 255"
    for field, values, fine, accepted in (
        ("mean", mean, all(0 <= value <= 1 for value in mean), "from 0 to 1"),
        ("std", std, all(0 < value <= 1 for value in std), "greater than 0 and at most 1"),
    ):
        require(f"{where}{field}", tuple(values), fine, f"{accepted}, {scale}")


def _computed_constants(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # Exact sums over integers, so that the constants do not depend on the order of a reduction.
    counts = [np.bincount(images[..., c].reshape(-1), minlength=256) for c in range(images.shape[-1])]
    values = np.arange(256) / 255.0
    mean = [float(np.average(values, weights=count)) for count in counts]
    std = [float(np.sqrt(np.average((values - m) ** 2, weights=count))) for m, count in zip(mean, counts, strict=True)]
    return tuple(mean), tuple(max(s, 1e-6) for s in std)
