"""The comparison of methods: fair runs, nothing trained twice, and a table that says what the runs came to."""

import csv
import re
import signal

import jax
import numpy as np
import pytest

from orc_jax.compare import comparison
from orc_jax.compare.variants import of_methods, of_rows, of_sweep
from orc_jax.data import sets
from orc_jax.errors import Interrupted, UserError
from orc_jax.published import ROWS
from orc_jax.report.comparison_page import figure
from orc_jax.report.write import write_report
from orc_jax.workdir import comparison as records
from orc_jax.workdir import metrics, record
from tests import own_modules
from tests.helpers import printed
from tests.report.reading import read

pytestmark = pytest.mark.usefixtures("toy_set")
METHODS = ["kd", "pcl", "independent"]


def compare(config, methods, *rest):
    """A comparison of methods."""
    return comparison.compare(config, of_methods(config, methods), *rest)


def test_a_comparison(short, console, tmp_path, monkeypatch):
    trained, train = [], comparison.train

    def noted(resolved, folder, console, dataset, on_epoch):
        trained.append(folder)
        train(resolved, folder, console, dataset=dataset)

    monkeypatch.setattr(comparison, "train", noted)
    compare(short, METHODS, 2, tmp_path, console)
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
    shown = printed(console)
    assert "run 1 of 6, kd, seed 0 " in shown and "run 6 of 6, independent, seed 1; about " in shown
    assert "1 of 6 runs finished" in shown and "kd 1 of 2" in shown and "Target student tiny_b on toy test." in shown
    there = records.read(tmp_path)
    assert [run.took > 0 and run.ended > "2026" for run in there.runs] == [True] * 6
    assert there.costs.keys() == set(METHODS)
    # Once more: nothing is trained again. With one more seed, that alone.
    trained.clear()
    compare(short, METHODS, 2, tmp_path, console)
    assert trained == []
    compare(short, ["independent"], 3, tmp_path, console)
    assert trained == [tmp_path / "independent" / "seed_2"]
    # Another budget does not go on with these runs.
    short.num_epochs = 2
    with pytest.raises(UserError, match=r"holds another run:\n  config.num_epochs: 1 there, 2 here"):
        compare(short, ["independent"], 2, tmp_path, console)


def test_a_run_that_fails_is_marked_and_the_others_go_on(short, console, tmp_path, stub, not_drawn):
    """In the table, the CSV file, the plot, the page, and the error at the end; the next start tries it again."""
    short.log_to = ""
    failing, trained = stub
    failing["kd"] = UserError("1_tiny_b has diverged:\nfrom step 3")
    failing["dml"] = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    methods = ["kd", "dml", "independent"]
    with pytest.raises(UserError, match=r"^4 of 6 runs have failed: kd, seed 0 \(1_tiny_b has diverged: from step 3"):
        compare(short, methods, 2, tmp_path, console)
    assert trained == [
        *("pivot/seed_0", "kd/seed_0", "dml/seed_0", "independent/seed_0"),
        *("pivot/seed_1", "kd/seed_1", "dml/seed_1", "independent/seed_1"),
    ]
    lines = (tmp_path / "compare.md").read_text().splitlines()
    assert "| kd (2 of 2 failed) | - | - | - | - | - | - |" in lines
    assert "| independent | 25.50 ± 0.71 |  | 25.50 ± 0.71 | 90.00 ± 0.00 | 7.0 | 2 |" in lines
    assert any(line.startswith("Failed: kd, seed 0 (1_tiny_b has diverged") for line in lines)
    with (tmp_path / "compare.csv").open() as file:
        rows = {(row["method"], row["seed"]): row for row in csv.DictReader(file)}
    assert rows["kd", "1"]["last"] == "" and rows["kd", "1"]["error"] == "1_tiny_b has diverged: from step 3"
    assert rows["independent", "1"]["last"] == "0.26" and rows["independent", "1"]["error"] == ""
    assert rows["dml", "0"]["error"].startswith("the memory of a device does not suffice")
    ticks = [tick.get_text() for tick in figure(records.read(tmp_path)).axes[0].get_yticklabels()]
    assert ticks == ["kd (2 of 2 failed)", "dml (2 of 2 failed)", "independent"]
    assert re.search(r"kd +0 of 2, 2 failed +- +- +-", printed(console))
    shown = read(write_report([tmp_path], None, "latest", 1, pytest.fail))
    assert "4 of 6 runs failed: kd, seed 0 (1_tiny_b has diverged: from step 3)" in shown.text
    trained.clear(), failing.clear()
    table = compare(short, methods, 2, tmp_path, console)
    assert trained == ["kd/seed_0", "dml/seed_0", "kd/seed_1", "dml/seed_1"] and not table.failed
    assert "5 of 6 runs finished" in printed(console)


def test_without_their_teacher_runs_fail_at_once(short, console, tmp_path, stub, not_drawn):
    short.log_to = ""
    failing, trained = stub
    failing["pivot"] = UserError("it has diverged")
    with pytest.raises(UserError, match=r"2 of 3 runs have failed: kd, seed 0 .its teacher in .*seed_0: it has"):
        compare(short, ["kd", "orc", "independent"], 1, tmp_path, console)
    assert trained == ["pivot/seed_0", "independent/seed_0"]


def test_what_nobody_can_put_right_ends_the_comparison(short, console, tmp_path, stub, not_drawn):
    failing, _ = stub
    for error in (ValueError("x"), jax.errors.JaxRuntimeError("y"), KeyboardInterrupt()):
        failing["independent"] = error
        with pytest.raises(type(error)):
            compare(short, ["independent"], 1, tmp_path, console)


def test_a_stop_says_where_and_the_next_start_goes_on_there(short, console, tmp_path, stub, not_drawn):
    short.log_to = ""
    failing, trained = stub
    failing["dml"] = Interrupted("dml: stopped by SIGINT after step 2 of 5; the same command goes on from there", 130)
    text = "^run 2 of 3, dml, seed 0: dml: stopped by SIGINT after step 2 of 5; the same command goes on from there$"
    with pytest.raises(Interrupted, match=text) as caught:
        compare(short, ["kd", "dml", "independent"], 1, tmp_path, console)
    assert caught.value.status == 128 + signal.SIGINT
    states = [(run.is_finished, run.error) for run in records.read(tmp_path).runs]
    assert states == [(True, ""), (False, ""), (False, "")]
    shown = read(write_report([tmp_path], None, "latest", 1, pytest.fail))
    assert "2 of 3 runs are still to come." in shown.text
    trained.clear(), failing.clear()
    compare(short, ["kd", "dml", "independent"], 1, tmp_path, console)
    assert trained == ["dml/seed_0", "independent/seed_0"]


def test_costs_are_counted_once(short, console, tmp_path, stub, not_drawn, monkeypatch):
    """Unless the config is another, or what they were kept in is damaged."""
    short.log_to = ""
    counted = []
    monkeypatch.setattr(comparison, "cost", lambda planned, dataset: counted.append(planned.method) or 7.0)
    for seeds in (1, 2):
        compare(short, ["kd", "independent"], seeds, tmp_path, console)
        assert counted == ["kd", "independent"]
    short.eval_batch_size = 32
    (tmp_path / records.FILE).write_text((tmp_path / records.FILE).read_text()[:-9])
    compare(short, ["kd"], 2, tmp_path, console)
    assert counted == ["kd", "independent", "kd"]


def test_networks_of_ones_own(short, console, tmp_path, monkeypatch):
    """As teacher and as student; what is trained already is known again."""
    with own_modules.lying_in(tmp_path, monkeypatch, mine=own_modules.NETWORKS):
        short.teacher, short.student, short.assistants = "mine:Big", "mine:Net", "copies"
        for _ in range(2):
            compare(short, ["kd"], 1, tmp_path / "x", console)
        last = metrics.read(tmp_path / "x" / "kd" / "seed_0")[-1]
        assert {"eval/top1/0_mine:Big", "eval/top1/1_mine:Net"} <= last.keys()
        assert record.require(tmp_path / "x" / "pivot" / "seed_0").architectures == ("mine:Big",)
        text = (tmp_path / "x" / "compare.md").read_text()
        assert "Target student mine:Net on toy test." in text
        with pytest.raises(UserError, match=r"config.student='mine:Net' is not known"):
            compare(short, ["pcl"], 1, tmp_path / "y", console)  # which has to know the last stage
        assert not (tmp_path / "y").exists()


def test_methods_of_ones_own(short, console, tmp_path, monkeypatch, stub, not_drawn):
    """Beside registered ones: its options are its own, and the teacher is the one of all."""
    method = """
from orc_jax.methods.base import Stage
from orc_jax.methods.independent import independent

def taught(architectures, *, loud=False):
    assert loud
    return independent(architectures)._replace(stages=(Stage("pivot", "independent", (0,)),))
"""
    with own_modules.lying_in(tmp_path, monkeypatch, methods=method):
        short.log_to, short.method_options, short.num_networks, short.assistants = "", "loud=True", 2, ""
        table = compare(short, ["methods:taught", "kd"], 1, tmp_path / "x", console)
    assert [run.folder for run in table.runs] == ["methods.taught/seed_0", "kd/seed_0"] and not table.failed
    there = record.require(tmp_path / "x" / "methods.taught" / "seed_0")
    assert there.config["method"] == "methods:taught" and there.config["method_options"] == "loud=True"
    assert {path.parent.name for path in (tmp_path / "x").glob("*/seed_0")} == {"methods.taught", "kd", "pivot"}
    # Its page needs nothing of the module.
    own_modules.forget("methods")
    shown = read(write_report([tmp_path / "x"], None, "latest", 1, pytest.fail))
    assert "methods:taught" in shown.cells and (tmp_path / "x" / "report" / "top1.png").exists()


def test_a_sweep(short, console, tmp_path, stub, not_drawn):
    """One teacher for all; the first is what the others are measured by."""
    short.log_to = ""
    swept = of_sweep(short, ["orc.intensive_samples=mixup,training"])
    table = comparison.compare(short, swept, 2, tmp_path, console, baseline=swept[0].name)
    _, trained = stub
    assert trained == [
        *("pivot/seed_0", "orc.intensive_samples=mixup/seed_0", "orc.intensive_samples=training/seed_0"),
        *("pivot/seed_1", "orc.intensive_samples=mixup/seed_1", "orc.intensive_samples=training/seed_1"),
    ]
    lines = (tmp_path / "compare.md").read_text().splitlines()
    assert (
        "| method | last epoch | over orc.intensive_samples=mixup | best epoch | ensemble | cost | seconds |" in lines
    )
    line = next(line for line in lines if line.startswith("| orc.intensive_samples=training"))
    assert line.split(" | ")[2] == "+0.00 ± 0.00"
    assert records.read(tmp_path) == table and table.baseline == "orc.intensive_samples=mixup"
    shown = read(write_report([tmp_path], None, "latest", 1, pytest.fail))
    assert "It is what the others are measured by." in shown.text


def test_rows_stand_beside_what_was_published(short, console, tmp_path, stub, not_drawn, monkeypatch):
    """Each on its own set, which is read once where it stays the same; the same command trains nothing twice."""
    loaded, toy = [], sets.load(short, print)
    monkeypatch.setattr(sets, "load", lambda config, *rest, **options: loaded.append(config.dataset) or toy)
    rows = of_rows(["kd/resnet56/resnet20", "pcl/cifar100/resnet32", "pcl/cifar10/resnet32"], {"log_to": ""})
    told = {row.name: ROWS[row.name].text for row in rows}
    for _ in range(2):
        comparison.compare(rows[0].config, rows, 1, tmp_path, console, baseline="", published=told)
    _, trained = stub
    assert trained == ["kd.resnet56.resnet20/seed_0", "pcl.cifar100.resnet32/seed_0", "pcl.cifar10.resnet32/seed_0"]
    assert "cifar10" in loaded and "cifar100" in loaded
    text = (tmp_path / "compare.md").read_text()
    assert "| kd/resnet56/resnet20 | 25.00 |  | 25.00 | 90.00 | 7.0 |" in text and "| 70.66 [A, last] |" in text
    assert "| 74.14 ± 0.16 [B, ?] |" in text and text.startswith("Published rows.")
    shown = read(write_report([tmp_path], None, "latest", 1, pytest.fail))
    assert "3 published rows have a finished run" in shown.text
