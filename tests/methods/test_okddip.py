"""OKDDip: peers with targets of their own, and a leader."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from orc_jax.errors import UserError
from orc_jax.methods.branches import is_shared
from orc_jax.methods.okddip import ATTENTION, mixtures
from orc_jax.run import abstract_state
from orc_jax.testing import build_run
from tests.helpers import stepper_of
from tests.methods import torch_methods
from tests.methods.comparison import compared, use

POOLS = {
    # Peers of two architectures, each with its projections; peers of one, who share theirs, and a leader of another.
    "two architectures": (("tiny_a", "tiny_b", "tiny_b"), {"projection_divisor": 2}),
    "shared projections": (("tiny_a", "tiny_a", "tiny_b"), {"projection_divisor": 4, "peers_follow_targets": False}),
}


@pytest.mark.parametrize("pool", POOLS)
def test_against_pytorch(config, toy, pool):
    members, options = POOLS[pool]
    use(config, "okddip", *members, temperature=2.0, weight=0.5, rampup_fraction=0.5, **options)
    both = compared(config, toy)
    head = both.start.stacks[ATTENTION].params
    assert set(head) == {f"{name}.{kind}" for name in set(members[:2]) for kind in ("query", "key")}
    assert {x.shape for x in head.values()} == {(1, 8, 8 // options["projection_divisor"])}
    matrices = {name: torch.tensor(np.asarray(x[0])).requires_grad_() for name, x in head.items()}
    projections = [[matrices[f"{name}.{kind}"] for kind in ("query", "key")] for name in members[:2]]
    head_optimizer = both.optimizer(matrices.values())
    follow = options.get("peers_follow_targets", True)
    for step, views, y in both:
        weight = 0.5 * torch_methods.ramp(step / both.stepper.run.num_steps, 0.5)
        torch_methods.okddip(both.nets, both.optimizers, views, y, 2.0, weight, projections, head_optimizer, follow)
    both.check()
    learnt = both.state.stacks[ATTENTION].params
    for name, value in matrices.items():
        np.testing.assert_allclose(learnt[name][0], value.detach(), rtol=1e-4, atol=2e-6)
        assert np.abs(learnt[name] - head[name]).max() > 1e-6


def test_mixtures_against_numpy():
    rng = np.random.default_rng(0)
    queries, keys, logits = (rng.normal(size=(3, 2, n)).astype(np.float32) for n in (4, 4, 5))
    result = mixtures(*map(jnp.array, (queries, keys, logits)))
    for i, b in itertools.product(range(3), range(2)):
        weights = np.exp([queries[i, b] @ keys[j, b] for j in range(3)])
        expected = sum(w * logits[j, b] for j, w in enumerate(weights)) / weights.sum()
        np.testing.assert_allclose(result[i, b], expected, rtol=1e-4)


def test_projections_start_as_pytorchs_linear_layers(config, toy):
    """U(-1/sqrt(8), 1/sqrt(8)) of 8 features, each with its own key; at least one wide."""
    use(config, "okddip", "tiny_a", "tiny_b", "tiny_b", projection_divisor=1)
    head = stepper_of(config, toy).init().stacks[ATTENTION].params
    for x in head.values():
        assert x.shape == (1, 8, 8) and 0.9 * 8**-0.5 < np.abs(x).max() <= 8**-0.5
    assert not any(np.array_equal(x, y) for x, y in itertools.combinations(head.values(), 2))
    config.okddip.projection_divisor = 9
    assert {x.shape for x in stepper_of(config, toy).init().stacks[ATTENTION].params.values()} == {(1, 8, 1)}


def test_projections_of_peers_with_features_of_different_sizes(config, toy):
    """All are as wide as an eighth of the smallest, not of the leader's, so that queries and keys fit."""
    use(config, "okddip", "resnet8", "vgg8", "tiny_a")
    head = abstract_state(build_run(config, toy)).stacks[ATTENTION].params
    assert {name: x.shape for name, x in head.items()} == {
        f"{name}.{kind}": (1, dim, 64 // 8)
        for name, dim in (("resnet8", 64), ("vgg8", 512))
        for kind in ("query", "key")
    }


def test_branches(config, toy):
    """Shared layers start and stay equal, and move by the sum of what the members alone would do with them."""
    use(config, "okddip", "tiny_a", "tiny_a", "tiny_a", projection_divisor=2, rampup_fraction=0.0)
    config.momentum, config.weight_decay = 0.0, 0.0
    whole = stepper_of(config, toy)
    config.okddip.branches = True
    branched = stepper_of(config, toy)
    start, shared, indices = branched.init(), is_shared("tiny_a"), np.arange(16, dtype=np.int32)
    before, apart, together = (
        x.stacks["tiny_a"].params for x in (start, whole(start, indices), branched(start, indices))
    )
    assert any(map(shared, before)) and not all(map(shared, before))
    for name, x in before.items():
        assert (x == x[:1]).all() or not shared(name), name
        moves, moved = apart[name] - x, together[name] - x
        expected = jnp.broadcast_to(moves.sum(0), moves.shape) if shared(name) else moves
        np.testing.assert_allclose(moved, expected, rtol=2e-3, atol=1e-6)
    with pytest.raises(UserError, match=r"the peers of okddip with config\.okddip\.branches=True share layers"):
        use(config, "okddip", "tiny_a", "tiny_b", "tiny_b", branches=True)
        build_run(config, toy)
