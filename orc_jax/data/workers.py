"""What worker processes and threads need, so that they end when they should. Worker processes import it: no JAX."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import wait


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


def end_with_parent(*_: int) -> None:
    """For worker processes to call at their start: they end when their parent does, even if that is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker process

    def end() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
