"""The loop of training: step, log, evaluate, save. Of one run, or of several in one program.

Runs that differ in their seeds, and in values that the compiled step takes as arguments, are *replicas*: their states
are stacked, and the step is vmapped over them. What is kept of each, and what comes of it, is that of a run by itself.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from orc_jax import display, parallel, pretrained, samples, terminal
from orc_jax.capacity import is_worth_compiling
from orc_jax.data import feed
from orc_jax.data.batches import calls, last_step, seed_of
from orc_jax.data.types import Batch
from orc_jax.errors import UserError
from orc_jax.evaluate import evaluation, renewer
from orc_jax.keeping import Kept, Saves, keeping
from orc_jax.meter import Meter
from orc_jax.pool import Stacks, StackState
from orc_jax.preemption import Stop
from orc_jax.run import Run, abstract_state, values_of
from orc_jax.step import TrainState, in_replicas, in_turn, init_state, make_train_step, reset_totals
from orc_jax.terminal import Bar, doing
from orc_jax.workdir import checkpoint, metrics, record
from orc_jax.workdir.metrics import Row

# Told of every epoch of a run, by its folder and the row of its log, once this is written; if it returns True the run
# ends there.
OnEpoch = Callable[[Path, Row], bool | None]


class Track(NamedTuple):
    """A run to train in `workdir`; `trained` are the weights of members that start trained, `heads` those of heads."""

    run: Run
    workdir: Path
    trained: Mapping[int, StackState]
    heads: Stacks


def fit(
    tracks: Sequence[Track],
    stop: Stop,
    console: Console,
    *,
    title: str,
    on_epoch: OnEpoch | None = None,
) -> dict[Path, UserError]:
    """Trains runs from their latest checkpoints, or from the start, to their last step, or until `stop`.

    Several are replicas. After an interruption some may be a checkpoint behind, which then go first. `title` is that
    of the progress bar and of the lines.

    Returns:
        Why runs have failed, by their folder, where others have gone on; a single run raises it.
    """
    failed: dict[Path, UserError] = {}
    for track in tracks:
        record.write(track.workdir, track.run.record())
    while True:
        with doing(console, f"{title}: restoring or making the state"):
            started = _restored_or_initial(tracks, console, title)
        going = [(track, state, step) for track, state, step in started if not _is_over(track, step)]
        if not going:
            return failed
        first, *later = sorted({step for *_, step in going})
        run = tracks[0].run
        if jax.process_count() == 1 and stop.signal is not None:  # asked while no step was under way: nothing is lost
            stop.leave(title, first, run.num_steps)
        group = [(track, state) for track, state, step in going if step == first]
        until = later[0] if later else run.num_steps
        kept = _advance(group, first, until, stop, console, title, on_epoch)
        failed |= {one.workdir: one.error for one in kept if one.error}
        if not later:
            return failed
        over = {one.workdir for one in kept if not one.goes_on}
        tracks = [track for track in tracks if track.workdir not in over]


def _is_over(track: Track, step: int) -> bool:
    rows = [row for row in metrics.read(track.workdir) if row["step"] <= step]
    run = track.run
    return step >= run.num_steps or metrics.stalled(rows, run.spec.member_names[-1], run.config.patience)


def _advance(
    group: Sequence[tuple[Track, TrainState]],
    step: int,
    until: int,
    stop: Stop,
    console: Console,
    title: str,
    on_epoch: OnEpoch | None,
) -> list[Kept]:
    """Trains runs whose states are those after `step` until another step, and returns what is kept of each."""
    runs, states = [track.run for track, _ in group], [state for _, state in group]
    run, count_of = runs[0], len(runs)
    config, num_train = run.config, run.dataset.num_train
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(keeping(*track[:2], step, console, count_of)) for track, _ in group]
        saves = Saves(kept)
        state = states[0] if count_of == 1 else jax.tree.map(lambda *leaves: np.stack(leaves), *states)
        state = jax.device_put(state, run.sharding)
        seeds = [seed_of(one.config) for one in runs]
        seeds = seeds[:1] if len(set(seeds)) == 1 else seeds
        make_steps = _steps(runs, own_batches=len(seeds) > 1)
        evaluate, renew = evaluation(runs), renewer(run, count_of) if run.method.held_out else None
        if step == 0:
            for one in kept:
                samples.show(one.run, one.log)
        counts, same = itertools.tee(_steps_of_calls(run, step, until))
        batches = stack.enter_context(
            feed.training(run.dataset, config, run.devices, step, until, run.method.views, same, seeds)
        )
        title = title if count_of == 1 else f"{title} ({count_of} at once)"
        bar = stack.enter_context(Bar(console, title, run.num_steps, step))
        meter = Meter(runs, bar, [one.log for one in kept], saves.check)
        for epoch in range(1, config.num_epochs + 1):
            end = last_step(epoch, config.batch_size, num_train)
            bar.title(f"{title} epoch {epoch}/{config.num_epochs}")
            if renew and epoch > 1 and step == last_step(epoch - 1, config.batch_size, num_train):
                state = renew(state)  # not saved before: a run that goes on from here does it again
            while step < min(end, until) and saves.going:
                try:
                    batch = next(batches)
                except UserError:
                    if stop.signal is None:
                        raise
                    # Schedulers send SIGTERM to every process of a job, so the workers have ended already.
                    saves.save(step, state)
                    saves.leave(stop, title, step)
                count = next(counts)
                with meter.compiling(count):
                    state = make_steps(state, batch, count)
                step += count
                meter.dispatched(step, state, count)
                leaving = stop.requested() and step < run.num_steps
                results: Sequence[dict[str, Any] | None] = [None] * count_of
                if step == end:
                    reports = meter.report(step, epoch, state)
                    state = reset_totals(state)
                    if epoch % config.eval_every_epochs == 0 or epoch == config.num_epochs:
                        with bar.doing("evaluating"):
                            looked_at = state.stacks | (state.averages if config.eval_ema else {})
                            results, columns = evaluate(looked_at, [one.history for one in kept], epoch)
                        reports = [(row | more, timing) for (row, timing), more in zip(reports, columns, strict=True)]
                    # Rows go before checkpoints: one too many is dropped on resuming, one too few is lost.
                    _write(kept, reports, title, console)
                if any(results) or leaving or step == until or saves.due(step):
                    saves.save(step, state, results)
                if step == end and on_epoch:
                    for one in saves.going:
                        one.goes_on = not on_epoch(one.workdir, one.history[-1])
                if leaving:
                    saves.leave(stop, title, step)
                if step == end:
                    meter.restart()
            for one in saves.going:
                one.end_early(title)
            if step >= until or not saves.going:
                break
        with doing(console, "writing the checkpoint"):
            saves.finish()
    return kept


def _steps(runs: Sequence[Run], *, own_batches: bool) -> Callable[[TrainState, Batch, int], TrainState]:
    """What makes steps of runs, which are replicas if there are several: (state, batch, number of steps) -> state."""
    run, values = runs[0], jax.device_put(_values(runs), runs[0].sharding)
    step = make_train_step(run.setup, run.method.iterate, takes_values=bool(values))
    if len(runs) > 1:
        step = in_replicas(step, takes_values=bool(values), own_batches=own_batches)
    options = {"donate": True, "long": is_worth_compiling(run)}
    single, several = (parallel.DataParallel(of, run.devices, **options) for of in (step, in_turn(step)))
    data = feed.resident(run.dataset.train, run.devices)
    given = (data, values) if values else data
    return lambda state, batch, count: (single if count == 1 else several)(state, given, batch)


def _write(kept: Sequence[Kept], reports: Sequence[tuple[Row, Row]], title: str, console: Console) -> None:
    """Keeps the rows of an epoch, and prints their means, of those runs that go on."""
    for one, report in zip(kept, reports, strict=True):
        one.write(*report)
    if going := [report for one, report in zip(kept, reports, strict=True) if one.goes_on]:
        line = display.epoch_line(kept[0].run, title, *_means(going), terminal.width(console))
        console.print(line, soft_wrap=True, highlight=False)


def _values(runs: Sequence[Run]) -> dict[str, jax.Array]:
    """Of several runs `[replicas]` each."""
    values = [values_of(run) for run in runs]
    return values[0] if len(runs) == 1 else {name: jnp.stack([of[name] for of in values]) for name in values[0]}


def _means(reports: Sequence[tuple[Row, Row]]) -> tuple[Row, Row]:
    """One report: of several runs the means of what all of them have; the speed is that of all together."""
    if len(reports) == 1:
        return reports[0]
    rows = [row for row, _ in reports]
    shared = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: np.mean([row[name] for row in rows]).item() for name in shared} | {
        name: rows[0][name] for name in ("step", "epoch")
    }, reports[0][1]


def _steps_of_calls(run: Run, first_step: int, until: int) -> Iterator[int]:
    """How many steps each call of the step takes. One ends wherever something is logged, evaluated or saved."""
    config = run.config
    every = [n for n in (config.log_every_steps, config.checkpoint_every_steps) if n]
    epochs = range(1, config.num_epochs + 1)
    ends = {last_step(epoch, config.batch_size, run.dataset.num_train) for epoch in epochs}
    stops = lambda step: step in ends or any(step % n == 0 for n in every)  # noqa: E731
    return calls(first_step, until, config.steps_per_call, stops)


def _restored_or_initial(tracks: Sequence[Track], console: Console, title: str) -> list[tuple[Track, TrainState, int]]:
    """Each run with its state, and the step that this is after."""
    run, found = tracks[0].run, []
    init = parallel.once(functools.partial(init_state, run.setup, run.method))  # one program for all replicas
    for track in tracks:
        run, workdir = track.run, track.workdir
        state = checkpoint.restore_newest(workdir, abstract_state(run), run.sharding, terminal.warner(console))
        if state is None:
            weights = pretrained.load_starts(run, track.trained) | dict(track.trained)
            state = init(run.config.seed, weights, track.heads)
        else:
            folder = workdir / checkpoint.CHECKPOINTS
            line = f"{title}: restored step {int(state.step)} of {run.num_steps} from {folder}"
            console.print(line, soft_wrap=True)
        # Of several on the host: on the devices they are stacked, and once is enough.
        found.append((track, state if len(tracks) == 1 else jax.device_get(state), int(state.step)))
    return found
