"""ONE and CL-ILR as one PyTorch network: a single trunk, and a branch for each peer (see `torch_methods`)."""

import torch

from tests.methods.torch_methods import ce, kl, probs


class Branches:
    """Tiny networks that share the first one's trunk, and one optimizer for all of it."""

    def __init__(self, nets, make_optimizer, gate=None):
        self.nets, self.trunk_net, self.gate = nets, nets[-1], gate
        for net in nets:
            net.conv1, net.bn1 = self.trunk_net.conv1, self.trunk_net.bn1
        self.trunk = [*self.trunk_net.conv1.parameters(), *self.trunk_net.bn1.parameters()]
        branches = [p for net in nets for part in (net.conv2, net.fc) for p in part.parameters()]
        self.optimizer = make_optimizer([*self.trunk, *branches, *(gate.parameters() if gate else [])])

    def step(self, loss, trunk_factor=1.0):
        self.optimizer.zero_grad()
        loss.backward()
        for parameter in self.trunk:
            parameter.grad *= trunk_factor
        self.optimizer.step()


def term(z, target, temperature, follows):
    """`T^2 KL(target || z)`; targets pass gradients on if it `follows`."""
    target = target if follows else target.detach()
    return temperature**2 * kl(probs(target, temperature), probs(z, temperature))


def one(network, x, y, temperature, weight, follows):
    shared = network.trunk_net.trunk(x)
    zs = [net.branch(shared)[0] for net in network.nets]
    importance = probs(torch.relu(network.gate(shared.mean((2, 3)))))
    ensemble = sum(importance[:, i : i + 1] * z for i, z in enumerate(zs))
    distilled = sum(term(z, ensemble, temperature, follows) for z in zs)
    network.step(sum(ce(z, y) for z in zs) + ce(ensemble, y) + weight * distilled)


def cl_ilr(network, x, y, temperature, label_weight, weight, follows, rescaling):
    shared = network.trunk_net.trunk(x)
    zs, total = [net.branch(shared)[0] for net in network.nets], 0.0
    for i, z in enumerate(zs):
        others = [other for j, other in enumerate(zs) if j != i]
        total = total + label_weight * ce(z, y) + weight * term(z, sum(others) / len(others), temperature, follows)
    network.step(total, 1 / len(zs) if rescaling else 1.0)
