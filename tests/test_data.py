"""Data: the order of examples, augmentation, the embedded set, and sets of TFDS, prepared or missing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax import config as configs
from orc_jax.data import feed, sets
from orc_jax.data.augment import crop_and_flip, normalize
from orc_jax.data.batches import batch_indices, evaluation_batches, last_step
from orc_jax.errors import UserError


def test_every_example_once_in_every_epoch():
    """Ten batches of 7 over 10 examples: seven whole epochs, cut across their borders."""
    stream = np.concatenate([batch_indices(3, step, 7, 10) for step in range(10)])
    for epoch in stream.reshape(7, 10):
        assert sorted(epoch) == list(range(10))
    assert not np.array_equal(stream[:10], stream[10:20])
    assert [last_step(epochs, 7, 10) for epochs in (0, 1, 2, 7)] == [0, 1, 2, 10]


def test_order_depends_on_seed_and_step_alone():
    first = batch_indices(0, 5, 8, 30)
    batch_indices(0, 50, 8, 30)
    np.testing.assert_array_equal(batch_indices(0, 5, 8, 30), first)
    assert not np.array_equal(batch_indices(1, 5, 8, 30), first)


def test_evaluation_batches_pad_with_weight_zero():
    batches = list(evaluation_batches(4, 10))
    counted = np.concatenate([i[w == 1] for i, w in batches])
    np.testing.assert_array_equal(counted, np.arange(10))
    assert [w.sum() for _, w in batches] == [4, 4, 2]
    assert all(i.max() < 10 for i, _ in batches)


def test_crops_are_windows_of_the_padded_image_and_flips_mirror():
    image = np.arange(1, 17, dtype=np.uint8).reshape(4, 4, 1)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    windows = {padded[y : y + 4, x : x + 4].tobytes(): (y, x) for y in range(5) for x in range(5)}
    mirrored = {padded[y : y + 4, x : x + 4][:, ::-1].tobytes(): (y, x) for y in range(5) for x in range(5)}
    images = jnp.repeat(jnp.asarray(image)[None], 600, axis=0)
    keys = jax.random.split(jax.random.key(0), 600)
    seen = [x.tobytes() for x in np.asarray(crop_and_flip(keys, images, 2, True))]
    assert all(x in windows or x in mirrored for x in seen)
    assert len({(windows | mirrored)[x] for x in seen}) == 25, "all offsets occur"
    flipped = np.mean([x in mirrored for x in seen])
    assert 0.4 < flipped < 0.6
    untouched = crop_and_flip(keys, images, 0, False)
    assert untouched.dtype == jnp.uint8
    np.testing.assert_array_equal(untouched, images)


def test_normalize_golden():
    images = jnp.array([[[[0, 255], [51, 102]]]], jnp.uint8)
    np.testing.assert_allclose(normalize(images, (0.2, 0.4), (0.5, 0.2)), [[[[-0.4, 3.0], [0.0, 0.0]]]], atol=1e-6)


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


@pytest.fixture(scope="session")
def tfds_dir(tmp_path_factory):
    """Sets as TFDS prepares them: grey 6x5 images, and photos of many sizes; each in array_record and in tfrecord."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    path = tmp_path_factory.mktemp("tfds")
    rng = np.random.default_rng(0)

    def examples(count):
        return [(i, {"image": rng.integers(0, 256, (6, 5, 1), np.uint8), "label": i % 3}) for i in range(count)]

    splits = {"train": examples(70), "test": examples(20)}
    for name, file_format in (("grey_things", "array_record"), ("grey_tfrecord", "tfrecord")):
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            features=tfds.features.FeaturesDict(
                {"image": tfds.features.Image(shape=(6, 5, 1)), "label": tfds.features.ClassLabel(num_classes=3)}
            ),
            split_datasets=splits,
            data_dir=str(path),
            file_format=file_format,
        )

    def photos(count):
        sizes = rng.integers(10, 30, (count, 2))
        return [
            (i, {"image": np.full((*sizes[i], 3), 60 + 130 * (i % 2), np.uint8), "label": i % 2}) for i in range(count)
        ]

    splits = {"train": photos(12), "validation": photos(5)}
    for name, file_format in (("photos", "array_record"), ("photos_tfrecord", "tfrecord")):
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=["dark", "light"]),
                }
            ),
            split_datasets=splits,
            data_dir=str(path),
            file_format=file_format,
        )
    return path


@pytest.mark.parametrize("name", ["grey_things", "grey_tfrecord"])
def test_a_prepared_tfds_set(tfds_dir, name):
    config = config_for(dataset=name, data_dir=str(tfds_dir), train_split="train[:50]", batch_size=16)
    dataset = sets.load(config, print)
    assert dataset.train.images.shape == (50, 6, 5, 1) and dataset.train.images.dtype == np.uint8
    assert dataset.test.labels.shape == (20,) and dataset.num_classes == 3
    assert len(dataset.mean) == 1


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"train_split": "trian"}, "config.train_split='trian'.*grey_things has train"),
        ({"batch_size": 64, "train_split": "train[:10]"}, "config.batch_size=64: must be at most the 10"),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}, "config.mean=.*must have 1 values"),
        ({"mean": (0.5,), "std": (0.0,)}, "config.std=.*greater than 0"),
        ({"dataset": "gray_things"}, "config.dataset='gray_things' is not known"),
    ],
)
def test_wrong_fields_of_a_set(tfds_dir, fields, text):
    with pytest.raises(UserError, match=text):
        sets.load(config_for(**{"dataset": "grey_things", "data_dir": str(tfds_dir)} | fields), print)


def test_missing_data_without_network_fails_at_once(tmp_path, monkeypatch):
    def no_network(*_):
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(UserError, match=r"(?s)config.dataset='mnist' is not prepared in .*no network.*config.data_dir"):
        sets.load(config_for(dataset="mnist", data_dir=str(tmp_path)), print)


def test_other_sets_are_refused(tmp_path):
    with pytest.raises(UserError, match="is not an image classification set"):
        sets.load(config_for(dataset="coco", data_dir=str(tmp_path)), print)
    with pytest.raises(UserError, match=r"config.data_dir=.*must be the folder with train/<class>/<image>"):
        sets.load(config_for(dataset="folder"), print)


def test_a_tfds_set_of_images_of_many_sizes_is_streamed(tfds_dir):
    fields = {"dataset": "photos", "data_dir": str(tfds_dir), "train_split": "train[:9]", "batch_size": 4}
    config = config_for(eval_split="validation", eval_batch_size=4, flip=False, **fields)
    config.stream.update(image_size=8, num_workers=0, eval_crop=1.0)
    dataset = sets.load(config, print)
    assert dataset.is_streamed and dataset.num_train == 9 and dataset.image_shape == (8, 8, 3)
    assert dataset.class_names == ("dark", "light") and dataset.mean == (0.485, 0.456, 0.406)
    devices = jax.local_devices()[:2]
    with feed.evaluation(dataset, config, devices) as batches:
        seen = list(batches)
    assert [batch.images.shape for batch, _ in seen] == [(2, 2, 8, 8, 3)] * 2
    labels, weights = (
        np.concatenate([np.ravel(x) for x in xs]) for xs in ([b.labels for b, _ in seen], [w for _, w in seen])
    )
    np.testing.assert_array_equal(weights, [1] * 5 + [0] * 3)
    assert sorted(labels[:5]) == [0, 0, 0, 1, 1]
    brightness = np.concatenate([np.asarray(b.images).reshape(4, -1).mean(1) for b, _ in seen])
    np.testing.assert_array_equal(brightness[:5] > 128, labels[:5] == 1)
    with feed.training(dataset, config, devices, first_step=0, num_steps=9, views=1) as batches:
        first = list(batches)
    labels = np.concatenate([np.ravel(b.labels) for b in first])
    epochs = {tuple(np.bincount(epoch)) for epoch in labels.reshape(4, 9)}
    assert len(epochs) == 1, "every example once in each of the four epochs"
    with feed.training(dataset, config, devices, first_step=5, num_steps=9, views=1) as batches:
        jax.tree.map(np.testing.assert_array_equal, list(batches), first[5:])


def test_a_streamed_set_must_be_prepared_for_random_access(tfds_dir):
    with pytest.raises(UserError, match=r"is prepared as tfrecord in .*streaming needs it prepared as array_record"):
        sets.load(config_for(dataset="photos_tfrecord", data_dir=str(tfds_dir), eval_split="validation"), print)
