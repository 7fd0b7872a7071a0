"""Leaving when asked to: a run that gets SIGTERM or SIGINT finishes its step, saves, and leaves."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from orc_jax.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Whether the run was asked to stop. Several processes stop at one step, whichever of them was asked."""

    def __init__(self):
        self.signal: signal.Signals | None = None  # that asked

    def requested(self, step: int) -> bool:
        """Whether to leave after `step` steps. Every process calls it once after each step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = self.signal or signal.SIGTERM
            return True
        return jax.process_count() == 1 and self.signal is not None

    def leave(self, title: str, step: int, num_steps: int) -> None:
        """Raises `Interrupted`, for a run whose state after `step` is on disk."""
        asked = self.signal or signal.SIGTERM
        raise Interrupted(
            f"{title}: stopped by {asked.name} after step {step} of {num_steps}; the same command goes on from there",
            status=128 + asked,
        )


@contextlib.contextmanager
def watched(warn: Callable[[str], None]) -> Iterator[Stop]:
    """Catches the signals that ask a run to stop. The second one is not caught."""
    stop = Stop()

    def handle(number: int, _frame) -> None:
        stop.signal = signal.Signals(number)
        signal.signal(number, before[number])
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)  # which JAX catches, to agree with the other processes on a step
        warn(f"{stop.signal.name}: stopping after this step, with a checkpoint. Once more leaves at once.")

    # With several processes SIGTERM is caught by JAX itself.
    caught = SIGNALS if jax.process_count() == 1 else (signal.SIGINT,)
    before: dict[int, Any] = {number: signal.signal(number, handle) for number in caught}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
