"""Training, top to bottom: build, pre-train, restore, loop, evaluate, log, save."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from rich.console import Console

from orc_jax import describe, display, hosts, optim, parallel, pretrained, samples, terminal
from orc_jax.config import Resolved
from orc_jax.data import feed, sets
from orc_jax.data.batches import calls, last_step
from orc_jax.data.types import Dataset
from orc_jax.errors import UserError
from orc_jax.evaluate import evaluation, renewer
from orc_jax.meter import Meter
from orc_jax.pool import StackState
from orc_jax.preemption import Stop, watched
from orc_jax.run import Run, abstract_state, build, values_of
from orc_jax.step import TrainState, find_diverged, in_turn, init_state, make_train_step, reset_totals
from orc_jax.terminal import Bar, doing
from orc_jax.workdir import checkpoint, logs, metrics, record
from orc_jax.workdir.files import locked
from orc_jax.workdir.metrics import Row

MANY = 2_000_000  # images times members, from which on a run is a long one


def train(
    resolved: Resolved,
    workdir: Path,
    console: Console,
    *,
    resume: str = "run",
    dataset: Dataset | None = None,
    on_epoch: Callable[[Row], None] | None = None,
) -> None:
    """Trains the run of a config in `workdir`, or goes on with it where it stopped.

    With `resume="weights"` another run may lie in `workdir`, and its weights are where this one starts. `dataset` is
    what to train on, instead of the set that the config names. `on_epoch` is given the row of the log of every epoch,
    once it is written and saved; what it raises ends the run, which can go on from there.

    Raises:
        UserError: for bad input, before anything is compiled or written; if a member diverges; and if a checkpoint
            cannot be written or none restored.
        Interrupted: if the run was asked to stop, and has saved its state.
    """
    warn = terminal.warner(console)
    there = record.read(workdir)
    if dataset is None:
        names = there.class_names if there else ()  # which keep their order
        with doing(console, f"reading {resolved.config.dataset}"):
            dataset = sets.load(resolved.config, warn, resolved.plugins, class_names=names)
    if there is not None:  # a run goes on with the images as they were
        dataset = dataset._replace(whole=there.seen_whole(dataset.whole))
    with doing(console, "building the networks"):
        run = build(resolved, dataset, jax.local_devices())
        here, table = run.record(), display.pool_table(run)
    if resume == "weights":
        pretrained.start_from_weights(run, workdir, warn)
    record.require_resumable(record.read(workdir), here, workdir, warn)
    # Members to start from trained weights, unless the run itself has a checkpoint by now.
    starts_anew = not checkpoint.has_checkpoint(workdir)
    sources = pretrained.plan(run, workdir) if starts_anew else []
    for one in (run, *(source.run for source in sources if source.run)):
        optim.check_steps(one.config, one.num_steps)
    hosts.require_equal((here.config, [s.name for s in sources]), "their config, or in what they see of the workdir")
    with locked(workdir), watched(warn) as stop:
        record.write(workdir, here)
        console.print(table)
        for line in (
            *pretrained.notes(run, sources),
            *(pretrained.about_starts(run, sources) if starts_anew else ()),
            *display.unusual_sizes(run),
            *display.about_images(run),
            *display.about_classes(run),
            *_long(run, console),
        ):
            warn(line)
        trained: dict[int, StackState] = {}
        for source in sources:
            if source.run:
                so_far = {i: trained[member] for i, member in enumerate(source.members) if member in trained}
                fit(source.run, source.folder, so_far, stop, console, title=source.name)
            with doing(console, f"reading members from {source.folder}"):
                trained |= pretrained.load_members(run, source.folder, source.members)
        fit(run, workdir, trained, stop, console, title=run.config.method, on_epoch=on_epoch)
    console.print(display.summary(run, workdir))
    console.print(f"results in {workdir}", soft_wrap=True)


def _is_long(run: Run) -> bool:
    return run.num_steps * run.config.batch_size * run.spec.size >= MANY


def _long(run: Run, console: Console) -> list[str]:
    """A line on a run that takes days here."""
    if not _is_long(run):
        return []
    with doing(console, "estimating how long it takes"):
        seconds = describe.seconds(run)
    if seconds < 24 * 3600:
        return []
    return [f"note: this takes about {terminal.duration(seconds)} here, without what comes before; see --mode=describe"]


def fit(
    run: Run,
    workdir: Path,
    trained: Mapping[int, StackState],
    stop: Stop,
    console: Console,
    *,
    title: str,
    on_epoch: Callable[[Row], None] | None = None,
) -> None:
    """Trains `run` from its latest checkpoint in `workdir`, or from the start, to its last step, or until `stop`.

    `trained` are the weights of members that start trained; `title` is that of the progress bar and of the lines;
    `on_epoch` as in `train`.
    """
    config, num_train = run.config, run.dataset.num_train
    record.write(workdir, run.record())
    with doing(console, f"{title}: restoring or making the state"):
        state = _restore_or_init(run, workdir, trained, console, title)
        step = int(state.step)
    history, target = [row for row in metrics.read(workdir) if row["step"] <= step], run.spec.member_names[-1]
    if step >= run.num_steps or metrics.stalled(history, target, config.patience):
        return
    if jax.process_count() == 1 and stop.signal is not None:  # asked while no step was under way: nothing is lost
        stop.leave(title, step, run.num_steps)
    with checkpoint.open_manager(workdir, create=True) as manager:
        saves = _Saves(run, manager, terminal.warner(console))
        data = feed.resident(run.dataset.train, run.devices)
        values = jax.device_put(values_of(run), run.sharding)
        one_step = make_train_step(run.setup, run.method.iterate, takes_values=bool(values))
        train_step = parallel.DataParallel(one_step, run.devices, donate=True, long=_is_long(run))
        several_steps = parallel.DataParallel(in_turn(one_step), run.devices, donate=True, long=_is_long(run))
        given = (data, values) if values else data
        evaluate, renew = evaluation(run), renewer(run) if run.method.held_out else None
        log = logs.MetricsLog(workdir, step, config)
        if step == 0:
            samples.show(run, log)
        counts, same = itertools.tee(_steps_of_calls(run, step))
        opened = feed.training(run.dataset, config, run.devices, step, run.num_steps, run.method.views, same)
        with opened as batches, Bar(console, title, run.num_steps, step) as bar:
            meter = Meter(run, bar, log, saves.check)
            for epoch in range(1, config.num_epochs + 1):
                end = last_step(epoch, config.batch_size, num_train)
                bar.title(f"{title} epoch {epoch}/{config.num_epochs}")
                if renew and epoch > 1 and step == last_step(epoch - 1, config.batch_size, num_train):
                    state = renew(state)  # not saved before: a run that goes on from here does it again
                while step < end:
                    try:
                        batch = next(batches)
                    except UserError:
                        if stop.signal is None:
                            raise
                        # Schedulers send SIGTERM to every process of a job, so the workers have ended already.
                        saves.save(step, state, None)
                        saves.leave(stop, title, step)
                    count = next(counts)
                    with meter.compiling(count):
                        state = (train_step if count == 1 else several_steps)(state, given, batch)
                    step += count
                    meter.dispatched(step, state, count)
                    leaving = stop.requested() and step < run.num_steps
                    result = None
                    if step == end:
                        row, timing = meter.report(step, epoch, state)
                        state = reset_totals(state)
                        if epoch % config.eval_every_epochs == 0 or epoch == config.num_epochs:
                            with bar.doing("evaluating"):
                                looked_at = state.stacks | (state.averages if config.eval_ema else {})
                                result, columns = evaluate(looked_at, history, epoch)
                            row |= columns
                        # The row goes before the checkpoint: one too many is dropped on resuming, one too few is lost.
                        log.write(row, timing)
                        history.append(row)
                        line = display.epoch_line(run, title, row, timing, terminal.width(console))
                        console.print(line, soft_wrap=True, highlight=False)
                    if result or leaving or (step < end and saves.due(step)):
                        saves.save(step, state, result)
                    if leaving:
                        saves.leave(stop, title, step)
                    if step == end:
                        if on_epoch:
                            on_epoch(history[-1])
                        meter.restart()
                if metrics.stalled(history, target, config.patience):
                    console.print(
                        f"{title}: ended by config.patience={config.patience}, with no better epoch since the best",
                        highlight=False,
                    )
                    break
        with doing(console, "writing the checkpoint"):
            checkpoint.finish(manager)
        log.close()


def _steps_of_calls(run: Run, first_step: int) -> Iterator[int]:
    """How many steps each call of the step takes. One ends wherever something is logged, evaluated or saved."""
    config = run.config
    every = [n for n in (config.log_every_steps, config.checkpoint_every_steps) if n]
    epochs = range(1, config.num_epochs + 1)
    ends = {last_step(epoch, config.batch_size, run.dataset.num_train) for epoch in epochs}
    stops = lambda step: step in ends or any(step % n == 0 for n in every)  # noqa: E731
    return calls(first_step, run.num_steps, config.steps_per_call, stops)


def _restore_or_init(
    run: Run, workdir: Path, trained: Mapping[int, StackState], console: Console, title: str
) -> TrainState:
    state = checkpoint.restore_newest(workdir, abstract_state(run), run.sharding, terminal.warner(console))
    if state is not None:
        line = f"{title}: restored step {int(state.step)} of {run.num_steps} from {workdir / checkpoint.CHECKPOINTS}"
        console.print(line, soft_wrap=True)
        return state
    options = parallel.ONCE_OPTIONS.get(run.devices[0].platform)
    init = jax.jit(
        functools.partial(init_state, run.setup, run.method), out_shardings=run.sharding, compiler_options=options
    )
    return init(run.config.seed, pretrained.load_starts(run, trained) | dict(trained))


class _Saves:
    """Saving a state, after a look at it."""

    def __init__(self, run: Run, manager: ocp.CheckpointManager, warn: Callable[[str], None]):
        self.run, self.manager, self.warn = run, manager, warn
        self.find_diverged = jax.jit(functools.partial(find_diverged, run.spec))
        self.isolated = set()

    def due(self, step: int) -> bool:
        every = self.run.config.checkpoint_every_steps
        return every > 0 and step % every == 0

    def save(self, step: int, state: TrainState, result: dict[str, Any] | None) -> None:
        """Starts saving the state after `step`. If an evaluation gave `result`, it may become the best."""
        parallel.assert_replicated(state)
        self.check(self.find_diverged(state))
        if hosts.is_main():
            top1 = result["target_student"]["top1"] if result else None
            checkpoint.save(self.manager, step, state, self.run.record(), top1)

    def leave(self, stop: Stop, title: str, step: int) -> None:
        """Raises `Interrupted`, once the state after `step`, which `save` was given, is on disk."""
        checkpoint.finish(self.manager)
        stop.leave(title, step, self.run.num_steps)

    def check(self, diverged_at: jax.Array) -> None:
        """Raises if a member has diverged, or reports it once if the others can go on without it."""
        names, spares = self.run.spec.member_names, self.run.method.spares or 0
        steps = {i: int(step) for i, step in enumerate(diverged_at) if step}
        assistants_only = not steps.keys() & {0, len(names) - 1}
        isolates = self.run.config.on_divergence == "isolate" and assistants_only and len(steps) <= spares
        for i in sorted(steps.keys() - self.isolated):
            what = f"{names[i]} has diverged: from step {steps[i]} its loss or its weights are not finite"
            if not isolates:
                checkpoint.finish(self.manager)
                last = self.manager.latest_step()
                raise UserError(
                    f"{what}. The last good checkpoint is {'none' if last is None else f'that of step {last}'} in "
                    f"{self.manager.directory}. A lower config.learning_rate or some config.warmup_epochs may help, "
                    "in another --workdir"
                )
            self.isolated.add(i)
            self.warn(f"{what}. It is left alone from there on")
