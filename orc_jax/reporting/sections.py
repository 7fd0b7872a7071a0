"""The sections of a report that need nothing but the files of a run, and the comparison of several runs."""

import json
from collections.abc import Sequence

import numpy as np

from orc_jax import config as configs
from orc_jax import logs
from orc_jax.reporting import figures
from orc_jax.reporting.collect import Record
from orc_jax.reporting.page import Drawn, Section, details, table

JOINT = ("mean", "ensemble")  # rows of the log that belong to no single member
METRICS = ("top1", "top5", "loss")
NONE = "-"


def percent(value: float | None, metric: str = "top1") -> str:
    """A logged value as the tables show it."""
    if value is None:
        return NONE
    return f"{value:.4f}" if metric == "loss" else f"{value:.2%}"


def best_row(record: Record) -> dict[str, float]:
    """The row of the epoch at which the target student was best; the first of equals."""
    return max(record.evaluated, key=lambda row: row[f"eval/top1/{record.pool.member_names[-1]}"])


def results(record: Record) -> Section:
    """Every member and the ensemble at the last and at the best epoch."""
    names, split = record.pool.member_names, f"{record.config.dataset} {record.config.eval_split}"
    columns = ["member", "role", "parameters"]
    members = list(zip(names, record.method.roles, [f"{n:,}" for n in record.parameters], strict=True))
    if not record.evaluated:
        stages = [f"{stage.name}/ has come to epoch {epoch}" for stage, epoch in _stages(record) if epoch]
        text = "No epoch has been evaluated yet" + (f" ({', '.join(stages)})." if stages else ".")
        return Section("Results", text + " These are the members.", table(columns, members, bold=len(names) - 1))
    last, best = record.evaluated[-1], best_row(record)
    members += [(name, "all members", "") for name in JOINT if f"eval/top1/{name}" in last]
    rows = [
        [*member, *(percent(row.get(f"eval/{m}/{member[0]}"), m) for row in (last, best) for m in METRICS)]
        for member in members
    ]
    columns += [f"{metric}, {when}" for when in ("last", "best") for metric in ("top-1", "top-5", "loss")]
    text = (
        f"Accuracy and cross-entropy on {split}, as logged during training: at the last evaluated epoch, "
        f"{last['epoch']}, and at epoch {best['epoch']}, the best of the target student {names[-1]} (chosen on the "
        "same images, so an optimistic number). " + _what_is_the_ensemble(record)
    )
    return Section("Results", text, table(columns, rows, bold=len(names) - 1))


def _what_is_the_ensemble(record: Record) -> str:
    if record.method.ensemble:
        return f"The ensemble is that of {record.config.method}."
    return "The ensemble is the members' mean probability."


def _stages(record: Record) -> list[tuple]:
    """The runs that come before, each with the epochs it has logged."""
    rows = [(stage, logs.read_rows(record.workdir / stage.name)) for stage in record.method.stages]
    return [(stage, int(of_stage[-1]["epoch"]) if of_stage else 0) for stage, of_stage in rows]


def learning(record: Record) -> Section:
    """Loss, accuracy, evaluation and learning rate over epochs."""
    names = record.pool.member_names
    if not record.rows:
        return Section("Learning curves", "No epoch has been logged yet.")

    def series(prefix: str, keys: Sequence[str], scale: float) -> figures.Series:
        logged = {key: [row for row in record.rows if f"{prefix}{key}" in row] for key in keys}
        points = {
            key: ([row["epoch"] for row in rows], [scale * row[f"{prefix}{key}"] for row in rows])
            for key, rows in logged.items()
        }
        return {key: value for key, value in points.items() if value[0]}

    drawn = []
    for name, title, unit, prefix, keys, scale in (
        ("eval-top1", "Evaluation: top-1", "%", "eval/top1/", [*names, "ensemble"], 100),
        ("train-loss", "Training: cross-entropy", "nats", "train/loss/", names, 1),
        ("train-accuracy", "Training: accuracy", "%", "train/accuracy/", names, 100),
        ("learning-rate", "Learning rate", "", "", ["learning_rate"], 1),
    ):
        lines = series(prefix, keys, scale)
        if lines:
            figure = figures.curves(title, unit, lines, bold=[names[-1]], plain=["ensemble", "learning_rate"])
            drawn.append(Drawn(name, figure, f"{title} of {', '.join(lines)} over {len(record.rows)} epochs"))
    text = (
        "Every member over the epochs; the thick line is the target student. Training figures are means over the "
        "batches of an epoch, in training mode and on augmented images, before each update. A member that was trained "
        "before the run starts where it was."
    )
    return Section("Learning curves", text, drawn=tuple(drawn))


def roles(record: Record) -> Section:
    """Who was a temporary teacher, or in expert mode, and how often."""
    share = next(iter(record.method.shares), None)
    title = "Roles over time" if share != "expert_mode" else "Expert mode over time"
    if share is None:
        return Section("Roles over time", f"In {record.config.method} no member changes its role.")
    names = record.pool.member_names
    rows = [row for row in record.rows if f"train/{share}/{names[-1]}" in row]
    if not rows:
        return Section(title, "No epoch has been logged yet.")
    values = {name: [100 * row[f"train/{share}/{name}"] for row in rows] for name in names}
    epochs = [row["epoch"] for row in rows]
    if share == "promoted":
        if not any(map(any, values.values())):
            return Section(title, "With config.orc.role_change=False the temporary teachers are always the same.")
        students = {name: values[name] for name in names[1:]}
        figure = figures.stacked_shares("Temporary teachers", epochs, students)
        text = (
            "Which student was promoted to temporary teacher in which share of an epoch's iterations (the paper's "
            f"Fig. 4): {_promoted(record.config.num_temporary_teachers)} with the lowest cross-entropy on the batch. "
            "From train/promoted of the log."
        )
    else:
        students = values
        figure = figures.curves("Expert mode", "share of iterations, %", {n: (epochs, values[n]) for n in names})
        text = (
            "The share of an epoch's iterations in which a teacher was too far ahead and paused: of each teacher the "
            "mean over its students, of each student over its teachers. From train/expert_mode of the log."
        )
    means = [(name, f"{np.mean(of_member):.1f} %") for name, of_member in students.items()]
    drawn = Drawn("roles", figure, f"{title}: " + ", ".join(f"{name} {mean}" for name, mean in means))
    return Section(title, text, table(["member", "of all iterations"], means, texts=1), (drawn,))


def _promoted(k: int) -> str:
    return "the student" if k == 1 else f"the {k} students"


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def speed(record: Record) -> Section:
    """Images per second over epochs."""
    epochs = {row["step"]: row["epoch"] for row in record.rows}
    points = [
        (epochs[row["step"]], row["images_per_second"])
        for row in record.timing
        if "images_per_second" in row and row["step"] in epochs
    ]
    if not points:
        return Section("Speed", "No epoch has been timed yet.")
    x, y = zip(*points, strict=True)
    seconds = sum(record.description["num_train"] / value for value in y)
    time = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:,.0f} minutes"
    figure = figures.curves("Speed of training", "images per second", {"images per second": (x, y)}, from_zero=True)
    text = (
        f"Training images per second, without compilation and evaluation, from {logs.TIMING}: {np.median(y):,.0f} in "
        f"the median epoch, on {_devices(record)}. The epochs shown took {time} of training, the stages "
        "before them not counted."
    )
    return Section("Speed", text, drawn=(Drawn("speed", figure, f"{np.median(y):,.0f} images per second"),))


def _devices(record: Record) -> str:
    kinds = record.description.get("devices", [])
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)) or "devices unknown"


def configuration(record: Record) -> Section:
    """The fields of the config, versions and devices."""
    defaults = configs.flat(json.loads(configs.default().to_json()))
    fields = configs.flat(record.description["config"])
    shown = lambda value: json.dumps(value, ensure_ascii=False)  # noqa: E731
    differing = [
        (name, shown(value), shown(defaults[name]) if name in defaults else NONE)
        for name, value in fields.items()
        if name not in defaults or value != defaults[name]
    ]
    everything = table(["field", "value"], [(name, shown(value)) for name, value in fields.items()])
    versions = table(["package", "version"], list(record.description.get("versions", {}).items()))
    html = table(["field", "value", "default"], differing, texts=3) if differing else ""
    html += details(f"All {len(fields)} fields", everything) + details("Versions", versions)
    text = (
        f"The {counted(len(differing), 'field')} of the config that differ from the default, and all of them, as "
        f"resolved when the run was started. {counted(record.description['num_train'], 'training image')} of "
        f"{'x'.join(map(str, record.description['image_shape']))}, on {_devices(record)}."
    )
    return Section("Config", text, html)


def comparison(records: Sequence[Record]) -> list[Section]:
    """The target students of several runs side by side."""
    rows, series = [], {}
    for record in records:
        name, label = record.pool.member_names[-1], record.label
        row = [label, record.config.method, name, len(record.pool.member_names)]
        if record.evaluated:
            last, best = record.evaluated[-1], best_row(record)
            values = [percent(of[f"eval/{m}/{name}"], m) for of in (last, best) for m in METRICS]
            ensemble = percent(last["eval/top1/ensemble"])
            rows.append([*row, last["epoch"], *values[:3], best["epoch"], *values[3:], ensemble])
            y = [100 * one[f"eval/top1/{name}"] for one in record.evaluated]
            series[label] = ([one["epoch"] for one in record.evaluated], y)
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
