"""SwitOKD: when a teacher pauses, what it keeps meanwhile, and who learns from whom."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax.errors import UserError
from orc_jax.methods.switokd import switches, switokd
from orc_jax.testing import assert_identical, batches
from tests.helpers import stepper_of
from tests.methods import torch_methods
from tests.methods.comparison import compared, use

ALONE = SimpleNamespace(mean=lambda x: x)  # the context of one device

SWITCHES = {
    # Members, factors on their classifiers (networks that are so sure get into both modes), and options.
    "1T1S": (("tiny_a", "", "tiny_b"), (30.0, 3.0), {"num_teachers": 1}),
    "2T1S": (
        ("tiny_a", "tiny_a", "tiny_b"),
        (30.0, 30.0, 3.0),
        {"num_teachers": 2, "paused_statistics": "kept"},
    ),
    "1T2S": (("tiny_a", "tiny_b", "tiny_b"), (30.0, 1.0, 10.0), {"num_teachers": 1}),
    "1T2S as in the code": (
        ("tiny_a", "tiny_b", "tiny_b"),
        (30.0, 1.0, 10.0),
        {"num_teachers": 1, "exponent": "code", "paused_step": "zero_loss"},
    ),
    "2T1S as in the code": (("tiny_a", "tiny_a", "tiny_b"), (30.0, 3.0, 3.0), {"num_teachers": 2, "exponent": "code"}),
    "a teacher that need not lead": (
        ("tiny_a", "tiny_b", "tiny_b"),
        (3.0, 30.0, 10.0),
        {"num_teachers": 1, "temperature": 2.0, "teacher_must_lead": False},
    ),
}


def scaled(factors):
    """Multiplies each member's classifier by a factor: networks that are sure of what they say."""

    def change(stepper, state):
        stacks = dict(state.stacks)
        for stack in stepper.run.spec.stacks:
            params = stacks[stack.name].params
            factor = jnp.array([factors[member] for member in stack.members])[:, None, None]
            stacks[stack.name] = stacks[stack.name].replace(params=params | {"fc.kernel": params["fc.kernel"] * factor})
        return state.replace(stacks=stacks)

    return change


@pytest.mark.parametrize("topology", SWITCHES)
def test_against_pytorch(config, toy, topology):
    members, factors, options = SWITCHES[topology]
    use(config, "switokd", *members, **options)
    both = compared(config, toy, scaled(factors))
    modes, others, totals = [], [], np.zeros(both.size)
    for _, views, y in both:
        expert, other = torch_methods.switokd(both.nets, both.optimizers, views, y, **options)
        modes.append(tuple(expert.values()))
        others.append(tuple(other.values()))
        for i in range(both.size):
            totals[i] += np.mean([mode for pair, mode in expert.items() if i in pair])
    both.check()
    np.testing.assert_allclose(both.state.totals["expert_mode"], totals, rtol=1e-6)
    assert len(set(sum(modes, ()))) == 2, "the test needs both modes to mean anything"
    if topology != "1T1S":
        assert any(len(set(pairs)) == 2 for pairs in modes), "and pairs that differ"
    if "teacher_must_lead" in options:
        assert modes != others, "and a teacher that does not lead"


@pytest.mark.parametrize("statistics", ["moved", "kept"])
def test_a_paused_teacher_keeps_parameters_and_optimizer_state(statistics, config, toy):
    use(config, "switokd", "tiny_a", "", "tiny_b", paused_statistics=statistics)
    stepper = stepper_of(config, toy)
    start = scaled((30.0, 3.0))(stepper, stepper.init())
    ends = [stepper(start, indices) for indices in batches(8, 16, 90)]
    end = next(end for end in ends if np.asarray(end.totals["expert_mode"])[0])
    before, after = stepper.member(start, 0), stepper.member(end, 0)
    assert_identical((before.params, before.opt_state), (after.params, after.opt_state))
    kept = np.array_equal(before.batch_stats["bn1.mean"], after.batch_stats["bn1.mean"])
    assert kept == (statistics == "kept")
    assert not np.array_equal(stepper.member(start, 1).params["fc.bias"], stepper.member(end, 1).params["fc.bias"])


def log(x):
    return jnp.log(jnp.array(x))


def test_threshold_golden():
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


def test_threshold_of_certain_networks_is_finite():
    logits = jnp.array([[[500.0, 0.0]], [[500.0, 0.0]]])
    gap, threshold, _ = switches(ALONE, logits, jnp.array([0]), 1)
    np.testing.assert_array_equal([gap, threshold], [[[0.0]], [[0.0]]])


def test_equal_networks_do_not_lead():
    logits = log([[[3.0, 1.0]], [[3.0, 1.0]]])
    _, _, leads = switches(ALONE, logits, jnp.array([0]), 1)
    assert not leads.any()


def test_the_exponent_of_the_authors_code():
    """1T2S: both have the gaps of the second student; 2T1S: both have those of the first teacher."""
    logits, labels = jax.random.normal(jax.random.key(1), (3, 6, 4)), jnp.arange(6) % 4
    probs = np.asarray(jax.nn.softmax(logits))
    d = np.abs(probs - np.eye(4)[labels]).sum(-1).mean(-1)
    _, threshold, _ = switches(ALONE, logits, labels, 1, "code")
    np.testing.assert_allclose(threshold, [d[1:] - np.exp(-d[0] / (d[0] + d[2])) * d[0]], rtol=1e-5)
    _, threshold, _ = switches(ALONE, logits, labels, 2, "code")
    np.testing.assert_allclose(threshold, d[2] - np.exp(-d[0] / (d[0] + d[2])) * d[:2, None], rtol=1e-5)


def test_every_pair_has_its_own_switch():
    logits = jax.random.normal(jax.random.key(0), (4, 6, 3))
    labels = jnp.arange(6) % 3
    together = switches(ALONE, logits, labels, 2)
    for i, j in itertools.product(range(2), range(2)):
        alone = switches(ALONE, logits[jnp.array([i, 2 + j])], labels, 1)
        for x, y in zip(together, alone, strict=True):
            np.testing.assert_allclose(x[i, j], y[0, 0], rtol=1e-5)


def test_there_is_a_teacher_and_a_student():
    assert switokd(["a"] * 3, num_teachers=2).roles == ("teacher", "teacher", "target student")
    for num_teachers in (0, 3):
        with pytest.raises(
            UserError, match=f"config.switokd.num_teachers={num_teachers}: must be at least 1, and less"
        ):
            switokd(["a"] * 3, num_teachers=num_teachers)
