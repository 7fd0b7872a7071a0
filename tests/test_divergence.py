"""Members whose loss or weights are not finite any more: the run stops and says so, or goes on without them."""

import jax
import numpy as np
import pytest

from orc_jax import step
from orc_jax.errors import UserError
from orc_jax.testing import build_run
from orc_jax.workdir import checkpoint, metrics
from tests.helpers import evaluate, final_state, printed, train

pytestmark = pytest.mark.usefixtures("toy_set")


def test_a_diverging_member_stops_the_run(config, console, tmp_path):
    config.method, config.num_networks, config.assistants, config.learning_rate = "independent", 2, "", 1e30
    with pytest.raises(
        UserError,
        match=r"tiny.* has diverged: from step \d+ its loss or its weights are not finite. The last good.* none",
    ):
        train(config, tmp_path / "run", console)


def one_diverges(config):
    """A pool whose assistant's weights leave the range of floating-point numbers within a few steps."""
    config.teacher, config.assistants, config.student, config.num_networks = "tiny_a", "tiny_b", "tiny_a", 3
    config.lr_multipliers, config.pretrain_epochs = "tiny_b=1e25", 0


def test_a_diverging_member_is_named_with_its_step_and_the_last_good_checkpoint(config, console, tmp_path):
    one_diverges(config)
    config.checkpoint_every_steps, config.log_every_steps = 1, 100
    with pytest.raises(UserError, match=r"1_tiny_b has diverged: from step (\d+) its .* is that of step (\d+) in") as e:
        train(config, tmp_path / "run", console)
    diverged, good = (int(word) for word in str(e.value).replace(".", " ").split() if word.isdigit())
    assert good == diverged - 1 or good == diverged - 2
    with checkpoint.open_manager(tmp_path / "run", create=False) as manager:
        assert manager.latest_step() == good
    config.checkpoint_every_steps, config.log_every_steps = 0, 1  # found by the loss, as well, before the epoch ends
    with pytest.raises(UserError, match=r"1_tiny_b has diverged: from step .* is none in"):
        train(config, tmp_path / "other", console)
    assert not metrics.read(tmp_path / "other")


def test_an_assistant_that_diverges_can_be_isolated(config, console, tmp_path, toy):
    one_diverges(config)
    config.on_divergence = "isolate"
    train(config, tmp_path / "run", console)
    assert printed(console).count("1_tiny_b has diverged: from step") == 1
    state = final_state(tmp_path / "run", toy)
    stacks = state.stacks
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(stacks["tiny_a"]))
    assert not np.isfinite(stacks["tiny_b"].params["fc.kernel"]).all()
    last = metrics.read(tmp_path / "run")[-1]
    assert 0 < last["diverged_at/1_tiny_b"] < 6 and "diverged_at/0_tiny_a" not in last
    assert last["train/promoted/1_tiny_b"] == 0 and last["train/promoted/2_tiny_a"] == 1
    assert last["train/feedback_share/2_tiny_a"] == 1
    assert last["eval/top1/1_tiny_b"] == 0 and last["eval/top1/ensemble"] > 0.3
    assert np.isfinite(last["eval/loss/ensemble"])
    evaluate(config, tmp_path / "run", "latest", console)

    # The target student, which is what the run is for, stops it in any case; so does the pivot teacher.
    config.student = "tiny_b"
    with pytest.raises(UserError, match=r"_tiny_b has diverged"):
        train(config, tmp_path / "other", console)
    config.method = "dml"
    with pytest.raises(
        UserError, match=r"config.on_divergence='isolate': with config.method='dml'.*accepted is 'stop'"
    ):
        train(config, tmp_path / "third", console)


def test_weights_that_are_not_finite_are_found_before_they_are_saved(config, toy):
    run = build_run(config, toy)
    state = step.init_state(run.setup, run.method, 0).replace(step=np.int32(7))
    np.testing.assert_array_equal(step.find_diverged(run.spec, state), [0, 0, 0, 0])
    mean = state.stacks["tiny_a"].batch_stats["bn1.mean"].at[1, 0].set(np.inf)
    stack = state.stacks["tiny_a"]
    broken = stack.replace(batch_stats=stack.batch_stats | {"bn1.mean": mean})
    state = state.replace(stacks=state.stacks | {"tiny_a": broken}, diverged_at=np.array([0, 3, 0, 0]))
    np.testing.assert_array_equal(step.find_diverged(run.spec, state), [0, 3, 7, 0])
