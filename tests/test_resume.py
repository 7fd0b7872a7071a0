"""Interrupted, damaged, diverged, refused: what a run may meet, and that nothing is lost or silently wrong."""

import os
import shutil
import signal

import jax
import numpy as np
import pytest

from orc_jax import checkpoint, evaluate, logs, preemption, step, train
from orc_jax.errors import Interrupted, UserError
from orc_jax.lock import locked
from orc_jax.methods import METHODS
from orc_jax.run import abstract_state, build
from tests.helpers import assert_identical, final_state

pytestmark = pytest.mark.usefixtures("toy_set")


@pytest.fixture(autouse=True, scope="module")
def kept_programs(tmp_path_factory):
    """Every run here is started several times; its programs are compiled once."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("cache")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def printed(console, tmp_path):
    console.file.flush()
    return " ".join((tmp_path / "console.txt").read_text().split())


def ask_to_stop_at(monkeypatch, folder, at, number=signal.SIGTERM):
    """The run in `folder`, which may be that of a stage, gets a signal while it makes step `at`."""
    requested, fit, folders = preemption.Stop.requested, train.fit, []

    def noting_its_folder(run, workdir, *args, **kwargs):
        folders.append(workdir)
        fit(run, workdir, *args, **kwargs)

    def with_signal(stop, now):
        if now == at and folders[-1] == folder:
            os.kill(os.getpid(), number)
        return requested(stop, now)

    monkeypatch.setattr(train, "fit", noting_its_folder)
    monkeypatch.setattr(preemption.Stop, "requested", with_signal)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_asked_to_stop_ends_as_an_uninterrupted_one(method, config, console, tmp_path, monkeypatch, toy):
    """In the middle of an epoch: parameters, optimizer, statistics and the metrics file, bit for bit."""
    config.method, config.num_networks, config.crop_padding, config.pretrain_epochs = method, 3, 1, 1
    config.teacher, config.assistants, config.student = "tiny_b" if method == "pcl" else "tiny_a", "tiny_b", "tiny_b"
    train.train(config, tmp_path / "whole", console)
    with monkeypatch.context() as patch:
        ask_to_stop_at(patch, tmp_path / "run", 8)
        with pytest.raises(
            Interrupted, match="stopped by SIGTERM after step 8 of 11; the same command goes on"
        ) as left:
            train.train(config, tmp_path / "run", console)
    assert left.value.status == 143
    assert [row["epoch"] for row in logs.read_rows(tmp_path / "run")] == [1]
    with checkpoint.open_manager(tmp_path / "run", create=False) as manager:
        assert sorted(manager.all_steps()) == [5, 8] and checkpoint.find_step(manager, "best") == 5
    train.train(config, tmp_path / "run", console)
    whole, resumed = final_state(tmp_path / "whole", toy), final_state(tmp_path / "run", toy)
    assert_identical(whole, resumed)
    metrics = [(tmp_path / run / logs.METRICS).read_bytes() for run in ("whole", "run")]
    assert metrics[0] == metrics[1]
    with (
        checkpoint.open_manager(tmp_path / "run", create=False) as one,
        checkpoint.open_manager(tmp_path / "whole", create=False) as other,
    ):
        assert checkpoint.find_step(one, "best") == checkpoint.find_step(other, "best")


def test_checkpoints_within_epochs(config, console, tmp_path, monkeypatch, toy):
    """A run that is killed goes on from the last of them; Ctrl-C in the pivot teacher's run leaves there."""
    config.checkpoint_every_steps = 3
    with monkeypatch.context() as patch:
        ask_to_stop_at(patch, tmp_path / "run" / "pivot", 4, signal.SIGINT)
        with pytest.raises(Interrupted, match=r"^pivot: stopped by SIGINT after step 4 of 5") as left:
            train.train(config, tmp_path / "run", console)
    assert left.value.status == 130 and not (tmp_path / "run" / "checkpoints").exists()
    text = r"--checkpoint=best: none of the checkpoints \[3, 4\] has been evaluated"
    opened = checkpoint.open_manager(tmp_path / "run" / "pivot", create=False)
    with opened as manager, pytest.raises(UserError, match=text):
        checkpoint.find_step(manager, "best")
    update = train._Meter.update

    def killed(meter, now, state):
        update(meter, now, state)
        if now == 10 and meter.run.num_steps == 11:
            raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(train._Meter, "update", killed)
        train.train(config, tmp_path / "run", console)
    with checkpoint.open_manager(tmp_path / "run", create=False) as manager:
        assert sorted(manager.all_steps()) == [5, 6, 9]  # 5 is the best
    train.train(config, tmp_path / "run", console)
    assert "orc: restored step 9 of 11" in printed(console, tmp_path)
    config.checkpoint_every_steps = 0
    train.train(config, tmp_path / "whole", console)
    assert_identical(final_state(tmp_path / "run", toy), final_state(tmp_path / "whole", toy))


def test_a_signal_that_reaches_the_workers_first(config, console, tmp_path, monkeypatch, toy):
    """Schedulers send SIGTERM to all processes of a job; that the workers have ended is then no mistake."""
    config.method, config.num_networks, config.assistants = "independent", 2, ""
    batch_indices, ended = train.feed.batch_indices, []

    def without_workers(seed, step, *size):
        if step == 7 and not ended:
            ended.append(step)
            os.kill(os.getpid(), signal.SIGTERM)
            raise UserError("a worker process of the input pipeline has ended with exit code -15")
        return batch_indices(seed, step, *size)

    monkeypatch.setattr(train.feed, "batch_indices", without_workers)
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM after step [5-7] of 11"):  # batches are placed ahead
        train.train(config, tmp_path / "run", console)
    train.train(config, tmp_path / "run", console)
    train.train(config, tmp_path / "whole", console)
    assert_identical(final_state(tmp_path / "run", toy), final_state(tmp_path / "whole", toy))


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    return tmp_path_factory.mktemp("one") / "run"


@pytest.fixture
def finished(one_run, config, console):
    config.method, config.num_networks, config.assistants = "independent", 2, ""
    if not one_run.exists():
        train.train(config, one_run, console)
    return one_run


def files(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


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
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_taken(damage, finished, config, console, tmp_path, toy):
    workdir = shutil.copytree(finished, tmp_path / "run")
    damage(workdir / "checkpoints" / "11")
    left = [path.name for path in files(workdir / "checkpoints" / "11")]
    run = build(config, toy, jax.local_devices(), ("tiny_a", "tiny_b"))
    reports = []
    state = checkpoint.restore_newest(workdir, abstract_state(run), run.sharding, reports.append)
    with checkpoint.open_manager(workdir, create=True) as manager:
        assert int(state.step) == 5 and sorted(manager.all_steps()) == [5] and manager.best_step() == 5
    (report,) = reports
    assert "checkpoint of step 11" in report and f"It is kept in {workdir}/damaged/11." in report
    assert [path.name for path in files(workdir / "damaged" / "11")] == left


def test_a_run_goes_on_from_the_newest_good_checkpoint(finished, config, console, tmp_path, toy):
    workdir = shutil.copytree(finished, tmp_path / "run")
    for i in range(2):  # again, when there is already something of that name aside
        truncated(workdir / "checkpoints" / "11")
        train.train(config, workdir, console)
        assert (workdir / "damaged" / ("11", "11.1")[i]).exists()
        assert_identical(final_state(workdir, toy), final_state(finished, toy))
        assert (workdir / logs.METRICS).read_bytes() == (finished / logs.METRICS).read_bytes()
    assert "checkpoint of step 11 in" in printed(console, tmp_path)
    assert "restored step 5 of 11" in printed(console, tmp_path)


def test_where_no_checkpoint_is_good_nothing_is_overwritten(finished, config, console, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    for name in ("5", "11"):
        truncated(workdir / "checkpoints" / name)
    kept = {path: path.read_bytes() for path in files(workdir) if path.name not in ("lock", "config.json")}
    with pytest.raises(UserError, match=r"(?s)holds checkpoints of steps 11, 5, and none can be restored. Nothing was"):
        train.train(config, workdir, console)
    assert kept == {path: path.read_bytes() for path in files(workdir) if path.name not in ("lock", "config.json")}


def test_a_workdir_has_one_run_at_a_time(finished, config, console, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    text = rf"is in use by another run, process {os.getpid()} on .*another --workdir"
    with locked(workdir), pytest.raises(UserError, match=text):
        train.train(config, workdir, console)
    train.train(config, workdir, console)


@pytest.mark.parametrize("workdir", ["file/run", "file"])
def test_a_workdir_that_cannot_be_written(workdir, config, console, tmp_path):
    (tmp_path / "file").write_text("something")
    with pytest.raises(UserError, match=f"--workdir=.*{workdir}.*cannot be written"):
        train.train(config, tmp_path / workdir, console)
    assert (tmp_path / "file").read_text() == "something"


def one_diverges(config):
    """A pool whose assistant's weights leave the range of floating-point numbers within a few steps."""
    config.teacher, config.assistants, config.student, config.num_networks = "tiny_a", "tiny_b", "tiny_a", 3
    config.lr_multipliers, config.pretrain_epochs = "tiny_b=1e25", 0


def test_a_diverging_member_is_named_with_its_step_and_the_last_good_checkpoint(config, console, tmp_path):
    one_diverges(config)
    config.checkpoint_every_steps, config.log_every_steps = 1, 100
    with pytest.raises(UserError, match=r"1_tiny_b has diverged: from step (\d+) its .* is that of step (\d+) in") as e:
        train.train(config, tmp_path / "run", console)
    diverged, good = (int(word) for word in str(e.value).replace(".", " ").split() if word.isdigit())
    assert good == diverged - 1 or good == diverged - 2
    with checkpoint.open_manager(tmp_path / "run", create=False) as manager:
        assert manager.latest_step() == good
    config.checkpoint_every_steps, config.log_every_steps = 0, 1  # found by the loss, as well, before the epoch ends
    with pytest.raises(UserError, match=r"1_tiny_b has diverged: from step .* is none in"):
        train.train(config, tmp_path / "other", console)
    assert not logs.read_rows(tmp_path / "other")


def test_an_assistant_that_diverges_can_be_isolated(config, console, tmp_path, toy):
    one_diverges(config)
    config.on_divergence = "isolate"
    train.train(config, tmp_path / "run", console)
    assert printed(console, tmp_path).count("1_tiny_b has diverged: from step") == 1
    state = final_state(tmp_path / "run", toy)
    stacks = state.stacks
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(stacks["tiny_a"]))
    assert not np.isfinite(stacks["tiny_b"].params["fc.kernel"]).all()
    last = logs.read_rows(tmp_path / "run")[-1]
    assert 0 < last["diverged_at/1_tiny_b"] < 6 and "diverged_at/0_tiny_a" not in last
    assert last["train/promoted/1_tiny_b"] == 0 and last["train/promoted/2_tiny_a"] == 1
    assert last["train/feedback_share/2_tiny_a"] == 1
    assert last["eval/top1/1_tiny_b"] == 0 and last["eval/top1/ensemble"] > 0.3
    assert np.isfinite(last["eval/loss/ensemble"])
    evaluate.evaluate_checkpoint(config, tmp_path / "run", "latest", console)

    # The target student, which is what the run is for, stops it in any case; so does the pivot teacher.
    config.student = "tiny_b"
    with pytest.raises(UserError, match=r"_tiny_b has diverged"):
        train.train(config, tmp_path / "other", console)
    config.method = "dml"
    with pytest.raises(
        UserError, match=r"config.on_divergence='isolate': with config.method='dml'.*accepted is 'stop'"
    ):
        train.train(config, tmp_path / "third", console)


def test_weights_that_are_not_finite_are_found_before_they_are_saved(config, toy):
    run = build(config, toy, jax.local_devices()[:1], ("tiny_a", "tiny_b", "tiny_a", "tiny_b"))
    state = step.init_state(run.setup, run.method, 0).replace(step=np.int32(7))
    np.testing.assert_array_equal(step.find_diverged(run.setup.pool, state), [0, 0, 0, 0])
    mean = state.stacks["tiny_a"].batch_stats["bn1.mean"].at[1, 0].set(np.inf)
    stack = state.stacks["tiny_a"]
    broken = stack.replace(batch_stats=stack.batch_stats | {"bn1.mean": mean})
    state = state.replace(stacks=state.stacks | {"tiny_a": broken}, diverged_at=np.array([0, 3, 0, 0]))
    np.testing.assert_array_equal(step.find_diverged(run.setup.pool, state), [0, 3, 7, 0])


def test_a_new_run_starts_from_the_weights_of_another(finished, config, console, tmp_path, toy):
    workdir = shutil.copytree(finished, tmp_path / "run")
    old = final_state(workdir, toy)
    config.learning_rate = 1e-30
    with pytest.raises(UserError, match=r"(?s)config.learning_rate: 0.05 there.*--resume=weights"):
        train.train(config, workdir, console)
    with pytest.raises(UserError, match=r"--resume=weights: --workdir=.*none holds no run"):
        train.train(config, tmp_path / "none", console, resume="weights")
    train.train(config, workdir, console, resume="weights")
    new = final_state(workdir, toy)
    assert int(new.step) == 11 and [row["epoch"] for row in logs.read_rows(workdir)] == [1, 2]
    for name in ("tiny_a", "tiny_b"):  # at this learning rate weights stay what they were
        assert_identical(new.stacks[name].params, old.stacks[name].params)
        assert not np.array_equal(new.stacks[name].opt_state[1].trace["fc.bias"], old.stacks[name].params["fc.bias"])
    assert_identical(final_state(tmp_path / "run.1", toy), old)
    assert f"the run in {workdir} is now {workdir}.1" in printed(console, tmp_path)
    # Given again, the command goes on with the new run.
    before = {path: path.read_bytes() for path in files(workdir / "checkpoints")}
    train.train(config, workdir, console, resume="weights")
    assert before == {path: path.read_bytes() for path in files(workdir / "checkpoints")}
    assert not (tmp_path / "run.2").exists()
    # An interruption between the two moves that change the runs' places.
    workdir.rename(tmp_path / "run.new")
    train.train(config, workdir, console, resume="weights")
    assert before == {path: path.read_bytes() for path in files(workdir / "checkpoints")}
    config.teacher, config.learning_rate = "tiny_b", 0.1
    with pytest.raises(UserError, match=r"--workdir=.*needed is a trained tiny_b, but its pool is tiny_a, tiny_b"):
        train.train(config, workdir, console, resume="weights")
    assert before == {path: path.read_bytes() for path in files(workdir / "checkpoints")}
