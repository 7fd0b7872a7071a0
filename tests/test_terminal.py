"""What a person sees while a command works: everything fits a terminal, and nothing is cut elsewhere."""

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from orc_jax import terminal
from orc_jax.terminal import Bar, Part, Rows, doing, duration, fitted, folded
from tests.helpers import printed

ROWS = Rows(
    "cifar100 test: last epoch 240, best epoch 231",
    ("member", "role", "top-1", "top-5", "top-1 at best", "promoted"),
    [("0_resnet110_bottleneck", "pivot teacher", "24.69%", "55.06%", "24.48%", "")]
    + [("1_resnet8", "target student", "23.51%", "53.49%", "23.63%", "95.5%")],
)


def drawn(width, *what, terminal=True):
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    for one in what:
        console.print(one)
    return [line.rstrip() for line in console.file.getvalue().rstrip().split("\n")]


def test_a_table_that_fits():
    lines = drawn(100, ROWS)
    assert lines[0] == "cifar100 test: last epoch 240, best epoch 231"
    assert lines[-1].split() == ["1_resnet8", "target", "student", "23.51%", "53.49%", "23.63%", "95.5%"]


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_table_that_does_not_fit_is_folded(width):
    """Nothing is left out, and no number broken."""
    lines = drawn(width, ROWS)
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert "0_resnet110_bottleneck pivot teacher top-1 24.69% top-5 55.06% top-1 at best 24.48% 1_resnet8" in text
    assert text.endswith("target student top-1 23.51% top-5 53.49% top-1 at best 23.63% promoted 95.5%")


def test_what_is_redirected_is_not_cut(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    wide = Rows("t" * 200, ("a", "b", *"cdefgh"), [["x" * 30] * 8])
    terminal.make_console().print(wide)
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert lines[0] == "t" * 200 and lines[-1].split() == ["x" * 30] * 8


def test_parts_are_left_out_by_rank():
    parts = [Part("title"), Part("loss 1.5", 2), Part("", 5), Part("72 images/s", 3), Part("3 h left", 1)]
    assert fitted(parts, 100) == "title  loss 1.5  72 images/s  3 h left"
    assert fitted(parts, 37) == "title  loss 1.5  3 h left"
    assert fitted(parts, 24) == "title  3 h left"
    assert fitted(parts, 3) == "title", "what is never left out may be too long"


def test_texts_are_folded_between_them():
    assert folded(["ab", "cd", "ef gh", "i"], 6) == "ab  cd\n  ef gh\n  i"
    assert folded(["longer than that", "x"], 5) == "longer than that\n  x"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (99.4, "99 s"),
        (99.6, "2 min"),
        (3540, "59 min"),
        (3599, "1 h 0 min"),
        (15120, "4 h 12 min"),
        (86400 * 7 + 3600 * 3, "7 d 3 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_only_what_takes_long_is_said(console, monkeypatch):
    monkeypatch.setattr(terminal, "PATIENCE", 0.05)
    with doing(console, "reading [red]"):
        pass
    time.sleep(0.1)
    assert printed(console) == ""
    with doing(console, "reading [red]"):
        time.sleep(0.15)
    assert printed(console) == "reading [red] ..."


def test_warnings_are_printed_as_they_are(console):
    """However long, and whatever looks like markup in them."""
    text = f"config.x='[red]' in /a/{'long/' * 60}folder"
    terminal.warner(console)(text)
    assert printed(console) == text


def test_no_bar_where_there_is_no_terminal(console):
    with Bar(console, "something", 3, 0) as bar:
        bar.update(1, [Part("loss 1.5")])
        with bar.doing("evaluating"):
            pass
    assert printed(console) == ""


def test_lines_instead_of_a_bar(console, monkeypatch):
    """One soon after the start, and one a minute where none came with the end of an epoch."""
    now = 100.0
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: now)
    said = {}
    with Bar(console, "orc epoch 1/2", 2000, 0) as bar:
        bar.starts()
        for step in range(1, 1000):
            now += 0.5
            bar.update(step, [Part("loss 1.5")] if step % 2 else [])
            if step == 500:
                bar.title("orc epoch 2/2")  # after a line of its own, at 350
            console.file.flush()
            for line in Path(console.file.name).read_text().splitlines():
                said.setdefault(line, now)
    assert list(said.values()) == [103.5, 164.0, 224.5, 285.0, 345.5, 410.5, 471.0, 531.5, 592.0]
    assert next(iter(said)) == "orc epoch 1/2  step 7/2000  loss 1.5  17 min left"


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_bar_fits_the_terminal(width):
    """Title and time left are always there, and no number is cut, however long the run."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    status = [Part("loss 3.321", 3), Part("accuracy 16.9%", 5), Part("2061 images/s", 4)]
    with Bar(console, "orc epoch 140/240", 187_500, 0) as bar:
        bar.starts()
        bar.update(123_456, status)
        bar._progress.refresh()
    lines = [line for line in console.file.getvalue().replace("\x1b[2K", "\n").splitlines() if "140/240" in line]
    line = "".join(c for c in lines[-1] if c.isprintable())
    assert len(line.rstrip()) <= width and "orc epoch 140/240" in line and " left" in line
    assert ("123456/187500" in line) == (width >= 60)
    assert ("loss 3.321" in line) == (width >= 60) and ("2061 images/s" in line) == (width >= 80)
    assert ("━" in line) == (width != 60), "where there is room"
