"""The page on a comparison: what it says is what the runs came to."""

import json

import numpy as np
import pytest

from orc_jax import config as configs
from orc_jax.errors import UserError
from orc_jax.report import comparison_page
from orc_jax.report.write import write_report
from orc_jax.workdir import comparison, metrics, record
from orc_jax.workdir.comparison import Compared, Comparison
from tests.report.reading import read

METHODS = ("kd", "dml", "independent")


def entry(method, seed, last=None, **fields):
    """A run; finished if it has a result."""
    results = {} if last is None else {"best": last + 0.01, "ensemble": 0.9, "seconds": 10.0, "took": 60.0}
    ended = "" if last is None else f"2026-11-2{seed}T02:05:06+00:00"
    return Compared(method, seed, f"{method}/seed_{seed}", "1_a", last=last, ended=ended, **results, **fields)


@pytest.fixture
def there():
    config = json.loads(configs.default().to_json()) | {"student": "a", "dataset": "toy", "num_epochs": 3}
    lasts = {"kd": (0.52, 0.54), "dml": (0.5, 0.5), "independent": (0.5, 0.53)}
    runs = tuple(entry(method, seed, lasts[method][seed]) for seed in (0, 1) for method in METHODS)
    versions, machine = {"orc_jax": "1", "jax": "2", "python": "3"}, {"processor": "p", "cores": "2"}
    machine |= {"memory": "8 GiB", "system": "Linux"}
    return Comparison(config, runs, {"kd": 4.25}, "orc-jax-compare --x", versions, ("cpu",), machine)


def lost(there, i, error):
    """With run `i` failed, or still to come."""
    run = there.runs[i]
    return there.replaced(i, entry(run.method, run.seed, error=error))


def test_the_table(there):
    """Means, sample deviations, and differences of equal seeds."""
    rows = comparison_page.method_rows(there)
    assert rows[0] == ["kd", "53.00 ± 1.41", "+1.50 ± 0.71", "54.00 ± 1.41", "90.00 ± 0.00", "4.2", "10"]
    assert rows[1][2] == "-1.50 ± 2.12" and rows[1][5] == "-" and rows[2][2] == ""
    rows = comparison_page.method_rows(lost(lost(there, 3, "it has diverged"), 5, ""))
    assert rows[0][:3] == ["kd (1 of 2 failed)", "52.00", "+2.00"] and rows[2][0] == "independent (1 of 2 to come)"
    both = lost(lost(there, 0, "x"), 3, "")
    assert comparison_page.method_rows(both)[0] == ["kd (1 of 2 failed, 1 of 2 to come)", *["-"] * 6]


def test_splits_that_have_no_part_in_the_choice(there):
    """They have a column, and the choice of the best epoch is no longer an optimistic one."""
    assert comparison_page.chosen(there).endswith("optimistic.")
    runs = tuple(run._replace(others={"test": run.last - 0.1}) for run in there.runs)
    there = there._replace(runs=runs, config=there.config | {"eval_splits": "validation,test"})
    assert comparison_page.columns(there)[3:6] == ["best epoch", "test at best", "ensemble"]
    assert comparison_page.method_rows(there)[0][3:6] == ["54.00 ± 1.41", "43.00 ± 1.41", "90.00 ± 0.00"]
    assert " ".join(comparison_page.chosen(there).split()) == "chosen on validation; test had no part in it."
    assert "on the split 'validation' of toy" in comparison_page.words(there)[0]
    assert len({len(row) for row in comparison_page.method_rows(lost(lost(there, 0, "x"), 3, ""))}) == 1


def test_in_words(there):
    words = lambda there: " ".join(comparison_page.words(there))  # noqa: E731
    assert words(there) == (
        "The target student a comes farthest with kd: 53.00 ± 1.41 % top-1 after the last epoch on the split 'test' of "
        "toy, over 2 seeds. That is +1.50 ± 0.71 percentage points over the same student trained alone, with the same "
        "data and budget; it is better with 2 of 2 seeds."
    )
    assert words(lost(lost(there, 3, "it has diverged"), 4, "")).endswith(
        "better with 1 of 1 seed. 1 of 6 runs failed: kd, seed 1 (it has diverged). 1 of 6 runs are still to come."
    )
    alone = there._replace(runs=tuple(run for run in there.runs if run.method != "kd"))
    assert "with independent: 51.50" in words(alone) and "no method makes it better here" in words(alone)
    taught = there._replace(runs=tuple(run for run in there.runs if run.method != "independent"))
    assert "How it would do alone is unknown" in words(taught)
    nothing = there._replace(runs=tuple(entry(run.method, run.seed) for run in there.runs))
    assert words(nothing) == "No run is finished yet. 6 of 6 runs are still to come."


def test_the_figure(there):
    axes = comparison_page.figure(lost(there, 5, "x")).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["kd", "dml", "independent (1 of 2 failed)"]
    dots = [line for line in axes.lines if line.get_marker() == "."]
    np.testing.assert_allclose(dots[0].get_xydata(), [[52, 0], [54, 0]])
    np.testing.assert_allclose(dots[2].get_xydata(), [[50, 2]])
    nothing = there._replace(runs=tuple(entry(run.method, run.seed) for run in there.runs[:2]))
    axes = comparison_page.figure(nothing).axes[0]
    assert not axes.lines and [text.get_text() for text in axes.texts] == ["no run is finished"] * 2


def test_the_page(there, tmp_path):
    """Curves are means of the seeds over the epochs that all have; every run has its row."""
    there = lost(there, 4, "it has <diverged>")
    for run in there.runs:
        (tmp_path / run.folder).mkdir(parents=True)
        top1 = ["eval/top1/1_a", "eval/top1/ensemble"]
        rows = [{"step": e, "epoch": e} | dict(zip(top1, (0.25 * (e + run.seed), 1), strict=True)) for e in (1, 2, 3)]
        kept = rows[: 2 if run.error else 3]
        (tmp_path / run.folder / metrics.METRICS).write_text("".join(json.dumps(row) + "\n" for row in kept))
    comparison.write(tmp_path, there)
    drawn = comparison_page.part(tmp_path, there).sections[0].drawn[1].figure.axes[0].lines
    curves = {line.get_label(): line.get_xydata().tolist() for line in drawn}
    assert curves["kd"] == [[1, 37.5], [2, 62.5], [3, 87.5]] and curves["dml"] == [[1, 37.5], [2, 62.5]]
    path = write_report([tmp_path], None, "latest", 1, pytest.fail)
    shown = read(path)
    assert path == tmp_path / "report" / "report.html" and (path.parent / "methods.png").exists()
    assert [title for title in shown.titles if title[0] != "C"] == ["Methods", "Runs"]
    assert shown.titles[0] == f"Comparison {tmp_path.name}" and "num_epochs" in shown.cells
    start = shown.cells.index("dml, seed 1")
    assert shown.cells[start : start + 6] == ["dml, seed 1", "dml/seed_1", "failed: it has <diverged>", "-", "-", "-"]
    for text in (
        "2026-11-21 02:05 UTC",
        "5 min, all runs together",
        "0, 1",
        "orc-jax-compare --x",
        "1 x cpu; p, 2",
    ):
        assert text in shown.text
    (tmp_path / "kd" / "seed_0" / record.FILE).write_text("{}")
    with pytest.raises(UserError, match="holds a comparison, which has a page of its own: give it alone"):
        write_report([tmp_path, tmp_path / "kd" / "seed_0"], None, "latest", 1, pytest.fail)


def test_a_comparison_of_an_earlier_version(tmp_path):
    (tmp_path / "compare.csv").write_text("method")
    with pytest.raises(UserError, match=r"holds a comparison of an earlier version, without compare\.json: its"):
        write_report([tmp_path], None, "latest", 1, pytest.fail)
