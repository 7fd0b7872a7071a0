"""Decision rules and targets of the methods against numbers by hand and NumPy, collapse laws, and bad input."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax import models
from orc_jax.config import default, members, validate
from orc_jax.errors import UserError
from orc_jax.methods import METHODS
from orc_jax.methods.base import rampup
from orc_jax.methods.dgkd import keep_guides
from orc_jax.methods.kdcl import linear, minlogit, naive
from orc_jax.methods.okddip import mixtures
from orc_jax.methods.switokd import switches
from orc_jax.pool import make_network, take_member
from tests.helpers import assert_close, assert_identical, batches, stepper_of

ALONE = SimpleNamespace(mean=lambda x: x)  # the context of one device


def log(x):
    return jnp.log(jnp.array(x))


def test_switokd_threshold_golden():
    # One sample of class 0. Teacher (3 1)/4, student (1 3)/4: G = 1/2 + 1/2, t = 2/4, s = 6/4.
    logits = log([[[3.0, 1.0]], [[1.0, 3.0]]])
    gap, threshold, leads = switches(ALONE, logits, jnp.array([0]), 1)
    np.testing.assert_allclose(gap, [[1.0]], rtol=1e-6)
    np.testing.assert_allclose(threshold, [[1.5 - np.exp(-0.25) * 0.5]], rtol=1e-6)  # 1.11: learning mode
    assert leads.all()
    # The other way round t = 6/4, s = 2/4: the threshold is below the gap, but the teacher does not lead.
    gap, threshold, leads = switches(ALONE, logits[::-1], jnp.array([0]), 1)
    np.testing.assert_allclose(threshold, [[0.5 - np.exp(-0.75) * 1.5]], rtol=1e-6)
    assert (gap > threshold).all() and not leads.any()


def test_switokd_threshold_of_certain_networks_is_finite():
    logits = jnp.array([[[500.0, 0.0]], [[500.0, 0.0]]])
    gap, threshold, _ = switches(ALONE, logits, jnp.array([0]), 1)
    np.testing.assert_array_equal([gap, threshold], [[[0.0]], [[0.0]]])


def test_switokd_every_pair_has_its_own_switch():
    logits = jax.random.normal(jax.random.key(0), (4, 6, 3))
    labels = jnp.arange(6) % 3
    together = switches(ALONE, logits, labels, 2)
    for i, j in itertools.product(range(2), range(2)):
        alone = switches(ALONE, logits[jnp.array([i, 2 + j])], labels, 1)
        for x, y in zip(together, alone, strict=True):
            np.testing.assert_allclose(x[i, j], y[0, 0], rtol=1e-5)


@pytest.mark.parametrize("statistics", ["moved", "kept"])
def test_a_paused_teacher_keeps_parameters_and_optimizer_state(statistics, config, toy):
    config.method, config.teacher, config.assistants, config.student = "switokd", "tiny_a", "", "tiny_b"
    config.num_networks, config.switokd.paused_statistics = 2, statistics
    stepper = stepper_of(config, toy)
    start = stepper.init()
    for name, factor in (("tiny_a", 30.0), ("tiny_b", 3.0)):  # networks that are sure of what they say
        stack = start.stacks[name]
        kernel = stack.params["fc.kernel"] * factor
        start.stacks[name] = stack.replace(params=stack.params | {"fc.kernel": kernel})
    ends = [stepper(start, indices) for indices in batches(8, 16, 90)]
    end = next(end for end in ends if np.asarray(end.totals["expert_mode"])[0])
    before, after = stepper.member(start, 0), stepper.member(end, 0)
    assert_identical((before.params, before.opt_state), (after.params, after.opt_state))
    kept = np.array_equal(before.batch_stats["bn1.mean"], after.batch_stats["bn1.mean"])
    assert kept == (statistics == "kept")
    assert not np.array_equal(stepper.member(start, 1).params["fc.bias"], stepper.member(end, 1).params["fc.bias"])


@pytest.mark.parametrize(("count", "drop", "kept"), [(4, 1, 3), (4, 3, 1), (3, 9, 1), (2, 0, 2), (1, 1, 1)])
def test_stochastic_teaching_keeps_the_right_number_of_guides(count, drop, kept):
    masks = np.stack([keep_guides(jax.random.key(i), count, drop) for i in range(40)])
    np.testing.assert_array_equal(masks.sum(1), kept)
    if 0 < kept < count:  # every guide is sometimes in and sometimes out
        assert ((masks.mean(0) > 0) & (masks.mean(0) < 1)).all()


def test_every_guide_is_dropped_equally_often():
    masks = jax.vmap(lambda key: keep_guides(key, 3, 1))(jax.random.split(jax.random.key(0), 3000))
    np.testing.assert_allclose(masks.mean(0), 2 / 3, atol=0.035)  # four standard deviations


def test_rampup_golden():
    values = [float(rampup(jnp.float32(p), 0.5)) for p in (0.0, 0.25, 0.5, 0.9)]
    np.testing.assert_allclose(values, [np.exp(-5.0), np.exp(-1.25), 1.0, 1.0], rtol=1e-6)
    assert float(rampup(jnp.float32(0.0), 0.0)) == 1.0  # no ramp


def test_kdcl_targets_golden():
    logits = jnp.array([[[1.0, 5.0, 2.0]], [[4.0, 3.0, 3.0]]])
    labels = jnp.array([0])
    np.testing.assert_allclose(naive(ALONE, logits, labels), [[2.5, 4.0, 2.5]])
    # minus the own logit of class 0: (0 4 1) and (0 -1 -1)
    np.testing.assert_allclose(minlogit(ALONE, logits, labels), [[0.0, -1.0, -1.0]])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kdcl_linear_finds_the_best_convex_combination(seed):
    logits = 3 * jax.random.normal(jax.random.key(seed), (2, 32, 5))
    labels = jnp.arange(32) % 5
    logits = logits.at[0].add(2 * jax.nn.one_hot(labels, 5))

    def loss(z):
        z = np.float64(z)
        return -(z[np.arange(32), labels] - np.log(np.exp(z).sum(1))).mean()

    best = min(loss(a * logits[0] + (1 - a) * logits[1]) for a in np.linspace(0, 1, 1001))
    np.testing.assert_allclose(loss(linear(ALONE, logits, labels)), best, atol=1e-3)


def test_okddip_mixtures_against_numpy():
    rng = np.random.default_rng(0)
    queries, keys, logits = (rng.normal(size=(3, 2, n)).astype(np.float32) for n in (4, 4, 5))
    result = mixtures(*map(jnp.array, (queries, keys, logits)))
    for i, b in itertools.product(range(3), range(2)):
        weights = np.exp([queries[i, b] @ keys[j, b] for j in range(3)])
        expected = sum(w * logits[j, b] for j, w in enumerate(weights)) / weights.sum()
        np.testing.assert_allclose(result[i, b], expected, rtol=1e-4)


def last_of(config, toy, method, teacher, assistants, student, **options):
    """The target student after two steps."""
    config = config.copy_and_resolve_references()
    config.method, config.teacher, config.assistants, config.student = method, teacher, assistants, student
    config.num_networks = 1 if teacher is None else 2 + len(list(filter(None, assistants.split(","))))
    config.teacher = teacher or student
    config[method].update(options)
    stepper = stepper_of(config, toy)
    state = stepper.init()
    for indices in batches(2, 16, 90):
        state = stepper(state, indices)
    pool = stepper.run.setup.pool
    member = take_member(pool, {name: state.stacks[name] for name in pool.architectures}, pool.size - 1)
    return member.params, member.batch_stats


def test_collapse_laws(config, toy, monkeypatch):
    """Methods that become one another, and independent training where nobody guides."""
    monkeypatch.setitem(models.LAST_STAGE, "tiny_b", ("conv1", "bn1", "conv2", "fc"))  # PCL with nothing shared

    def of(*args, **options):
        return last_of(config, toy, *args, **options)

    distilled = of("kd", "tiny_a", "", "tiny_b", temperature=5.0, alpha=0.5)
    for method in ("dgkd", "takd"):  # one source
        assert_close(of(method, "tiny_a", "", "tiny_b", lam=0.5), distilled, rtol=1e-5, atol=1e-6)
    alone = of("independent", None, "", "tiny_b")
    nobody_guides = {
        "kd": of("kd", "tiny_a", "", "tiny_b", alpha=0.0),
        "dgkd": of("dgkd", "tiny_a", "tiny_b", "tiny_b", lam=0.0),
        "kdcl": of("kdcl", "tiny_a", "", "tiny_b", lam=0.0),
        "okddip": of("okddip", "tiny_a", "tiny_a", "tiny_b", weight=0.0),
    }
    for method, student in nobody_guides.items():
        assert_close(student, alone, rtol=1e-5, atol=1e-6), method
    with pytest.raises(AssertionError):
        assert_close(distilled, alone, rtol=1e-5, atol=1e-6)
    # Two networks: SwitOKD in learning mode is DML, for a teacher that never leads by that much.
    assert_close(of("switokd", "tiny_a", "", "tiny_b"), of("dml", "tiny_a", "", "tiny_b"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "options", "text"),
    [
        ("kd", {"temperature": 0.0}, "config.kd.temperature=0.0: must be greater than 0"),
        ("kd", {"alpha": 1.5}, "config.kd.alpha=1.5: must be between 0 and 1"),
        ("dgkd", {"drop": -1}, "config.dgkd.drop=-1"),
        ("dgkd", {"kl_reduction": "batchmean"}, "config.dgkd.kl_reduction='batchmean' is not known.*sum, mean"),
        ("takd", {"lam": -0.1}, "config.takd.lam=-0.1"),
        ("switokd", {"num_teachers": 5}, "config.switokd.num_teachers=5: must be at least 1, and less than"),
        ("switokd", {"paused_statistics": "move"}, "Did you mean moved?"),
        ("kdcl", {"target": "general"}, "config.kdcl.target='general' is not known"),
        ("kdcl", {"lam": -1.0}, "config.kdcl.lam"),
        ("dml", {"temperature": -1.0}, "config.dml.temperature"),
        ("okddip", {"projection_divisor": 0}, "config.okddip.projection_divisor"),
        ("okddip", {"rampup_fraction": 2.0}, "config.okddip.rampup_fraction=2.0: must be between 0 and 1"),
        ("pcl", {"ema_decay": 1.0}, "config.pcl.ema_decay=1.0"),
        ("pcl", {}, "must be of one architecture, but the pool is resnet56.*--config.assistants=copies"),
    ],
)
def test_options_out_of_range(method, options, text):
    config = default()
    config.method = method
    config[method].update(options)
    with pytest.raises(UserError, match=f"(?s){text}"):
        validate(config, 1)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("independent", "orc")])
def test_pools_that_are_too_small(method):
    config = default()
    config.method, config.num_networks = method, 1
    with pytest.raises(UserError, match=f"config.num_networks=1: {method} needs at least"):
        validate(config, 1)


def test_networks_without_a_known_last_stage_cannot_be_peers():
    config = default()
    config.method, config.teacher, config.student, config.assistants = "pcl", "plane4", "plane4", "copies"
    with pytest.raises(UserError, match=r"config.student='plane4' is not known.*Accepted: resnet8"):
        validate(config, 1)


def test_a_method_from_scratch_refuses_a_pivot_teacher():
    config = default()
    config.method, config.pivot_checkpoint = "dml", "somewhere"
    with pytest.raises(UserError, match=r"config.pivot_checkpoint='somewhere'.*trains all members from scratch"):
        validate(config, 1)


def test_every_last_stage_splits_its_network():
    """Names of parts that no longer exist would share everything, or nothing."""
    first = {}
    for name, parts in models.LAST_STAGE.items():
        first.setdefault(parts, name)
    for parts, name in first.items():
        network = make_network(name, 10, (32, 32, 3), "float32", None)
        params, _ = jax.eval_shape(network.init, jax.random.key(0))
        for part in parts:
            assert any(param.startswith(f"{part}.") for param in params), (name, part)
        assert any(not param.startswith(tuple(f"{part}." for part in parts)) for param in params), name


@pytest.mark.parametrize("method", METHODS)
def test_the_default_pool_of_every_method_is_described(method):
    config = default()
    config.method = method
    if method == "pcl":
        config.teacher = config.student
        config.assistants = "copies"
    made = METHODS[method](members(config))
    assert len(made.roles) == 5 and made.roles[-1] == "target student"
    assert set(made.shares) <= set(made.metrics)
    assert set(made.frozen) <= {member for stage in made.stages for member in stage.members} <= set(range(5))
