"""The training and the evaluation step of a pool: what a step sees, keeps and counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax import parallel, processor, verbs
from orc_jax.data.types import Images
from orc_jax.evaluate import evaluator
from orc_jax.methods import METHODS
from orc_jax.pool import Outputs, Pool
from orc_jax.step import Evaluation, init_state, make_evaluation_step, make_train_step, reset_totals
from orc_jax.testing import Stepper, assert_close, assert_identical, batches, build_run, run_steps
from tests.helpers import stepper_of

PLAIN = METHODS["independent"](["tiny_a"])


def test_a_pool_trains_as_its_members_one_by_one(toy, config):
    config.method = "independent"
    stepper = stepper_of(config, toy)
    state = run_steps(stepper)
    start = stepper.init()
    for i in range(2):
        one = stepper.pool(start).select([i])
        alone = Stepper(stepper.run._replace(setup=stepper.run.setup._replace(spec=one.spec)))
        initial = start.replace(stacks=one.stacks, totals={k: v[:1] for k, v in start.totals.items()})
        assert_close(alone.member(run_steps(alone, state=initial), i), stepper.member(state, i))


def test_every_step_has_images_and_a_key_of_its_own(toy, config):
    """Of one batch again and again: another augmentation and another key in every step and under every seed."""
    config.method, config.crop_padding, config.flip = "independent", 3, True
    run = build_run(config, toy, axis_name=None)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8, 8, 1)), jnp.float32)

    def iterate(context, pool, batch):
        np.testing.assert_equal(batch.images.shape, (16, 8, 8, 1))
        what = {"loss": (batch.images * weights).sum(), "accuracy": jax.random.uniform(context.key)}
        return pool, {name: jnp.full(4, value) for name, value in what.items()}

    train_step, data = jax.jit(make_train_step(run.setup, iterate)), jax.tree.map(jnp.asarray, toy.train)
    init = jax.jit(lambda seed: init_state(run.setup, run.method, seed))
    seen = []
    for seed in (0, 1, 1):
        state = init(seed)
        for at in range(3):
            assert int(state.step) == at and int(state.seed) == seed
            state = train_step(reset_totals(state), data, jnp.arange(16))
            seen.append((float(state.totals["loss"][0]), float(state.totals["accuracy"][0])))
    assert seen[3:6] == seen[6:]  # the same seed, the same run
    for values in zip(*seen[:6], strict=True):
        assert len(set(values)) == 6


def test_totals_add_up_until_they_are_reset(toy, config):
    """And the first step with a loss that is not finite is kept, whatever comes after it."""
    config.method = "independent"
    run = build_run(config, toy, axis_name=None)
    losses = jnp.array([[1.0, 2.0, 3.0, 4.0], [1.0, jnp.nan, 5.0, jnp.inf], [1.0, 2.0, jnp.nan, jnp.nan]])

    def iterate(context, pool, batch):
        return pool, {"loss": losses[context.step], "accuracy": jnp.ones(4), "not asked for": jnp.ones(4)}

    train_step, data = jax.jit(make_train_step(run.setup, iterate)), jax.tree.map(jnp.asarray, toy.train)
    state = init_state(run.setup, run.method, 0)
    for _ in range(3):
        state = train_step(state, data, jnp.arange(16))
    np.testing.assert_array_equal(state.diverged_at, [0, 2, 3, 2])
    np.testing.assert_array_equal(state.totals["loss"], losses.sum(0))
    assert state.totals.keys() == {"loss", "accuracy"}
    assert float(state.iterations) == 3 and (state.totals["accuracy"] == 3).all()
    state = reset_totals(state)
    assert float(state.iterations) == 0 and all((total == 0).all() for total in state.totals.values())
    np.testing.assert_array_equal(state.diverged_at, [0, 2, 3, 2])


def test_members_that_do_not_learn_keep_everything_bit_for_bit(toy, config):
    """With momentum built up and weight decay on, only a gate of the whole state keeps a member as it was."""
    config.method = "independent"
    stepper = stepper_of(config, toy)
    learns = jnp.array([True, False, False, True])

    def iterate(context, pool, batch):
        passed = verbs.forward(pool, context.normalize(batch.images))
        loss = lambda out: jnp.square(out.logits).mean(-1)  # noqa: E731
        return verbs.learn(context, passed, loss, learns=learns), {"loss": jnp.zeros(4), "accuracy": jnp.zeros(4)}

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


def test_bfloat16_trains_with_float32_state(toy, config, monkeypatch):
    monkeypatch.setattr(processor, "multiplies_bfloat16", lambda: True)
    config.dtype = "bfloat16"
    stepper = Stepper(build_run(config, toy))
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
    config.method = "independent"
    stepper = stepper_of(config, toy, num_devices)
    run = stepper.run
    state = run_steps(stepper)
    result = evaluator(run)(state.stacks)
    assert result["examples"] == 30
    images = jnp.asarray((toy.test.images / 255.0 - toy.mean[0]) / toy.std[0], jnp.float32)
    probs = []
    for i, row in enumerate(result["members"]):
        member = stepper.member(state, i)
        network = next(s.network for s in run.spec.stacks if i in s.members)
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


def test_of_equal_logits_the_first_is_the_answer(toy, config):
    """As in training: a network that tells nothing has the share of the first class, and no more."""
    stepper = stepper_of(config, toy)
    stacks = jax.tree.map(jnp.zeros_like, stepper.init().stacks)
    result = evaluator(stepper.run)(stacks)
    first = (toy.test.labels == 0).mean()
    for row in [*result["members"], result["ensemble"]]:
        assert row["top1"] == pytest.approx(first) and row["top5"] == 1.0


def test_nan_logits_count_as_wrong(toy, config):
    stepper = stepper_of(config, toy)
    state = stepper.init()
    stacks = jax.tree.map(lambda x: jnp.full_like(x, float("nan")), state.stacks)
    evaluate = parallel.DataParallel(make_evaluation_step(stepper.run.setup, PLAIN), stepper.run.devices, donate=False)
    batch = (np.arange(16, dtype=np.int32)[None], np.ones((1, 16), np.float32))
    result = evaluate(stacks, jax.device_put(Images(*toy.test), stepper.run.sharding), batch)
    assert result.top1.sum() == 0 and result.count == 16


class TenClasses:
    """A network whose logits are its images: 40 hand-made samples of ten classes."""

    @staticmethod
    def predict(params, batch_stats, images):
        logits = params["scale"] * images[:, 0, :, 0]
        return logits, logits[:, :2]


@pytest.mark.parametrize("weights", ["all", "some"])
def test_ranks_are_counted_as_numpy_counts_them(toy, config, weights):
    """Top-1, top-5 and loss of two members and of their ensemble on ten classes, with padding in the batch."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (40, 1, 10, 1), np.uint8), rng.integers(0, 10, 40)
    counts = np.ones(40) if weights == "all" else (np.arange(40) % 3 > 0).astype(float)
    run = build_run(config, toy, axis_name=None)
    spec = run.spec.select([1, 3])
    spec = spec._replace(stacks=tuple(stack._replace(network=TenClasses) for stack in spec.stacks))
    setup = run.setup._replace(spec=spec, mean=(0.5,), std=(0.25,))
    scales = np.array([3.0, -2.0])
    stacks = {"tiny_b": verbs.StackState(params={"scale": scales}, batch_stats={}, opt_state=())}
    data = Images(jnp.asarray(pixels), jnp.asarray(labels))
    found = make_evaluation_step(setup, PLAIN)(stacks, data, (np.arange(40), jnp.asarray(counts)))
    logits = scales[:, None, None] * ((pixels[:, 0, :, 0] / 255 - 0.5) / 0.25)[None]
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    probs = np.concatenate([probs, probs.mean(0, keepdims=True)])
    ranks = (np.argsort(-probs, axis=-1) == labels[None, :, None]).argmax(-1)
    losses = -np.log(np.take_along_axis(probs, labels[None, :, None], -1))[..., 0]
    sums = [(x * counts).sum(-1) for x in (ranks < 1, ranks < 5, losses)]
    for value, expected in zip(found, [*sums, counts.sum()], strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert ((ranks == 5) * counts).sum() > 0, "the test needs labels in the sixth place to mean anything"


def test_a_methods_own_ensemble_is_evaluated(toy, config):
    stepper = stepper_of(config, toy)
    state = stepper.init()

    def of_the_first(pool: Pool, out: Outputs):
        assert pool.stacks.keys() == state.stacks.keys()
        return out.logits[0]

    step = parallel.DataParallel(
        make_evaluation_step(stepper.run.setup, PLAIN._replace(ensemble=of_the_first)),
        stepper.run.devices,
        donate=False,
    )
    batch = (np.arange(16, dtype=np.int32)[None], np.ones((1, 16), np.float32))
    found: Evaluation = step(state.stacks, stepper.data, batch)
    for sums in found[:3]:
        np.testing.assert_allclose(sums[-1], sums[0], rtol=1e-6)
