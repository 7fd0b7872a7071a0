"""Moving averages of members: how they move, when they stay, and who takes them."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax.config import resolve
from orc_jax.deploy.export import describe
from orc_jax.deploy.member import load_member
from orc_jax.errors import UserError
from orc_jax.evaluate import evaluator
from orc_jax.pool import Pool
from orc_jax.step import move_averages
from orc_jax.testing import Stepper, assert_identical, assert_resumes, build_run
from orc_jax.training import train
from orc_jax.workdir import checkpoint, metrics, record
from tests.helpers import evaluate, final_state
from tests.methods.test_verbs import pool_of, setup

pytestmark = pytest.mark.usefixtures("toy_set")


def test_averages_move_towards_who_has_moved():
    """Parameters and statistics; of one that has paused they stay, bit for bit, though its statistics have moved."""
    before = pool_of(setup()).select([0, 1, 2])
    stacks = {name: stack.replace(opt_state=()) for name, stack in before.stacks.items()}
    averages = jax.tree.map(lambda x: x + 1.0, stacks)
    a = stacks["a"]
    moved = a.replace(
        params={name: x.at[0].add(0.5) for name, x in a.params.items()},
        batch_stats={name: x + 0.5 for name, x in a.batch_stats.items()},
    )
    for updates, share in ((0, 1.0), (1, 1.0), (2, 0.5), (100, 0.1)):
        after = move_averages(0.9, jnp.int32(updates), averages, stacks, stacks | {"a": moved})
        assert_identical(after["b"], averages["b"])
        for kind in ("params", "batch_stats"):
            for name, x in getattr(after["a"], kind).items():
                old, new = getattr(averages["a"], kind)[name], getattr(moved, kind)[name]
                np.testing.assert_allclose(x[0], (1 - share) * old[0] + share * new[0], rtol=1e-5, atol=1e-6)
                assert np.array_equal(x[1], old[1])


def test_with_gradients_of_several_batches_they_forget_the_start_too(config, toy):
    """The first update, after three steps, is the whole average; the next weighs a half."""
    config.method, config.num_networks, config.assistants = "independent", 2, ""
    config.ema_decay, config.accumulate_steps = 0.9, 3
    stepper = Stepper(build_run(config, toy))
    states = [stepper.init()]
    for step in range(6):
        states.append(stepper(states[-1], np.arange(8) + step))
    start, first, second = (states[i].stacks["tiny_a"].params for i in (0, 3, 6))
    averages = [states[i].averages["tiny_a"].params for i in (2, 3, 6)]
    assert_identical(averages[0], start)
    for name, x in first.items():
        np.testing.assert_allclose(averages[1][name], x, rtol=1e-6)
        np.testing.assert_allclose(averages[2][name], (x + second[name]) / 2, rtol=1e-5, atol=1e-7)


def test_a_run_that_keeps_none_has_none(config, toy):
    stepper = Stepper(build_run(config, toy))
    assert stepper.init().averages == {}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("averages")


@pytest.fixture
def run(workdir, config, toy):
    """The config of a run of a network and a frozen teacher, finished and resumed, which keeps averages."""
    config.method, config.num_networks, config.assistants, config.log_to = "kd", 2, "", ""
    config.ema_decay, config.eval_ema = 0.9, True
    if not (workdir / "whole").exists():
        assert_resumes(config, workdir, toy)
    return config


def test_they_are_evaluated_and_taken_by_choice(run, workdir, toy, console, tmp_path):
    whole = workdir / "whole"
    state = final_state(whole, toy)
    row, name = metrics.read(whole)[-1], "1_tiny_b"
    built = build_run(run, toy, 4)
    results = [evaluator(built)(stacks)["target_student"] for stacks in (state.stacks | state.averages, state.stacks)]
    assert row[metrics.evaluation("loss", name)] == pytest.approx(results[0]["loss"], rel=1e-5)
    assert results[0]["loss"] != pytest.approx(results[1]["loss"], rel=1e-3)
    for ema, given in ((True, None), (True, True), (False, False)):
        member = load_member(whole, "target", "latest", ema=given)
        pool = Pool(built.spec, state.averages if ema else state.stacks)
        assert_identical(member.weights[0], jax.device_get(pool.member(1).params))
        assert member.ema == describe(member, {})["ema"] == ema
    assert_identical(
        jax.device_get(state.averages["tiny_a"]), jax.device_get(state.stacks["tiny_a"].replace(opt_state=()))
    )
    shutil.copytree(whole, tmp_path / "run")
    for eval_ema, expected in zip((True, False), results, strict=True):
        run.eval_ema = eval_ema
        evaluate(run, tmp_path / "run", "latest", console)
        (written,) = (tmp_path / "run").glob("evaluation_*[0-9].json" if eval_ema else "evaluation_*_members.json")
        assert json.loads(written.read_text())["target_student"]["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_a_checkpoint_of_before_there_were_any_goes_on(plain, config, toy, console, tmp_path):
    """Its arrays are the same."""
    old = shutil.copytree(plain, tmp_path / "old")
    steps = sorted((old / checkpoint.CHECKPOINTS).glob("[0-9]*"), key=lambda path: int(path.name))
    shutil.rmtree(steps[-1])
    state = jax.device_get(final_state(old, toy))
    assert state.averages == {}
    fields = {name: getattr(state, name) for name in state.__dataclass_fields__ if name != "averages"}
    shutil.rmtree(old / checkpoint.CHECKPOINTS)
    with checkpoint.open_manager(old, create=True) as manager:
        checkpoint.save(manager, int(state.step), fields, record.require(old))
        checkpoint.finish(manager)
    train(resolve(config), old, console)
    assert_identical(final_state(old, toy), final_state(plain, toy))
    with pytest.raises(UserError, match=r"holds a run that keeps no averages of its members \(config.ema_decay=0\)"):
        load_member(old, "target", "latest", ema=True)


def test_refused(config):
    config.eval_ema = True
    with pytest.raises(UserError, match=r"config.eval_ema=True: with config.ema_decay=0.0 no averages are kept"):
        resolve(config, 1)
    config.ema_decay = 1.0
    with pytest.raises(UserError, match=r"config.ema_decay=1.0: must be in \[0, 1\)"):
        resolve(config, 1)
