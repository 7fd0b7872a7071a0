"""The rows of a log: columns, evaluations, the best, and their file."""

import pytest

from orc_jax.workdir import metrics


def row(epoch, **top1):
    """An epoch's row; with `top1` of some members, its evaluation."""
    evaluated = {metrics.evaluation("top1", name): value for name, value in top1.items()}
    evaluated |= {metrics.evaluation("top1", metrics.ENSEMBLE): 0.5} if top1 else {}
    return {"step": 10 * epoch, "epoch": epoch, metrics.train("loss", "s"): 1 / epoch} | evaluated


def test_the_names_that_logs_have():
    """Logs lie on disks: what was written last year is read today."""
    assert metrics.train("promoted", "1_resnet8") == "train/promoted/1_resnet8"
    assert metrics.evaluation("top5", metrics.MEAN) == "eval/top5/mean"
    assert metrics.evaluation("loss", metrics.ENSEMBLE) == "eval/loss/ensemble"
    assert metrics.diverged("1_resnet8") == "diverged_at/1_resnet8"
    assert (metrics.SPEED, metrics.RATE) == ("images_per_second", "learning_rate")
    assert (metrics.METRICS, metrics.TIMING) == ("metrics.jsonl", "timing.jsonl")


def test_a_run_that_gets_no_better():
    """Epochs since the best, the first of equals; epochs that are not evaluated count, and end nothing."""
    rows = [row(1, s=0.5), row(2, s=0.7), row(3), row(4, s=0.7), row(5, s=0.6)]
    assert [metrics.stalled(rows[:n], "s", 2) for n in range(6)] == [False, False, False, False, True, True]
    assert not metrics.stalled(rows, "s", 4) and metrics.stalled(rows, "s", 3)
    assert not metrics.stalled(rows, "s", 0) and not metrics.stalled([row(1)], "s", 1)
    better = {"target_student": {"top1": 0.7}}
    assert metrics.is_best(rows, better, "s") and not metrics.is_best(rows, {"target_student": {"top1": 0.69}}, "s")
    assert metrics.is_best([row(1)], better, "s")


def test_the_columns_of_an_evaluation():
    result = {
        "examples": 30,
        "members": [
            {"name": "0_a", "role": "teacher", "top1": 0.1, "top5": 0.2, "loss": 0.3},
            {"name": "1_b", "role": "target student", "top1": 0.4, "top5": 0.5, "loss": 0.6},
        ],
        "ensemble": {"top1": 0.7, "top5": 0.8, "loss": 0.9},
    }
    columns = metrics.of_evaluation(result | {"target_student": result["members"][1]})
    expected = {"0_a": (0.1, 0.2, 0.3), "1_b": (0.4, 0.5, 0.6), "ensemble": (0.7, 0.8, 0.9)}
    assert columns == {
        f"eval/{metric}/{name}": values[i]
        for name, values in expected.items()
        for i, metric in enumerate(("top1", "top5", "loss"))
    }
    mean = {"top1": 0.25, "top5": 0.35, "loss": 0.45}
    added = metrics.of_evaluation(result | {"mean": mean}).items() - columns.items()
    assert dict(added) == {f"eval/{metric}/mean": value for metric, value in mean.items()}


def test_the_best_is_the_last_of_equals_by_the_target():
    """As the best checkpoint is; but a run that is as good as before has not become better."""
    rows = [row(1), row(2, t=0.9, s=0.4), row(3, t=0.1, s=0.6), row(4), row(5, t=0.2, s=0.6), row(6, t=0.3, s=0.5)]
    assert metrics.best(rows, "s")["epoch"] == 5
    assert metrics.best(rows, "t")["epoch"] == 2
    assert metrics.stalled(rows[:5], "s", 2) and not metrics.stalled(rows[:5], "s", 3)
    assert not metrics.stalled(rows[:5], "s", 0) and not metrics.stalled(rows[:1], "s", 1)
    assert metrics.best(rows, metrics.ENSEMBLE)["epoch"] == 6
    with pytest.raises(ValueError):
        metrics.best(rows[:1], "s")


def test_evaluations_and_courses():
    rows = [row(1), row(2, s=0.4), row(3), row(4, s=0.6)]
    assert [one["epoch"] for one in metrics.evaluated(rows)] == [2, 4]
    assert metrics.evaluated([rows[0]]) == []
    assert metrics.course(rows, metrics.evaluation("top1", "s")) == ([2, 4], [0.4, 0.6])
    assert metrics.course(rows, metrics.train("loss", "s")) == ([1, 2, 3, 4], [1, 1 / 2, 1 / 3, 1 / 4])
    assert metrics.course(rows, "nothing") == ([], [])


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    assert metrics.read(tmp_path) == []
    lines = '{"step": 5, "a": 0.5}\n{"step": 11, "a": NaN}\n'
    (tmp_path / "metrics.jsonl").write_text(lines + '{"step": 16, "a": 0.')
    (tmp_path / "timing.jsonl").write_text('{"step": 7}\n')
    rows = metrics.read(tmp_path)
    assert [one["step"] for one in rows] == [5, 11] and rows[1]["a"] != rows[1]["a"]
    assert metrics.read(tmp_path, metrics.TIMING) == [{"step": 7}]


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"\0\0\0", b"", b"[1]", b"3", b'{"epoch": 1}', b'{"step": 8, "a'])
def test_rows_around_a_damaged_line_are_kept(damage, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 5}\n' + damage + b'\n{"step": 11}\n')
    assert metrics.read(tmp_path) == [{"step": 5}, {"step": 11}]
