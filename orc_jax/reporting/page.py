"""The page of a report: sections as HTML, in one file that needs no other."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from matplotlib.figure import Figure

from orc_jax.reporting import figures


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


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], bold: int | None = None, texts: int = 2) -> str:
    """A table that scrolls by itself where it is too wide.

    Args:
        columns: the head.
        rows: their cells; the first is what the row is about.
        bold: a row to stand out.
        texts: the first columns, which are text; all others are numbers, to the right.
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
<style>{CSS}</style>
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
        f'<p class="muted">{escape(part.summary)}</p>\n'
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


CSS = """
:root { --page: #ffffff; --card: #f6f8fa; --ink: #24292e; --muted: #57606a; --grid: #d7dce1; --link: #0a5a9c;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #e69f00; --c5: #56b4e9;
  --c6: #6a3d9a; --c7: #8a6d1f; --c8: #7f8c8d; --c9: #b2182b; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1419; --card: #1a2027; --ink: #e4e8ec; --muted: #9aa5b1;
  --grid: #3a434d; --link: #7cc0f2;
  --c0: #4aa8e0; --c1: #ff8a45; --c2: #2fc79b; --c3: #e79bc6; --c4: #f3bd4f; --c5: #97d6f8;
  --c6: #b794e6; --c7: #cdb25e; --c8: #a9b4b8; --c9: #ff7b88; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h3 { font-size: 1.05rem; margin: 0 0 .3rem; }
p { margin: 0 0 .8rem; max-width: 75ch; }
section { margin-top: 2.2rem; scroll-margin-top: 1rem; }
article + article { margin-top: 3.5rem; padding-top: 1.5rem; border-top: 2px solid var(--grid); }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; margin: 0 0 1.4rem; font-size: .9rem; }
nav a { padding: .25rem 0; }
.muted, footer, .tiles span { color: var(--muted); }
ul.muted { padding-left: 1.2rem; max-width: 80ch; }
footer { margin-top: 3rem; font-size: .85rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 10px; }
.tiles div { background: var(--card); border-radius: 8px; padding: 10px 14px; }
.tiles b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.tiles span { font-size: .85rem; }
.wide { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--grid); white-space: nowrap; }
thead th { color: var(--muted); font-weight: 600; vertical-align: bottom; white-space: normal; }
tbody th { font-weight: 400; position: sticky; left: 0; background: var(--page); }
th:first-child { padding-left: 0; }
.number { text-align: right; }
tr.bold > * { font-weight: 700; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 12px;
  align-items: start; }
@media (min-width: 900px) { .alone { display: grid; grid-template-columns: minmax(0, 1fr) 540px; gap: 0 28px; }
  .alone { grid-template-rows: auto 1fr; } .alone > :last-child { grid-column: 2; grid-row: 1 / span 2; } }
figure { margin: 0; background: var(--card); border-radius: 8px; padding: 8px; }
figure svg { display: block; width: 100%; height: auto; max-width: 560px; margin: 0 auto; }
figure svg image { image-rendering: pixelated; }
details { margin-bottom: 1rem; }
summary { cursor: pointer; color: var(--link); padding: .3rem 0; }
@media (max-width: 480px) { main { padding: 16px 12px 32px; } h1 { font-size: 1.4rem; }
  th, td { padding: .35rem .5rem; } figure { padding: 4px; } }
@media print { nav { display: none; } section { break-inside: avoid; } }
"""
