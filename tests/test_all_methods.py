"""Every method through the whole program: trained, evaluated from its checkpoint, on one device and on four."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax import checkpoint, evaluate, logs, train
from orc_jax.data.sets import Images
from orc_jax.errors import UserError
from orc_jax.methods import METHODS
from orc_jax.methods.pcl import ENSEMBLE
from orc_jax.step import augment
from tests.helpers import assert_close, assert_identical, batches, build_run, final_state, stepper_of

pytestmark = pytest.mark.usefixtures("toy_set")


def for_method(config, method):
    """A pool of three that the method can train, with images of which every member may see another crop."""
    config.method, config.num_networks, config.crop_padding = method, 3, 1
    config.teacher, config.assistants, config.student = "tiny_a", "tiny_b", "tiny_b"
    if method == "pcl":
        config.teacher = "tiny_b"
    return config


@pytest.mark.parametrize("method", METHODS)
def test_training_and_evaluation_from_the_checkpoint(method, config, console, tmp_path):
    for_method(config, method)
    train.train(config, tmp_path / "run", console)
    evaluate.evaluate_checkpoint(config, tmp_path / "run", "latest", console)
    result = json.loads((tmp_path / "run" / "evaluation_11.json").read_text())
    last = logs.read_rows(tmp_path / "run")[-1]
    rows = [*result["members"], {"name": "ensemble"} | result["ensemble"]]
    if method == "pcl":
        rows.append({"name": "mean"} | result["mean"])
        np.testing.assert_allclose(result["mean"]["top1"], np.mean([row["top1"] for row in result["members"]]))
    for row in rows:
        for metric in ("top1", "top5", "loss"):
            np.testing.assert_allclose(row[metric], last[f"eval/{metric}/{row['name']}"], rtol=1e-5)
    assert result["target_student"]["role"] == "target student"
    console.file.flush()
    assert "summary" not in (tmp_path / "console.txt").read_text()


def test_dgkd_is_resumed_in_any_stage(config, console, tmp_path, monkeypatch, toy):
    """Interrupted in the teacher's, in the assistant's and in the student's run: each is trained once, bit for bit."""
    for_method(config, "dgkd")
    train.train(config, tmp_path / "whole", console)
    folders = [tmp_path / "run" / "pivot", tmp_path / "run" / "assistant_1", tmp_path / "run"]
    write = logs.MetricsLog.write
    for folder in folders:

        def interrupted(log, row, timing, folder=folder):
            if log.workdir == folder and row["epoch"] == (1 if folder == folders[0] else 2):
                raise KeyboardInterrupt
            write(log, row, timing)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(logs.MetricsLog, "write", interrupted)
            train.train(config, tmp_path / "run", console)
    train.train(config, tmp_path / "run", console)
    for name in ("", "pivot", "assistant_1"):
        whole, resumed = (final_state(tmp_path / run / name, toy) for run in ("whole", "run"))
        assert_identical(whole, resumed)
        rows = [(tmp_path / run / name / logs.METRICS).read_bytes() for run in ("whole", "run")]
        assert rows[0] == rows[1] and rows[0]
    methods = [checkpoint.read_description(folder)["config"]["method"] for folder in folders]
    assert methods == ["independent", "dgkd", "dgkd"]
    # The assistant learnt in its own stage, and has not changed since; likewise the teacher.
    last, assistant, pivot = (final_state(tmp_path / "run" / name, toy).stacks for name in ("", "assistant_1", "pivot"))
    same = lambda x, y, i: np.testing.assert_array_equal(x.params["fc.kernel"][i], y.params["fc.kernel"][0])  # noqa: E731
    same(last["tiny_b"], assistant["tiny_b"], 0)
    same(last["tiny_a"], pivot["tiny_a"], 0)
    same(assistant["tiny_a"], pivot["tiny_a"], 0)
    # A stage can be evaluated, as a run of its own pool.
    config.num_networks, config.assistants = 2, ""
    evaluate.evaluate_checkpoint(config, tmp_path / "run" / "assistant_1", "latest", console)
    # A stage of another configuration is not taken over.
    config.num_networks, config.assistants, config.dgkd.temperature = 3, "tiny_b", 2.0
    (tmp_path / "other").mkdir()
    (tmp_path / "run" / "assistant_1").rename(tmp_path / "other" / "assistant_1")
    with pytest.raises(
        UserError, match=r"assistant_1 holds another run:\n  config.dgkd.temperature: 5.0 there, 2.0 here"
    ):
        train.train(config, tmp_path / "other", console)


def test_the_pivot_teacher_of_another_run_stands_in_for_the_first_stage(config, console, tmp_path):
    for_method(config, "kd")
    config.num_epochs = 1
    train.train(config, tmp_path / "first", console)
    config.pivot_checkpoint = str(tmp_path / "first" / "pivot")
    train.train(config, tmp_path / "second", console)
    assert not (tmp_path / "second" / "pivot").exists()
    rows = [logs.read_rows(tmp_path / run)[-1] for run in ("first", "second")]
    assert rows[0] == rows[1]
    config.pivot_checkpoint, config.pretrain_epochs = "", 0
    with pytest.raises(UserError, match=r"config.pretrain_epochs=0: members \(0,\) never learn"):
        train.train(config, tmp_path / "third", console)


def test_the_ensemble_of_pcl_is_its_classifier_on_the_features_of_all_peers(config, toy):
    stepper = stepper_of(for_method(config, "pcl"), toy)
    state = stepper.init()
    result = evaluate.evaluator(stepper.run)(state.stacks)
    images = jnp.asarray((toy.test.images / 255.0 - toy.mean[0]) / toy.std[0], jnp.float32)
    (stack,) = stepper.run.setup.pool.stacks
    peers = [stepper.member(state, i) for i in range(3)]
    features = [stack.network.predict(peer.params, peer.batch_stats, images)[1] for peer in peers]
    classifier = state.stacks[ENSEMBLE].params
    logits = np.float64(np.concatenate(features, axis=1) @ classifier["kernel"][0] + classifier["bias"])
    loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(30), toy.test.labels]
    np.testing.assert_allclose(result["ensemble"]["loss"], loss.mean(), rtol=1e-5)
    np.testing.assert_allclose(result["ensemble"]["top1"], (logits.argmax(1) == toy.test.labels).mean())


DECIDING = {
    "switokd": {},
    "kdcl": {"target": "linear"},
    "okddip": {"projection_divisor": 2, "rampup_fraction": 0.0},
    "pcl": {"rampup_fraction": 0.0},
}


@pytest.mark.parametrize("method", DECIDING)
def test_one_device_equals_four(method, config, toy):
    for_method(config, method)[method].update(DECIDING[method])
    ends = []
    for num_devices in (1, 4):
        stepper = stepper_of(config, toy, num_devices)
        state = stepper.init()
        for indices in batches(3, 16, 90):
            state = stepper(state, indices)
        ends.append(state)
    assert_close(ends[0].stacks, ends[1].stacks, rtol=2e-4, atol=2e-5)
    assert_close(ends[0].totals, ends[1].totals)


def test_views_are_augmentations_of_the_same_images(config, toy):
    """The first view is what a method with one view gets; streamed examples bring their views along."""
    for_method(config, "kdcl").flip = True
    setups = [build_run(config, toy).setup._replace(axis_name=None)]
    config.kdcl.own_augmentation = False
    setups.append(build_run(config, toy).setup._replace(axis_name=None))
    state = stepper_of(config, toy).init()
    examples = Images(toy.train.images[:16], toy.train.labels[:16])
    views, one = (np.asarray(augment(setup, state, examples)) for setup in setups)
    assert views.shape == (3, *one.shape)
    np.testing.assert_array_equal(views[0], one)
    assert not np.array_equal(views[0], views[1]) and not np.array_equal(views[1], views[2])
    streamed = Images(np.moveaxis(views, 0, 1), examples.labels)
    plain = setups[0]._replace(crop_padding=0, flip=False)
    np.testing.assert_array_equal(augment(plain, state, streamed), views)
