"""The sections of a report on a run, each from what its files or its networks tell."""

import functools
import json
from collections.abc import Callable, Sequence

import numpy as np

from orc_jax import checkpoint, logs
from orc_jax import config as configs
from orc_jax.errors import UserError
from orc_jax.reporting import collect, figures, measures
from orc_jax.reporting.collect import Networks, Predicted, Record
from orc_jax.reporting.page import Drawn, Section, details, table

HARD = 0.2  # the share of the evaluation samples that are the hard ones
CLASSES = 20  # that a figure shows by name
TSNE_CLASSES, TSNE_SAMPLES = 10, 500
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


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def classes(record: Record, predicted: Predicted) -> Section:
    """Every member's accuracy on each class."""
    names, class_names = record.pool.member_names, record.description["class_names"]
    accuracy = 100 * measures.per_class_accuracy(
        measures.predictions(predicted.logits), predicted.labels, len(class_names)
    )
    order = np.argsort(accuracy[-1], kind="stable")
    order = order[~np.isnan(accuracy[-1][order])]
    which = "all classes that have samples"
    if len(order) > CLASSES:
        order = np.concatenate([order[: CLASSES // 2], order[-CLASSES // 2 :]])
        which = f"the {CLASSES // 2} classes that it does worst on and the {CLASSES // 2} that it does best on"
    columns = dict(zip(names, accuracy[:, order], strict=True))
    rows = [figures.short(class_names[i]) for i in order]
    figure = figures.dots("Accuracy by class", rows, columns, bold=names[-1])
    text = (
        f"Top-1 of every member on each class, ordered by the target student, {names[-1]} (large dots): {which}. "
        f"Computed from the checkpoint on {_count(len(predicted.labels), 'evaluation sample')}."
    )
    drawn = Drawn("classes", figure, f"Accuracy of {len(names)} members on {len(rows)} classes")
    return Section("Accuracy by class", text, drawn=(drawn,))


def pivot(record: Record, networks: Networks, predicted: Predicted, max_examples: int) -> Section:
    """The pivot teacher on the students' hard samples, before and after intensive teaching."""
    title = "Pivot teacher on hard samples"
    if record.config.method != "orc":
        return Section(title, f"Intensive teaching is part of orc; this run is one of {record.config.method}.")
    try:
        logits = collect.pivot_before(networks, record.workdir, max_examples)
    except UserError as error:
        return Section(title, f"The pivot teacher as it was before the run is not to be had: {error}.")
    labels, class_names = predicted.labels, record.description["class_names"]
    hard = measures.hardest(measures.losses(predicted.logits[1:], labels), HARD)
    both = measures.predictions(np.stack([logits, predicted.logits[0]]))
    all_before, all_after = (both == labels).mean(1)
    before, after = (both[:, hard] == labels[hard]).mean(1)
    accuracy = 100 * measures.per_class_accuracy(both[:, hard], labels[hard], len(class_names))
    counts = np.bincount(labels[hard], minlength=len(class_names))
    most = np.argsort(-counts, kind="stable")[:CLASSES]
    rows = np.sort(most[counts[most] > 0])
    names = [f"{figures.short(class_names[i])} ({counts[i]})" for i in rows]
    which = f", for the {len(rows)} classes that have most of them" if len(rows) < (counts > 0).sum() else ""
    figure = figures.before_and_after("Pivot teacher on hard samples", names, accuracy[0, rows], accuracy[1, rows])
    text = (
        f"The {len(hard):,} of {len(labels):,} evaluation samples on which the students' mean loss is highest (the "
        f"hardest fifth), by class with their number{which}: accuracy of the pivot teacher as it was pre-trained and "
        "at this checkpoint, after intensive teaching (the paper's Fig. 3)."
    )
    values = [
        ("hard samples", percent(before), percent(after)),
        ("all samples", percent(all_before), percent(all_after)),
    ]
    html = table(["", "as pre-trained", "at the checkpoint"], values, texts=1)
    drawn = Drawn("pivot", figure, f"On hard samples {percent(before)} before, {percent(after)} after")
    return Section(title, text, html, (drawn,))


def agreement(record: Record, predicted: Predicted) -> Section:
    """The share of equal predictions of every two members."""
    names = record.pool.member_names
    if len(names) == 1:
        return Section("Agreement", "It takes two members to agree.")
    values = measures.agreement(measures.predictions(predicted.logits))
    pairs = values[~np.eye(len(names), dtype=bool)]
    figure = figures.matrix("Equal predictions, %", names, values)
    text = (
        "The share of evaluation samples for which two members predict the same class, right or wrong: from "
        f"{pairs.min():.1%} to {pairs.max():.1%} between different members. Members that agree add little to the "
        "ensemble."
    )
    drawn = Drawn("agreement", figure, f"Agreement between {len(names)} members, {percent(pairs.mean())} on average")
    return Section("Agreement", text, drawn=(drawn,))


def correlations(record: Record, predicted: Predicted) -> Section:
    """How far the target student's logit correlations are from those of the first member."""
    names = record.pool.member_names
    if len(names) == 1:
        return Section("Logit correlations", "There is no teacher to compare with.")
    first, target = predicted.logits[0], predicted.logits[-1]
    if not (np.isfinite(first).all() and np.isfinite(target).all()):
        return Section("Logit correlations", "Logits are not finite.")
    difference = measures.correlation(first) - measures.correlation(target)
    mean = np.abs(difference).mean()
    figure = figures.correlation_difference(f"{names[0]} minus {names[-1]}, mean |difference| {mean:.3f}", difference)
    text = (
        f"The correlation of every two classes' logits over the evaluation samples, of {names[0]} minus {names[-1]} "
        f"(class x class, in the order of the set). Its mean absolute value is {mean:.3f}: 0 if the student relates "
        "the classes as its teacher does."
    )
    drawn = Drawn("correlations", figure, f"Mean absolute difference {mean:.3f}")
    return Section("Logit correlations", text, drawn=(drawn,))


def calibration(record: Record, predicted: Predicted) -> Section:
    """Whether confidences are what they promise."""
    names = record.pool.member_names
    probs = {names[-1]: predicted.logits[-1]}
    if len(names) > 1:
        probs = {names[0]: predicted.logits[0]} | probs
    probs = {name: np.exp(measures.log_softmax(logits)) for name, logits in probs.items()}
    if len(names) > 1:
        probs["ensemble"] = predicted.ensemble
    bins = {name: measures.calibration(p, predicted.labels) for name, p in probs.items() if np.isfinite(p).all()}
    if not bins:
        return Section("Calibration", "Logits are not finite.")
    figure = figures.reliability("Reliability", bins)
    eces = ", ".join(f"{name} {one.ece:.1%}" for name, one in bins.items())
    text = (
        "Accuracy over confidence (the highest probability) in 15 bins of equal width; larger dots hold more samples. "
        "On the diagonal a network is as often right as it is sure; below it, it is overconfident. The expected "
        f"calibration error (ECE), the mean distance from the diagonal over all samples, is: {eces}."
    )
    return Section("Calibration", text, drawn=(Drawn("calibration", figure, f"ECE: {eces}"),))


def features(record: Record, predicted: Predicted) -> Section:
    """The features of the first member and of the target student in the plane."""
    title, names = "Features", record.pool.member_names
    class_names = record.description["class_names"][:TSNE_CLASSES]
    rows = np.flatnonzero(predicted.labels < len(class_names))[:TSNE_SAMPLES]
    if len(rows) < 10:
        return Section(title, f"{_count(len(rows), 'sample')} are too few for t-SNE.")
    drawn = []
    for member, values in {0: predicted.features[0], len(names) - 1: predicted.features[1]}.items():
        if not np.isfinite(values).all():
            continue
        figure = figures.embedding(names[member], tsne(values[rows]), predicted.labels[rows], class_names)
        drawn.append(Drawn(f"features-{member}", figure, f"Features of {names[member]} by t-SNE"))
    if not drawn:
        return Section(title, "Features are not finite.")
    which = (
        f"the first {TSNE_CLASSES} classes" if len(record.description["class_names"]) > TSNE_CLASSES else "all classes"
    )
    text = (
        f"What the last layer gets, in two dimensions by t-SNE (perplexity {perplexity(len(rows)):.0f}): "
        f"{len(rows)} evaluation samples of {which}. Only who is near whom means something; distances between groups "
        "and the axes do not."
    )
    return Section(title, text, drawn=tuple(drawn))


def perplexity(count: int) -> float:
    return min(30.0, (count - 1) / 3)


def tsne(values: np.ndarray) -> np.ndarray:
    """`[samples, 2]`, always the same for the same features."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # scikit-learn's own

    kind = TSNE(perplexity=perplexity(len(values)), init="random", learning_rate="auto", random_state=0)
    with threadpool_limits(1):  # several threads wait for each other on cores that a training run keeps busy
        return kind.fit_transform(values.astype(np.float32))


def feedback(record: Record, networks: Networks) -> Section:
    """The pictures that the students hand back in the next iteration."""
    title = "Feedback samples"
    if record.config.method != "orc":
        return Section(title, f"Students hand back samples in orc; this run is one of {record.config.method}.")
    handed = collect.feedback(networks)
    names, class_names = record.pool.member_names, record.description["class_names"]
    rows, drawn = [], []
    for s, member in enumerate(handed.students):
        rows.append((names[member], f"{handed.losses[s]:.4f}", int(handed.shares[s])))
        if handed.shares[s]:
            figure = figures.pictures(handed, s, f"{names[member]}: {handed.shares[s]} handed back", class_names)
            drawn.append(Drawn(f"feedback-{member}", figure, f"The hardest samples of {names[member]}"))
    text = (
        f"The batch of the iteration after step {networks.step}, cropped and flipped as the students see it. Each "
        "hands back its hardest samples, and the weaker hand back more: their shares are a softmax over their losses. "
        "Shown are at most 12 of each student, hardest first: above, the true class; below, what the student takes it "
        "for (✓ if right)."
    )
    html = table(["student", "loss on the batch", "samples handed back"], rows, texts=1)
    return Section(title, text, html, tuple(drawn))


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
        f"The {_count(len(differing), 'field')} of the config that differ from the default, and all of them, as "
        f"resolved when the run was started. {_count(record.description['num_train'], 'training image')} of "
        f"{'x'.join(map(str, record.description['image_shape']))}, on {_devices(record)}."
    )
    return Section("Config", text, html)


def of_networks(
    record: Record, which: str, max_examples: int, warn: Callable[[str], None]
) -> tuple[list[Section], str]:
    """The sections that need a checkpoint and images, or one that says what is missing; and a line on the checkpoint.

    Raises:
        UserError: if there are checkpoints, but not this one, or it cannot be read.
    """
    title = "Accuracy by class to feedback samples"
    if not checkpoint.has_checkpoint(record.workdir):
        return [Section(title, "There is no checkpoint yet.")], "no checkpoint yet"
    try:
        dataset = collect.load(record, warn)
    except UserError as error:
        warn(f"only what the logs tell: {error}")
        return [Section(title, f"The images are not to be had: {error}")], "without images"
    networks = collect.restore(record, dataset, which)
    predicted = collect.predict(networks, max_examples)
    made = [
        functools.partial(classes, record, predicted),
        functools.partial(pivot, record, networks, predicted, max_examples),
        functools.partial(agreement, record, predicted),
        functools.partial(correlations, record, predicted),
        functools.partial(calibration, record, predicted),
        functools.partial(features, record, predicted),
        functools.partial(feedback, record, networks),
    ]
    line = f"checkpoint of step {networks.step} ({which}), {_count(len(predicted.labels), 'evaluation sample')}"
    return [make() for make in made], line


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
