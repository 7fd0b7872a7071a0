"""Asked to leave at any moment, a run has saved and left, and the same command ends as if nothing had been."""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orc_jax import fitting, pretrained, terminal
from orc_jax.errors import Interrupted
from orc_jax.meter import Meter
from orc_jax.preemption import SIGNALS, Stop
from orc_jax.testing import assert_identical
from orc_jax.workdir import checkpoint, metrics
from tests.data.pictures import encode, picture
from tests.helpers import final_state, train

ROOT = Path(__file__).parent.parent


def asked(monkeypatch, owner, name, number, call=1):
    """A signal comes while a function is called for the so-manieth time; a second one would end the tests."""
    function, calls = getattr(owner, name), itertools.count(1)

    def called(*args, **kwargs):
        if next(calls) == call:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, called)


# In the order of a run, what is done when the signal comes, and where the run then stops.
PHASES = [
    (Meter, "compiling", 1, "pivot: stopped by {} after step 1 of 5"),
    (fitting, "evaluate_now", 1, "orc: stopped by {} after step 0 of 11"),
    (pretrained, "load_members", 1, "orc: stopped by {} after step 0 of 11"),
    (Stop, "requested", 1, "orc: stopped by {} after step 1 of 11"),
    (checkpoint, "save", 1, "orc: stopped by {} after step 4 of 11"),
    (fitting, "evaluate_now", 1, "orc: stopped by {} after step 6 of 11"),
    (Meter, "dispatched", 2, "orc: stopped by {} after step 8 of 11"),
    (checkpoint, "finish", 1, ""),  # all is done
]


@pytest.mark.usefixtures("toy_set")
def test_in_every_phase(config, console, tmp_path, monkeypatch, toy):
    """One run, that is asked again and again."""
    config.num_networks, config.assistants, config.checkpoint_every_steps = 3, "tiny_b", 3
    evaluation = fitting.evaluation

    def named(runs):
        evaluate = evaluation(runs)
        return lambda *given: fitting.evaluate_now(evaluate, *given)

    monkeypatch.setattr(fitting, "evaluation", named)
    monkeypatch.setattr(fitting, "evaluate_now", lambda evaluate, *given: evaluate(*given), raising=False)
    for (owner, name, call, where), number in zip(PHASES, itertools.cycle(SIGNALS), strict=False):
        with monkeypatch.context() as patch, contextlib.ExitStack() as stack:
            asked(patch, owner, name, number, call)
            if where:
                where = where.format(signal.Signals(number).name)
                left = stack.enter_context(pytest.raises(Interrupted, match=f"^{where}; the same command goes on"))
            train(config, tmp_path / "run", console)
        assert not where or left.value.status == 128 + number
    train(config, tmp_path / "whole", console)
    assert_identical(final_state(tmp_path / "run", toy), final_state(tmp_path / "whole", toy))
    logs = [(tmp_path / name / metrics.METRICS).read_bytes() for name in ("run", "whole")]
    assert logs[0] == logs[1]


@pytest.mark.usefixtures("toy_set")
def test_while_it_tells_of_a_member_that_has_diverged(config, console, tmp_path, monkeypatch):
    config.teacher, config.assistants, config.student, config.num_networks = "tiny_a", "tiny_b", "tiny_a", 3
    config.method, config.lr_multipliers, config.on_divergence = "independent", "tiny_b=1e25", "isolate"
    warner, told = terminal.warner, []

    def telling(console):
        def tell(line):
            if "has diverged" in line and not told:
                told.append(os.kill(os.getpid(), signal.SIGTERM))
            warner(console)(line)

        return tell

    monkeypatch.setattr(terminal, "warner", telling)
    with pytest.raises(Interrupted, match=r"^independent: stopped by SIGTERM after step [1-6] of 11"):
        train(config, tmp_path / "run", console)
    for name in ("run", "whole"):
        train(config, tmp_path / name, console)
    logs = [(tmp_path / name / metrics.METRICS).read_bytes() for name in ("run", "whole")]
    assert logs[0] == logs[1] and b"diverged_at/1_tiny_b" in logs[0]


# The command, which says when it comes to a phase and stays there a little.
PROGRAM = """
import sys, time
from orc_jax import evaluate, fitting, main, pretrained
from orc_jax.data import checks, feed, sets, stream
from orc_jax.meter import Meter
from orc_jax.workdir import checkpoint

def here(result=None):
    print("here", flush=True)
    time.sleep(1)
    return result

def marked(owner, name):
    function = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: (here(), function(*args, **kwargs))[1])

def marked_batches(name):
    def batches(*args, function=stream._first):
        for i, batch in enumerate(function(*args)):
            yield here(batch) if i == 1 else batch
    stream._first = batches

phase = sys.argv.pop(1)
{
    "reading": lambda: marked(sets, "load"),
    "looking": lambda: marked(checks, "_look_at"),
    "compiling": lambda: marked(Meter, "compiling"),
    "making": lambda: marked(fitting, "_restored_or_initial"),
    "training": lambda: marked(Meter, "dispatched"),
    "decoding": lambda: marked_batches(stream),
    "evaluating": lambda: marked(evaluate.feed, "evaluation"),
    "saving": lambda: marked(checkpoint, "save"),
    "finishing": lambda: marked(checkpoint, "finish"),
    "between": lambda: marked(pretrained, "load_members"),
    "": lambda: None,
}[phase]()
main.main()
"""
EARLY = ("reading", "looking")  # before there is anything to save, a signal does what it does elsewhere
FIELDS = "method=takd teacher=plane2 student=plane2 num_networks=2 dataset=folder eval_split=val batch_size=8 "
FIELDS += "eval_batch_size=8 num_epochs=2 pretrain_epochs=1 warmup_epochs=0 log_to= stream.image_size=8 "
FIELDS += "stream.num_workers=2 stream.crop_area=(0.5,1.0)"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for split, name, i in itertools.product(("train", "val"), "ab", range(12)):
        (root / split / name).mkdir(parents=True, exist_ok=True)
        (root / split / name / f"{i}.jpg").write_bytes(encode(picture(20, 20, i)))
    return root


@contextlib.contextmanager
def started(phase, workdir, photos, programs):
    """The command, in a process group of its own, of which nothing is left afterwards."""
    command = [sys.executable, "-c", PROGRAM, phase, f"--workdir={workdir}", f"--compilation_cache={programs}"]
    command += [f"--config.{field}" for field in [*FIELDS.split(), f"data_dir={photos}"]]
    xla = {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=1")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": os.environ | xla, "cwd": ROOT}
    with subprocess.Popen(command, process_group=0, **pipes) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def ended(process):
    """Exit code and errors of a process; the last one of its group that could print has ended, too."""
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def sent(phase, number, workdir, photos, programs):
    """Exit code and errors of a run whose whole process group gets a signal in a phase."""
    with started(phase, workdir, photos, programs) as process:
        for line in process.stdout:
            if line == "here\n":
                break
        os.killpg(process.pid, number)
        return ended(process)


def assert_left(number, code, errors, early=False):
    by_signal = early and number != signal.SIGINT
    assert code == (-number if by_signal else 128 + number), errors
    assert errors.count("\n") == (not by_signal) and "Traceback" not in errors, errors


def test_to_all_processes_while_a_streamed_set_is_evaluated(photos, tmp_path, programs):
    """As schedulers and `timeout` send it."""
    code, errors = sent("evaluating", signal.SIGTERM, tmp_path / "run", photos, programs)
    assert_left(signal.SIGTERM, code, errors)
    assert "stopped by SIGTERM after step 0 of 6" in errors
    assert [row["epoch"] for row in metrics.read(tmp_path / "run" / "pivot")] == [1]
    assert checkpoint.has_checkpoint(tmp_path / "run" / "pivot")


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory, programs):
    """The log of the run that is left alone, and how long it takes."""
    workdir, before = tmp_path_factory.mktemp("whole"), time.monotonic()
    with started("", workdir, photos, programs) as process:
        code, errors = ended(process)
    assert code == 0, errors
    return (workdir / metrics.METRICS).read_bytes(), time.monotonic() - before


def assert_goes_on(workdir, photos, programs, whole):
    with started("", workdir, photos, programs) as process:
        code, errors = ended(process)
    assert code == 0 and not errors, errors
    assert (workdir / metrics.METRICS).read_bytes() == whole[0]


PHASES_OF_GROUPS = [
    "reading",
    "looking",
    "compiling",
    "making",
    "training",
    "decoding",
    "saving",
    "finishing",
    "between",
]


@pytest.mark.slow
@pytest.mark.parametrize("phase", [*PHASES_OF_GROUPS, "evaluating"])
def test_to_all_processes_in_every_phase(phase, photos, tmp_path, programs, whole):
    number = SIGNALS[PHASES_OF_GROUPS.index(phase) % len(SIGNALS) if phase in PHASES_OF_GROUPS else 0]
    code, errors = sent(phase, number, tmp_path, photos, programs)
    assert_left(number, code, errors, phase in EARLY)
    assert_goes_on(tmp_path, photos, programs, whole)


@pytest.mark.slow
def test_to_all_processes_at_random_moments(photos, tmp_path, programs, whole):
    """Until the run has come to its end."""
    rng, codes = random.Random(0), []
    for _ in range(6):
        number = rng.choice(SIGNALS)
        with started("", tmp_path, photos, programs) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0.3, 1.0) * whole[1])
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            code, errors = ended(process)
        codes.append(code)
        assert code in (0, 128 + number, -number) and "Traceback" not in errors, (codes, errors)
    assert_goes_on(tmp_path, photos, programs, whole)
