"""Sets of TFDS: prepared or missing, in memory or streamed."""

import re

import jax
import numpy as np
import pytest

from orc_jax import config as configs
from orc_jax.data import feed, sets, tfds_sets
from orc_jax.errors import UserError
from orc_jax.testing import toy_dataset


def config_for(**fields):
    config = configs.default()
    config.update(fields)
    return config


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

    hidden = [(i, example | {"label": -1}) for i, example in photos(4)]
    splits = {"train": photos(12), "validation": photos(5), "test": hidden}
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
    features = {"picture": tfds.features.Image(shape=(6, 5, 1)), "mask": tfds.features.Image(shape=(6, 5, 1))}
    features |= {"kind": tfds.features.ClassLabel(names=["a", "b"])}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="renamed",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={
            split: [
                (i, {"picture": np.full((6, 5, 1), i, np.uint8), "mask": np.zeros((6, 5, 1), np.uint8), "kind": i % 2})
                for i in range(8)
            ]
            for split in ("train", "test")
        },
        data_dir=str(path),
        file_format="array_record",
    )
    return path


def test_features_of_other_names(tfds_dir):
    fields = {"dataset": "renamed", "data_dir": str(tfds_dir), "batch_size": 4}
    for given, text in (
        ({}, "config.image_key must say which: mask, picture"),
        ({"image_key": "pictrue"}, "config.image_key='pictrue' is not known. Did you mean picture"),
        ({"image_key": "picture", "label_key": "mask"}, "config.label_key='mask' is not known.* Accepted: kind"),
    ):
        with pytest.raises(UserError, match=text):
            sets.load(config_for(**fields, **given), print)
    dataset = sets.load(config_for(image_key="picture", **fields), print)
    assert dataset.class_names == ("a", "b") and sorted(dataset.train.images[:, 0, 0, 0]) == list(range(8))
    other = sets.load(config_for(image_key="mask", label_key="kind", **fields), print)
    assert not other.train.images.any(), "not what was kept of the other feature"


def test_a_full_check_of_a_streamed_set(tfds_dir, monkeypatch):
    config = config_for(dataset="photos", data_dir=str(tfds_dir), eval_split="validation", batch_size=4)
    config.stream.check = "full"
    assert sets.load(config, print).num_train == 12
    monkeypatch.setattr("orc_jax.data.decode.check_pixels", lambda image: (_ for _ in ()).throw(ValueError("broken")))
    with pytest.raises(UserError, match=r"12 of 12 images cannot be used: example 0 of photos/1.0.0 train \(broken\)"):
        sets.load(config, print)


@pytest.mark.parametrize("name", ["grey_things", "grey_tfrecord"])
def test_a_prepared_tfds_set(tfds_dir, name):
    config = config_for(dataset=name, data_dir=str(tfds_dir), train_split="train[:50]", batch_size=16)
    dataset = sets.load(config, print)
    assert dataset.train.images.shape == (50, 6, 5, 1) and dataset.train.images.dtype == np.uint8
    assert dataset.test.labels.shape == (20,) and dataset.num_classes == 3
    assert len(dataset.mean) == 1


def test_each_split_is_read_once(tfds_dir, tmp_path, monkeypatch):
    """Also where one is asked for twice; and kept, so that the next start reads none."""
    read, images = [], tfds_sets._read

    def counted(builder, split, *keys):
        read.append(split)
        return images(builder, split, *keys)

    monkeypatch.setattr(tfds_sets, "_read", counted)
    monkeypatch.setenv("ORC_JAX_CACHE", str(tmp_path))
    fields = {"dataset": "grey_things", "data_dir": str(tfds_dir), "train_split": "train[:40]", "batch_size": 16}
    several = config_for(eval_splits="train[40:],test,train[:40]", **fields)
    for _ in range(2):
        dataset = sets.load(several, print)
        assert [name for name, _ in dataset.others] == ["test", "train[:40]"]
        assert read == ["train[:40]", "train[40:]", "test"] and len(list((tmp_path / "sets").iterdir())) == 3
    assert len(sets.load(config_for(eval_split="test", **fields), print, trains=False).test.labels) == 20
    assert len(read) == 3
    sets.load(config_for(**fields | {"train_split": "train", "eval_split": "train"}), print)
    assert read[3:] == ["train"]


def test_a_version_of_a_set(tfds_dir):
    """As TFDS names it."""
    fields = {"data_dir": str(tfds_dir), "batch_size": 16}
    for name in ("grey_things:1.0.0", "grey_things:1.*.*"):
        assert sets.load(config_for(dataset=name, **fields), print).num_train == 70
    for name, text in (("grey_things:9.0.0", "cannot be opened|is not known"), ("nothing:1.0.0", "is not known")):
        with pytest.raises(UserError, match=f"config.dataset='{name}' ({text})"):
            sets.load(config_for(dataset=name, **fields), print)
    assert sets._constants(config_for(), "cifar100:3.0.2", toy_dataset().train, 3) == sets.CONSTANTS["cifar100"]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"train_split": "trian"}, "config.train_split='trian'.*grey_things has train"),
        ({"batch_size": 64, "train_split": "train[:10]"}, "config.batch_size=64: must be at most the 10"),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}, "config.mean=.*must have 1 values"),
        ({"mean": (0.5,), "std": (0.0,)}, "config.std=.*greater than 0"),
        ({"dataset": "gray_things"}, "config.dataset='gray_things' is not known"),
        ({"train_split": "train[:0]"}, r"config.train_split='train\[:0\]'"),
        ({"dataset": "grey_tfrecord", "eval_split": "test[20:]"}, r"config.eval_split='test\[20:\]'"),
        ({"examples_per_class": 24}, "config.examples_per_class=24: must be at most 23, all that there are of class 1"),
    ],
)
def test_wrong_fields_of_a_set(tfds_dir, fields, text):
    with pytest.raises(UserError, match=text):
        sets.load(config_for(**{"dataset": "grey_things", "data_dir": str(tfds_dir)} | fields), print)


@pytest.mark.parametrize("dataset", ["cifar100", "mnist"])
def test_a_data_dir_that_is_the_set_itself(tmp_path, monkeypatch, dataset):
    """The message has the folder that it lies in, and nothing is downloaded."""
    tfds = pytest.importorskip("tensorflow_datasets")
    version = str(tfds.builder(dataset, data_dir=str(tmp_path)).version)
    (tmp_path / dataset / version).mkdir(parents=True)
    (tmp_path / dataset / version / "dataset_info.json").write_text("{}")
    accepted = f"must be the folder that {dataset} lies in as {dataset}/{version}, which is '{tmp_path}'$"
    for given in (tmp_path / dataset, tmp_path / dataset / version):
        with pytest.raises(UserError, match=f"^config.data_dir='{given}': {accepted}"):
            sets.load(config_for(dataset=dataset, data_dir=str(given)), print)
        with monkeypatch.context() as patch, pytest.raises(UserError, match=f"^config.data_dir='{dataset}.*{accepted}"):
            patch.chdir(tmp_path)
            sets.load(config_for(dataset=dataset, data_dir=str(given.relative_to(tmp_path))), print)


def test_missing_data_without_network_fails_at_once(tmp_path, monkeypatch):
    def no_network(*_):
        raise OSError("Name or service not known")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # as where TensorFlow is installed
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(UserError, match=r"(?s)config.dataset='mnist' is not prepared in .*no network.*config.data_dir"):
        sets.load(config_for(dataset="mnist", data_dir=str(tmp_path)), print)


@pytest.mark.parametrize("dataset", ["mnist", "coco"])  # the second cannot even be opened
def test_without_tensorflow_the_message_is_the_command(tmp_path, monkeypatch, dataset):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    if dataset == "coco":
        tfds = pytest.importorskip("tensorflow_datasets")

        def no_tensorflow(*_, **__):
            raise ModuleNotFoundError("No module named 'tensorflow'")

        monkeypatch.setattr(tfds, "builder", no_tensorflow)
    monkeypatch.setattr("sys.version_info", (3, 13))
    command = r"is not prepared.* TensorFlow, once: \S+ -m pip install (-r \S+requirements-prepare.txt|'orc_jax\[prep)"
    with pytest.raises(UserError, match=command):
        sets.load(config_for(dataset=dataset, data_dir=str(tmp_path)), print)
    monkeypatch.setattr("sys.version_info", (3, 14))
    with pytest.raises(UserError, match=r"which there is not for Python 3\.14"):
        sets.load(config_for(dataset=dataset, data_dir=str(tmp_path)), print)


def test_other_sets_are_refused(tmp_path):
    pytest.importorskip("tensorflow")
    with pytest.raises(UserError, match="is not an image classification set"):
        sets.load(config_for(dataset="coco", data_dir=str(tmp_path)), print)


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


def test_classes_of_a_streamed_set_cannot_be_balanced(tfds_dir):
    fields = {"dataset": "photos", "data_dir": str(tfds_dir), "train_split": "train[:9]", "batch_size": 4}
    config = config_for(eval_split="validation", balanced_sampling=True, **fields)
    with pytest.raises(UserError, match=r"config.balanced_sampling=True: photos is streamed .* accepted is False, or"):
        sets.load(config, print)


def test_hidden_labels_of_a_streamed_set_are_refused(tfds_dir, monkeypatch):
    """Before training, by the name of the split; one that was not looked at then, when it is read."""
    fields = {"dataset": "photos", "data_dir": str(tfds_dir), "batch_size": 4}
    for split in ("test", "test[:2]"):
        for trains in (True, False):
            with pytest.raises(UserError, match=rf"config.eval_split='{re.escape(split)}' of photos has no labels"):
                sets.load(config_for(eval_split=split, **fields), print, trains=trains)
    with pytest.raises(UserError, match=r"config.train_split='test' of photos has no labels"):
        sets.load(config_for(train_split="test", eval_split="validation", **fields), print)
    some = config_for(train_split="validation+test", eval_split="validation", **fields)
    with pytest.raises(UserError, match=r"has labels -1 to 1, .* example 5 has -1; a negative one"):
        sets.load(some, print)
    monkeypatch.setattr(sets, "LOOKED_AT", 1)
    some.stream.update(image_size=8, num_workers=0)
    dataset = sets.load(some, print)
    with (
        pytest.raises(UserError, match=r"example \d of photos/1.0.0 validation\+test has the label -1: must be 0 to 1"),
        feed.training(dataset, some, jax.local_devices()[:1], 0, 3, 1) as batches,
    ):
        list(batches)


def test_a_streamed_set_must_be_prepared_for_random_access(tfds_dir):
    with pytest.raises(UserError, match=r"is prepared as tfrecord in .*streaming needs it prepared as array_record"):
        sets.load(config_for(dataset="photos_tfrecord", data_dir=str(tfds_dir), eval_split="validation"), print)
