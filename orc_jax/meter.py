"""How training goes: speed and running means of the steps that are finished, and a bound on those that are not."""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from orc_jax.run import Run
from orc_jax.step import TrainState, each_of
from orc_jax.terminal import Bar, Part
from orc_jax.workdir import metrics
from orc_jax.workdir.logs import MetricsLog
from orc_jax.workdir.metrics import Row

# Calls of the step that may be dispatched and not finished: enough to keep a device busy, few enough to leave soon when
# asked to.
IN_FLIGHT = 2


class Meter:
    """Told of every call of the step, it waits for those before, and shows what they came to."""

    def __init__(self, runs: Sequence[Run], bar: Bar, logs: Sequence[MetricsLog], check: Callable[[Any], None]):
        self.runs, self.bar, self.logs, self.check = runs, bar, logs, check
        self.config = runs[0].config
        self.unfinished: collections.deque[tuple[int, int, Any]] = collections.deque()
        self.compiled: set[int] = set()  # calls of so many steps
        self.restart()

    def restart(self) -> None:
        self.started, self.steps = time.perf_counter(), 0

    @contextlib.contextmanager
    def compiling(self, count: int) -> Iterator[None]:
        """Around a call of `count` steps, the first of which compiles it."""
        if count in self.compiled:
            yield
            return
        with self.bar.doing("compiling the training step"):
            yield

    def dispatched(self, step: int, state: TrainState, count: int) -> None:
        """Waits until at most `IN_FLIGHT` calls are not finished. `state` is that after `step`, which may be one."""
        due = step % self.config.log_every_steps == 0
        self.unfinished.append((step, count, _shown(state) if due else _finished(state)))
        self._wait(IN_FLIGHT if count in self.compiled else 0)
        if count not in self.compiled:  # the first call compiles; its time is no measure of speed
            if not self.compiled:
                self.bar.starts()
            self.compiled.add(count)
            self.restart()

    def _wait(self, allowed: int) -> None:
        while len(self.unfinished) > allowed:
            step, count, values = self.unfinished.popleft()
            jax.block_until_ready(values)
            self.steps += count
            if not isinstance(values, tuple):
                self.bar.update(step)
                continue
            shown, diverged_at = jax.device_get(values)
            self.check(diverged_at)
            speed = self._speed()
            loss, accuracy = np.nanmean(shown.reshape(len(self.runs), 2), axis=0)
            texts = (f"loss {loss:.3f}", 3), (f"accuracy {accuracy:.1%}", 5), (f"{speed:.0f} images/s", 4)
            self.bar.update(step, [Part(*text) for text in texts])
            for log, (loss, accuracy) in zip(self.logs, shown.reshape(-1, 2), strict=True):
                log.point(step, {"loss": float(loss), "accuracy": float(accuracy), metrics.SPEED: speed})

    def _speed(self) -> float:
        """Images per second, of all runs together."""
        images = self.steps * self.config.batch_size * len(self.runs)
        return images / (time.perf_counter() - self.started)

    def report(self, step: int, epoch: int, state: TrainState) -> list[tuple[Row, Row]]:
        """Of each run the epoch's metrics, by the names of the log, and its timing. Waits for the device."""
        self._wait(0)
        totals, iterations, diverged_at = jax.device_get((state.totals, state.iterations, state.diverged_at))
        self.check(diverged_at)
        timing = {metrics.SPEED: self._speed()} if self.steps else {}
        each = each_of((totals, iterations, diverged_at), len(self.runs))
        return [(_row(run, step, epoch, *own), timing) for run, own in zip(self.runs, each, strict=True)]


def _row(run: Run, step: int, epoch: int, totals: dict[str, Any], iterations: Any, diverged_at: Any) -> Row:
    names = run.spec.member_names
    row: Row = {"step": step, "epoch": epoch, metrics.RATE: float(np.asarray(run.setup.learning_rate(step - 1)))}
    for metric, values in totals.items():
        row |= {metrics.train(metric, name): float(v / iterations) for name, v in zip(names, values, strict=True)}
    return row | {metrics.diverged(name): int(at) for name, at in zip(names, diverged_at, strict=True) if at}


# What is known of a step without waiting for the next: copies, for the state is given away.
@jax.jit
def _finished(state: TrainState) -> jax.Array:
    return state.step + 0


@jax.jit
def _shown(state: TrainState) -> tuple[jax.Array, jax.Array]:
    """The target student's mean loss and accuracy `[..., 2]`, and who has diverged; of several runs for each."""
    sums = jnp.stack([state.totals["loss"][..., -1], state.totals["accuracy"][..., -1]], axis=-1)
    return sums / state.iterations[..., None], state.diverged_at + 0
