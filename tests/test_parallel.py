"""Several devices compute what one does, hold the same, and take the batch in its order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax import parallel
from orc_jax.parallel import AXIS, DataParallel
from orc_jax.step import in_turn, make_train_step
from orc_jax.testing import Stepper, assert_close, assert_devices_agree, assert_identical, batches, build_run, run_steps
from tests.helpers import stepper_of


def test_one_device_equals_four(toy, config):
    """Parameters, statistics, roles and feedback; augmentation and mix-up included."""
    config.crop_padding, config.flip = 1, True
    assert_devices_agree(config, toy)


def test_statistics_of_each_device_alone(toy, config):
    """Two devices with the halves of a batch: what each would do with its half, and running statistics halfway."""
    config.method, config.num_networks, config.assistants = "independent", 2, ""
    config.batch_norm = "local"
    two, (indices,) = stepper_of(config, toy, 2), batches(1, 16, 90)
    after = two(two.init(), indices)
    config.batch_size = 8
    one = stepper_of(config, toy)
    halves = [one(one.init(), half) for half in np.split(indices, 2)]
    mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *(half.stacks for half in halves))
    for name, stack in after.stacks.items():
        # plain SGD's first step is linear in the gradient
        assert_close((stack.params, stack.batch_stats), (mean[name].params, mean[name].batch_stats))
    config.batch_size, config.batch_norm = 16, "global"
    of_all = stepper_of(config, toy, 2)
    of_all = of_all(of_all.init(), indices)
    assert not np.allclose(
        of_all.stacks["tiny_a"].batch_stats["bn1.var"], after.stacks["tiny_a"].batch_stats["bn1.var"]
    )
    parallel.assert_replicated(after)


def test_several_steps_in_one_call(toy, config, monkeypatch):
    """Bit for bit what single calls do, augmentation, mix-up and roles included, as users compile them."""
    fused = parallel.COMPILER_OPTIONS["cpu"] | {"xla_cpu_use_fusion_emitters": True}
    monkeypatch.setitem(parallel.COMPILER_OPTIONS, "cpu", fused)
    config.crop_padding, config.flip = 1, True
    stepper, order = Stepper(build_run(config, toy, 2)), batches(3, 16, 90)
    singles = run_steps(stepper, 3)
    step = in_turn(make_train_step(stepper.run.setup, stepper.run.method.iterate))
    together = DataParallel(step, stepper.run.devices, donate=False)
    stacked = np.stack([parallel.shard(indices, 2) for indices in order], axis=1)
    assert_identical(together(stepper.init(), stepper.data, stacked), singles)


def test_programs_of_long_runs(toy, config):
    """As others up to rounding, bit for bit the same when they run again, and on several devices at once."""
    config.method, config.num_networks, config.assistants = "independent", 2, ""
    stepper, indices = stepper_of(config, toy, 2), batches(1, 16, 90)[0]
    step = make_train_step(stepper.run.setup, stepper.run.method.iterate)
    long = DataParallel(step, stepper.run.devices, donate=False, long=True)
    given = stepper.init(), stepper.data, parallel.shard(indices, 2)
    once = long(*given)
    assert_identical(once, long(*given))
    assert_close(once.stacks, stepper(stepper.init(), indices).stacks)


def test_the_unmapped_step_equals_the_mapped_one(toy, config):
    """With `axis_name=None` nothing is reduced or gathered: one device needs no pmap."""
    config.crop_padding, config.flip = 1, True
    stepper = stepper_of(config, toy)
    run = build_run(config, toy, axis_name=None)
    unmapped = jax.jit(make_train_step(run.setup, run.method.iterate))
    (indices,) = batches(1, 16, 90)
    start = stepper.init()
    assert_close(unmapped(start, stepper.data, indices).stacks, stepper(start, indices).stacks)


def test_what_runs_once_is_computed_on_a_cpu_if_there_is_one(monkeypatch):
    run = lambda: parallel.once(lambda seed, x: x["a"] + jax.random.normal(jax.random.key(seed), (3,)))  # noqa: E731
    here = run()(7, {"a": jax.device_put(jnp.ones(3), jax.local_devices()[-1])})
    assert here.devices() == {jax.local_devices(backend="cpu")[0]}

    def told_of_none(**_):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "local_devices", told_of_none)
    np.testing.assert_array_equal(run()(7, {"a": jnp.ones(3)}), here)


def test_differing_replicas_are_noticed():
    devices = jax.local_devices()
    sharding = parallel.replicated(devices)
    shards = [jax.device_put(jnp.full(3, float(i == 2)), device) for i, device in enumerate(devices)]
    broken = jax.make_array_from_single_device_arrays((3,), sharding, shards)
    parallel.assert_replicated({"w": jax.device_put(jnp.ones(3), sharding)})
    with pytest.raises(RuntimeError, match="replicas differ in"):
        parallel.assert_replicated({"w": broken})


def test_collectives_keep_the_order_of_the_batch():
    """On four devices as unmapped: sums, means, what is gathered along either axis, and whose place is where."""

    def step(scale, _, x):
        mapped = x.shape[0] < 8
        axis_name = AXIS if mapped else None
        slots = parallel.gather(parallel.local_slots(x.shape[0], axis_name), axis_name)
        gathered = parallel.gather(x * scale, axis_name), parallel.gather(x.T, axis_name, axis=1)
        sums = jax.tree.map(lambda f: f(x.sum(0), axis_name), {"total": parallel.total, "mean": parallel.mean})
        return slots, gathered, sums

    x = np.arange(24, dtype=np.float32).reshape(8, 3)
    four = DataParallel(step, jax.local_devices(), donate=False)(jnp.float32(2.0), None, parallel.shard(x, 4))
    slots, (rows, columns), sums = four
    np.testing.assert_array_equal(slots, np.arange(8))
    np.testing.assert_array_equal(rows, 2 * x)
    np.testing.assert_array_equal(columns, x.T)
    np.testing.assert_array_equal(sums["total"], x.sum(0))
    np.testing.assert_array_equal(sums["mean"], x.sum(0) / 4)
    one = step(2.0, None, x)
    np.testing.assert_array_equal(one[0], slots)
    np.testing.assert_array_equal(one[1][0], rows)
    np.testing.assert_array_equal(one[1][1], columns)
    np.testing.assert_array_equal(one[2]["mean"], one[2]["total"])


def test_a_program_is_compiled_once_for_each_shape():
    traces = []

    def step(state, _, x):
        traces.append(x.shape)
        return state + parallel.total(x.sum(), AXIS)

    mapped = DataParallel(step, jax.local_devices()[:2], donate=False)
    state = jnp.float32(1.0)
    for size in (4, 4, 6, 4, 6):
        state = mapped(state, None, parallel.shard(np.ones(size, np.float32), 2))
    assert float(state) == 1.0 + 4 + 4 + 6 + 4 + 6 and traces == [(2,), (3,)]
