"""Measures against numbers derived by hand."""

import numpy as np

from orc_jax.report import measures


def test_probabilities_losses_and_predictions_leave_out_what_is_not_finite():
    logits = np.log(np.array([[[1.0, 3.0]], [[3.0, 1.0]], [[1.0, 1.0]]]))  # three members, one sample
    np.testing.assert_allclose(np.exp(measures.log_softmax(logits))[:2, 0], [[0.25, 0.75], [0.75, 0.25]])
    np.testing.assert_allclose(measures.losses(logits, np.array([1]))[:, 0], -np.log([0.75, 0.25, 0.5]))
    broken = logits.copy()
    broken[2, 0, 0] = np.nan
    assert measures.predictions(broken)[:, 0].tolist() == [1, 0, measures.NOTHING]
    np.testing.assert_allclose(measures.mean_probability(broken), [[0.5, 0.5]])
    np.testing.assert_allclose(measures.mean_probability(broken[[0, 2]]), [[0.25, 0.75]])


def test_per_class_accuracy():
    labels = np.array([0, 0, 0, 2])
    predicted = np.array([[0, 1, 0, 2], [2, 2, 2, 0]])
    np.testing.assert_allclose(measures.per_class_accuracy(predicted, labels, 3), [[2 / 3, np.nan, 1], [0, np.nan, 0]])


def test_hardest_samples():
    losses = np.array([[1.0, 5.0, 2.0, 0.0, 3.0], [1.0, 0.0, 4.0, 0.0, 2.0], [np.nan] * 5])  # means 1, 2.5, 3, 0, 2.5
    assert measures.hardest(losses, 0.2).tolist() == [2]
    assert measures.hardest(losses, 0.4).tolist() == [1, 2]
    assert measures.hardest(losses, 0.01).tolist() == [2]


def test_agreement():
    nothing = measures.NOTHING
    predicted = np.array([[0, 1, 2, 3], [0, 1, 0, 0], [0, nothing, nothing, 3]])
    expected = [[1, 0.5, 0.5], [0.5, 1, 0.25], [0.5, 0.25, 0.5]]
    np.testing.assert_allclose(measures.agreement(predicted), expected)


def test_correlation_of_logits():
    logits = np.array([[1.0, -1.0, 1.0, 7.0], [2.0, -2.0, 0.0, 7.0], [3.0, -3.0, 1.0, 7.0]])
    expected = [[1, -1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]  # the last class never changes
    np.testing.assert_allclose(measures.correlation(logits), expected, atol=1e-12)


def test_calibration():
    """Five bins: 0.5 and 0.6 fall in (0.4, 0.6], 0.8 in (0.6, 0.8], 1.0 in the last."""
    top = np.array([0.5, 0.6, 0.8, 1.0])
    probs = np.stack([top, 1 - top], axis=1)
    bins = measures.calibration(probs, np.array([0, 1, 0, 0]), num_bins=5)
    np.testing.assert_allclose(bins.confidence, [0.55, 0.8, 1.0])
    np.testing.assert_allclose(bins.accuracy, [0.5, 1.0, 1.0])
    assert bins.counts.tolist() == [2, 1, 1]
    np.testing.assert_allclose(bins.ece, (2 * 0.05 + 0.2 + 0.0) / 4)
