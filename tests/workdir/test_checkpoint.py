"""Checkpoints: which are kept and which is best, and what becomes of damaged ones."""

import os
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from orc_jax.errors import UserError
from orc_jax.run import abstract_state
from orc_jax.step import init_state
from orc_jax.testing import assert_identical, build_run
from orc_jax.workdir import checkpoint, metrics, record
from orc_jax.workdir.paths import LocalPath
from tests.helpers import files, final_state, printed, train

pytestmark = pytest.mark.usefixtures("toy_set")


def test_the_two_latest_and_the_best_are_kept(config, toy, tmp_path):
    """Seven checkpoints, one of them without an evaluation; of two that are equally good the later is the best."""
    config.method, config.num_networks, config.assistants = "independent", 2, ""
    run = build_run(config, toy)
    state = init_state(run.setup, run.method, 0)
    kept = {}
    with checkpoint.open_manager(tmp_path, create=True) as manager:
        for step, top1 in enumerate([0.3, 0.6, 0.5, None, 0.6, 0.2, 0.1], start=1):
            checkpoint.save(manager, step, state.replace(step=np.int32(step)), run.record(), top1)
            checkpoint.finish(manager)
            kept[step] = sorted(manager.all_steps())
        assert manager.best_step() == 5  # to Orbax, too
    assert kept == {1: [1], 2: [1, 2], 3: [2, 3], 4: [2, 3, 4], 5: [4, 5], 6: [5, 6], 7: [5, 6, 7]}
    with checkpoint.open_manager(tmp_path, create=False) as manager:
        assert [checkpoint.find_step(manager, which) for which in ("latest", "best", "6")] == [7, 5, 6]
        restored = checkpoint.restore(manager, 5, abstract_state(run), run.sharding)
        assert int(restored.step) == 5
        with pytest.raises(UserError, match=r"--checkpoint='4'.*Accepted: latest, best, or one of \[5, 6, 7\]"):
            checkpoint.find_step(manager, "4")


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_optimizer_that_keeps_nothing_is_saved_too(momentum, config, toy, tmp_path):
    config.momentum, config.weight_decay = momentum, 0.0
    run = build_run(config, toy)
    state = init_state(run.setup, run.method, 0)
    assert bool(jax.tree.leaves(state.stacks["tiny_a"].opt_state)) == bool(momentum)
    with checkpoint.open_manager(tmp_path, create=True) as manager:
        checkpoint.save(manager, 0, state, run.record())
        checkpoint.finish(manager)
    restored = checkpoint.restore_newest(tmp_path, abstract_state(run), run.sharding, pytest.fail)
    assert_identical(restored, state)


@pytest.mark.parametrize("name", ["exp[lr=0.1]", "[x]/[/kd]", "50% é **?"])
def test_a_workdir_may_have_any_name(name, config, toy, tmp_path):
    """Orbax's own paths take some letters in a name for a pattern, and then it leaves out the arrays."""
    config.method, config.num_networks, config.assistants = "independent", 2, ""
    run, workdir = build_run(config, toy), tmp_path / name
    state = init_state(run.setup, run.method, 0)
    for step in (1, 2):
        with checkpoint.open_manager(workdir, create=True) as manager:
            checkpoint.save(manager, step, state, run.record(), 0.5)
            checkpoint.finish(manager)
    assert_identical(checkpoint.restore_newest(workdir, abstract_state(run), run.sharding, pytest.fail), state)
    assert checkpoint.step_of(workdir, "best") == 2


def test_a_folder_that_is_called_as_buckets_are():
    assert [str(LocalPath(f"/{name}/run") / "1") for name in ("s3", "gs")] == ["/s3/run/1", "/gs/run/1"]


def test_where_there_is_no_checkpoint(tmp_path):
    assert not checkpoint.has_checkpoint(tmp_path)
    with checkpoint.open_manager(tmp_path, create=True) as manager, pytest.raises(UserError, match="no checkpoint"):
        checkpoint.find_step(manager, "latest")
    assert not checkpoint.has_checkpoint(tmp_path)


def test_what_was_not_asked_for_is_not_read(plain, config, toy):
    """Of a state that has another shape than is expected, the message names the array."""
    config.teacher = "tiny_b"
    run = build_run(config, toy)
    with checkpoint.open_manager(plain, create=False) as manager, pytest.raises(UserError, match="tiny_b"):
        checkpoint.restore(manager, 11, abstract_state(run), run.sharding)


def test_what_cannot_be_written_says_what_is_complete(plain, monkeypatch):
    with checkpoint.open_manager(plain, create=False) as manager:
        steps = ", ".join(sorted(map(str, manager.all_steps())))
        monkeypatch.setattr(manager, "wait_until_finished", lambda: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(UserError, match=rf"cannot be written to .*full.* Complete there: {steps}\. Once there is"):
            checkpoint.finish(manager)
        monkeypatch.undo()


def test_the_networks_of_a_run_that_is_training(plain, tmp_path, monkeypatch):
    """A checkpoint that a newer one replaces while it is read; one that is there and cannot be read stays an error."""
    shutil.copytree(plain, tmp_path / "run")
    there, restore, asked = record.require(tmp_path / "run"), checkpoint.restore, []

    def replaced(manager, step, *rest):
        asked.append(step)
        if len(asked) == 1:
            shutil.rmtree(tmp_path / "run" / checkpoint.CHECKPOINTS / str(step))
            raise UserError("gone")
        return restore(manager, step, *rest)

    given = tmp_path / "run", there, "latest", SingleDeviceSharding(jax.local_devices()[0]), {}
    monkeypatch.setattr(checkpoint, "restore", replaced)
    trained = checkpoint.restore_networks(*given)
    assert asked == [11, 5] and trained.step == 5 and trained.pool.spec.architectures == ("tiny_a", "tiny_b")
    monkeypatch.setattr(checkpoint, "restore", lambda *args: (_ for _ in ()).throw(UserError("damaged")))
    with pytest.raises(UserError, match="damaged"):
        checkpoint.restore_networks(*given)
    with pytest.raises(UserError, match=r"keeps no averages of its members \(config\.ema_decay=0\)"):
        checkpoint.restore_networks(*given, ema=True)


def test_names_of_arrays_are_those_that_were_checked():
    """The checksums of checkpoints that there are have these names."""
    tree = {"stacks": {"a": {"conv1.kernel": np.zeros(2)}}, "totals": (np.ones(1),)}
    assert list(checkpoint._leaves(tree)) == ["stacks/a/conv1.kernel", "totals/0"]


def truncated(folder):
    for path in files(folder / "state"):
        os.truncate(path, path.stat().st_size // 2)


def emptied(folder):
    for path in files(folder):
        os.truncate(path, 0)


def without_its_data(folder):
    for path in files(folder / "state" / "d") + files(folder / "state" / "ocdbt.process_0" / "d"):
        path.unlink()


def half_deleted(folder):
    for path in files(folder)[::2]:
        path.unlink()


def without_files(folder):
    for path in files(folder):
        path.unlink()


def without_state(folder):
    shutil.rmtree(folder / "state")


def without_description(folder):
    shutil.rmtree(folder / "description")


def without_anything(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def with_flipped_bits(folder):
    for path in files(folder / "state" / "d"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 16
        path.write_bytes(data)


def with_another_number(folder):
    """As a disk would not do it, but a person might: a checkpoint that reads well and is not what was saved."""
    with checkpoint.ocp.PyTreeCheckpointer() as checkpointer:
        state = checkpointer.restore(folder / "state")
        state["stacks"]["tiny_b"]["params"]["fc.bias"] = state["stacks"]["tiny_b"]["params"]["fc.bias"] + 1e-6
        checkpointer.save(folder / "state", state, force=True)


DAMAGES = [
    truncated,
    emptied,
    without_its_data,
    half_deleted,
    without_files,
    without_state,
    without_description,
    without_anything,
    with_flipped_bits,
    with_another_number,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_taken(damage, plain, config, console, tmp_path, toy):
    workdir = shutil.copytree(plain, tmp_path / "run")
    damage(workdir / "checkpoints" / "11")
    left = [path.name for path in files(workdir / "checkpoints" / "11")]
    run = build_run(config, toy, 4)
    reports = []
    state = checkpoint.restore_newest(workdir, abstract_state(run), run.sharding, reports.append)
    with checkpoint.open_manager(workdir, create=True) as manager:
        assert int(state.step) == 5 and sorted(manager.all_steps()) == [5] and manager.best_step() == 5
    (report,) = reports
    assert "checkpoint of step 11" in report and f"It is kept in {workdir}/damaged/11." in report
    assert [path.name for path in files(workdir / "damaged" / "11")] == left


def test_a_run_goes_on_from_the_newest_good_checkpoint(plain, config, console, tmp_path, toy):
    workdir = shutil.copytree(plain, tmp_path / "run")
    for i in range(2):  # again, when there is already something of that name aside
        truncated(workdir / "checkpoints" / "11")
        train(config, workdir, console)
        assert (workdir / "damaged" / ("11", "11.1")[i]).exists()
        assert_identical(final_state(workdir, toy), final_state(plain, toy))
        assert (workdir / metrics.METRICS).read_bytes() == (plain / metrics.METRICS).read_bytes()
    assert "checkpoint of step 11 in" in printed(console)
    assert "restored step 5 of 11" in printed(console)


def test_where_no_checkpoint_is_good_nothing_is_overwritten(plain, config, console, tmp_path):
    workdir = shutil.copytree(plain, tmp_path / "run")
    for name in ("5", "11"):
        truncated(workdir / "checkpoints" / name)
    kept = {path: path.read_bytes() for path in files(workdir) if path.name not in ("lock", "config.json")}
    with pytest.raises(UserError, match=r"(?s)holds checkpoints of steps 11, 5, and none can be restored. Nothing was"):
        train(config, workdir, console)
    assert kept == {path: path.read_bytes() for path in files(workdir) if path.name not in ("lock", "config.json")}
