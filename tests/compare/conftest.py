"""A short run, for comparisons of it; and comparisons that train and draw nothing."""

import json

import jax
import pytest

from orc_jax.compare import comparison
from orc_jax.report import figures
from orc_jax.workdir import logs, metrics, record


@pytest.fixture
def short(config):
    config.num_networks, config.assistants, config.num_epochs = 3, "tiny_b", 1
    return config


@pytest.fixture
def not_drawn(monkeypatch):
    """Figures are made, but not turned into files."""
    monkeypatch.setattr(figures, "as_png", lambda figure: b"")
    monkeypatch.setattr(figures, "as_svg", lambda figure, name, description: f'<svg id="{name}"></svg>')


@pytest.fixture
def stub(monkeypatch):
    """Instead of training: what `failing` says by the folder's method; all others leave what is read of a run."""
    failing, trained = {}, []

    def train(resolved, folder, console, dataset, on_epoch):
        name = folder.parent.name
        trained.append(f"{name}/{folder.name}")
        if name in failing:
            raise failing[name]
        target = f"{len(resolved.architectures) - 1}_{resolved.architectures[-1]}"
        top1 = {"kd": 0.5, "dml": 0.75}.get(name, 0.25) + resolved.config.seed / 100
        row = {"step": 5, "epoch": resolved.config.num_epochs, f"eval/top1/{target}": top1, "eval/top1/ensemble": 0.9}
        log = comparison_log(folder, resolved)
        log.write(row, {metrics.SPEED: 45.0})

    def train_together(jobs, console, dataset, on_epoch):
        trained.append([f"{folder.parent.name}/{folder.name}" for _, folder in jobs])
        if len(jobs) > failing.get("most", len(jobs)):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        for resolved, folder in jobs:
            train(resolved, folder, console, dataset, on_epoch)
            trained.pop()
        return {}

    monkeypatch.setattr(comparison, "train", train)
    monkeypatch.setattr(comparison, "train_together", train_together)
    monkeypatch.setattr(comparison, "cost", lambda planned, dataset: 7.0)
    return failing, trained


def comparison_log(folder, resolved):
    config = resolved.config
    record.write(
        folder,
        record.Record(json.loads(config.to_json()), resolved.architectures, 3, ("a",), 90, (8, 8, 1), (), (), None, {}),
    )
    return logs.MetricsLog(folder, 0, config)
