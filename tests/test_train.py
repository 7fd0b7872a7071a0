"""Runs from end to end: trained, interrupted, resumed, and refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from orc_jax import capacity, parallel
from orc_jax.data import sets
from orc_jax.errors import UserError
from orc_jax.meter import Meter
from orc_jax.testing import assert_identical, build_run
from orc_jax.workdir import checkpoint, logs, metrics, record
from tests.helpers import contents, evaluate, final_state, printed, train

pytestmark = pytest.mark.usefixtures("toy_set")


def test_what_a_run_leaves_behind(finished):
    description = json.loads((finished / "config.json").read_text())
    assert description["config"]["orc"]["temperature"] == 4.0
    assert description["members"] == ["tiny_a", "tiny_b", "tiny_a", "tiny_b"]
    assert description["versions"]["jax"] == jax.__version__
    rows = metrics.read(finished)
    assert [(row["step"], row["epoch"]) for row in rows] == [(5, 1), (11, 2)]  # 90 examples in batches of 16
    assert [row.keys() for row in metrics.read(finished, metrics.TIMING)][1:] == [
        {"step", "images_per_second", "seconds", "at"}
    ]
    last = rows[-1]
    promoted = [last[f"train/promoted/{name}"] for name in ("0_tiny_a", "1_tiny_b", "2_tiny_a", "3_tiny_b")]
    assert promoted[0] == 0 and np.isclose(sum(promoted), 1.0)
    assert {"learning_rate", "eval/top1/3_tiny_b", "eval/loss/ensemble"} <= set(last)
    assert list((finished / "tensorboard").glob("events*"))
    assert [row["epoch"] for row in metrics.read(finished / "pivot")] == [1]


def test_an_interrupted_run_ends_as_an_uninterrupted_one(finished, config, console, tmp_path, monkeypatch, toy):
    """Interrupted in its first and in its second epoch: identical bit for bit, and the pivot teacher trained once."""
    workdir = tmp_path / "run"
    write = logs.MetricsLog.write

    def interrupt_at(epoch):
        """Interrupts the run (not that of its pivot teacher) after the steps of an epoch, before its checkpoint."""

        def interrupted(log, row, timing):
            if row["epoch"] == epoch and log.workdir == workdir:
                raise KeyboardInterrupt
            write(log, row, timing)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(logs.MetricsLog, "write", interrupted)
            train(config, workdir, console)

    interrupt_at(1)
    assert metrics.read(workdir) == []
    pivot_files = {p: p.stat().st_mtime_ns for p in (workdir / "pivot" / "checkpoints").rglob("*") if p.is_file()}
    interrupt_at(2)
    assert [row["epoch"] for row in metrics.read(workdir)] == [1]
    train(config, workdir, console)
    assert pivot_files and pivot_files == {p: p.stat().st_mtime_ns for p in pivot_files}
    assert_identical(final_state(workdir, toy), final_state(finished, toy))
    assert (workdir / metrics.METRICS).read_bytes() == (finished / metrics.METRICS).read_bytes()


@pytest.mark.slow
def test_a_long_run_ends_as_an_uninterrupted_one(config, console, tmp_path, monkeypatch, toy):
    """Bit for bit, though its steps may be computed by oneDNN."""
    monkeypatch.setattr(capacity, "WORTH_COMPILING", 1)
    config.method, config.num_networks, config.assistants = "independent", 2, ""
    asked, compiled, write = [], parallel.compiled, logs.MetricsLog.write
    monkeypatch.setattr(
        parallel, "compiled", lambda *args, **options: asked.append(options["long"]) or compiled(*args, **options)
    )
    train(config, tmp_path / "whole", console)
    assert set(asked) == {True, False}  # the step, and the evaluation

    def interrupted(log, row, timing):
        if row["epoch"] == 2:
            raise KeyboardInterrupt
        write(log, row, timing)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(logs.MetricsLog, "write", interrupted)
        train(config, tmp_path / "again", console)
    train(config, tmp_path / "again", console)
    assert_identical(*(final_state(tmp_path / name, toy).stacks for name in ("whole", "again")))


@pytest.fixture
def photos(tmp_path):
    """A folder of pictures of many sizes, in three classes told apart by their colour."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 4)):
        for channel, name in enumerate(("blue", "green", "red")):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 100, (*rng.integers(12, 30, 2), 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{i}.png")
    return tmp_path / "photos"


def test_a_streamed_run_resumes_as_if_it_had_not_been_interrupted(config, console, tmp_path, photos, monkeypatch):
    """In the middle of an epoch of the data (30 images in batches of 8), and with another number of workers."""
    config.dataset, config.data_dir, config.eval_split = "folder", str(photos), "val"
    config.teacher, config.assistants, config.student, config.num_networks = "tiny_a", "", "tiny_b", 2
    config.method, config.flip, config.num_epochs, config.batch_size = "kdcl", True, 4, 8  # two views of each image
    config.stream.update(image_size=8, num_workers=0)
    train(config, tmp_path / "whole", console)
    write = logs.MetricsLog.write

    def interrupted(log, row, timing):
        if row["epoch"] == 3:
            raise KeyboardInterrupt
        write(log, row, timing)

    config.checkpoint_every_steps = 2  # the last in the middle of an epoch
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(logs.MetricsLog, "write", interrupted)
        train(config, tmp_path / "run", console)
    assert [row["step"] for row in metrics.read(tmp_path / "run")] == [3, 7]
    config.stream.num_workers = 1
    train(config, tmp_path / "run", console)
    assert "restored step 10 of 15" in printed(console)
    dataset = sets.load(config, print)
    assert_identical(final_state(tmp_path / "run", dataset), final_state(tmp_path / "whole", dataset))
    logged = [(tmp_path / run / metrics.METRICS).read_bytes() for run in ("run", "whole")]
    assert logged[0] == logged[1]

    evaluate(config, tmp_path / "run", "latest", console)
    result = json.loads((tmp_path / "run" / "evaluation_15.json").read_text())
    last = metrics.read(tmp_path / "run")[-1]
    assert result["examples"] == 12 and result["target_student"]["top1"] == last["eval/top1/1_tiny_b"]
    (photos / "train" / "red" / "0.png").unlink()
    with pytest.raises(UserError, match=r"(?s)holds another run:.*num_train: 30 there, 29 here"):
        train(config, tmp_path / "run", console)
    (photos / "train" / "green").rename(photos / "train" / "grass")
    (photos / "val" / "green").rename(photos / "val" / "grass")
    with pytest.raises(UserError, match=r"config.eval_split='val' of .* has 1 class that the network lacks: grass"):
        evaluate(config, tmp_path / "run", "latest", console)


def test_a_finished_run_is_left_as_it_is_and_needs_no_pivot_teacher(finished, config, console, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    rows = metrics.read(workdir)
    shutil.rmtree(workdir / "pivot")
    config.pivot_checkpoint = "gone"
    train(config, workdir, console)
    assert metrics.read(workdir) == rows


def test_a_run_without_its_record_or_its_log(finished, config, console, tmp_path):
    """Checkpoints alone do not say of which run they are; a run that has ended writes no further rows."""
    workdir = shutil.copytree(finished, tmp_path / "run")
    (workdir / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"run/metrics.jsonl has no evaluation; --mode=evaluate makes one"):
        train(config, workdir, console)
    (workdir / "config.json").unlink()
    before = contents(workdir)
    with pytest.raises(UserError, match=r"holds checkpoints, and no config.json that says of which run"):
        train(config, workdir, console)
    assert contents(workdir) == before


def test_a_workdir_of_another_run_is_refused(finished, config, console, tmp_path, toy):
    workdir = shutil.copytree(finished, tmp_path / "run")
    before = sorted((p, p.stat().st_mtime_ns) for p in workdir.rglob("*"))
    config.learning_rate, config.orc.beta = 0.2, 0.9
    config.log_every_steps = 7  # harmless
    with pytest.raises(
        UserError,
        match=r"(?s)config.learning_rate: 0.05 there, 0.2 here.*orc.beta: 0.5 there, 0.9 here.*another --workdir",
    ):
        train(config, workdir, console)
    # For an evaluation the learning rate does not matter; the pool does.
    config.train_split = "elsewhere"
    run = build_run(config, toy, 4)
    record.require_evaluable(record.require(workdir), run.record(), run.resolved.models, workdir)
    config.num_networks, config.assistants = 3, "tiny_a"
    with pytest.raises(UserError, match=r"(?s)config.num_networks: 4 there, 3 here.*pool: tiny_a, tiny_b, tiny_a"):
        evaluate(config, workdir, "latest", console)
    assert before == sorted((p, p.stat().st_mtime_ns) for p in workdir.rglob("*"))


def of_labels(labels, classes):
    """A set of noise with these labels, to train and to evaluate on."""
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8, 1), np.uint8)
    return sets.from_arrays("given", (images, labels), (images, labels), [str(i) for i in range(classes)])


@pytest.mark.parametrize(("labels", "classes"), [([0, 2] * 20, 3), ([0] * 40, 1)])
def test_empty_classes_and_sets_of_one_class_train(labels, classes, config, console, tmp_path):
    """They are given as a set, instead of the one that the config names."""
    config.num_epochs, config.pretrain_epochs = 1, 0
    config.teacher, config.assistants, config.num_networks = "tiny_b", "copies", 3
    train(config, tmp_path / "run", console, dataset=of_labels(labels, classes))
    (last,) = metrics.read(tmp_path / "run")
    assert last["step"] == 40 // 16 and np.isfinite(list(last.values())).all()
    assert last["eval/top5/ensemble"] == 1.0  # there are no five classes
    assert "orc on given, 2 steps of 16" in printed(console)
    assert record.require(tmp_path / "run").class_names == tuple(str(i) for i in range(classes))


def test_a_batch_of_all_examples(config, console, tmp_path):
    config.batch_size, config.eval_batch_size = 88, 512  # more than the evaluation set has
    config.method, config.num_networks, config.assistants = "independent", 2, ""
    train(config, tmp_path / "run", console)
    assert [row["step"] for row in metrics.read(tmp_path / "run")] == [1, 2]


def test_evaluations_and_checkpoints_every_few_epochs(config, console, tmp_path):
    """Every second one, and the last; the others have rows in the log without an evaluation."""
    config.method, config.num_networks, config.assistants = "independent", 2, ""
    config.num_epochs, config.eval_every_epochs = 5, 2
    train(config, tmp_path / "run", console)
    rows = metrics.read(tmp_path / "run")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["epoch"] for row in metrics.evaluated(rows)] == [2, 4, 5]
    rates = [row["learning_rate"] for row in rows]
    np.testing.assert_allclose(rates, [0.05, 0.05, 0.05, 5e-4, 5e-5], rtol=1e-5)  # of the last steps
    with checkpoint.open_manager(tmp_path / "run", create=False) as manager:
        assert {22, 28} <= set(manager.all_steps()) <= {11, 22, 28}


def test_few_steps_are_under_way(config, console, tmp_path, monkeypatch):
    """However seldom the log is written: the run waits for older ones, so that it can be stopped soon."""
    config.method, config.num_networks, config.assistants, config.log_every_steps = "independent", 2, "", 50
    waited, dispatched, under_way = jax.block_until_ready, Meter.dispatched, []

    def noted(meter, *call):
        done = []
        with monkeypatch.context() as patch:
            patch.setattr(jax, "block_until_ready", lambda values: done.append(waited(values)))
            dispatched(meter, *call)
        under_way.append((len(done), len(meter.unfinished)))

    monkeypatch.setattr(Meter, "dispatched", noted)
    train(config, tmp_path / "run", console)
    # The first step compiles and is waited for; the end of an epoch waits for all.
    assert under_way == [(1, 0), (0, 1), (0, 2), (1, 2), (1, 2), (0, 1), (0, 2), (1, 2), (1, 2), (1, 2), (1, 2)]
