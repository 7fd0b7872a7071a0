"""The optimizers against PyTorch and the formulas of their papers, one member at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax.config import default
from orc_jax.errors import UserError
from orc_jax.optim import (
    KINDS,
    adam_direction,
    by_architecture,
    clipped,
    is_kernel,
    kernels,
    layer_rates,
    optimizer,
    sgd_direction,
    update,
)
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
        ("optimizers", "a=adm", "must be name=sgd or adam or adamw"),
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


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


SHAPES = {"conv.kernel": (3, 3, 2, 4), "conv.bias": (4,), "bn.scale": (4,), "fc.kernel": (4, 3)}


def two_members(seed):
    """Parameters or gradients of two members by name, `[2, ...]`."""
    return {name: jnp.array(normal(seed + i, 2, *shape)) for i, (name, shape) in enumerate(SHAPES.items())}


def of_kind(kind, **fields):
    config = default()
    config.update({"optimizer": kind, "weight_decay": 0.1} | fields)
    return optimizer(config)


def run_of(direction, params, steps=3, rate=0.1):
    """Parameters and state after some updates; gradients are functions of the step."""
    state = jax.vmap(direction.init)(params)
    taken = jax.jit(lambda params, state, grads: update(direction, params, state, grads, jnp.float32(rate)))
    for step in range(steps):
        params, state = taken(params, state, two_members(10 * (step + 1)))
    return params, state


@pytest.mark.parametrize("on", ["all", "kernels"])
def test_adamw_follows_pytorch(on):
    """Decay is decoupled, and on kernels alone if it is said to be: PyTorch has groups of parameters for that."""
    torch = pytest.importorskip("torch")
    params = two_members(1)
    ours, _ = run_of(of_kind("adamw", weight_decay_on=on), params, steps=4)
    for member in range(2):
        theirs = {name: torch.tensor(np.asarray(x[member]), requires_grad=True) for name, x in params.items()}
        groups = [
            {"params": [x], "weight_decay": 0.1 if on == "all" or name.endswith("kernel") else 0.0}
            for name, x in theirs.items()
        ]
        other = torch.optim.AdamW(groups, lr=0.1)
        for step in range(4):
            grads = two_members(10 * (step + 1))
            for name, x in theirs.items():
                x.grad = torch.tensor(np.asarray(grads[name][member]))
            other.step()
        for name, x in theirs.items():
            np.testing.assert_allclose(ours[name][member], x.detach(), rtol=2e-5, atol=1e-5, err_msg=name)


def test_lion_follows_its_paper():
    """c = 0.9 m + 0.1 g;  p -= rate * (sign(c) + decay * p);  m = 0.99 m + 0.01 g."""
    params = two_members(1)
    expected, m = {k: np.asarray(x) for k, x in params.items()}, dict.fromkeys(params, 0.0)
    for step in range(3):
        for k, g in two_members(10 * (step + 1)).items():
            expected[k] = expected[k] - 0.1 * (np.sign(0.9 * m[k] + 0.1 * np.asarray(g)) + 0.1 * expected[k])
            m[k] = 0.99 * m[k] + 0.01 * np.asarray(g)
    for k, x in run_of(of_kind("lion"), params)[0].items():
        np.testing.assert_allclose(x, expected[k], rtol=1e-4, atol=1e-6)


def test_steps_of_lamb_are_as_long_as_the_parameters():
    params = two_members(1)
    after, _ = run_of(of_kind("lamb"), params, steps=1)
    for name, before in params.items():
        for member in range(2):
            step = np.linalg.norm(after[name][member] - before[member])
            np.testing.assert_allclose(step, 0.1 * np.linalg.norm(before[member]), rtol=1e-4, err_msg=name)


def test_muon_orthogonalises_kernels_and_leaves_the_rest_to_adamw():
    """Singular values of a step are about alike, and 0.2 sqrt(of the longer side) in size."""
    params = two_members(1)
    after, _ = run_of(of_kind("muon", weight_decay=0.0), params, steps=1, rate=1.0)
    adamw, _ = run_of(of_kind("adamw", weight_decay=0.0), params, steps=1, rate=1.0)
    for name, before in params.items():
        for member in range(2):
            step = np.asarray(before[member] - after[name][member])
            if not name.endswith("kernel"):
                # as in optax.contrib.muon, with Nesterov's momentum, which a first step does not have the sign of
                assert np.array_equal(np.sign(step), np.sign(before[member] - adamw[name][member])), name
                continue
            values = np.linalg.svd(step.reshape(-1, step.shape[-1]), compute_uv=False)
            size = 0.2 * np.sqrt(max(np.prod(step.shape[:-1]), step.shape[-1]))
            assert (values > 0.5 * size).all() and (values < 1.3 * size).all(), (name, values / size)


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_updated_one_by_one(kind):
    """Whatever is computed over a member's parameters, norms for instance, is of that member alone."""
    together, _ = run_of(of_kind(kind), two_members(1))
    direction = of_kind(kind)
    taken = jax.jit(direction.update)
    for member in range(2):
        alone = {name: x[member] for name, x in two_members(1).items()}
        state = direction.init(alone)
        for step in range(3):
            grads = {name: x[member] for name, x in two_members(10 * (step + 1)).items()}
            steps, state = taken(grads, state, alone)
            alone = {name: alone[name] - 0.1 * steps[name] for name in alone}
        for name, x in alone.items():
            np.testing.assert_allclose(together[name][member], x, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_accumulated_gradients(kind):
    """Two updates by halves are one by their mean: nothing moves before, and decay counts once."""
    halves, params = [two_members(10), two_members(20)], two_members(1)
    mean = {name: (halves[0][name] + halves[1][name]) / 2 for name in params}
    plain, some = of_kind(kind), of_kind(kind, accumulate_steps=2)
    expected, state = params, jax.vmap(plain.init)(params)
    ours, kept = params, jax.vmap(some.init)(params)
    taken = jax.jit(lambda params, state, grads: update(some, params, state, grads, jnp.float32(0.1)))
    for _ in range(2):
        expected, state = update(plain, expected, state, mean, jnp.float32(0.1))
        ours_before = ours
        ours, kept = taken(ours, kept, halves[0])
        assert all(np.array_equal(ours[name], ours_before[name]) for name in params)
        ours, kept = taken(ours, kept, halves[1])
        for name, x in expected.items():
            np.testing.assert_allclose(ours[name], x, rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped_member_by_member():
    """Over all parameters of a member; those that are short stay as they are, bit for bit."""
    grads = two_members(1)
    grads = {name: x.at[1].multiply(1e-3) for name, x in grads.items()}
    norms = [np.sqrt(sum(np.square(x[i]).sum() for x in grads.values())) for i in range(2)]
    cut = jax.jit(lambda grads: clipped(grads, 1.0))({"a": grads})["a"]
    assert norms[0] > 1 > norms[1]
    for name, x in grads.items():
        np.testing.assert_allclose(cut[name][0], x[0] / norms[0], rtol=1e-5)
        assert np.array_equal(cut[name][1], x[1])


def test_what_a_kernel_is():
    shapes = {"conv1.kernel": (3, 3, 1, 4), "bn1.scale": (4,), "fc.bias": (4,), "pos_embed": (1, 5, 4)}
    shapes |= {"cls_token": (1, 1, 4), "position_embedding": (5, 4), "attention.relative_position_bias_table": (9, 2)}
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    assert [name for name, is_one in kernels(params).items() if is_one] == ["conv1.kernel"]
    assert is_kernel("a.query", jnp.zeros((4, 2)))


def test_rates_of_layers():
    """1 in the last layer, and a factor less in each before it; the head of a method has no layers."""
    assert layer_rates({"conv": 0, "bn": 0, "block": 1, "fc": 2}, 0.5) == {
        "conv": 0.25,
        "bn": 0.25,
        "block": 0.5,
        "fc": 1,
    }


def test_layers_of_a_run_and_clipping_reach_the_step(config, toy):
    """Of the tiny network: conv1 with bn1, conv2, fc."""
    config.method, config.weight_decay, config.momentum = "independent", 0.0, 0.0
    config.num_networks, config.student, config.assistants = 1, "tiny_a", ""
    plain = Stepper(build_run(config, toy))
    config.layer_decay, config.clip_norm = 0.5, 0.1
    slowed = Stepper(build_run(config, toy))
    factors = {"conv1.kernel": 0.25, "bn1.scale": 0.25, "bn1.bias": 0.25, "conv2.kernel": 0.5, "fc.bias": 1}
    moves = []
    for stepper in (plain, slowed):
        start = stepper.init()
        end = run_steps(stepper, 1, start)
        moves.append(
            jax.tree.map(lambda a, b: np.asarray(a - b), end.stacks["tiny_a"].params, start.stacks["tiny_a"].params)
        )
    norm = np.sqrt(sum(np.square(x).sum() for x in moves[0].values())) / config.learning_rate
    assert norm > 0.1
    for name, factor in factors.items():
        np.testing.assert_allclose(moves[1][name], moves[0][name] * factor * 0.1 / norm, rtol=1e-3, atol=1e-7)
