"""ONE: branches, and the gate that makes their teacher."""

import jax
import numpy as np
import pytest
import torch

from orc_jax.config import default, resolve
from orc_jax.deploy.ensemble import load_ensemble
from orc_jax.errors import UserError
from orc_jax.evaluate import evaluator
from orc_jax.methods.one import GATE
from tests.helpers import final_state, stepper_of, train
from tests.methods import torch_branches, torch_methods
from tests.methods.comparison import compared, use


class Gate(torch.nn.Sequential):
    """With the weights of a stack's row."""

    def __init__(self, head):
        super().__init__(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
        values = {name: torch.tensor(np.asarray(x[0])) for name, x in (head.params | head.batch_stats).items()}
        self[0].weight.data, self[0].bias.data = values["linear.kernel"].T.clone(), values["linear.bias"]
        self[1].weight.data, self[1].bias.data = values["norm.scale"], values["norm.bias"]

    def assert_same(self, head):
        pairs = {"linear.kernel": self[0].weight.T, "linear.bias": self[0].bias, "norm.bias": self[1].bias}
        pairs |= {"norm.scale": self[1].weight, "norm.mean": self[1].running_mean, "norm.var": self[1].running_var}
        for name, value in pairs.items():
            ours = (head.params | head.batch_stats)[name][0]
            np.testing.assert_allclose(ours, value.detach(), rtol=1e-4, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("follows", [True, False])
def test_against_pytorch(config, toy, follows):
    """Against one network with a single trunk; the gate's statistics move too."""
    options = {"temperature": 2.0, "weight": 0.5, "rampup_fraction": 0.5, "target_gradient": follows}
    use(config, "one", "tiny_b", "tiny_b", "tiny_b", **options)
    both = compared(config, toy)
    head = both.start.stacks[GATE]
    gate = Gate(head)
    loop = torch_branches.Branches(both.nets, both.optimizer, gate)
    for step, views, y in both:
        weight = 0.5 * torch_methods.ramp(step / both.stepper.run.num_steps, 0.5)
        torch_branches.one(loop, views[0], y, 2.0, weight, follows)
    both.check()
    gate.assert_same(both.state.stacks[GATE])
    assert np.abs(both.state.stacks[GATE].params["linear.kernel"] - head.params["linear.kernel"]).max() > 1e-5
    params = both.state.stacks["tiny_b"].params
    np.testing.assert_array_equal(params["conv1.kernel"][0], params["conv1.kernel"][2])
    assert not np.array_equal(params["conv2.kernel"][0], params["conv2.kernel"][2])


def test_the_ensemble_is_the_gated_one(config, toy):
    """In evaluation the gate has its running statistics."""
    use(config, "one", "tiny_b", "tiny_b", "tiny_b")
    both = compared(config, toy)
    head = both.start.stacks[GATE]
    moved = {"norm.mean": np.full((1, 3), 0.1, np.float32), "norm.var": np.full((1, 3), 0.5, np.float32)}
    stacks = both.start.stacks | {GATE: head.replace(batch_stats=moved)}
    result = evaluator(both.stepper.run)(stacks)
    gate = Gate(head).eval()
    gate[1].running_mean, gate[1].running_var = torch.full((3,), 0.1), torch.full((3,), 0.5)
    images = torch.tensor((toy.test.images / 255.0 - toy.mean[0]) / toy.std[0]).permute(0, 3, 1, 2).float()
    nets, y = [net.eval() for net in both.nets], torch.tensor(toy.test.labels).long()
    with torch.no_grad():
        importance = torch.softmax(torch.relu(gate(nets[0].trunk(images).mean((2, 3)))), 1)
        logits = sum(importance[:, i : i + 1] * net(images)[0] for i, net in enumerate(nets))
    assert importance.std() > 0.01
    np.testing.assert_allclose(result["ensemble"]["loss"], torch_methods.ce(logits, y), rtol=1e-4)


def test_the_ensemble_is_taken_home_with_its_gate(config, toy, tmp_path, toy_set, console):
    use(config, "one", "tiny_b", "tiny_b", "tiny_b")
    config.log_to = ""
    train(config, tmp_path, console)
    probabilities = np.asarray(load_ensemble(tmp_path, "latest")(toy.test.images))
    result = evaluator(stepper_of(config, toy).run)(jax.device_get(final_state(tmp_path, toy).stacks))
    loss = -np.log(probabilities[np.arange(30), toy.test.labels]).mean()
    np.testing.assert_allclose(loss, result["ensemble"]["loss"], rtol=1e-4)


def test_peers_are_of_one_architecture_whose_last_stage_is_known():
    for method in ("one", "cl_ilr"):
        config = default()
        config.method = method
        with pytest.raises(UserError, match=f"the peers of {method} share layers and must be of one architecture"):
            resolve(config, 1)
        config.teacher = config.student = "plane4"
        with pytest.raises(UserError, match=r"config.student='plane4' is not known"):
            resolve(config, 1)
