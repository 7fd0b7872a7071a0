"""A run, built from its config: the parts that training and evaluation share, none of which changes."""

import importlib.metadata
import json
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

import orc_jax
from orc_jax import optim, parallel, step
from orc_jax.config import build_method, flat, lr_multipliers
from orc_jax.data.batches import last_step
from orc_jax.data.sets import Dataset
from orc_jax.errors import UserError
from orc_jax.methods.base import Method
from orc_jax.pool import make_network, make_pool

# What may differ between the config of a run and that of the command which resumes it.
FREE_FIELDS = (
    "data_dir",
    "pivot_checkpoint",
    "eval_batch_size",
    "eval_every_epochs",
    "checkpoint_every_steps",
    "log_every_steps",
    "log_to",
    "on_divergence",
    "remat",
    "stream.num_workers",
)
# What must agree for a checkpoint to be evaluated, and what describes its pool.
EVALUATED_FIELDS = ("method", "dataset", "dtype")
POOL_FIELDS = ("teacher", "student", "num_networks", "assistants")


class Run(NamedTuple):
    """What is fixed about a run before it starts."""

    config: ConfigDict
    dataset: Dataset
    devices: Sequence[jax.Device]
    method: Method
    setup: step.Setup
    num_steps: int

    @property
    def sharding(self):
        return parallel.replicated(self.devices)

    def description(self) -> dict:
        """What is kept beside the run's checkpoints: resolved config, pool, data and versions."""
        packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")
        versions = {"orc_jax": orc_jax.__version__}
        versions |= {name: importlib.metadata.version(name) for name in packages}
        return {
            "config": json.loads(self.config.to_json()),
            "members": list(self.setup.pool.architectures),
            "num_classes": self.dataset.num_classes,
            "class_names": list(self.dataset.class_names),
            "num_train": self.dataset.num_train,
            "image_shape": list(self.dataset.image_shape),
            "mean": list(self.setup.mean),
            "std": list(self.setup.std),
            "eval_crop": self.config.stream.eval_crop if self.dataset.is_streamed else None,
            "versions": versions | {"python": platform.python_version()},
            "devices": [device.device_kind for device in self.devices],
        }


def build(config: ConfigDict, dataset: Dataset, devices: Sequence[jax.Device], architectures: Sequence[str]) -> Run:
    """A run of the members `architectures` on `dataset`. Compiles nothing and writes nothing."""
    num_steps = last_step(config.num_epochs, config.batch_size, dataset.num_train)
    pool = make_pool(
        architectures,
        num_classes=dataset.num_classes,
        image_shape=dataset.image_shape,
        dtype=config.dtype,
        axis_name=parallel.AXIS,
        remat=config.remat,
    )
    method = build_method(config, architectures)
    setup = step.Setup(
        pool=pool,
        image_shape=dataset.image_shape,
        optimizer=optim.sgd_direction(config.momentum, config.nesterov, config.weight_decay),
        learning_rate=optim.learning_rate_schedule(config, dataset.num_train / config.batch_size, num_steps),
        lr_multipliers=lr_multipliers(config),
        mean=dataset.mean,
        std=dataset.std,
        # the images of a streamed set come augmented
        crop_padding=0 if dataset.is_streamed else config.crop_padding,
        flip=config.flip and not dataset.is_streamed,
        views=method.views,
        num_steps=num_steps,
        axis_name=parallel.AXIS,
    )
    return Run(config, dataset, devices, method, setup, num_steps)


def abstract_state(run: Run) -> step.TrainState:
    """Shapes and types of the state of `run`."""
    return jax.eval_shape(lambda: step.init_state(run.setup, run.method, 0))


def fits(description: dict, architecture: str, image_shape: Sequence[int]) -> bool:
    """Whether a network of the run that `description` describes has the parameters for images of `image_shape`."""
    shapes = []
    for shape in (description["image_shape"], image_shape):
        network = make_network(architecture, description["num_classes"], tuple(shape), "float32", None)
        shapes.append(jax.tree.map(lambda x: x.shape, jax.eval_shape(network.init, jax.random.key(0))))
    return shapes[0] == shapes[1]


def check_resumable(run: Run, description: dict | None, workdir: Path) -> None:
    """Checks that `run` may go on from what lies in `workdir`, which `description` describes, if there is anything.

    Raises:
        UserError: listing what differs and must not.
    """
    if description is None:
        return
    if "imported" in description:
        raise UserError(
            f"--workdir={workdir} holds imported weights, not a run that could go on. Give it as "
            "config.pivot_checkpoint, and another --workdir"
        )
    here = run.description()
    fields = (flat(description["config"]) | flat(here["config"])).keys() - set(FREE_FIELDS)
    lines = _differing_fields(description, here, fields)
    lines += _differing_data(description, here, ("num_classes", "class_names", "image_shape", "num_train"))
    if lines:
        raise UserError(
            f"--workdir={workdir} holds another run:\n"
            + "\n".join(lines)
            + "\nGive the same fields to go on, another --workdir to start anew, or --resume=weights to start a new "
            "run here from the weights of that one, which is kept."
        )


def check_evaluable(run: Run, description: dict, workdir: Path) -> None:
    """Checks that checkpoints of the run in `workdir`, which `description` describes, can be evaluated as `run`.

    Raises:
        UserError: listing what differs and must not.
    """
    here = run.description()
    fields = EVALUATED_FIELDS
    if description["members"] != here["members"]:
        fields += POOL_FIELDS
    lines = _differing_fields(description, here, set(fields) & description["config"].keys())
    lines += _differing_data(description, here, ("num_classes", "class_names"))
    if not lines and not all(fits(description, name, here["image_shape"]) for name in set(here["members"])):
        lines += _differing_data(description, here, ("image_shape",))
    if lines:
        raise UserError(
            f"--workdir={workdir} holds another run:\n" + "\n".join(lines) + "\nGive the same fields to evaluate it."
        )


def _differing_fields(there: dict, here: dict, fields: Iterable[str]) -> list[str]:
    values, others = flat(here["config"]), flat(there["config"])
    differing = [field for field in sorted(fields) if values.get(field) != others.get(field)]
    lines = [f"  config.{field}: {others.get(field)!r} there, {values.get(field)!r} here" for field in differing]
    if there["members"] != here["members"]:
        lines.append(f"  pool: {', '.join(there['members'])} there, {', '.join(here['members'])} here")
    return lines


def _differing_data(there: dict, here: dict, keys: Sequence[str]) -> list[str]:
    lines = []
    for key in keys:
        if key == "class_names" and (not there[key] or len(there[key]) != len(here[key])):
            continue  # imported weights do not know their names; other numbers are told by num_classes
        if there[key] != here[key]:
            value, other = here[key], there[key]
            if key == "class_names":
                value, other = next(pair for pair in zip(value, other, strict=True) if pair[0] != pair[1])
            lines.append(f"  {key}: {other!r} there, {value!r} here")
    return lines
