"""The optimizer against PyTorch's formulas, and the schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax.config import default
from orc_jax.errors import UserError
from orc_jax.optim import adam_direction, by_architecture, learning_rate_schedule, optimizer, sgd_direction, update
from orc_jax.testing import Stepper, build_run, run_steps


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_follows_pytorch(nesterov):
    """g = grad + decay * p;  buf = momentum * buf + g;  p -= lr * (g + momentum * buf if nesterov else buf)."""
    momentum, decay = 0.9, 5e-4
    optimizer = sgd_direction(momentum, nesterov, decay)
    params = jnp.array([[1.0, -2.0], [0.5, 3.0]])  # two members
    state = jax.vmap(optimizer.init)(params)
    expected, buf = np.array(params, np.float64), np.zeros((2, 2))
    for i, rate in enumerate([0.1, 0.1, 0.01]):
        grads = np.array([[0.3, 0.1], [-0.2, 1.0]]) * (i + 1)
        params, state = update(optimizer, params, state, jnp.asarray(grads, jnp.float32), jnp.float32(rate))
        g = grads + decay * expected
        buf = momentum * buf + g
        expected -= rate * (g + momentum * buf if nesterov else buf)
        np.testing.assert_allclose(params, expected, rtol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"momentum": 0.5, "nesterov": True, "weight_decay": 0.25}])
def test_the_optimizer_of_a_config(fields):
    """Its fields arrive where they belong: two steps, by PyTorch's formulas."""
    config = default()
    config.update(fields)
    params = jnp.array([[2.0]])
    state, grads, expected, buf = jax.vmap(optimizer(config).init)(params), jnp.ones((1, 1)), 2.0, 0.0
    for _ in range(2):
        params, state = update(optimizer(config), params, state, grads, jnp.float32(0.5))
        g = 1.0 + config.weight_decay * expected
        buf = config.momentum * buf + g
        expected -= 0.5 * (g + config.momentum * buf if config.nesterov else buf)
        np.testing.assert_allclose(params, [[expected]], rtol=1e-6)


def test_neither_momentum_nor_weight_decay():
    """Nothing is kept then, and the direction is the gradient."""
    plain = sgd_direction(0.0, False, 0.0)
    params, grads = jnp.array([[1.0, 2.0]]), jnp.array([[0.5, -1.0]])
    state = jax.vmap(plain.init)(params)
    assert not jax.tree.leaves(state)
    np.testing.assert_allclose(update(plain, params, state, grads, jnp.float32(0.5))[0], [[0.75, 2.5]])


@pytest.mark.parametrize("decay", [0.0, 1e-2])
def test_adam_follows_pytorch(decay):
    torch = pytest.importorskip("torch")
    params = jnp.array([[1.0, -2.0], [0.5, 3.0]])
    theirs = torch.tensor(np.asarray(params), requires_grad=True)
    other = torch.optim.Adam([theirs], lr=0.1, weight_decay=decay)
    direction = adam_direction(decay)
    state = jax.vmap(direction.init)(params)
    for i in range(3):
        grads = np.array([[0.3, 0.1], [-0.2, 1.0]], np.float32) * (i - 0.5)
        params, state = update(direction, params, state, jnp.asarray(grads), jnp.float32(0.1))
        theirs.grad = torch.tensor(grads)
        other.step()
        np.testing.assert_allclose(params, theirs.detach(), rtol=1e-5)


def test_values_by_architecture():
    names = ["a", "b"]
    assert by_architecture("config.lr_multipliers", "a=0.5, b = 2", names) == {"a": 0.5, "b": 2.0}
    assert by_architecture("config.optimizers", "b=adam", names) == {"b": "adam"}
    assert by_architecture("config.weight_decays", "a=0", names) == {"a": 0.0}
    for field, text, message in (
        ("lr_multipliers", "a=0", "must be name=positive number"),
        ("weight_decays", "a=x", "must be name=number from 0 on"),
        ("optimizers", "a=adm", "must be name=sgd or adam"),
        ("optimizers", "c=adam", "'c' is not known"),
    ):
        with pytest.raises(UserError, match=f"^config.{field}=.*{message}"):
            by_architecture(f"config.{field}", text, names)


def test_one_architecture_has_an_optimizer_of_its_own(config, toy):
    """And a weight decay; the others take the steps that they take without it."""
    config.method = "independent"
    plain = Stepper(build_run(config, toy))
    config.optimizers, config.weight_decays = "tiny_b=adam", "tiny_b=1e-4"
    mixed = Stepper(build_run(config, toy))
    ends = [run_steps(stepper) for stepper in (plain, mixed)]
    for name, same in (("tiny_a", True), ("tiny_b", False)):
        a, b = (end.stacks[name].params["fc.kernel"] for end in ends)
        assert np.array_equal(a, b) == same
    kinds = {name: len(jax.tree.leaves(stack.opt_state)) for name, stack in ends[1].stacks.items()}
    assert kinds["tiny_b"] == 2 * kinds["tiny_a"] + 1  # two moments, and a count of the steps


def test_a_run_of_plain_sgd(config, toy):
    """Neither momentum nor weight decay, through a whole step of ORC."""
    config.momentum, config.weight_decay = 0.0, 0.0
    state = run_steps(Stepper(build_run(config, toy)), 1)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.stacks))


def schedule(num_steps, per_epoch, **fields):
    config = default()
    config.update(fields)
    return lambda step: float(learning_rate_schedule(config, per_epoch, num_steps)(step))


def test_published_step_schedule():
    """240 epochs of 100 steps: divided by 10 after epochs 150, 180 and 210."""
    rate = schedule(24_000, 100)
    for step, expected in [(0, 0.05), (14_999, 0.05), (15_000, 0.005), (18_000, 5e-4), (20_999, 5e-4), (21_000, 5e-5)]:
        np.testing.assert_allclose(rate(step), expected, rtol=1e-6)


def test_warm_up_keeps_the_boundaries_of_the_schedule():
    rate = schedule(1000, 100, warmup_epochs=2.0, lr_boundaries=(0.5,))
    np.testing.assert_allclose([rate(s) for s in (0, 100, 200, 499, 500, 999)], [0, 0.025, 0.05, 0.05, 0.005, 0.005])


def test_cosine_and_constant():
    rate = schedule(1000, 100, lr_schedule="cosine", learning_rate=0.2)
    np.testing.assert_allclose([rate(s) for s in (0, 500, 1000)], [0.2, 0.1, 0.0], atol=1e-7)
    rate = schedule(1000, 100, lr_schedule="constant", warmup_epochs=1.0, learning_rate=0.2)
    np.testing.assert_allclose([rate(s) for s in (50, 100, 999)], [0.1, 0.2, 0.2])


def test_warm_up_then_cosine():
    """The cosine takes what the warm-up has left of the run; epochs need not be of whole steps."""
    rate = schedule(1000, 66.6, lr_schedule="cosine", learning_rate=0.2, warmup_epochs=3.0)
    np.testing.assert_allclose([rate(s) for s in (0, 100, 200, 600, 1000)], [0.0, 0.1, 0.2, 0.1, 0.0], atol=1e-7)


def test_another_decay():
    rate = schedule(1000, 100, lr_decay=0.5, lr_boundaries=(0.3, 0.6), learning_rate=0.8)
    np.testing.assert_allclose([rate(s) for s in (299, 300, 599, 600)], [0.8, 0.4, 0.4, 0.2], rtol=1e-6)
