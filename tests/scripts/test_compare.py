"""The comparison of methods: fair runs, nothing trained twice, and a table that says what the runs came to."""

import csv

import jax
import numpy as np
import pytest

from orc_jax.errors import UserError
from orc_jax.run import build
from orc_jax.step import init_stacks
from orc_jax.workdir import metrics, record
from scripts import compare
from tests import own_modules

pytestmark = pytest.mark.usefixtures("toy_set", "kept_programs")
METHODS = ["kd", "pcl", "independent"]


@pytest.fixture
def short(config):
    config.num_networks, config.assistants, config.num_epochs = 3, "tiny_b", 1
    return config


def test_a_comparison(short, console, tmp_path, monkeypatch):
    trained, train = [], compare.train

    def noted(resolved, folder, console):
        trained.append(folder)
        train(resolved, folder, console)

    monkeypatch.setattr(compare, "train", noted)
    compare.compare(short, METHODS, 2, tmp_path, console)
    names = {str(folder.relative_to(tmp_path)) for folder in trained}
    assert names == {f"{m}/seed_{s}" for m in [*METHODS, "pivot"] for s in (0, 1)}
    assert record.require(tmp_path / "kd" / "seed_1").config["seed"] == 1
    with (tmp_path / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["seed"]) for row in rows] == [(m, s) for m in METHODS for s in "01"]
    for row in rows:
        target = "eval/top1/" + {"kd": "1_tiny_b", "pcl": "2_tiny_b", "independent": "0_tiny_b"}[row["method"]]
        logged = metrics.read(tmp_path / row["method"] / f"seed_{row['seed']}")
        assert float(row["last"]) == logged[-1][target]
        assert float(row["seconds"]) > 0
    text = (tmp_path / "compare.md").read_text()
    alone = 100 * np.array([float(row["last"]) for row in rows if row["method"] == "independent"])
    cells = next(line for line in text.splitlines() if line.startswith("| independent")).split(" | ")
    assert cells[1] == f"{alone.mean():.2f} ± {alone.std(ddof=1):.2f}"
    kd = 100 * np.array([float(row["last"]) for row in rows if row["method"] == "kd"])
    cells = {
        line.split(" | ")[0][2:]: line.strip("| ").split(" | ")
        for line in text.splitlines()
        if line[:3] in ("| k", "| i", "| p")
    }
    assert cells["kd"][2] == f"{(kd - alone).mean():+.2f} ± {(kd - alone).std(ddof=1):.2f}"
    # Forward and backward of one network are three passes; gradients of the first layer's images are not needed.
    assert 2 < float(cells["independent"][5]) < 3.2
    assert float(cells["independent"][5]) < float(cells["kd"][5]) < float(cells["pcl"][5])
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    # Once more: nothing is trained again. With one more seed, that alone.
    trained.clear()
    compare.compare(short, METHODS, 2, tmp_path, console)
    assert trained == []
    compare.compare(short, ["independent"], 3, tmp_path, console)
    assert trained == [tmp_path / "independent" / "seed_2"]
    # Another budget does not go on with these runs.
    short.num_epochs = 2
    with pytest.raises(UserError, match=r"holds another run:\n  config.num_epochs: 1 there, 2 here"):
        compare.compare(short, ["independent"], 2, tmp_path, console)


def test_runs_of_a_seed_start_from_the_same_target_student(short, toy, tmp_path):
    targets = []
    for method in ("orc", "kd", "independent", "dgkd"):
        resolved = compare.method_run(short, method, 5, tmp_path)
        run = build(resolved, toy, jax.local_devices())
        stack = init_stacks(run.setup, run.method, resolved.config.seed)["tiny_b"]
        targets.append(np.asarray(stack.params["conv2.kernel"][-1]))
    for other in targets[1:]:
        np.testing.assert_array_equal(targets[0], other)


def test_mistakes_are_told_before_the_first_run(short, console, tmp_path):
    with pytest.raises(UserError, match=r"--methods='orcc' is not known. Did you mean orc"):
        compare.compare(short, ["orcc"], 1, tmp_path / "x", console)
    short.kd.alpha = 2.0
    with pytest.raises(UserError, match=r"config.kd.alpha=2.0"):
        compare.compare(short, ["independent", "kd"], 1, tmp_path / "x", console)
    assert not (tmp_path / "x").exists()


def test_what_runs_have_in_common_and_what_not(short, tmp_path):
    """Pools and teachers as the docstring of the script says; the config that was given stays as it was."""
    before = short.to_json()
    runs = {method: compare.method_run(short, method, 7, tmp_path) for method in ("orc", "kd", "pcl", "independent")}
    assert {method: run.architectures for method, run in runs.items()} == {
        "orc": ("tiny_a", "tiny_b", "tiny_b"),
        "kd": ("tiny_a", "tiny_b"),
        "pcl": ("tiny_b",) * 3,
        "independent": ("tiny_b",),
    }
    assert {run.config.seed for run in runs.values()} == {7} and short.to_json() == before
    pivot = str(tmp_path / "pivot" / "seed_7")
    assert [run.config.pivot_checkpoint for run in runs.values()] == [pivot, pivot, "", ""]
    alone = compare.pivot_run(runs["orc"])
    assert alone.architectures == ("tiny_a",) and alone.config.method == "independent"
    assert alone.config.num_epochs == short.pretrain_epochs and not alone.config.pivot_checkpoint
    short.pretrain_epochs = 0
    assert compare.method_run(short, "orc", 7, tmp_path).config.pivot_checkpoint == ""


def test_networks_of_ones_own(short, console, tmp_path, monkeypatch):
    """As teacher and as student; what is trained already is known again."""
    with own_modules.lying_in(tmp_path, monkeypatch, mine=own_modules.NETWORKS):
        short.teacher, short.student, short.assistants = "mine:Big", "mine:Net", "copies"
        for _ in range(2):
            compare.compare(short, ["kd"], 1, tmp_path / "x", console)
        last = metrics.read(tmp_path / "x" / "kd" / "seed_0")[-1]
        assert {"eval/top1/0_mine:Big", "eval/top1/1_mine:Net"} <= last.keys()
        assert record.require(tmp_path / "x" / "pivot" / "seed_0").architectures == ("mine:Big",)
        text = (tmp_path / "x" / "compare.md").read_text()
        assert "Target student mine:Net on toy test." in text
        with pytest.raises(UserError, match=r"config.student='mine:Net' is not known"):
            compare.compare(short, ["pcl"], 1, tmp_path / "y", console)  # which has to know the last stage
        assert not (tmp_path / "y").exists()
