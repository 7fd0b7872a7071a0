"""KDCL: its targets against numbers by hand, and whole steps."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from orc_jax.methods.kdcl import linear, minlogit, naive
from tests.methods import torch_methods
from tests.methods.comparison import compared, use

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
    both = compared(config, toy)
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


def cross_entropy(z, labels):
    """In double precision."""
    z = np.float64(z) - np.max(z, axis=1, keepdims=True)
    return (np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), labels]).mean()


def best_of_two(logits, labels):
    """The least cross-entropy of all convex combinations."""
    return min(cross_entropy(a * logits[0] + (1 - a) * logits[1], labels) for a in np.linspace(0, 1, 1001))


@pytest.mark.parametrize("scale", [1.0, 3.0, 6.0, 20.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_linear_finds_the_best_convex_combination(seed, scale):
    """Of logits of all sizes."""
    logits, labels = jax.random.normal(jax.random.key(seed), (2, 32, 5)), np.arange(32) % 5
    logits = scale * (logits + jnp.array([1.5, 1.0])[:, None, None] * jax.nn.one_hot(labels, 5)[None])
    best = best_of_two(np.asarray(logits), labels)
    np.testing.assert_allclose(cross_entropy(linear(ALONE, logits, jnp.array(labels)), labels), best, rtol=1e-4)


def test_a_weight_that_has_vanished_comes_back():
    """The first network is so wrong of one sample that the first step leaves nothing of it; the other is not."""
    logits, labels = jnp.array([[[1.0, 0.0], [-300.0, 0.0]], [[-1.0, 0.0], [100.0, 0.0]]]), np.array([0, 0])
    best = best_of_two(np.asarray(logits), labels)
    assert best < cross_entropy(logits[1], labels) - 0.1
    np.testing.assert_allclose(cross_entropy(linear(ALONE, logits, jnp.array(labels)), labels), best, rtol=1e-3)


def test_linear_of_three_networks():
    """Each knows one class: none is left out."""
    labels = jnp.arange(3)
    logits = 2.0 * jnp.eye(3)[:, :, None] * jax.nn.one_hot(labels, 3)[None]
    np.testing.assert_allclose(linear(ALONE, logits, labels), 2.0 / 3.0 * jnp.eye(3), atol=1e-4)
    # Two that know nothing get no weight.
    logits = logits.at[1:].set(0.0).at[0].set(2.0 * jnp.eye(3))
    np.testing.assert_allclose(linear(ALONE, logits, labels), 2.0 * jnp.eye(3), atol=1e-4)
