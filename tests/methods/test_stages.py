"""Stages: members that are trained one after the other, resumed in any of them, and with a teacher of another run;
stages of another loss, length and rate, which hand heads on."""

import json

import jax
import numpy as np
import pytest

from orc_jax import training
from orc_jax.config import resolve
from orc_jax.deploy.member import load_member
from orc_jax.errors import UserError
from orc_jax.methods.offline import BESIDE_TEACHER
from orc_jax.pool import Pool
from orc_jax.pretrained import load_heads, load_members, plan
from orc_jax.step import init_stacks
from orc_jax.testing import assert_identical, build_run
from orc_jax.verbs import head_of
from orc_jax.workdir import logs, metrics, record
from tests.helpers import evaluate, final_state, printed, train
from tests.methods.test_every_method import for_method

pytestmark = pytest.mark.usefixtures("toy_set")


def test_dgkd_is_resumed_in_any_stage(config, console, tmp_path, monkeypatch, toy):
    """Interrupted in the teacher's, in the assistant's and in the student's run: each is trained once, bit for bit."""
    for_method(config, "dgkd")
    train(config, tmp_path / "whole", console)
    folders = [tmp_path / "run" / "pivot", tmp_path / "run" / "assistant_1", tmp_path / "run"]
    write = logs.MetricsLog.write
    for folder in folders:

        def interrupted(log, row, timing, folder=folder):
            if log.workdir == folder and row["epoch"] == (1 if folder == folders[0] else 2):
                raise KeyboardInterrupt
            write(log, row, timing)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(logs.MetricsLog, "write", interrupted)
            train(config, tmp_path / "run", console)
    train(config, tmp_path / "run", console)
    for name in ("", "pivot", "assistant_1"):
        whole, resumed = (final_state(tmp_path / run / name, toy) for run in ("whole", "run"))
        assert_identical(whole, resumed)
        rows = [(tmp_path / run / name / metrics.METRICS).read_bytes() for run in ("whole", "run")]
        assert rows[0] == rows[1] and rows[0]
    methods = [record.require(folder).config["method"] for folder in folders]
    assert methods == ["independent", "dgkd", "dgkd"]
    # The assistant learnt in its own stage, and has not changed since; likewise the teacher.
    last, assistant, pivot = (final_state(tmp_path / "run" / name, toy).stacks for name in ("", "assistant_1", "pivot"))
    same = lambda x, y, i: np.testing.assert_array_equal(x.params["fc.kernel"][i], y.params["fc.kernel"][0])  # noqa: E731
    same(last["tiny_b"], assistant["tiny_b"], 0)
    same(last["tiny_a"], pivot["tiny_a"], 0)
    same(assistant["tiny_a"], pivot["tiny_a"], 0)
    # A stage can be evaluated, as a run of its own pool.
    config.num_networks, config.assistants = 2, ""
    evaluate(config, tmp_path / "run" / "assistant_1", "latest", console)
    # A stage of another configuration is not taken over.
    config.num_networks, config.assistants, config.dgkd.temperature = 3, "tiny_b", 2.0
    (tmp_path / "other").mkdir()
    (tmp_path / "run" / "assistant_1").rename(tmp_path / "other" / "assistant_1")
    with pytest.raises(
        UserError, match=r"assistant_1 holds another run:\n  config.dgkd.temperature: 5.0 there, 2.0 here"
    ):
        train(config, tmp_path / "other", console)


def test_the_pivot_teacher_of_another_run_stands_in_for_the_first_stage(config, console, tmp_path):
    for_method(config, "kd")
    config.num_epochs = 1
    train(config, tmp_path / "first", console)
    config.pivot_checkpoint = str(tmp_path / "first" / "pivot")
    train(config, tmp_path / "second", console)
    assert not (tmp_path / "second" / "pivot").exists()
    rows = [metrics.read(tmp_path / run)[-1] for run in ("first", "second")]
    assert rows[0] == rows[1]
    config.pivot_checkpoint, config.pretrain_epochs = "", 0
    with pytest.raises(UserError, match=r"config.pretrain_epochs=0: members \(0,\) never learn"):
        train(config, tmp_path / "third", console)


def interrupted_in(folder, config, workdir, console, monkeypatch):
    """Trains until the first epoch of the stage in `folder` has been written."""
    write = logs.MetricsLog.write

    def stopping(log, row, timing):
        write(log, row, timing)
        if log.workdir == folder:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(logs.MetricsLog, "write", stopping)
        train(config, workdir, console)


def of_own_stage(config, method, finished):
    """A run of two epochs, with a teacher that is trained already, after a stage of three."""
    for_method(config, method)[method].epochs = 3
    config.pivot_checkpoint, config.patience = str(finished / "pivot"), 1
    config.lr_schedule, config.warmup_epochs = "cosine", 0.5
    if method == "fsp":
        config.teacher = config.assistants = config.student = "tiny_a"  # as many channels as the trained teacher
    return config


def test_a_paraphraser_is_trained_in_a_stage_and_handed_on(finished, config, console, tmp_path, monkeypatch, toy):
    """The stage has its own length and rate, and can be interrupted; the run starts from what it ends with."""
    of_own_stage(config, "ft", finished).update(num_networks=2, assistants="")
    folder, fit, handed_on = tmp_path / "run" / "paraphraser", training.fit, []

    def stages_alone(tracks, *rest, title, on_epoch=None):
        if title == "ft":
            handed_on.extend(tracks)
            raise KeyboardInterrupt
        return fit(tracks, *rest, title=title, on_epoch=on_epoch)

    interrupted_in(folder, config, tmp_path / "run", console, monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "fit", stages_alone)
        train(config, tmp_path / "run", console)
    rows = metrics.read(folder)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    np.testing.assert_allclose([row["learning_rate"] for row in rows], config.ft.learning_rate)
    objective = [row["train/objective/0_tiny_a"] for row in rows]
    assert objective[0] > objective[-1] > 0
    assert "paraphraser epoch 1/3 0_tiny_a: loss" in printed(console) and " objective " in printed(console)
    (track,) = handed_on
    run, stage = track.run, final_state(folder, toy).stacks
    fresh = init_stacks(run.setup, run.method, 0)
    start = init_stacks(run.setup, run.method, 0, track.trained, track.heads)
    for name, x in fresh[BESIDE_TEACHER].params.items():
        assert (stage[BESIDE_TEACHER].params[name] != x).any()
    assert_identical(start[BESIDE_TEACHER].params, stage[BESIDE_TEACHER].params)
    assert_identical(start[head_of("tiny_b")], fresh[head_of("tiny_b")])
    # The teacher has only been looked at.
    teacher = final_state(finished / "pivot", toy).stacks["tiny_a"]
    for stacks in (stage, start):
        assert_identical(stacks["tiny_a"].params, teacher.params)
        assert_identical(stacks["tiny_a"].batch_stats, teacher.batch_stats)


STAGE_OF = {"ft": "paraphraser", "ab": "boundaries", "fsp": "flow"}


@pytest.mark.slow
@pytest.mark.parametrize("method", STAGE_OF)
def test_a_run_that_was_interrupted_in_a_stage_ends_as_one_that_was_not(
    method, finished, config, console, tmp_path, monkeypatch, toy
):
    """Bit for bit; and its stage can be evaluated and exported from, as a run by itself."""
    of_own_stage(config, method, finished)
    stage = tmp_path / "run" / STAGE_OF[method]
    train(config, tmp_path / "whole", console)
    interrupted_in(stage, config, tmp_path / "run", console, monkeypatch)
    train(config, tmp_path / "run", console)
    for name in ("", stage.name):
        assert_identical(*(final_state(tmp_path / run / name, toy) for run in ("whole", "run")))
    of_stage, of_run = (final_state(folder, toy).stacks for folder in (stage, tmp_path / "run"))
    for name in of_stage.keys() & of_run.keys() - {"tiny_a", "tiny_b"}:  # the paraphraser stays as it is
        assert_identical(of_stage[name].params, of_run[name].params)
    evaluate(record.require(stage).fields, stage, "latest", console)
    (path,) = stage.glob("evaluation_*.json")
    assert json.loads(path.read_text())["members"][0]["role"] == "teacher"
    member = load_member(stage, "0", "latest")
    teacher = final_state(finished / "pivot", toy).stacks["tiny_a"]
    assert_identical(member.weights[0], jax.tree.map(lambda x: x[0], teacher.params))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ab", "fsp"])
def test_students_are_trained_in_a_stage_and_handed_on(method, finished, config, console, tmp_path, toy):
    """All but their classifiers, which start as if there had been no stage; without connectors."""
    of_own_stage(config, method, finished)
    train(config, tmp_path, console)
    run = build_run(config, toy)
    fresh, ended = init_stacks(run.setup, run.method, 0), final_state(tmp_path / STAGE_OF[method], toy).stacks
    assert (head_of("tiny_b") in ended) == (method == "ab")
    _, source = plan(run, tmp_path)
    trained = load_members(run, source.folder, source.members)
    start = init_stacks(run.setup, run.method, 0, trained, load_heads(source))
    assert start.keys() == fresh.keys()
    for i in (1, 2):
        before, after, handed_on = (
            Pool(spec=run.spec, stacks=stacks).member(i)
            for stacks in (fresh, {name: ended[name] for name in fresh}, start)
        )
        for name, x in after.params.items():
            same = np.allclose(x, before.params[name], rtol=1e-6)  # drawn by another program here
            assert same == name.startswith("fc."), name
        assert_identical((after.params, after.batch_stats), (handed_on.params, handed_on.batch_stats))
        assert_identical(handed_on.opt_state, before.opt_state)


def test_fields_of_a_stage(config):
    """Its own hold over those of the run; all others are the run's, and values that runs differ in stay arguments."""
    config.method, config.ab.epochs, config.warmup_epochs, config.patience = "ab", 7, 0.5, 3
    resolved = resolve(config, 1).with_values(["learning_rate", "ab.weight", "seed"])
    pivot, stage = (resolved.stage(one, 5) for one in resolved.method.stages)
    assert (stage.config.num_epochs, stage.config.lr_schedule, stage.config.warmup_epochs) == (7, "constant", 0.0)
    assert (stage.config.patience, stage.config.method, stage.config.learning_rate) == (0, "ab.boundaries", 0.05)
    assert stage.architectures == resolved.architectures and stage.config.ab == resolved.config.ab
    assert stage.values == resolved.values == ("ab.weight", "learning_rate")
    assert (pivot.config.num_epochs, pivot.config.patience, pivot.values) == (5, 3, ("learning_rate",))
    config.ab.epochs = 0
    assert len(resolve(config, 1).method.stages) == 1


def test_weights_of_another_run_do_not_stand_in_for_a_paraphraser(config, console, tmp_path, toy):
    """A run that starts from them has no stages."""
    for_method(config, "ft")
    record.write(tmp_path, build_run(config, toy)._replace(devices=jax.local_devices()).record())
    config.ft.weight = 1.0
    with pytest.raises(UserError, match=r"^--resume=weights: config.method='ft' needs more than members, of the stage"):
        train(config, tmp_path, console, resume="weights")


@pytest.mark.parametrize(
    ("method", "teacher", "text"),
    [
        ("fsp", "tiny_a", "tiny_a cannot teach tiny_b: its maps have 4, 4, 8 channels and the teacher's 6, 6, 8"),
        (
            "ab",
            "resnet8",
            "resnet8 cannot teach tiny_b: it has 3 feature points and the teacher 4; accepted are as many",
        ),
    ],
)
def test_pairs_that_do_not_fit_are_refused_before_a_teacher_is_trained(method, teacher, text, config, tmp_path, toy):
    for_method(config, method).teacher = teacher
    with pytest.raises(UserError, match=f"^config.method='{method}': {text}"):
        plan(build_run(config, toy), tmp_path)
    config.teacher = "densenet_40_12"
    with pytest.raises(UserError, match=f"config.teacher: densenet_40_12 has no feature points, whose maps {method}"):
        resolve(config, 1)
