"""The sections of a report that need nothing but the files of a run, and the comparison of several runs."""

import json
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from orc_jax import config as configs
from orc_jax.data.splits import eval_splits
from orc_jax.report import figures
from orc_jax.report.collect import Logged
from orc_jax.report.page import Drawn, Section, details, table
from orc_jax.report.story import devices
from orc_jax.workdir import metrics
from orc_jax.workdir.metrics import ENSEMBLE, EVALUATED, JOINT, RATE, SPEED

NONE = "-"


def percent(value: float | None, metric: str = "top1") -> str:
    """A logged value as the tables show it."""
    if value is None:
        return NONE
    return f"{value:.4f}" if metric == "loss" else f"{value:.2%}"


def results(logged: Logged) -> Section:
    """Every member and the ensemble at the last and at the best epoch."""
    names, config = logged.names, logged.resolved.config
    split, *others = eval_splits(config)
    columns = ["member", "role", "parameters"]
    firsts = list(zip(names, logged.resolved.method.roles, [f"{n:,}" for n in logged.parameters], strict=True))
    if not logged.evaluated:
        before = {stage.name: metrics.read(logged.workdir / stage.name) for stage in logged.resolved.method.stages}
        stages = [f"{name}/ has come to epoch {rows[-1]['epoch']}" for name, rows in before.items() if rows]
        text = "No epoch has been evaluated yet" + (f" ({', '.join(stages)})." if stages else ".")
        return Section("Results", text + " These are the members.", table(columns, firsts, bold=len(names) - 1))
    last, best = logged.evaluated[-1], metrics.best(logged.rows, logged.names[-1])
    firsts += [(name, "all members", "") for name in JOINT if metrics.evaluation("top1", name) in last]
    rows = [
        [
            *cells,
            *(percent(row.get(metrics.evaluation(m, cells[0])), m) for row in (last, best) for m in EVALUATED),
            *(percent(row.get(metrics.evaluation("top1", cells[0], of))) for of in others for row in (last, best)),
        ]
        for cells in firsts
    ]
    columns += [f"{metric}, {when}" for when in ("last", "best") for metric in ("top-1", "top-5", "loss")]
    columns += [f"{of} top-1, {when}" for of in others for when in ("last", "best")]
    chosen = f"on {split}" if others else "on the same images, so an optimistic number"
    text = (
        f"Accuracy and cross-entropy on {config.dataset} {split}, as logged during training: at the last evaluated "
        f"epoch, {last['epoch']}, and at epoch {best['epoch']}, the best of the target student {names[-1]} (chosen "
        f"{chosen}). The ensemble is "
    )
    own = logged.resolved.method.ensemble
    text += f"that of {config.method}." if own else "the members' mean probability."
    return Section("Results", text, table(columns, rows, bold=len(names) - 1))


def learning(logged: Logged) -> Section:
    """Loss, accuracy, evaluation and learning rate over epochs."""
    names = logged.names
    if not logged.rows:
        return Section("Learning curves", "No epoch has been logged yet.")

    def series(column: Callable[[str], str], keys: Sequence[str], scale: float) -> figures.Series:
        points = {key: metrics.course(logged.rows, column(key)) for key in keys}
        return {key: (epochs, [scale * y for y in values]) for key, (epochs, values) in points.items() if epochs}

    drawn = []
    for name, title, unit, column, keys, scale in (
        ("eval-top1", "Evaluation: top-1", "%", partial(metrics.evaluation, "top1"), [*names, ENSEMBLE], 100),
        ("train-loss", "Training: cross-entropy", "nats", partial(metrics.train, "loss"), names, 1),
        ("train-accuracy", "Training: accuracy", "%", partial(metrics.train, "accuracy"), names, 100),
        ("learning-rate", "Learning rate", "", str, [RATE], 1),
    ):
        lines = series(column, keys, scale)
        if lines:
            figure = figures.curves(title, unit, lines, bold=[names[-1]], plain=[ENSEMBLE, RATE])
            drawn.append(Drawn(name, figure, f"{title} of {', '.join(lines)} over {len(logged.rows)} epochs"))
    text = (
        "Every member over the epochs; the thick line is the target student. Training figures are means over the "
        "batches of an epoch, in training mode and on augmented images, before each update. A member that was trained "
        "before the run starts where it was."
    )
    return Section("Learning curves", text, drawn=tuple(drawn))


def roles(logged: Logged) -> Section:
    """How often each member was in the role that the method's share of iterations tells of."""
    share = next(iter(logged.resolved.method.shares), None)
    if share is None:
        return Section("Roles over time", f"In {logged.resolved.config.method} no member changes its role.")
    title = "Roles over time" if share.adds_up else f"{share.title} over time"
    courses = {name: metrics.course(logged.rows, metrics.train(share.metric, name)) for name in logged.names}
    epochs = courses[logged.names[-1]][0]
    if not epochs:
        return Section(title, "No epoch has been logged yet.")
    values = {name: [100 * y for y in course] for name, (_, course) in courses.items()}
    if not any(map(any, values.values())):
        return Section(title, f"No member was ever in this role (train/{share.metric} of the log).")
    if share.adds_up:
        values = dict(list(values.items())[1:])  # among the students: the pivot teacher is none
        figure = figures.stacked_shares(share.title, epochs, values)
    else:
        lines = {name: (epochs, course) for name, course in values.items()}
        figure = figures.curves(share.title, "share of iterations, %", lines)
    text = f"{share.text} From train/{share.metric} of the log."
    means = [(name, f"{np.mean(course):.1f} %") for name, course in values.items()]
    drawn = Drawn("roles", figure, f"{title}: " + ", ".join(f"{name} {mean}" for name, mean in means))
    return Section(title, text, table(["member", "of all iterations"], means, texts=1), (drawn,))


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def speed(logged: Logged) -> Section:
    """Images per second over epochs."""
    epochs = {row["step"]: row["epoch"] for row in logged.rows}
    points = [(epochs[row["step"]], row[SPEED]) for row in logged.timing if SPEED in row and row["step"] in epochs]
    if not points:
        return Section("Speed", "No epoch has been timed yet.")
    x, y = zip(*points, strict=True)
    seconds = sum(logged.record.num_train / value for value in y)
    time = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:,.0f} minutes"
    figure = figures.curves("Speed of training", "images per second", {"images per second": (x, y)}, from_zero=True)
    text = (
        f"Training images per second, without compilation and evaluation, from {metrics.TIMING}: {np.median(y):,.0f} "
        f"in the median epoch, on {devices(logged.record)}. The epochs shown took {time} of training, the stages "
        "before them not counted."
    )
    return Section("Speed", text, drawn=(Drawn("speed", figure, f"{np.median(y):,.0f} images per second"),))


def _differing(fields: dict[str, object]) -> list[tuple[str, str, str]]:
    """The fields that differ from the default: name, value and default."""
    defaults = configs.flat(json.loads(configs.default().to_json()))
    return [
        (name, _shown(value), _shown(defaults[name]) if name in defaults else NONE)
        for name, value in fields.items()
        if name not in defaults or value != defaults[name]
    ]


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def fields(config: dict[str, object]) -> str:
    """The tables of a config, as HTML: fields that differ from the default, and all that open on a click."""
    every = configs.flat(config)
    differing = _differing(every)
    html = table(["field", "value", "default"], differing, texts=3) if differing else ""
    everything = table(["field", "value"], [(name, _shown(value)) for name, value in every.items()])
    return html + details(f"All {len(every)} fields", everything)


def configuration(logged: Logged) -> Section:
    """The fields of the config, versions and devices."""
    record = logged.record
    count = len(_differing(configs.flat(record.config)))
    versions = table(["package", "version"], list(record.versions.items()))
    text = (
        f"The {counted(count, 'field')} of the config that differ from the default, and all of them, as "
        f"resolved when the run was started. {counted(record.num_train, 'training image')} of "
        f"{'x'.join(map(str, record.image_shape))}, on {devices(record)}."
    )
    return Section("Config", text, fields(record.config) + details("Versions", versions))


def comparison(runs: Sequence[Logged]) -> list[Section]:
    """The target students of several runs side by side."""
    rows, series = [], {}
    for logged in runs:
        name, label = logged.names[-1], logged.label
        row = [label, logged.resolved.config.method, name, len(logged.names)]
        if logged.evaluated:
            last, best = logged.evaluated[-1], metrics.best(logged.rows, logged.names[-1])
            values = [percent(of[metrics.evaluation(m, name)], m) for of in (last, best) for m in EVALUATED]
            ensemble = percent(last[metrics.evaluation("top1", ENSEMBLE)])
            rows.append([*row, last["epoch"], *values[:3], best["epoch"], *values[3:], ensemble])
            y = [100 * one[metrics.evaluation("top1", name)] for one in logged.evaluated]
            series[label] = ([one["epoch"] for one in logged.evaluated], y)
        else:
            rows.append([*row, *[NONE] * 9])
    columns = ["run", "method", "target student", "members", "last epoch", "top-1", "top-5", "loss"]
    columns += ["best epoch", "top-1 at best", "top-5 at best", "loss at best", "ensemble, last"]
    text = (
        "The target student of every run at its last evaluated epoch and at its best one, and the top-1 of the "
        "ensemble of all members, from the logs. Runs are comparable as far as their sets, splits and budgets are the "
        "same."
    )
    sections = [Section("Target students", text, table(columns, rows, texts=3))]
    if series:
        figure = figures.curves("Target students: top-1", "%", series)
        drawn = Drawn("top1", figure, f"Top-1 of {len(series)} runs over epochs")
        text = "Top-1 of every run's target student on its evaluation split, over its own epochs."
        sections.append(Section("Learning curves", text, drawn=(drawn,)))
    return sections
