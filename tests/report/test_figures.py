"""Figures: as elements of a page they take its colours, keep their ids apart, and say what they show."""

import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from orc_jax.report import figures
from orc_jax.report.collect import Feedback
from orc_jax.report.measures import calibration
from tests.report.reading import Reader

SERIES = {f"member {i}": ([1, 2, 3], [i, i + 1, i + 2]) for i in range(12)}
SHARES = {name: y for name, (_, y) in SERIES.items()}
CLASSES = ["ant", "bee", "cat"]
BATCH = Feedback(
    students=(1, 2),
    losses=np.array([0.5, 0.7]),
    shares=np.array([3, 0]),
    handed_back=(np.array([4, 0, 2]), np.zeros(0, int)),
    images=np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8),
    labels=np.array([0, 1, 2, 0, 1]),
    predicted=np.array([[0, 1, 2, 0, 0], [1, 1, 1, 1, 1]]),
)
DRAWN = {
    "curves": lambda: figures.curves("Top-1", "%", SERIES, bold=["member 3"], plain=["member 11"]),
    "stacked shares": lambda: figures.stacked_shares("Roles", [1, 2, 3], SHARES),
    "dots": lambda: figures.dots("Classes", CLASSES, SHARES, "member 3"),
    "before and after": lambda: figures.before_and_after("Pivot", CLASSES, [10, 20, 30], [15, 20, 35]),
    "matrix": lambda: figures.matrix("Agreement", ["a", "b"], np.array([[1.0, 0.25], [0.25, 1.0]])),
    "correlations": lambda: figures.correlation_difference("Difference", np.array([[0.0, 0.5], [-0.5, 0.0]])),
    "reliability": lambda: figures.reliability(
        "Calibration", {"a": calibration(np.array([[0.9, 0.1], [0.3, 0.7]]), np.array([0, 0]))}
    ),
    "pictures": lambda: figures.handed_back(BATCH, 0, "Handed back", CLASSES),
    "embedding": lambda: figures.embedding("Features", np.eye(3, 2), np.arange(3), CLASSES),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_on_a_page(name):
    figure = DRAWN[name]()
    assert isinstance(figure, Figure)
    text = figures.as_svg(figure, "run1-x", "what one sees")
    one, other = Reader(text), Reader(text + figures.as_svg(figure, "run2-x", "what one sees"))
    assert 'role="img" aria-label="what one sees"' in text and 'pt"' not in text.split(">")[0]
    assert one.ids and all(i.startswith("run1-x-") for i in one.ids)
    assert len(other.ids) == 2 * len(one.ids)
    variables = set(re.findall(r"var\((--[\w-]+)\)", text))
    assert "--ink" in variables and variables <= set(figures.VARIABLES.values())
    colours = set(re.findall(r"#[0-9a-f]{6}", text))
    assert not colours & set(figures.VARIABLES), "those of light pages alone"
    assert figures.as_png(figure).startswith(b"\x89PNG")


def test_any_name_can_be_drawn():
    """Dollar signs, letters that the font lacks, bytes that are no text."""
    names = ["$5 \\$ x_$", "\u732b", "caf\udcff"]
    for figure in (
        figures.dots("$a$", [figures.short(name) for name in names], SHARES, "member 3"),
        figures.handed_back(BATCH, 0, "Handed back", names),
        figures.embedding("Features", np.eye(3, 2), np.arange(3), [figures.short(name) for name in names]),
        figures.curves("Top-1", "%", {names[0]: ([1, 2], [1, 2])}),
    ):
        figures.as_png(figure)
        assert "<svg" in figures.as_svg(figure, "x", "")


def test_members_beyond_the_palette_are_told_apart():
    """By dashes, markers or hatches: twelve members, ten colours."""
    assert len(set(figures.PALETTE)) == 10
    lines = figures.curves("Top-1", "%", SERIES).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}) == 12
    bars = figures.stacked_shares("Roles", [1, 2, 3], SHARES).axes[0].containers
    assert len({(bar[0].get_facecolor(), bar[0].get_hatch()) for bar in bars}) == 12


def test_the_thick_line_is_the_bold_one():
    lines = figures.curves("Top-1", "%", SERIES, bold=["member 3"], plain=["member 11"]).axes[0].lines
    widths = {line.get_label(): line.get_linewidth() for line in lines}
    assert max(widths, key=widths.get) == "member 3" and len(set(widths.values())) == 2
    (plain,) = (line for line in lines if line.get_color() == figures.INK)
    assert plain.get_label() == "member 11"
    np.testing.assert_array_equal(lines[4].get_xydata(), [[1, 4], [2, 5], [3, 6]])


def test_shares_are_stacked():
    bars = figures.stacked_shares("Roles", [1, 2], {"a": [30, 40], "b": [70, 60]}).axes[0].containers
    assert [[(bar.get_y(), bar.get_height()) for bar in one] for one in bars] == [
        [(0, 30), (0, 40)],
        [(30, 70), (40, 60)],
    ]


def test_pictures_say_what_they_are_and_what_they_are_taken_for():
    figure = figures.handed_back(BATCH, 0, "Handed back", CLASSES)
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 3
    np.testing.assert_array_equal(shown[0].images[0].get_array(), BATCH.images[4])
    np.testing.assert_array_equal(shown[1].images[0].get_array(), BATCH.images[0])
    texts = [" ".join(text.get_text() for text in axes.findobj(Text)) for axes in shown]
    assert "bee" in texts[0] and "ant" in texts[0] and "✓" not in texts[0]
    assert "ant" in texts[1] and "✓" in texts[1]


def test_long_names_are_cut():
    assert figures.short("ant") == "ant" and len(figures.short("a" * 40)) <= 13 and figures.short("b" * 40)[0] == "b"
