"""The log of a run: a row of scalars per report, as JSON lines and to trackers."""

import hashlib
import importlib
import json
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from orc_jax import hosts, trackers
from orc_jax.config import flat
from orc_jax.errors import UserError, of_system
from orc_jax.workdir import metrics
from orc_jax.workdir.files import replace_text


class MetricsLog:
    """Appends rows (see `metrics.py` beside this) to files and to trackers. Only the first process writes."""

    def __init__(self, workdir: Path, step: int, config: ConfigDict, *, replicas: int = 1):
        """Opens the log of `workdir` at `step`: rows of later steps, from before an interruption, are dropped.

        Where several runs are trained at once, the time by the clock is shared among them.
        """
        self.replicas = replicas
        self.workdir, self.trackers, self.since = workdir, [], time.perf_counter()
        if not hosts.is_main():
            return
        for name in (metrics.METRICS, metrics.TIMING):
            kept = [row for row in metrics.read(workdir, name) if row["step"] <= step]
            replace_text(workdir / name, "".join(json.dumps(row) + "\n" for row in kept))
        self.trackers = [_started(name, workdir, step, config) for name in trackers.names(config.log_to)]

    def write(self, row: metrics.Row, timing: metrics.Row) -> None:
        """Appends a row, and what belongs to it but differs from run to run. The row has a "step".

        To the latter it adds how long it has been since the row before, and what time it is.
        """
        if not hosts.is_main():
            return
        since, self.since = self.since, time.perf_counter()
        timing = timing | {metrics.SECONDS: round((self.since - since) / self.replicas, 3)}
        clock = {metrics.AT: datetime.now(UTC).isoformat(timespec="seconds")}
        for name, values in ((metrics.METRICS, row), (metrics.TIMING, {"step": row["step"]} | timing | clock)):
            with (self.workdir / name).open("a") as file:
                file.write(json.dumps(values) + "\n")
        scalars = {name: value for name, value in (row | timing).items() if name != "step"}
        for tracker in self.trackers:
            tracker.write(scalars, row["step"])

    def point(self, step: int, values: Mapping[str, float]) -> None:
        """Tells the trackers how an epoch goes, at a step within it; the files have whole epochs alone.

        `values` are those of the target student by the metric ("loss", "accuracy"), and `metrics.SPEED`.
        """
        for tracker in self.trackers:
            tracker.write({metrics.running(name): value for name, value in values.items()}, step)

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """Shows an image, uint8 `[height, width, 1 or 3]`, in the trackers."""
        for tracker in self.trackers:
            tracker.picture(name, image, step)

    def close(self) -> None:
        """Ends the trackers."""
        for tracker in self.trackers:
            tracker.close()


class TensorBoard:
    """Writes event files to `tensorboard/` in the workdir, the config as a text among them."""

    def __init__(self, workdir: Path, step: int, config: ConfigDict):
        self.writer = _tensorboard().SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
        rows = [f"| {name} | {json.dumps(value)} |" for name, value in flat(json.loads(config.to_json())).items()]
        self.writer.add_text("config", "\n".join(["| field | value |", "|---|---|", *rows]), step)

    def write(self, scalars: dict[str, float], step: int) -> None:
        """Writes the scalars of one report."""
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """Writes an image, uint8 `[height, width, 1 or 3]`."""
        self.writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Ends the event file."""
        self.writer.close()


def _tensorboard() -> Any:
    """The module tensorboardX, without PyTorch, which it would import for seconds to tell arrays that none has here."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]  # as import has it: not to be found
    try:
        return importlib.import_module("tensorboardX")
    finally:
        if hidden:
            del sys.modules["torch"]


class WeightsAndBiases:
    """Sends a run to Weights & Biases, or keeps it in `wandb/` of the workdir (WANDB_MODE=offline).

    The run's id follows from the workdir: a run that goes on is the same run there.
    """

    def __init__(self, workdir: Path, step: int, config: ConfigDict):
        self.wandb: Any = importlib.import_module("wandb")  # no requirement of the package

        del step
        place = workdir.absolute()
        self.run = self.wandb.init(
            project="orc_jax",
            name=place.name,
            id=hashlib.sha1(str(place).encode()).hexdigest()[:16],
            dir=str(place),
            resume="allow",
            reinit="create_new",  # replicas are runs side by side
            config=json.loads(config.to_json()),
        )

    def write(self, scalars: dict[str, float], step: int) -> None:
        """Sends the scalars of one report."""
        self.run.log(scalars, step=step)

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """Sends an image, uint8 `[height, width, 1 or 3]`."""
        self.run.log({name: self.wandb.Image(image)}, step=step)

    def close(self) -> None:
        """Ends the run."""
        self.run.finish()


def _started(name: str, workdir: Path, step: int, config: ConfigDict) -> Any:
    """A tracker, which may need more of the system than files."""
    try:
        return TRACKERS[name](workdir, step, config)
    except OSError as error:
        raise UserError(
            f"config.log_to={name!r}: cannot be started: {of_system(error)}. It needs room in {workdir}, and a little "
            "in /dev/shm; config.log_to='' needs neither"
        ) from error


TRACKERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
