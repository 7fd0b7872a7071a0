"""ORC: its parts against numbers by hand, and its options. Whole iterations are compared in test_methods."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax.errors import UserError
from orc_jax.methods.orc import orc, teacher_group, teaching_loss
from tests.helpers import assert_close, assert_identical, batches, stepper_of

T, F = True, False


def test_teacher_group_individual():
    logits_p, logits_t = jnp.full((1, 2, 3), 7.0), jnp.arange(18.0).reshape(3, 2, 3)
    promoted = jnp.array([F, T, F])
    sources, guidance = teacher_group(logits_p, logits_t, promoted, promoted, "individual")
    # Columns: pivot teacher, students 0 to 2. The promoted learns from the pivot teacher, the rest from both.
    np.testing.assert_array_equal(guidance, [[1, 0, 1, 0], [1, 0, 0, 0], [1, 0, 1, 0]])
    np.testing.assert_array_equal(sources[0], logits_p[0])
    np.testing.assert_array_equal(sources[2], logits_t[1])


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
    return stepper, start, stepper(start, batches(1, 16, 90)[0])


def test_intensive_teaching_off_leaves_the_pivot_teacher_as_it_is(config, toy):
    config.orc.intensive_teaching = False
    stepper, start, end = one_step(config, toy)
    assert_identical(stepper.member(end, 0), stepper.member(start, 0))


def test_fixed_temporary_teachers_never_change_and_are_never_promoted(config, toy):
    config.orc.role_change = False
    stepper, start, end = one_step(config, toy)
    assert [stage.members for stage in stepper.run.method.stages] == [(0, 1)] and stepper.run.method.frozen == (1,)
    assert_identical(stepper.member(end, 1), stepper.member(start, 1))
    assert np.asarray(end.totals["promoted"]).sum() == 0
    with pytest.raises(AssertionError):
        assert_identical(stepper.member(end, 2), stepper.member(start, 2))


def test_all_teachings_off_is_independent_training_of_the_students(config, toy):
    """A collapse law: with nobody guiding, each student takes the step of cross-entropy training."""
    config.orc.intensive_teaching = config.orc.private_teaching = config.orc.group_teaching = False
    stepper, _, end = one_step(config, toy)
    config.method = "independent"
    other, _, expected = one_step(config, toy)
    for i in range(1, 4):
        assert_close(stepper.member(end, i), other.member(expected, i), rtol=1e-5, atol=1e-6)


def test_private_teaching_off_changes_the_promoted_alone(config, toy):
    config.orc.temporary_teacher_logits = "before"
    stepper, _, taught = one_step(config, toy)
    config.orc.private_teaching = False
    _, _, untaught = one_step(config, toy)
    (promoted,) = np.flatnonzero(np.asarray(taught.totals["promoted"]))
    for i in range(1, 4):
        a, b = (stepper.member(state, i).params["fc.bias"] for state in (taught, untaught))
        assert np.array_equal(a, b) == (i != promoted)


def test_intensive_samples(config, toy):
    """Training samples alone are cross-entropy training of the pivot teacher; feedback samples alone are not."""
    config.orc.pivot_lr_multiplier = 1.0
    ends = {}
    for samples in ("feedback", "training"):
        config.orc.intensive_samples = samples
        stepper, _, ends[samples] = one_step(config, toy)
    config.method = "independent"
    other, _, expected = one_step(config, toy)
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


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"beta": 1.5}, "config.orc.beta=1.5: must be between 0 and 1"),
        ({"temperature": 0.0}, "config.orc.temperature"),
        ({"feedback_fraction": 0.0}, "config.orc.feedback_fraction"),
        ({"teaching": "individul"}, "Did you mean individual?"),
        ({"temporary_teacher_logits": "later"}, "Accepted: after, before"),
        ({"num_temporary_teachers": 0}, "num_temporary_teachers=0"),
    ],
)
def test_options_out_of_range(options, text):
    with pytest.raises(UserError, match=text):
        orc(["a"] * 4, **options)


def test_k_must_be_below_the_student_group():
    orc(["a"] * 4, num_temporary_teachers=2)
    with pytest.raises(UserError, match="less than the 2 networks of the student group"):
        orc(["a"] * 3, num_temporary_teachers=2)
