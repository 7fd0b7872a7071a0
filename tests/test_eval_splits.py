"""A run that is evaluated on several splits: who chooses the best checkpoint, who is told, and where."""

import json
import shutil

import pytest

from orc_jax.compare.runs import Planned, is_finished, result_of
from orc_jax.config import resolve
from orc_jax.data import sets
from orc_jax.report import collect, sections, story
from orc_jax.training import train
from orc_jax.workdir import checkpoint, metrics
from tests.helpers import evaluate, printed

EPOCHS = 6


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("splits") / "run"


@pytest.fixture
def run(workdir, config, toy, console, monkeypatch):
    """The config of a finished run of one network, which a fifth of the toy set selects."""
    config.method, config.num_networks, config.assistants, config.validation_share = "independent", 1, "", 0.2
    config.num_epochs, config.log_to = EPOCHS, ""
    given = resolve(config)
    dataset = sets.from_arrays("toy", toy.train, toy.test, toy.class_names, given.config)
    monkeypatch.setattr(sets, "load", lambda *args, **options: dataset)
    if not workdir.exists():
        train(given, workdir, console)
    return config


def columns(row, split=""):
    return {metrics.evaluation(metric, "0_tiny_b", split) for metric in metrics.EVALUATED} & set(row)


def test_others_are_told_at_the_best_so_far_and_at_the_end(run, workdir):
    rows, best = metrics.read(workdir), -1.0
    for row in rows:
        assert len(columns(row)) == 3
        top1 = row[metrics.evaluation("top1", "0_tiny_b")]
        assert bool(columns(row, "test")) == (top1 >= best or row["epoch"] == EPOCHS), row
        best = max(best, top1)
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
    told = [bool(columns(row, "test")) for row in rows]
    assert not all(told), "the test needs an epoch that is no best"
    with checkpoint.open_manager(workdir, create=False) as manager:
        step = checkpoint.find_step(manager, "best")
    (chosen,) = (row for row in rows if row["step"] == step)
    assert chosen[metrics.evaluation("top1", "0_tiny_b")] == best and columns(chosen, "test")


def test_a_run_that_goes_on_tells_the_same(run, workdir, tmp_path, console):
    """What was the best before the interruption counts."""
    other = tmp_path / "run"
    rows = metrics.read(workdir)
    shutil.copytree(workdir, other)
    steps = sorted((other / checkpoint.CHECKPOINTS).glob("[0-9]*"), key=lambda path: int(path.name))
    shutil.rmtree(steps[-1])
    train(resolve(run), other, console)
    assert metrics.read(other) == rows


def test_a_run_ends_when_it_gets_no_better(run, workdir, tmp_path, console):
    """Others are told where it ends; the same command adds nothing, and one without patience goes on."""
    rows, other = metrics.read(workdir), tmp_path / "run"
    run.patience = 1
    ends = next(n for n in range(2, EPOCHS) if metrics.stalled(rows[:n], "0_tiny_b", 1))
    for _ in range(2):
        train(resolve(run), other, console)
        early = metrics.read(other)
        assert [row["epoch"] for row in early] == list(range(1, ends + 1)) and columns(early[-1], "test")
        assert is_finished(resolve(run), other)
    kept = other / checkpoint.CHECKPOINTS
    (kept / str(early[-1]["step"])).rename(tmp_path / "away")
    assert not is_finished(resolve(run), other), "its last checkpoint could not be written"
    kept.rename(tmp_path / "removed")
    assert is_finished(resolve(run), other)
    (tmp_path / "removed").rename(kept)
    (tmp_path / "away").rename(kept / str(early[-1]["step"]))
    assert "independent: ended by config.patience=1, with no better epoch since the best" in printed(console)
    logged = collect.read(other, "run")
    assert "It ended there by config.patience=1: no epoch since its best one was better." in story.in_words(logged, [])
    run.patience = 0
    assert not is_finished(resolve(run), other)
    train(resolve(run), other, console)
    assert metrics.read(other)[ends:] == rows[ends:]


def test_where_it_is_told(run, workdir, console):
    evaluate(run, workdir, "best", console)
    rows = metrics.read(workdir)
    best = metrics.best(rows, "0_tiny_b")
    test = best[metrics.evaluation("top1", "0_tiny_b", "test")]
    (written,) = workdir.glob("evaluation_*.json")
    result = json.loads(written.read_text())
    assert result["split"] == "validation" and result["examples"] == 18
    assert result["others"]["test"]["examples"] == 30
    assert result["others"]["test"]["target_student"]["top1"] == pytest.approx(test)
    text = printed(console)
    assert "toy validation: 18 examples" in text and "toy test: 30 examples" in text
    logged = collect.read(workdir, "run")
    shown = sections.results(logged)
    assert "test top-1, best" in shown.html and f"{test:.2%}" in shown.html and "chosen on validation" in shown.text
    assert f"At its best epoch it has {test:.2%} on 'test'." in story.in_words(logged, [])
    compared = result_of(Planned("independent", resolve(run), workdir), workdir.parent)
    assert compared.others == {"test": test}
