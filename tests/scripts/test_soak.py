"""The short version of the soak test, and that it would see what it looks for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orc_jax.workdir import metrics
from scripts import soak
from tests.helpers import train

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_killed_again_and_again(tmp_path):
    command = [sys.executable, "-m", "scripts.soak", "--epochs", "2", "--kills", "1", "--seconds", "1"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kills, 0 damaged checkpoints; differing from the run left alone: nothing" in done.stdout


@pytest.mark.usefixtures("toy_set")
def test_runs_that_differ(config, console, tmp_path):
    """By their logs alone, and by what their last checkpoints hold."""
    config.method, config.num_networks, config.num_epochs = "independent", 1, 1
    train(config, tmp_path / "run", console)
    shutil.copytree(tmp_path / "run", tmp_path / "same")
    assert soak.compare(tmp_path / "run", tmp_path / "same") == []
    assert soak.steps_of(tmp_path / "run") == 5 and soak.steps_of(tmp_path) == 0
    with (tmp_path / "same" / metrics.METRICS).open("a") as file:
        file.write("\n")
    assert soak.compare(tmp_path / "run", tmp_path / "same") == [metrics.METRICS]
    config.learning_rate = 0.01
    train(config, tmp_path / "other", console)
    differing = soak.compare(tmp_path / "run", tmp_path / "other")
    assert metrics.METRICS in differing and any("conv1.kernel" in name for name in differing)
