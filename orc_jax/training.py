"""Training, top to bottom: read, build, pre-train, fit. Of one run, or of several replicas in one program."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console

from orc_jax import describe, display, hosts, optim, pretrained, terminal
from orc_jax.capacity import is_long
from orc_jax.config import Resolved
from orc_jax.data import sets
from orc_jax.data.types import Dataset
from orc_jax.errors import UserError
from orc_jax.fitting import OnEpoch, Track, fit
from orc_jax.pool import Stacks, StackState
from orc_jax.preemption import Stop, watched
from orc_jax.pretrained import Source
from orc_jax.run import Run, build
from orc_jax.terminal import doing
from orc_jax.workdir import checkpoint, record
from orc_jax.workdir.files import locked


def train(
    resolved: Resolved,
    workdir: Path,
    console: Console,
    *,
    resume: str = "run",
    dataset: Dataset | None = None,
    on_epoch: OnEpoch | None = None,
) -> None:
    """Trains the run of a config in `workdir`, or goes on with it where it stopped.

    With `resume="weights"` another run may lie in `workdir`, and its weights are where this one starts. `dataset` is
    what to train on, instead of the set that the config names. `on_epoch` is given `workdir` and the row of the log of
    every epoch, once it is written; if it returns True the run ends there, and what it raises ends it, too.

    Raises:
        UserError: for bad input, before anything is compiled or written; if a member diverges; and if a checkpoint
            cannot be written or none restored.
        Interrupted: if the run was asked to stop, and has saved its state.
    """
    warn, there = terminal.warner(console), record.read(workdir)
    if dataset is None:
        names = there.class_names if there else ()  # which keep their order
        with doing(console, f"reading {resolved.config.dataset}"):
            dataset = sets.load(resolved.config, warn, resolved.plugins, class_names=names)
    if there is not None:  # a run goes on with the images as they were
        dataset = dataset._replace(whole=there.seen_whole(dataset.whole))
    with doing(console, "building the networks"):
        run = build(resolved, dataset, jax.local_devices())
    if resume == "weights":
        pretrained.start_from_weights(run, workdir, warn)
    _train([run], [workdir], console, on_epoch)
    console.print(display.summary(run, workdir))
    console.print(f"results in {workdir}", soft_wrap=True)


def train_together(
    jobs: Sequence[tuple[Resolved, Path]], console: Console, dataset: Dataset, on_epoch: OnEpoch | None = None
) -> dict[Path, UserError]:
    """Trains replicas, runs that `orc_jax.fitting` can make one program of, each as `train` would in its workdir.

    `on_epoch` is told of every epoch of each that still goes on.

    Returns:
        Why runs have failed, by their workdir.

    Raises:
        UserError, Interrupted: as `train`, for what concerns all of them.
    """
    with doing(console, "building the networks"):
        runs = [build(resolved, dataset, jax.local_devices()) for resolved, _ in jobs]
    return _train(runs, [workdir for _, workdir in jobs], console, on_epoch)


def _train(
    runs: Sequence[Run],
    workdirs: Sequence[Path],
    console: Console,
    on_epoch: OnEpoch | None = None,
) -> dict[Path, UserError]:
    warn, first = terminal.warner(console), runs[0]
    table, plans = display.pool_table(first), []
    for run, workdir in zip(runs, workdirs, strict=True):
        there = record.read(workdir)
        if there is None and checkpoint.has_checkpoint(workdir):
            raise UserError(
                f"--workdir={workdir} holds checkpoints, and no {record.FILE} that says of which run. Put it back to "
                "go on, or give another --workdir to start anew"
            )
        record.require_resumable(there, run.record(), workdir, warn)
        # Members to start from trained weights, unless the run itself has a checkpoint by now.
        plans.append(None if checkpoint.has_checkpoint(workdir) else pretrained.plan(run, workdir))
    sources = [source for plan in plans for source in plan or ()]
    for one in (*runs, *(source.run for source in sources if source.run)):
        optim.check_steps(one.config, one.num_steps)
    seen = ([run.record().config for run in runs], [source.name for source in sources])
    hosts.require_equal(seen, "their config, or in what they see of the workdir")
    with contextlib.ExitStack() as stack:
        for workdir in workdirs:
            stack.enter_context(locked(workdir))
        stop = stack.enter_context(watched(warn))
        for run, workdir in zip(runs, workdirs, strict=True):
            record.write(workdir, run.record())
        console.print(table)
        about = [
            line
            for run, plan in zip(runs, plans, strict=True)
            for line in (
                *pretrained.notes(run, plan or ()),
                *(pretrained.about_starts(run, plan) if plan is not None else ()),
            )
        ]
        about += [*display.unusual_sizes(first), *display.about_images(first)]
        about += [*display.about_splits(first), *display.about_classes(first)]
        for line in dict.fromkeys((*about, *_long(first, len(runs), console))):
            warn(line)
        failed, trained, heads = _pretrain(runs, [plan or [] for plan in plans], stop, console)
        tracks = [
            Track(*track) for i, track in enumerate(zip(runs, workdirs, trained, heads, strict=True)) if i not in failed
        ]
        by_folder = {workdirs[i]: error for i, error in failed.items()}
        if tracks:
            by_folder |= fit(tracks, stop, console, title=first.config.method, on_epoch=on_epoch)
    return by_folder


def _pretrain(
    runs: Sequence[Run], plans: Sequence[Sequence[Source]], stop: Stop, console: Console
) -> tuple[dict[int, UserError], list[dict[int, StackState]], list[Stacks]]:
    """Trains what comes before runs: who has failed, by number, and what of each starts trained: members, and heads."""
    trained: list[dict[int, StackState]] = [{} for _ in runs]
    heads: list[Stacks] = [{} for _ in runs]
    failed: dict[int, UserError] = {}
    for stage in range(max(map(len, plans))):
        having = [i for i, plan in enumerate(plans) if stage < len(plan) and i not in failed]
        tracks = []
        for i in having:
            source = plans[i][stage]
            if source.run:
                so_far = {k: trained[i][member] for k, member in enumerate(source.members) if member in trained[i]}
                tracks.append(Track(source.run, source.folder, so_far, heads[i]))
        errors = fit(tracks, stop, console, title=plans[having[0]][stage].name) if tracks else {}
        for i in having:
            source = plans[i][stage]
            if source.folder in errors:
                failed[i] = errors[source.folder]
                continue
            with doing(console, f"reading members from {source.folder}"):
                trained[i] |= pretrained.load_members(runs[i], source.folder, source.members)
                heads[i] |= pretrained.load_heads(source)
    return failed, trained, heads


def _long(run: Run, count: int, console: Console) -> list[str]:
    """A line on a run that takes days here, or on `count` of them."""
    if not is_long(run):
        return []
    with doing(console, "estimating how long it takes"):
        seconds = describe.seconds(run) * count
    if seconds < 24 * 3600:
        return []
    return [f"note: this takes about {terminal.duration(seconds)} here, without what comes before; see --mode=describe"]
