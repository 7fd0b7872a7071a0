"""ORC: its parts against numbers by hand, whole iterations against PyTorch, and its options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax.defaults import options_of
from orc_jax.errors import UserError
from orc_jax.methods.orc import mix_ratio, orc, teacher_group, teaching_loss
from orc_jax.testing import assert_close, assert_identical, batches
from tests.helpers import stepper_of
from tests.methods import torch_methods
from tests.methods.comparison import compared, method_key

T, F = True, False

# Options of the method, and the same of the PyTorch loop; where that says nothing, it does as the paper does.
VARIANTS = {
    "default": ({}, {}),
    "other numbers": (
        {
            "temporary_teacher_logits": "before",
            "temperature": 2.0,
            "beta": 0.3,
            "mixup_alpha": 0.5,
            "feedback_fraction": 0.4,
            "pivot_batch_norm": "batch",
            "pivot_lr_multiplier": 0.5,
        },
        {"order": "before", "temperature": 2.0, "beta": 0.3, "fraction": 0.4, "pivot_statistics": "batch"},
    ),
    "two temporary teachers, ensemble, feedback samples": (
        {
            "num_temporary_teachers": 2,
            "teaching": "ensemble",
            "intensive_samples": "feedback",
            "feedback_fraction": 0.7,
            "feedback_rule": "misclassified",
        },
        {"k": 2, "teaching": "ensemble", "fraction": 0.7, "rule": "misclassified"},
    ),
    "fixed temporary teachers": ({"role_change": False}, {"fixed": (1,)}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_against_pytorch(config, toy, variant):
    options, theirs = VARIANTS[variant]
    config.orc.update(options)
    both = compared(config, toy)
    rate = options.get("pivot_lr_multiplier", 0.1) * config.learning_rate
    pivot_optimizer = both.optimizer(both.nets[0].parameters(), rate)
    alpha = options.get("mixup_alpha", 1.0)
    promoted, shares, pivot_losses = np.zeros(both.size), np.zeros(both.size), 0.0
    for step, views, y in both:
        key = method_key(step)
        lam = float(jax.random.uniform(key) if alpha == 1 else jax.random.beta(key, alpha, alpha))
        lam = 0.0 if "intensive_samples" in options else lam
        result = torch_methods.orc(both.nets, both.optimizers, pivot_optimizer, views[0], y, lam, **theirs)
        for i in result["promoted"]:
            promoted[i] += 1
        for i, count in result["handed_back"].items():
            shares[i] += count / sum(result["handed_back"].values())
        pivot_losses += result["pivot_loss"]
    both.scores["loss"][0] = pivot_losses  # as it teaches, after intensive teaching
    both.scores["accuracy"][0] = both.state.totals["accuracy"][0]
    both.check()
    np.testing.assert_array_equal(both.state.totals["promoted"], promoted)
    np.testing.assert_allclose(both.state.totals["feedback_share"], shares, rtol=1e-6)


def test_teacher_group_individual():
    logits_p, logits_t = jnp.full((1, 2, 3), 7.0), jnp.arange(18.0).reshape(3, 2, 3)
    promoted = jnp.array([F, T, F])
    sources, guidance = teacher_group(logits_p, logits_t, promoted, promoted, "individual")
    # Columns: pivot teacher, students 0 to 2. The promoted learns from the pivot teacher, the rest from both.
    np.testing.assert_array_equal(guidance, [[1, 0, 1, 0], [1, 0, 0, 0], [1, 0, 1, 0]])
    np.testing.assert_array_equal(sources[0], logits_p[0])
    np.testing.assert_array_equal(sources[2], logits_t[1])
    # Two temporary teachers add up; nobody is promoted where they are fixed, and all learn from both.
    _, guidance = teacher_group(logits_p, logits_t, jnp.array([T, F, T]), jnp.array([T, F, T]), "individual")
    np.testing.assert_array_equal(guidance, [[1, 0, 0, 0], [1, 1, 0, 1], [1, 0, 0, 0]])
    _, guidance = teacher_group(logits_p, logits_t[:2], jnp.array([T, T]), jnp.array([F, F, F]), "individual")
    np.testing.assert_array_equal(guidance, [[1, 1, 1]] * 3)


def test_teacher_group_ensemble():
    logits_p, logits_t = jnp.full((1, 1, 2), 3.0), jnp.array([[[9.0, 0.0]], [[0.0, 3.0]], [[float("nan")] * 2]])
    promoted = jnp.array([T, T, F])
    sources, guidance = teacher_group(logits_p, logits_t, promoted, promoted, "ensemble")
    np.testing.assert_array_equal(guidance, [[1, 0], [1, 0], [0, 1]])
    np.testing.assert_allclose(sources, [[[3.0, 3.0]], [[4.0, 2.0]]])  # mean of (3 3), (9 0), (0 3)


def test_teaching_loss_golden():
    # T = 1, two classes. Student: p = (1, 1)/2. Sources: (1, 3)/4 and (3, 1)/4; both KL are log 2 - H.
    kl = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)
    sources = jnp.log(jnp.array([[[1.0, 3.0]], [[3.0, 1.0]]]))
    guidance = jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    loss = teaching_loss(jnp.zeros((3, 1, 2)), jnp.array([1]), sources, guidance, 1.0, 0.25)
    ce = np.log(2.0)
    # One source, two sources (they add up), and none: the label alone, with weight 1.
    np.testing.assert_allclose(loss[:, 0], [0.75 * ce + 0.25 * kl, 0.75 * ce + 0.25 * 2 * kl, ce], rtol=1e-5)


def test_gradient_of_one_students_loss_with_respect_to_another_is_zero():
    logits = jax.random.normal(jax.random.key(0), (3, 4, 5))
    promoted = jnp.array([F, T, F])

    def loss_of(i, logits):
        sources, guidance = teacher_group(logits[:1], logits, promoted, promoted, "individual")
        return teaching_loss(logits, jnp.zeros(4, int), sources, guidance, 4.0, 0.5)[i].sum()

    for i in range(3):
        gradient = jax.grad(loss_of, argnums=1)(i, logits)
        np.testing.assert_array_equal(np.delete(gradient, i, axis=0), 0.0)
        assert np.abs(gradient[i]).max() > 0


def one_step(config, toy):
    stepper = stepper_of(config, toy)
    start = stepper.init()
    return stepper, *jax.device_get((start, stepper(start, batches(1, 16, 90)[0])))


def one_independent_step(config, toy):
    config.method = "independent"
    config.orc.update(options_of(orc))  # so that all tests share one program
    return one_step(config, toy)


def test_fixed_temporary_teachers_never_change_and_are_never_promoted(config, toy):
    config.orc.role_change = False
    stepper, start, end = one_step(config, toy)
    assert [stage.members for stage in stepper.run.method.stages] == [(0, 1)] and stepper.run.method.frozen == (1,)
    assert_identical(stepper.member(end, 1), stepper.member(start, 1))
    assert np.asarray(end.totals["promoted"]).sum() == 0
    with pytest.raises(AssertionError):
        assert_identical(stepper.member(end, 2), stepper.member(start, 2))


def test_all_teachings_off_is_independent_training_of_the_students(config, toy):
    """A collapse law: with nobody guiding, each student takes the step of cross-entropy training. The pivot teacher
    stays as it is."""
    config.orc.intensive_teaching = config.orc.private_teaching = config.orc.group_teaching = False
    stepper, start, end = one_step(config, toy)
    assert_identical(stepper.member(end, 0), stepper.member(start, 0))
    other, _, expected = one_independent_step(config, toy)
    for i in range(1, 4):
        assert_close(stepper.member(end, i), other.member(expected, i), rtol=1e-5, atol=1e-6)


def test_a_teaching_that_is_off_changes_its_learners_alone(config, toy):
    config.orc.temporary_teacher_logits = "before"
    stepper, _, taught = one_step(config, toy)
    (promoted,) = np.flatnonzero(np.asarray(taught.totals["promoted"]))
    for teaching in ("private_teaching", "group_teaching"):
        config.orc[teaching] = False
        _, _, untaught = one_step(config, toy)
        config.orc[teaching] = True
        for i in range(1, 4):
            a, b = (stepper.member(state, i).params["fc.bias"] for state in (taught, untaught))
            assert np.array_equal(a, b) == ((i == promoted) == (teaching == "group_teaching"))


def test_intensive_samples(config, toy):
    """Training samples alone are cross-entropy training of the pivot teacher; feedback samples alone are not."""
    config.orc.pivot_lr_multiplier = 1.0
    ends = {}
    for samples in ("feedback", "training"):
        config.orc.intensive_samples = samples
        stepper, _, ends[samples] = one_step(config, toy)
    other, _, expected = one_independent_step(config, toy)
    assert_close(stepper.member(ends["training"], 0), other.member(expected, 0), rtol=1e-5, atol=1e-6)
    fed, trained = (stepper.member(ends[samples], 0).params["fc.bias"] for samples in ("feedback", "training"))
    assert np.abs(fed - trained).max() > 1e-4


def test_a_diverged_student_is_never_promoted_and_spoils_nobody(config, toy):
    stepper = stepper_of(config, toy)
    state = stepper.init()
    stack = state.stacks["tiny_b"]  # members 1 and 3
    state.stacks["tiny_b"] = stack.replace(
        params=stack.params | {"fc.bias": stack.params["fc.bias"].at[0].set(float("nan"))}
    )
    for indices in batches(3, 16, 90):
        state = stepper(state, indices)
    assert np.asarray(state.totals["promoted"])[1] == 0
    assert np.asarray(state.totals["feedback_share"])[1] == 0
    for i in (0, 2, 3):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(stepper.member(state, i)))


def test_mix_ratio():
    """Beta(alpha, alpha): mean 1/2, variance 1 / (4 (2 alpha + 1)); nothing is drawn for one kind of samples alone."""
    keys = jax.random.split(jax.random.key(0), 4000)
    for alpha in (0.5, 1.0, 4.0):
        ratios = jax.vmap(lambda key, alpha=alpha: mix_ratio(key, "mixup", alpha))(keys)
        np.testing.assert_allclose(ratios.mean(), 0.5, atol=0.025)
        np.testing.assert_allclose(ratios.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.08)
        assert [mix_ratio(keys[0], samples, alpha) for samples in ("training", "feedback")] == [1.0, 0.0]


@pytest.mark.parametrize(("fraction", "size"), [(1.0, 16), (0.5, 8), (0.4, 6), (0.47, 8), (0.001, 1)])
def test_how_much_is_handed_back(fraction, size):
    losses = jax.random.uniform(jax.random.key(0), (3, 16))
    shares, indices = orc(["a"] * 4, feedback_fraction=fraction).hand_back(losses, losses > 2.0)
    assert shares.sum() == size and indices.shape == (size,)
    assert indices[0] == losses[int(np.flatnonzero(shares)[0])].argmax()


def test_k_must_be_below_the_student_group():
    assert orc(["a"] * 4, num_temporary_teachers=2).spares == 1
    text = "less than the 2 networks of the student group; config.num_networks=3 would have to be at least 4"
    with pytest.raises(UserError, match=f"config.num_temporary_teachers=2: must be {text}"):
        orc(["a"] * 3, num_temporary_teachers=2)
