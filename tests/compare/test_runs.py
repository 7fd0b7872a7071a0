"""The runs of a comparison: what they have in common and what not, and how long they will take."""

import json

import jax
import numpy as np
import pytest

from orc_jax.compare import runs
from orc_jax.compare.variants import BY_DEFAULT, of_ablation, of_methods, of_rows, of_sweep, split
from orc_jax.config import resolve
from orc_jax.errors import UserError
from orc_jax.methods import METHODS, OFFLINE, ONLINE
from orc_jax.run import build
from orc_jax.step import init_stacks
from orc_jax.workdir import metrics
from orc_jax.workdir.comparison import Comparison

pytestmark = pytest.mark.usefixtures("toy_set")


def planned(config, method, seed, out):
    """The run of a method and a seed."""
    config = config.copy_and_resolve_references()
    config.seed = seed
    (variant,) = of_methods(config, [method])
    return runs.variant_run(config, variant, 0, out)


def test_runs_of_a_seed_start_from_the_same_target_student(short, toy, tmp_path):
    targets = []
    for method in ("orc", "kd", "independent", "dgkd"):
        resolved = planned(short, method, 5, tmp_path).run
        run = build(resolved, toy, jax.local_devices())
        stack = init_stacks(run.setup, run.method, resolved.config.seed)["tiny_b"]
        targets.append(np.asarray(stack.params["conv2.kernel"][-1]))
    for other in targets[1:]:
        np.testing.assert_array_equal(targets[0], other)


def test_words_that_stand_for_methods(short):
    def names(*words):
        return [variant.name for variant in of_methods(short, words)]

    assert names("online") == list(ONLINE) and names("offline") == list(OFFLINE) and names("all") == list(METHODS)
    assert names(*BY_DEFAULT) == [*ONLINE, "kd"]
    assert names("rkd", "offline") == ["rkd", *(name for name in OFFLINE if name != "rkd")]  # each once
    for variant in of_methods(short, ["offline"]):
        assert resolve(variant.config).architectures == ("tiny_a", "tiny_b")


def test_mistakes_are_told_before_the_first_run(short, tmp_path):
    with pytest.raises(UserError, match=r"--methods='orcc' is not known. Did you mean orc"):
        runs.plan(short, of_methods(short, ["orcc"]), 1, tmp_path / "x")
    short.kd.alpha = 2.0
    with pytest.raises(UserError, match=r"config.kd.alpha=2.0"):
        runs.plan(short, of_methods(short, ["independent", "kd"]), 1, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_what_runs_have_in_common_and_what_not(short, tmp_path):
    """Pools and teachers as the docstring of the script says; the config that was given stays as it was."""
    before = short.to_json()
    made = {method: planned(short, method, 7, tmp_path).run for method in ("orc", "kd", "pcl", "independent")}
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
    assert planned(short, "orc", 7, tmp_path).run.config.pivot_checkpoint == ""


def test_what_only_some_methods_train_first_is_not_shared(short, tmp_path):
    """ORC with fixed temporary teachers trains these beside the teacher."""
    short.orc.role_change = False
    assert planned(short, "orc", 0, tmp_path).teacher is None
    assert planned(short, "kd", 0, tmp_path).teacher == tmp_path / "pivot" / "seed_0"


def test_the_time_left(short, tmp_path):
    """By the runs of the same method, else by all; the teachers that are still to be trained count too."""
    plans = runs.plan(short, of_methods(short, ["kd", "dml", "independent"]), 3, tmp_path)
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
    assert len(runs.plan(short, of_methods(short, ["kd", "kd"]), 1, tmp_path)) == 1


def test_a_folder_of_something_else_is_refused(short, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"--out=.*: must be another folder: this one holds a run"):
        runs.plan(short, of_methods(short, ["kd"]), 1, tmp_path)
    short.pivot_checkpoint = "runs/x"
    with pytest.raises(UserError, match=r"config.pivot_checkpoint='runs/x': must be empty: each seed has a teacher"):
        runs.plan(short, of_methods(short, ["kd"]), 1, tmp_path / "x")
    with pytest.raises(UserError, match="--seeds=0: must be at least 1"):
        runs.plan(short, of_methods(short, ["kd"]), 0, tmp_path / "x")


def test_a_sweep_has_all_combinations_and_one_teacher(short, tmp_path):
    """Of fields in dotted names; the teacher is that of the config, whatever is swept."""
    swept = of_sweep(short, ["orc.intensive_samples=mixup,training", "config.learning_rate=0.1,1"])
    assert [variant.name for variant in swept] == [
        "orc.intensive_samples=mixup, learning_rate=0.1",
        "orc.intensive_samples=mixup, learning_rate=1",
        "orc.intensive_samples=training, learning_rate=0.1",
        "orc.intensive_samples=training, learning_rate=1",
    ]
    assert [(v.config.orc.intensive_samples, v.config.learning_rate) for v in swept][2:] == [
        ("training", 0.1),
        ("training", 1.0),
    ]
    plans = runs.plan(short, swept, 2, tmp_path)
    assert [one.run.config.seed for one in plans] == [0] * 4 + [1] * 4
    assert {one.teacher for one in plans} == {tmp_path / "pivot" / f"seed_{seed}" for seed in (0, 1)}
    assert {one.teacher_run.config.learning_rate for one in plans} == {short.learning_rate}
    folders = {one.folder.relative_to(tmp_path).parts[0] for one in plans}
    assert "orc.intensive_samples=mixup.learning_rate=0.1" in folders and len(folders) == 4


@pytest.mark.parametrize(
    "sweep", ["label_key=fine,coarse", "validation_share=0.1,0.2", "label_file=a,b", "stream.image_size=8,16"]
)
def test_a_sweep_of_other_images_or_labels_has_a_teacher_each(short, sweep):
    assert not any(variant.shares_teacher for variant in of_sweep(short, [sweep]))


def test_a_sweep_of_what_makes_another_teacher(short, tmp_path):
    """Each run trains its own then."""
    plans = runs.plan(short, of_sweep(short, ["pretrain_epochs=1,2"]), 1, tmp_path)
    assert [one.teacher for one in plans] == [None, None]
    assert [one.run.config.pretrain_epochs for one in plans] == [1, 2]
    k = of_sweep(short, ["num_temporary_teachers=1"])[0].config
    assert k.num_temporary_teachers == k.orc.num_temporary_teachers == 1


def test_an_ablation_changes_one_thing_at_a_time(short, tmp_path):
    """The method as the config has it comes first, and has the folder that it has in a comparison of methods."""
    ablation = of_ablation(short, ["orc.role_change=False", "orc.beta=0.5,1"])
    assert [variant.name for variant in ablation] == ["orc", "orc.role_change=False", "orc.beta=0.5", "orc.beta=1"]
    assert [(v.config.orc.role_change, v.config.orc.beta) for v in ablation] == [
        (True, 0.5),
        (False, 0.5),
        (True, 0.5),
        (True, 1.0),
    ]
    plans = runs.plan(short, ablation, 1, tmp_path)
    assert plans[0].folder == runs.plan(short, of_methods(short, ["orc"]), 1, tmp_path)[0].folder
    assert {one.run.values for one in plans} == {("orc.beta",)}  # one program for the three that have it
    with pytest.raises(UserError, match=r"--ablate=orc.beta=1: config.orc.beta is given twice"):
        of_ablation(short, ["orc.beta=0.5", "orc.beta=1"])
    with pytest.raises(UserError, match=r"--ablate=orc.beta: accepted is field=value of any field but seed"):
        of_ablation(short, ["orc.beta"])


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("orc.bta=0.1", "--sweep: field='orc.bta' is not known. Did you mean orc.beta"),
        ("orc.beta", "--sweep=orc.beta: accepted is field=value,value of any field but seed"),
        ("orc.beta=", "--sweep=orc.beta=: accepted is field=value,value"),
        ("seed=1,2", "--sweep=seed=1,2: accepted is field=value,value of any field but seed"),
        ("orc.beta=high", "--sweep: config.orc.beta=high: must be like 0.5"),
        ("orc.role_change=3", "--sweep: config.orc.role_change=3: must be like True"),
        ("num_epochs=1.5", "--sweep: config.num_epochs=1.5: must be like 1"),
    ],
)
def test_mistakes_in_a_sweep(short, sweep, message):
    with pytest.raises(UserError) as caught:
        of_sweep(short, [sweep])
    assert str(caught.value).startswith(message)


def test_values_of_a_sweep(short):
    assert split("a, (1,2),[3,(4,5)]") == ["a", "(1,2)", "[3,(4,5)]"]
    values = [v.config.lr_boundaries for v in of_sweep(short, ["lr_boundaries=(0.5,0.75),()"])]
    assert values == [(0.5, 0.75), ()]
    assert [v.config.orc.role_change for v in of_sweep(short, ["orc.role_change=true,False"])] == [True, False]
    with pytest.raises(UserError, match="is given twice"):
        of_sweep(short, ["orc.beta=0.1", "orc.beta=0.2"])


def test_rows_have_their_own_teachers(short, tmp_path):
    overrides = {"num_epochs": 1, "kd.alpha": 0.5}
    rows = of_rows(["kd/resnet56/", "kd/resnet56/resnet20", "pcl/cifar100/resnet32"], overrides)
    assert [row.name for row in rows] == ["kd/resnet56/resnet20", "pcl/cifar100/resnet32"]
    plans = runs.plan(rows[0].config, rows, 2, tmp_path)
    assert [one.teacher for one in plans] == [None] * 4 and plans[0].run.config.kd.alpha == 0.5
    assert plans[2].folder == tmp_path / "kd.resnet56.resnet20" / "seed_1"
    with pytest.raises(
        UserError, match=r"--rows='kd/resnet56/resnet21' is not known. Did you mean kd/resnet56/resnet20"
    ):
        of_rows(["kd/resnet56/resnet21"], {})
