"""The page of a report: sections as HTML, in one file that needs no other."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from orc_jax.report import figures

STYLE = Path(__file__).with_name("page.css")


class Drawn(NamedTuple):
    """A figure, the name of its file, and what one sees for those who cannot."""

    name: str
    figure: Figure
    description: str


class Section(NamedTuple):
    """A part of the page. Without anything to show it is a reason, and stands in the list of what is left out."""

    title: str
    text: str  # what one sees and how it was computed; plain
    html: str = ""  # tables and the like
    drawn: tuple[Drawn, ...] = ()
    files: tuple[tuple[str, str], ...] = ()  # that are written beside the page: (name, text)

    @property
    def is_left_out(self) -> bool:
        return not self.html and not self.drawn


class Part(NamedTuple):
    """All sections of a run, or of the comparison."""

    name: str  # letters, digits and hyphens: of anchors and files
    title: str
    summary: str  # one line; plain
    tiles: tuple[tuple[str, str], ...]  # (what, figure)
    sections: tuple[Section, ...]
    opening: str = ""  # HTML: what came of it in words, and facts


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], bold: int | None = None, texts: int = 2) -> str:
    """A table that scrolls by itself where it is too wide. The first cell of a row says what it is about.

    The row `bold` stands out. The first `texts` columns are text; all others are numbers, to the right.
    """
    head = "".join(f'<th scope="col"{_number(i, texts)}>{escape(column)}</th>' for i, column in enumerate(columns))
    lines = []
    for n, row in enumerate(rows):
        first, *others = (escape(str(cell)) for cell in row)
        cells = "".join(f"<td{_number(i, texts)}>{cell}</td>" for i, cell in enumerate(others, start=1))
        lines.append(f'<tr{" class=bold" if n == bold else ""}><th scope="row">{first}</th>{cells}</tr>')
    body = "\n".join(lines)
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
    )


def _number(column: int, texts: int) -> str:
    return "" if column < texts else ' class="number"'


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """What there is to know in a line each: (what, value)."""
    return f'<dl class="facts">{"".join(f"<dt>{escape(a)}</dt><dd>{whole(b)}</dd>" for a, b in pairs)}</dl>'


def whole(text: str) -> str:
    """A text that is not broken within a word, such as before the name of a flag, unless the word is too long."""
    return " ".join(f"<span>{escape(word)}</span>" for word in text.split())


def details(title: str, html: str) -> str:
    """Something that opens on a click."""
    return f"<details><summary>{escape(title)}</summary>{html}</details>"


def page(title: str, parts: Sequence[Part], footer: str) -> str:
    """The whole page."""
    shown = [_part(part, level=2 if len(parts) > 1 else 1) for part in parts]
    links = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name in _anchors(parts))
    body = "\n".join(shown)
    head = f"<h1>{escape(title)}</h1>" if len(parts) > 1 else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
{head}
<nav>{links}</nav>
{body}
<footer>{escape(footer)}</footer>
</main>
</body>
</html>
"""


def _anchors(parts: Sequence[Part]) -> list[tuple[str, str]]:
    if len(parts) > 1:
        return [(part.name, part.title) for part in parts]
    (part,) = parts
    return [(f"{part.name}-{i}", section.title) for i, section in enumerate(part.sections) if not section.is_left_out]


def _part(part: Part, level: int) -> str:
    tiles = "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for what, value in part.tiles)
    left_out = [section for section in part.sections if section.is_left_out]
    sections = [_section(part, i, level + 1) for i, section in enumerate(part.sections) if not section.is_left_out]
    if left_out:
        items = "".join(f"<li><b>{escape(one.title)}.</b> {escape(one.text)}</li>" for one in left_out)
        sections.append(f'<section><h{level + 1}>Left out</h{level + 1}><ul class="muted">{items}</ul></section>')
    return (
        f'<article id="{part.name}"><h{level}>{escape(part.title)}</h{level}>\n'
        f'<p class="muted">{escape(part.summary)}</p>\n{part.opening}\n'
        + (f'<div class="tiles">{tiles}</div>\n' if tiles else "")
        + "\n".join(sections)
        + "</article>"
    )


def _section(part: Part, i: int, level: int) -> str:
    section = part.sections[i]
    drawn = "".join(
        f"<figure>{figures.as_svg(one.figure, f'{part.name}-{one.name}', escape(one.description))}</figure>"
        for one in section.drawn
    )
    title = f"<h{level}>{escape(section.title)}</h{level}>"
    text = f"<div><p>{escape(section.text)}</p>\n{section.html}</div>"
    alone = ' class="alone"' if len(section.drawn) == 1 else ""  # beside the text, where there is room
    grid = f'<div class="figures">{drawn}</div>' if drawn else ""
    return f'<section id="{part.name}-{i}"{alone}>{title}\n{text}{grid}</section>'
