"""DML: peers from scratch, each from all others."""

import pytest

from orc_jax.errors import UserError
from orc_jax.methods.dml import dml
from tests.methods import torch_methods
from tests.methods.comparison import compared, use


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_against_pytorch(config, toy, temperature):
    use(config, "dml", "tiny_a", "tiny_a", "tiny_b", temperature=temperature)
    both = compared(config, toy)
    for _, views, y in both:
        torch_methods.dml(both.nets, both.optimizers, views, y, temperature)
    both.check()


@pytest.mark.parametrize("targets", ["each", "mean"])
def test_as_in_the_comparison_of_okddip(config, toy, targets):
    use(config, "dml", "tiny_a", "tiny_a", "tiny_b", temperature=3.0, targets=targets, target_gradient=True)
    both = compared(config, toy)
    for _, views, y in both:
        torch_methods.dml_of_okddip(both.nets, both.optimizers, views, y, 3.0, targets)
    both.check()


@pytest.mark.parametrize("targets", ["each", "mean"])
def test_one_network_after_the_other(config, toy, targets):
    use(config, "dml", "tiny_a", "tiny_a", "tiny_b", temperature=2.0, targets=targets, sequential=True)
    both = compared(config, toy)
    for _, views, y in both:
        torch_methods.dml_in_turn(both.nets, both.optimizers, views, y, 2.0, targets)
    both.check()


def test_networks_in_turn_have_no_gradients_of_one_pass():
    with pytest.raises(UserError, match=r"config.dml.target_gradient=True: needs config.dml.sequential=False"):
        dml(["a"] * 2, sequential=True, target_gradient=True)
