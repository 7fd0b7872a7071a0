"""A run that a released version has made goes on, and is evaluated, exported and reported.

`tests/fixtures/run_0.1.0.tar.gz` is the workdir of one, made with the code of that version and asked to stop by SIGTERM
after step 13, so within the second of its two epochs:

python -m orc_jax.main --config=configs/digits.py --workdir=run --config.teacher=plane2 --config.student=plane2
    --config.assistants=plane2 --config.num_networks=3 --config.examples_per_class=32 --config.batch_size=32
    --config.num_epochs=2 --config.pretrain_epochs=1 --config.warmup_epochs=0 --config.log_to= --config.seed=3
"""

import json
import tarfile
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from sklearn.datasets import load_digits

import orc_jax
from orc_jax import config_files
from orc_jax.deploy.export import export_member
from orc_jax.workdir import metrics, record
from tests.helpers import evaluate, printed, train

FIXTURES = sorted((Path(__file__).parents[1] / "fixtures").glob("run_*.tar.gz"))


def test_there_is_one_of_every_release():
    """The versions of the changelog, but for what is not released yet."""
    changelog = (Path(__file__).parents[2] / "CHANGELOG.md").read_text()
    released = [line.removeprefix("## ") for line in changelog.splitlines() if line.startswith("## ")]
    released = [version for version in released if version[0].isdigit()]
    assert released and [f"run_{version}.tar.gz" for version in sorted(released)] == [path.name for path in FIXTURES]


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.name)
def test_a_run_of_a_released_version(path, console, tmp_path):
    with tarfile.open(path) as file:
        file.extractall(tmp_path, filter="data")
    run = tmp_path / "run"
    assert f"run_{record.require(run).versions['orc_jax']}.tar.gz" == path.name
    config, (first,) = config_files.of_run(run), metrics.read(run)

    evaluate(config, run, "best", console)
    found = json.loads((run / f"evaluation_{first['step']}.json").read_text())
    for member in found["members"]:
        assert member["top1"] == pytest.approx(first[f"eval/top1/{member['name']}"], abs=1e-9)
        assert member["loss"] == pytest.approx(first[f"eval/loss/{member['name']}"], rel=1e-4)

    network = orc_jax.load(run, checkpoint="best")
    images = (load_digits().images[:64] * (255 / 16)).round().astype("uint8")[..., None]
    assert (network(images).argmax(1) == load_digits().target[:64]).mean() > 0.2

    written = export_member(run, "target", "latest", "safetensors", tmp_path / "student.safetensors")
    assert written["step"] == 13 and all(array.size for array in load_file(tmp_path / "student.safetensors").values())

    train(config, run, console)
    assert "orc: restored step 13 of 20" in printed(console)
    rows = metrics.read(run)
    assert rows[0] == first and [row["step"] for row in rows] == [10, 20]
    assert rows[1]["train/loss/2_plane2"] < first["train/loss/2_plane2"]
