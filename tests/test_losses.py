"""Losses against numbers derived by hand, and the properties that training relies on."""

import jax
import jax.numpy as jnp
import numpy as np

from orc_jax.losses import correct, cross_entropy, distillation, guided_distillation, softened_kl

LOG = np.log


def test_cross_entropy_golden():
    # softmax(log 1, log 2, log 5) = (1, 2, 5) / 8
    logits = jnp.log(jnp.array([[[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]], [[4.0, 2.0, 2.0], [1.0, 1.0, 2.0]]]))
    expected = [[LOG(8 / 5), LOG(8 / 1)], [LOG(8 / 2), LOG(4 / 1)]]
    np.testing.assert_allclose(cross_entropy(logits, jnp.array([2, 0])), expected, rtol=1e-6)


def test_distillation_golden():
    # T = 2: softmax(2 log a / 2) is proportional to a. p_t = (1, 3) / 4, p_s = (1, 1) / 2.
    # T^2 KL = 4 (1/4 log(1/2) + 3/4 log(3/2)): summed over classes, not divided by their number.
    logits_t, logits_s = 2 * jnp.log(jnp.array([[1.0, 3.0]])), jnp.zeros((1, 2))
    expected = 4 * (0.25 * LOG(0.5) + 0.75 * LOG(1.5))
    np.testing.assert_allclose(distillation(logits_s, logits_t, 2.0), [expected], rtol=1e-6)


def test_distillation_gradient_golden():
    # d/dz_s T^2 KL = T (p_s - p_t)
    logits_t, logits_s = 2 * jnp.log(jnp.array([1.0, 3.0])), jnp.zeros(2)
    gradient = jax.grad(lambda z: distillation(z, logits_t, 2.0))(logits_s)
    np.testing.assert_allclose(gradient, [2 * (0.5 - 0.25), 2 * (0.5 - 0.75)], rtol=1e-6)


def test_softened_kl_has_gradients_to_both():
    """For networks that teach each other; the golden value of `distillation` is its value, too."""
    logits = jax.random.normal(jax.random.key(0), (2, 5))
    value, (to_s, to_t) = jax.value_and_grad(lambda s, t: softened_kl(s, t, 3.0), (0, 1))(*logits)
    np.testing.assert_allclose(value, distillation(*logits, 3.0), rtol=1e-6)
    np.testing.assert_allclose(to_s, jax.grad(lambda s: distillation(s, logits[1], 3.0))(logits[0]), rtol=1e-5)
    step = 1e-2 * jnp.eye(5)
    differences = [
        (softened_kl(logits[0], logits[1] + d, 3.0) - softened_kl(logits[0], logits[1] - d, 3.0)) / 2e-2 for d in step
    ]
    np.testing.assert_allclose(to_t, differences, atol=2e-4)
    assert np.abs(to_t).max() > 0.01


def test_sources_get_no_gradient():
    logits = jax.random.normal(jax.random.key(0), (3, 4, 5))
    everyone = jnp.ones((3, 3))
    gradient = jax.grad(lambda t: guided_distillation(logits, t, everyone, 4.0).sum())(logits + 1.5 * logits**2)
    np.testing.assert_array_equal(gradient, 0.0)


def test_equal_logits_give_exactly_zero_under_jit_in_bfloat16():
    logits = (10 * jax.random.normal(jax.random.key(0), (64, 100))).astype(jnp.bfloat16)
    both = lambda z: (distillation(z, z, 4.0), jax.grad(lambda s: distillation(s, z, 4.0).sum())(z))  # noqa: E731
    value, gradient = jax.jit(both)(logits)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, 0.0)
    np.testing.assert_allclose(gradient.astype(jnp.float32), 0.0, atol=2e-6)


def test_nearly_equal_bfloat16_logits_keep_the_accuracy_of_float32():
    """As networks agree, KL in bfloat16 arithmetic is off by many percent: ours computes in float32."""
    logits_t = jax.random.normal(jax.random.key(0), (256, 100)).astype(jnp.bfloat16)
    logits_s = (logits_t + 0.05 * jax.random.normal(jax.random.key(1), (256, 100))).astype(jnp.bfloat16)
    s, t = np.float64(logits_s.astype(jnp.float32)) / 4, np.float64(logits_t.astype(jnp.float32)) / 4
    log_s, log_t = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (s, t))
    expected = 16 * (np.exp(log_t) * (log_t - log_s)).sum(-1).mean()
    np.testing.assert_allclose(distillation(logits_s, logits_t, 4.0).mean(), expected, rtol=2e-3)


def test_guided_distillation_adds_up_the_weighted_terms_of_the_guides():
    learners = jax.random.normal(jax.random.key(0), (2, 3, 4))
    sources = jax.random.normal(jax.random.key(1), (5, 3, 4))
    guidance = jnp.array([[1.0, 0.0, 0.5, 0.0, 0.0], [0.0] * 5])
    result = guided_distillation(learners, sources, guidance, 3.0)
    expected = distillation(learners[0], sources[0], 3.0) + 0.5 * distillation(learners[0], sources[2], 3.0)
    np.testing.assert_allclose(result, [expected, jnp.zeros(3)], rtol=1e-5)


def test_correct():
    """The highest logit, whatever the others; of equals the first class is the answer."""
    logits = jnp.array([[[0.1, 0.3, 0.2], [0.5, 0.5, 0.1]], [[-1.0, -2.0, -3.0], [0.1, 0.2, 0.9]]])
    np.testing.assert_array_equal(correct(logits, jnp.array([1, 0])), [[1, 1], [0, 0]])
    np.testing.assert_array_equal(correct(logits, jnp.array([0, 1])), [[0, 0], [1, 0]])
