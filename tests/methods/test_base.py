"""What methods share: the ramp of a loss, scores, roles, and the size of a pool."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax import parallel
from orc_jax.errors import UserError
from orc_jax.methods.base import Method, pool_roles, rampup, require_members, scores


def test_rampup_golden():
    values = [float(rampup(jnp.float32(p), 0.5)) for p in (0.0, 0.25, 0.5, 0.9)]
    np.testing.assert_allclose(values, [np.exp(-5.0), np.exp(-1.25), 1.0, 1.0], rtol=1e-6)
    assert float(rampup(jnp.float32(0.0), 0.0)) == 1.0  # no ramp
    np.testing.assert_allclose(rampup(jnp.float32(0.5), 1.0), np.exp(-1.25), rtol=1e-6)


def alone(measure, logits, labels):
    """`Context.by_labels` of a batch that is not mixed."""
    return measure(logits, labels)


def test_scores_golden():
    # Two members, three samples of the classes 0, 1, 1; the second member says the same of all.
    log = jnp.log(jnp.array([[[3.0, 1.0], [1.0, 3.0], [3.0, 1.0]], [[1.0, 1.0]] * 3]))
    result = scores(SimpleNamespace(mean=lambda x: x, by_labels=alone), log, jnp.array([0, 1, 1]))
    np.testing.assert_allclose(result["loss"], [(2 * np.log(4 / 3) + np.log(4)) / 3, np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(result["accuracy"], [2 / 3, 1 / 3], rtol=1e-6)
    assert set(result) == {"loss", "accuracy"} == set(Method(iterate=None, roles=()).metrics)


def test_scores_are_those_of_the_global_batch():
    logits, labels = jax.random.normal(jax.random.key(0), (3, 8, 4)), jnp.arange(8) % 4
    whole = scores(SimpleNamespace(mean=lambda x: x, by_labels=alone), logits, labels)
    context = SimpleNamespace(mean=lambda x: parallel.mean(x, "devices"), by_labels=alone)
    of_one = jax.vmap(lambda x, y: scores(context, x, y), in_axes=(1, 0), axis_name="devices")
    shares = of_one(logits.reshape(3, 2, 4, 4), labels.reshape(2, 4))
    for name in whole:
        for share in shares[name]:
            np.testing.assert_allclose(share, whole[name], rtol=1e-6)


def test_roles_of_a_pool():
    assert pool_roles(4, "teacher", "assistant") == ("teacher", "assistant", "assistant", "target student")
    assert pool_roles(2, "teacher", "assistant") == ("teacher", "target student")
    assert pool_roles(1, "teacher", "assistant") == ("target student",)


def test_pools_that_are_too_small():
    require_members("any", ["a"] * 3, 3)
    with pytest.raises(UserError, match=r"config.num_networks=2: any needs at least 3"):
        require_members("any", ["a"] * 2, 3)
