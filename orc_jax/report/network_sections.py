"""The sections of a report on a run that need its networks at a checkpoint, and images."""

import contextlib
from collections.abc import Callable

import numpy as np

from orc_jax import samples
from orc_jax.data.augment import in_words
from orc_jax.errors import UserError
from orc_jax.report import collect, confusions, figures, measures
from orc_jax.report.collect import Logged, Networks, Predicted
from orc_jax.report.page import Drawn, Section, table
from orc_jax.report.sections import counted, percent
from orc_jax.workdir import checkpoint

Doing = Callable[[str], contextlib.AbstractContextManager[None]]
HARD = 0.2  # the share of the evaluation samples that are the hard ones
CLASSES = 20  # that a figure shows by name
PICTURES = 12
TSNE_CLASSES, TSNE_SAMPLES = 10, 500
ITERATIONS = 500  # of t-SNE: twice as many bring its divergence down by a fiftieth, and move nobody's neighbours


def quietly(what: str) -> contextlib.AbstractContextManager[None]:
    """Around what takes its time, without a word of it."""
    del what
    return contextlib.nullcontext()


def classes(logged: Logged, predicted: Predicted) -> Section:
    """Every member's accuracy on each class."""
    names, class_names = logged.names, logged.record.class_names
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
        f"Computed from the checkpoint on {counted(len(predicted.labels), 'evaluation sample')}."
    )
    drawn = Drawn("classes", figure, f"Accuracy of {len(names)} members on {len(rows)} classes")
    return Section("Accuracy by class", text, drawn=(drawn,))


def pivot(logged: Logged, networks: Networks, predicted: Predicted, max_examples: int) -> Section:
    """The pivot teacher on the students' hard samples, before and after intensive teaching."""
    title = "Pivot teacher on hard samples"
    if not collect.learns_on(networks.run, 0):
        return Section(title, f"In {networks.run.config.method} no pre-trained teacher goes on learning.")
    try:
        logits = collect.pivot_before(networks, logged.workdir, max_examples)
    except UserError as error:
        return Section(title, f"The pivot teacher as it was before the run is not to be had: {error}.")
    labels, class_names = predicted.labels, logged.record.class_names
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


def agreement(logged: Logged, predicted: Predicted) -> Section:
    """The share of equal predictions of every two members."""
    names = logged.names
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


def correlations(logged: Logged, predicted: Predicted) -> Section:
    """How far the target student's logit correlations are from those of the first member."""
    names = logged.names
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


def calibration(logged: Logged, predicted: Predicted) -> Section:
    """Whether confidences are what they promise."""
    names = logged.names
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


def features(logged: Logged, predicted: Predicted) -> Section:
    """The features of the first member and of the target student in the plane."""
    title, names = "Features", logged.names
    class_names = logged.record.class_names[:TSNE_CLASSES]
    rows = np.flatnonzero(predicted.labels < len(class_names))[:TSNE_SAMPLES]
    if len(rows) < 10:
        return Section(title, f"{counted(len(rows), 'sample')} are too few for t-SNE.")
    drawn, labels = [], [figures.short(name) for name in class_names]
    for member, values in {0: predicted.features[0], len(names) - 1: predicted.features[1]}.items():
        if not np.isfinite(values).all():
            continue
        figure = figures.embedding(names[member], tsne(values[rows]), predicted.labels[rows], labels)
        drawn.append(Drawn(f"features-{member}", figure, f"Features of {names[member]} by t-SNE"))
    if not drawn:
        return Section(title, "Features are not finite.")
    which = f"the first {TSNE_CLASSES} classes" if len(logged.record.class_names) > TSNE_CLASSES else "all classes"
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

    shape = {"perplexity": perplexity(len(values)), "init": "random", "learning_rate": "auto"}
    kind = TSNE(**shape, max_iter=ITERATIONS, random_state=0)
    with threadpool_limits(1):  # several threads wait for each other on cores that a training run keeps busy
        return kind.fit_transform(values.astype(np.float32))


def feedback(logged: Logged, networks: Networks) -> Section:
    """The pictures that the students hand back in the next iteration."""
    title = "Feedback samples"
    if networks.run.method.hand_back is None:
        return Section(title, f"In {networks.run.config.method} students hand back no samples.")
    handed = collect.feedback(networks)
    names, class_names = logged.names, logged.record.class_names
    rows, drawn = [], []
    for s, member in enumerate(handed.students):
        rows.append((names[member], f"{handed.losses[s]:.4f}", int(handed.shares[s])))
        if handed.shares[s]:
            figure = figures.handed_back(handed, s, f"{names[member]}: {handed.shares[s]} handed back", class_names)
            drawn.append(Drawn(f"feedback-{member}", figure, f"What {names[member]} hands back"))
    text = (
        f"The batch of the iteration after step {networks.step} as the students see it, {_augmented(networks)}. Each "
        "hands back samples that it finds hard, and the weaker hand back more: their shares are a softmax over their "
        "losses. Shown are at most 12 of each student, in the order in which they are chosen: above, the true class; "
        "below, what the student takes it for (✓ if right)."
    )
    html = table(["student", "loss on the batch", "samples handed back"], rows, texts=1)
    return Section(title, text, html, tuple(drawn))


def training_images(logged: Logged, networks: Networks) -> Section:
    """The first images of the first step, as the networks see them."""
    title = "Training images"
    try:
        shown = samples.first(networks.run)  # by the program that the run itself has, which is kept
    except UserError as error:
        return Section(title, f"The training images are not to be had: {error}")
    images, labels = (array[:PICTURES] for array in shown)
    captions = [figures.short(logged.record.class_names[int(label)]) for label in labels]
    figure = figures.pictures(title, list(images), captions)
    text = (
        f"The first {len(captions)} images of the first step as the networks see them, {_augmented(networks)}, before "
        "they are normalised."
    )
    drawn = Drawn("training-images", figure, f"Images of {', '.join(dict.fromkeys(captions))}")
    return Section(title, text, drawn=(drawn,))


def _augmented(networks: Networks) -> str:
    return in_words(networks.run.config, streamed=networks.run.dataset.is_streamed)


def of_networks(
    logged: Logged, which: str, max_examples: int, warn: Callable[[str], None], doing: Doing = quietly
) -> tuple[list[Section], str]:
    """The sections that need a checkpoint and images, or one that says what is missing; and a line on the checkpoint.

    `doing` is around what takes its time, and is told what it is.

    Raises:
        UserError: if there are checkpoints, but not this one, or it cannot be read.
    """
    title = "Accuracy by class to training images"
    if not checkpoint.has_checkpoint(logged.workdir):
        return [Section(title, "There is no checkpoint yet.")], "no checkpoint yet"
    try:
        with doing(f"reading {logged.resolved.config.dataset}"):
            dataset = collect.load(logged, warn)
    except UserError as error:
        warn(f"only what the logs tell: {error}")
        return [Section(title, f"The images are not to be had: {error}")], "without images"
    with doing("evaluating for the report"):
        networks = collect.restore(logged, dataset, which)
        predicted = collect.predictions(networks, max_examples)
        made = [
            classes(logged, predicted),
            confusions.section(logged, networks, predicted, max_examples),
            pivot(logged, networks, predicted, max_examples),
            agreement(logged, predicted),
            correlations(logged, predicted),
            calibration(logged, predicted),
        ]
    with doing("arranging features in the plane"):
        made.append(features(logged, predicted))
    with doing("looking for feedback samples"):
        made += [feedback(logged, networks), training_images(logged, networks)]
    line = f"checkpoint of step {networks.step} ({which}), {counted(len(predicted.labels), 'evaluation sample')}"
    return made, line
