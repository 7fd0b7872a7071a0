"""The page by itself: what it shows is escaped, and its colours are those of the figures, in light and in dark."""

import re

import pytest

from orc_jax.report import figures, page
from tests.report.reading import Reader


def test_the_page_escapes_what_it_shows():
    table = page.table(["<x-1>&"], [["<x-2>&"], ["<x-3>&"]])
    section = page.Section("<x-4>&", "<x-5>&", table + page.details("<x-6>&", ""))
    left_out = page.Section("<x-7>&", "<x-8>&")
    part = page.Part("run1", "<x-9>&", "<x-10>&", (("<x-11>&", "<x-12>&"),), (section, left_out))
    text = page.page("<x-13>&", [part], "<x-14>&")
    assert "<x-" not in text
    assert {f"&lt;x-{i}&gt;&amp;" for i in range(1, 15)} == set(re.findall(r"&lt;x-\d+&gt;&amp;", text))
    Reader(text)


@pytest.mark.parametrize("setting", ["light", "dark"])
def test_the_page_has_a_value_for_every_colour_of_the_figures(setting):
    light, dark = page.STYLE.read_text().split("@media (prefers-color-scheme: dark)")
    values = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", light if setting == "light" else dark.split("} }")[0]))
    assert set(figures.VARIABLES.values()) <= values.keys()
    if setting == "light":
        assert {color: values[variable] for color, variable in figures.VARIABLES.items()} == {
            color: color for color in figures.VARIABLES
        }
    used = set(re.findall(r"var\((--[\w-]+)\)", page.STYLE.read_text()))
    assert used <= values.keys()


def test_what_a_page_of_one_run_and_of_several_links_to():
    """One run: its sections; several: the runs."""
    shown, left_out = page.Section("Shown", "text", "<p>html</p>"), page.Section("Left out here", "reason")
    one = page.Part("run1", "First", "", (), (shown, left_out))
    other = page.Part("run2", "Second", "", (), (shown,))
    alone, several = (Reader(page.page("Title", parts, "")) for parts in ([one], [one, other]))
    assert set(alone.links) == {"run1-0"} and alone.titles == ["First", "Shown", "Left out"]
    assert set(several.links) == {"run1", "run2"}
    assert several.titles == ["Title", "First", "Shown", "Left out", "Second", "Shown"]
