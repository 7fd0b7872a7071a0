"""The runs of a comparison: which there are, what they share, what they come to and what they cost."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from orc_jax import capacity, places, pretrained, transfer
from orc_jax.config import Resolved, flat, resolve
from orc_jax.data.batches import seed_of
from orc_jax.data.splits import eval_splits
from orc_jax.data.types import Dataset
from orc_jax.describe import forward_flops, step_flops
from orc_jax.errors import UserError, require
from orc_jax.methods.base import Stage
from orc_jax.pool import names_of
from orc_jax.run import build
from orc_jax.workdir import checkpoint, metrics, record
from orc_jax.workdir.comparison import Compared, Comparison

TEACHER = "pivot"  # the stage that methods share


class Variant(NamedTuple):
    """What is trained with every seed: a line of the table."""

    name: str
    config: ConfigDict
    shares_teacher: bool = True
    swept: tuple[str, ...] = ()  # fields in which variants differ: those that can be are arguments of one program


class Planned(NamedTuple):
    """A run of the comparison, and where it is kept."""

    method: str  # the name of its variant
    run: Resolved
    folder: Path
    teacher_run: Resolved | None = None  # what trains the teacher that it shares with others

    @property
    def name(self) -> str:
        return f"{self.method}, seed {self.run.config.seed}"

    @property
    def teacher(self) -> Path | None:
        """The run of the teacher that it shares with others."""
        return Path(self.run.config.pivot_checkpoint) if self.teacher_run else None


def plan(config: ConfigDict, variants: Sequence[Variant], seeds: int, out: Path) -> list[Planned]:
    """All runs, seed by seed.

    Args:
        config: whose teacher all variants share, if they do.
        variants: in the order of the table.
        seeds: how many, from the `config.seed` of each variant on.
        out: for the runs and the table.

    Raises:
        UserError: for bad input, and if a folder holds another run.
    """
    require("--seeds", seeds, seeds >= 1, "at least 1")
    shared = "empty: each seed has a teacher of its own, which all methods share"
    require("config.pivot_checkpoint", repr(config.pivot_checkpoint), not config.pivot_checkpoint, shared)
    require("--out", out, not (out / record.FILE).exists(), "another folder: this one holds a run")
    plans = [variant_run(config, variant, i, out) for i in range(seeds) for variant in variants]
    for planned in plans:
        for run, folder in jobs(planned):
            there = record.read(folder)
            if there:
                here = there._replace(config=json.loads(run.config.to_json()), architectures=run.architectures)
                record.require_resumable(there, here, folder)
    return plans


def run_folder(out: Path, name: str, seed: int) -> Path:
    """Where the run of a variant and a seed is kept."""
    return out / places.plain(name) / f"seed_{seed}"


def variant_run(config: ConfigDict, variant: Variant, i: int, out: Path) -> Planned:
    """Run `i` of a variant."""
    own, shared = (one.copy_and_resolve_references() for one in (variant.config, config))
    own.replicas = shared.replicas = 1  # how many are trained at once is no part of any
    own.seed += i
    run, folder = resolve(own).with_values(variant.swept), run_folder(out, variant.name, own.seed)
    # What another stage trains than the teacher alone, each run trains for itself.
    alone = run.method.stages[:1] == (Stage(TEACHER, "independent", (0,)),)
    if not (own.pretrain_epochs and alone and variant.shares_teacher):
        return Planned(variant.name, run, folder)
    run = run.replace(pivot_checkpoint=str(run_folder(out, TEACHER, own.seed)))
    shared.update(method="independent", method_options="", seed=own.seed)
    return Planned(variant.name, run, folder, pivot_run(resolve(shared)))


def pivot_run(resolved: Resolved) -> Resolved:
    """The config that trains the pivot teacher of a run by itself."""
    teacher, epochs = resolved.config.teacher, resolved.config.pretrain_epochs
    alone = {"method": "independent", "method_options": "", "num_networks": 1, "student": teacher}
    alone["init"] = transfer.of_part(resolved.config.init, len(resolved.architectures), [0])
    return resolved.replace(**alone, num_epochs=epochs, pivot_checkpoint="")


def jobs(planned: Planned) -> list[tuple[Resolved, Path]]:
    """What has to be trained for a run: the teacher that it shares with others, and the run."""
    teacher = [(planned.teacher_run, planned.teacher)] if planned.teacher_run and planned.teacher else []
    return [*teacher, (planned.run, planned.folder)]


def program_of(run: Resolved, dataset: Dataset) -> str:
    """What runs have in common that one program can train: all but their seeds, values and where their teacher is.

    Their seeds too, where each seed has its own images: of a set that is streamed, or of which a share is held out.
    """
    theirs = {"seed", "pivot_checkpoint", *run.values}
    fields = {name: value for name, value in flat(run.config.to_dict()).items() if name not in theirs}
    own_images = dataset.is_streamed or run.config.validation_share
    return repr([sorted(fields.items()), run.values, seed_of(run.config) if own_images else None])


def even_part(count: int, most: int) -> int:
    """The first of as few parts of `count` as can be, of at most `most` each, and as even as can be."""
    return -(-count // -(-count // most))


def groups(plans: Sequence[Planned], dataset_of: Callable[[Resolved], Dataset], replicas: int) -> Iterator[list[int]]:
    """Runs by number, in groups that one program can train, the first of each in order.

    A group has at most `replicas`, or if that is 0 as many as `orc_jax.capacity` says when its turn comes.
    """
    ahead = list(range(len(plans)))
    while ahead:
        dataset = dataset_of(plans[ahead[0]].run)
        most, group = most_at_once(replicas, plans[ahead[0]].run, dataset), ahead[:1]
        if most > 1:
            programs = [program_of(plans[i].run, dataset) for i in ahead]
            same = [i for i, program in zip(ahead, programs, strict=True) if program == programs[0]]
            group = same[: even_part(len(same), most)]
        yield group
        ahead = [i for i in ahead if i not in group]


def most_at_once(replicas: int, run: Resolved, dataset: Dataset) -> int:
    """How many runs like one are trained at once: `replicas`, or if that is 0 as many as pay and fit."""
    try:
        return replicas or capacity.at_once(build(run, dataset, jax.local_devices())).count
    except UserError:
        return 1  # what is wrong with it is told when it is trained


def is_finished(run: Resolved, folder: Path) -> bool:
    """Whether a run has come to its last epoch, or has ended before for want of a better one.

    One whose last checkpoint could not be written has not; a folder of checkpoints that was removed is not missed.
    """
    rows, target = metrics.read(folder), names_of(run.architectures)[-1]
    if not rows or record.read(folder) is None:
        return False
    ended = metrics.stalled(rows, target, run.config.patience) or rows[-1]["epoch"] == run.config.num_epochs
    kept = not (folder / checkpoint.CHECKPOINTS).exists() or checkpoint.latest_step(folder) == rows[-1]["step"]
    return ended and kept


def entry(planned: Planned, out: Path) -> Compared:
    """A run that is still to come."""
    folder, target = str(planned.folder.relative_to(out)), names_of(planned.run.architectures)[-1]
    return Compared(planned.method, planned.run.config.seed, folder, target)


def result_of(planned: Planned, out: Path) -> Compared:
    """A finished run with what it has come to."""
    one, rows = entry(planned, out), metrics.read(planned.folder)
    own = [planned.folder, *sorted(path.parent for path in planned.folder.glob(f"*/{metrics.METRICS}"))]  # and stages
    times = [metrics.took(metrics.read(folder, metrics.TIMING)) for folder in own]
    known = [time for time in times if time is not None]
    last, best = metrics.evaluated(rows)[-1], metrics.best(rows, one.target)
    top1, (_, *others) = metrics.evaluation("top1", one.target), eval_splits(planned.run.config)
    return one._replace(
        last=last[top1],
        best=best[top1],
        others={name: best[metrics.evaluation("top1", one.target, name)] for name in others},
        ensemble=last[metrics.evaluation("top1", metrics.ENSEMBLE)],
        seconds=sum(map(seconds_of, [*own, *([planned.teacher] if planned.teacher else [])])),
        took=sum(known) if len(known) == len(times) else None,
        ended=metrics.read(planned.folder, metrics.TIMING)[-1].get(metrics.AT, ""),
    )


def seconds_of(folder: Path) -> float:
    """Seconds of training of a run, from the speed of its epochs."""
    examples = record.require(folder).num_train
    speeds = [row[metrics.SPEED] for row in metrics.read(folder, metrics.TIMING) if metrics.SPEED in row]
    return sum(examples / speed for speed in speeds)


def seconds_left(plans: Sequence[Planned], table: Comparison) -> float | None:
    """How long the runs to come take, by those that are finished: of the same method, or else of all.

    None if no finished run was timed.
    """
    took = {method: [run.took for run in table.of(method) if run.took is not None] for method in table.methods}
    every = [time for times in took.values() for time in times]
    if not every:
        return None
    ahead = [one for one, run in zip(plans, table.runs, strict=True) if not run.is_finished and not run.error]
    left = sum(float(np.mean(took[one.method] or every)) for one in ahead)
    teachers = {one.teacher for one in plans if one.teacher}
    times = [metrics.took(metrics.read(folder, metrics.TIMING)) for folder in teachers]
    known = [time for time in times if time is not None]
    to_train = {folder for one in ahead for run, folder in jobs(one)[:-1] if not is_finished(run, folder)}
    return left + (len(to_train) * float(np.mean(known)) if known else 0.0)


def cost(planned: Planned, dataset: Dataset) -> float:
    """Floating-point operations of a run and all its stages, in forward passes of the target student per example."""
    run = build(planned.run, dataset, jax.local_devices()[:1])
    runs = [build(one, dataset, run.devices) for one, _ in jobs(planned)[:-1]] + [run]
    runs += [source.run for source in pretrained.plan(run, planned.folder) if source.run]
    total = sum(step_flops(one) * one.num_steps for one in runs)
    student = forward_flops(run)[run.spec.architectures[-1]]
    return total / (run.num_steps * run.config.batch_size * student)
