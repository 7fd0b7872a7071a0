"""What a person sees while a command works: lines, a progress bar and tables that fit, and what takes long.

On a terminal everything fits its width. Elsewhere, in a file or a pipe, nothing is cut or wrapped, and nothing drawn.
"""

import contextlib
import functools
import io
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import Progress, ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PATIENCE = 1.0  # seconds after which it is said what is being done
SOON, NOW_AND_THEN = 3.0, 60.0  # seconds to the first line of a bar that is not drawn, and from one to the next
ENDLESS = 10_000  # columns of an output that has no width
NARROWEST, WIDEST = 8, 40  # columns of a bar


def printable() -> None:
    """What the encoding of the outputs lacks is printed as an escape from here on, instead of being an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def make_console(*, stderr: bool = False) -> Console:
    """The console of the standard output, or of what goes beside it. Text is printed as it is, brackets and all.

    What the encoding of the output lacks is printed as a question mark or an escape.
    """
    printable()
    console = _Output(stderr=stderr, markup=False, emoji=False)
    if console.is_terminal or console.is_jupyter:
        return console
    return _Output(stderr=stderr, markup=False, emoji=False, width=ENDLESS)


def warner(console: Console) -> Callable[[str], None]:
    """A function that prints a line to `console` as it is."""
    return functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)


def width(console: Console) -> int:
    """How many columns a line may have."""
    return console.width if console.is_terminal else ENDLESS


@contextlib.contextmanager
def doing(console: Console, what: str) -> Iterator[None]:
    """Says what is being done if that takes longer than a second: as long as it takes on a terminal, else once."""
    if console.is_terminal and not console.quiet:
        with console.status(Text(f"{what} ...")):
            yield
        return
    timer = threading.Timer(PATIENCE, _said, [console, f"{what} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _said(console: Console, line: str) -> None:
    """In a thread of its own, where nobody hears that it cannot be printed: what is printed next will tell."""
    with contextlib.suppress(OSError):
        warner(console)(line)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `4 h 12 min`, `7 d 3 h`."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


class _Output(Console):
    """A console whose reader may have enough: the command then ends as others do (see `commands.reported`)."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


class Part(NamedTuple):
    """A part of a line. Where the line is too long, those with the highest number are left out first."""

    text: str
    dispensable: int = 0  # 0: never left out


def fitted(parts: Iterable[Part], width: int) -> str:
    """A line of parts that has at most `width` columns, if it can be had by leaving parts out."""
    parts = [part for part in parts if part.text]
    while True:
        line = "  ".join(part.text for part in parts)
        last = max(parts, key=lambda part: part.dispensable, default=Part(""))
        if len(line) <= width or not last.dispensable:
            return line
        parts.remove(last)


def folded(texts: Iterable[str], width: int, indent: str = "  ") -> str:
    """Texts in lines of at most `width` columns; none is broken. All lines but the first are indented."""
    lines = [""]
    for text in texts:
        joined = f"{lines[-1]}  {text}" if lines[-1].strip() else lines[-1] + text
        if len(joined) > width and lines[-1].strip():
            lines.append(indent + text)
        else:
            lines[-1] = joined
    return "\n".join(lines)


class Rows:
    """A table with a title. The first two columns are text, the others are aligned to the right.

    Where it is too wide, each row is folded into lines of its own.
    """

    def __init__(self, title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]):
        self.title, self.columns = title, tuple(columns)
        self.rows: list[Sequence[str]] = [tuple(map(str, row)) for row in rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.title, style="italic", overflow="fold")
        grid = Table(box=box.SIMPLE_HEAD)
        for i, column in enumerate(self.columns):
            grid.add_column(column, justify="left" if i < 2 else "right", no_wrap=True)
        for row in self.rows:
            grid.add_row(*map(Text, row))
        if Measurement.get(console, options.update(width=ENDLESS), grid).maximum <= options.max_width:
            yield grid
            return
        for row in self.rows:
            named = [f"{name} {cell}" for name, cell in zip(self.columns[2:], row[2:], strict=True) if cell]
            yield Text(folded([*row[:2], *named], options.max_width), overflow="fold")


class Bar:
    """The progress of a run: drawn on a terminal; elsewhere a line soon after its start and then now and then."""

    def __init__(self, console: Console, title: str, total: int, completed: int):
        self.console, self.total = console, total
        self._progress = Progress(_Line(console), console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task(title, total=total, completed=completed, status=(), left="")
        self._started, self._due = None, float("inf")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def starts(self) -> None:
        """From here on the time that is left is reckoned."""
        self._started = time.perf_counter(), self._progress.tasks[0].completed
        self._due = time.perf_counter() + SOON

    def title(self, text: str) -> None:
        """What comes first. Where nothing is drawn, a new title comes with a line of the caller's own."""
        self._progress.update(self._task, description=text)
        if self._started:
            self._due = time.perf_counter() + NOW_AND_THEN

    def update(self, completed: int, status: Iterable[Part] = ()) -> None:
        """Moves the bar."""
        left = ""
        if self._started and completed > self._started[1]:
            since, first = self._started
            left = duration((time.perf_counter() - since) / (completed - first) * (self.total - completed)) + " left"
        fields: Any = {"status": tuple(status)} if status else {}
        self._progress.update(self._task, completed=completed, left=left, **fields)
        if not self.console.is_terminal and time.perf_counter() > self._due:
            self._due = time.perf_counter() + NOW_AND_THEN
            task = self._progress.tasks[0]
            parts = [Part(task.description), Part(f"step {completed}/{self.total}"), *status, Part(left)]
            warner(self.console)(fitted(parts, ENDLESS))

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """As the function of that name."""
        if not self.console.is_terminal:
            with doing(self.console, what):
                yield
            return
        before = self._progress.tasks[0].fields["status"]
        self._progress.update(self._task, status=(Part(f"{what} ..."),), refresh=True)
        try:
            yield
        finally:
            self._progress.update(self._task, status=before)


class _Line(ProgressColumn):
    """Title, bar, steps, status and time left, in one line that fits."""

    def __init__(self, console: Console):
        super().__init__()
        self._console = console

    def render(self, task: Task) -> Table:
        total, width = int(task.total or 0), self._console.width
        done = f"{int(task.completed)}/{total}"
        parts = [Part(task.description), Part(done, 2), *task.fields["status"], Part(task.fields["left"], 1)]
        text = fitted(parts, width)
        cells: list[Text | ProgressBar] = [Text(text, no_wrap=True, overflow="crop")]
        if (space := width - len(text) - 2) >= NARROWEST:
            rest = text.removeprefix(task.description).strip()
            bar = ProgressBar(total=total, completed=task.completed, width=min(space, WIDEST))
            cells = [Text(task.description, no_wrap=True), bar, Text(rest, no_wrap=True)]
        grid = Table.grid(padding=(0, 1))
        grid.add_row(*cells)
        return grid
