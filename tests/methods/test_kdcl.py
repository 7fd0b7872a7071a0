"""KDCL: its targets against numbers by hand, and whole steps."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from orc_jax.methods.kdcl import linear, minlogit, naive
from tests.methods import torch_methods
from tests.methods.comparison import Comparison, use

ALONE = SimpleNamespace(mean=lambda x: x)  # the context of one device


def linear_by_us(zs, y):
    """That of the package, which is tested by itself."""
    return torch.tensor(np.array(linear(ALONE, jnp.stack([jnp.array(z) for z in zs]), jnp.array(y))))


TARGETS = {"minlogit": torch_methods.minlogit, "naive": torch_methods.naive, "linear": linear_by_us}


@pytest.mark.parametrize("target", TARGETS)
def test_against_pytorch(config, toy, target):
    """With an augmentation of its own for each network."""
    use(config, "kdcl", "tiny_a", "", "tiny_b", temperature=3.0, lam=0.5, target=target)
    config.crop_padding, config.flip = 2, True
    both = Comparison(config, toy)
    for _, views, y in both:
        assert not torch.equal(views[0], views[1])
        torch_methods.kdcl(both.nets, both.optimizers, views, y, 3.0, 0.5, TARGETS[target])
    both.check()


def test_targets_golden():
    logits = jnp.array([[[1.0, 5.0, 2.0]], [[4.0, 3.0, 3.0]]])
    labels = jnp.array([0])
    np.testing.assert_allclose(naive(ALONE, logits, labels), [[2.5, 4.0, 2.5]])
    # minus the own logit of class 0: (0 4 1) and (0 -1 -1)
    np.testing.assert_allclose(minlogit(ALONE, logits, labels), [[0.0, -1.0, -1.0]])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_linear_finds_the_best_convex_combination(seed):
    logits = 3 * jax.random.normal(jax.random.key(seed), (2, 32, 5))
    labels = jnp.arange(32) % 5
    logits = logits.at[0].add(2 * jax.nn.one_hot(labels, 5))

    def loss(z):
        z = np.float64(z)
        return -(z[np.arange(32), labels] - np.log(np.exp(z).sum(1))).mean()

    best = min(loss(a * logits[0] + (1 - a) * logits[1]) for a in np.linspace(0, 1, 1001))
    np.testing.assert_allclose(loss(linear(ALONE, logits, labels)), best, atol=1e-3)


def test_linear_of_a_network_that_is_always_wrong():
    """Nearly all weight goes to the other; what is left is not NaN, however wrong the network is."""
    right = 3.0 * jax.nn.one_hot(jnp.array([0, 1]), 2)
    target = linear(ALONE, jnp.stack([right, 1000.0 - 1000.0 * right]), jnp.array([0, 1]))
    np.testing.assert_allclose(target, right, atol=1e-3)
