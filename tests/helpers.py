"""What several tests need beside `orc_jax.testing`: runs as the commands make them, what was printed and written."""

from pathlib import Path

import jax
import pytest
from hypothesis import HealthCheck, settings

from orc_jax import evaluate as evaluation
from orc_jax import training
from orc_jax.config import reopen, resolve
from orc_jax.methods import METHODS, ONLINE
from orc_jax.run import build
from orc_jax.testing import Stepper, build_run, latest_state
from orc_jax.workdir import record

# Of tests with random input: the same every time. Compiling takes its time, and what fixtures give stays as it is.
RELAXED = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
    database=None,
    derandomize=True,
)

# Offline methods differ in the loss of a pair: two of them, the simplest and one that has adapters and a memory, stand
# for all in tests of the program around it. Tests of the others are slow.
OF_OFFLINE = ("kd", "crd")


def each_method(quick=(*ONLINE, *OF_OFFLINE), among=METHODS):
    """The methods as parameters of a test, those that are not `quick` marked as slow."""
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in among]


def train(config, workdir, console, **options):
    """Trains the run of a config, as the command does."""
    training.train(resolve(config), workdir, console, **options)


def evaluate(config, workdir, which, console):
    """Evaluates a checkpoint with a config, as the command does."""
    evaluation.evaluate_checkpoint(resolve(config), workdir, which, console)


def printed(console):
    """What was printed, in one line."""
    console.file.flush()
    return " ".join(Path(console.file.name).read_text().split())


def files(folder):
    """All files below `folder`."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def contents(folder):
    """The files below `folder` with what is in them."""
    return {path: path.read_bytes() for path in files(folder)}


def final_state(workdir, dataset):
    """The state in the latest checkpoint of a run on `dataset`."""
    resolved = reopen(record.require(workdir).fields, trusted=())
    return latest_state(workdir, build(resolved, dataset, jax.local_devices()))


steppers = {}


def stepper_of(config, dataset, num_devices=1):
    """The stepper of a config; tests that ask for the same one share its compiled program."""
    key = (config.to_json(), num_devices)
    if key not in steppers:
        steppers[key] = Stepper(build_run(config, dataset, num_devices))
    return steppers[key]
