"""KDCL: its targets against numbers by hand, and whole steps."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from orc_jax.data import sets
from orc_jax.data.types import Images
from orc_jax.errors import UserError
from orc_jax.methods.kdcl import WEIGHTS, errors, general_weights, linear, mean, minlogit, naive, naive_batch
from orc_jax.testing import assert_resumes, build_run
from orc_jax.workdir import record
from tests.helpers import evaluate, final_state, printed, train
from tests.methods import torch_methods
from tests.methods.comparison import compared, use

ALONE = SimpleNamespace(mean=lambda x: x)  # the context of one device


def linear_by_us(zs, y):
    """That of the package, which is tested by itself."""
    return torch.tensor(np.array(linear(ALONE, jnp.stack([jnp.array(z) for z in zs]), jnp.array(y))))


TARGETS = {name: getattr(torch_methods, name) for name in ("minlogit", "naive", "naive_batch", "mean")}
TARGETS |= {"linear": linear_by_us}
TARGETS |= {"general": torch_methods.mean}  # in the first epoch


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
    np.testing.assert_allclose(mean(ALONE, logits, labels), [[2.5, 4.0, 2.5]])
    np.testing.assert_allclose(naive(ALONE, logits, labels), [[4.0, 3.0, 3.0]])
    # minus the own logit of class 0: (0 4 1) and (0 -1 -1)
    np.testing.assert_allclose(minlogit(ALONE, logits, labels), [[0.0, -1.0, -1.0]])


def test_the_network_that_is_best_at_a_sample_and_at_the_batch():
    """A network that has diverged is nobody's best."""
    logits = jnp.array([[[9.0, 0.0], [9.0, 0.0]], [[0.0, 1.0], [0.0, 2.0]], [[float("nan")] * 2] * 2])
    labels = jnp.array([0, 1])
    np.testing.assert_array_equal(naive(ALONE, logits, labels), [[9.0, 0.0], [0.0, 2.0]])
    np.testing.assert_array_equal(naive_batch(ALONE, logits, labels), logits[1])


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


def of_many_classes(seed, scale, members=4, classes=100):
    """Logits of networks that disagree, each of which knows some of the samples."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, 64)
    knows = rng.uniform(0, 1.5, (members, 64, 1)) * np.eye(classes)[labels]
    return scale * (rng.normal(size=(members, 64, classes)) + knows), labels


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_linear_against_a_constrained_optimiser(seed, scale):
    """SciPy's, from several starting points, with 100 classes; and never worse than the mean."""
    logits, labels = of_many_classes(seed, scale)
    combined = lambda a: cross_entropy(np.einsum("m,mbc->bc", a, logits), labels)  # noqa: E731
    constraint = {"type": "eq", "fun": lambda a: a.sum() - 1}
    starts = [np.full(4, 0.25), *(0.9 * np.eye(4) + 0.025)]
    bounds = [(0, 1)] * 4
    found = [minimize(combined, start, bounds=bounds, constraints=constraint, method="SLSQP") for start in starts]
    best = min(result.fun for result in found)
    ours = cross_entropy(linear(ALONE, jnp.array(logits, jnp.float32), jnp.array(labels)), labels)
    assert ours <= combined(np.full(4, 0.25)) * (1 + 1e-6)
    np.testing.assert_allclose(ours, best, rtol=1e-3)


def test_general_weights_against_a_constrained_optimiser():
    """They give the least squared error of the weighted probabilities, with sum 1; of padding nothing counts."""
    logits, labels = of_many_classes(0, 3.0, members=3, classes=5)
    weights = np.arange(64) < 50
    sums = jax.tree.map(np.asarray, errors(jnp.array(logits), jnp.array(labels), jnp.array(weights, jnp.float32)))
    assert sums["count"] == 50
    ours = np.asarray(general_weights(sums))
    p = np.float64(jax.nn.softmax(logits))[:, :50]
    squared = lambda w: np.square(np.einsum("m,mbc->bc", w, p) - np.eye(5)[labels[:50]]).sum()  # noqa: E731
    found = minimize(squared, np.full(3, 1 / 3), constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, tol=1e-12)
    np.testing.assert_allclose(ours, found.x, atol=1e-3)
    np.testing.assert_allclose(ours.sum(), 1.0, rtol=1e-5)


@pytest.mark.parametrize("error", [0.0, 2.0])
def test_networks_that_agree_have_equal_weights(error):
    sums = {"products": np.full((3, 3), error, np.float32), "count": np.float32(4)}
    np.testing.assert_allclose(general_weights(sums), [1 / 3] * 3, rtol=1e-3)


def general(config):
    use(config, "kdcl", "tiny_a", "", "tiny_b", target="general", held_out=0.2)
    config.num_epochs, config.log_to = 3, ""
    return config


def test_general_holds_out_and_renews_after_every_epoch(config, toy, tmp_path):
    """Every fifth image is not trained on; a run that goes on finds the same weights."""
    run = build_run(general(config), toy)
    assert run.dataset.num_train == 72 and len(run.dataset.held_out.labels) == 18 and toy.held_out is None
    np.testing.assert_array_equal(run.dataset.held_out.images, toy.train.images[4::5])
    assert_resumes(config, tmp_path, toy)
    with pytest.raises(UserError, match=r"config.dataset: x is streamed or has fewer than 5 training examples"):
        build_run(config, toy._replace(name="x", train=[1] * 90))


def test_general_weights_are_those_of_the_networks_at_the_end_of_an_epoch(
    config, toy, tmp_path, toy_set, console, monkeypatch
):
    """An evaluation needs no training set to hold anything out of."""
    config = general(config)
    train(config, tmp_path, console)
    state = final_state(tmp_path, toy)
    weights = state.stacks[WEIGHTS].batch_stats["weights"]
    assert weights.shape == (1, 2) and abs(weights.sum() - 1) < 1e-5 and np.abs(weights - 0.5).max() > 1e-3
    assert not jax.tree.leaves((state.stacks[WEIGHTS].params, state.stacks[WEIGHTS].opt_state))
    few = Images(*(of[:3] for of in toy.test))
    monkeypatch.setattr(sets, "load", lambda *args, **options: toy._replace(train=few, test=few))
    evaluate(config, tmp_path, "latest", console)
    assert "toy test: 3 examples" in printed(console)


def test_what_was_called_naive_goes_on_as_the_mean(config, toy):
    """In records of runs from before the paper's own target was built."""
    use(config, "kdcl", "tiny_a", "", "tiny_b", target="naive")
    one = record.to_json(build_run(config, toy).record())
    assert record.from_json(one).config["kdcl"]["target"] == "naive"
    old = one | {
        "config": one["config"] | {"kdcl": {k: v for k, v in one["config"]["kdcl"].items() if k != "held_out"}}
    }
    there = record.from_json(old)
    assert there.config["kdcl"] == config.kdcl.to_dict() | {"target": "mean"}
    lines = record.differences(there, build_run(config, toy).record())
    assert lines == ["  config.kdcl.target: 'mean' there, 'naive' here"]
    config.kdcl.target = "mean"
    assert not record.differences(there, build_run(config, toy).record())
