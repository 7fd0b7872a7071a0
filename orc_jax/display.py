"""What a person sees of a run in a terminal: lines and tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from orc_jax.data import splits
from orc_jax.errors import UserError
from orc_jax.methods.base import OBJECTIVE
from orc_jax.models import LARGE, SMALL
from orc_jax.run import Run, parameter_counts
from orc_jax.terminal import ENDLESS, Part, Rows, fitted
from orc_jax.workdir import metrics
from orc_jax.workdir.metrics import ENSEMBLE, JOINT, SPEED, Row

SKEWED = 3  # times as many training images of one class as of another, from which on a set is called so


def pool_table(run: Run, title: str = "", costs: Mapping[str, Mapping[str, str]] | None = None) -> Rows:
    """The members of a run, with `costs` as further columns by architecture."""
    names, counts, costs = run.spec.architectures, parameter_counts(run), costs or {}
    rows = [
        (name, run.method.roles[i], f"{counts[names[i]]:,}", *(cost[names[i]] for cost in costs.values()))
        for i, name in enumerate(run.spec.member_names)
    ]
    if costs:
        rows.append(("all", "", f"{sum(counts[name] for name in names):,}", *("" for _ in costs)))
    return Rows(title or _start(run), ("member", "role", "parameters", *costs), rows)


def _start(run: Run) -> str:
    device = f"{jax.device_count()} x {run.devices[0].device_kind}"
    device += f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{run.config.method} on {run.dataset.name}, {run.num_steps} steps of {run.config.batch_size}, {device}"


def unusual_sizes(run: Run) -> list[str]:
    """A line for each network that is made for images of another size."""
    size, lines = max(run.dataset.image_shape[:2]), []
    for name in dict.fromkeys(run.spec.architectures):
        if (name in SMALL and size > 96) or (name in LARGE and size < 48):
            made_for, others = (32, LARGE) if name in SMALL else (224, SMALL)
            lines.append(
                f"note: {name} is made for images of {made_for}x{made_for} pixels, and these are of {size}; "
                f"made for such are {', '.join(list(others)[:5])}{' ...' if len(others) > 5 else ''}"
            )
    return lines


def about_images(run: Run) -> list[str]:
    """Lines on what is known of streamed images before they are read, and on how they are cropped."""
    dataset, stream, lines = run.dataset, run.config.stream, []
    if dataset.is_streamed and stream.check == "quick":
        looked_at = "the beginning and the end of each file" if dataset.name == "folder" else "labels alone"
        lines.append(
            f"note: of the images, {looked_at} were looked at; config.stream.check=full decodes all of them before "
            "training, and names those that are damaged within"
        )
    if dataset.is_streamed and dataset.whole:
        lines.append(
            f"note: no image is larger than {stream.image_size} pixels: they are cropped after padding and evaluated "
            "whole, as those of sets in memory are (config.crop_padding, not stream.crop_area and stream.eval_crop)"
        )
    return lines


def about_splits(run: Run) -> list[str]:
    """A line where a run is evaluated on what it is trained on."""
    config, split = run.config, run.config.train_split
    held_out = bool(config.validation_share) and split == splits.HELD_OUT
    if held_out or split not in splits.eval_splits(config):
        return []
    return [
        f"note: config.train_split={split!r} is evaluated on as well, where what is learnt by heart counts as known"
    ]


def about_classes(run: Run) -> list[str]:
    """A line where classes have very different numbers of training images, or none, if these are known."""
    train: Any = run.dataset.train
    if not hasattr(train, "labels"):
        return []
    names, counts = run.dataset.class_names, np.bincount(train.labels, minlength=run.dataset.num_classes)
    least, most = int(counts.argmin()), int(counts.argmax())
    if counts[most] <= SKEWED * counts[least]:
        return []
    line = f"note: the classes are skewed: {counts[least]:,} training images of {names[least]}, {counts[most]:,} of "
    line += names[most]
    if run.config.balanced_sampling:
        return [f"{line}; each class that has any comes as often in an epoch (config.balanced_sampling)"]
    return [f"{line}; config.balanced_sampling=True takes each class as often, and the report tells classes apart"]


def epoch_line(run: Run, title: str, row: Row, timing: Row, width: int = ENDLESS) -> str:
    """The target student after an epoch, in a line of at most `width` columns."""
    name = run.spec.member_names[-1]
    parts = [
        Part(f"{title} epoch {row['epoch']}/{run.config.num_epochs}"),
        Part(f"{name}: loss {row[metrics.train('loss', name)]:.3f}"),
        Part(f"accuracy {row[metrics.train('accuracy', name)]:.2%}", 2),
    ]
    if (column := metrics.train(OBJECTIVE, name)) in row:
        parts.append(Part(f"{OBJECTIVE} {row[column]:.3g}"))
    if metrics.evaluated([row]):
        first, *others = splits.eval_splits(run.config)
        parts.append(Part(f"{first} {row[metrics.evaluation('top1', name)]:.2%}"))
        for other in others:
            if (column := metrics.evaluation("top1", name, other)) in row:
                parts.append(Part(f"{other} {row[column]:.2%}", 1))
        if run.spec.size > 1:
            parts.append(Part(f"ensemble {row[metrics.evaluation('top1', ENSEMBLE)]:.2%}", 1))
    return fitted([*parts, Part(f"{timing[SPEED]:.0f} images/s" if timing else "", 3)], width)


def summary(run: Run, workdir: Path) -> Rows:
    """Last and best epoch of every member; "best" is chosen by the target student on the first evaluation split.

    Raises:
        UserError: if the log has no evaluation, as where it was taken away after the run had come to its end.
    """
    rows, names = metrics.read(workdir), run.spec.member_names
    if not metrics.evaluated(rows):
        raise UserError(
            f"{workdir / metrics.METRICS} has no evaluation; --mode=evaluate makes one of the checkpoints in {workdir}"
        )
    split, *others = splits.eval_splits(run.config)
    last, best = metrics.evaluated(rows)[-1], metrics.best(rows, names[-1])

    def cells(name: str, kind: str) -> Sequence[str]:
        values = [f"{last[metrics.evaluation(metric, name)]:.2%}" for metric in ("top1", "top5")]
        values += [f"{best[metrics.evaluation('top1', name, other)]:.2%}" for other in ("", *others)]
        courses = [metrics.course(rows, metrics.train(share.metric, name))[1] for share in run.method.shares]
        return (name, kind, *values, *(f"{sum(course) / len(course):.1%}" if course else "" for course in courses))

    shares = [share.metric.replace("_", " ") for share in run.method.shares]
    own = [cells(name, run.method.roles[i]) for i, name in enumerate(names)]
    joint = [cells(name, "all members") for name in JOINT if metrics.evaluation("top1", name) in last]
    title = f"{run.dataset.name} {split}: last epoch {last['epoch']}, "
    title += f"best epoch {best['epoch']} (of the target student)"
    return Rows(
        title,
        ("member", "role", "top-1", "top-5", "top-1 at best", *(f"{other} at best" for other in others), *shares),
        [*own, *joint],
    )


def evaluation_table(result: Mapping[str, Any], which: str) -> Rows:
    """The result of an evaluation of the checkpoint `which`."""
    joint = [{"name": name, "role": "all members"} | result[name] for name in JOINT if name in result]
    rows = [
        (row["name"], row["role"], f"{row['top1']:.2%}", f"{row['top5']:.2%}", f"{row['loss']:.4f}")
        for row in [*result["members"], *joint]
    ]
    title = f"{result['dataset']} {result['split']}: {result['examples']} examples, "
    title += f"checkpoint of step {result['step']} ({which})"
    return Rows(title, ("member", "role", "top-1", "top-5", "loss"), rows)
