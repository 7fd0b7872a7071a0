"""Leaving when asked to, being killed, and going on: a run ends as if nothing had happened, bit for bit."""

import hashlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orc_jax import preemption, training
from orc_jax.data import feed
from orc_jax.errors import Interrupted, UserError
from orc_jax.methods import BRANCHED
from orc_jax.testing import assert_identical
from orc_jax.workdir import checkpoint, metrics
from tests.helpers import each_method, final_state, printed, train

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("toy_set")


def at_step(monkeypatch, folder, at, action):
    """Does something while the run in `folder`, which may be that of a stage, makes step `at`."""
    requested, fit, folders = preemption.Stop.requested, training.fit, []

    def noting_its_folder(tracks, *args, **kwargs):
        folders.append((tracks[0].workdir, itertools.count(1)))
        return fit(tracks, *args, **kwargs)

    def with_action(stop):
        workdir, steps = folders[-1]
        if next(steps) == at and workdir == folder:
            action()
        return requested(stop)

    monkeypatch.setattr(training, "fit", noting_its_folder)
    monkeypatch.setattr(preemption.Stop, "requested", with_action)


def ask_to_stop(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def killed():
    raise MemoryError


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_the_second_signal_is_not_caught(number):
    """One asks the run to stop and says so; one more does what it does elsewhere, and afterwards all of them do."""

    def elsewhere(*_):
        raise TimeoutError

    before, warnings = signal.signal(number, elsewhere), []
    try:
        with preemption.watched(warnings.append) as stop:
            assert not stop.requested() and stop.signal is None
            ask_to_stop(number)
            assert stop.requested() and stop.signal == number
            name = signal.Signals(number).name
            assert warnings == [f"{name}: stopping after this step, with a checkpoint. Once more leaves at once."]
            with pytest.raises(TimeoutError):
                ask_to_stop(number)
            with pytest.raises(Interrupted, match=f"^x: stopped by {name} after step 2 of 9; the same command") as left:
                stop.leave("x", 2, 9)
            assert left.value.status == 128 + number
        for one in preemption.SIGNALS:
            assert (signal.getsignal(one) is elsewhere) == (one == number)
        with preemption.watched(warnings.append):
            pass
        with pytest.raises(TimeoutError):
            ask_to_stop(number)
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_is_answered_while_the_main_thread_computes(number):
    """When Python calls no handler; the run stops when it is done."""
    told = []
    with preemption.watched(lambda text: told.append((time.monotonic(), text))) as stop:
        threading.Timer(0.1, ask_to_stop, [number]).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 4_000_000)
        ended = time.monotonic()
        assert stop.requested()
    ((when, text),) = told
    assert when < ended and text.startswith(f"{signal.Signals(number).name}: stopping after this step")


def test_the_second_signal_ends_a_program_that_computes():
    program = (
        "import hashlib; from orc_jax.preemption import watched\n"
        "with watched(lambda text: print(text, flush=True)):\n"
        "    print('computing', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 2 * 10**9)\n"
    )
    arguments = [sys.executable, "-c", program]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "computing\n"
        time.sleep(0.5)  # until it does
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline().startswith("SIGINT: stopping after this step")
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=30) == 130
        finally:
            process.kill()


def test_the_second_signal_ends_what_a_shell_has_started_in_the_background():
    """There SIGINT is ignored, until a run asks for it."""
    program = (
        "import os, signal, time; from orc_jax.preemption import watched\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "with watched(print):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=50).returncode == 130


# Those with stages, with state besides the members', or with decisions.
QUICK = {"orc", "takd", "switokd", "pcl"}


@pytest.mark.parametrize("method", each_method(QUICK))
def test_a_run_that_was_asked_to_stop_ends_as_an_uninterrupted_one(method, config, console, tmp_path, monkeypatch, toy):
    """In the middle of an epoch: parameters, optimizer, statistics and the metrics file, bit for bit."""
    config.method, config.num_networks, config.crop_padding, config.pretrain_epochs = method, 3, 1, 1
    config.teacher, config.assistants, config.student = "tiny_b" if method in BRANCHED else "tiny_a", "tiny_b", "tiny_b"
    train(config, tmp_path / "whole", console)
    with monkeypatch.context() as patch:
        at_step(patch, tmp_path / "run", 8, ask_to_stop)
        with pytest.raises(
            Interrupted, match="stopped by SIGTERM after step 8 of 11; the same command goes on"
        ) as left:
            train(config, tmp_path / "run", console)
    assert left.value.status == 143
    assert [row["epoch"] for row in metrics.read(tmp_path / "run")] == [1]
    with checkpoint.open_manager(tmp_path / "run", create=False) as manager:
        assert sorted(manager.all_steps()) == [5, 8] and checkpoint.find_step(manager, "best") == 5
    train(config, tmp_path / "run", console)
    whole, resumed = final_state(tmp_path / "whole", toy), final_state(tmp_path / "run", toy)
    assert_identical(whole, resumed)
    logged = [(tmp_path / run / metrics.METRICS).read_bytes() for run in ("whole", "run")]
    assert logged[0] == logged[1]
    with (
        checkpoint.open_manager(tmp_path / "run", create=False) as one,
        checkpoint.open_manager(tmp_path / "whole", create=False) as other,
    ):
        assert checkpoint.find_step(one, "best") == checkpoint.find_step(other, "best")


def test_checkpoints_within_epochs(config, console, tmp_path, monkeypatch, toy):
    """A run that is killed goes on from the last of them; Ctrl-C in the pivot teacher's run leaves there."""
    config.checkpoint_every_steps = 3
    with monkeypatch.context() as patch:
        at_step(patch, tmp_path / "run" / "pivot", 4, lambda: ask_to_stop(signal.SIGINT))
        with pytest.raises(Interrupted, match=r"^pivot: stopped by SIGINT after step 4 of 5") as left:
            train(config, tmp_path / "run", console)
    assert left.value.status == 130 and not (tmp_path / "run" / "checkpoints").exists()
    text = r"--checkpoint=best: none of the checkpoints \[3, 4\] has been evaluated"
    opened = checkpoint.open_manager(tmp_path / "run" / "pivot", create=False)
    with opened as manager, pytest.raises(UserError, match=text):
        checkpoint.find_step(manager, "best")
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        at_step(patch, tmp_path / "run", 10, killed)
        train(config, tmp_path / "run", console)
    with checkpoint.open_manager(tmp_path / "run", create=False) as manager:
        assert sorted(manager.all_steps()) == [5, 6, 9]  # 5 is the best
    train(config, tmp_path / "run", console)
    assert "orc: restored step 9 of 11" in printed(console)
    config.checkpoint_every_steps = 0
    train(config, tmp_path / "whole", console)
    assert_identical(final_state(tmp_path / "run", toy), final_state(tmp_path / "whole", toy))


def test_checkpoints_at_the_end_of_epochs_without_an_evaluation(config, console, tmp_path, monkeypatch):
    config.method, config.num_networks, config.assistants = "independent", 2, ""
    config.checkpoint_every_steps, config.eval_every_epochs = 5, 2
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        at_step(patch, tmp_path / "run", 8, killed)
        train(config, tmp_path / "run", console)
    with checkpoint.open_manager(tmp_path / "run", create=False) as manager:
        assert manager.all_steps() == [5]


def test_a_signal_that_reaches_the_workers_first(config, console, tmp_path, monkeypatch, toy):
    """Schedulers send SIGTERM to all processes of a job; that the workers have ended is then no mistake."""
    config.method, config.num_networks, config.assistants = "independent", 2, ""
    batch_indices, ended = feed.batch_indices, []

    def without_workers(seed, step, *size):
        if step == 7 and not ended:
            ended.append(step)
            os.kill(os.getpid(), signal.SIGTERM)
            raise UserError("a worker process of the input pipeline has ended with exit code -15")
        return batch_indices(seed, step, *size)

    monkeypatch.setattr(feed, "batch_indices", without_workers)
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM after step [5-7] of 11"):  # batches are placed ahead
        train(config, tmp_path / "run", console)
    train(config, tmp_path / "run", console)
    train(config, tmp_path / "whole", console)
    assert_identical(final_state(tmp_path / "run", toy), final_state(tmp_path / "whole", toy))
