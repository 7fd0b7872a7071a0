"""DGKD: guided by all larger members, some of which are left out at random."""

import jax
import numpy as np
import pytest

from orc_jax.methods.base import Stage
from orc_jax.methods.dgkd import keep_guides, stages
from tests.methods import torch_methods
from tests.methods.comparison import compared, method_key, use


@pytest.mark.parametrize(("reduction", "drop"), [("sum", 1), ("mean", 2)])
def test_against_pytorch(config, toy, reduction, drop):
    options = {"temperature": 2.0, "lam": 0.6, "kl_reduction": reduction, "drop": drop}
    use(config, "dgkd", "tiny_a", "tiny_b,tiny_a", "tiny_b", **options)
    both = compared(config, toy)
    for step, views, y in both:
        kept = np.asarray(keep_guides(method_key(step), 3, drop)).astype(bool)
        assert kept.sum() == 3 - drop
        torch_methods.dgkd(both.nets, both.optimizers, views, y, 2.0, 0.6, kept, class_mean=reduction == "mean")
    both.check()


@pytest.mark.parametrize(("count", "drop", "kept"), [(4, 1, 3), (4, 3, 1), (3, 9, 1), (2, 0, 2), (1, 1, 1)])
def test_stochastic_teaching_keeps_the_right_number_of_guides(count, drop, kept):
    masks = np.stack([keep_guides(jax.random.key(i), count, drop) for i in range(40)])
    assert set(np.unique(masks)) <= {0.0, 1.0}
    np.testing.assert_array_equal(masks.sum(1), kept)
    if 0 < kept < count:  # every guide is sometimes in and sometimes out
        assert ((masks.mean(0) > 0) & (masks.mean(0) < 1)).all()


def test_every_guide_is_dropped_equally_often():
    masks = jax.vmap(lambda key: keep_guides(key, 3, 1))(jax.random.split(jax.random.key(0), 3000))
    np.testing.assert_allclose(masks.mean(0), 2 / 3, atol=0.035)  # four standard deviations


def test_stages_of_a_chain():
    """The teacher by itself, then each assistant in the pool of all before it; the run itself is the student's."""
    assert stages("dgkd", 4) == (
        Stage("pivot", "independent", (0,)),
        Stage("assistant_1", "dgkd", (0, 1)),
        Stage("assistant_2", "dgkd", (0, 1, 2)),
    )
    assert stages("takd", 2) == (Stage("pivot", "independent", (0,)),)
