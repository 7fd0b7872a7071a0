"""What a person sees of a run: metrics as JSON lines and in trackers, a progress bar, and tables."""

import functools
import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from ml_collections import ConfigDict
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tensorboardX import SummaryWriter

from orc_jax import hosts
from orc_jax.errors import UserError, require_choice

METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"


class MetricsLog:
    """One row of scalars per report, to `metrics.jsonl` and to trackers, as `train/loss/0_resnet56`.

    What is measured by the clock goes to `timing.jsonl`, so that `metrics.jsonl` is a function of the config alone.
    Only the first process writes.
    """

    def __init__(self, workdir: Path, step: int, config: ConfigDict):
        """Opens the log of `workdir` at `step`: rows of later steps, from before an interruption, are dropped."""
        self.workdir, self.trackers = workdir, []
        if not hosts.is_main():
            return
        for name in (METRICS, TIMING):
            kept = [row for row in read_rows(workdir, name) if row["step"] <= step]
            replace_text(workdir / name, "".join(json.dumps(row) + "\n" for row in kept))
        self.trackers = [TRACKERS[name](workdir, step, config) for name in tracker_names(config.log_to)]

    def write(self, row: dict[str, float], timing: dict[str, float]) -> None:
        """Appends a row, and what belongs to it but differs from run to run. The row has a "step"."""
        if not hosts.is_main():
            return
        for name, values in ((METRICS, row), (TIMING, {"step": row["step"]} | timing)):
            with (self.workdir / name).open("a") as file:
                file.write(json.dumps(values) + "\n")
        scalars = {name: value for name, value in (row | timing).items() if name != "step"}
        for tracker in self.trackers:
            tracker.write(scalars, row["step"])

    def close(self) -> None:
        """Ends the trackers."""
        for tracker in self.trackers:
            tracker.close()


class TensorBoard:
    """Writes event files to `tensorboard/` in the workdir."""

    def __init__(self, workdir: Path, step: int, config: ConfigDict):
        del config
        self.writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, scalars: dict[str, float], step: int) -> None:
        """Writes the scalars of one report."""
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Ends the event file."""
        self.writer.close()


class WeightsAndBiases:
    """Sends a run to Weights & Biases, or keeps it in `wandb/` of the workdir (WANDB_MODE=offline).

    The run's id follows from the workdir: a run that goes on is the same run there.
    """

    def __init__(self, workdir: Path, step: int, config: ConfigDict):
        import wandb

        del step
        place = workdir.absolute()
        self.run = wandb.init(
            project="orc_jax",
            name=place.name,
            id=hashlib.sha1(str(place).encode()).hexdigest()[:16],
            dir=str(place),
            resume="allow",
            config=json.loads(config.to_json()),
        )

    def write(self, scalars: dict[str, float], step: int) -> None:
        """Sends the scalars of one report."""
        self.run.log(scalars, step=step)

    def close(self) -> None:
        """Ends the run."""
        self.run.finish()


TRACKERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def tracker_names(log_to: str) -> list[str]:
    """The trackers that `config.log_to` names.

    Raises:
        UserError: for an unknown one, or one whose package is not installed.
    """
    names = [name.strip() for name in log_to.split(",") if name.strip()]
    for name in names:
        require_choice("config.log_to", name, TRACKERS)
        if name == "wandb" and importlib.util.find_spec("wandb") is None:
            raise UserError("config.log_to='wandb': the package wandb is not installed (pip install wandb)")
    return names


def replace_text(path: Path, text: str) -> None:
    """Writes `text` to `path` in one move: a process killed on the way leaves the old file."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)


def read_rows(workdir: Path, name: str = METRICS) -> list[dict[str, float]]:
    """The rows of a log of `workdir`; a last line that was cut off by an interruption is left out."""
    path = workdir / name
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
