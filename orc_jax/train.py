"""Training, top to bottom: build, pre-train, restore, loop, evaluate, log, save."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import Progress

from orc_jax import checkpoint, logs, parallel, pretrained
from orc_jax.config import members, validate
from orc_jax.data import feed, sets
from orc_jax.data.batches import last_step
from orc_jax.errors import UserError
from orc_jax.evaluate import evaluator
from orc_jax.models import LARGE, SMALL
from orc_jax.pool import Params
from orc_jax.run import Run, abstract_state, build, check_resumable
from orc_jax.step import TrainState, init_state, make_train_step, reset_totals


def train(config: ConfigDict, workdir: Path, console: Console) -> None:
    """Trains the run of `config` in `workdir`, or goes on with it where it stopped.

    Raises:
        UserError: for bad input, before anything is compiled or written; and if a member diverges.
    """
    devices = jax.local_devices()
    validate(config, len(devices))
    dataset = sets.load(config, logs.warn(console))
    run = build(config, dataset, devices, members(config))
    check_resumable(run, checkpoint.read_description(workdir), workdir)
    # Members to start from trained weights, unless the run itself has a checkpoint by now.
    sources = [] if checkpoint.has_checkpoint(workdir) else pretrained.plan(run, workdir)
    checkpoint.write_description(workdir, run.description())
    console.print(_pool_table(run))
    _warn_of_unusual_sizes(run, logs.warn(console))
    trained = {}
    for source in sources:
        if source.run:
            so_far = {i: trained[member] for i, member in enumerate(source.members) if member in trained}
            fit(source.run, source.folder, so_far, console, title=source.name)
        trained |= pretrained.load_members(run, source.folder, source.members)
    fit(run, workdir, trained, console, title=config.method)
    console.print(_summary(run, workdir))
    console.print(f"results in {workdir}", soft_wrap=True)


def fit(run: Run, workdir: Path, trained: dict[int, tuple[Params, Params]], console: Console, *, title: str) -> None:
    """Trains `run` from its latest checkpoint in `workdir`, or from the start, to its last step.

    Args:
        run: what to train.
        workdir: for checkpoints and logs.
        trained: (params, batch_stats) of the members that start from trained weights.
        console: where to print.
        title: of the progress bar and of the lines.
    """
    config, num_train = run.config, run.dataset.num_train
    checkpoint.write_description(workdir, run.description())
    with checkpoint.open_manager(workdir, create=True) as manager:
        state = _restore_or_init(run, manager, trained, console, title)
        step = int(state.step)
        if step >= run.num_steps:
            return
        data = feed.resident(run.dataset.train, run.devices)
        train_step = parallel.DataParallel(make_train_step(run.setup, run.method.iterate), run.devices, donate=True)
        evaluate = evaluator(run)
        log = logs.MetricsLog(workdir, step)
        opened = feed.training(run.dataset, config, run.devices, step, run.num_steps, run.method.views)
        with opened as batches, logs.progress_bar(console) as progress:
            task = progress.add_task("", total=run.num_steps, completed=step, status="compiling")
            meter = _Meter(run, progress, task)
            for epoch in range(1, config.num_epochs + 1):
                end = last_step(epoch, config.batch_size, num_train)
                if end <= step:
                    continue
                progress.update(task, description=f"{title} epoch {epoch}/{config.num_epochs}")
                while step < end:
                    state = train_step(state, data, next(batches))
                    step += 1
                    meter.update(step, state)
                row = {"step": step, "epoch": epoch, **meter.report(step, state)}
                _check_finite(run, row, manager)
                state = reset_totals(state)
                result = None
                if epoch % config.eval_every_epochs == 0 or epoch == config.num_epochs:
                    parallel.assert_replicated(state, run.devices)
                    result = evaluate(state.stacks)
                    row |= _eval_metrics(result)
                # The row goes first: one without its checkpoint is dropped on resuming, a missing one would be lost.
                log.write(row)
                if result:
                    metrics = {checkpoint.SELECTED_BY: result["target_student"]["top1"]}
                    checkpoint.save(manager, step, state, run.description(), metrics)
                meter.restart()
                console.print(_epoch_line(run, title, row), soft_wrap=True, highlight=False)
        log.close()


def _restore_or_init(run: Run, manager, trained, console: Console, title: str) -> TrainState:
    step = manager.latest_step()
    if step is not None:
        console.print(f"{title}: restored step {step} of {run.num_steps} from {manager.directory}", soft_wrap=True)
        return checkpoint.restore(manager, step, abstract_state(run), run.sharding)
    init = jax.jit(lambda seed: init_state(run.setup, run.method, seed), out_shardings=run.sharding)
    state = init(run.config.seed)
    stacks = pretrained.insert_members(run, state.stacks, trained)
    return jax.device_put(state.replace(stacks=stacks), run.sharding)


class _Meter:
    """Speed and running means. The progress bar shows values one interval late, so that it never waits for a step."""

    def __init__(self, run: Run, progress: Progress, task):
        self.run, self.progress, self.task = run, progress, task
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
                loss, accuracy = (float(x) for x in self.pending)
                speed = self.steps * self.run.config.batch_size / (time.perf_counter() - self.started)
                status = f"loss {loss:.3f}  accuracy {accuracy:.1%}  {speed:.0f} images/s"
                self.progress.update(self.task, completed=step, status=status)
            self.pending = _target_means(state)

    def report(self, step: int, state: TrainState) -> dict[str, float]:
        """The epoch's metrics, by the names of the log. Waits for the device."""
        totals, iterations = jax.device_get((state.totals, state.iterations))
        seconds = time.perf_counter() - self.started
        names = self.run.setup.pool.member_names
        row = {"learning_rate": float(self.run.setup.learning_rate(step - 1))}
        if self.steps:
            row["images_per_second"] = self.steps * self.run.config.batch_size / seconds
        for metric, values in totals.items():
            row |= {f"train/{metric}/{name}": float(v / iterations) for name, v in zip(names, values, strict=True)}
        self.progress.update(self.task, completed=step)
        return row


@jax.jit
def _target_means(state: TrainState) -> jax.Array:
    return jnp.stack([state.totals["loss"][-1], state.totals["accuracy"][-1]]) / state.iterations


def _check_finite(run: Run, row: dict[str, float], manager) -> None:
    for name in run.setup.pool.member_names:
        loss = row[f"train/loss/{name}"]
        if not math.isfinite(loss):
            step = manager.latest_step()
            raise UserError(
                f"the loss of {name} became {loss} in epoch {row['epoch']}. The last good checkpoint is "
                f"{'none' if step is None else f'that of step {step}'}. A lower config.learning_rate or some "
                "config.warmup_epochs may help."
            )


def _eval_metrics(result: dict) -> dict[str, float]:
    rows = {row["name"]: row for row in result["members"]}
    rows |= {name: result[name] for name in ("mean", "ensemble") if name in result}
    return {f"eval/{m}/{name}": row[m] for m in ("top1", "top5", "loss") for name, row in rows.items()}


def _epoch_line(run: Run, title: str, row: dict[str, float]) -> str:
    name = run.setup.pool.member_names[-1]
    line = f"{title} epoch {row['epoch']}/{run.config.num_epochs}  {name}: loss {row[f'train/loss/{name}']:.3f}"
    line += f"  accuracy {row[f'train/accuracy/{name}']:.2%}"
    if f"eval/top1/{name}" in row:
        line += f"  test {row[f'eval/top1/{name}']:.2%}"
        if run.setup.pool.size > 1:
            line += f"  ensemble {row['eval/top1/ensemble']:.2%}"
    if "images_per_second" in row:
        line += f"  {row['images_per_second']:.0f} images/s"
    return line


def _pool_table(run: Run):
    pool = run.setup.pool
    shapes = abstract_state(run).stacks
    counts = {name: sum(math.prod(x.shape[1:]) for x in stack.params.values()) for name, stack in shapes.items()}
    rows = [
        (name, run.method.roles[i], f"{counts[architecture]:,}")
        for i, (name, architecture) in enumerate(zip(pool.member_names, pool.architectures, strict=True))
    ]
    device = f"{len(run.devices)} x {run.devices[0].device_kind}"
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
