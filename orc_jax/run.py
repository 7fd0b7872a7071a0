"""A run, built from its config: the parts that training and evaluation share, none of which changes."""

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from orc_jax import optim, parallel, step
from orc_jax.config import build_method, lr_multipliers
from orc_jax.data.batches import last_step
from orc_jax.data.sets import Dataset
from orc_jax.errors import UserError
from orc_jax.methods.base import Method
from orc_jax.pool import make_pool

# What may differ between the config of a run and that of the command which resumes it.
FREE_FIELDS = (
    "data_dir",
    "pivot_checkpoint",
    "eval_batch_size",
    "eval_every_epochs",
    "log_every_steps",
)
# What must agree for a checkpoint to be evaluated, and what describes its pool.
EVALUATED_FIELDS = ("method", "dataset", "dtype")
POOL_FIELDS = ("teacher", "student", "num_networks", "assistants")


class Run(NamedTuple):
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
        versions = {name: importlib.metadata.version(name) for name in packages}
        return {
            "config": json.loads(self.config.to_json()),
            "members": list(self.setup.pool.architectures),
            "num_classes": self.dataset.num_classes,
            "image_shape": list(self.dataset.train.images.shape[1:]),
            "mean": list(self.setup.mean),
            "std": list(self.setup.std),
            "versions": versions | {"python": platform.python_version()},
            "devices": [device.device_kind for device in self.devices],
        }


def build(config: ConfigDict, dataset: Dataset, devices: Sequence[jax.Device], architectures: Sequence[str]) -> Run:
    """A run of the members `architectures` on `dataset`. Compiles nothing and writes nothing."""
    num_train = len(dataset.train.labels)
    num_steps = last_step(config.num_epochs, config.batch_size, num_train)
    channels = dataset.train.images.shape[-1]
    pool = make_pool(
        architectures,
        num_classes=dataset.num_classes,
        in_channels=channels,
        dtype=config.dtype,
        axis_name=parallel.AXIS,
    )
    setup = step.Setup(
        pool=pool,
        optimizer=optim.sgd_direction(config.momentum, config.nesterov, config.weight_decay),
        learning_rate=optim.learning_rate_schedule(config, num_train / config.batch_size, num_steps),
        lr_multipliers=lr_multipliers(config),
        mean=dataset.mean,
        std=dataset.std,
        crop_padding=config.crop_padding,
        flip=config.flip,
        axis_name=parallel.AXIS,
    )
    return Run(config, dataset, devices, build_method(config), setup, num_steps)


def abstract_state(run: Run) -> step.TrainState:
    """Shapes and types of the state of `run`."""
    return jax.eval_shape(lambda: step.init_state(run.setup, run.method.metrics, 0))


def check_same(run: Run, description: dict | None, workdir: Path, *, evaluate: bool) -> None:
    """Checks that `run` may go on from what lies in `workdir`.

    Raises:
        UserError: listing the fields that differ and must not.
    """
    if description is None:
        return
    saved, now = description["config"], run.description()["config"]
    members = list(run.setup.pool.architectures)
    other_pool = description["members"] != members
    differing = [key for key in sorted(set(saved) | set(now)) if saved.get(key) != now.get(key)]
    if evaluate:
        differing = [k for k in differing if k in EVALUATED_FIELDS or (other_pool and k in POOL_FIELDS)]
    else:
        differing = [k for k in differing if k not in FREE_FIELDS]
    lines = [f"  config.{key}: {saved.get(key)!r} there, {now.get(key)!r} here" for key in differing]
    if other_pool:
        lines.append(f"  pool: {', '.join(description['members'])} there, {', '.join(members)} here")
    if description["num_classes"] != run.dataset.num_classes:
        lines.append(f"  classes: {description['num_classes']} there, {run.dataset.num_classes} here")
    if lines:
        remedy = (
            "Give the same fields" if evaluate else "Give the same fields to go on, or another --workdir to start anew"
        )
        raise UserError(f"--workdir={workdir} holds another run:\n" + "\n".join(lines) + f"\n{remedy}.")
