"""Every method against a plain PyTorch loop, and what methods have in common: collapse laws, stages, heads, views."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from orc_jax.methods.dgkd import keep_guides
from orc_jax.methods.okddip import ATTENTION
from orc_jax.methods.pcl import ENSEMBLE, MEAN_TEACHERS
from orc_jax.step import augment
from tests import torch_methods
from tests.helpers import batches, stepper_of


def use(config, method, teacher, assistants, student, **options):
    config.method, config.teacher, config.assistants, config.student = method, teacher, assistants, student
    config.num_networks = 2 + len(list(filter(None, assistants.split(","))))
    config[method].update(options)


def to_torch(member):
    """The PyTorch network with the parameters and statistics of a member."""
    params = {name: torch.tensor(np.asarray(x)) for name, x in (member.params | member.batch_stats).items()}
    kernel = params["conv1.kernel"]
    net = torch_methods.Tiny(kernel.shape[2], kernel.shape[3], params["fc.kernel"].shape[1])
    names = {"bn1.weight": "bn1.scale", "bn1.running_mean": "bn1.mean", "bn1.running_var": "bn1.var"}
    state = net.state_dict()
    for name in state:
        if name == "bn1.num_batches_tracked":
            continue
        source = params[names.get(name, name.replace("weight", "kernel"))]
        state[name] = source.permute(*{4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[source.ndim])
    net.load_state_dict(state)
    return net.train()


def assert_same_network(member, net):
    expected = to_torch(member).state_dict()
    for name, value in net.state_dict().items():
        if name != "bn1.num_batches_tracked":
            np.testing.assert_allclose(expected[name], value, rtol=1e-4, atol=2e-6, err_msg=name)


class Comparison:
    """A run of the package beside a PyTorch loop, both from the same initial networks."""

    def __init__(self, config, toy):
        self.config, self.toy = config, toy
        self.stepper = stepper_of(config, toy)
        self.state = self.stepper.init()
        self.size = self.stepper.run.setup.pool.size
        self.nets = [to_torch(self.stepper.member(self.state, i)) for i in range(self.size)]
        self.optimizers = [self.optimizer(net.parameters()) for net in self.nets]

    def optimizer(self, parameters, lr=None):
        config = self.config
        return torch.optim.SGD(
            parameters, lr or config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
        )

    def __iter__(self):
        """Makes three steps; before each, yields the step, each network's view of the batch, and the labels."""
        setup = self.stepper.run.setup
        for step, indices in enumerate(batches(3, 16, 90)):
            examples = type(self.toy.train)(self.toy.train.images[indices], self.toy.train.labels[indices])
            images = np.asarray(augment(setup._replace(axis_name=None), self.state, examples))
            images = images if setup.views > 1 else np.stack([images] * self.size)
            views = (images / np.float32(255) - np.float32(self.toy.mean)) / np.float32(self.toy.std)
            views = [torch.tensor(view).permute(0, 3, 1, 2).float() for view in views]
            yield step, views, torch.tensor(examples.labels).long()
            self.state = self.stepper(self.state, indices)

    def check(self):
        start = self.stepper.init()
        for i, net in enumerate(self.nets):
            assert_same_network(self.stepper.member(self.state, i), net)
            if i not in self.stepper.run.method.frozen:
                moved = np.abs(self.stepper.member(self.state, i).params["fc.bias"])
                assert np.abs(moved - np.abs(self.stepper.member(start, i).params["fc.bias"])).max() > 1e-4


def test_independent(config, toy):
    use(config, "independent", "tiny_a", "", "tiny_b")
    both = Comparison(config, toy)
    for _, views, y in both:
        torch_methods.independent(both.nets, both.optimizers, views, y)
    both.check()


def test_kd(config, toy):
    use(config, "kd", "tiny_a", "", "tiny_b", temperature=3.0, alpha=0.7)
    both = Comparison(config, toy)
    for _, views, y in both:
        torch_methods.kd(both.nets, both.optimizers, views, y, 3.0, 0.7)
    both.check()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_dgkd(config, toy, reduction):
    use(config, "dgkd", "tiny_a", "tiny_b,tiny_a", "tiny_b", temperature=2.0, lam=0.6, kl_reduction=reduction)
    both = Comparison(config, toy)
    for step, views, y in both:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 2), step)  # seed, stream "method", step
        kept = np.asarray(keep_guides(key, 3, 1)).astype(bool)
        assert kept.sum() == 2
        torch_methods.dgkd(both.nets, both.optimizers, views, y, 2.0, 0.6, kept, class_mean=reduction == "mean")
    both.check()


def test_takd(config, toy):
    use(config, "takd", "tiny_a", "tiny_a", "tiny_b", temperature=2.0, lam=0.6)
    both = Comparison(config, toy)
    for _, views, y in both:
        torch_methods.dgkd(both.nets, both.optimizers, views, y, 2.0, 0.6, [False, True])
    both.check()


def test_dml(config, toy):
    use(config, "dml", "tiny_a", "tiny_a", "tiny_b")
    both = Comparison(config, toy)
    for _, views, y in both:
        torch_methods.dml(both.nets, both.optimizers, views, y)
    both.check()


@pytest.mark.parametrize("target", ["minlogit", "naive"])
def test_kdcl(config, toy, target):
    """With an augmentation of its own for each network."""
    use(config, "kdcl", "tiny_a", "", "tiny_b", temperature=2.0, target=target)
    config.crop_padding, config.flip = 2, True
    both = Comparison(config, toy)
    for _, views, y in both:
        assert not torch.equal(views[0], views[1])
        torch_methods.kdcl(both.nets, both.optimizers, views, y, 2.0, target)
    both.check()


SWITCHES = {
    # Number of teachers, members, and factors on their classifiers: networks that are so sure get into both modes.
    "1T1S": (1, ("tiny_a", "", "tiny_b"), (30.0, 3.0)),
    "2T1S": (2, ("tiny_a", "tiny_a", "tiny_b"), (30.0, 30.0, 3.0)),
    "1T2S": (1, ("tiny_a", "tiny_b", "tiny_b"), (30.0, 1.0, 10.0)),
}


def scaled(stepper, state, factors):
    """`state` with each member's classifier multiplied by a factor."""
    stacks = dict(state.stacks)
    for stack in stepper.run.setup.pool.stacks:
        params = stacks[stack.name].params
        factor = jnp.array([factors[member] for member in stack.members])[:, None, None]
        stacks[stack.name] = stacks[stack.name].replace(params=params | {"fc.kernel": params["fc.kernel"] * factor})
    return state.replace(stacks=stacks)


@pytest.mark.parametrize("topology", SWITCHES)
def test_switokd(config, toy, topology):
    num_teachers, members, factors = SWITCHES[topology]
    use(config, "switokd", *members, num_teachers=num_teachers)
    both = Comparison(config, toy)
    both.state = scaled(both.stepper, both.state, factors)
    both.nets = [to_torch(both.stepper.member(both.state, i)) for i in range(both.size)]
    both.optimizers = [both.optimizer(net.parameters()) for net in both.nets]
    modes, totals = [], np.zeros(both.size)
    for _, views, y in both:
        expert = torch_methods.switokd(both.nets, both.optimizers, views, y, num_teachers)
        modes.append(tuple(expert.values()))
        for i in range(both.size):
            totals[i] += np.mean([mode for pair, mode in expert.items() if i in pair])
    both.check()
    np.testing.assert_allclose(both.state.totals["expert_mode"], totals, rtol=1e-6)
    assert len(set(sum(modes, ()))) == 2, "the test needs both modes to mean anything"
    if topology != "1T1S":
        assert (True, False) in modes or (False, True) in modes, "and pairs that differ"


def test_pcl(config, toy):
    """Against one network with a single trunk: equal copies that share their gradients are the same thing."""
    use(config, "pcl", "tiny_b", "tiny_b", "tiny_b", rampup_fraction=0.5)
    config.crop_padding = 2
    both = Comparison(config, toy)
    head = both.state.stacks[ENSEMBLE].params
    classifier = torch.nn.Linear(head["kernel"].shape[1], head["kernel"].shape[2])
    with torch.no_grad():
        classifier.weight.copy_(torch.tensor(np.asarray(head["kernel"][0])).T)
        classifier.bias.copy_(torch.tensor(np.asarray(head["bias"][0])))
    loop = torch_methods.PCL(both.nets, classifier, both.optimizer)
    for step, views, y in both:
        assert not torch.equal(views[0], views[1])
        weight = torch_methods.ramp(step / both.stepper.run.num_steps, 0.5)
        loop.iteration(views, y, 3.0, weight, 0.999)
    for i, net in enumerate(both.nets):
        net.conv1, net.bn1 = loop.trunk_net.conv1, loop.trunk_net.bn1
        mean = loop.mean_branches[i]
        mean.conv1, mean.bn1 = loop.mean_trunk.conv1, loop.mean_trunk.bn1
        teacher = jax.tree.map(lambda x, i=i: x[i], both.state.stacks[MEAN_TEACHERS])
        assert_same_network(teacher, mean)
    both.check()
    head = both.state.stacks[ENSEMBLE].params
    np.testing.assert_allclose(head["kernel"][0].T, classifier.weight.detach(), rtol=1e-4, atol=2e-6)
    # What is shared is the same bit for bit, what is not differs.
    params = both.state.stacks["tiny_b"].params
    for i in (1, 2):
        np.testing.assert_array_equal(params["conv1.kernel"][i], params["conv1.kernel"][0])
        assert not np.array_equal(params["conv2.kernel"][i], params["conv2.kernel"][0])


def test_okddip(config, toy):
    """Two peers of different architectures, each with its projections, and a leader."""
    use(config, "okddip", "tiny_a", "tiny_b", "tiny_b", projection_divisor=2, rampup_fraction=0.5)
    both = Comparison(config, toy)
    head = both.state.stacks[ATTENTION].params
    names = [[f"{name}.{kind}" for kind in ("query", "key")] for name in ("tiny_a", "tiny_b")]
    matrices = [[torch.tensor(np.asarray(head[n][0])).requires_grad_() for n in pair] for pair in names]
    head_optimizer = both.optimizer([matrix for pair in matrices for matrix in pair])
    for step, views, y in both:
        weight = torch_methods.ramp(step / both.stepper.run.num_steps, 0.5)
        torch_methods.okddip(both.nets, both.optimizers, views, y, 3.0, weight, matrices, head_optimizer)
    both.check()
    learnt = both.state.stacks[ATTENTION].params
    for pair, values in zip(names, matrices, strict=True):
        for name, value in zip(pair, values, strict=True):
            np.testing.assert_allclose(learnt[name][0], value.detach(), rtol=1e-4, atol=2e-6)
            assert np.abs(learnt[name] - head[name]).max() > 1e-6


ORC = {
    "default": {},
    "before": {"order": "before"},
    "two temporary teachers, ensemble": {"k": 2, "teaching": "ensemble"},
}


@pytest.mark.parametrize("variant", ORC)
def test_orc(config, toy, variant):
    options = ORC[variant]
    config.num_temporary_teachers = options.get("k", 1)
    config.orc.temporary_teacher_logits = options.get("order", "after")
    config.orc.teaching = options.get("teaching", "individual")
    both = Comparison(config, toy)
    pivot_optimizer = both.optimizer(both.nets[0].parameters(), 0.1 * config.learning_rate)
    promoted = np.zeros(both.size)
    for step, views, y in both:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 2), step)
        lam = float(jax.random.beta(key, 1.0, 1.0))
        for i in torch_methods.orc(both.nets, both.optimizers, pivot_optimizer, views[0], y, lam, **options):
            promoted[i] += 1
    both.check()
    np.testing.assert_array_equal(both.state.totals["promoted"], promoted)
