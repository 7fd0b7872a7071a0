"""The runs of a comparison: what they have in common and what not, and how long they will take."""

import json

import jax
import numpy as np
import pytest

from orc_jax.compare import runs
from orc_jax.errors import UserError
from orc_jax.run import build
from orc_jax.step import init_stacks
from orc_jax.workdir import metrics
from orc_jax.workdir.comparison import Comparison

pytestmark = pytest.mark.usefixtures("toy_set")


def test_runs_of_a_seed_start_from_the_same_target_student(short, toy, tmp_path):
    targets = []
    for method in ("orc", "kd", "independent", "dgkd"):
        resolved = runs.method_run(short, method, 5, tmp_path).run
        run = build(resolved, toy, jax.local_devices())
        stack = init_stacks(run.setup, run.method, resolved.config.seed)["tiny_b"]
        targets.append(np.asarray(stack.params["conv2.kernel"][-1]))
    for other in targets[1:]:
        np.testing.assert_array_equal(targets[0], other)


def test_mistakes_are_told_before_the_first_run(short, tmp_path):
    with pytest.raises(UserError, match=r"--methods='orcc' is not known. Did you mean orc"):
        runs.plan(short, ["orcc"], 1, tmp_path / "x")
    short.kd.alpha = 2.0
    with pytest.raises(UserError, match=r"config.kd.alpha=2.0"):
        runs.plan(short, ["independent", "kd"], 1, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_what_runs_have_in_common_and_what_not(short, tmp_path):
    """Pools and teachers as the docstring of the script says; the config that was given stays as it was."""
    before = short.to_json()
    made = {method: runs.method_run(short, method, 7, tmp_path).run for method in ("orc", "kd", "pcl", "independent")}
    assert {method: run.architectures for method, run in made.items()} == {
        "orc": ("tiny_a", "tiny_b", "tiny_b"),
        "kd": ("tiny_a", "tiny_b"),
        "pcl": ("tiny_b",) * 3,
        "independent": ("tiny_b",),
    }
    assert {run.config.seed for run in made.values()} == {7} and short.to_json() == before
    pivot = str(tmp_path / "pivot" / "seed_7")
    assert [run.config.pivot_checkpoint for run in made.values()] == [pivot, pivot, "", ""]
    alone = runs.pivot_run(made["orc"])
    assert alone.architectures == ("tiny_a",) and alone.config.method == "independent"
    assert alone.config.num_epochs == short.pretrain_epochs and not alone.config.pivot_checkpoint
    short.pretrain_epochs = 0
    assert runs.method_run(short, "orc", 7, tmp_path).run.config.pivot_checkpoint == ""


def test_what_only_some_methods_train_first_is_not_shared(short, tmp_path):
    """ORC with fixed temporary teachers trains these beside the teacher."""
    short.orc.role_change = False
    assert runs.method_run(short, "orc", 0, tmp_path).teacher is None
    assert runs.method_run(short, "kd", 0, tmp_path).teacher == tmp_path / "pivot" / "seed_0"


def test_the_time_left(short, tmp_path):
    """By the runs of the same method, else by all; the teachers that are still to be trained count too."""
    plans = runs.plan(short, ["kd", "dml", "independent"], 3, tmp_path)
    table = Comparison({}, tuple(runs.entry(one, tmp_path) for one in plans), {}, "", {}, (), None)
    assert runs.seconds_left(plans, table) is None
    for i, took in ((0, 30.0), (1, 60.0), (3, 40.0)):
        table = table.replaced(i, table.runs[i]._replace(last=0.5, took=took))
    # To come: kd once (35), dml twice (60), independent three times (the mean, 43.33).
    assert runs.seconds_left(plans, table) == pytest.approx(35 + 2 * 60 + 3 * 130 / 3)
    teacher = tmp_path / "pivot" / "seed_0"
    teacher.mkdir(parents=True)
    (teacher / metrics.TIMING).write_text(json.dumps({"step": 5, metrics.SECONDS: 100.0}))
    # Of the teachers that of seed 2 is needed: independent has none.
    assert runs.seconds_left(plans, table) == pytest.approx(35 + 2 * 60 + 130 + 100)
    table = table.replaced(2, table.runs[2]._replace(error="x"))
    assert runs.seconds_left(plans, table) == pytest.approx(35 + 2 * 60 + 2 * 130 / 3 + 100)
    assert [one.name for one in plans[:4]] == ["kd, seed 0", "dml, seed 0", "independent, seed 0", "kd, seed 1"]
    assert len(runs.plan(short, ["kd", "kd"], 1, tmp_path)) == 1


def test_a_folder_of_something_else_is_refused(short, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"--out=.*: must be another folder: this one holds a run"):
        runs.plan(short, ["kd"], 1, tmp_path)
    short.pivot_checkpoint = "runs/x"
    with pytest.raises(UserError, match=r"config.pivot_checkpoint='runs/x': must be empty: each seed has a teacher"):
        runs.plan(short, ["kd"], 1, tmp_path / "x")
    with pytest.raises(UserError, match="--seeds=0: must be at least 1"):
        runs.plan(short, ["kd"], 0, tmp_path / "x")
