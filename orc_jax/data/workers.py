"""What worker processes and threads need, so that they end when they should. Worker processes import it: no JAX."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import wait

from orc_jax.errors import LIMITS, UserError, of_system


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Threads and processes started in here never see what asks a run to leave.

    Terminals and schedulers send it to every process of a run; the main thread ends the others in its own way.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_tracker() -> None:
    """Starts Python's process that clears shared memory away, before any other would.

    Of what asks a run to leave it ignores SIGINT and SIGTERM by itself, but not SIGHUP, which is blocked here.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


SHARED_MEMORY = (
    "/dev/shm may be full: give the container more (docker run --shm-size=8g), or set config.stream.num_workers=0"
)


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """Around what starts processes and takes from them what they have made: what the system lacks then is no disk.

    Raises:
        UserError: saying what it lacks.
    """
    try:
        yield
    except OSError as error:
        _forget_half_made(error)
        reason = of_system(error) + ("" if error.errno in LIMITS else f": {SHARED_MEMORY}")
        raise UserError(f"no images can be had from the processes that read them: {reason}") from error


def _forget_half_made(error: Exception) -> None:
    """Drops what was being made when an error came, in silence: half-made, grain's iterators complain when they go."""
    report = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: None
    try:
        traceback.clear_frames(error.__traceback__)
    finally:
        sys.unraisablehook = report


def end_with_parent(*_: int) -> None:
    """For worker processes to call at their start: they end when their parent does, even if that is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker process

    def end() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
