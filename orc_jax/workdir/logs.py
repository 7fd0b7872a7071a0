"""The log of a run: a row of scalars per report, as JSON lines and to trackers."""

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from orc_jax import hosts
from orc_jax.config import tracker_names
from orc_jax.workdir import metrics
from orc_jax.workdir.files import replace_text


class MetricsLog:
    """Appends rows (see `metrics.py` beside this) to files and to trackers. Only the first process writes."""

    def __init__(self, workdir: Path, step: int, config: ConfigDict):
        """Opens the log of `workdir` at `step`: rows of later steps, from before an interruption, are dropped."""
        self.workdir, self.trackers = workdir, []
        if not hosts.is_main():
            return
        for name in (metrics.METRICS, metrics.TIMING):
            kept = [row for row in metrics.read(workdir, name) if row["step"] <= step]
            replace_text(workdir / name, "".join(json.dumps(row) + "\n" for row in kept))
        self.trackers = [TRACKERS[name](workdir, step, config) for name in tracker_names(config.log_to)]

    def write(self, row: metrics.Row, timing: metrics.Row) -> None:
        """Appends a row, and what belongs to it but differs from run to run. The row has a "step"."""
        if not hosts.is_main():
            return
        for name, values in ((metrics.METRICS, row), (metrics.TIMING, {"step": row["step"]} | timing)):
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
        wandb: Any = importlib.import_module("wandb")  # no requirement of the package

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
