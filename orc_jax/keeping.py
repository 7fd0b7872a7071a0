"""What is kept of runs while they are trained: rows of their logs and checkpoints; and who of them has diverged."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from rich.console import Console

from orc_jax import hosts, parallel, terminal
from orc_jax.errors import UserError
from orc_jax.preemption import Stop
from orc_jax.run import Run
from orc_jax.step import TrainState, each_of, find_diverged
from orc_jax.workdir import checkpoint, logs, metrics
from orc_jax.workdir.metrics import Row


class Kept:
    """What is kept of a run: its log and its checkpoints; and whether its members are all right."""

    def __init__(
        self,
        run: Run,
        workdir: Path,
        manager: ocp.CheckpointManager,
        log: logs.MetricsLog,
        step: int,
        console: Console,
        alone: bool,
    ):
        self.run, self.workdir, self.manager, self.log, self.alone = run, workdir, manager, log, alone
        self.console, self.warn = console, terminal.warner(console)
        self.history = [row for row in metrics.read(workdir) if row["step"] <= step]
        self.isolated: set[int] = set()
        self.error: UserError | None = None
        self.goes_on = True

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Around what ends this run if it fails; others go on."""
        try:
            yield
        except UserError as error:
            if self.alone:
                raise
            self.error, self.goes_on = error, False
            self.warn(f"{self.workdir}: {error}. The others go on")

    def write(self, row: Row, timing: Row) -> None:
        """Keeps the row of an epoch."""
        if self.goes_on:
            self.log.write(row, timing)
            self.history.append(row)

    def end_early(self, title: str) -> None:
        """Ends the run once it has not become better for long enough."""
        patience = self.run.config.patience
        if metrics.stalled(self.history, self.run.spec.member_names[-1], patience):
            self.goes_on = False
            whose = title if self.alone else str(self.workdir)
            self.console.print(
                f"{whose}: ended by config.patience={patience}, with no better epoch since the best", highlight=False
            )

    def save(self, step: int, state: TrainState, diverged_at: jax.Array, result: dict[str, Any] | None) -> None:
        """Starts saving the state after `step`. If an evaluation gave `result`, it may become the best."""
        self.check(diverged_at)
        if hosts.is_main():
            top1 = result["target_student"]["top1"] if result else None
            checkpoint.save(self.manager, step, state, self.run.record(), top1)

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


@contextlib.contextmanager
def keeping(run: Run, workdir: Path, step: int, console: Console, count: int) -> Iterator[Kept]:
    """Opens what is kept of a run from `step` on; it is one of `count` that are trained at once."""
    with checkpoint.open_manager(workdir, create=True) as manager:
        log = logs.MetricsLog(workdir, step, run.config, replicas=count)
        with contextlib.closing(log):
            yield Kept(run, workdir, manager, log, step, console, alone=count == 1)


class Saves:
    """Looking at the states of runs, and saving them."""

    def __init__(self, kept: Sequence[Kept]):
        self.kept, run = kept, kept[0].run
        find = functools.partial(find_diverged, run.spec)
        options = parallel.ONCE_OPTIONS.get(run.devices[0].platform)
        self.find_diverged = jax.jit(find if len(kept) == 1 else jax.vmap(find), compiler_options=options)
        self.every = run.config.checkpoint_every_steps
        self.num_steps = run.num_steps

    @property
    def going(self) -> list[Kept]:
        return [one for one in self.kept if one.goes_on]

    def due(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0

    def save(self, step: int, state: TrainState, results: Sequence[dict[str, Any] | None] | None = None) -> None:
        """Starts saving the states after `step`; see `Kept.save`."""
        parallel.assert_replicated(state)
        diverged = each_of(jax.device_get(self.find_diverged(state)), len(self.kept))
        states = each_of(state if len(self.kept) == 1 else jax.device_get(state), len(self.kept))
        for one, own, at, result in zip(self.kept, states, diverged, results or [None] * len(states), strict=True):
            if one.goes_on:
                with one.failing():
                    one.save(step, own, at, result)

    def check(self, diverged_at: np.ndarray) -> None:
        """As `Kept.check`, of all runs."""
        for one, at in zip(self.kept, each_of(diverged_at, len(self.kept)), strict=True):
            if one.goes_on:
                with one.failing():
                    one.check(at)

    def finish(self) -> None:
        """Waits until all is on disk."""
        for one in self.kept:
            checkpoint.finish(one.manager)

    def leave(self, stop: Stop, title: str, step: int) -> None:
        """Raises `Interrupted`, once the states after `step`, which `save` was given, are on disk."""
        self.finish()
        stop.leave(title, step, self.num_steps)
