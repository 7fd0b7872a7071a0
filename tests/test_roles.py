"""Promotion, feedback samples and gates: golden values by hand, an independent NumPy version, and the corner cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orc_jax.roles import feedback_indices, feedback_shares, gate, hand_back, top_k_mask
from tests.helpers import RELAXED

NAN, INF = float("nan"), float("inf")
LOSSES = st.one_of(st.floats(0, 50, width=32), st.sampled_from([0.0, 1.0, 1.0, NAN, INF, -INF, 3.4e38, 1e-45]))


def arrays_of(size):
    return st.lists(LOSSES, min_size=size, max_size=size).map(np.float32)


@pytest.mark.parametrize(
    ("losses", "k", "expected"),
    [
        ([0.3, 0.1, 0.2], 1, [0, 1, 0]),
        ([0.3, 0.1, 0.2], 2, [0, 1, 1]),
        ([0.2, 0.2, 0.2], 1, [1, 0, 0]),  # ties go to the lower index
        ([NAN, 0.9, INF], 1, [0, 1, 0]),  # a diverged member is never promoted
        ([NAN, 0.9, -INF], 1, [0, 1, 0]),
        ([NAN, NAN, 0.5, 0.4], 2, [0, 0, 1, 1]),
        ([NAN, NAN], 1, [1, 0]),  # still exactly k
    ],
)
def test_top_k_mask(losses, k, expected):
    np.testing.assert_array_equal(jax.jit(top_k_mask, static_argnums=1)(jnp.array(losses), k), np.array(expected, bool))


@settings(RELAXED, max_examples=60)
@given(st.sampled_from([1, 2, 5]).flatmap(lambda n: st.tuples(arrays_of(n), st.integers(1, n))))
def test_exactly_k_are_promoted_and_the_finite_first(losses_and_k):
    losses, k = losses_and_k
    mask = np.asarray(top_k_mask(losses, k))
    assert mask.sum() == k
    finite = np.isfinite(losses)
    assert mask[finite].sum() == min(k, finite.sum())
    if finite[mask].all() and finite[~mask].any():
        assert losses[mask].max() <= losses[~mask & finite].min()


def test_permuting_members_permutes_the_roles():
    losses = jax.random.normal(jax.random.key(0), (6,))
    order = jnp.array([3, 1, 5, 0, 2, 4])
    np.testing.assert_array_equal(top_k_mask(losses, 2)[order], top_k_mask(losses[order], 2))


def test_shares_golden():
    # softmax(log 1, log 2, log 4) = (1, 2, 4) / 7; times 10: 1.43, 2.86, 5.71. Rounded down: 1, 2, 5; the two that are
    # left go to the largest remainders, .86 and .71.
    np.testing.assert_array_equal(feedback_shares(jnp.log(jnp.array([1.0, 2.0, 4.0])), 10), [1, 3, 6])
    # A weaker student (higher loss) hands back more; equal ones share alike, the odd one out goes to the lower index.
    np.testing.assert_array_equal(feedback_shares(jnp.array([0.7, 0.7, 0.7]), 8), [3, 3, 2])


def test_shares_of_diverged_students():
    np.testing.assert_array_equal(feedback_shares(jnp.array([NAN, 0.5, INF, 0.5]), 8), [0, 4, 0, 4])
    np.testing.assert_array_equal(feedback_shares(jnp.array([NAN, NAN]), 8), [4, 4])


@pytest.mark.parametrize("seed", range(20))
def test_shares_always_sum_to_the_size(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 300))
    shares = np.asarray(feedback_shares(jnp.array(rng.exponential(3.0, 7), jnp.float32), size))
    assert shares.sum() == size and shares.min() >= 0


@settings(RELAXED, max_examples=60)
@given(st.sampled_from([1, 2, 5]).flatmap(arrays_of), st.sampled_from([1, 7, 64]), st.integers(0, 2**31))
def test_shares_sum_to_the_batch_and_samples_are_in_it(scores, size, seed):
    shares = np.asarray(feedback_shares(scores, size))
    assert shares.sum() == size and shares.min() >= 0
    if np.isfinite(scores).any():
        assert (shares[~np.isfinite(scores)] == 0).all()
    rng = np.random.default_rng(seed)
    losses = rng.choice([0.0, 0.5, 0.5, 2.0, np.nan, np.inf, -np.inf], (len(scores), 64)).astype(np.float32)
    indices = np.asarray(feedback_indices(losses, shares, size))
    assert indices.shape == (size,) and indices.min() >= 0 and indices.max() < 64
    ends = np.cumsum(shares)
    for first, last in zip(ends - shares, ends, strict=True):
        assert len(set(indices[first:last])) == last - first  # a student hands back no sample twice


@pytest.mark.parametrize(("fraction", "size"), [(1.0, 32), (0.5, 16), (0.3, 10), (0.01, 1)])
def test_what_is_handed_back_is_a_fraction_of_the_batch(fraction, size):
    losses = jnp.array(np.random.default_rng(2).exponential(1.0, (3, 32)), jnp.float32)
    shares, indices = hand_back(losses, jnp.zeros((3, 32), bool), fraction)
    assert indices.shape == (size,)
    np.testing.assert_array_equal(shares, feedback_shares(losses.mean(1), size))
    np.testing.assert_array_equal(indices, feedback_indices(losses, shares, size))


def test_feedback_indices_golden():
    losses = jnp.array([[0.1, 0.4, 0.3, 0.2], [0.9, 0.1, NAN, 0.5]])
    # Student 0 hands back its hardest sample, 1; student 1 its three hardest, 0, 3, 1. The NaN is nobody's hardest.
    np.testing.assert_array_equal(feedback_indices(losses, jnp.array([1, 3]), 4), [1, 0, 3, 1])
    np.testing.assert_array_equal(feedback_indices(losses, jnp.array([0, 4]), 4), [0, 3, 1, 2])


def test_misclassified_samples_come_first():
    """Among many classes a sample that is right can have a higher loss than one that is wrong."""
    losses = jnp.array([[0.9, 2.5, 1.5, 0.1, NAN, 0.8]])
    wrong = jnp.array([[True, False, False, False, False, True]])
    for rule, expected in (("hardest", [1, 2, 0, 5]), ("misclassified", [0, 5, 1, 2])):
        shares, indices = hand_back(losses, wrong, 4 / 6, rule)
        assert shares.tolist() == [4]
        np.testing.assert_array_equal(indices, expected)
    nobody = jnp.zeros((1, 6), bool)
    np.testing.assert_array_equal(hand_back(losses, nobody, 1.0, "misclassified")[1], hand_back(losses, wrong, 1.0)[1])


def test_feedback_selection_equals_a_plain_numpy_version():
    rng = np.random.default_rng(1)
    for _ in range(20):
        losses = rng.exponential(1.0, (5, 32)).astype(np.float32)
        scores = losses.mean(1)
        weights = np.exp(scores - scores.max())
        exact = 32 * weights / weights.sum()
        counts = np.floor(exact).astype(int)
        for i in sorted(range(5), key=lambda i: counts[i] - exact[i])[: 32 - counts.sum()]:
            counts[i] += 1
        expected = [j for i in range(5) for j in sorted(range(32), key=lambda j: -losses[i, j])[: counts[i]]]
        shares = feedback_shares(jnp.array(scores), 32)
        np.testing.assert_array_equal(shares, counts)
        np.testing.assert_array_equal(feedback_indices(jnp.array(losses), shares, 32), expected)


def test_gate_keeps_the_others_bit_for_bit():
    old = {"w": jnp.array([[1.0, NAN], [3.0, 4.0]]), "count": jnp.array([1, 2])}
    new = {"w": jnp.array([[5.0, 6.0], [NAN, INF]]), "count": jnp.array([3, 4])}
    gated = gate(jnp.array([True, False]), new, old)
    np.testing.assert_array_equal(gated["w"], [[5.0, 6.0], [3.0, 4.0]])
    np.testing.assert_array_equal(gated["count"], [3, 2])
