"""Leaving when asked to: a run that gets SIGTERM, SIGINT or SIGHUP finishes its step, saves, and leaves."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

from orc_jax.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
BUSY = 0.3  # seconds that the main thread has for the answer to a signal
DONE = 0  # no number of a signal


class Stop:
    """Whether the run was asked to stop. Several processes stop at one step, whichever of them was asked."""

    def __init__(self):
        self.signal: signal.Signals | None = None  # that asked
        self.asked = 0  # how often: what processes agree on is one of these

    def requested(self) -> bool:
        """Whether to leave now. Every process asks after each call of the step."""
        self.asked += 1
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(self.asked):
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
    """Catches the signals that ask a run to stop, and answers in words. The second one does what it does elsewhere."""
    stop, handled, told = Stop(), [], []
    terminals = [fd for fd in (1, 2) if os.isatty(fd)]

    def tell(number: int) -> None:
        if number not in told:
            told.append(number)
            name = signal.Signals(number).name
            if number == signal.SIGHUP:  # the terminal has gone, and what is printed there would be an error
                _silence(terminals)
            warn(f"{name}: stopping after this step, with a checkpoint. Once more leaves at once.")

    def handle(number: int, _frame) -> None:
        handled.append(number)
        if handled.count(number) > 1:
            if before[number] == signal.SIG_IGN:  # as shells have it for what they start in the background
                _leave_at_once(number)
            signal.signal(number, before[number])
            signal.raise_signal(number)
            return
        stop.signal = signal.Signals(number)
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)  # which JAX catches, to agree with the other processes on a step
        tell(number)

    def waits(number: int, count: int) -> None:
        """The main thread has not come to handle a signal that was given `count` times."""
        if handled.count(number) < min(count, 2):
            _leave_at_once(number) if count > 1 else tell(number)

    # With several processes SIGTERM is caught by JAX itself. What nohup ignores is no wish to leave.
    caught = [number for number in SIGNALS if number != signal.SIGTERM or jax.process_count() == 1]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        caught.remove(signal.SIGHUP)
    before: dict[int, Any] = {number: signal.signal(number, handle) for number in caught}
    try:
        with _beside_the_main_thread(caught, waits):
            yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _beside_the_main_thread(caught: Collection[int], look: Callable[[int, int], None]) -> Iterator[None]:
    """Calls `look(number, how often it was given)` in a thread, soon after each signal.

    While the main thread compiles, or waits for a step, Python calls no handler in it.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before, over, seen = signal.set_wakeup_fd(writer, warn_on_full_buffer=False), threading.Event(), []

    def watch() -> None:
        while (number := os.read(reader, 1)[0]) != DONE:
            seen.append(number)
            if number in caught and not over.wait(BUSY):
                look(number, seen.count(number))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.write(writer, bytes([DONE]))
        thread.join()
        os.close(reader)
        os.close(writer)


def _silence(terminals: Collection[int]) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for fd in terminals:
        os.dup2(nowhere, fd)
    os.close(nowhere)


def _leave_at_once(number: int) -> NoReturn:
    if sys.stdout.isatty():
        os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # the cursor, which a progress bar hides
    os._exit(128 + number)
