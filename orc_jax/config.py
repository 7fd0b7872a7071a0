"""What the fields of a run come to: `resolve` checks a config, once, and returns what it found; all else takes that.

`orc_jax.defaults` has the fields themselves.
"""

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict, FrozenConfigDict

from orc_jax import optim, plugins, ranges, schedules, trackers, transfer
from orc_jax.data import augment, fields, splits
from orc_jax.defaults import FIELDS, default, flat, own_section
from orc_jax.errors import UserError, require, require_choice
from orc_jax.methods import METHODS, STAGES, group_of
from orc_jax.methods.base import Method, Stage
from orc_jax.models import MODELS, Model, ladder
from orc_jax.plugins import Plugins
from orc_jax.transfer import Weights

__all__ = ["Resolved", "default", "flat", "own_section", "reopen", "resolve"]  # a config from its fields to a run


class Resolved(NamedTuple):
    """A config that was checked, and what it stands for."""

    config: FrozenConfigDict
    plugins: Plugins  # what it names of a person's own
    architectures: tuple[str, ...]  # in member order
    method: Method
    lr_multipliers: dict[str, float]  # by architecture
    optimizers: dict[str, str]  # by architecture, those that are given
    weight_decays: dict[str, float]  # likewise
    values: tuple[str, ...] = ()  # fields whose values are arguments of the compiled step, not parts of it

    @property
    def models(self) -> dict[str, Model]:
        """Those of the pool, by architecture."""
        return plugins.models(self.architectures, self.plugins)

    @property
    def starts(self) -> dict[int, Weights]:
        """The members that start from weights."""
        return transfer.sources(self.config.init, len(self.architectures))

    def with_values(self, fields: Collection[str]) -> "Resolved":
        """The same where those of `fields` that can be are arguments of the compiled step: runs that differ in these
        alone share one program."""
        decays = ["weight_decay"] if self.config.weight_decay else []  # without any, the optimizer's state is another
        can = {
            "learning_rate",
            "label_smoothing",
            *decays,
            *(f"{group_of(self.config.method)}.{option}" for option in self.method.values),
        }
        return self._replace(values=tuple(sorted(can.intersection(fields))))

    def replace(self, **fields: Any) -> "Resolved":
        """The same with other values of some fields, for a run that goes with this one. They are not checked.

        What is an argument of the compiled step here is one there, too: replicas may differ in it.
        """
        config = ConfigDict(self.config)
        config.update(fields)
        return _interpret(config, self.plugins).with_values(self.values)

    def stage(self, stage: Stage, num_epochs: int) -> "Resolved":
        """The run of a stage: its method, its members alone, and from scratch."""
        names = [self.architectures[member] for member in stage.members]
        options = self.config.method_options if stage.method == self.config.method else ""  # they are the method's
        named = plugins.load([(f"stage {stage.name!r}", stage.method)])  # by the method, which is trusted
        fields = {
            **{"method": stage.method, "method_options": options, "num_epochs": num_epochs, "pivot_checkpoint": ""},
            **{"teacher": names[0], "student": names[-1], "num_networks": len(names)},
            "assistants": ",".join(names[1:-1]),
            "init": transfer.of_part(self.config.init, len(self.architectures), stage.members),
            **stage.fields,
        }
        return self._replace(plugins={**self.plugins, **named}).replace(**fields)


def resolve(config: ConfigDict, num_devices: int | None = None, trusted: Collection[str] | None = None) -> Resolved:
    """Checks everything about a person's config that can be checked without data, and returns what it stands for.

    What it names of a module of their own is imported; of a config that is partly a file's, only what is `trusted`.
    Batches are split over `num_devices`, by default all there are.

    Raises:
        UserError: naming the first field that is wrong, its value and what would be accepted.
    """
    _check_values(config)
    num_devices = jax.device_count() if num_devices is None else num_devices
    if config.batch_size % num_devices:
        raise UserError(
            f"config.batch_size={config.batch_size} is not divisible by the {num_devices} devices of this run: "
            f"{config.batch_size // num_devices * num_devices or num_devices} would be"
        )
    trackers.names(config.log_to)
    resolved = _interpret(config, plugins.load(_names(config), trusted))
    _check_method(resolved)
    return resolved


def reopen(config: ConfigDict, trusted: Collection[str]) -> Resolved:
    """What the config in the record of a run stands for. It was checked when the run was started.

    Raises:
        UserError: if it names something of a person's own that is not among `trusted`, or not known any more.
    """
    return _interpret(config, plugins.load(_names(config), trusted))


def _names(config: ConfigDict) -> list[tuple[str, str]]:
    """What may be of a person's own, with its field."""
    names = [(field, config[field]) for field in ("teacher", "student", "method", "dataset")]
    for field in ("assistants", "frozen", *optim.BY_ARCHITECTURE):
        names += [(field, item.partition("=")[0].strip()) for item in config[field].split(",")]
    return [(f"config.{field}", name) for field, name in names]


def _interpret(config: ConfigDict, own: Plugins) -> Resolved:
    known = FIELDS | {own_section(config)}
    values = {name: value for name, value in config.items() if name in known}  # others: of methods that it is no run of
    config = ConfigDict(values | fields.at_home(config))
    architectures = _architectures(config, own)
    factors, kinds, decays = (
        optim.by_architecture(f"config.{field}", config[field], [*MODELS, *own]) for field in optim.BY_ARCHITECTURE
    )
    method = _method(config, architectures, own)
    return Resolved(FrozenConfigDict(config), own, architectures, method, factors, kinds, decays)


def _architectures(config: ConfigDict, own: Plugins) -> tuple[str, ...]:
    """Those of the pool in member order: pivot teacher, assistants from large to small, target student.

    A pool of one is the target student alone.

    Raises:
        UserError: for an unknown architecture, or a number of assistants that does not fit `num_networks`.
    """
    for field in ("teacher", "student"):
        require_choice(f"config.{field}", config[field], [*MODELS, *own])
    require("config.num_networks", config.num_networks, config.num_networks >= 1, "at least 1")
    if config.num_networks == 1:
        return (config.student,)
    count = config.num_networks - 2
    if config.assistants == "ladder":
        assistants = ladder(config.teacher, config.student, count)
    elif config.assistants == "copies":
        assistants = (config.student,) * count
    else:
        assistants = tuple(name.strip() for name in config.assistants.split(",") if name.strip())
        for name in assistants:
            require_choice("config.assistants", name, ["ladder", "copies", *MODELS, *own])
        if len(assistants) != count:
            raise UserError(
                f"config.assistants={config.assistants!r} names {len(assistants)} networks, but "
                f"config.num_networks={config.num_networks} leaves {count} between teacher and student"
            )
    return (config.teacher, *assistants, config.student)


def _method(config: ConfigDict, architectures: tuple[str, ...], own: Plugins) -> Method:
    """Made by its factory from the options of the same name.

    Raises:
        UserError: for an unknown method, an option out of its range, or a pool that the method cannot train.
    """
    if not plugins.is_own(config.method):
        if config.method not in STAGES:
            require_choice("config.method", config.method, METHODS)
        require("config.method_options", repr(config.method_options), not config.method_options, _NO_OPTIONS)
        return (METHODS | STAGES)[config.method](architectures, **config[group_of(config.method)])
    options = dict(config[section]) if (section := own_section(config)) else {}
    options |= plugins.options("config.method_options", config.method_options)
    try:
        method = own[config.method](architectures, **options)
    except TypeError as error:
        raise UserError(
            f"config.method={config.method!r} cannot be called as method(architectures, **options) with {options}: "
            f"{error}"
        ) from error
    if not isinstance(method, Method):
        raise UserError(f"config.method={config.method!r} has returned a {type(method).__name__}: must be a Method")
    return method


_NO_OPTIONS = "empty, but for a method of your own (my_module:my_method); others have config.<method>.<option>"
CHOICES = {
    **optim.CHOICES,
    **schedules.CHOICES,
    "dtype": ("float32", "bfloat16"),
    "batch_norm": ("global", "local"),
    "on_divergence": ("stop", "isolate"),
}


def _check_values(config: ConfigDict) -> None:
    """Fields by themselves."""
    fields.check(config)
    for field, accepted in CHOICES.items():
        require_choice(f"config.{field}", config[field], accepted)
    for field, value in flat(config.to_dict()).items():
        if isinstance(value, float):
            require(f"config.{field}", value, math.isfinite(value), "a finite number")
        if field.endswith("temperature"):  # its square is a factor of losses in float32
            require(f"config.{field}", value, value <= 1e6, "at most 1000000")
    for part in (ranges, augment, optim, schedules, splits, transfer):
        part.check(config)


def _check_method(resolved: Resolved) -> None:
    """Fields that have to fit the method."""
    config, method = resolved.config, resolved.method
    if config.on_divergence == "isolate" and method.spares is None:
        raise UserError(
            f"config.on_divergence='isolate': with config.method={config.method!r} members learn from all others, so "
            f"one that diverged cannot be left out; accepted is 'stop', or the methods orc and independent"
        )
    augment.check_method(config, method.decided_by_labels)
    pretrains = method.stages and config.pretrain_epochs and not config.pivot_checkpoint
    schedules.check_warmup(config, ("num_epochs", *(["pretrain_epochs"] if pretrains else [])))
    if config.pivot_checkpoint and not method.stages:
        raise UserError(
            f"config.pivot_checkpoint={config.pivot_checkpoint!r}: config.method={config.method!r} trains all members "
            "from scratch; accepted is an empty one"
        )
    if method.frozen and not config.pretrain_epochs and not config.pivot_checkpoint:
        raise UserError(
            f"config.pretrain_epochs=0: members {method.frozen} never learn from what {config.method} does, so they "
            "need pretrain_epochs greater than 0 or a config.pivot_checkpoint"
        )
    if method.tied:
        transfer.check_tied(config.init, resolved.starts, len(resolved.architectures))
