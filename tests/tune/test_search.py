"""A search from its first trial to its table."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from orc_jax import training
from orc_jax.compare import comparison
from orc_jax.config import default
from orc_jax.data import sets
from orc_jax.errors import Interrupted, UserError
from orc_jax.tune import space, table
from orc_jax.tune.search import STUDY, _Judge, judged, search
from orc_jax.workdir import metrics, record
from orc_jax.workdir.logs import MetricsLog
from tests.helpers import printed

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def searched(config, toy, monkeypatch):
    """A small run whose trials are judged by what is held out, and its space."""
    config.method, config.num_networks, config.assistants, config.validation_share = "independent", 2, "", 0.2
    dataset = sets.from_arrays("toy", toy.train, toy.test, toy.class_names, config)
    monkeypatch.setattr(sets, "load", lambda *args, **options: dataset)
    config.num_epochs = 2
    return config, space.parse(config, ["learning_rate=0.001:0.1:log", "momentum=0.0,0.9"])


def rows(out):
    with (out / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_search_goes_on_where_it_stopped(searched, console, tmp_path, monkeypatch):
    config, chosen = searched
    out, train = tmp_path / "out", training.train

    def stopped(run, folder, console, *, on_epoch, **options):
        def once(folder, row):
            on_epoch(folder, row)
            raise Interrupted("SIGTERM", 143)

        train(run, folder, console, on_epoch=once if "trial_001" in str(folder) else on_epoch, **options)

    monkeypatch.setattr(comparison, "train", stopped)
    with pytest.raises(Interrupted):
        search(config, chosen, 3, out, console)
    assert [row["trial"] for row in rows(out)] == ["0"]
    before = metrics.read(out / "trial_001" / "seed_0")
    assert len(before) == 1
    monkeypatch.setattr(comparison, "train", train)
    found = search(config, chosen, 3, out, console)
    there = rows(out)
    assert [row["trial"] for row in there] == ["0", "1", "3"]  # 1 has gone on, as trial 2 of Optuna's
    assert metrics.read(out / "trial_001" / "seed_0")[:1] == before
    assert {row["state"] for row in there} == {"finished"} and {row["epochs"] for row in there} == {"2"}
    assert found.top1 == max(float(row["top1"]) for row in there)
    column = metrics.evaluation("top1", "1_tiny_b")
    assert found.top1 == max(row[column] for row in metrics.read(found.folder))
    assert set(found.others) == {"test"} and set(found.values) == {"learning_rate", "momentum"}
    assert (out / "trials.png").read_bytes().startswith(b"\x89PNG") and "3 trials, the best first" in printed(console)
    # Further, and with the same values as if there had been no interruption; nothing is trained twice.
    monkeypatch.setattr(comparison, "train", lambda *args, **options: pytest.fail("trained again"))
    assert search(config, chosen, 3, out, console) == found
    config.eval_batch_size = 30  # which is free
    assert search(config, chosen, 3, out, console) == found
    config.num_epochs = 3
    with pytest.raises(UserError, match=r"holds a search with config.num_epochs=2, and here it is 3"):
        search(config, chosen, 3, out, console)


def test_trials_that_fail_are_told_and_do_not_count_as_best(searched, console, tmp_path, monkeypatch):
    config, chosen = searched

    def diverged(run, folder, console, **options):
        raise UserError("1_tiny_b has diverged")

    monkeypatch.setattr(comparison, "train", diverged)
    with pytest.raises(UserError, match=r"no trial of .* has finished; the first failed: 1_tiny_b has diverged"):
        search(config, chosen, 2, tmp_path / "out", console)
    assert [(row["state"], row["error"]) for row in rows(tmp_path / "out")] == [("failed", "1_tiny_b has diverged")] * 2


@pytest.fixture
def stub(monkeypatch):
    """Instead of training: rows of all runs epoch by epoch, the better the higher the rate, but of those that end."""
    groups = []

    def train_together(jobs, console, dataset, on_epoch):
        groups.append([folder.parent.name for _, folder in jobs])
        logs = {}
        for run, folder in jobs:
            there = record.Record(
                json.loads(run.config.to_json()), run.architectures, 3, ("a",), 90, (), (), (), None, {}
            )
            record.write(folder, there)
            logs[folder] = MetricsLog(folder, 0, run.config)
        for epoch in range(1, jobs[0][0].config.num_epochs + 1):
            for run, folder in jobs:
                top1 = run.config.learning_rate * epoch
                columns = ("eval/top1/1_tiny_b", "eval_test/top1/1_tiny_b", "eval/top1/ensemble")
                row = {"step": epoch, "epoch": epoch} | dict.fromkeys(columns, top1)
                if folder in logs:
                    logs[folder].write(row, {metrics.SPEED: 1.0})
                    if on_epoch(folder, row):
                        del logs[folder]
        return {}

    monkeypatch.setattr(comparison, "train_together", train_together)
    return groups


def test_several_trials_at_once(searched, console, tmp_path, stub):
    """In even parts of at most as many as there are replicas, each judged by those that have finished."""
    config, _ = searched
    config.replicas, config.num_epochs, config.log_to = 5, 4, ""
    chosen = space.parse(config, ["learning_rate=0.001:0.1:log", "weight_decay=1e-4:1e-3"])
    found = search(config, chosen, 9, tmp_path / "out", console)
    names = [f"trial_{i:03d}" for i in range(9)]
    assert stub == [names[:5], names[5:]]
    there = rows(tmp_path / "out")
    rates = [float(row["learning_rate"]) for row in there]
    early = [i for i in range(5, 9) if rates[i] < sorted(rates[:5])[2]]  # the median, after a quarter of the epochs
    assert early and [i for i, row in enumerate(there) if row["state"] == "ended early"] == early
    assert [row["epochs"] for row in there] == ["1" if i in early else "4" for i in range(9)]
    assert found.values["learning_rate"] == max(rates)
    assert f"trial_{early[0]:03d}: ended: others were better at this epoch" in printed(console)


def test_several_trials_go_on_where_they_stopped(searched, console, tmp_path, stub, monkeypatch):
    """In the folders that they have, and one by one as well; what is known of them is told again."""
    config, _ = searched
    config.replicas, config.log_to = 2, ""
    chosen = space.parse(config, ["learning_rate=0.001:0.1:log"])
    train_together = comparison.train_together

    def stopped(*args):
        train_together(*args)
        raise Interrupted("SIGTERM", 143)

    with pytest.raises(Interrupted), monkeypatch.context() as patch:
        patch.setattr(comparison, "train_together", stopped)
        search(config, chosen, 4, tmp_path / "out", console)
    shutil.rmtree(tmp_path / "out" / "trial_001")
    trained = []

    def train(run, folder, console, dataset, on_epoch):
        trained.append(folder.parent.name)
        train_together([(run, folder)], console, dataset, on_epoch)

    monkeypatch.setattr(comparison, "train", train)
    search(config, chosen, 4, tmp_path / "out", console)  # the first is done, and the second alone
    assert trained == ["trial_001"] and [len(group) for group in stub] == [2, 1, 2]
    assert [row["trial"] for row in rows(tmp_path / "out")] == ["0", "1", "4", "5"]
    config.replicas = 1
    search(config, chosen, 5, tmp_path / "out", console)
    assert trained == ["trial_001", "trial_006"]


def test_what_is_refused_is_refused_before_the_first_trial(searched, console, tmp_path):
    config, chosen = searched
    with pytest.raises(UserError, match="learning_rate"):
        search(config, space.parse(config, ["learning_rate=-1.0:0.1"]), 2, tmp_path / "out", console)
    config.replicas = 2
    with pytest.raises(UserError, match=r"config.replicas=2: trials differ in momentum, of which one program has one"):
        search(config, chosen, 2, tmp_path / "out", console)
    assert not (tmp_path / "out").exists()


def test_a_trial_that_is_worse_than_others_ends(searched, tmp_path):
    """From the sixth on, after a quarter of the epochs, below the median at the same epoch; what was logged counts."""
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(5, 1))
    for top1 in (0.2, 0.3, 0.4, 0.5, 0.6):
        trial = study.ask()
        trial.report(top1, 1)
        study.tell(trial, top1)
    folder = tmp_path / "run"
    folder.mkdir()
    column = metrics.evaluation("top1", "1_b")
    one = SimpleNamespace(run=SimpleNamespace(architectures=["a", "b"]), folder=folder)
    good, bad = (_Judge(study.ask(), one) for _ in range(2))
    assert not good({column: 0.45, "epoch": 1})
    assert not bad({"loss": 1.0, "epoch": 0}) and not bad.ends  # an epoch without an evaluation
    assert bad({column: 0.35, "epoch": 1}) and bad.ends
    (folder / metrics.METRICS).write_text(f'{{"{column}": 0.1, "epoch": 1, "step": 3}}\n')
    again = _Judge(study.ask(), one)
    assert again.trial.should_prune()
    assert table.top1(study.trials[5]) == 0.45 and study.trials[0].state == TrialState.COMPLETE


def test_trials_are_judged_by_what_does_not_tell_what_they_come_to():
    config, told = judged(default())
    assert (config.validation_share, config.eval_splits) == (0.1, "validation,test") and len(told) == 1
    assert judged(config) == (config, [])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--mode=evaluate"], "--mode is for one run; a search trains many"),
        (["--config.method=dml"], "nothing is chosen for config.method='dml'"),
        (["--search=orc.beta=0.1:1.9", "--out=nowhere"], "config.orc.beta=1.9: must be between 0 and 1"),
        (["--trials=0", "--out=nowhere"], "--trials=0: must be at least 1"),
    ],
)
def test_mistakes_are_answered_with_one_message(arguments, text):
    done = subprocess.run([sys.executable, "-m", "orc_jax.tune", *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and text in done.stderr and not (ROOT / "nowhere" / STUDY).exists()
