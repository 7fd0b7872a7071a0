"""What a search has come to: rows for a terminal and for a spreadsheet, and a picture."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from orc_jax.report import figures
from orc_jax.terminal import Rows
from orc_jax.tune.space import Space

WORDS = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "ended early", TrialState.FAIL: "failed"}
SHOWN = 10  # trials of the table on a terminal


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that are done, in their order. One that was interrupted comes again, and counts then."""
    trials = study.get_trials(deepcopy=False, states=tuple(WORDS))
    return [trial for trial in trials if trial.state != TrialState.FAIL or "error" in trial.user_attrs]


def short(value: Any) -> str:
    """A value of a field, in four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def told(values: Mapping[str, Any]) -> str:
    """Fields and their values in a line."""
    return ", ".join(f"{name}={short(value)}" for name, value in values.items())


def top1(trial: FrozenTrial) -> float | None:
    """What a trial has come to at its best epoch, by the split that it is judged by; None before the first."""
    values = trial.intermediate_values.values()
    return trial.value if trial.state == TrialState.COMPLETE else max(values, default=None)


def so_far(study: optuna.Study, space: Space) -> Rows:
    """The best trials."""
    trials = counted(study)
    # a trial that ended early is after all that finished
    order = sorted(trials, key=lambda t: (t.state == TrialState.COMPLETE, top1(t) or 0.0), reverse=True)
    rows = [
        (
            trial.user_attrs["folder"],
            WORDS[trial.state],
            "" if (value := top1(trial)) is None else f"{100 * value:.2f}",
            *(short(trial.params[name]) for name in space.distributions),
        )
        for trial in order[:SHOWN]
    ]
    title = f"{len(trials)} trials, the best first; top-1 in percent at the best epoch"
    return Rows(title, ("trial", "", "top-1", *space.distributions), rows)


def write(out: Path, study: optuna.Study, space: Space) -> None:
    """`trials.csv`, a row for each trial, and `trials.png`."""
    with (out / "trials.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", "top1", "epochs", *space.distributions, "error"])
        for trial in counted(study):
            values = [trial.params[name] for name in space.distributions]
            state, error = WORDS[trial.state], trial.user_attrs.get("error", "")
            writer.writerow([trial.user_attrs["folder"], state, top1(trial), trial.last_step, *values, error])
    (out / "trials.png").write_bytes(figures.as_png(picture(study, space)))


@figures.styled
def picture(study: optuna.Study, space: Space) -> Figure:
    """Top-1 by the order of the trials, and by the value of each field; hollow are trials that ended early."""
    panels = 1 + len(space.distributions)
    figure = Figure(figsize=(2 * figures.WIDTH, 2.6 * ((panels + 1) // 2)), layout="constrained")
    axes = figure.subplots((panels + 1) // 2, 2, squeeze=False).flat
    trials = [trial for trial in counted(study) if top1(trial) is not None]
    ordered: dict[str, Sequence[Any]] = {"trial": [trial.user_attrs["folder"] for trial in trials]}
    for name, distribution in space.distributions.items():
        chosen = [trial.params[name] for trial in trials]
        ordered[name] = list(map(str, chosen)) if isinstance(distribution, CategoricalDistribution) else chosen
    for i, (name, values) in enumerate(ordered.items()):
        for state, fill in ((TrialState.COMPLETE, figures.color(0)), (TrialState.PRUNED, "none")):
            points = [
                (x, 100 * (top1(trial) or 0.0)) for x, trial in zip(values, trials, strict=True) if trial.state == state
            ]
            if points:
                axes[i].scatter(*zip(*points, strict=True), s=22, facecolors=fill, edgecolors=figures.color(0))
        axes[i].set(xlabel=name, ylabel="top-1 in percent")
        if getattr(space.distributions.get(name), "log", False):
            axes[i].set_xscale("log")
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    for spare in axes[panels:]:
        spare.set_axis_off()
    return figure
