"""Training from the labels alone."""

from tests.methods import torch_methods
from tests.methods.comparison import compared, use


def test_against_pytorch(config, toy):
    use(config, "independent", "tiny_a", "", "tiny_b")
    both = compared(config, toy)
    for _, views, y in both:
        torch_methods.independent(both.nets, both.optimizers, views, y)
    both.check()
