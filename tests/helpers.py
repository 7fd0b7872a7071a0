"""What several tests need: a run on some devices, its compiled step, and batches."""

from pathlib import Path

import jax
import numpy as np
from hypothesis import HealthCheck, settings

from orc_jax import evaluate as evaluation
from orc_jax import parallel, training
from orc_jax.config import reopen, resolve
from orc_jax.pool import Pool
from orc_jax.run import abstract_state, build
from orc_jax.step import init_state, make_train_step
from orc_jax.workdir import checkpoint, record

# Of tests with random input: the same every time. Compiling takes its time, and what fixtures give stays as it is.
RELAXED = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
    database=None,
    derandomize=True,
)


def build_run(config, dataset, num_devices=1, axis_name=parallel.AXIS):
    """The run of a config on the first of the virtual devices."""
    return build(resolve(config, num_devices), dataset, jax.local_devices()[:num_devices], axis_name)


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
    run = build(reopen(record.require(workdir).fields, trusted=()), dataset, jax.local_devices())
    with checkpoint.open_manager(workdir, create=False) as manager:
        return checkpoint.restore(manager, manager.latest_step(), abstract_state(run), run.sharding)


class Stepper:
    """The compiled training step of a run, with its data on its devices."""

    def __init__(self, run):
        self.run = run
        step = make_train_step(run.setup, run.method.iterate)
        self.train_step = parallel.DataParallel(step, run.devices, donate=False)
        self.data = jax.device_put(run.dataset.train, run.sharding)
        self.init_state = jax.jit(lambda seed: init_state(run.setup, run.method, seed), out_shardings=run.sharding)

    def init(self, seed=0):
        return self.init_state(seed)

    def __call__(self, state, indices):
        return self.train_step(state, self.data, parallel.shard(indices, len(self.run.devices)))

    def pool(self, state):
        """The pool of a state."""
        return Pool(spec=self.run.spec, stacks=state.stacks)

    def member(self, state, i):
        """The StackState of one member, without the member axis."""
        return self.pool(state).member(i)


steppers = {}


def stepper_of(config, dataset, num_devices=1):
    """The stepper of a config; tests that ask for the same one share its compiled program."""
    key = (config.to_json(), num_devices)
    if key not in steppers:
        steppers[key] = Stepper(build_run(config, dataset, num_devices))
    return steppers[key]


def batches(count, batch_size, num_examples, seed=0):
    """Random batches of indices."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(num_examples)[:batch_size].astype(np.int32) for _ in range(count)]


def run_steps(stepper, count=3, state=None):
    """The state after some steps, on random batches."""
    state = state or stepper.init()
    for indices in batches(count, stepper.run.config.batch_size, len(stepper.run.dataset.train.labels)):
        state = stepper(state, indices)
    return state


def assert_close(actual, expected, rtol=1e-4, atol=1e-5):
    """Two trees of arrays are nearly the same."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected)


def assert_identical(actual, expected):
    """Two trees of arrays are the same, bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
