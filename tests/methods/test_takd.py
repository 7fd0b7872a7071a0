"""TAKD: each from the one before."""

import pytest

from tests.methods import torch_methods
from tests.methods.comparison import compared, use


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_against_pytorch(config, toy, reduction):
    use(config, "takd", "tiny_a", "tiny_a", "tiny_b", temperature=2.0, lam=0.6, kl_reduction=reduction)
    both = compared(config, toy)
    for _, views, y in both:
        torch_methods.dgkd(both.nets, both.optimizers, views, y, 2.0, 0.6, [False, True], reduction == "mean")
    both.check()
