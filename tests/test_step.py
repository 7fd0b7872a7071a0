"""The training step of a pool: equivalences, gates, device counts, and what the compiled program looks like."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax import parallel, pool, step
from orc_jax.config import default
from orc_jax.data.sets import Dataset, Images
from orc_jax.evaluate import evaluator
from orc_jax.models import layers
from orc_jax.roles import top_k_mask
from orc_jax.step import make_evaluation_step, make_train_step
from tests.helpers import Stepper, assert_close, assert_identical, batches, build_run, stepper_of


def run_steps(stepper, count=3, state=None):
    state = state or stepper.init()
    for indices in batches(count, stepper.run.config.batch_size, len(stepper.run.dataset.train.labels)):
        state = stepper(state, indices)
    return state


def test_members_keep_their_order_whatever_their_stacks(toy, config):
    members = build_run(config, toy).setup.pool
    assert members.member_names == ("0_tiny_a", "1_tiny_b", "2_tiny_a", "3_tiny_b")
    assert {s.name: s.members for s in members.stacks} == {"tiny_a": (0, 2), "tiny_b": (1, 3)}
    vector = jnp.arange(4) * 10
    np.testing.assert_array_equal(pool.in_member_order(members, pool.by_stack(members, vector)), vector)


def test_select_take_and_put(toy, config):
    members = build_run(config, toy).setup.pool
    stacks = {"tiny_a": jnp.array([0.0, 2.0]), "tiny_b": jnp.array([1.0, 3.0])}
    students = pool.select(members, [1, 2, 3])
    assert students.architectures == ("tiny_b", "tiny_a", "tiny_b")
    taken = pool.take(students, stacks)
    np.testing.assert_array_equal(pool.in_member_order(students, taken), [1, 2, 3])
    back = pool.put(students, stacks, jax.tree.map(lambda x: -x, taken))
    np.testing.assert_array_equal(pool.in_member_order(members, back), [0, -1, -2, -3])


def test_a_member_starts_alike_in_every_pool(toy, config):
    large = stepper_of(config, toy)
    config.num_networks, config.assistants = 3, "tiny_b"
    small = stepper_of(config, toy)
    for i in (0, 1):
        assert_identical(large.member(large.init(), i), small.member(small.init(), i))
    first, other = (large.member(large.init(seed), 0).params["conv1.kernel"] for seed in (0, 1))
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, large.member(large.init(), 2).params["conv1.kernel"])


def test_a_pool_trains_as_its_members_one_by_one(toy, config):
    config.method = "independent"
    stepper = stepper_of(config, toy)
    state = run_steps(stepper)
    start = stepper.init()
    for i in range(2):
        alone = stepper.run
        selected = pool.select(alone.setup.pool, [i])
        alone = Stepper(alone._replace(setup=alone.setup._replace(pool=selected)))
        initial = start.replace(
            stacks=pool.take(selected, start.stacks), totals={k: v[:1] for k, v in start.totals.items()}
        )
        assert_close(alone.member(run_steps(alone, state=initial), 0), stepper.member(state, i))


@pytest.mark.parametrize("crop_padding", [0, 1])
def test_one_device_equals_four(toy, config, crop_padding):
    """Parameters, statistics, roles and feedback; augmentation and mix-up included."""
    config.crop_padding = crop_padding
    config.flip = bool(crop_padding)
    one, four = stepper_of(config, toy, 1), stepper_of(config, toy, 4)
    a, b = run_steps(one), run_steps(four)
    assert_close(a.stacks, b.stacks, rtol=2e-4, atol=2e-5)
    assert_close(a.totals, b.totals)
    np.testing.assert_array_equal(a.totals["promoted"], b.totals["promoted"])
    parallel.assert_replicated(b)


def test_the_unmapped_step_equals_the_mapped_one(toy, config):
    """With `axis_name=None` nothing is reduced or gathered: one device needs no pmap."""
    stepper = stepper_of(config, toy)
    pool_unmapped = pool.make_pool(
        stepper.run.setup.pool.architectures, num_classes=3, image_shape=(8, 8, 1), dtype="float32", axis_name=None
    )
    setup = stepper.run.setup._replace(pool=pool_unmapped, axis_name=None)
    unmapped = jax.jit(make_train_step(setup, stepper.run.method.iterate))
    (indices,) = batches(1, 16, 90)
    start = stepper.init()
    assert_close(unmapped(start, stepper.data, indices).stacks, stepper(start, indices).stacks)


def test_differing_replicas_are_noticed():
    devices = jax.local_devices()
    sharding = parallel.replicated(devices)
    shards = [jax.device_put(jnp.full(3, float(i == 2)), device) for i, device in enumerate(devices)]
    broken = jax.make_array_from_single_device_arrays((3,), sharding, shards)
    parallel.assert_replicated({"w": jax.device_put(jnp.ones(3), sharding)})
    with pytest.raises(RuntimeError, match="replicas differ in"):
        parallel.assert_replicated({"w": broken})


def test_members_that_do_not_learn_keep_everything_bit_for_bit(toy, config):
    """With momentum built up and weight decay on, only a gate of the whole state keeps a member as it was."""
    config.method = "independent"
    stepper = stepper_of(config, toy)
    learns = jnp.array([True, False, False, True])

    def iterate(context, stacks, batch):
        passed = step.forward(context.pool, stacks, context.normalize(batch.images))
        loss = lambda out: jnp.square(out.logits).mean(-1)  # noqa: E731
        stacks, losses = step.learn(context, context.pool, stacks, passed, loss, learns=learns)
        return stacks, {"loss": losses, "accuracy": losses}

    start = run_steps(stepper)
    gated = parallel.DataParallel(make_train_step(stepper.run.setup, iterate), stepper.run.devices, donate=False)
    end = gated(start, stepper.data, parallel.shard(batches(1, 16, 90)[0], 1))
    for i in range(4):
        before, after = stepper.member(start, i), stepper.member(end, i)
        if learns[i]:
            assert all(not np.array_equal(*x) for x in zip(*map(jax.tree.leaves, (before, after)), strict=True))
        else:
            assert_identical(before, after)


def test_role_changes_do_not_recompile(toy, config):
    stepper = Stepper(build_run(config, toy))
    traces = []

    def iterate(*args):
        traces.append(1)
        return stepper.run.method.iterate(*args)

    counted = parallel.DataParallel(make_train_step(stepper.run.setup, iterate), stepper.run.devices, donate=True)
    state, roles = stepper.init(), set()
    for indices in batches(12, 16, 90):
        before = np.asarray(state.totals["promoted"])
        state = counted(state, stepper.data, parallel.shard(indices, 1))
        roles.add(int(np.argmax(np.asarray(state.totals["promoted"]) - before)))
    assert len(roles) > 1, "the test needs a role change to mean anything"
    assert len(traces) == 1


def test_bfloat16_trains_with_float32_state(toy, config):
    config.dtype = "bfloat16"
    stepper = stepper_of(config, toy)
    state = run_steps(stepper)
    program = stepper.train_step.lower(state, stepper.data, parallel.shard(batches(1, 16, 90)[0], 1)).as_text()
    convolutions = [line for line in program.splitlines() if "stablehlo.convolution" in line]
    assert convolutions and all("bf16" in line and "f32" not in line for line in convolutions)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.stacks)} == {jnp.dtype("float32")}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.stacks))


def test_learning_rate_multiplier_of_an_architecture(toy, config):
    config.method, config.weight_decay = "independent", 0.0
    full = stepper_of(config, toy)
    config.lr_multipliers = "tiny_b=0.25"
    quarter = stepper_of(config, toy)
    start, a, b = full.init(), run_steps(full, 1), run_steps(quarter, 1)
    for i, factor in enumerate((1.0, 0.25, 1.0, 0.25)):
        before, at_full, at_quarter = (full.member(state, i).params["fc.kernel"] for state in (start, a, b))
        np.testing.assert_allclose(at_quarter - before, factor * (at_full - before), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("num_devices", [1, 4])
def test_evaluation_counts_every_example_once(toy, config, num_devices):
    """30 examples in batches of 16: the last is padded. Against NumPy on the members one by one."""
    stepper = stepper_of(config, toy, num_devices)
    run = stepper.run
    state = run_steps(stepper)
    result = evaluator(run)(state.stacks)
    assert result["examples"] == 30
    images = jnp.asarray((toy.test.images / 255.0 - toy.mean[0]) / toy.std[0], jnp.float32)
    probs = []
    for i, row in enumerate(result["members"]):
        member = stepper.member(state, i)
        network = next(s.network for s in run.setup.pool.stacks if i in s.members)
        logits = np.asarray(network.predict(member.params, member.batch_stats, images)[0], np.float64)
        probs.append(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
        np.testing.assert_allclose(row["top1"], (logits.argmax(1) == toy.test.labels).mean())
        np.testing.assert_allclose(row["loss"], -np.log(probs[-1][np.arange(30), toy.test.labels]).mean(), rtol=1e-4)
        assert row["top5"] == 1.0
    mean = np.mean(probs, axis=0)
    np.testing.assert_allclose(result["ensemble"]["top1"], (mean.argmax(1) == toy.test.labels).mean())
    np.testing.assert_allclose(
        result["ensemble"]["loss"], -np.log(mean[np.arange(30), toy.test.labels]).mean(), rtol=1e-4
    )
    assert result["target_student"] == result["members"][3]


def test_nan_logits_count_as_wrong(toy, config):
    stepper = stepper_of(config, toy)
    state = stepper.init()
    stacks = jax.tree.map(lambda x: jnp.full_like(x, float("nan")), state.stacks)
    evaluate = parallel.DataParallel(make_evaluation_step(stepper.run.setup, None), stepper.run.devices, donate=False)
    batch = (np.arange(16, dtype=np.int32)[None], np.ones((1, 16), np.float32))
    result = evaluate(stacks, jax.device_put(Images(*toy.test), stepper.run.sharding), batch)
    assert result.top1.sum() == 0 and result.count == 16


def compiled_program(method="orc"):
    """Of a pool of ResNet-8s, on images large enough for XLA not to exchange a convolution's operands."""
    images = Images(np.zeros((90, 32, 32, 3), np.uint8), np.zeros(90, np.int32))
    photos = Dataset("photos", images, images, ("a", "b", "c"), (32, 32, 3), (0.5,) * 3, (0.25,) * 3)
    config = default()
    config.method, config.teacher, config.student, config.num_networks = method, "resnet8", "resnet8", 3
    config.batch_size, config.crop_padding = 16, 1
    stepper = Stepper(build_run(config, photos))
    return stepper.train_step.compile(stepper.init(), stepper.data, parallel.shard(batches(1, 16, 90)[0], 1)).as_text()


def computations(hlo):
    """The lines of each computation of a compiled program."""
    found, name = {}, None
    for line in hlo.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.-]+) .*{$", line):
            name = header[1]
            found[name] = []
        elif name:
            found[name].append(line)
    return found


def slow_convolutions(hlo):
    """What XLA:CPU takes long over: grouped convolutions, other layouts than one (it brings those outside of loops and
    branches into it), and the extra dimension that it gives to batch-grouped gradients."""
    convolutions = [line for line in hlo.splitlines() if " convolution(" in line]
    assert convolutions
    fast = "dim_labels=b01f_01io->b01f"
    return [line for line in convolutions if "group_count" in line or not re.search(fast + r"(,|$)", line)]


def transposed_chains(hlo):
    """Computations that normalise images and change their layout in one go, once more for every use."""
    large = re.compile(r"f32\[(\d+,){3,4}\d+\]\S* (\w+)\(")
    chains = []
    for name, lines in computations(hlo).items():
        ops = {match[2] for match in map(large.search, lines) if match}
        if "transpose" in ops and ops & {"multiply", "maximum"}:
            chains.append(name)
    return chains


def given_to_ynnpack(hlo):
    """Convolutions that XLA:CPU hands to YNNPACK for themselves; a reduction may still take one in with it."""
    found = computations(hlo)
    fusions = [re.search(r"calls=%?([\w.-]+)", line)[1] for line in hlo.splitlines() if "__ynn_fusion" in line]
    return [line for name in fusions for line in found[name] if "ROOT" in line and " convolution(" in line]


cpu_only = pytest.mark.skipif(jax.default_backend() != "cpu", reason="what is bad on a GPU is another matter")


@cpu_only
def test_the_compiled_step_has_nothing_slow():
    hlo = compiled_program()
    assert not slow_convolutions(hlo)
    assert not transposed_chains(hlo)
    assert not given_to_ynnpack(hlo)


@cpu_only
def test_the_checks_would_notice(monkeypatch):
    with monkeypatch.context() as without:
        without.setattr(parallel, "COMPILER_OPTIONS", {})
        assert given_to_ynnpack(compiled_program(method="independent"))
    monkeypatch.setattr(layers, "conv_general_dilated", jax.lax.conv_general_dilated)
    hlo = compiled_program(method="independent")
    assert slow_convolutions(hlo)
    assert transposed_chains(hlo)

    @jax.jit
    def looped(x, w):
        conv = lambda x: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME")  # noqa: E731
        return jax.lax.fori_loop(0, 3, lambda _, x: conv(x), x)

    assert slow_convolutions(looped.lower(jnp.ones((2, 4, 8, 8)), jnp.ones((4, 4, 3, 3))).compile().as_text())


def test_permuting_members_permutes_the_roles():
    losses = jax.random.normal(jax.random.key(0), (6,))
    order = jnp.array([3, 1, 5, 0, 2, 4])
    np.testing.assert_array_equal(top_k_mask(losses, 2)[order], top_k_mask(losses[order], 2))
