"""Every method with every optimizer: all that learns moves, and what pauses keeps its optimizer, bit for bit."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax.config import default
from orc_jax.methods import BRANCHED, METHODS
from orc_jax.methods.branches import is_shared
from orc_jax.optim import KINDS, optimizer
from orc_jax.testing import Stepper, assert_identical, assert_resumes, build_run, run_steps
from orc_jax.verbs import forward, learn
from tests.methods.test_every_method import for_method
from tests.methods.test_verbs import IMAGES, context, loss, pool_of

# Methods that differ in what they do with an update: members that pause, that share layers, heads; each optimizer but
# SGD, which all other tests have. All pairs are slow.
DIAGONAL = [
    ("orc", "adamw"),
    ("switokd", "lion"),
    ("pcl", "muon"),
    ("okddip", "lamb"),
    ("one", "adam"),
]
REST = [pair for pair in itertools.product(METHODS, KINDS) if pair not in DIAGONAL]
PAIRS = [*DIAGONAL, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in REST)]


@pytest.mark.parametrize(("method", "kind"), PAIRS)
def test_every_method_learns_with_every_optimizer(method, kind, config, toy):
    """Also with all that is beside the optimizer: clipped gradients, decay on kernels alone, rates by layer."""
    for_method(config, method).optimizer = kind
    config.learning_rate, config.weight_decay, config.weight_decay_on = 1e-2, 0.1, "kernels"
    config.clip_norm, config.layer_decay, config.crop_padding = 1.0, 0.9, 0
    stepper = Stepper(build_run(config, toy))
    start = stepper.init()
    end = run_steps(stepper, 2, start)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(end.stacks))
    for i in range(3):
        before, after = (stepper.member(state, i).params for state in (start, end))
        moved = max(np.abs(before[name] - after[name]).max() for name in before)
        assert (moved > 1e-5) == (i not in stepper.run.method.frozen), f"member {i} moved by {moved}"
    if method in BRANCHED:  # whose peers keep sharing what they share
        params, shared = end.stacks["tiny_b"].params, is_shared("tiny_b")
        assert all(np.array_equal(x, np.broadcast_to(x[:1], x.shape)) for name, x in params.items() if shared(name))


@pytest.mark.parametrize("kind", KINDS)
def test_who_pauses_keeps_the_optimizer_bit_for_bit(kind):
    """With several steps to an update, too: who has paused in one of them is updated later."""
    config = default()
    config.optimizer, config.accumulate_steps = kind, 2
    now = context(optimizer=optimizer(config))
    pool = pool_of(now.setup)
    init = jax.vmap(now.setup.optimizer.init)
    pool = pool.replace(stacks={name: s.replace(opt_state=init(s.params)) for name, s in pool.stacks.items()})
    learns = jnp.array([True, False, True])
    step = jax.jit(lambda pool, learns: learn(now, forward(pool, IMAGES), loss, learns=learns))
    once = step(step(pool, learns), ~learns)
    for i in range(3):
        assert_identical(once.member(i).params, pool.member(i).params)  # one gradient each
    twice = step(once, learns)
    assert_identical(twice.member(1), once.member(1))
    for i in (0, 2):
        assert not np.array_equal(twice.member(i).params["w"], once.member(i).params["w"])


def test_what_an_optimizer_keeps_goes_on(config, toy, tmp_path):
    """Of the one that keeps the most kinds of things, with a gradient that waits for its update."""
    config.method, config.num_networks, config.assistants = "independent", 1, ""
    config.optimizer, config.accumulate_steps, config.weight_decay_on, config.log_to = "muon", 2, "kernels", ""
    assert_resumes(config, tmp_path, toy)  # an epoch has five steps
