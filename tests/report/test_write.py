"""The page of runs in every state, and of several."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orc_jax.errors import UserError
from orc_jax.report import __main__ as command
from orc_jax.report import collect
from orc_jax.report.write import write_report
from orc_jax.workdir import checkpoint, metrics
from tests.helpers import train
from tests.report.reading import TITLES, read

pytestmark = pytest.mark.usefixtures("toy_set")


def cells_of_logs(workdir):
    """What the table must show of every member and the ensemble, at the last and at the best epoch."""
    rows = metrics.read(workdir)
    names = [name.removeprefix("eval/top1/") for name in rows[0] if name.startswith("eval/top1/")]
    target = f"eval/top1/{names[-2]}"  # the ensemble is the last
    best = max(rows, key=lambda row: (row[target], row["step"]))
    for name in names:
        for row in (rows[-1], best):
            yield from (f"{row[f'eval/{metric}/{name}']:.2%}" for metric in ("top1", "top5"))
            yield f"{row[f'eval/loss/{name}']:.4f}"


def contents(workdir):
    """All files of a run but the report."""
    files = (path for path in workdir.rglob("*") if path.is_file() and workdir / "report" not in path.parents)
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_the_page_of_a_finished_run(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    before = contents(workdir)
    path = write_report([workdir], None, "latest", 10_000, pytest.fail)
    assert path == workdir / "report" / "report.html"
    assert contents(workdir) == before
    shown = read(path)
    assert [title for title in shown.titles if title in TITLES] == TITLES and "Left out" not in shown.titles
    cells = list(cells_of_logs(workdir))
    start = shown.cells.index(cells[0])
    table = shown.cells[start : shown.cells.index("of all iterations")]
    assert [cell for cell in table if "%" in cell or re.fullmatch(r"\d+\.\d{4}", cell)] == cells
    assert {"0_tiny_a", "pivot teacher", "target student", "ensemble", "all members"} <= set(shown.cells)
    params = collect.read(workdir, "run").parameters
    assert f"{params[-1]:,}" in shown.cells and params[0] == params[2] > params[1]
    assert "num_epochs" in shown.cells and "learning_rate" in shown.cells  # differs; all fields
    pictures = {file.stem for file in path.parent.glob("*.png")}
    expected = "eval-top1 train-loss train-accuracy learning-rate roles classes pivot agreement correlations"
    assert pictures >= {*expected.split(), "calibration", "features-0", "features-3", "speed"}
    assert any(name.startswith("feedback-") for name in pictures)
    for file in path.parent.glob("*.png"):
        with Image.open(file) as image:
            assert image.width > 500 and len(image.convert("L").getcolors()) > 10


def test_the_page_during_training(finished, tmp_path, not_drawn):
    """Before anything is logged; after an epoch, before its checkpoint, with a row that is half written."""
    workdir = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(workdir / checkpoint.CHECKPOINTS)
    (workdir / metrics.METRICS).write_text("")
    (workdir / metrics.TIMING).unlink()
    shown = read(write_report([workdir], tmp_path / "out", "latest", 100, pytest.fail))
    assert "There is no checkpoint yet." in shown.text and "pivot/ has come to epoch 1" in shown.text
    assert [title for title in shown.titles if title in TITLES] == ["Results", "Config"]
    assert not (workdir / "report").exists()
    # A first row, and the beginning of a second.
    row = {"step": 5, "epoch": 1, "learning_rate": 0.05}
    for name in ("0_tiny_a", "1_tiny_b", "2_tiny_a", "3_tiny_b", "ensemble"):
        row |= {f"eval/top1/{name}": 0.5, f"eval/top5/{name}": 1.0, f"eval/loss/{name}": float("nan")}
        row |= {f"train/{metric}/{name}": 0.25 for metric in ("loss", "accuracy", "promoted")}
    (workdir / metrics.METRICS).write_text(json.dumps(row) + '\n{"step": 11, "ep')
    shown = read(write_report([workdir], tmp_path / "out", "latest", 100, pytest.fail))
    assert [title for title in shown.titles if title in TITLES] == [*TITLES[:3], "Config"]
    assert shown.cells.count("50.00%") == 10 and "1 / 2" in shown.text


def test_the_comparison_of_two_runs(finished, tmp_path, not_drawn):
    """With one of a pool of one, and of another method: what that has not is told and left out."""
    workdirs = [finished, finished / "pivot"]
    path = write_report(workdirs, tmp_path / "out", "best", 100, pytest.fail)
    shown = read(path)
    assert shown.titles[1:3] == ["Comparison", "Target students"]
    start = shown.cells.index("run")
    rows = np.array(shown.cells[start : start + 39]).reshape(3, 13)
    assert rows[:, 0].tolist() == ["run", "run", "pivot"] and rows[1:, 2].tolist() == ["3_tiny_b", "0_tiny_a"]
    for row, workdir in zip(rows[1:], workdirs, strict=True):
        last = metrics.read(workdir)[-1]
        assert row[4:8].tolist() == [
            str(last["epoch"]),
            f"{last[f'eval/top1/{row[2]}']:.2%}",
            f"{last[f'eval/top5/{row[2]}']:.2%}",
            f"{last[f'eval/loss/{row[2]}']:.4f}",
        ]
    assert "It takes two members to agree." in shown.text and "In independent no member changes its role." in shown.text
    assert {"runs-top1.png", "run1-pivot.png", "run2-classes.png"} <= {file.name for file in path.parent.iterdir()}


def test_a_streamed_run(config, console, tmp_path, not_drawn):
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 5)):
        for channel, name in enumerate(("red", "green <&>")):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 100, (9, 12, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{i}.png")
    config.dataset, config.data_dir, config.eval_split = "folder", str(tmp_path / "photos"), "val"
    config.num_epochs, config.pretrain_epochs, config.batch_size = 1, 0, 8
    config.stream.update(image_size=8, num_workers=0)
    config.num_networks, config.assistants = 3, "tiny_b"
    train(config, tmp_path / "run", console)
    # The images are elsewhere now: the logs tell what they can, and --data_dir finds them.
    (tmp_path / "photos").rename(tmp_path / "moved")
    warnings = []
    shown = read(write_report([tmp_path / "run"], None, "latest", 100, warnings.append))
    assert "Features" not in shown.titles and "Results" in shown.titles
    assert len(warnings) == 1 and "config.data_dir" in warnings[0]
    moved = str(tmp_path / "moved")
    shown = read(write_report([tmp_path / "run"], None, "latest", 100, pytest.fail, data_dir=moved))
    assert {"Features", "Feedback samples"} <= set(shown.titles) and "10 evaluation samples" in shown.text
    assert "Pivot teacher on hard samples" not in shown.titles and "is not to be had" in shown.text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"workdirs": ["nowhere"]}, "holds no run: there is no config.json"),
        ({"which": "7"}, r"--checkpoint='7'.*Accepted: latest, best, or one of \[5, 11\]"),
        ({"max_examples": 0}, "--max_examples=0: must be at least 1"),
        ({"out": "file"}, "--out=.*file: cannot be written"),
    ],
)
def test_bad_input_is_answered_with_one_message(change, text, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    arguments = {"workdirs": [finished], "out": "out", "which": "latest", "max_examples": 10} | change
    arguments["workdirs"], arguments["out"] = [Path(w) for w in arguments["workdirs"]], Path(arguments["out"])
    with pytest.raises(UserError, match=f"(?s){text}"):
        write_report(**arguments, warn=pytest.fail)


def test_the_command(finished, tmp_path, monkeypatch, capsys, not_drawn):
    def called(*arguments):
        monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
        command.main()
        return capsys.readouterr()

    with pytest.raises(SystemExit) as caught:
        called("--workdir", tmp_path / "nowhere")
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("orc_jax: --workdir=") and captured.err.count("\n") == 1 and not captured.out
    assert not (tmp_path / "nowhere").exists()
    out = called("--workdir", finished, "--out", tmp_path / "out", "--checkpoint", "best", "--max_examples", 12).out
    words, written = out.splitlines()[-2:]  # a slow machine says what takes long before
    assert words.startswith("The target student is 3_tiny_b, the last of 4 members that orc trains on toy.")
    assert written == f"written to {tmp_path / 'out' / 'report.html'}"
    assert "12 evaluation samples" in read(tmp_path / "out" / "report.html").text
