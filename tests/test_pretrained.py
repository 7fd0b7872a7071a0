"""What comes before a run: members that are trained already, and runs that give their weights to a new one."""

import shutil

import jax
import numpy as np
import pytest

from orc_jax import pretrained, step
from orc_jax.data import sets
from orc_jax.errors import UserError
from orc_jax.pool import Pool
from orc_jax.testing import assert_identical, build_run
from orc_jax.workdir import metrics, record
from tests.helpers import contents, final_state, printed, train

pytestmark = pytest.mark.usefixtures("toy_set")


def test_the_pivot_teacher_of_another_run_is_used(finished, config, console, tmp_path, toy):
    config.pivot_checkpoint = str(finished / "pivot")
    run = build_run(config, toy, 4)
    loaded = pretrained.load_members(run, finished / "pivot", [0])
    stacks = Pool(spec=run.spec, stacks=step.init_stacks(run.setup, run.method, 0)).with_weights(loaded).stacks
    theirs = final_state(finished / "pivot", toy).stacks["tiny_a"]
    assert_identical(jax.tree.map(lambda x: x[0], stacks["tiny_a"].params), jax.tree.map(lambda x: x[0], theirs.params))
    fresh = step.init_stacks(run.setup, run.method, 0)
    assert_identical(stacks["tiny_b"], fresh["tiny_b"])
    assert not np.array_equal(stacks["tiny_a"].params["fc.bias"][0], fresh["tiny_a"].params["fc.bias"][0])
    np.testing.assert_array_equal(stacks["tiny_a"].params["fc.bias"][1], fresh["tiny_a"].params["fc.bias"][1])
    # Of a run whose classes are in another order, its outputs are put in that of the data.
    other = shutil.copytree(finished / "pivot", tmp_path / "other")
    record.write(other, record.require(other)._replace(class_names=("bottom", "top", "middle")))
    (note,) = pretrained.notes(run, [pretrained.Source(other, (0,), None, "pivot")])
    assert "the outputs are put in that of the data set: top, middle, bottom" in note
    moved = pretrained.load_members(run, other, [0])[0].params
    for name, value in loaded[0].params.items():
        np.testing.assert_array_equal(moved[name], value[..., [1, 2, 0]] if name.startswith("fc") else value)
    # The same run as the one that trained the pivot teacher itself.
    train(config, tmp_path / "second", console)
    assert not (tmp_path / "second" / "pivot").exists()
    assert_identical(final_state(tmp_path / "second", toy), final_state(finished, toy))


def test_what_is_said_of_a_teacher_from_elsewhere(config, tmp_path, toy):
    """Which classes its outputs are taken for, and if it has seen other pixels."""
    run = build_run(config, toy)
    sources = [pretrained.Source(tmp_path, (0,), None, "pivot"), pretrained.Source(tmp_path, (0,), run, "assistant_1")]
    record.write(tmp_path, run.record())
    assert pretrained.notes(run, sources) == []
    changed = {"config": {"stream": {"pixel_range": [0, 4095]}}, "imported": {"file": "x.pth"}, "class_names": ()}
    record.write(tmp_path, run.record()._replace(**changed))
    names, pixels = pretrained.notes(run, sources)
    assert "do not know the names of their classes; taken is the order of the data set: top, middle, bottom" in names
    assert pixels == (
        f"note: the networks of {tmp_path} have seen images by stream.pixel_range=(0, 4095), here it is ()"
    )


def test_a_pivot_checkpoint_of_other_networks_is_refused(finished, config, console, tmp_path, monkeypatch, toy):
    config.pivot_checkpoint, config.teacher = str(finished / "pivot"), "tiny_b"
    with pytest.raises(UserError, match="needed is a trained tiny_b, but its pool is tiny_a"):
        train(config, tmp_path / "run", console)
    config.teacher = "tiny_a"
    with monkeypatch.context() as patch, pytest.raises(UserError, match="normalised with mean, std"):
        patch.setattr(sets, "load", lambda *_, **__: toy._replace(mean=(0.5,)))
        train(config, tmp_path / "run", console)
    config.dataset = "digits"
    with pytest.raises(UserError, match="1 channels and 3 classes, but digits has 1 and 10"):
        train(config, tmp_path / "run", console)
    assert not (tmp_path / "run").exists()


def test_a_new_run_starts_from_the_weights_of_another(plain, config, console, tmp_path, toy):
    workdir = shutil.copytree(plain, tmp_path / "run")
    old = final_state(workdir, toy)
    config.learning_rate = 1e-30
    with pytest.raises(UserError, match=r"(?s)config.learning_rate: 0.05 there.*--resume=weights"):
        train(config, workdir, console)
    with pytest.raises(UserError, match=r"--resume=weights: --workdir=.*none holds no run"):
        train(config, tmp_path / "none", console, resume="weights")
    train(config, workdir, console, resume="weights")
    new = final_state(workdir, toy)
    assert int(new.step) == 11 and [row["epoch"] for row in metrics.read(workdir)] == [1, 2]
    for name in ("tiny_a", "tiny_b"):  # at this learning rate weights stay what they were
        assert_identical(new.stacks[name].params, old.stacks[name].params)
        assert not np.array_equal(new.stacks[name].opt_state[1].trace["fc.bias"], old.stacks[name].params["fc.bias"])
    assert_identical(final_state(tmp_path / "run.1", toy), old)
    assert f"the run in {workdir} is now {workdir}.1" in printed(console)
    # Given again, the command goes on with the new run.
    before = contents(workdir / "checkpoints")
    train(config, workdir, console, resume="weights")
    assert before == contents(workdir / "checkpoints")
    assert not (tmp_path / "run.2").exists()
    # An interruption between the two moves that change the runs' places.
    workdir.rename(tmp_path / "run.new")
    train(config, workdir, console, resume="weights")
    assert before == contents(workdir / "checkpoints")
    config.teacher, config.learning_rate = "tiny_b", 0.1
    with pytest.raises(UserError, match=r"--workdir=.*needed is a trained tiny_b, but its pool is tiny_a, tiny_b"):
        train(config, workdir, console, resume="weights")
    assert before == contents(workdir / "checkpoints")
