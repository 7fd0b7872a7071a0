"""ORC: its parts against numbers by hand, and whole iterations against a sequential version written from the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax.config import members
from orc_jax.errors import UserError
from orc_jax.methods.orc import orc, teacher_group, teaching_loss
from orc_jax.pool import make_network, take_member
from orc_jax.rngs import stream_key
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


class Sequential:
    """ORC one network at a time, with Python's `if` and `for`, as a reader of the paper would write it.

    It shares with the package the networks and the mix-up ratio's key, nothing else.
    """

    def __init__(self, run, state, k=1, beta=0.5, temperature=4.0, order="after", teaching="individual", pivot_lr=0.1):
        self.config, self.data = run.config, run.dataset
        self.k, self.beta, self.temperature, self.order, self.teaching = k, beta, temperature, order, teaching
        self.pivot_lr = pivot_lr
        names = members(run.config)
        shape = (run.dataset.num_classes, run.dataset.image_shape, "float32", None)
        self.nets = [make_network(name, *shape) for name in names]
        stacks = [take_member(run.setup.pool, state.stacks, i) for i in range(len(names))]
        self.params = [s.params for s in stacks]
        self.stats = [s.batch_stats for s in stacks]
        self.momenta = [jax.tree.map(jnp.zeros_like, p) for p in self.params]
        self.gradients = [jax.jit(jax.grad(self.loss_through(net), has_aux=True)) for net in self.nets]

    @staticmethod
    def loss_through(net):
        def loss(params, stats, images, targets):
            (logits, _), moved = net.train(params, stats, images)
            log_probs = lambda z: z - jnp.log(jnp.exp(z).sum(1, keepdims=True))  # noqa: E731
            total = 0.0
            for weight, probs, t in targets:
                # cross-entropy with soft targets: its gradient is that of KL
                total += weight * t**2 * -(probs * log_probs(logits / t)).sum(1).mean()
            return total, moved

        return loss

    def learn(self, i, images, targets, lr):
        gradient, moved = self.gradients[i](self.params[i], self.stats[i], images, targets)
        for name, g in gradient.items():
            g = g + self.config.weight_decay * self.params[i][name]
            self.momenta[i][name] = self.config.momentum * self.momenta[i][name] + g
            self.params[i] = self.params[i] | {name: self.params[i][name] - lr * self.momenta[i][name]}
        self.stats[i] = moved

    def logits(self, i, images, train):
        if train:
            return self.nets[i].train(self.params[i], self.stats[i], images)[0][0]
        return self.nets[i].predict(self.params[i], self.stats[i], images)[0]

    def softened(self, logits):
        z = logits / self.temperature
        return jnp.exp(z) / jnp.exp(z).sum(1, keepdims=True)

    def iteration(self, step, indices, lr):
        raw, labels = self.data.train.images[indices], self.data.train.labels[indices]
        images = jnp.asarray((raw / 255.0 - self.data.mean[0]) / self.data.std[0], jnp.float32)
        onehot = jnp.eye(self.data.num_classes)[labels]
        students = range(1, len(self.nets))
        # Evaluation.
        seen = {i: self.logits(i, images, train=True) for i in students}
        losses = {
            i: np.asarray(-jnp.log(jnp.exp(z)[np.arange(len(labels)), labels] / jnp.exp(z).sum(1)))
            for i, z in seen.items()
        }
        scores = {i: losses[i].mean() for i in students}
        promoted = sorted(students, key=lambda i: scores[i])[: self.k]
        rest = [i for i in students if i not in promoted]
        # Feedback samples.
        weights = np.exp([scores[i] for i in students])
        exact = len(labels) * weights / weights.sum()
        counts = np.floor(exact).astype(int)
        for j in np.argsort(counts - exact, kind="stable")[: len(labels) - counts.sum()]:
            counts[j] += 1
        handed = [s for i, n in zip(students, counts, strict=True) for s in np.argsort(-losses[i], kind="stable")[:n]]
        # Intensive teaching.
        lam = jax.random.beta(stream_key(0, "method", step), 1.0, 1.0)
        mixed = lam * images + (1 - lam) * images[np.array(handed)]
        self.learn(0, mixed, [(lam, onehot, 1.0), (1 - lam, onehot[np.array(handed)], 1.0)], self.pivot_lr * lr)
        pivot = self.logits(0, images, train=False)
        # Private teaching, then group teaching.
        label_term = (1 - self.beta, onehot, 1.0)
        for i in promoted:
            self.learn(i, images, [label_term, (self.beta, self.softened(pivot), self.temperature)], lr)
        now = {i: self.logits(i, images, train=True) if self.order == "after" else seen[i] for i in promoted}
        for i in rest:
            teachers = [pivot, *now.values()]
            if self.teaching == "ensemble":
                teachers = [sum(teachers) / len(teachers)]
            terms = [(self.beta, self.softened(z), self.temperature) for z in teachers]
            self.learn(i, images, [label_term, *terms], lr)
        return promoted


VARIANTS = {
    "default": {},
    "before": {"order": "before"},
    "two temporary teachers, ensemble": {"k": 2, "teaching": "ensemble"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_three_iterations_equal_the_sequential_version(variant, config, toy):
    options = VARIANTS[variant]
    config.num_temporary_teachers = options.get("k", 1)
    config.orc.temporary_teacher_logits = options.get("order", "after")
    config.orc.teaching = options.get("teaching", "individual")
    stepper = stepper_of(config, toy)
    state = stepper.init()
    sequential = Sequential(stepper.run, state, **options)
    for step, indices in enumerate(batches(3, 16, 90)):
        promoted_before = np.asarray(state.totals["promoted"])
        state = stepper(state, indices)
        promoted = sequential.iteration(step, indices, lr=config.learning_rate)
        assert np.flatnonzero(np.asarray(state.totals["promoted"]) - promoted_before).tolist() == sorted(promoted)
    for i in range(4):
        stack = stepper.member(state, i)
        assert_close(stack.params, sequential.params[i], rtol=1e-3, atol=1e-4)
        assert_close(stack.batch_stats, sequential.stats[i], rtol=1e-3, atol=1e-4)


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
    assert stepper.run.method.pretrained == (0, 1) and stepper.run.method.frozen == (1,)
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
        orc(**options)


def test_k_must_be_below_the_student_group():
    orc(num_temporary_teachers=2).check(["a"] * 4)
    with pytest.raises(UserError, match="less than the 2 networks of the student group"):
        orc(num_temporary_teachers=2).check(["a"] * 3)
