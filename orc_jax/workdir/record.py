"""The record of a run: what is kept of it beside its arrays, in `config.json` of its workdir and in every checkpoint.

Records of earlier versions are read as if this one had written them: a field of the config that has come since has its
default, one that has gone is left out.
"""

import functools
import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

import orc_jax
from orc_jax import config as configs
from orc_jax import hosts
from orc_jax.errors import UserError
from orc_jax.methods import METHODS, group_of
from orc_jax.models import LARGE, Model
from orc_jax.models.network import make_network, weight_shapes
from orc_jax.workdir.files import replace_text, writing

FILE = "config.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")
# What may differ between the config of a run and that of the command which resumes it.
FREE_FIELDS = (
    "data_dir",
    "pivot_checkpoint",
    "eval_batch_size",
    "eval_every_epochs",
    "checkpoint_every_steps",
    "log_every_steps",
    "log_to",
    "patience",
    "replicas",
    "on_divergence",
    "remat",
    *("stream.num_workers", "stream.check", "stream.skip_other_files", "stream.skip_corrupt"),
    "label_file",
    "steps_per_call",
)
# What must agree for a checkpoint to be evaluated, and what describes its pool.
EVALUATED_FIELDS = ("method", "dataset", "dtype")
PIXEL_RANGE = "stream.pixel_range"
NAMES = 4  # of classes, in a message
POOL_FIELDS = ("teacher", "student", "num_networks", "assistants")


class Record(NamedTuple):
    """What there is to know of a run, or of imported weights, without its arrays."""

    config: dict[str, Any]  # every field, as JSON has it
    architectures: tuple[str, ...]  # in member order
    num_classes: int
    class_names: tuple[str, ...]  # none of imported weights
    num_train: int
    image_shape: tuple[int, int, int]  # (height, width, channels)
    mean: tuple[float, ...]  # per channel, of images in [0, 1]
    std: tuple[float, ...]
    eval_crop: float | None  # share of the short side that evaluation keeps; None: the whole image, resized
    versions: dict[str, str]
    devices: tuple[str, ...] = ()
    imported: dict[str, str] | None = None  # the file that weights come from
    # What it was started by and on. Runs of earlier versions have neither, and no other run is refused for it.
    command: str = ""
    machine: dict[str, str] | None = None

    @property
    def fields(self) -> ConfigDict:
        """The config, as a config again."""
        return _completed(self.config)

    @property
    def pixel_range(self) -> tuple[float, ...]:
        """Black and white of images of more than 8 bits, as its networks have seen them; (): that of their mode."""
        return tuple(self.fields.stream.pixel_range)

    def seen_whole(self, whole: bool) -> bool:
        """Whether images of a streamed set are seen whole, if they are here: as when the run was started."""
        return self.eval_crop is None and (whole or self.imported is None)

    def fits(self, model: Model, image_shape: tuple[int, int, int]) -> bool:
        """Whether a network of this run has the parameters for images of `image_shape`."""
        networks = (make_network(model, self.num_classes, shape) for shape in (self.image_shape, image_shape))
        one, other = map(weight_shapes, networks)
        return one == other


def versions() -> dict[str, str]:
    """Those of the packages that a run depends on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"orc_jax": orc_jax.__version__} | found | {"python": platform.python_version()}


def command_line() -> str:
    """The command that this process was started by, as a person gives it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    started = f"python -m {spec.name.removesuffix('.__main__')}" if spec else Path(sys.argv[0]).name
    return f"{started} {shlex.join(sys.argv[1:])}".strip()


@functools.cache
def machine() -> dict[str, str]:
    """What kind of machine this is: nothing that tells it from others of its kind."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {
        "processor": model[1].strip() if model else platform.processor() or platform.machine(),
        "cores": str(cores),
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
    }


def to_json(record: Record) -> dict[str, Any]:
    """What is written of a record. The architectures are called "members" there."""
    description = {"members" if name == "architectures" else name: value for name, value in record._asdict().items()}
    if record.imported is None:
        del description["imported"]
    return description


def from_json(description: Mapping[str, Any]) -> Record:
    """The record of what was written; raises anything if it is not the description of a run."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in description.items()}
    values["architectures"], config = values["members"], _completed(values["config"])
    streamed = config.dataset == "folder" or values["architectures"][-1] in LARGE
    values = {"eval_crop": config.stream.eval_crop if streamed else None, "versions": {}} | values
    values["config"] = json.loads(config.to_json())
    return Record(**{name: value for name, value in values.items() if name in Record._fields})


def _as_meant(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of a run by the names that fields and values have now.

    The `naive` target of KDCL was once the mean of the logits, which is called `mean` since the paper's own is built.
    """
    kdcl = stored.get("kdcl", {})
    if kdcl.get("target") == "naive" and "held_out" not in kdcl:  # which came with it
        return {**stored, "kdcl": {**kdcl, "target": "mean"}}
    return stored


def _completed(stored: Mapping[str, Any]) -> ConfigDict:
    def known(values: Mapping[str, Any], fields: ConfigDict) -> dict[str, Any]:
        return {
            name: known(value, fields[name]) if isinstance(fields[name], ConfigDict) else value
            for name, value in values.items()
            if name in fields
        }

    config = configs.default()
    with config.ignore_type():  # JSON knows no tuples
        config.update(known(_as_meant(stored), config))
    if section := configs.own_section({"method": config.method, **stored}):
        config[section] = ConfigDict(stored[section])
    return config


def read(workdir: Path) -> Record | None:
    """The record of the run in `workdir`; None if there is no run.

    Raises:
        UserError: if there is one that cannot be read.
    """
    path = workdir / FILE
    if not path.exists():
        return None
    try:
        return from_json(json.loads(path.read_text()))
    except Exception as error:  # anything can be wrong with a file
        raise UserError(f"{path} is not the description of a run: {error}") from error


def require(workdir: Path) -> Record:
    """The record of the run in `workdir`.

    Raises:
        UserError: if there is no run, or it cannot be read.
    """
    record = read(workdir)
    if record is None:
        raise UserError(f"--workdir={workdir} holds no run: there is no {FILE} in it")
    return record


def write(workdir: Path, record: Record) -> None:
    """Writes the record of a run, creating its workdir. Only the first process writes.

    Raises:
        UserError: if the workdir cannot be written.
    """
    if not hosts.is_main():
        return
    with writing(f"--workdir={workdir}"):
        workdir.mkdir(parents=True, exist_ok=True)
        replace_text(workdir / FILE, json.dumps(to_json(record), indent=2) + "\n")


def differences(there: Record, here: Record) -> list[str]:
    """What keeps the run `here` from going on where the run `there` is: a line for each thing, none if it may."""
    if there.imported is not None:
        return ["  imported weights there, a run here"]
    fields = {field for field in configs.flat(here.config).keys() - set(FREE_FIELDS) if _used(field, here.config)}
    data = ("num_classes", "class_names", "image_shape", *(() if _fewer(there, here) else ("num_train",)))
    return [*_differing_fields(there, here, fields), *_differing_data(there, here, data)]


def _used(field: str, config: Mapping[str, Any]) -> bool:
    """Whether a run of this config uses a field: options of another method have no part in it.

    A stage that is of another method is a run by itself, whose own record is compared.
    """
    group = "orc" if field == "num_temporary_teachers" else field.partition(".")[0]
    return group not in METHODS or group == group_of(config["method"])


def _fewer(there: Record, here: Record) -> bool:
    """Whether images have been left out since, as a person asks for when some have turned out to be damaged."""
    return bool(here.config["stream"]["skip_corrupt"]) and here.num_train < there.num_train


def require_resumable(
    there: Record | None, here: Record, workdir: Path, warn: Callable[[str], None] = lambda line: None
) -> None:
    """Checks that the run `here` may go on from what lies in `workdir`, the run `there`, if there is any.

    `warn` is told if it goes on with fewer images.

    Raises:
        UserError: listing what differs and must not.
    """
    if there is None:
        return
    if there.imported is not None:
        raise UserError(
            f"--workdir={workdir} holds imported weights, not a run that could go on. Give it as "
            "config.pivot_checkpoint, and another --workdir"
        )
    if lines := differences(there, here):
        raise UserError(
            f"--workdir={workdir} holds another run:\n"
            + "\n".join(lines)
            + "\nGive the same fields to go on, another --workdir to start anew, or --resume=weights to start a new "
            "run here from the weights of that one, which is kept."
        )
    if _fewer(there, here):
        warn(
            f"{there.num_train - here.num_train} of {there.num_train} training images are left out from here on, so "
            "their order is another than before"
        )


def require_evaluable(there: Record, here: Record, models: Mapping[str, Model], workdir: Path) -> None:
    """Checks that checkpoints of the run `there`, in `workdir`, can be evaluated as the run `here` of `models`.

    Raises:
        UserError: listing what differs and must not.
    """
    fields = EVALUATED_FIELDS if there.architectures == here.architectures else EVALUATED_FIELDS + POOL_FIELDS
    seen_by = (PIXEL_RANGE,) if there.pixel_range else ()
    lines = _differing_fields(there, here, (*(fields if there.imported is None else ()), *seen_by))
    lines += _differing_data(there, here, ("num_classes", "class_names"))
    if not lines and not all(there.fits(models[name], here.image_shape) for name in set(here.architectures)):
        lines += _differing_data(there, here, ("image_shape",))
    if lines:
        raise UserError(
            f"--workdir={workdir} holds another run:\n" + "\n".join(lines) + "\nGive the same fields to evaluate it."
        )


def _differing_fields(there: Record, here: Record, fields: Iterable[str]) -> list[str]:
    values, others = configs.flat(here.config), configs.flat(there.config)
    differing = [field for field in sorted(fields) if _meant(field, values[field]) != _meant(field, others.get(field))]
    lines = [f"  config.{field}: {others.get(field)!r} there, {values[field]!r} here" for field in differing]
    if there.architectures != here.architectures:
        lines.append(f"  pool: {', '.join(there.architectures)} there, {', '.join(here.architectures)} here")
    return lines


def _meant(field: str, value: Any) -> Any:
    """A value of a field, or what it stands for where it is left out, as by runs from before that field."""
    return [0, 65535] if field == PIXEL_RANGE and value in ([], ()) else value


def _differing_data(there: Record, here: Record, names: Iterable[str]) -> list[str]:
    lines = []
    for name in names:
        value, other = (getattr(record, name) for record in (here, there))
        if name == "class_names" and (not other or len(other) != len(value)):
            continue  # imported weights do not know their names; other numbers are told by num_classes
        if value != other:
            if name == "class_names":
                value, other = next(pair for pair in zip(value, other, strict=True) if pair[0] != pair[1])
            lines.append(f"  {name}: {other!r} there, {value!r} here")
    return lines


def require_same_images(there: Record, here: Record, field: str, name: str, same_classes: bool = True) -> None:
    """Checks that networks of the run `there` can be taken over by the run `here`: of images that are normalised alike.

    Without `same_classes` there may be more or fewer classes there. Raises `UserError`, saying what differs, naming
    `field`, and the data set here as `name`.
    """
    channels, classes = there.image_shape[-1], there.num_classes
    if channels != here.image_shape[-1] or (same_classes and classes != here.num_classes):
        raise UserError(
            f"{field}: its networks are for {channels} channels and {classes} classes, but {name} has "
            f"{here.image_shape[-1]} and {here.num_classes}"
        )
    constants = [[list(record.mean), list(record.std)] for record in (there, here)]
    if not np.allclose(*constants, atol=0.01):
        raise UserError(
            f"{field}: its images were normalised with mean, std {constants[0]}, but here they are with "
            f"{constants[1]}; config.mean and config.std can be set"
        )


def assumed_order(there: Record, class_names: Sequence[str]) -> str | None:
    """What is to be said of the run `there` if its classes are called otherwise than `class_names`, or not at all."""
    if there.class_names == class_names:
        return None
    here = f"{', '.join(class_names[:NAMES])}{' ...' if len(class_names) > NAMES else ''}"
    if sorted(there.class_names) == sorted(class_names):
        return f"note: the classes are in another order there; the outputs are put in that of the data set: {here}"
    if there.class_names:
        others = ", ".join(there.class_names[:NAMES])
        return f"note: the classes are called {others} there and {here} here; they are taken for the same, one by one"
    line = (
        f"note: the imported weights do not know the names of their classes; taken is the order of the data set: {here}"
    )
    as_text = sorted(class_names)
    if list(class_names) == as_text:
        return f"{line}. If theirs is another, import them again with --class_names"
    return (
        f"{line}. What was trained on such folders by torchvision's ImageFolder has them in the order of text, "
        f"{', '.join(as_text[:NAMES])} ...: import it again with --class_names in that order"
    )
