"""What makes the step fast, and could disappear without anybody noticing."""

import math
import re
import types

import jax
import jax.numpy as jnp
import pytest

from orc_jax import parallel, pool
from orc_jax.config import resolve
from orc_jax.cost import flops, total
from orc_jax.data import feed
from orc_jax.models import conv
from orc_jax.pool import Pool
from orc_jax.run import abstract_state, build
from orc_jax.step import make_train_step
from orc_jax.testing import Stepper, assert_close, batches, build_run
from orc_jax.verbs import predict
from tests.helpers import stepper_of


def cost(config, dataset, architectures=None):
    """Operations of one training step on one device."""
    config = config.copy_and_resolve_references()
    if architectures:
        config.method, config.num_networks, config.student = "independent", 1, architectures
    stepper = Stepper(build_run(config, dataset))
    indices = parallel.shard(batches(1, 16, 90)[0], 1)
    return flops(stepper.train_step.mapped, stepper.init(), stepper.data, indices)


def forward_cost(config, dataset, architecture):
    """Operations of one forward pass of one network on the batch."""
    config = config.copy_and_resolve_references()
    config.method, config.num_networks, config.student = "independent", 1, architecture
    stepper = Stepper(build_run(config, dataset))
    images = jnp.zeros((config.batch_size, *dataset.image_shape))
    return flops(
        lambda stacks: predict(Pool(spec=stepper.run.spec, stacks=stacks), images).logits, stepper.init().stacks
    )


@pytest.mark.parametrize("k", [1, 2])
def test_an_iteration_has_no_pass_too_many(toy, config, k):
    """Every member's own step and the pivot teacher's look; "after", one more lesson and look of each promoted."""
    config.num_temporary_teachers = k
    alone = {name: cost(config, toy, name) for name in ("tiny_a", "tiny_b")}
    look = {name: forward_cost(config, toy, name) for name in ("tiny_a", "tiny_b")}
    members = ("tiny_a", "tiny_b", "tiny_a", "tiny_b")
    least = sum(alone[name] for name in members) + look["tiny_a"]
    config.orc.temporary_teacher_logits = "before"
    assert cost(config, toy) == pytest.approx(least, rel=1e-3)
    config.orc.temporary_teacher_logits = "after"
    # counted: the dearest branch, tiny_a; and the lessons of the rest as if none were promoted
    assert cost(config, toy) == pytest.approx(least + k * alone["tiny_a"], rel=1e-3)


def test_the_loop_moves_nothing_between_host_and_devices(toy, config):
    """Batches are placed on the devices ahead, and nothing is fetched: all else would be an error here."""
    stepper = stepper_of(config, toy)
    state = stepper.init()
    with feed.training(toy, config, stepper.run.devices, 0, 8, 1) as opened:
        state = stepper.train_step(state, stepper.data, next(opened))
        with jax.transfer_guard("disallow"):
            for batch in opened:
                state = stepper.train_step(state, stepper.data, batch)
        with jax.transfer_guard("disallow"), pytest.raises(Exception, match=r"[Dd]isallowed"):
            stepper.train_step(state, stepper.data, parallel.shard(batches(1, 16, 90)[0], 1))
    assert int(state.step) == 8


def reduced_bytes(function, *args):
    """Bytes that each device contributes to sums and means over devices in `function(*args)`, counted like `flops`."""

    def of_equation(equation) -> float:
        if not equation.primitive.name.startswith("psum"):
            return 0.0
        return sum(v.aval.size * v.aval.dtype.itemsize for v in equation.invars)

    return total(jax.make_jaxpr(function)(*args).jaxpr, of_equation)


def test_gradients_are_reduced_once(toy, config):
    """What a step communicates: each gradient, the moments of each batch normalisation, and a few numbers a member."""
    config.method = "independent"
    stepper = stepper_of(config, toy, 4)
    indices = parallel.shard(batches(1, 16, 90)[0], 4)
    state = stepper.init()
    sent = reduced_bytes(stepper.train_step.mapped, state, stepper.data, indices)
    gradients = sum(leaf.nbytes for stack in state.stacks.values() for leaf in stack.params.values())
    moments = 2 * sum(leaf.nbytes for stack in state.stacks.values() for leaf in stack.batch_stats.values())
    assert gradients + moments <= sent <= gradients + moments + 100
    hlo = stepper.train_step.compile(state, stepper.data, indices).as_text()
    results = "".join(line.split(" all-reduce")[0] for line in hlo.splitlines() if " all-reduce" in line)
    compiled = sum(4 * math.prod(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", results))
    assert gradients + moments <= compiled <= sent


def test_the_state_is_donated(toy, config):
    stepper = stepper_of(config, toy)
    step = make_train_step(stepper.run.setup, stepper.run.method.iterate)
    donating = parallel.DataParallel(step, stepper.run.devices, donate=True)
    state = stepper.init()
    indices = parallel.shard(batches(1, 16, 90)[0], 1)
    memory = donating.compile(state, stepper.data, indices).memory_analysis()
    assert memory.alias_size_in_bytes >= 0.99 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))


@pytest.mark.slow
def test_repeated_forward_passes_take_less_memory_and_change_nothing(toy, config):
    """With `config.remat`: the parameters after two steps up to rounding, and the temporaries of a step."""
    ends, sizes = [], []
    for config.remat in (False, True):
        stepper = stepper_of(config, toy)
        state = stepper.init()
        for indices in batches(2, 16, 90):
            state = stepper(state, indices)
        ends.append(state.stacks)
        large = Stepper(build_run(config, toy))
        args = large.init(), large.data, parallel.shard(batches(1, 80, 90)[0], 1)
        sizes.append(large.train_step.compile(*args).memory_analysis().temp_size_in_bytes)
    assert_close(*ends)
    assert sizes[1] < 0.6 * sizes[0]


def test_an_iteration_is_the_same_where_less_is_kept(toy, config, monkeypatch):
    """The networks as a TPU has them, run here, in an iteration with rows that learn alone: up to rounding."""
    monkeypatch.setitem(conv.WAYS, "cpu", conv.WAYS["tpu"])
    ends = []
    for kept in ({}, {"cpu": pool.SAVED["tpu"]}):
        monkeypatch.setattr(pool, "SAVED", kept)
        stepper = Stepper(build_run(config, toy))
        state = stepper.init()
        for indices in batches(2, 16, 90):
            state = stepper(state, indices)
        ends.append(state.stacks)
    assert_close(*ends)


def branches(config, dataset):
    """The conditionals and the loops of unknown length in a training step, as it is traced."""
    stepper = Stepper(build_run(config, dataset))
    indices = parallel.shard(batches(1, 16, 90)[0], 1)
    text = str(jax.make_jaxpr(stepper.train_step.mapped)(stepper.init(), stepper.data, indices))
    return re.findall(r"\b(cond|while|random_gamma)\[", text)


def test_an_iteration_does_not_branch(toy, config):
    """A GPU's host would wait for each: only on whose turn it is, for each promoted, in a pool of several stacks."""
    for config.num_temporary_teachers in (1, 2):
        assert branches(config, toy) == ["cond"] * config.num_temporary_teachers
    config.teacher, config.student, config.assistants = "tiny_a", "tiny_a", "copies"
    assert not branches(config, toy)
    config.orc.mixup_alpha = 0.5
    assert set(branches(config, toy)) == {"random_gamma"}  # which is a loop until it accepts


def traced(config, dataset, num_devices=1):
    """The equations of a training step as it is traced for TPUs: there a stack's convolutions are one equation."""
    run = build(resolve(config, num_devices), dataset, [types.SimpleNamespace(platform="tpu")])
    step = make_train_step(run.setup, run.method.iterate)
    mapped = parallel.DataParallel(step, jax.local_devices()[:num_devices], donate=False).mapped
    indices = jax.ShapeDtypeStruct((num_devices, config.batch_size // num_devices), jnp.int32)
    return jax.make_jaxpr(mapped)(abstract_state(run), jax.tree.map(jax.typeof, dataset.train), indices).jaxpr


def occurrences(jaxpr, *names):
    """How often a program has these operations, those of branches and loops once each."""
    return total(jaxpr, lambda equation: float(equation.primitive.name.startswith(names)))


# Passes of a step: those of the student group, of the pivot teacher in training, of it in evaluation; "after", one more
# lesson and look of the promoted. Backward: the pivot teacher, the student group, and that lesson.
PASSES = {"before": (2, 1, 2), "after": (3, 1, 3)}


@pytest.mark.parametrize("variant", PASSES)
@pytest.mark.parametrize("size", [3, 5])
def test_a_stack_makes_each_pass_once(toy, config, variant, size):
    """However many members it has."""
    config.teacher, config.student, config.assistants, config.num_networks = "tiny_a", "tiny_a", "copies", size
    config.orc.temporary_teacher_logits = variant
    training, evaluation, backward = PASSES[variant]
    # TinyNet: two convolutions forward; backward the gradients of two kernels, and of the images between them
    expected = 2 * (training + evaluation) + 3 * backward
    assert occurrences(traced(config, toy), "conv_general_dilated") == expected


@pytest.mark.parametrize("variant", PASSES)
@pytest.mark.parametrize("size", [3, 5])
def test_members_of_a_stack_share_their_reductions(toy, config, variant, size):
    config.teacher, config.student, config.assistants, config.num_networks = "tiny_a", "tiny_a", "copies", size
    config.orc.temporary_teacher_logits = variant
    training, _, backward = PASSES[variant]
    gradients, scores = 6 * backward, 2  # TinyNet has six arrays of parameters; a step tells loss and accuracy
    scores += variant == "after"  # and whether who was promoted can still teach
    # of its one normalisation: the moments, and on the way back their cotangents; or the moved mean and variance
    of_normalisation = {"global": training + backward, "local": 2 * training}
    for config.batch_norm, expected in of_normalisation.items():
        jaxpr = traced(config, toy, 4)
        assert occurrences(jaxpr, "psum") == gradients + scores + expected, config.batch_norm
        # images and labels of the batch, the losses, and who is wrong
        assert occurrences(jaxpr, "all_gather") == 4
