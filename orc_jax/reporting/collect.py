"""What a report is made from: the files of a run, and what its networks make of images. Nothing is written or locked.

A run may be training meanwhile: a checkpoint that it replaces while it is read is looked up anew.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from orc_jax import checkpoint, evaluate, logs, pretrained, step
from orc_jax import config as configs
from orc_jax import pool as pools
from orc_jax.data import feed, sets
from orc_jax.data.augment import normalize
from orc_jax.data.sets import Dataset, Images
from orc_jax.errors import UserError
from orc_jax.losses import cross_entropy
from orc_jax.methods.base import Method
from orc_jax.pool import Pool
from orc_jax.reporting import measures
from orc_jax.roles import feedback_indices, feedback_shares
from orc_jax.run import Run, build


class Record(NamedTuple):
    """What the files of a run tell without its networks and its images."""

    workdir: Path
    label: str  # what to call the run
    description: dict
    config: ConfigDict
    method: Method
    pool: Pool
    parameters: tuple[int, ...]  # of each member
    rows: list[dict[str, float]]
    timing: list[dict[str, float]]

    @property
    def evaluated(self) -> list[dict[str, float]]:
        """The rows of the epochs that end with an evaluation."""
        return [row for row in self.rows if "eval/top1/ensemble" in row]


class Networks(NamedTuple):
    """The networks of a run at a checkpoint, with the run itself."""

    run: Run
    pool: Pool  # as that of the run, for one device
    stacks: step.Stacks
    step: int


class Predicted(NamedTuple):
    """What the members make of the evaluation samples."""

    logits: np.ndarray  # [members, samples, classes]
    ensemble: np.ndarray  # probabilities [samples, classes]
    features: tuple[np.ndarray, ...]  # of the first member and of the target student: [samples, dim]
    labels: np.ndarray  # [samples]


class Feedback(NamedTuple):
    """One iteration's feedback samples."""

    students: tuple[int, ...]  # member numbers
    losses: np.ndarray  # of the students on the batch, [students]
    shares: np.ndarray  # how many samples each hands back, [students]
    handed_back: tuple[np.ndarray, ...]  # by student: positions in the batch, hardest first
    images: np.ndarray  # uint8 [batch, height, width, channels], as the students see them
    labels: np.ndarray  # [batch]
    predicted: np.ndarray  # [students, batch]


def read_record(workdir: Path, label: str) -> Record:
    """The files of the run in `workdir`.

    Raises:
        UserError: if there is no run.
    """
    description = checkpoint.read_description(workdir)
    if description is None:
        raise UserError(f"--workdir={workdir} holds no run: there is no {checkpoint.DESCRIPTION} in it")
    if "imported" in description:
        raise UserError(f"--workdir={workdir} holds imported weights, which no run has trained: there is no report")
    config = configs.default()
    # A field that has come since the run began has its default; JSON knows no tuples.
    with config.ignore_type():
        config.update({k: v for k, v in description["config"].items() if k in config})
    pool = pools.make_pool(
        description["members"],
        num_classes=description["num_classes"],
        image_shape=tuple(description["image_shape"]),
        dtype=config.dtype,
        axis_name=None,
    )
    return Record(
        workdir,
        label,
        description,
        config,
        configs.build_method(config, pool.architectures),
        pool,
        _parameters(pool),
        logs.read_rows(workdir),
        logs.read_rows(workdir, logs.TIMING),
    )


def _parameters(pool: Pool) -> tuple[int, ...]:
    params, _ = jax.eval_shape(lambda: pools.init(pool, 0))
    counts = {name: sum(math.prod(x.shape[1:]) for x in stack.values()) for name, stack in params.items()}
    return tuple(counts[name] for name in pool.architectures)


def labels_of(workdirs: Sequence[Path]) -> list[str]:
    """What to call each run: the end of its path, as long as it takes to tell them apart."""
    parts = [workdir.absolute().parts for workdir in workdirs]
    for count in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-count:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    raise UserError("--workdir: the same folder is given twice")


def load(record: Record, warn: Callable[[str], None]) -> Dataset:
    """The data set of a run, normalised as in training.

    Raises:
        UserError: if it cannot be loaded, or is another one now.
    """
    description = record.description
    dataset = sets.load(record.config, warn)
    constants = {field: tuple(description[field]) for field in ("mean", "std")}
    if tuple(dataset.class_names) != tuple(description["class_names"]):
        raise UserError(f"{dataset.name} has other classes now than when the run in {record.workdir} was started")
    if list(dataset.image_shape) != description["image_shape"]:
        raise UserError(f"{dataset.name} has images of another size now than the run in {record.workdir}")
    return dataset._replace(**constants)


def restore(record: Record, dataset: Dataset, which: str) -> Networks:
    """The networks of a run at the checkpoint `which`: "latest", "best", or a step.

    Raises:
        UserError: if there is no such checkpoint, or it cannot be read.
    """
    run = build(record.config, dataset, jax.local_devices()[:1], record.pool.architectures)
    folder = record.workdir / checkpoint.CHECKPOINTS
    while True:
        with checkpoint.open_manager(record.workdir, create=False) as manager:
            at = checkpoint.find_step(manager, which)
            try:
                _, params, batch_stats = checkpoint.restore_networks(
                    manager, at, record.description, run.sharding, evaluate.heads(run)
                )
                break
            except UserError:
                if (folder / str(at)).exists():
                    raise  # else training has put a newer one in its place
    stacks = {name: step.StackState(params[name], batch_stats.get(name, {}), ()) for name in params}
    return Networks(run, record.pool, stacks, at)


@dataclass(frozen=True)
class _Some:
    """Some records of a streamed set."""

    records: sets.Records
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, i: int) -> tuple[bytes, int]:
        return self.records.read(int(self.rows[i]))

    def name(self, i: int) -> str:
        return self.records.name(int(self.rows[i]))


def some(examples: Images | sets.Records, count: int) -> Images | sets.Records:
    """At most `count` examples, drawn without replacement, always the same and in order: a set may be sorted."""
    total = sets.size(examples)
    if count >= total:
        return examples
    rows = np.sort(np.random.default_rng(0).permutation(total)[:count])
    if isinstance(examples, Images):
        return Images(examples.images[rows], examples.labels[rows])
    return _Some(examples, rows)


def predict(networks: Networks, max_examples: int) -> Predicted:
    """All members on the evaluation set of the run, or on as many samples of it."""
    run, pool = networks.run, networks.pool
    first_and_last = (0, pool.size - 1)

    def outputs_of(stacks, images):
        out = step.predict(pool, stacks, images)
        joint = run.method.ensemble(out) if run.method.ensemble else out.logits[:0]
        return out.logits, joint, tuple(pools.take_member(pool, out.features, member) for member in first_and_last)

    parts, labels = [], []
    for outputs, of_batch in _on_evaluation_set(run, max_examples, outputs_of, networks.stacks):
        parts.append(outputs)
        labels.append(of_batch)
    logits = np.concatenate([part[0] for part in parts], axis=1)
    if run.method.ensemble:
        joint = np.exp(measures.log_softmax(np.concatenate([part[1] for part in parts])))
    else:
        joint = measures.mean_probability(logits)
    features = tuple(np.concatenate([part[2][i] for part in parts]) for i in range(len(first_and_last)))
    return Predicted(logits, joint, features, np.concatenate(labels))


def _on_evaluation_set(run: Run, max_examples: int, function: Callable, stacks: step.Stacks):
    """Yields `function(stacks, normalised images)` and the labels, batch by batch, on the host and without padding.

    The batch is the first axis of logits `[batch, classes]` and of features, the second of `[members, batch, classes]`.
    """
    dataset = run.dataset._replace(test=some(run.dataset.test, max_examples))
    config = run.config.copy_and_resolve_references()
    config.eval_batch_size = min(config.eval_batch_size, sets.size(dataset.test))
    data = feed.resident(dataset.test, run.devices)

    @jax.jit
    def on_batch(stacks, data, batch):
        images, labels = step.pick(data, batch)
        return function(stacks, normalize(images, run.setup.mean, run.setup.std)), labels

    with feed.evaluation(dataset, config, run.devices) as batches:
        for batch in batches:
            batch, weights = jax.tree.map(lambda x: x[0], batch)  # of the one device
            outputs, labels = jax.device_get(on_batch(stacks, data, batch))
            counts = np.asarray(weights) > 0
            yield jax.tree.map(lambda x, counts=counts: _kept(x, counts), outputs), labels[counts]


def _kept(x: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return x[:, counts] if x.ndim == 3 else x[counts]


def pivot_before(networks: Networks, workdir: Path, max_examples: int) -> np.ndarray:
    """Logits `[samples, classes]` of the pivot teacher as it was before the run: as it was pre-trained.

    Raises:
        UserError: if there is no such checkpoint any more.
    """
    run = networks.run
    folder = Path(run.config.pivot_checkpoint or workdir / "pivot")
    pretrained.find_members(run, folder, [0], f"the pivot teacher's run in {folder}")
    if not checkpoint.has_checkpoint(folder):
        raise UserError(f"the pivot teacher's run in {folder} has no checkpoint")
    ((params, batch_stats),) = pretrained.load_members(run, folder, [0]).values()
    pivot = pools.select(networks.pool, [0])
    name = pivot.architectures[0]
    # Renumbered, for its arrays are its own and not those of a stack of several.
    pivot = pools.one_member(next(stack for stack in pivot.stacks if stack.name == name))
    state = {name: step.StackState(*jax.tree.map(lambda x: x[None], (params, batch_stats)), ())}

    def logits_of(stacks, images):
        return step.predict(pivot, stacks, images).logits[0]

    return np.concatenate([logits for logits, _ in _on_evaluation_set(run, max_examples, logits_of, state)])


def feedback(networks: Networks) -> Feedback:
    """What the students of ORC hand back in the iteration that follows the checkpoint."""
    run = networks.run
    students = tuple(m for m in range(1, networks.pool.size) if m not in run.method.frozen)
    selected = pools.select(networks.pool, students)
    setup = run.setup._replace(axis_name=None)
    state = step.TrainState(
        step=jnp.int32(networks.step),
        seed=jnp.uint32(run.config.seed),
        stacks=pools.take(selected, networks.stacks),
        totals={},
        iterations=jnp.zeros(()),
        diverged_at=jnp.zeros(networks.pool.size, jnp.int32),
    )
    size = max(1, round(run.config.orc.feedback_fraction * run.config.batch_size))

    @jax.jit
    def decide(state, data, batch):
        examples = step.pick(data, batch)
        images = step.augment(setup, state, examples)
        # in training mode, as in the iteration itself
        logits = step.forward(selected, state.stacks, normalize(images, setup.mean, setup.std)).logits
        losses = cross_entropy(logits, examples.labels)
        shares = feedback_shares(losses.mean(1), size)
        return losses.mean(1), shares, feedback_indices(losses, shares, size), images, examples.labels, logits

    data = feed.resident(run.dataset.train, run.devices)
    opened = feed.training(run.dataset, run.config, run.devices, networks.step, networks.step + 1, run.method.views)
    with opened as batches:
        batch = jax.tree.map(lambda x: x[0], next(batches))
    losses, shares, indices, images, labels, logits = jax.device_get(decide(state, data, batch))
    handed_back = tuple(np.split(indices, np.cumsum(shares)[:-1]))
    return Feedback(students, losses, shares, handed_back, images, labels, measures.predictions(logits))
