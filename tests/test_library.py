"""The package as a library: the notebook runs, and nothing has to be called before `config.resolve`."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

import orc_jax
from orc_jax import config as configs
from orc_jax import library
from orc_jax.config import resolve
from orc_jax.errors import UserError
from orc_jax.run import build, parameter_counts
from orc_jax.training import train
from orc_jax.workdir import metrics, record
from tests import own_modules

ROOT = Path(__file__).parent.parent


def top1(result, name):
    return result.metrics[name]["top1"]


def test_the_notebook(monkeypatch):
    """Its cells, one after the other; the pool learns, as the outputs that are kept in it show."""
    cells = json.loads((ROOT / "docs" / "library.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) == 8 and all(len(source.splitlines()) < 18 for source in code)
    names = {}
    for source in code:
        exec(source, names)
    result, network = names["result"], names["network"]
    # Which epoch is the best is a matter of rounding, which other options of the compiler change.
    assert result.metrics["ensemble"]["top1"] > 0.9 and result.step == 269 and result.best_step in range(44, 270)
    assert network.name == max(("0_plane2", "1_plane2", "2_plane2", "3_plane2"), key=lambda name: top1(result, name))
    logits = network(names["x_test"])
    accuracy = (logits.argmax(1) == names["y_test"]).mean()
    np.testing.assert_allclose(accuracy, result.metrics[network.name]["top1"], rtol=1e-5)
    np.testing.assert_allclose(names["logits_again"], logits, rtol=1e-3, atol=1e-3)
    assert names["features"].shape == (360, 64)
    assert names["state"].step == 20


@pytest.fixture
def trained_on_arrays(toy, tmp_path, config):
    """The result of two tiny networks, on arrays whose classes have no names, in a folder of ours."""
    config.update(method="independent", num_networks=2, assistants="")
    return orc_jax.train(config, toy.train, toy.test, workdir=tmp_path / "run", console=Console(quiet=True))


def test_train_returns_what_the_run_has_come_to(trained_on_arrays, config, toy, capsys):
    """The same call again goes on, so has nothing to do; the same run is called the same wherever it lies."""
    rows = metrics.read(trained_on_arrays.workdir)
    assert trained_on_arrays.step == 11 and trained_on_arrays.metrics.keys() == {"0_tiny_a", "1_tiny_b", "ensemble"}
    for step, result in (
        (11, trained_on_arrays.metrics),
        (trained_on_arrays.best_step, trained_on_arrays.best_metrics),
    ):
        (row,) = [row for row in rows if row["step"] == step]
        assert result["1_tiny_b"] == {metric: row[f"eval/{metric}/1_tiny_b"] for metric in ("top1", "top5", "loss")}
    assert trained_on_arrays.best_metrics["1_tiny_b"]["top1"] == max(row["eval/top1/1_tiny_b"] for row in rows)
    again = orc_jax.train(config, toy.train, toy.test, workdir=str(trained_on_arrays.workdir))
    assert again == trained_on_arrays and "restored step 11 of 11" in capsys.readouterr().out
    assert record.require(trained_on_arrays.workdir).config["dataset"] == "arrays"
    config.batch_size = 92
    with pytest.raises(UserError, match=r"config\.batch_size=92: must be at most the 90 training examples of arrays"):
        orc_jax.train(resolve(config, 1), toy.train, toy.test)
    for arguments in ((toy.train,), (toy.train, None, ["a", "b", "c"]), (None, toy.test), (None, None, ["a"])):
        with pytest.raises(UserError, match="train_set, test_set: must be given both"):
            orc_jax.train(config, *arguments)
    for names in (["a", "b"], np.array(["a", "b"])):
        with pytest.raises(UserError, match=r"arrays \(train\) has labels 0 to 2, but only 2 classes"):
            orc_jax.train(config, toy.train, toy.test, names)


def test_a_field_that_there_is_not_is_refused(toy, tmp_path, config):
    """As in a file: it would be ignored."""
    config.learning_rat = 0.7
    with pytest.raises(
        UserError, match=r"^orc_jax\.train: config field='learning_rat' is not known. Did you mean learn"
    ):
        orc_jax.train(config, toy.train, toy.test, workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_load_gives_any_member_at_any_checkpoint(trained_on_arrays, toy, tmp_path, monkeypatch):
    """In parts that are not full, and of none at all; "best" is by the evaluation of that checkpoint."""
    monkeypatch.setattr(library, "BATCH", 16)
    workdir = trained_on_arrays.workdir
    networks = [orc_jax.load(workdir, name) for name in trained_on_arrays.metrics if name != "ensemble"]
    assert [network.name for network in networks] == ["0_tiny_a", "1_tiny_b"]
    for network in networks:
        top1 = (network(toy.test.images).argmax(1) == toy.test.labels).mean()
        np.testing.assert_allclose(top1, trained_on_arrays.metrics[network.name]["top1"], rtol=1e-6)
    target = orc_jax.load(str(workdir))
    assert (target.name, target.step, target.image_shape, target.class_names) == (
        "1_tiny_b",
        11,
        (8, 8, 1),
        tuple("012"),
    )
    assert target(toy.test.images[:0]).shape == (0, 3)
    np.testing.assert_array_equal(target(toy.test.images)[:5], target(toy.test.images[:16])[:5])
    images = ((toy.test.images / 255 - target.member.mean) / target.member.std).astype(np.float32)
    np.testing.assert_allclose(target.module(images)[0], target(toy.test.images), rtol=1e-4, atol=1e-4)
    assert repr(target) == "<1_tiny_b of step 11: uint8 [n, 8, 8, 1] -> logits [n, 3]>"
    for images in (toy.test.images[0], toy.test.images[:, :7], toy.test.images / 255):
        with pytest.raises(UserError, match=r"images of .*: must be uint8 \[n, 8, 8, 1\]"):
            target(images)
    rows = metrics.read(workdir)
    for step, row in ((5, rows[0]), (11, rows[1])):
        row["eval/top1/0_tiny_a"], row["eval/top1/1_tiny_b"] = (0.9, 0.8) if step == 5 else (0.8, 0.9)
    (workdir / metrics.METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert orc_jax.load(workdir, "best", "5").name == "0_tiny_a"
    assert orc_jax.load(workdir, "best").name == "1_tiny_b"


def test_the_package_is_imported_without_what_it_needs():
    code = "import sys, orc_jax; assert {'train', 'load'} <= set(dir(orc_jax)); assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="module 'orc_jax' has no attribute 'trian'"):
        orc_jax.trian  # noqa: B018


def test_resolve_is_all_that_a_network_of_ones_own_needs(tmp_path, monkeypatch, toy, console):
    """No call before it: what it returns has the network, for a run, for training and for its cost."""
    fields = configs.default()
    fields.update(teacher="mine:Big", student="mine:Net", assistants="copies", num_networks=3, pretrain_epochs=0)
    fields.update(batch_size=16, eval_batch_size=16, num_epochs=1, crop_padding=0, flip=False)
    fields.lr_multipliers = "mine:Big=0.5"
    with own_modules.lying_in(tmp_path, monkeypatch, mine=own_modules.NETWORKS):
        resolved = configs.resolve(fields)
        own_modules.forget("mine")
    assert resolved.models.keys() == {"mine:Big", "mine:Net"} and resolved.lr_multipliers == {"mine:Big": 0.5}
    run = build(resolved, toy, jax.local_devices()[:1])
    # conv 1*9*7, bn 2*7, linear 7*3+3
    assert parameter_counts(run)["mine:Big"] == 63 + 14 + 24
    train(resolved, tmp_path / "run", console, dataset=toy)
    last = metrics.read(tmp_path / "run")[-1]
    assert {"eval/top1/0_mine:Big", "eval/top1/1_mine:Net", "eval/top1/2_mine:Net"} <= last.keys()
    assert np.isfinite(last["train/loss/0_mine:Big"])
