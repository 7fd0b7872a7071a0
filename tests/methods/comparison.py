"""A method beside a plain PyTorch loop (see `torch_methods`), from the same initial tiny networks."""

import jax

from orc_jax.testing import Comparison
from tests.helpers import stepper_of
from tests.methods.torch_methods import Tiny

NETWORKS = {
    "tiny_a": lambda classes, shape: Tiny(shape[-1], 6, classes),
    "tiny_b": lambda classes, shape: Tiny(shape[-1], 4, classes),
}


def use(config, method, teacher, assistants, student, **options):
    """Sets the method, its pool and its options."""
    config.method, config.teacher, config.assistants, config.student = method, teacher, assistants, student
    config.num_networks = 2 + len(list(filter(None, assistants.split(","))))
    config[method].update(options)


def compared(config, toy, change=None):
    """The run of a config beside PyTorch's networks. `change`, if given, is made to the initial state of both."""
    return Comparison(stepper_of(config, toy), NETWORKS, change)


def method_key(step):
    """What the method draws from in a step: seed 0, the stream "method", the step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 2), step)
