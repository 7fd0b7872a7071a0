"""Sets of images: the embedded digits, arrays, parts of a set, and the constants of its normalisation."""

import jax
import numpy as np
import pytest

from orc_jax import config as configs
from orc_jax.data import feed, sets, tfds_sets
from orc_jax.data.types import Images
from orc_jax.errors import UserError
from orc_jax.workdir.record import Record
from tests.data.pictures import encode, picture


def config_for(**fields):
    config = configs.default()
    config.update(fields)
    return config


def test_digits():
    dataset = sets.load(config_for(dataset="digits"), print)
    assert dataset.train.images.shape == (1437, 8, 8, 1) and dataset.test.images.shape == (360, 8, 8, 1)
    assert dataset.train.images.dtype == np.uint8 and dataset.train.images.max() == 255
    assert set(dataset.test.labels) == set(range(10)) and dataset.num_classes == 10
    pixels = dataset.train.images.astype(np.float64) / 255
    np.testing.assert_allclose((dataset.mean[0], dataset.std[0]), (pixels.mean(), pixels.std()), rtol=1e-9)


def digits(**fields):
    return config_for(dataset="digits", **fields)


def test_which_split_is_which():
    usual = sets.load(digits(), print)
    turned = sets.load(digits(train_split="test", eval_split="train"), print)
    np.testing.assert_array_equal(turned.train.images, usual.test.images)
    np.testing.assert_array_equal(turned.test.labels, usual.train.labels)
    for field in ("train_split", "eval_split"):
        with pytest.raises(UserError, match=f"config.{field}='trian' is not known. Did you mean train"):
            sets.load(digits(**{field: "trian"}), print)


def test_constants():
    """Those of the config before those of the set; a colour that never changes does not divide by 0."""
    dataset = sets.load(digits(mean=(0.25,), std=(0.5,)), print)
    assert (dataset.mean, dataset.std) == ((0.25,), (0.5,))
    images = np.full((4, 2, 2, 2), 51, np.uint8)
    images[:2, ..., 1] = 255
    dataset = sets.from_arrays("x", (images, np.arange(4)), (images[:1], [0]), list("abcd"))
    np.testing.assert_allclose(dataset.mean, (0.2, 0.6))
    np.testing.assert_allclose(dataset.std, (1e-6, 0.4))
    assert dataset.name == "x" and dataset.image_shape == (2, 2, 2) and dataset.class_names == ("a", "b", "c", "d")
    assert dataset.train.labels.dtype == np.int32 and not dataset.is_streamed
    config = config_for(mean=(0.5, 0.4), std=(0.1, 0.2), batch_size=2)
    dataset = sets.from_arrays("x", (images, np.arange(4)), (images[:1], [0]), list("abcd"), config)
    assert (dataset.mean, dataset.std) == ((0.5, 0.4), (0.1, 0.2))


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        (
            125.3,
            0.25,
            r"config.mean=\(125.3,\): must be from 0 to 1, of images in \[0, 1\]; of values from 0 to 255, divide",
        ),
        (-0.1, 0.25, "config.mean="),
        (np.nan, 0.25, "config.mean="),
        (0.5, 63.0, r"config.std=\(63.0,\): must be greater than 0 and at most 1, of images in \[0, 1\]; .* by 255$"),
        (0.5, 0.0, "config.std="),
        (0.5, np.nan, "config.std="),
    ],
)
def test_constants_of_another_scale(mean, std, text):
    with pytest.raises(UserError, match=text):
        sets.load(digits(mean=(mean,), std=(std,)), print)


def test_a_balanced_subset():
    whole, subset = sets.load(digits(), print), sets.load(digits(examples_per_class=12, batch_size=60), print)
    assert np.bincount(subset.train.labels).tolist() == [12] * 10
    for label in (0, 7):  # the first of each class
        expected = whole.train.images[whole.train.labels == label][:12]
        np.testing.assert_array_equal(subset.train.images[subset.train.labels == label], expected)
    assert len(subset.test.labels) == len(whole.test.labels)
    with pytest.raises(UserError, match=r"config.examples_per_class=150: must be at most 139, all .* of class 8"):
        sets.load(digits(examples_per_class=150), print)
    with pytest.raises(UserError, match=r"config.batch_size=64: must be at most the 10 training examples"):
        sets.load(digits(examples_per_class=1), print)


def test_what_tfds_gives(monkeypatch):
    """It is looked at, and published constants are taken for the set that they belong to."""
    images, labels = np.full((64, 4, 4, 3), 51, np.uint8), np.arange(64, dtype=np.int32) % 2
    splits = {"train": Images(images, labels), "test": Images(images, labels), "none": Images(images[:0], labels[:0])}
    splits |= {"strange": Images(images, labels + 1), "hidden": Images(images, labels * 0 - 1)}

    def from_tfds(config, wanted, plugins):
        return ["a", "b"], {split: splits[split] for split in wanted}

    monkeypatch.setattr(tfds_sets, "load", from_tfds)
    for name, mean, std in (
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ("cifar100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        ("imagenet2012", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("svhn_cropped", (0.2,) * 3, (1e-6,) * 3),
    ):
        dataset = sets.load(config_for(dataset=name), print)
        np.testing.assert_allclose((dataset.mean, dataset.std), (mean, std), rtol=1e-6)
    for fields, text in (
        ({"train_split": "none"}, "config.train_split='none' of cifar10 has no example"),
        ({"eval_split": "none"}, "config.eval_split='none' of cifar10 has no example"),
        ({"eval_split": "strange"}, "config.eval_split='strange' of cifar10 has labels 1 to 2, but only 2 classes"),
        (
            {"train_split": "hidden"},
            "config.train_split='hidden' of cifar10 has no labels: all are -1, as of a test split",
        ),
    ):
        with pytest.raises(UserError, match=text):
            sets.load(config_for(dataset="cifar10", **fields), print)


def test_a_folder_is_streamed(tmp_path):
    for split, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                (tmp_path / split / name / f"{i}.jpg").write_bytes(encode(picture(20, 30, i)))
    config = config_for(dataset="folder", data_dir=str(tmp_path), eval_split="val", batch_size=8)
    config.stream.image_size = 24
    dataset = sets.load(config, pytest.fail)
    assert dataset.is_streamed and dataset.num_train == 8 and len(dataset.test) == 4
    assert dataset.image_shape == (24, 24, 3) and dataset.class_names == ("cat", "dog")
    assert (dataset.mean, dataset.std) == sets.CONSTANTS["imagenet2012"]
    config.mean, config.std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    assert sets.load(config, pytest.fail).mean == (0.1, 0.2, 0.3)
    for fields, text in (
        ({"batch_size": 9}, "config.batch_size=9: must be at most the 8 training examples of folder"),
        ({"examples_per_class": 1}, "config.examples_per_class=1: only for sets in memory, and folder is streamed"),
        ({"data_dir": ""}, "config.data_dir=.*must be the folder with train/<class>/<image>"),
    ):
        with pytest.raises(UserError, match=text):
            sets.load(
                config_for(**{name: config[name] for name in ("dataset", "data_dir", "eval_split")} | fields), print
            )
    (tmp_path / "train" / "dog" / "0.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"config.stream.skip_corrupt=True would leave them out"):
        sets.load(config, pytest.fail)
    config.stream.skip_corrupt, config.batch_size, warnings = True, 7, []
    assert sets.load(config, warnings.append).num_train == 7
    assert len(warnings) == 1 and "0.jpg (empty file); left out" in warnings[0]


def small_folder(root, size):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(3):
                (root / split / name / f"{i}.png").write_bytes(encode(picture(size, size, i), "PNG"))
    config = config_for(dataset="folder", data_dir=str(root), eval_split="val", batch_size=6, eval_batch_size=6)
    config.stream.update(image_size=32, num_workers=0)
    return config


def test_small_images_in_a_folder_are_evaluated_as_they_are(tmp_path):
    """The tree of CIFAR gives what its set in memory gives."""
    config = small_folder(tmp_path, 32)
    dataset = sets.load(config, pytest.fail)
    assert dataset.whole
    with feed.evaluation(dataset, config, jax.local_devices()[:1]) as batches:
        ((batch, _),) = batches
    expected = [np.asarray(picture(32, 32, i % 3)) for i in range(6)]
    np.testing.assert_array_equal(np.asarray(batch.images)[0], expected)
    with feed.evaluation(dataset._replace(whole=False), config, jax.local_devices()[:1]) as batches:
        ((cropped, _),) = batches
    assert not np.array_equal(cropped.images, batch.images)
    for change in ({"eval_crop": 0.8}, {"crop_area": (0.5, 1.0)}, {"image_size": 24}, {"image_size": 128}):
        changed = small_folder(tmp_path, 32)
        changed.stream.update(change)
        assert not sets.load(changed, pytest.fail).whole


def test_the_images_of_a_run_stay_as_they_were():
    """A run from before small images were seen whole goes on with their centres; imported weights see what fits."""
    record = Record({}, (), 2, (), 6, (32, 32, 3), (), (), None, {})
    assert record.seen_whole(True) and record.seen_whole(False)
    assert not record._replace(eval_crop=0.875).seen_whole(True)
    imported = record._replace(imported={})
    assert imported.seen_whole(True) and not imported.seen_whole(False)
