"""The package as a library: the notebook runs, and nothing has to be called before `config.resolve`."""

import json
from pathlib import Path

import jax
import numpy as np

from orc_jax import config as configs
from orc_jax.run import build, parameter_counts
from orc_jax.training import train
from orc_jax.workdir import metrics
from tests import own_modules

ROOT = Path(__file__).parent.parent


def test_the_notebook(monkeypatch):
    """Its cells, one after the other; the pool learns, as the outputs that are kept in it show."""
    cells = json.loads((ROOT / "docs" / "library.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) == 6 and all(len(source.splitlines()) < 17 for source in code)
    names = {}
    for source in code:
        exec(source, names)
    assert names["last"]["eval/top1/ensemble"] > 0.9
    assert names["state"].step == 20


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
