"""How a set reaches the devices: whole or batch by batch, each process its share, as the config says."""

import jax
import numpy as np
import pytest

from orc_jax.data import feed, stream
from orc_jax.data.batches import batch_indices
from orc_jax.data.types import Dataset, Images
from orc_jax.errors import UserError
from tests.data.pictures import Encoded, encode, picture


def training(dataset, config, devices=2, first_step=0, num_steps=3, views=1, **options):
    devices = jax.local_devices()[:devices]
    with feed.training(dataset, config, devices, first_step, num_steps, views, **options) as batches:
        return jax.device_get(list(batches))


def evaluation(dataset, config, devices=2):
    with feed.evaluation(dataset, config, jax.local_devices()[:devices]) as batches:
        return jax.device_get(list(batches))


@pytest.fixture
def streamed(config):
    """Nine images of many sizes, of a class each, and four to evaluate."""
    config.batch_size = config.eval_batch_size = 4
    config.stream.update(image_size=8, num_workers=0)
    pictures = [encode(picture(20 + 3 * i, 30 - i, i), "PNG") for i in range(9)]
    classes = tuple("abcdefghi")
    return Dataset("pictures", Encoded(*pictures), Encoded(*pictures[:3]), classes, (8, 8, 3), (0.5,) * 3, (0.2,) * 3)


def test_a_set_in_memory_lies_on_every_device(toy, streamed):
    devices = jax.local_devices()[:2]
    lying = feed.resident(toy.train, devices)
    assert lying.images.sharding.device_set == set(devices) and lying.images.is_fully_replicated
    np.testing.assert_array_equal(lying.images, toy.train.images)
    assert feed.resident(streamed.train, devices) is None


def test_batches_of_a_set_in_memory_are_indices(toy, config):
    config.seed = 3
    batches = training(toy, config, first_step=4, num_steps=9)
    assert len(batches) == 5
    for step, batch in enumerate(batches, start=4):
        np.testing.assert_array_equal(batch, batch_indices(3, step, 16, 90).reshape(2, 8))
    for config.eval_batch_size in (16, 15):  # of any number of devices, if need be by some more
        indices, weights = (np.stack(parts) for parts in zip(*evaluation(toy, config), strict=True))
        assert indices.shape == (2, 2, 8)
        np.testing.assert_array_equal(indices[weights == 1], np.arange(30))


def test_processes_share_every_batch(toy, config, monkeypatch):
    """Those of a set in memory; the streams' own shares are tested with them."""
    shares = []
    for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        shares.append((training(toy, config), evaluation(toy, config)))
        monkeypatch.undo()
    (trained, evaluated), (trained_too, evaluated_too) = shares
    whole = training(toy, config, devices=4), evaluation(toy, config, devices=4)
    joined = [np.concatenate(pair) for pair in zip(trained, trained_too, strict=True)]
    jax.tree.map(np.testing.assert_array_equal, joined, whole[0])
    joined = jax.tree.map(lambda *pair: np.concatenate(pair), evaluated, evaluated_too)
    jax.tree.map(np.testing.assert_array_equal, joined, whole[1])


@pytest.mark.parametrize("process", [0, 1])
def test_streams_are_told_their_process(streamed, config, monkeypatch, process):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    (batch,) = training(streamed, config, num_steps=1)
    np.testing.assert_array_equal(batch.labels.ravel(), batch_indices(0, 0, 4, 9)[2 * process :][:2])
    ((batch, weights),) = evaluation(streamed, config)
    np.testing.assert_array_equal(batch.labels.ravel(), [[0, 1], [2, 0]][process])
    np.testing.assert_array_equal(weights.ravel(), [[1, 1], [1, 0]][process])


def test_batches_of_a_streamed_set_are_images(streamed, config):
    batches = training(streamed, config)
    assert [batch.images.shape for batch in batches] == [(2, 2, 8, 8, 3)] * 3
    labels = np.stack([batch.labels for batch in batches]).reshape(3, 4)
    np.testing.assert_array_equal(labels, [batch_indices(0, step, 4, 9) for step in range(3)])
    jax.tree.map(np.testing.assert_array_equal, training(streamed, config, first_step=1), batches[1:])
    ((batch, weights),) = evaluation(streamed, config)
    np.testing.assert_array_equal(batch.labels.ravel()[weights.ravel() == 1], [0, 1, 2])
    several = training(streamed, config, num_steps=1, views=3)[0].images
    assert several.shape == (2, 2, 3, 8, 8, 3)
    np.testing.assert_array_equal(several[:, :, 0], batches[0].images)


def test_balanced_classes(toy, streamed, config):
    """Of sets in memory and of streams, in batches and in what is shown of the first."""
    config.balanced_sampling = True
    skewed = toy._replace(train=Images(toy.train.images, np.array([0] * 80 + [1] * 10, np.int32)))
    rows = np.concatenate([batch.ravel() for batch in training(skewed, config, num_steps=45)])  # two epochs
    assert np.bincount(skewed.train.labels[rows]).tolist() == [90, 90]
    np.testing.assert_array_equal(feed.first_examples(skewed, config, 4, 1).labels, skewed.train.labels[rows[:4]])
    records = Encoded(*streamed.train.images)
    records.labels = [0] * 8 + [1]
    batches = training(streamed._replace(train=records), config, num_steps=9)  # four epochs
    numbers = np.concatenate([batch.labels.ravel() for batch in batches])  # the label of each is its number
    assert abs(int((numbers == 8).sum()) - 18) <= 2


def test_repeated_augmentation(toy, streamed, config):
    """The same image several times in a batch; of a stream each with a crop of its own."""
    config.repeated_augmentation = 2
    (rows, _) = (batch.ravel() for batch in training(toy, config, num_steps=2))
    assert rows[0] == rows[1] != rows[2] == rows[3]
    np.testing.assert_array_equal(rows, batch_indices(0, 0, 4, 90, repeats=2))
    np.testing.assert_array_equal(feed.first_examples(toy, config, 4, 1).labels, toy.train.labels[rows])
    first, *_ = training(streamed, config)
    labels, images = first.labels.ravel(), first.images.reshape(4, 8, 8, 3)
    assert labels[0] == labels[1] != labels[2] == labels[3] and not np.array_equal(images[0], images[1])


def test_batches_of_calls_of_several_steps(toy, streamed, config):
    """Those of single steps, stacked behind the devices."""
    for dataset in (toy, streamed):
        singles = training(dataset, config, num_steps=5)
        grouped = training(dataset, config, num_steps=5, calls=iter([1, 3, 1]))
        stacked = jax.tree.map(lambda *steps: np.stack(steps, axis=1), *singles[1:4])
        jax.tree.map(np.testing.assert_array_equal, grouped, [singles[0], stacked, singles[4]])


@pytest.mark.parametrize(
    ("fields", "train", "test"),
    [
        ({"seed": 1}, True, False),
        ({"flip": True}, True, False),
        ({"stream.crop_area": (0.1, 0.2)}, True, False),
        ({"stream.eval_crop": 0.5}, False, True),
        ({"stream.image_size": 10}, True, True),
    ],
)
def test_fields_that_change_what_is_streamed(streamed, config, fields, train, test):
    before = training(streamed, config)[0].images, evaluation(streamed, config)[0][0].images
    config.update_from_flattened_dict(fields)
    after = training(streamed, config)[0].images, evaluation(streamed, config)[0][0].images
    differs = [a.shape != b.shape or not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert differs == [train, test]


def test_broken_images_are_left_out_if_the_config_says_so(streamed, config, capfd):
    streamed = streamed._replace(train=Encoded(b"", *streamed.train.images[1:]))
    streamed = streamed._replace(test=Encoded(b"", *streamed.test.images[1:]))
    for read in (training, evaluation):
        with pytest.raises(UserError, match=r"^image 0 cannot be decoded"):
            read(streamed, config)
    config.stream.skip_corrupt = True
    labels = np.concatenate([batch.labels.ravel() for batch in training(streamed, config)])
    assert 0 not in labels and len(labels) == 12
    np.testing.assert_array_equal(evaluation(streamed, config)[0][1].ravel(), [0, 1, 1, 0])
    assert "image 0 cannot be decoded" in capfd.readouterr().err


def test_workers_are_as_many_as_the_config_says(streamed, config, monkeypatch):
    """-1 is one per core that this process may use, as far as the system tells."""
    batches, asked = stream.batches, []

    def without_workers(source, batch_size, num_workers):
        asked.append((batch_size, num_workers))
        return batches(source, batch_size, 0)

    monkeypatch.setattr(stream, "batches", without_workers)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 2, 5}, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    for count, expected in ((2, 2), (0, 0), (-1, 3), (-1, 5)):
        if expected == 5:
            monkeypatch.delattr("os.sched_getaffinity")
        config.stream.num_workers, config.eval_batch_size = count, 2
        training(streamed, config), evaluation(streamed, config)
        assert asked == [(4, expected), (2, expected)]
        asked.clear()
