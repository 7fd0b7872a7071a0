"""What a report is made from: the files of a run, and what its networks make of images. Nothing is written or locked.

A run may be training meanwhile: a checkpoint that it replaces while it is read is looked up anew.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from orc_jax import pretrained
from orc_jax.config import Resolved, reopen
from orc_jax.data import feed, sets
from orc_jax.data.augment import normalize
from orc_jax.data.batches import seed_of
from orc_jax.data.types import Dataset, Images, Records, size
from orc_jax.errors import UserError
from orc_jax.evaluate import heads
from orc_jax.losses import correct, cross_entropy
from orc_jax.methods.base import evaluated
from orc_jax.models.network import make_network, weight_shapes
from orc_jax.pool import Pool, names_of
from orc_jax.report import measures
from orc_jax.run import Run, build
from orc_jax.step import augment, pick
from orc_jax.verbs import forward, predict
from orc_jax.workdir import checkpoint, metrics
from orc_jax.workdir import record as records
from orc_jax.workdir.metrics import Row
from orc_jax.workdir.record import Record


class Logged(NamedTuple):
    """What the files of a run tell without its networks and its images."""

    workdir: Path
    label: str  # what to call the run
    record: Record
    resolved: Resolved  # its config
    parameters: tuple[int, ...]  # of each member
    rows: list[Row]
    timing: list[Row]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the members, as the log has them."""
        return names_of(self.record.architectures)

    @property
    def evaluated(self) -> list[Row]:
        """The rows of the epochs that end with an evaluation."""
        return metrics.evaluated(self.rows)


class Networks(NamedTuple):
    """The networks of a run at a checkpoint, with the run itself, on one device."""

    run: Run
    pool: Pool
    step: int


class Predicted(NamedTuple):
    """What the members make of the evaluation samples."""

    logits: np.ndarray  # [members, samples, classes]
    ensemble: np.ndarray  # probabilities [samples, classes]
    features: tuple[np.ndarray, ...]  # of the first member and of the target student: [samples, dim]
    labels: np.ndarray  # [samples]
    rows: np.ndarray  # where they are among the evaluation samples that the networks were shown, [samples]


class Feedback(NamedTuple):
    """One iteration's feedback samples."""

    students: tuple[int, ...]  # member numbers
    losses: np.ndarray  # of the students on the batch, [students]
    shares: np.ndarray  # how many samples each hands back, [students]
    handed_back: tuple[np.ndarray, ...]  # by student: positions in the batch, hardest first
    images: np.ndarray  # uint8 [batch, height, width, channels], as the students see them
    labels: np.ndarray  # [batch]
    predicted: np.ndarray  # [students, batch]


def read(workdir: Path, label: str, own: Sequence[str] = (), data_dir: str | None = None) -> Logged:
    """The files of the run in `workdir`, to be called `label`.

    `own` is what it may import of modules of one's own, `data_dir` where its data set lies if not where it says.

    Raises:
        UserError: if there is no run, or it is one of a person's own method or network that is not among `own`.
    """
    record = records.require(workdir)
    if record.imported is not None:
        raise UserError(f"--workdir={workdir} holds imported weights, which no run has trained: there is no report")
    config = record.fields
    if data_dir is not None:
        config.data_dir = data_dir
    resolved = reopen(config, own)
    shapes = {
        name: weight_shapes(make_network(model, record.num_classes, record.image_shape))[0].values()
        for name, model in resolved.models.items()
    }
    return Logged(
        workdir=workdir,
        label=label,
        record=record,
        resolved=resolved,
        parameters=tuple(sum(x.size for x in shapes[name]) for name in record.architectures),
        rows=metrics.read(workdir),
        timing=metrics.read(workdir, metrics.TIMING),
    )


def labels_of(workdirs: Sequence[Path]) -> list[str]:
    """What to call each run: the end of its path, as long as it takes to tell them apart."""
    parts = [workdir.absolute().parts for workdir in workdirs]
    for count in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-count:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    raise UserError("--workdir: the same folder is given twice")


def load(logged: Logged, warn: Callable[[str], None]) -> Dataset:
    """The data set of a run, normalised as in training.

    Raises:
        UserError: if it cannot be loaded, or is another one now.
    """
    record = logged.record
    dataset = sets.load(logged.resolved.config, warn, logged.resolved.plugins, class_names=record.class_names)
    if tuple(dataset.class_names) != record.class_names:
        raise UserError(f"{dataset.name} has other classes now than when the run in {logged.workdir} was started")
    if tuple(dataset.image_shape) != record.image_shape:
        raise UserError(f"{dataset.name} has images of another size now than the run in {logged.workdir}")
    return dataset._replace(mean=record.mean, std=record.std, whole=record.seen_whole(dataset.whole))


def restore(logged: Logged, dataset: Dataset, which: str) -> Networks:
    """The networks of a run at the checkpoint `which`: "latest", "best", or a step.

    Raises:
        UserError: if there is no such checkpoint, or it cannot be read.
    """
    resolved = logged.resolved
    run = build(resolved, dataset, jax.local_devices()[:1], axis_name=None)
    trained = checkpoint.restore_networks(
        logged.workdir, logged.record, which, run.sharding, resolved.plugins, heads(run)
    )
    return Networks(run, trained.pool.replace(spec=run.spec), trained.step)


class _Some(NamedTuple):
    """Some records of a streamed set."""

    records: Records
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, i: int) -> tuple[bytes, int]:
        return self.records.read(self.rows[i])

    def name(self, i: int) -> str:
        return self.records.name(self.rows[i])


def some(examples: Images | Records, count: int) -> Images | Records:
    """At most `count` examples, drawn without replacement, always the same and in order: a set may be sorted."""
    total = size(examples)
    if count >= total:
        return examples
    rows = np.sort(np.random.default_rng(0).permutation(total)[:count])
    if isinstance(examples, Images):
        return Images(examples.images[rows], examples.labels[rows])
    return _Some(examples, tuple(rows.tolist()))


def predictions(networks: Networks, max_examples: int) -> Predicted:
    """All members on the evaluation set of the run, or on as many samples of it."""
    ensemble = networks.run.method.ensemble

    def outputs_of(pool: Pool, images: jax.Array) -> tuple[jax.Array, ...]:
        out = evaluated(networks.run.method, pool, images)
        joint = ensemble(pool, out) if ensemble else out.logits[0, :, :0]
        return jnp.moveaxis(out.logits, 0, 1), joint, *(_features(pool, out.features, m) for m in (0, pool.size - 1))

    outputs, labels, rows = _on_evaluation_set(networks.run, max_examples, outputs_of, networks.pool)
    logits, joint, *features = outputs
    logits = np.moveaxis(logits, 1, 0)
    joint = np.exp(measures.log_softmax(joint)) if ensemble else measures.mean_probability(logits)
    return Predicted(logits, joint, tuple(features), labels, rows)


def _features(pool: Pool, features: dict[str, jax.Array], member: int) -> jax.Array:
    stack = next(stack for stack in pool.spec.stacks if member in stack.members)
    return features[stack.name][stack.members.index(member)]


def evaluation_images(run: Run, max_examples: int, rows: np.ndarray) -> list[np.ndarray]:
    """The images, as the networks see them, of some `rows` of the samples that `predictions` has shown them.

    Raises:
        UserError: if one cannot be read any more.
    """
    dataset = run.dataset._replace(test=some(run.dataset.test, max_examples))
    return feed.evaluation_images(dataset, run.config, rows.tolist())


def _on_evaluation_set(
    run: Run, max_examples: int, function: Callable, pool: Pool
) -> tuple[Any, np.ndarray, np.ndarray]:
    """`function(pool, normalised images)`, a tree of arrays `[batch, ...]`, labels, and places, of all samples."""
    dataset = run.dataset._replace(test=some(run.dataset.test, max_examples))
    data = feed.resident(dataset.test, run.devices)

    @jax.jit
    def on_batch(pool, data, batch):
        images, labels = pick(data, batch)
        return function(pool, normalize(images, run.setup.mean, run.setup.std)), labels

    parts, shown = [], 0
    with feed.evaluation(dataset, run.config, run.devices) as batches:
        for batch in batches:
            batch, weights = jax.tree.map(lambda x: x[0], batch)  # of the one device
            counts = np.asarray(weights) > 0
            outputs = *jax.device_get(on_batch(pool, data, batch)), shown + np.arange(len(counts))
            parts.append(jax.tree.map(lambda x, counts=counts: x[counts], outputs))
            shown += len(counts)
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def learns_on(run: Run, member: int) -> bool:
    """Whether a member that a stage has trained goes on learning in the run itself."""
    staged = any(member in stage.members for stage in run.method.stages)
    return staged and member not in run.method.frozen


def pivot_before(networks: Networks, workdir: Path, max_examples: int) -> np.ndarray:
    """Logits `[samples, classes]` of the pivot teacher as it was before the run: as it was pre-trained.

    Raises:
        UserError: if there is no such checkpoint any more.
    """
    run = networks.run
    folder = Path(run.config.pivot_checkpoint or workdir / run.method.stages[0].name)
    field = f"the pivot teacher's run in {folder}"
    pretrained.find_members(run, folder, [0], field)
    if not checkpoint.has_checkpoint(folder):
        raise UserError(f"{field} has no checkpoint")
    pivot = networks.pool.select([0]).with_weights(pretrained.load_members(run, folder, [0], field))
    logits_of = lambda pool, images: predict(pool, images).logits[0]  # noqa: E731
    return _on_evaluation_set(run, max_examples, logits_of, pivot)[0]


def feedback(networks: Networks) -> Feedback:
    """What the students hand back in the iteration that follows the checkpoint, for a method in which they do."""
    run, setup = networks.run, networks.run.setup
    hand_back = run.method.hand_back
    assert hand_back is not None
    students = tuple(m for m in range(1, networks.pool.size) if m not in run.method.frozen)

    @jax.jit
    def decide(pool, data, batch):
        examples = pick(data, batch)
        images = augment(setup, jnp.uint32(seed_of(run.config)), jnp.int32(networks.step), examples)
        # in training mode, as in the iteration itself
        logits = forward(pool, normalize(images, setup.mean, setup.std)).logits
        losses = cross_entropy(logits, examples.labels)
        wrong = correct(logits, examples.labels) == 0.0
        return losses.mean(1), *hand_back(losses, wrong), images, examples.labels, logits

    data = feed.resident(run.dataset.train, run.devices)
    opened = feed.training(run.dataset, run.config, run.devices, networks.step, networks.step + 1, run.method.views)
    with opened as batches:
        batch = jax.tree.map(lambda x: x[0], next(batches))
    decided = jax.device_get(decide(networks.pool.select(students), data, batch))
    losses, shares, indices, images, labels, logits = decided
    handed_back = tuple(np.split(indices, np.cumsum(shares)[:-1]))
    return Feedback(students, losses, shares, handed_back, images, labels, measures.predictions(logits))
