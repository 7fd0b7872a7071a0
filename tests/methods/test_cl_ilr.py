"""CL-ILR: heads on shared layers, which teach each other."""

import pytest

from tests.methods import torch_branches, torch_methods
from tests.methods.comparison import compared, use


@pytest.mark.parametrize(("follows", "rescaling"), [(False, True), (True, False)])
def test_against_pytorch(config, toy, follows, rescaling):
    options = {"temperature": 3.0, "label_weight": 0.7, "weight": 0.5, "rampup_fraction": 0.5}
    options |= {"target_gradient": follows, "rescaling": rescaling}
    use(config, "cl_ilr", "tiny_b", "tiny_b", "tiny_b", **options)
    both = compared(config, toy)
    loop = torch_branches.Branches(both.nets, both.optimizer)
    for step, views, y in both:
        weight = 0.5 * torch_methods.ramp(step / both.stepper.run.num_steps, 0.5)
        torch_branches.cl_ilr(loop, views[0], y, 3.0, 0.7, weight, follows, rescaling)
    both.check()
