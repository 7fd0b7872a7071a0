"""The package as a library: a config and a set go in, networks come out.

    result = orc_jax.train(config, (images, labels), (test_images, test_labels))
    network = orc_jax.load(result.workdir)
    logits = network(test_images)

What the commands do is done here, too: a workdir holds a run whether a command or a call has made it.
"""

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from flax import nnx
from ml_collections import ConfigDict
from rich.console import Console

from orc_jax import places, training
from orc_jax.config import Resolved, default, resolve
from orc_jax.config_files import check_fields
from orc_jax.data import sets
from orc_jax.data.splits import eval_splits
from orc_jax.deploy.member import Member, classifier, load_member, network_of
from orc_jax.errors import UserError
from orc_jax.pool import names_of
from orc_jax.terminal import make_console
from orc_jax.workdir import metrics
from orc_jax.workdir.metrics import Row

default_config = default
ARRAYS = "arrays"  # what a set that is given is called in the record of its run
BATCH = 256  # images that a network looks at at a time

Split = tuple[np.ndarray, np.ndarray]  # images, uint8 [n, height, width, channels], and labels, integers [n]


class Result(NamedTuple):
    """What a run has come to. Its networks lie in `workdir`: see `load`."""

    workdir: Path
    step: int  # after the last epoch
    metrics: dict[str, dict[str, float]]  # then: {"0_resnet56": {"top1", "top5", "loss"}, ..., "ensemble": ...}
    best_step: int  # of the epoch at which the target student had its highest top-1
    best_metrics: dict[str, dict[str, float]]  # then
    best_elsewhere: dict[str, dict[str, dict[str, float]]] = {}  # noqa: RUF012, never changed; then, on further splits


def train(
    config: ConfigDict | Resolved,
    train_set: Split | None = None,
    test_set: Split | None = None,
    class_names: Sequence[str] | None = None,
    *,
    workdir: str | Path | None = None,
    console: Console | None = None,
) -> Result:
    """Trains the run of a config, or goes on with it where it stopped, and returns what it has come to.

    Args:
        config: what `default_config` returns, with fields changed; or resolved already.
        train_set: images and labels to train on, instead of the set that the config names.
        test_set: images and labels to evaluate on, needed with `train_set`.
        class_names: of the labels 0, 1, ...; by default these numbers.
        workdir: where the run is kept, and goes on if it is there already. By default a new folder among the system's
            temporary files, whose name the result has.
        console: where to print; by default standard output. `rich.console.Console(quiet=True)` prints nothing.

    Raises:
        UserError: for bad input, before anything is compiled or written; if a member diverges; and if a checkpoint
            cannot be written or none restored.
        Interrupted: if the run was asked to stop, and has saved its state.
    """
    if not isinstance(config, Resolved):
        check_fields(config, "orc_jax.train")
    resolved, dataset = config if isinstance(config, Resolved) else resolve(config), None
    if train_set is not None and test_set is not None:
        resolved = resolved.replace(dataset=ARRAYS)
        dataset = sets.from_arrays(ARRAYS, train_set, test_set, class_names, resolved.config)
    elif not (train_set is test_set is class_names is None):
        raise UserError("train_set, test_set: must be given both, with or without class_names, or none of the three")
    folder = places.workdir("workdir", tempfile.mkdtemp(prefix="orc_jax_") if workdir is None else workdir)
    with _storage_is_quiet():
        training.train(resolved, folder, console or make_console(), dataset=dataset)
    rows, target = metrics.read(folder), names_of(resolved.architectures)[-1]
    last, best = metrics.evaluated(rows)[-1], metrics.best(rows, target)
    _, *others = eval_splits(resolved.config)
    elsewhere = {name: _by_member(best, f"eval_{name}") for name in others}
    return Result(folder, last["step"], _by_member(last), best["step"], _by_member(best), elsewhere)


def _by_member(row: Row, evaluation: str = "eval") -> dict[str, dict[str, float]]:
    result: dict[str, dict[str, float]] = {}
    for column, value in row.items():
        kind, _, rest = column.partition("/")
        if kind == evaluation:
            metric, _, name = rest.partition("/")
            result.setdefault(name, {})[metric] = value
    return result


@contextlib.contextmanager
def _storage_is_quiet() -> Iterator[None]:
    """Orbax tells by the way of what is as it should be; what fails is raised."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


@dataclass(frozen=True, repr=False)
class TrainedNetwork:
    """A member of a trained pool by itself, which is called on images.

    `module` is the Flax NNX module, which takes normalised float32 images and returns logits and features; `member` has
    all that is known of the network, such as its architecture, and `member.image(data)` decodes an image file as
    evaluation does.
    """

    member: Member
    module: nnx.Module
    forward: Callable[[np.ndarray], jax.Array]  # compiled: images -> logits

    @property
    def name(self) -> str:
        """As in the logs of its run: 0_resnet56."""
        return self.member.name

    @property
    def step(self) -> int:
        """Of the checkpoint."""
        return self.member.step

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the logits; numbers for imported weights that do not know theirs."""
        return self.member.class_names or tuple(map(str, range(self.member.num_classes)))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images that it takes."""
        return self.member.image_shape

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Float32 logits `[n, classes]` of uint8 images `[n, height, width, channels]`; their softmax is probabilities.

        Raises:
            UserError: if the images are not like that, of the network's height, width and channels.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape:
            height, width, channels = self.image_shape
            must = f"uint8 [n, {height}, {width}, {channels}]"
            if images.shape[1:] == (channels, height, width):
                must += "; of [n, channels, height, width]: images.transpose(0, 2, 3, 1)"
            raise UserError(f"images of {images.dtype} {list(images.shape)}: must be {must}")
        logits = np.zeros((len(images), self.member.num_classes), np.float32)
        part = np.zeros((min(BATCH, len(images)), *self.image_shape), np.uint8)  # of one size, so one compilation
        for start in range(0, len(images), BATCH):
            count = len(images[start : start + BATCH])
            part[:count] = images[start : start + BATCH]
            logits[start : start + BATCH] = self.forward(part)[:count]
        return logits

    def __repr__(self) -> str:
        height, width, channels = self.image_shape
        takes = f"uint8 [n, {height}, {width}, {channels}] -> logits [n, {self.member.num_classes}]"
        return f"<{self.name} of step {self.step}: {takes}>"


def load(
    workdir: str | Path,
    member: str = "target",
    checkpoint: str = "latest",
    *,
    own: Sequence[str] = (),
    ema: bool | None = None,
) -> TrainedNetwork:
    """A network of the run in `workdir`, which a command or `train` has made, or of imported weights.

    Args:
        workdir: of the run.
        member: "target" (the target student), "best" (the one with the highest top-1 at that checkpoint), a number, a
            name in the logs, a role, or a part of these that only one has.
        checkpoint: "latest", "best" (for the target student) or a step.
        own: what the run names of modules of one's own and may import: "my_module:MyNet".
        ema: take its averages, which the run keeps with `config.ema_decay`, or not; None is as the run evaluates.

    Raises:
        UserError: if there is no run, member, checkpoint or average like that, or it cannot be read.
    """
    with _storage_is_quiet():
        found = load_member(places.place("workdir", workdir), member, checkpoint, own, ema)
    weights = jax.device_put(found.weights)
    module = network_of(found).module(*weights)
    return TrainedNetwork(found, module, functools.partial(jax.jit(classifier(found)), weights))
