"""The figures of a report: one function each, from numbers to a matplotlib figure, as wide as a phone can show.

Colours of lines, text and grids are those of PALETTE, INK and GRID; `as_svg` replaces them by variables of the page's
style, which has them for a light and a dark setting. Members are told apart by markers or dashes as well.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from orc_jax.report.collect import Feedback
from orc_jax.report.measures import Bins

INK, GRID = "#24292e", "#d7dce1"
# Okabe and Ito's colours without black and yellow, which no white page shows well, and four more.
PALETTE = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    *("#6a3d9a", "#8a6d1f", "#7f8c8d", "#b2182b"),
)
VARIABLES = {INK: "--ink", GRID: "--grid"} | {color: f"--c{i}" for i, color in enumerate(PALETTE)}
MARKERS = ("o", "s", "^", "D", "v")
DASHES = ("-", (0, (4, 1.5)))
DOTTED = (0, (1, 1.2))
WIDTH = 4.4  # inches: at 390 pixels the text is still read
# A decorator: what is drawn in the function is drawn in this style.
styled = matplotlib.rc_context(fname=Path(__file__).with_name("figures.mplstyle"))

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # name -> (x, y)


def color(i: int) -> str:
    return PALETTE[i % len(PALETTE)]


def _axes(height: float, width: float = WIDTH):
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _legend(figure: Figure, columns: int = 2) -> None:
    figure.legend(loc="outside lower center", ncols=columns)


@styled
def curves(
    title: str,
    unit: str,
    series: Series,
    bold: Sequence[str] = (),
    plain: Sequence[str] = (),
    *,
    from_zero: bool = False,
) -> Figure:
    """Lines over epochs, one per name; those of `bold` are thicker, those of `plain` in the colour of the text."""
    figure, axes = _axes(3.1 + 0.16 * (len(series) // 2))
    for i, (name, (x, y)) in enumerate(series.items()):
        axes.plot(
            x,
            y,
            color=INK if name in plain else color(i),
            linestyle=DOTTED if name in plain and len(series) > 1 else DASHES[i // len(PALETTE) % 2],
            linewidth=2.4 if name in bold else 1.4,
            marker=MARKERS[i % len(MARKERS)] if len(x) <= 12 else None,
            label=name,
        )
    axes.set(title=title, xlabel="epoch", ylabel=unit)
    if from_zero:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    axes.grid(axis="y")
    if len(series) > 1:
        _legend(figure)
    return figure


@styled
def stacked_shares(title: str, epochs: Sequence[float], shares: Mapping[str, Sequence[float]]) -> Figure:
    """Shares that add up, as stacked bars over epochs. The keys' colours go with their place among all members."""
    figure, axes = _axes(3.3)
    bottom = np.zeros(len(epochs))
    for i, (name, values) in enumerate(shares.items(), start=1):
        hatch = "///" if i >= len(PALETTE) else None
        axes.bar(epochs, values, bottom=bottom, width=0.92, color=color(i), hatch=hatch, label=name)
        bottom += np.array(values)
    axes.set(title=title, xlabel="epoch", ylabel="share of iterations, %", xlim=(min(epochs) - 0.6, max(epochs) + 0.6))
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    _legend(figure)
    return figure


@styled
def dots(title: str, rows: Sequence[str], columns: Mapping[str, Sequence[float]], bold: str) -> Figure:
    """Accuracies in percent: one row per class, one dot per member."""
    figure, axes = _axes(1.5 + (0.15 + 0.035 * len(columns)) * len(rows) + 0.16 * (len(columns) // 2))
    places = np.linspace(-0.28, 0.28, len(columns)) if len(columns) > 1 else [0.0]  # so that no dot hides another
    for i, (name, values) in enumerate(columns.items()):
        size = 40 if name == bold else 16
        marker = MARKERS[i % len(MARKERS)]
        axes.scatter(values, places[i] + np.arange(len(rows)), s=size, color=color(i), marker=marker, label=name)
    _class_rows(axes, rows, np.stack(list(columns.values())))
    axes.set(title=title, xlabel="accuracy, %")
    _legend(figure)
    return figure


@styled
def before_and_after(title: str, rows: Sequence[str], before: Sequence[float], after: Sequence[float]) -> Figure:
    """Two accuracies per class in percent, joined by a line."""
    figure, axes = _axes(1.4 + 0.21 * len(rows))
    axes.hlines(range(len(rows)), before, after, color=GRID, linewidth=3, zorder=2)
    ring = {"facecolors": "none", "edgecolors": color(0), "linewidths": 1.8}  # around what is at the same place
    axes.scatter(before, range(len(rows)), s=80, marker="o", label="as pre-trained", zorder=3, **ring)
    axes.scatter(after, range(len(rows)), s=22, marker="D", label="at the checkpoint", zorder=3, color=color(1))
    _class_rows(axes, rows, np.stack([before, after]))
    axes.set(title=title, xlabel="accuracy, %")
    _legend(figure)
    return figure


def _class_rows(axes, rows: Sequence[str], shown: np.ndarray) -> None:
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    low, high = 10 * np.floor(shown.min() / 10), 10 * np.ceil(shown.max() / 10)
    low, high = (low, high) if high > low else (max(0, low - 10), min(100, low + 10))
    axes.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    axes.grid(axis="both", linewidth=0.5)
    axes.tick_params(left=False)
    axes.spines["left"].set_visible(False)


@styled
def methods(title: str, rows: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Accuracies in percent: a row per method, with those of every run after the last epoch and at its best one.

    The former are dots beside their mean and standard deviation; of the latter the mean is a ring.
    """
    figure, axes = _axes(1.3 + 0.28 * len(rows))
    labels = iter(("one run, last epoch", "mean ± standard deviation", "mean of best epochs"))
    for y, (last, best) in enumerate(rows.values()):
        if not len(last):
            place = {"transform": axes.get_yaxis_transform(), "ha": "center", "va": "center"}
            axes.text(0.5, y, "no run is finished", fontsize=8, **place)
            continue
        spread = np.std(last, ddof=1) if len(last) > 1 else 0.0
        axes.plot(last, [y] * len(last), ".", color=color(8), label=next(labels, None))
        axes.errorbar(np.mean(last), y, xerr=spread, fmt="o", color=color(0), capsize=3, label=next(labels, None))
        ring = {"markerfacecolor": "none", "markersize": 7, "color": color(1)}
        axes.plot(np.mean(best), y, "o", **ring, label=next(labels, None))
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set(title=title, xlabel="top-1, %")
    axes.grid(axis="x")
    if axes.lines:
        _legend(figure)
    return figure


@styled
def matrix(title: str, names: Sequence[str], values: np.ndarray) -> Figure:
    """A small matrix of percentages, with its numbers."""
    figure, axes = _axes(1.3 + 0.42 * len(names))
    shown = 100 * values
    low = np.nanmin(shown)
    axes.imshow(shown, cmap="cividis", vmin=low, vmax=100, aspect="auto")
    for i, row in enumerate(shown):
        for j, value in enumerate(row):
            dark = value < (low + 100) / 2
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", color="#ffffff" if dark else "#000000")
    axes.set_xticks(range(len(names)), [name.split("_")[0] for name in names])
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(title=title, xlabel="number of the member")
    return figure


@styled
def confusion(title: str, names: Sequence[str], shares: np.ndarray) -> Figure:
    """Shares of each true class (rows) by class, `[classes, classes]`; with names and numbers where they fit."""
    few = len(names) <= 12
    figure, axes = _axes(1.6 + 0.36 * len(names) if few else 4.6)
    axes.imshow(100 * shares, cmap="cividis", vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    if few:
        for (i, j), share in np.ndenumerate(shares):
            axes.text(
                j, i, f"{100 * share:.0f}", ha="center", va="center", color="#ffffff" if share < 0.5 else "#000000"
            )
        labels = [short(name) for name in names]
        axes.set_xticks(range(len(names)), labels, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(title=title, xlabel="taken for", ylabel="true class")
    return figure


@styled
def correlation_difference(title: str, difference: np.ndarray) -> Figure:
    """A matrix of differences, class by class, in [-2, 2]; the scale is symmetric and ends at the largest."""
    figure, axes = _axes(3.8)
    limit = max(float(np.abs(difference).max()), 1e-3)
    image = axes.imshow(difference, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set(title=title, xlabel="class", ylabel="class")
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, shrink=0.8)
    bar.outline.set_visible(False)
    return figure


@styled
def reliability(title: str, bins: Mapping[str, Bins]) -> Figure:
    """Accuracy over confidence of several classifiers; the larger the dot, the more samples are in its bin."""
    figure, axes = _axes(4.2)
    axes.plot([0, 100], [0, 100], color=GRID, linewidth=2, zorder=1)
    for i, (name, one) in enumerate(bins.items()):
        x, y = 100 * one.confidence, 100 * one.accuracy
        sizes = 12 + 110 * one.counts / one.counts.sum()
        axes.plot(x, y, color=color(i), linewidth=1, alpha=0.6)
        marker = MARKERS[i]
        label = f"{name}, ECE {100 * one.ece:.1f} %"
        axes.scatter(x, y, s=sizes, color=color(i), marker=marker, label=label, zorder=3, alpha=0.9)
    axes.set(title=title, xlabel="confidence, %", ylabel="accuracy, %", xlim=(-3, 103), ylim=(-3, 103))
    axes.grid(linewidth=0.5)
    _legend(figure, 1)
    return figure


@styled
def embedding(title: str, points: np.ndarray, classes: np.ndarray, names: Sequence[str]) -> Figure:
    """Points in the plane, coloured by class."""
    figure, axes = _axes(4.0 + 0.16 * (len(names) // 3))
    for i, name in enumerate(names):
        x, y = points[classes == i].T
        axes.scatter(x, y, s=18, color=color(i), marker=MARKERS[i % len(MARKERS)], label=name, alpha=0.85, linewidth=0)
    axes.set(title=title, xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    longest = max(map(len, names))
    _legend(figure, 5 if longest <= 5 else 3 if longest <= 12 else 2)
    return figure


@styled
def pictures(title: str, images: Sequence[np.ndarray], captions: Sequence[str], columns: int = 4) -> Figure:
    """Images `[height, width, channels]`, each below its caption."""
    lines = -(-len(images) // columns)
    figure = Figure(figsize=(WIDTH, 0.5 + 1.5 * lines), layout="constrained")
    figure.suptitle(title, fontsize=9.5)
    places = figure.subplots(lines, columns, squeeze=False).flat
    for axes in places:
        axes.axis("off")
    for axes, image, caption in zip(figure.axes, images, captions, strict=False):
        axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=255)
        axes.set_title(caption, fontsize=8.5)
    return figure


def handed_back(feedback: Feedback, student: int, title: str, class_names: Sequence[str], count: int = 12) -> Figure:
    """The first samples that a student hands back, each with its class and what the student takes it for."""
    rows = feedback.handed_back[student][:count]
    captions = []
    for i in rows:
        predicted, label = int(feedback.predicted[student, i]), int(feedback.labels[i])
        guess = "nothing" if predicted < 0 else class_names[predicted]
        captions.append(f"{short(class_names[label])}\n{'✓' if predicted == label else '→'} {short(guess)}")
    return pictures(title, [feedback.images[i] for i in rows], captions)


def short(name: str, longest: int = 13) -> str:
    """A name as a label; bytes of it that are no text are escaped."""
    name = name.encode(errors="backslashreplace").decode()
    return name if len(name) <= longest else name[: longest - 1] + "…"


def as_png(figure: Figure) -> bytes:
    """The figure on white."""
    file = io.BytesIO()
    figure.patch.set_facecolor("white")
    figure.set_dpi(160)
    with _boxes_for_missing_letters():
        FigureCanvasAgg(figure).print_png(file)  # which draws once; `savefig` draws twice
    figure.set_layout_engine("none")  # it is laid out: in the next format it stays as it is
    return file.getvalue()


@contextlib.contextmanager
def _boxes_for_missing_letters() -> Iterator[None]:
    """Letters that the font lacks are drawn as boxes, of which a person is not told a line for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


@styled
def as_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an element of a page, transparent and with the page's colours.

    `name`, of letters, digits and hyphens, keeps its ids apart; `description`, escaped, is for those who cannot see it.
    """
    file = io.StringIO()
    for part in (figure, *figure.axes):
        part.patch.set_facecolor("none")
    with _boxes_for_missing_letters():
        FigureCanvasSVG(figure).print_svg(file, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    figure.set_layout_engine("none")
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", svg)
    for value, variable in VARIABLES.items():
        svg = svg.replace(value, f"var({variable})")
    return re.sub(
        r'width="[\d.]+pt" height="[\d.]+pt"', lambda _: f'role="img" aria-label="{description}"', svg, count=1
    ).strip()
