"""What a report is made from: the files of a run, and what its networks make of images."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from orc_jax import config as configs
from orc_jax.data import sets
from orc_jax.data.batches import batch_indices
from orc_jax.data.types import Images
from orc_jax.errors import UserError
from orc_jax.report import collect, measures
from orc_jax.run import abstract_state
from orc_jax.testing import assert_close
from orc_jax.workdir import checkpoint, metrics, record
from tests.helpers import stepper_of

pytestmark = pytest.mark.usefixtures("toy_set")


def networks_of(workdir, which="latest"):
    """A run's files, and its networks."""
    logged = collect.read(workdir, "run")
    return logged, collect.restore(logged, collect.load(logged, pytest.fail), which)


def test_some_examples_are_the_same_every_time_and_of_every_kind(toy):
    class Records:
        read = name = staticmethod(lambda i: i)

        def __len__(self):
            return 30

    assert collect.some(toy.test, 30) is toy.test
    few, again = (collect.some(toy.test, 9) for _ in range(2))
    np.testing.assert_array_equal(few.images, again.images)
    assert len(few.labels) == 9 and len(np.unique(few.images.reshape(9, -1), axis=0)) == 9
    assert set(few.labels) == {0, 1, 2}
    records = collect.some(Records(), 9)
    rows = [records.read(i) for i in range(len(records))]
    assert rows == sorted(set(rows)) and [records.name(i) for i in range(9)] == rows and max(rows) > 9


def test_runs_are_called_by_as_much_of_their_paths_as_tells_them_apart():
    assert collect.labels_of([Path("/a/orc/seed_0")]) == ["seed_0"]
    assert collect.labels_of([Path("/a/orc/seed_0"), Path("/a/kd/seed_0")]) == ["orc/seed_0", "kd/seed_0"]
    with pytest.raises(UserError, match="the same folder is given twice"):
        collect.labels_of([Path("/a/b"), Path("/a/b")])


def test_what_the_networks_make_of_the_images_is_what_the_log_says(finished):
    logged, networks = networks_of(finished)
    predicted = collect.predictions(networks, 10_000)
    accuracy = (measures.predictions(predicted.logits) == predicted.labels).mean(1)
    losses = measures.losses(predicted.logits, predicted.labels).mean(1)
    last, names = logged.rows[-1], logged.names
    np.testing.assert_allclose(accuracy, [last[f"eval/top1/{name}"] for name in names], rtol=1e-6)
    np.testing.assert_allclose(losses, [last[f"eval/loss/{name}"] for name in names], rtol=1e-4)
    joint = (predicted.ensemble.argmax(-1) == predicted.labels).mean()
    np.testing.assert_allclose(joint, last["eval/top1/ensemble"], rtol=1e-6)
    assert [x.shape for x in predicted.features] == [(30, 8), (30, 8)]
    # The pivot teacher as it was: what its own run has logged last. It has learnt since.
    before = collect.pivot_before(networks, finished, 10_000)
    of_stage = metrics.read(finished / "pivot")[-1]
    loss = measures.losses(before, predicted.labels).mean()
    np.testing.assert_allclose(loss, of_stage["eval/loss/0_tiny_a"], rtol=1e-4)
    assert not np.allclose(before, predicted.logits[0])
    few = collect.predictions(networks, 7)
    assert few.labels.shape == (7,) and few.logits.shape == (4, 7, 3)


def test_the_feedback_samples_are_those_of_the_next_iteration(finished, config, toy):
    """Losses, shares and, by what the pivot teacher learns from them, the very samples of ORC's own iteration."""
    config.crop_padding, config.flip = 2, True
    config.lr_schedule, config.orc.intensive_samples, config.orc.feedback_fraction = "constant", "feedback", 0.7
    logged = collect.read(finished, "run")._replace(resolved=configs.resolve(config))
    handed = collect.feedback(collect.restore(logged, toy, "5"))
    stepper, indices = stepper_of(config, toy), batch_indices(config.seed, 5, 16, 90)
    with checkpoint.open_manager(finished, create=False) as manager:
        state = checkpoint.restore(manager, 5, abstract_state(stepper.run), stepper.run.sharding)
    before = stepper.member(state, 0)
    after = stepper(state, indices)
    np.testing.assert_allclose(handed.shares / 11, after.totals["feedback_share"][1:], rtol=1e-6)
    np.testing.assert_allclose(handed.losses, after.totals["loss"][1:], rtol=1e-4)
    assert [len(rows) for rows in handed.handed_back] == handed.shares.tolist() and handed.shares.sum() == 11
    assert handed.students == (1, 2, 3)
    np.testing.assert_array_equal(handed.labels, toy.train.labels[indices])
    assert not np.array_equal(handed.images, toy.train.images[indices]), "they are augmented"
    # What the pivot teacher has learnt: the samples handed back, repeated to a batch, by cross-entropy.
    config.method, config.num_networks, config.student = "independent", 1, config.teacher
    config.learning_rate *= config.orc.pivot_lr_multiplier
    config.crop_padding, config.flip = 0, False
    alone = stepper_of(config, toy._replace(train=Images(handed.images, handed.labels)))
    stacks = {config.teacher: jax.tree.map(lambda x: x[None], before)}
    taught = alone(alone.init().replace(stacks=stacks), np.resize(np.concatenate(handed.handed_back), 16))
    assert_close(alone.member(taught, 0), stepper.member(after, 0))


def test_a_checkpoint_that_training_replaces_meanwhile_is_looked_up_anew(finished, tmp_path, monkeypatch):
    workdir = shutil.copytree(finished, tmp_path / "run")
    restore = checkpoint.restore

    def replaced(manager, step, *others):
        if step == 11:
            shutil.rmtree(workdir / checkpoint.CHECKPOINTS / "11")
        return restore(manager, step, *others)

    monkeypatch.setattr(checkpoint, "restore", replaced)
    assert networks_of(workdir)[1].step == 5


def test_a_field_that_came_after_the_run_has_its_default(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    description = json.loads((workdir / record.FILE).read_text())
    del description["config"]["remat"], description["config"]["orc"]["pivot_lr_multiplier"]
    description["config"]["gone"] = 1
    (workdir / record.FILE).write_text(json.dumps(description))
    config = collect.read(workdir, "run").resolved.config
    assert config.remat is False and config.orc.pivot_lr_multiplier == 0.1
    assert sets.load(config, pytest.fail).name == "toy"
    assert set(config) == set(configs.default())
