"""Training, top to bottom: build, pre-train, restore, loop, evaluate, log, save."""

import functools
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import Progress

from orc_jax import checkpoint, hosts, logs, parallel, pretrained
from orc_jax.config import members, validate
from orc_jax.data import feed, sets
from orc_jax.data.batches import last_step
from orc_jax.data.sets import Dataset
from orc_jax.describe import parameter_counts
from orc_jax.errors import UserError
from orc_jax.evaluate import evaluator
from orc_jax.lock import locked
from orc_jax.models import LARGE, SMALL
from orc_jax.pool import Params
from orc_jax.preemption import Stop, watched
from orc_jax.restart import start_from_weights
from orc_jax.run import Run, abstract_state, build, check_resumable
from orc_jax.step import TrainState, find_diverged, init_state, make_train_step, reset_totals


def train(
    config: ConfigDict, workdir: Path, console: Console, *, resume: str = "run", dataset: Dataset | None = None
) -> None:
    """Trains the run of `config` in `workdir`, or goes on with it where it stopped.

    Args:
        config: of the run.
        workdir: where it is kept.
        console: where to print.
        resume: "run", or "weights": another run may lie in `workdir`, and its weights are where this one starts.
        dataset: to train on, instead of the one that `config` names.

    Raises:
        UserError: for bad input, before anything is compiled or written; if a member diverges; and if a checkpoint
            cannot be written or none restored.
        Interrupted: if the run was asked to stop, and has saved its state.
    """
    validate(config, jax.device_count())
    dataset = dataset or sets.load(config, logs.warn(console))
    run = build(config, dataset, jax.local_devices(), members(config))
    if resume == "weights":
        start_from_weights(run, workdir, logs.warn(console))
    check_resumable(run, checkpoint.read_description(workdir), workdir)
    # Members to start from trained weights, unless the run itself has a checkpoint by now.
    sources = [] if checkpoint.has_checkpoint(workdir) else pretrained.plan(run, workdir)
    here = run.description()["config"], [source.name for source in sources]
    hosts.require_equal(here, "their config, or in what they see of the workdir")
    with locked(workdir), watched(logs.warn(console)) as stop:
        checkpoint.write_description(workdir, run.description())
        console.print(_pool_table(run))
        _warn_of_unusual_sizes(run, logs.warn(console))
        trained = {}
        for source in sources:
            if source.run:
                so_far = {i: trained[member] for i, member in enumerate(source.members) if member in trained}
                fit(source.run, source.folder, so_far, stop, console, title=source.name)
            trained |= pretrained.load_members(run, source.folder, source.members)
        fit(run, workdir, trained, stop, console, title=config.method)
    console.print(_summary(run, workdir))
    console.print(f"results in {workdir}", soft_wrap=True)


def fit(
    run: Run,
    workdir: Path,
    trained: dict[int, tuple[Params, Params]],
    stop: Stop,
    console: Console,
    *,
    title: str,
) -> None:
    """Trains `run` from its latest checkpoint in `workdir`, or from the start, to its last step.

    Args:
        run: what to train.
        workdir: for checkpoints and logs.
        trained: (params, batch_stats) of the members that start from trained weights.
        stop: whether to leave early.
        console: where to print.
        title: of the progress bar and of the lines.
    """
    config, num_train = run.config, run.dataset.num_train
    checkpoint.write_description(workdir, run.description())
    state = _restore_or_init(run, workdir, trained, console, title)
    step = int(state.step)
    if step >= run.num_steps:
        return
    with checkpoint.open_manager(workdir, create=True) as manager:
        saves = _Saves(run, manager, logs.warn(console))
        data = feed.resident(run.dataset.train, run.devices)
        train_step = parallel.DataParallel(make_train_step(run.setup, run.method.iterate), run.devices, donate=True)
        evaluate = evaluator(run)
        log = logs.MetricsLog(workdir, step, config)
        opened = feed.training(run.dataset, config, run.devices, step, run.num_steps, run.method.views)
        with opened as batches, logs.progress_bar(console) as progress:
            task = progress.add_task("", total=run.num_steps, completed=step, status="compiling")
            meter = _Meter(run, progress, task, saves.check)
            for epoch in range(1, config.num_epochs + 1):
                end = last_step(epoch, config.batch_size, num_train)
                progress.update(task, description=f"{title} epoch {epoch}/{config.num_epochs}")
                while step < end:
                    try:
                        batch = next(batches)
                    except UserError:
                        if stop.signal is None:
                            raise
                        # Schedulers send SIGTERM to every process of a job, so the workers have ended already.
                        saves.save(step, state, None)
                        saves.leave(stop, title, step)
                    state = train_step(state, data, batch)
                    step += 1
                    meter.update(step, state)
                    leaving = stop.requested(step) and step < run.num_steps
                    result = None
                    if step == end:
                        row, timing = meter.report(step, epoch, state)
                        state = reset_totals(state)
                        if epoch % config.eval_every_epochs == 0 or epoch == config.num_epochs:
                            result = evaluate(state.stacks)
                            row |= _eval_metrics(result)
                        # The row goes before the checkpoint: one too many is dropped on resuming, one too few is lost.
                        log.write(row, timing)
                        console.print(_epoch_line(run, title, row, timing), soft_wrap=True, highlight=False)
                    if result or leaving or (step < end and saves.due(step)):
                        saves.save(step, state, result)
                    if leaving:
                        saves.leave(stop, title, step)
                    if step == end:
                        meter.restart()
        checkpoint.finish(manager)
        log.close()


def _restore_or_init(run: Run, workdir: Path, trained, console: Console, title: str) -> TrainState:
    state = checkpoint.restore_newest(workdir, abstract_state(run), run.sharding, logs.warn(console))
    if state is not None:
        line = f"{title}: restored step {int(state.step)} of {run.num_steps} from {workdir / checkpoint.CHECKPOINTS}"
        console.print(line, soft_wrap=True)
        return state
    init = jax.jit(lambda seed: init_state(run.setup, run.method, seed), out_shardings=run.sharding)
    state = init(run.config.seed)
    stacks = pretrained.insert_members(run, state.stacks, trained)
    return jax.device_put(state.replace(stacks=stacks), run.sharding)


class _Saves:
    """Saving a state, after a look at it."""

    def __init__(self, run: Run, manager, report: Callable[[str], None]):
        self.run, self.manager, self.report = run, manager, report
        self.find_diverged = jax.jit(functools.partial(find_diverged, run.setup.pool))
        self.isolated = set()

    def due(self, step: int) -> bool:
        every = self.run.config.checkpoint_every_steps
        return every > 0 and step % every == 0

    def save(self, step: int, state: TrainState, result: dict | None) -> None:
        """Starts saving the state after `step`. If an evaluation gave `result`, it may become the best."""
        parallel.assert_replicated(state)
        self.check(self.find_diverged(state))
        metrics = {checkpoint.SELECTED_BY: result["target_student"]["top1"]} if result else None
        if hosts.is_main():
            checkpoint.save(self.manager, step, state, self.run.description(), metrics)

    def leave(self, stop: Stop, title: str, step: int) -> None:
        """Raises `Interrupted`, once the state after `step`, which `save` was given, is on disk."""
        checkpoint.finish(self.manager)
        stop.leave(title, step, self.run.num_steps)

    def check(self, diverged_at: jax.Array) -> None:
        """Raises if a member has diverged, or reports it once if the others can go on without it."""
        names, config = self.run.setup.pool.member_names, self.run.config
        steps = {i: int(step) for i, step in enumerate(diverged_at) if step}
        assistants_only = not steps.keys() & {0, len(names) - 1}
        enough = len(names) - 1 - len(steps) >= config.num_temporary_teachers
        isolates = config.on_divergence == "isolate" and assistants_only and enough
        for i in sorted(steps.keys() - self.isolated):
            what = f"{names[i]} has diverged: from step {steps[i]} its loss or its weights are not finite"
            if not isolates:
                checkpoint.finish(self.manager)
                last = self.manager.latest_step()
                raise UserError(
                    f"{what}. The last good checkpoint is {'none' if last is None else f'that of step {last}'} in "
                    f"{self.manager.directory}. A lower config.learning_rate or some config.warmup_epochs may help"
                )
            self.isolated.add(i)
            self.report(f"{what}. It is left alone from there on")


class _Meter:
    """Speed and running means. The progress bar shows values one interval late, so that it never waits for a step."""

    def __init__(self, run: Run, progress: Progress, task, check: Callable[[jax.Array], None]):
        self.run, self.progress, self.task, self.check = run, progress, task, check
        self.pending = None
        self.restart()
        self.compiled = False

    def restart(self) -> None:
        self.started, self.steps = time.perf_counter(), 0

    def update(self, step: int, state: TrainState) -> None:
        """Counts a step that was dispatched, and moves the bar when it is due."""
        self.steps += 1
        if not self.compiled:  # the first step compiles; its time is no measure of speed
            jax.block_until_ready(state.iterations)
            self.compiled = True
            self.progress.update(self.task, completed=step, status="")
            self.restart()
        elif step % self.run.config.log_every_steps == 0:
            if self.pending is not None:
                (loss, accuracy), diverged_at = jax.device_get(self.pending)
                self.check(diverged_at)
                speed = self.steps * self.run.config.batch_size / (time.perf_counter() - self.started)
                status = f"loss {loss:.3f}  accuracy {accuracy:.1%}  {speed:.0f} images/s"
                self.progress.update(self.task, completed=step, status=status)
            self.pending = _shown(state)

    def report(self, step: int, epoch: int, state: TrainState) -> tuple[dict[str, float], dict[str, float]]:
        """The epoch's metrics, by the names of the log, and its timing. Waits for the device."""
        totals, iterations, diverged_at = jax.device_get((state.totals, state.iterations, state.diverged_at))
        self.check(diverged_at)
        seconds = time.perf_counter() - self.started
        names = self.run.setup.pool.member_names
        row = {"step": step, "epoch": epoch, "learning_rate": float(self.run.setup.learning_rate(step - 1))}
        speed = self.steps * self.run.config.batch_size / seconds
        timing = {"images_per_second": speed} if self.steps else {}
        for metric, values in totals.items():
            row |= {f"train/{metric}/{name}": float(v / iterations) for name, v in zip(names, values, strict=True)}
        row |= {f"diverged_at/{name}": int(at) for name, at in zip(names, diverged_at, strict=True) if at}
        self.progress.update(self.task, completed=step)
        return row, timing


@jax.jit
def _shown(state: TrainState) -> tuple[jax.Array, jax.Array]:
    """The target student's mean loss and accuracy, and who has diverged; copies, for the state is given away."""
    means = jnp.stack([state.totals["loss"][-1], state.totals["accuracy"][-1]]) / state.iterations
    return means, state.diverged_at + 0


def _eval_metrics(result: dict) -> dict[str, float]:
    rows = {row["name"]: row for row in result["members"]}
    rows |= {name: result[name] for name in ("mean", "ensemble") if name in result}
    return {f"eval/{m}/{name}": row[m] for m in ("top1", "top5", "loss") for name, row in rows.items()}


def _epoch_line(run: Run, title: str, row: dict[str, float], timing: dict[str, float]) -> str:
    name = run.setup.pool.member_names[-1]
    line = f"{title} epoch {row['epoch']}/{run.config.num_epochs}  {name}: loss {row[f'train/loss/{name}']:.3f}"
    line += f"  accuracy {row[f'train/accuracy/{name}']:.2%}"
    if f"eval/top1/{name}" in row:
        line += f"  test {row[f'eval/top1/{name}']:.2%}"
        if run.setup.pool.size > 1:
            line += f"  ensemble {row['eval/top1/ensemble']:.2%}"
    if timing:
        line += f"  {timing['images_per_second']:.0f} images/s"
    return line


def _pool_table(run: Run):
    pool = run.setup.pool
    counts = parameter_counts(run)
    rows = [
        (name, run.method.roles[i], f"{counts[architecture]:,}")
        for i, (name, architecture) in enumerate(zip(pool.member_names, pool.architectures, strict=True))
    ]
    device = f"{jax.device_count()} x {run.devices[0].device_kind}"
    if jax.process_count() > 1:
        device += f" in {jax.process_count()} processes"
    title = f"{run.config.method} on {run.dataset.name}, {run.num_steps} steps of {run.config.batch_size}, {device}"
    return logs.table(title, ("member", "role", "parameters"), rows)


def _warn_of_unusual_sizes(run: Run, warn: Callable[[str], None]) -> None:
    size = max(run.dataset.image_shape[:2])
    for name in dict.fromkeys(run.setup.pool.architectures):
        if (name in SMALL and size > 96) or (name in LARGE and size < 48):
            made_for, others = (32, LARGE) if name in SMALL else (224, SMALL)
            warn(
                f"note: {name} is made for images of {made_for}x{made_for} pixels, and these are of {size}; "
                f"made for such are {', '.join(list(others)[:5])}{' ...' if len(others) > 5 else ''}"
            )


def _summary(run: Run, workdir: Path):
    """Last and best epoch of every member; "best" is chosen by the target student on the evaluation split."""
    every = logs.read_rows(workdir)
    rows = [row for row in every if "eval/top1/ensemble" in row]
    names = run.setup.pool.member_names
    last, best = rows[-1], max(rows, key=lambda row: row[f"eval/top1/{names[-1]}"])

    def cells(name, kind):
        values = [f"{last[f'eval/top1/{name}']:.2%}", f"{last[f'eval/top5/{name}']:.2%}"]
        values.append(f"{best[f'eval/top1/{name}']:.2%}")
        for share in run.method.shares:
            epochs = [row[f"train/{share}/{name}"] for row in every if f"train/{share}/{name}" in row]
            values.append(f"{sum(epochs) / len(epochs):.1%}" if epochs else "")
        return (name, kind, *values)

    shares = [share.replace("_", " ") for share in run.method.shares]
    columns = ["member", "role", "top-1", "top-5", "top-1 at best", *shares]
    table_rows = [cells(name, run.method.roles[i]) for i, name in enumerate(names)]
    title = f"{run.dataset.name} {run.config.eval_split}: last epoch {last['epoch']}, "
    title += f"best epoch {best['epoch']} (of the target student)"
    joint = [cells(name, "all members") for name in ("mean", "ensemble") if f"eval/top1/{name}" in last]
    return logs.table(title, columns, [*table_rows, *joint])
