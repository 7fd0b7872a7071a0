"""The optimizer against PyTorch's formulas, and the schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax.config import default
from orc_jax.optim import learning_rate_schedule, sgd_direction, update


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_follows_pytorch(nesterov):
    """g = grad + decay * p;  buf = momentum * buf + g;  p -= lr * (g + momentum * buf if nesterov else buf)."""
    momentum, decay = 0.9, 5e-4
    optimizer = sgd_direction(momentum, nesterov, decay)
    params = jnp.array([[1.0, -2.0], [0.5, 3.0]])  # two members
    state = jax.vmap(optimizer.init)(params)
    expected, buf = np.array(params, np.float64), np.zeros((2, 2))
    for i, rate in enumerate([0.1, 0.1, 0.01]):
        grads = np.array([[0.3, 0.1], [-0.2, 1.0]]) * (i + 1)
        params, state = update(optimizer, params, state, jnp.asarray(grads, jnp.float32), jnp.float32(rate))
        g = grads + decay * expected
        buf = momentum * buf + g
        expected -= rate * (g + momentum * buf if nesterov else buf)
        np.testing.assert_allclose(params, expected, rtol=1e-5)


def schedule(num_steps, per_epoch, **fields):
    config = default()
    config.update(fields)
    return lambda step: float(learning_rate_schedule(config, per_epoch, num_steps)(step))


def test_published_step_schedule():
    """240 epochs of 100 steps: divided by 10 after epochs 150, 180 and 210."""
    rate = schedule(24_000, 100)
    for step, expected in [(0, 0.05), (14_999, 0.05), (15_000, 0.005), (18_000, 5e-4), (20_999, 5e-4), (21_000, 5e-5)]:
        np.testing.assert_allclose(rate(step), expected, rtol=1e-6)


def test_warm_up_keeps_the_boundaries_of_the_schedule():
    rate = schedule(1000, 100, warmup_epochs=2.0, lr_boundaries=(0.5,))
    np.testing.assert_allclose([rate(s) for s in (0, 100, 200, 499, 500, 999)], [0, 0.025, 0.05, 0.05, 0.005, 0.005])


def test_cosine_and_constant():
    rate = schedule(1000, 100, lr_schedule="cosine", learning_rate=0.2)
    np.testing.assert_allclose([rate(s) for s in (0, 500, 1000)], [0.2, 0.1, 0.0], atol=1e-7)
    rate = schedule(1000, 100, lr_schedule="constant", warmup_epochs=1.0, learning_rate=0.2)
    np.testing.assert_allclose([rate(s) for s in (50, 100, 999)], [0.1, 0.2, 0.2])
