"""Worker processes and threads end when they should, and leave Ctrl-C to the main thread."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest

from orc_jax.data.workers import interrupts_blocked
from tests.data.pictures import encode, picture

PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
import functools
import numpy as np
from orc_jax.data import decode, folder, stream
assert "jax" not in sys.modules
records = folder.Records(sys.argv[1], np.array([b"00.jpg"]), np.array([0]))
augment = functools.partial(decode.random_resized_crop, size=16, area=(0.3, 1.0), flip=True)
source = stream.TrainExamples(records, 0, 8, int(sys.argv[2]), 0, augment, False)
with stream.batches(source, 8, 2) as batches:
    next(batches), next(batches)
    print("ready", flush=True)
    for _ in batches:
        pass
"""


@pytest.mark.parametrize("end", [None, signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path, end):
    """Ctrl-C reaches all processes, but only the main one speaks of it."""
    (tmp_path / "00.jpg").write_bytes(encode(picture(50, 40)))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(10**9 if end else 4)]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0)
    try:
        assert program.stdout.readline() == "ready\n"
        if end == signal.SIGINT:
            os.killpg(program.pid, end)
        elif end:
            program.kill()
        _, errors = program.communicate(timeout=20)  # returns when the last process that could print has ended
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
    assert errors.count("Traceback") == (end == signal.SIGINT), errors


def test_the_tracker_of_shared_memory_does_not_end_by_what_asks_a_run_to_leave():
    program = """
import os, signal, time
from multiprocessing import resource_tracker
from orc_jax.data.workers import start_tracker
start_tracker()
pid = resource_tracker._resource_tracker._pid
time.sleep(0.5)  # until it ignores what it does
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    os.kill(pid, number)
    assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
time.sleep(0.2)
assert os.waitpid(pid, os.WNOHANG) == (0, 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_threads_that_start_in_here_do_not_see_interrupts():
    """Nor do processes, which inherit the mask; the main thread sees them again afterwards, also after an error."""
    seen = []

    def look():
        seen.append(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    def start():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()

    with pytest.raises(ValueError, match="x"), interrupts_blocked():
        start()
        raise ValueError("x")
    start(), look()
    assert seen == [True, False, False]
