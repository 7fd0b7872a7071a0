"""Splits to evaluate on, and the one that is held out of the training set."""

import numpy as np
import pytest

from orc_jax import config as configs
from orc_jax.data import sets, splits
from orc_jax.data.splits import eval_splits, held_out_rows
from orc_jax.errors import UserError
from orc_jax.testing import toy_dataset
from tests.data.pictures import Encoded, encode, picture


def config_for(**fields):
    config = configs.default()
    config.update({"dataset": "digits"} | fields)
    return config


def test_names():
    """The first selects the best checkpoint. By default it is the test set, as in the field's tables."""
    assert eval_splits(config_for()) == ("test",)
    assert eval_splits(config_for(eval_split="val")) == ("val",)
    assert eval_splits(config_for(eval_splits=" train[45000:], test ")) == ("train[45000:]", "test")
    assert eval_splits(config_for(validation_share=0.1)) == ("validation", "test")
    assert eval_splits(config_for(validation_share=0.1, eval_splits="test")) == ("test",)
    assert eval_splits({"eval_split": "test"}) == ("test",)  # of before there were several


def test_as_much_of_every_class_is_held_out():
    """By the seed alone; of a sorted set, too."""
    labels = np.repeat([0, 1, 2, 5], [100, 50, 10, 1])
    rows = held_out_rows(labels, 0.2, 0)
    assert [rows[labels == label].sum() for label in (0, 1, 2, 5)] == [20, 10, 2, 0]
    np.testing.assert_array_equal(rows, held_out_rows(labels, 0.2, 0))
    others = held_out_rows(labels, 0.2, 1)
    assert (rows != others).any() and others.sum() == rows.sum()
    assert set(np.flatnonzero(rows[:100])) != set(range(20)), "not the first ones"


def test_a_set_in_memory():
    config = config_for(validation_share=0.25, batch_size=8, examples_per_class=100, eval_splits="test,validation")
    whole, dataset = sets.load(config_for(), print), sets.load(config, print)
    ((name, held_out),) = dataset.others
    assert name == "validation" and len(held_out.labels) == 359 and dataset.num_train == 1000
    np.testing.assert_array_equal(dataset.test.images, whole.test.images)
    rows = held_out_rows(whole.train.labels, 0.25, 0)
    np.testing.assert_array_equal(held_out.images, whole.train.images[rows])
    config.examples_per_class = 0
    rest = sets.load(config, print)
    np.testing.assert_array_equal(rest.train.images, whole.train.images[~rows])
    assert rest.mean != whole.mean, "of what is trained on"
    config.eval_splits = "train,test"
    first, last = sets.load(config, print, trains=False).test, dict(rest.others)
    assert len(first.labels) == 1437 and set(last) == {"validation"}


def test_arrays():
    toy = toy_dataset()
    config = config_for(validation_share=0.2, batch_size=8)
    dataset = sets.from_arrays("arrays", toy.train, toy.test, toy.class_names, config)
    assert (dataset.num_train, len(dataset.test.labels)) == (72, 18)
    ((name, test),) = dataset.others
    assert name == "test" and np.array_equal(test.images, toy.test.images)
    config.eval_splits = "test,other"
    with pytest.raises(UserError, match=r"config.eval_splits='test,other': arrays have one evaluation set"):
        sets.from_arrays("arrays", toy.train, toy.test, toy.class_names, config)


def test_a_folder_that_has_a_training_set_alone(tmp_path):
    for label in "ab":
        (tmp_path / "train" / label).mkdir(parents=True)
        for i in range(10):
            (tmp_path / "train" / label / f"{i}.png").write_bytes(encode(picture(8, 8, i), "PNG"))
    fields = {"dataset": "folder", "data_dir": str(tmp_path), "batch_size": 4, "stream": {"image_size": 8}}
    config = config_for(**fields, validation_share=0.2, eval_splits="validation")
    for trains in (True, False):
        dataset = sets.load(config, print, trains=trains)
        assert not dataset.others and dataset.num_train == 16 and list(dataset.test.labels) == [0, 0, 1, 1]
        files = {dataset.test.name(i) for i in range(4)} | {dataset.train.name(i) for i in range(16)}
        assert len(files) == 20
    (tmp_path / "train").rename(tmp_path / "val")
    config.eval_splits = "val"
    assert sets.load(config, print, trains=False).num_train == 20, "to evaluate, the split alone need be there"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"validation_share": 1.0}, r"config.validation_share=1.0: must be a share of the training set, in \[0, 1\)"),
        ({"eval_splits": "a,b,a"}, "config.eval_splits='a,b,a': must be names of splits, each once"),
        ({"validation_share": 0.1, "eval_split": "validation"}, "config.eval_splits='validation,validation': must be"),
    ],
)
def test_refused(fields, text):
    with pytest.raises(UserError, match=text):
        splits.check(config_for(**fields))


def test_what_cannot_be_held_out():
    with pytest.raises(
        UserError, match=r"is streamed .* accepted is 0, and splits in TFDS's syntax: config.train_split"
    ):
        splits.hold_out(Encoded(b""), config_for(dataset="imagenet2012", validation_share=0.1))
    with pytest.raises(UserError, match=r"config.validation_share=0.001: that is 0 of the 1437 training examples"):
        sets.load(config_for(validation_share=0.001), print)
    with pytest.raises(UserError, match=r"config.eval_splits: 'tst' is not known. Did you mean test"):
        sets.load(config_for(eval_splits="test,tst"), print)
