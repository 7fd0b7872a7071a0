"""The section on what the target student takes for what: precision and recall by class, and the pairs it confuses."""

import csv
import io
from collections.abc import Iterable, Sequence

import numpy as np

from orc_jax.errors import UserError
from orc_jax.report import collect, figures, measures
from orc_jax.report.collect import Logged, Networks, Predicted
from orc_jax.report.page import Drawn, Section, table
from orc_jax.report.sections import counted, percent

PAIRS = 10  # in the table
PICTURED, PICTURES = 3, 4  # pairs with pictures, and of each at most
CLASSES = 20  # in the table


def section(logged: Logged, networks: Networks, predicted: Predicted, max_examples: int) -> Section:
    """Confusion matrix, precision and recall of every class, and the pairs of classes that are confused most."""
    labels = predicted.labels
    # bytes of a name that are no text are escaped
    names = [name.encode(errors="backslashreplace").decode() for name in logged.record.class_names]
    guesses = measures.predictions(predicted.logits)
    matrix = measures.confusion(guesses[-1], labels, len(names))
    precision, recall = measures.precision_and_recall(guesses[-1], labels, len(names))
    counts = np.bincount(labels, minlength=len(names))
    pairs = measures.most_confused(matrix)
    worst = [i for i in np.argsort(recall, kind="stable") if counts[i]][:CLASSES]
    html = table(
        ["class", "samples", "precision", "recall"],
        [(names[i], int(counts[i]), _percent(float(precision[i])), percent(float(recall[i]))) for i in worst],
        texts=1,
    )
    text = (
        f"What {logged.names[-1]} takes for what, on {counted(len(labels), 'evaluation sample')}. Recall is the share "
        "of a class's samples that it finds, precision the share of what it takes for the class that is of it. All "
        "classes and members are in classes.csv, all pairs in confused_pairs.csv, the matrix in confusion.csv."
    )
    if len(worst) < (counts > 0).sum():
        text += f" The table has the {CLASSES} classes of lowest recall."
    if pairs:
        html += table(
            ["class", "taken for", "samples", "share of the class"],
            [(names[i], names[j], matrix[i, j], percent(matrix[i, j] / counts[i])) for i, j in pairs[:PAIRS]],
        )
    shares = matrix / np.maximum(counts, 1)[:, None]
    figure = figures.confusion("Confusions, % of each true class", names, shares)
    drawn = [Drawn("confusion", figure, f"Confusion matrix of {len(names)} classes")]
    if pairs:
        try:
            drawn.append(_pictures(networks, predicted, guesses[-1], pairs[:PICTURED], names, max_examples))
        except UserError as error:
            text += f" Pictures are not to be had: {error}."
    files = (
        ("classes.csv", _csv(_by_class(logged, guesses, labels, names))),
        ("confusion.csv", _csv([("true class / taken for", *names), *zip(names, *matrix.T.tolist(), strict=True)])),
        (
            "confused_pairs.csv",
            _csv(
                [("class", "taken for", "samples", "share of the class")]
                + [(names[i], names[j], matrix[i, j], matrix[i, j] / counts[i]) for i, j in pairs]
            ),
        ),
    )
    return Section("Precision, recall and confusions", text, html, tuple(drawn), files)


def _pictures(
    networks: Networks,
    predicted: Predicted,
    guesses: np.ndarray,
    pairs: Sequence[tuple[int, int]],
    names: Sequence[str],
    max_examples: int,
) -> Drawn:
    """The samples of each pair that the target student is surest of."""
    rows, captions = [], []
    for true, taken in pairs:
        found = np.flatnonzero((predicted.labels == true) & (guesses == taken))
        sure = measures.log_softmax(predicted.logits[-1, found])[:, taken]
        found = found[np.argsort(-sure, kind="stable")][:PICTURES]
        rows += found.tolist()
        captions += [f"{figures.short(names[true])}\n→ {figures.short(names[taken])}"] * len(found)
    images = collect.evaluation_images(networks.run, max_examples, predicted.rows[rows])
    figure = figures.pictures("Most confused: what it is → what it is taken for", images, captions)
    return Drawn("confused", figure, f"{len(rows)} pictures of the classes that are confused most")


def _by_class(
    logged: Logged, guesses: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> list[tuple[object, ...]]:
    counts = np.bincount(labels, minlength=len(names)).tolist()
    rows: list[tuple[object, ...]] = [("member", "class", "samples", "precision", "recall")]
    for member, guessed in zip(logged.names, guesses, strict=True):
        both = measures.precision_and_recall(guessed, labels, len(names))
        cells = [["" if np.isnan(x) else float(x) for x in values] for values in both]
        rows += [(member, *row) for row in zip(names, counts, *cells, strict=True)]
    return rows


def _percent(value: float) -> str:
    return "" if np.isnan(value) else percent(value)


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
