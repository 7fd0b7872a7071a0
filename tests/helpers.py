"""What several tests need: a run on some devices, its compiled step, and batches."""

import jax
import numpy as np

from orc_jax import checkpoint, parallel
from orc_jax.config import ConfigDict, members
from orc_jax.pool import take_member
from orc_jax.run import abstract_state, build
from orc_jax.step import init_state, make_train_step


def build_run(config, dataset, num_devices=1):
    """The run of a config on the first of the virtual devices."""
    return build(config.copy_and_resolve_references(), dataset, jax.local_devices()[:num_devices], members(config))


def final_state(workdir, dataset):
    """The state in the latest checkpoint of a run on `dataset`."""
    description = checkpoint.read_description(workdir)
    run = build(ConfigDict(description["config"]), dataset, jax.local_devices(), description["members"])
    with checkpoint.open_manager(workdir, create=False) as manager:
        return checkpoint.restore(manager, manager.latest_step(), abstract_state(run), run.sharding)


class Stepper:
    """The compiled training step of a run, with its data on its devices."""

    def __init__(self, run):
        self.run = run
        step = make_train_step(run.setup, run.method.iterate)
        self.train_step = parallel.DataParallel(step, run.devices, donate=False)
        self.data = jax.device_put(run.dataset.train, run.sharding)

    def init(self, seed=0):
        return jax.device_put(init_state(self.run.setup, self.run.method, seed), self.run.sharding)

    def __call__(self, state, indices):
        return self.train_step(state, self.data, parallel.shard(indices, len(self.run.devices)))

    def member(self, state, i):
        """The StackState of one member, without the member axis."""
        return take_member(self.run.setup.pool, state.stacks, i)


steppers = {}


def stepper_of(config, dataset, num_devices=1):
    """The stepper of a config; tests that ask for the same one share its compiled program."""
    key = (config.to_json(), num_devices)
    if key not in steppers:
        steppers[key] = Stepper(build_run(config, dataset, num_devices))
    return steppers[key]


def batches(count, batch_size, num_examples, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.permutation(num_examples)[:batch_size].astype(np.int32) for _ in range(count)]


def assert_close(actual, expected, rtol=1e-4, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected)


def assert_identical(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
