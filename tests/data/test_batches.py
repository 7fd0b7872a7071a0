"""The order of examples: a function of (seed, step) alone."""

import numpy as np

from orc_jax.data.batches import balanced, batch_indices, calls, evaluation_batches, last_step, permutation


def test_every_example_once_in_every_epoch():
    """Ten batches of 7 over 10 examples: seven whole epochs, cut across their borders."""
    stream = np.concatenate([batch_indices(3, step, 7, 10) for step in range(10)])
    for epoch in stream.reshape(7, 10):
        assert sorted(epoch) == list(range(10))
    assert not np.array_equal(stream[:10], stream[10:20])
    assert [last_step(epochs, 7, 10) for epochs in (0, 1, 2, 7)] == [0, 1, 2, 10]


def test_a_batch_may_hold_several_epochs():
    batch = batch_indices(0, 1, 25, 10)
    np.testing.assert_array_equal(batch[5:15], permutation(0, 3, 10))
    np.testing.assert_array_equal(batch[:5], permutation(0, 2, 10)[5:])
    assert batch.dtype == np.int32 and len(batch) == 25


def test_calls_end_where_something_is_to_be_done():
    """Three steps at once where that skips no stop; the rest one by one, so that two programs are enough."""
    stops = lambda step: step in (4, 5, 12)  # noqa: E731
    assert list(calls(0, 14, 3, stops)) == [3, 1, 1, 3, 3, 1, 1, 1]
    assert list(calls(6, 9, 3, stops)) == [3] and list(calls(6, 9, 1, stops)) == [1, 1, 1]


def test_order_depends_on_seed_and_step_alone():
    first = batch_indices(0, 5, 8, 30)
    batch_indices(0, 50, 8, 30)
    np.testing.assert_array_equal(batch_indices(0, 5, 8, 30), first)
    assert not np.array_equal(batch_indices(1, 5, 8, 30), first)


def test_repeated():
    """Three times one after the other, until the epoch is full; the order is that of the epoch without repeats."""
    order = permutation(3, 0, 10)
    assert permutation(3, 0, 10, repeats=3).tolist() == [*order[[0, 0, 0, 1, 1, 1, 2, 2, 2, 3]]]
    following = permutation(3, 1, 10)
    assert batch_indices(3, 1, 8, 10, repeats=3).tolist() == [*order[[2, 3]], *following[[0, 0, 0, 1, 1, 1]]]
    labels = np.array([0] * 9 + [1], np.int32)
    assert np.bincount(labels[permutation(3, 0, 10, labels.tobytes(), 2)]).sum() == 10


def test_every_class_as_often():
    """Eleven examples: nine of class 0, one each of 2 and 5; an epoch has four, four and three of them."""
    labels = np.array([0, 0, 2, 0, 0, 0, 5, 0, 0, 0, 0], np.int32)
    seen = set()
    for epoch in range(40):
        order = permutation(3, epoch, len(labels), labels.tobytes())
        assert sorted(np.bincount(labels[order], minlength=6)) == [0, 0, 0, 3, 4, 4] and order.dtype == np.int32
        assert np.bincount(order, minlength=11)[labels == 0].max() == 1, "of a large class nobody comes twice"
        seen |= set(order.tolist())
    assert seen == set(range(11)), "and all come at some time"
    np.testing.assert_array_equal(order, permutation(3, 39, len(labels), labels.tobytes()))
    assert sorted(balanced(np.random.default_rng(0), np.arange(7))) == list(range(7))


def test_evaluation_batches_pad_with_weight_zero():
    batches = list(evaluation_batches(4, 10))
    counted = np.concatenate([i[w == 1] for i, w in batches])
    np.testing.assert_array_equal(counted, np.arange(10))
    assert [w.sum() for _, w in batches] == [4, 4, 2]
    assert all(i.max() < 10 for i, _ in batches)
