"""The rows of a run's log: the names of their columns, which have an evaluation, which is best, and their file.

A row is a dict of one report: {"step": 11, "epoch": 2, "train/loss/0_resnet56": ..., "eval/top1/ensemble": ...}.
"""

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"  # what is measured by the clock: metrics.jsonl is a function of the config alone
SPEED = "images_per_second"
SECONDS, AT = "seconds", "at"  # by the clock since the row before, or since the log was opened; and when, in UTC
RATE = "learning_rate"
EVALUATED = ("top1", "top5", "loss")  # the metrics of an evaluation
ENSEMBLE, MEAN = "ensemble", "mean"  # of all members
JOINT = (MEAN, ENSEMBLE)

Row = dict[str, Any]


def train(metric: str, name: str) -> str:
    """The column of a member's mean over the training batches of an epoch."""
    return f"train/{metric}/{name}"


def evaluation(metric: str, name: str, split: str = "") -> str:
    """The column of a metric of `EVALUATED` of a member, or of all as `JOINT` names them.

    That of the split that selects the best checkpoint has no name of a `split` in it.
    """
    return f"eval_{split}/{metric}/{name}" if split else f"eval/{metric}/{name}"


def diverged(name: str) -> str:
    """The column of the step at which a member diverged."""
    return f"diverged_at/{name}"


def running(metric: str) -> str:
    """What trackers call a metric of the target student within an epoch: its mean over the epoch so far."""
    return f"running/{metric}"


def of_evaluation(result: Mapping[str, Any], split: str = "") -> Row:
    """The columns of an evaluation's result (see `orc_jax.evaluate.evaluator`)."""
    named = {row["name"]: row for row in result["members"]} | {name: result[name] for name in JOINT if name in result}
    return {evaluation(metric, name, split): row[metric] for metric in EVALUATED for name, row in named.items()}


def evaluated(rows: Iterable[Row]) -> list[Row]:
    """The rows of the epochs that end with an evaluation."""
    return [row for row in rows if evaluation("top1", ENSEMBLE) in row]


def best(rows: Iterable[Row], target: str) -> Row:
    """The evaluated row with the highest top-1 of the member `target`, by name.

    Of equals it is the last, as the best checkpoint is.
    """
    return max(evaluated(rows), key=lambda row: (row[evaluation("top1", target)], row["step"]))


def is_best(rows: Iterable[Row], result: Mapping[str, Any], target: str) -> bool:
    """Whether an evaluation's result has the target student at least as good as it was in all `rows`."""
    column = evaluation("top1", target)
    return all(result["target_student"]["top1"] >= row[column] for row in evaluated(rows))


def stalled(rows: Iterable[Row], target: str, patience: int) -> bool:
    """Whether a run of this log ends early: it has not been better than at its best epoch for `patience` epochs."""
    rows = evaluated(rows)
    if not patience or not rows:
        return False
    first_best = max(rows, key=lambda row: row[evaluation("top1", target)])
    return rows[-1]["epoch"] - first_best["epoch"] >= patience


def course(rows: Iterable[Row], column: str) -> tuple[list[int], list[float]]:
    """The epochs whose rows have a column, and its values."""
    having = [row for row in rows if column in row]
    return [row["epoch"] for row in having], [row[column] for row in having]


def took(timing: Iterable[Row]) -> float | None:
    """Seconds by the clock that the rows of `TIMING` stand for; None if some are of a version that did not measure."""
    rows = list(timing)
    return sum(row[SECONDS] for row in rows) if rows and all(SECONDS in row for row in rows) else None


def read(workdir: Path, name: str = METRICS) -> list[Row]:
    """The rows of a log of `workdir`; lines that are none, as the last where it was cut off, are left out."""
    path = workdir / name
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            rows += [row] if isinstance(row, dict) and isinstance(row.get("step"), int) else []
    return rows
