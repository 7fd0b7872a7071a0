"""Replicas: several runs in one program, each of which is the run of its seed."""

import shutil
import sys

import numpy as np
import pytest
from absl import flags

from orc_jax import config as configs
from orc_jax import flagging, main, training
from orc_jax.compare import replicas
from orc_jax.data import feed, sets
from orc_jax.deploy.member import load_member
from orc_jax.errors import Interrupted, UserError
from orc_jax.preemption import Stop
from orc_jax.testing import assert_close, assert_identical
from orc_jax.workdir import checkpoint, metrics, record
from tests.helpers import contents, final_state, printed

pytestmark = pytest.mark.usefixtures("toy_set")
SEEDS = (0, 1, 2)


def together(config, folder, console, toy, on_epoch=None):
    """A run of each seed, in one program; who has failed."""
    jobs = []
    for seed in SEEDS:
        own = config.copy_and_resolve_references()
        own.seed = seed
        jobs.append((configs.resolve(own), folder / f"seed_{seed}"))
    return training.train_together(jobs, console, toy, on_epoch)


def decisions(folder):
    """Who was promoted, and whose samples were fed back, epoch by epoch."""
    rows = metrics.read(folder)
    return [{name: value for name, value in row.items() if "promoted" in name or "share" in name} for row in rows]


def test_each_is_the_run_of_its_seed(config, console, toy, tmp_path, finished):
    """Decisions exactly, weights up to rounding; with the stage that comes before."""
    assert together(config, tmp_path, console, toy) == {}
    own = tmp_path / "seed_0"
    assert decisions(own) == decisions(finished)
    assert_close(final_state(own, toy).stacks, final_state(finished, toy).stacks)
    assert record.require(own).config == record.require(finished).config
    states = [final_state(tmp_path / f"seed_{seed}", toy) for seed in SEEDS]
    assert len({float(state.stacks["tiny_b"].params["fc.kernel"].sum()) for state in states}) == 3
    assert "orc (3 at once) epoch 2/2 3_tiny_b: loss" in printed(console)
    assert "pivot (3 at once) epoch 1/1" in printed(console)


@pytest.fixture
def alone(config):
    """One network that learns from the labels, for three epochs."""
    config.method, config.num_networks, config.assistants, config.num_epochs = "independent", 1, "", 3
    return config


def test_replicas_that_are_not_equally_far(alone, console, toy, tmp_path):
    """Those behind go first; and one that is finished as a run of its own is left as it is."""
    alone.checkpoint_every_steps, alone.eval_every_epochs = 2, 3
    together(alone, tmp_path / "whole", console, toy)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for seed, count in ((1, 1), (2, 3)):
        saved = (tmp_path / "part" / f"seed_{seed}" / checkpoint.CHECKPOINTS).glob("[0-9]*")
        for path in sorted(saved, key=lambda path: int(path.name))[-count:]:
            shutil.rmtree(path)
    before = contents(tmp_path / "part" / "seed_0")
    together(alone, tmp_path / "part", console, toy)
    assert contents(tmp_path / "part" / "seed_0") == before
    for seed in SEEDS:
        whole, part = (tmp_path / name / f"seed_{seed}" for name in ("whole", "part"))
        assert_close(final_state(part, toy).stacks, final_state(whole, toy).stacks)
        assert [row["step"] for row in metrics.read(part)] == [row["step"] for row in metrics.read(whole)]
    lines = printed(console)
    assert lines.index("independent epoch 2/3") < lines.index("independent (2 at once) epoch 3/3")


def test_asked_to_stop(alone, console, toy, tmp_path, monkeypatch):
    """All are saved after the same step, and go on from there."""
    asked = iter([False, False, False, True])
    with (
        monkeypatch.context() as patch,
        pytest.raises(Interrupted, match=r"\(3 at once\): stopped by SIGTERM after step 4 of"),
    ):
        patch.setattr(Stop, "requested", lambda stop: next(asked))
        together(alone, tmp_path, console, toy)
    assert [int(final_state(tmp_path / f"seed_{seed}", toy).step) for seed in SEEDS] == [4, 4, 4]
    together(alone, tmp_path, console, toy)
    together(alone, tmp_path / "whole", console, toy)
    for seed in SEEDS:
        part, whole = (final_state(folder / f"seed_{seed}", toy) for folder in (tmp_path, tmp_path / "whole"))
        assert_identical(part, whole)


def test_begun_one_by_one_or_together(alone, console, toy, tmp_path):
    """And gone on with the other way: each is the same run. What ends after an epoch ends alone."""
    ends = lambda folder, row: folder.name == "seed_0" and row["epoch"] == 1  # noqa: E731
    single = configs.resolve(alone)
    together(alone, tmp_path / "whole", console, toy)
    training.train(single, tmp_path / "first_alone" / "seed_0", console, dataset=toy, on_epoch=ends)
    together(alone, tmp_path / "first_together", console, toy, ends)
    for name, counts in (("first_alone", [1, 0, 0]), ("first_together", [1, 3, 3])):
        assert [len(metrics.read(tmp_path / name / f"seed_{seed}")) for seed in SEEDS] == counts
    together(alone, tmp_path / "first_alone", console, toy)
    training.train(single, tmp_path / "first_together" / "seed_0", console, dataset=toy)
    for seed in SEEDS:
        whole, *others = (
            final_state(tmp_path / name / f"seed_{seed}", toy) for name in ("whole", "first_alone", "first_together")
        )
        for other in others:
            assert int(other.step) == int(whole.step)
            assert_close(other.stacks, whole.stacks)


def test_what_comes_before_replicas_has_their_values(config):
    """Their stages are trained in one program, too."""
    config.method = "takd"
    resolved = configs.resolve(config).with_values(["learning_rate", "takd.temperature", "momentum"])
    pivot, *others = [resolved.stage(stage, 1).values for stage in resolved.method.stages]
    assert pivot == ("learning_rate",) and set(others) == {("learning_rate", "takd.temperature")}


def test_divergence_of_one_touches_no_other(alone, console, toy, tmp_path):
    """With values that differ from run to run: of three learning rates one is far too large."""
    jobs = []
    for i, rate in enumerate((0.05, 1e30, 0.01)):
        alone.learning_rate = rate
        jobs.append((configs.resolve(alone).with_values(["learning_rate"]), tmp_path / f"rate_{i}"))
    failed = training.train_together(jobs, console, toy)
    assert list(failed) == [tmp_path / "rate_1"] and "0_tiny_b has diverged" in str(failed[tmp_path / "rate_1"])
    assert "The others go on" in printed(console)
    alone.learning_rate = 0.01
    training.train(configs.resolve(alone), tmp_path / "single", console, dataset=toy)
    assert_close(final_state(tmp_path / "rate_2", toy).stacks, final_state(tmp_path / "single", toy).stacks)
    rows = [metrics.read(tmp_path / name) for name in ("rate_0", "rate_1", "rate_2")]
    assert [len(of) for of in rows] == [3, 0, 3]
    assert rows[0][0]["learning_rate"] == pytest.approx(0.05) and rows[2][0]["learning_rate"] == pytest.approx(0.01)


def test_patience_ends_each_by_itself(alone, console, toy, tmp_path):
    """One that has ended is not written to any more, while the others go on."""
    alone.num_epochs, alone.patience, alone.learning_rate = 8, 2, 0.2
    together(alone, tmp_path, console, toy)
    for seed in SEEDS:
        alone.seed = seed
        training.train(configs.resolve(alone), tmp_path / "single", console, dataset=toy)
        ends = [metrics.read(folder)[-1]["epoch"] for folder in (tmp_path / f"seed_{seed}", tmp_path / "single")]
        assert ends[0] == ends[1]
        shutil.rmtree(tmp_path / "single")


def test_one_order_of_images_for_all(alone, console, toy, tmp_path):
    """`data_seed`: replicas see the same batches, and each is still the run of its fields."""
    alone.data_seed = 7
    together(alone, tmp_path, console, toy)
    alone.seed = 1
    training.train(configs.resolve(alone), tmp_path / "single", console, dataset=toy)
    assert_close(final_state(tmp_path / "seed_1", toy).stacks, final_state(tmp_path / "single", toy).stacks)
    orders = [[np.asarray(batch) for batch in batches(alone, toy, data)] for data in (7, -1)]
    assert not np.array_equal(*orders)


def batches(config, toy, data_seed):
    """The examples of the first step."""
    config.data_seed = data_seed
    return feed.first_examples(toy, config, 4, 1).images


def test_replicas_by_the_command(alone, console, tmp_path):
    """Two values with two seeds each: one program, and the table of a comparison."""
    alone.replicas = 4
    table = replicas.train(alone, {"learning_rate": "0.05,0.01"}, tmp_path, console)
    assert [(run.method, run.seed) for run in table.runs] == [
        ("learning_rate=0.05", 0),
        ("learning_rate=0.01", 0),
        ("learning_rate=0.05", 1),
        ("learning_rate=0.01", 1),
    ]
    assert all(run.is_finished for run in table.runs) and "independent (4 at once) epoch 3/3" in printed(console)
    replicas.evaluate(table, tmp_path, {}, (), "best", console)
    values = [run.best for run in table.runs if run.method == "learning_rate=0.01"]
    assert f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f}" in printed(console)
    found = load_member(tmp_path, "student@learning_rate=0.01/seed_1", "latest")
    state = final_state(tmp_path / "learning_rate=0.01" / "seed_1", sets.load(alone, print))
    np.testing.assert_array_equal(found.weights[0]["fc.bias"], state.stacks["tiny_b"].params["fc.bias"][0])
    for member, message in (("student", "accepted is student@ and a seed"), ("student@1", "holds several runs")):
        with pytest.raises(UserError, match=message):
            load_member(tmp_path, member, "latest")


@pytest.mark.parametrize(
    ("lists", "fields", "message"),
    [
        ({"learning_rate": "0.1,0.2"}, {"replicas": 3}, "learning_rate=0.1,0.2: 2 values, and config.replicas=3"),
        (
            {"momentum": "0.1,0.2"},
            {"replicas": 2},
            "accepted are several of label_smoothing, learning_rate, weight",
        ),
        ({"learning_rate": "0.1,much"}, {"replicas": 2}, "config.learning_rate=much: must be like"),
        ({}, {"replicas": -1}, "config.replicas=-1: must be at least 0"),
        ({}, {"replicas": 2, "validation_share": 0.2}, "each seed holds out another config.validation_share"),
    ],
)
def test_what_cannot_be_replicas(alone, console, tmp_path, lists, fields, message):
    alone.update(fields)
    with pytest.raises(UserError, match=message):
        replicas.train(alone, lists, tmp_path, console)
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "orc.beta=0.2,0.5: several values are for replicas: --config.replicas=2"),
        (["--mode=describe", "--config.replicas=2"], "orc.beta=0.2,0.5: several values are for replicas: --config.rep"),
        (["--config.replicas=-1"], "config.replicas=-1: must be at least 0"),
    ],
)
def test_values_that_would_be_ignored_are_refused(arguments, message, monkeypatch, tmp_path, capsys):
    flags_of = [f"--workdir={tmp_path}/run", "--compilation_cache=", "--config=digits", "--config.orc.beta=0.2,0.5"]
    monkeypatch.setattr(sys, "argv", ["orc-jax", *flags_of, *arguments])
    monkeypatch.setattr(main.allocator, "keep_pages", lambda: None)
    with pytest.raises(SystemExit) as left:
        main.main()
    for name in main.FLAGS:  # they keep what they were given
        main.FLAGS[name].unparse()
    assert left.value.code == 2 and message in capsys.readouterr().err


def test_several_values_on_the_command_line():
    own = flags.FlagValues()
    given = flagging.parse(["x", "--config=digits", "--config.orc.beta=0.2,0.5"], own, "", lists=True)
    assert given.lists == {"orc.beta": "0.2,0.5"} and given.config.orc.beta == 0.2
    with pytest.raises(UserError, match=r"--config.orc.beta=0.2,0.5: must be a number"):
        flagging.parse(["x", "--config=digits", "--config.orc.beta=0.2,0.5"], own, "")
