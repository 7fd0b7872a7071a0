"""Runs as real processes: several as one, killed, asked to stop, on other numbers of devices, on a full disk.

Everything here is bounded in time, and what a test starts it ends.
"""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from orc_jax.data import sets
from orc_jax.workdir import metrics, record
from tests.helpers import final_state

REPOSITORY = Path(__file__).parent.parent
FIELDS = "method=independent num_networks=2 teacher=plane2 student=plane2 examples_per_class=12 batch_size=16 "
FIELDS += "num_epochs=3 warmup_epochs=0 eval_every_epochs=1 log_every_steps=5"


@contextlib.contextmanager
def started(workdir, *flags, devices=1, fields=FIELDS):
    """The command, as a process of its own with some virtual devices; it is ended in any case."""
    arguments = [sys.executable, "-m", "orc_jax.main", f"--workdir={workdir}", "--compilation_cache=", *flags]
    arguments += [f"--config.{field}" for field in fields.split()]
    xla = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": xla}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(arguments, cwd=REPOSITORY, env=environment, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def run(workdir, *flags, file_size=None, **options):
    with started(workdir, *flags, **options) as process:
        if file_size:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (file_size, file_size))
        output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def wait_for_rows(process, workdir, count):
    """Until the run in `workdir` has logged `count` epochs."""
    deadline = time.monotonic() + 120
    while len(metrics.read(workdir)) < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)


def assert_same_run(workdir, other, rtol):
    dataset = sets.load(record.require(other).fields, print)
    state, expected = (jax.device_get(final_state(folder, dataset)) for folder in (workdir, other))
    assert state.step == expected.step
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol / 10), state, expected)


@pytest.fixture(scope="module", autouse=True)
def programs_of_the_processes(programs):
    """Those that they start compile each program once."""
    variables = {"JAX_COMPILATION_CACHE_DIR": str(programs), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of one process with four devices, never interrupted."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    code, _, errors = run(workdir, devices=4)
    assert code == 0, errors
    return workdir


@pytest.mark.slow
def test_asked_to_stop_and_resumed_on_other_numbers_of_devices(whole, tmp_path):
    """From eight devices to one, and back to eight: the same run."""
    workdir = tmp_path / "run"
    for devices, rows, number, status in ((8, 1, signal.SIGTERM, 143), (1, 2, signal.SIGINT, 130)):
        with started(workdir, devices=devices, fields=FIELDS + " checkpoint_every_steps=1") as process:
            wait_for_rows(process, workdir, rows)
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
        name = signal.Signals(number).name
        assert process.returncode == status and f"independent: stopped by {name} after step" in errors, errors
    code, output, errors = run(workdir, devices=8)
    assert code == 0, errors
    assert "independent: restored step" in output
    assert_same_run(workdir, whole, rtol=1e-3)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def two_processes(workdir, fields=FIELDS):
    """Two processes of one run; `fields` is what the second is given."""
    address = f"--coordinator=127.0.0.1:{free_port()}"
    with contextlib.ExitStack() as stack:
        flags = (((address, "--num_processes=2", f"--process_id={i}"), of) for i, of in enumerate((FIELDS, fields)))
        yield [stack.enter_context(started(workdir, *flag, devices=2, fields=of)) for flag, of in flags]


def test_two_processes_are_one_run(whole, tmp_path):
    """Two processes of two devices; one dies, which ends the other; started again, they end as one process does."""
    workdir = tmp_path / "run"
    with two_processes(workdir) as processes:
        wait_for_rows(processes[0], workdir, 1)
        processes[1].kill()
        died = time.monotonic()
        _, errors = processes[0].communicate(timeout=90)
        assert time.monotonic() - died < 70  # it takes a second on one machine, a missing heartbeat a minute
        assert processes[0].returncode == 1
        assert "orc_jax: a step that other processes take part in has failed" in errors and "Traceback" not in errors
    with two_processes(workdir) as processes:
        wait_for_rows(processes[0], workdir, 2)
        processes[1].send_signal(signal.SIGTERM)  # one is asked, both stop
        ends = [process.communicate(timeout=120) for process in processes]
    if processes[0].returncode:  # it may have come to its end before
        assert [process.returncode for process in processes] == [143, 143], ends
    with two_processes(workdir) as processes:
        ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert "4 x cpu in 2 processes" in " ".join(ends[0][0].split())
    assert "independent" not in ends[1][0]  # the first alone speaks
    assert_same_run(workdir, whole, rtol=1e-3)
    assert len(metrics.read(workdir)) == 3


def test_two_processes_with_different_fields_are_no_run(tmp_path):
    """Both notice, before anything is written."""
    with two_processes(tmp_path / "run", fields=f"{FIELDS} seed=1") as processes:
        ends = [process.communicate(timeout=120) for process in processes]
    for process, (_, errors) in zip(processes, ends, strict=True):
        assert process.returncode not in (0, None)
        assert "the processes of this run differ in their config, or in what they see of the workdir" in errors
    assert not (tmp_path / "run").exists()


def test_a_full_disk(tmp_path, monkeypatch):
    """Files may have 20 kB, which the checkpoint exceeds: one message, and with more room it goes on."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")  # compiled programs exceed it as well
    code, _, errors = run(tmp_path / "run", file_size=20_000)
    assert code == 2 and errors.startswith("orc_jax: ") and "Traceback" not in errors, errors
    assert "a checkpoint cannot be written to" in errors and "Complete there: none" in errors
    code, _, errors = run(tmp_path / "run")
    assert code == 0, errors


def test_processes_that_cannot_be_joined(tmp_path):
    code, _, errors = run(tmp_path / "run", "--num_processes=2")
    assert code == 2 and "--num_processes and --process_id need --coordinator" in errors
    code, _, errors = run(tmp_path / "run", "--coordinator=nowhere")
    assert code == 2 and "--coordinator=nowhere: the processes of the run cannot be joined" in errors
    assert not (tmp_path / "run").exists()
