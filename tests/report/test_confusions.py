"""The section on precision, recall and confusions: its numbers by hand, its pictures, and its files."""

import csv

import numpy as np
import pytest
from PIL import Image

from orc_jax.data import feed
from orc_jax.data.types import Dataset
from orc_jax.report import collect, confusions, measures
from orc_jax.report.write import write_report
from orc_jax.testing import small_config
from tests.report.reading import read

pytestmark = pytest.mark.usefixtures("toy_set")


def test_confusions_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 3])
    predicted = np.array([0, 1, 1, 1, measures.NOTHING, 0])
    matrix = measures.confusion(predicted, labels, 4)
    assert matrix.tolist() == [[1, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    precision, recall = measures.precision_and_recall(predicted, labels, 4)
    np.testing.assert_allclose(precision, [1 / 2, 1 / 3, np.nan, np.nan])
    np.testing.assert_allclose(recall, [1 / 3, 1 / 2, np.nan, 0])
    assert measures.most_confused(matrix) == [(0, 1), (3, 0)]


def test_the_section(finished, toy):
    """Of the samples that are confused the surest come first; the files have all members and pairs."""
    logged = collect.read(finished, "run")
    networks = collect.restore(logged, toy, "latest")
    predicted = collect.predictions(networks, 100)
    labels = predicted.labels
    wrong = np.flatnonzero(labels == 0)[:3]
    predicted.logits[-1] = 10 * np.eye(3)[labels]
    predicted.logits[-1, wrong] = np.stack([np.array([0.0, 0.0, sure]) for sure in (2, 3, 1)])
    section = confusions.section(logged, networks, predicted, 100)
    files = {name: list(csv.reader(text.splitlines())) for name, text in section.files}
    assert files["confused_pairs.csv"][1:] == [["top", "bottom", "3", str(3 / (labels == 0).sum())]]
    assert [int(x) for row in files["confusion.csv"][1:] for x in row[1:]] == [
        *((labels == 0).sum() - 3, 0, 3, 0, (labels == 1).sum(), 0, 0, 0, (labels == 2).sum())
    ]
    assert len(files["classes.csv"]) == 1 + 4 * 3 and files["classes.csv"][-1][:2] == ["3_tiny_b", "bottom"]
    assert float(files["classes.csv"][-1][3]) == (labels == 2).sum() / ((labels == 2).sum() + 3)
    matrix, pictures = section.drawn
    shown = [axes for axes in pictures.figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == ["top\n→ bottom"] * 3
    for axes, row in zip(shown, wrong[[1, 0, 2]], strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), toy.test.images[row, ..., 0])
    assert matrix.figure.axes[0].get_xlabel() == "taken for" and ">top</th><td>bottom</td>" in section.html


def test_without_mistakes_there_are_no_pairs(finished, toy):
    logged = collect.read(finished, "run")
    networks = collect.restore(logged, toy, "latest")
    predicted = collect.predictions(networks, 100)
    predicted.logits[-1] = 10 * np.eye(3)[predicted.labels]
    section = confusions.section(logged, networks, predicted, 100)
    assert [one.name for one in section.drawn] == ["confusion"] and "taken for</th>" not in section.html


def test_files_lie_beside_the_page(finished, tmp_path, not_drawn):
    page = write_report([finished], tmp_path / "report", "latest", 100, pytest.fail)
    assert "Precision, recall and confusions" in read(page).titles
    rows = list(csv.reader((tmp_path / "report" / "classes.csv").read_text().splitlines()))
    assert rows[0] == ["member", "class", "samples", "precision", "recall"] and len(rows) == 13


def test_images_of_a_streamed_set(tmp_path):
    """Those of the rows that are asked for, as an evaluation sees them."""

    class Files:
        def __len__(self):
            return 3

        def read(self, i):
            return (tmp_path / f"{i}.png").read_bytes(), i

        def name(self, i):
            return f"{i}.png"

    for i in range(3):
        Image.fromarray(np.full((16, 16, 3), 50 * i, np.uint8)).save(tmp_path / f"{i}.png")
    config = small_config()
    config.stream.image_size = 8
    dataset = Dataset("files", Files(), Files(), ("a", "b", "c"), (8, 8, 3), (0.5,) * 3, (0.5,) * 3)
    images = feed.evaluation_images(dataset, config, [2, 0])
    assert [image.shape for image in images] == [(8, 8, 3)] * 2 and [image.max() for image in images] == [100, 0]
