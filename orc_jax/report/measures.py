"""What a report measures on logits: small functions of NumPy arrays, without a model.

Logits are `[members, samples, classes]` or `[samples, classes]`, labels int `[samples]`. A member that diverged has
logits that are not finite; its prediction is NOTHING, which is wrong and agrees with nobody.
"""

from typing import NamedTuple

import numpy as np

NOTHING = -1  # the class that is predicted by logits that are not finite


class Bins(NamedTuple):
    """A reliability diagram: confidence, accuracy and number of samples of the bins that have any, and the ECE."""

    confidence: np.ndarray
    accuracy: np.ndarray
    counts: np.ndarray
    ece: float


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis; NaN where a logit of the sample is not finite."""
    logits = np.where(np.isfinite(logits).all(-1, keepdims=True), logits, np.nan).astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def mean_probability(logits: np.ndarray) -> np.ndarray:
    """The members' mean probability `[samples, classes]`, without members that have none."""
    probs = np.exp(log_softmax(logits))
    counts = ~np.isnan(probs)
    return np.where(counts, probs, 0.0).sum(0) / np.maximum(counts.sum(0), 1)


def losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy of every sample, in nats: logits without their last axis."""
    rows = np.broadcast_to(labels[:, None], (*logits.shape[:-1], 1))
    return -np.take_along_axis(log_softmax(logits), rows, axis=-1)[..., 0]


def predictions(logits: np.ndarray) -> np.ndarray:
    """The class of the highest logit: logits without their last axis."""
    return np.where(np.isfinite(logits).all(-1), logits.argmax(-1), NOTHING)


def per_class_accuracy(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The share of each class's samples that are right, `[..., classes]`; NaN for a class without samples."""
    counts = np.bincount(labels, minlength=num_classes)
    of_class = labels[:, None] == np.arange(num_classes)
    right = ((predicted == labels)[..., None] & of_class).sum(-2)
    return np.where(counts, right / np.maximum(counts, 1), np.nan)


def confusion(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """How many samples of each class are taken for which: int `[true class, class]`, without those for NOTHING."""
    matrix = np.zeros((num_classes, num_classes), int)
    taken = predicted != NOTHING
    np.add.at(matrix, (labels[taken], predicted[taken]), 1)
    return matrix


def precision_and_recall(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each class, `[classes]`: the share of what is taken for it that is of it, and of its samples that are right.

    NaN where there is nothing to share: no sample is taken for the class, or none is of it.
    """
    matrix = confusion(predicted, labels, num_classes)
    totals = matrix.sum(0), np.bincount(labels, minlength=num_classes)
    precision, recall = (np.where(total, matrix.diagonal() / np.maximum(total, 1), np.nan) for total in totals)
    return precision, recall


def most_confused(matrix: np.ndarray) -> list[tuple[int, int]]:
    """The pairs (true class, what it is taken for) of a confusion matrix that occur, the most frequent first."""
    wrong = matrix * ~np.eye(len(matrix), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[: np.count_nonzero(wrong)]
    return [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, matrix.shape), strict=True)]


def hardest(sample_losses: np.ndarray, fraction: float) -> np.ndarray:
    """The samples with the highest mean loss over the members: sorted positions.

    Args:
        sample_losses: `[members, samples]`; members whose loss is NaN do not count.
        fraction: how many of the samples, at least one.
    """
    counted = ~np.isnan(sample_losses)
    mean = np.where(counted, sample_losses, 0.0).sum(0) / np.maximum(counted.sum(0), 1)
    count = max(1, round(fraction * mean.size))
    return np.sort(np.argsort(-mean, kind="stable")[:count])


def agreement(predicted: np.ndarray) -> np.ndarray:
    """The share of samples on which two members predict the same: `[members, members]` from `[members, samples]`."""
    same = (predicted[:, None] == predicted[None]) & (predicted[:, None] != NOTHING)
    return same.mean(-1)


def correlation(logits: np.ndarray) -> np.ndarray:
    """The correlation of the logits of every two classes over the samples: `[classes, classes]`.

    A class whose logit is the same for all samples is correlated with none.
    """
    centred = logits.astype(np.float64) - logits.mean(0, dtype=np.float64)
    norms = np.sqrt((centred**2).sum(0))
    scaled = centred / np.where(norms, norms, 1.0)
    return scaled.T @ scaled


def calibration(probs: np.ndarray, labels: np.ndarray, num_bins: int = 15) -> Bins:
    """The reliability diagram and the expected calibration error of probabilities `[samples, classes]`.

    Bins are of equal width in the confidence, the highest probability; the lower edge does not belong to a bin (Guo et
    al., 2017). The ECE is the mean of |accuracy - confidence| over the bins, weighted by their samples.
    """
    confidence, right = probs.max(-1), probs.argmax(-1) == labels
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    sums = [np.bincount(bins, weights=values, minlength=num_bins) for values in (confidence, right)]
    ece = np.abs(sums[0] - sums[1]).sum() / len(labels)
    used = counts > 0
    return Bins(sums[0][used] / counts[used], sums[1][used] / counts[used], counts[used], float(ece))
