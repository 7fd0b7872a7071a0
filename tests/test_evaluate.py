"""Evaluation from a checkpoint: the figures of the log again, or one message that says what is wrong."""

import json
import shutil

import numpy as np
import pytest

from orc_jax.data import sets
from orc_jax.errors import UserError
from orc_jax.workdir import metrics
from tests.helpers import evaluate, printed, train

pytestmark = pytest.mark.usefixtures("toy_set")


def test_evaluation_restores_what_training_saved(finished, config, console, tmp_path, monkeypatch, toy):
    workdir = shutil.copytree(finished, tmp_path / "run")
    evaluate(config, workdir, "latest", console)
    result = json.loads((workdir / "evaluation_11.json").read_text())
    last = metrics.read(workdir)[-1]
    for row in [*result["members"], {"name": "ensemble"} | result["ensemble"]]:
        for metric in ("top1", "top5", "loss"):
            np.testing.assert_allclose(row[metric], last[f"eval/{metric}/{row['name']}"], rtol=1e-5)
    assert result["target_student"]["name"] == "3_tiny_b" and result["examples"] == 30
    evaluate(config, workdir, "5", console)
    evaluate(config, workdir, "best", console)
    assert "target student" in printed(console)
    # Normalised as in training, whatever the constants of the set at hand.
    other = toy._replace(mean=(0.9,), std=(0.1,))
    monkeypatch.setattr(sets, "load", lambda *_, **__: other)
    evaluate(config, workdir, "latest", console)
    assert json.loads((workdir / "evaluation_11.json").read_text()) == result
    # Of another split there is another file.
    config.eval_split = "test[:20]"
    evaluate(config, workdir, "latest", console)
    assert json.loads((workdir / "evaluation_11.json").read_text()) == result
    assert json.loads((workdir / "evaluation_11_test.-20.json").read_text())["split"] == "test[:20]"
    with pytest.raises(UserError, match=r"--checkpoint='7'.*Accepted: latest, best, or one of \[5, 11\]"):
        evaluate(config, workdir, "7", console)


def test_an_evaluation_of_other_files_leaves_that_of_the_runs_own(
    finished, config, console, tmp_path, monkeypatch, toy
):
    workdir = shutil.copytree(finished, tmp_path / "run")
    kept = json.loads((workdir / "config.json").read_text())
    kept["config"] |= {"dataset": "npz", "data_dir": "some/photos.npz"}
    (workdir / "config.json").write_text(json.dumps(kept))
    config.dataset = "npz"
    monkeypatch.setattr(sets, "load", lambda *_, **__: toy)
    for place in ("some/photos.npz", "some/new photos.npz"):
        config.data_dir = place
        evaluate(config, workdir, "latest", console)
    written = sorted(path.name for path in workdir.glob("evaluation_*.json"))
    assert written == ["evaluation_11.json", "evaluation_11_new.photos.npz_test.json"]


def test_missing_and_damaged_checkpoints(finished, config, console, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        evaluate(config, tmp_path / "nowhere", "latest", console)
    assert not (tmp_path / "nowhere").exists()
    workdir = shutil.copytree(finished, tmp_path / "run")
    for path in (workdir / "checkpoints" / "11" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(UserError, match=r"checkpoint of step 11 in .* cannot be restored.*Other steps there: \[5\]"):
        evaluate(config, workdir, "latest", console)
    (workdir / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not the description of a run"):
        evaluate(config, workdir, "latest", console)


def test_the_best_checkpoint_is_that_of_the_best_epoch(config, console, tmp_path):
    """Of a run that gets worse at the end: trained on few images, at a rate that is raised after the fourth epoch."""
    config.method, config.num_networks, config.assistants = "independent", 2, ""
    config.num_epochs, config.learning_rate, config.lr_boundaries, config.lr_decay = 8, 0.1, (0.5,), 300.0
    train(config, tmp_path / "run", console)
    rows = metrics.read(tmp_path / "run")
    top1 = [row["eval/top1/1_tiny_b"] for row in rows]
    assert top1[-1] < max(top1), "the test needs a run that gets worse"
    evaluate(config, tmp_path / "run", "best", console)
    (path,) = (tmp_path / "run").glob("evaluation_*.json")
    result = json.loads(path.read_text())
    assert result["target_student"]["top1"] == max(top1)
    assert f"best epoch {metrics.best(rows, '1_tiny_b')['epoch']} " in printed(console)
