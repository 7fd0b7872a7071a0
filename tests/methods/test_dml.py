"""DML: peers from scratch, each from all others."""

import pytest

from tests.methods import torch_methods
from tests.methods.comparison import compared, use


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_against_pytorch(config, toy, temperature):
    use(config, "dml", "tiny_a", "tiny_a", "tiny_b", temperature=temperature)
    both = compared(config, toy)
    for _, views, y in both:
        torch_methods.dml(both.nets, both.optimizers, views, y, temperature)
    both.check()
