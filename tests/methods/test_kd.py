"""KD, from a fixed teacher."""

from tests.methods import torch_methods
from tests.methods.comparison import compared, use


def test_against_pytorch(config, toy):
    """Two students, neither of which learns from the other."""
    use(config, "kd", "tiny_a", "tiny_a", "tiny_b", temperature=3.0, alpha=0.7)
    both = compared(config, toy)
    for _, views, y in both:
        torch_methods.kd(both.nets, both.optimizers, views, y, 3.0, 0.7)
    both.check()
