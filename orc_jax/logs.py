"""What a person sees of a run: metrics as JSON lines and in TensorBoard, a progress bar, and tables."""

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tensorboardX import SummaryWriter

METRICS = "metrics.jsonl"


class MetricsLog:
    """One row of scalars per report, to `metrics.jsonl` and to TensorBoard, as `train/loss/0_resnet56`."""

    def __init__(self, workdir: Path, step: int):
        """Opens the log of `workdir` at `step`: rows of later steps, from before an interruption, are dropped."""
        self.path = workdir / METRICS
        kept = [row for row in read_rows(workdir) if row["step"] <= step]
        replace_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, row: dict[str, float]) -> None:
        """Appends a row; it has a "step"."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if name != "step":
                self.tensorboard.add_scalar(name, value, row["step"])
        self.tensorboard.flush()

    def close(self) -> None:
        self.tensorboard.close()


def replace_text(path: Path, text: str) -> None:
    """Writes `text` to `path` in one move: a process killed on the way leaves the old file."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)


def read_rows(workdir: Path) -> list[dict[str, float]]:
    """The rows of the metrics file of `workdir`; a last line that was cut off by an interruption is left out."""
    path = workdir / METRICS
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def warn(console: Console) -> Callable[[str], None]:
    """A function that prints a warning to `console` as it is."""
    return functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)


def progress_bar(console: Console) -> Progress:
    """A bar with loss, accuracy, images/s and time left; it is not drawn where the output is not a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """A table whose first two columns are text; the others are aligned to the right."""
    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        result.add_column(column, justify="left" if i < 2 else "right", no_wrap=True)
    for row in rows:
        result.add_row(*map(str, row))
    return result
