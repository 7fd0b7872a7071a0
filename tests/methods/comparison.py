"""Three steps of a method, here and in a plain PyTorch loop (see `torch_methods`), from the same initial networks."""

import copy

import jax
import numpy as np
import torch

from orc_jax.step import augment
from tests.helpers import batches, stepper_of
from tests.methods import torch_methods


def use(config, method, teacher, assistants, student, **options):
    """Sets the method, its pool and its options."""
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


def method_key(step):
    """What the method draws from in a step: seed 0, the stream "method", the step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 2), step)


class Comparison:
    """A run of the package beside a PyTorch loop. `change`, if given, is made to the initial state of both."""

    def __init__(self, config, toy, change=None):
        self.config, self.toy = config, toy
        self.stepper = stepper_of(config, toy)
        start = self.stepper.init()
        self.start = self.state = jax.device_get(change(self.stepper, start) if change else start)
        self.size = self.stepper.run.spec.size
        self.nets = [to_torch(self.member(self.start, i)) for i in range(self.size)]
        self.optimizers = [self.optimizer(net.parameters()) for net in self.nets]
        self.scores = {"loss": np.zeros(self.size), "accuracy": np.zeros(self.size)}

    def member(self, state, i):
        """One member of a state, which NumPy takes faster than JAX compiles."""
        return self.stepper.member(jax.device_get(state), i)

    def optimizer(self, parameters, lr=None):
        config = self.config
        return torch.optim.SGD(
            parameters, lr or config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
        )

    def __iter__(self):
        """Makes three steps; before each, yields the step, each network's view of the batch, and the labels."""
        setup, dataset = self.stepper.run.setup._replace(axis_name=None), self.toy
        augmented = jax.jit(lambda seed, step, examples: augment(setup, seed, step, examples))
        for step, indices in enumerate(batches(3, 16, 90)):
            examples = type(dataset.train)(dataset.train.images[indices], dataset.train.labels[indices])
            images = np.asarray(augmented(self.state.seed, self.state.step, examples))
            images = images if setup.views > 1 else np.stack([images] * self.size)
            views = (images / np.float32(255) - np.float32(dataset.mean)) / np.float32(dataset.std)
            views = [torch.tensor(view).permute(0, 3, 1, 2).float() for view in views]
            labels = torch.tensor(examples.labels).long()
            self.score(views, labels)
            yield step, views, labels
            self.state = self.stepper(self.state, indices)

    def score(self, views, labels):
        """Every member on the batch as it is now: in training mode, but if it is frozen."""
        for i, (net, view) in enumerate(zip(self.nets, views, strict=True)):
            with torch.no_grad():
                logits = copy.deepcopy(net).train(i not in self.stepper.run.method.frozen)(view)[0]
            self.scores["loss"][i] += torch_methods.ce(logits, labels)
            self.scores["accuracy"][i] += (logits.argmax(1) == labels).float().mean()

    def check(self):
        """Both have the same networks and scores, and all that learn have moved."""
        for name, values in self.scores.items():
            np.testing.assert_allclose(self.state.totals[name], values, rtol=1e-4, err_msg=name)
        for i, net in enumerate(self.nets):
            assert_same_network(self.member(self.state, i), net)
            if i not in self.stepper.run.method.frozen:
                before, after = (self.member(state, i).params["fc.bias"] for state in (self.start, self.state))
                assert np.abs(after - before).max() > 1e-4
