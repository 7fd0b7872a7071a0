"""The fields of a run, their defaults, and what they come to.

`configs/*.py` start from `default()` and change what their experiment needs; docs/config.md lists every field.
`resolve` checks a config, once, and returns what it found out; all else takes that.
"""

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict, FrozenConfigDict

from orc_jax import optim, plugins, ranges, schedules, trackers, transfer
from orc_jax.data import augment, fields, splits
from orc_jax.errors import UserError, require, require_choice
from orc_jax.methods import METHODS
from orc_jax.methods.base import Method, Stage
from orc_jax.models import MODELS, Model, ladder
from orc_jax.plugins import Plugins
from orc_jax.transfer import Weights


def default() -> ConfigDict:
    """Every field of a run with its default value."""
    config = ConfigDict()

    # The method, and the pool it trains.
    config.method = "orc"  # or one of your own: "my_module:my_method"
    config.method_options = ""  # of a method of your own: "name=value,name=value"
    config.teacher = "resnet56"  # the first member: the pivot teacher, where the method has one; or "my_module:MyNet"
    config.student = "resnet20"  # the last member: the target student
    config.num_networks = 5  # all members of the pool: pivot teacher, assistants, target student
    config.assistants = "ladder"  # "ladder", "copies" (of the student), or names: "resnet44,resnet32,resnet26"

    # Data.
    config.dataset = "cifar100"  # "digits", "folder", "npz", any TFDS image classification set, "my_module:MyBuilder"
    config.data_dir = ""  # "" is TFDS_DATA_DIR, or TFDS's own; of "folder", that with train/<class>/<image>; or a .npz
    config.train_split = "train"  # TFDS syntax: "train[:45000]"; of "folder", the name of a folder
    config.eval_split = "test"
    config.eval_splits = ""  # several: the first selects the best checkpoint, the others are told; "" is `eval_split`
    config.validation_share = 0.0  # of every class, by the seed: held out of the training set, as split "validation"
    config.image_key = ""  # of TFDS: the feature that is the image; "" is the one that the set names, or its only one
    config.label_key = ""
    config.label_file = ""  # of "folder", where a split has no class folders: a file with the class of each image
    config.examples_per_class = 0  # of sets in memory: train on the first so many of each class; 0 is all
    config.balanced_sampling = False  # every class as often in an epoch, however many examples it has
    config.mean = ()  # per channel, of images in [0, 1]; () is the set's published one, or computed
    config.std = ()
    config.crop_padding = 4  # of sets in memory: zero padding before the random crop, in pixels; 0 is no crop
    config.flip = True  # random horizontal flips
    config.auto_augment = ""  # "rand", "trivial", "auto_cifar" or "auto_imagenet"; "" is none
    config.rand_augment = (2, 9)  # of "rand": operations, and their magnitude, from 0 to 30
    config.color_jitter = ()  # (brightness, contrast, saturation, hue): how far they are changed at random; () is none
    config.cutout = 0  # pixels: a square of so many is hidden; 0 is none
    config.random_erasing = 0.0  # probability that a random box is hidden
    config.mixup = 0.0  # alpha of the mix-up of the whole batch, for all networks; 0 is none
    config.cutmix = 0.0  # alpha of CutMix; with both, a batch gets the one or the other
    config.label_smoothing = 0.0  # share of each label that all classes get alike
    # Sets that are streamed: a folder, and sets of TFDS whose images are of many sizes.
    config.stream = dict(
        image_size=224,  # height and width as the networks get them
        crop_area=(0.08, 1.0),  # smallest and largest share of the image that a random crop takes
        eval_crop=0.875,  # centre crop over the resized short side: 224 of 256
        num_workers=-1,  # processes that decode; -1 is one per core, 0 decodes in the main process
        check="quick",  # of all images before training: "quick" (headers and ends of files), or "full" decodes each
        skip_corrupt=False,  # leave images out that cannot be decoded, with a warning, instead of stopping
        skip_other_files=False,  # of "folder": leave files out that are no images
        pixel_range=(),  # of more than 8 bits a channel: (black, white); () is (0, 65535) of 16 bits, and none of 32
    )

    # Optimisation.
    config.batch_size = 64  # global, over all devices
    config.num_epochs = 240
    config.pretrain_epochs = 240  # of the pivot teacher; 0 starts it from scratch
    config.pivot_checkpoint = ""  # workdir of a run that has trained the pivot teacher; "" pre-trains it first
    # Weights that members start from, "teacher=FOLDER,assistants=FOLDER,student=FOLDER:MEMBER": of a run, or imported.
    config.init = ""
    config.frozen = ""  # parts that do not learn: "backbone" (all but the classifier), "conv1,layer1"; "resnet18=conv1"
    config.learning_rate = 0.05
    config.lr_schedule = "step"  # "step", "cosine", "linear", "restarts", "one_cycle" or "constant"
    config.lr_boundaries = (0.625, 0.75, 0.875)  # of "step", as fractions of the run: epochs 150, 180, 210 of 240
    config.lr_decay = 0.1  # factor of "step" at each boundary
    config.lr_floor = 0.0  # where "cosine", "linear" and "restarts" end, as a share of the learning rate
    config.lr_restarts = (0.25, 0.5, 0.75)  # where the cosine of "restarts" begins anew, as fractions of the run
    config.warmup_epochs = 0.0  # linear, from 0
    # By architecture. The field's recipe gives these networks 0.01 where the others have 0.05.
    config.lr_multipliers = "MobileNetV2=0.2,ShuffleV1=0.2,ShuffleV2=0.2"
    config.layer_decay = 1.0  # factor of the rate from each layer to the one before it; 1 is none
    config.classifier_lr_multiplier = 1.0  # factor of the rate of the members' classifiers
    config.optimizer = "sgd"  # "sgd", "adam", "adamw", "lamb", "lion" or "muon"
    config.optimizers = ""  # by architecture, where it is another: "MobileNetV1=adam"
    config.momentum = 0.9  # of "sgd"
    config.nesterov = False
    config.weight_decay = 5e-4
    config.weight_decays = ""  # by architecture, where it is another: "MobileNetV1=1e-4"
    config.weight_decay_on = "all"  # or "kernels": not on norms, biases, position embeddings
    config.clip_norm = 0.0  # the largest global norm of each member's gradient; 0 is any
    config.accumulate_steps = 1  # a member is updated by the mean of so many gradients
    config.ema_decay = 0.0  # of exponential moving averages of the members' weights; 0 keeps none
    config.dtype = "float32"  # of activations: "float32" or "bfloat16"; parameters and losses stay float32
    config.batch_norm = "global"  # statistics of the global batch, or "local": of each device's share of it
    config.remat = False  # repeat forward passes in the backward pass instead of keeping them: a fraction of the memory
    config.seed = 0

    # What is kept and shown.
    config.eval_batch_size = 512  # rounded up to a multiple of the devices
    config.eval_every_epochs = 1  # evaluate and save a checkpoint
    config.patience = 0  # stop after so many epochs without a better top-1 of the target student; 0 never stops
    config.eval_ema = False  # evaluate the members' averages, which then select the best checkpoint, and are exported
    config.checkpoint_every_steps = 0  # more checkpoints, within epochs; 0 is none
    config.log_to = "tensorboard"  # "tensorboard", "wandb" (if it is installed), both with a comma, or ""
    config.steps_per_call = 1  # steps in one call of the program: fewer calls, for accelerators that wait for them
    config.log_every_steps = 50  # progress bar, and the check that no member has diverged
    # What to do when a member's loss or weights are not finite any more: "stop", or "isolate" an assistant, which is
    # never promoted from then on and left out of the ensemble (ORC and independent training).
    config.on_divergence = "stop"

    # Options of the methods: the keyword arguments of the factory of that name in `orc_jax.methods`, declared there.
    for name, factory in METHODS.items():
        config[name] = ConfigDict(options_of(factory))
    config.num_temporary_teachers = config.orc.get_ref("num_temporary_teachers")  # k: the same field by a shorter name
    return config


def options_of(factory: Callable[..., Method]) -> dict[str, Any]:
    """The keyword arguments of a method's factory, with their defaults."""
    parameters = inspect.signature(factory).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


FIELDS = frozenset(default())
BY_ARCHITECTURE = ("lr_multipliers", "optimizers", "weight_decays")  # in the order in which `Resolved` has them


def own_section(config: Mapping[str, Any] | ConfigDict) -> str | None:
    """The group of fields that a config file has for a method of its own: `mean_teacher` of `mine:mean_teacher`."""
    name = config["method"].rpartition(":")[2]
    return name if name in config and name not in FIELDS else None


def flat(config: dict, prefix: str = "") -> dict[str, Any]:
    """The fields of a config by their dotted names: `{"orc": {"beta": 0.5}}` is `{"orc.beta": 0.5}`."""
    fields = {}
    for name, value in config.items():
        fields |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return fields


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
        can = {"learning_rate", *(f"{self.config.method}.{option}" for option in self.method.values)}
        return self._replace(values=tuple(sorted(can.intersection(fields))))

    def replace(self, **fields: Any) -> "Resolved":
        """The same with other values of some fields, for a run that goes with this one. They are not checked."""
        config = ConfigDict(self.config)
        config.update(fields)
        return _interpret(config, self.plugins)

    def stage(self, stage: Stage, num_epochs: int) -> "Resolved":
        """The run of a stage: its method, its members alone, and from scratch."""
        names = [self.architectures[member] for member in stage.members]
        options = self.config.method_options if stage.method == self.config.method else ""  # they are the method's
        named = plugins.load([(f"stage {stage.name!r}", stage.method)])  # by the method, which is trusted
        return self._replace(plugins={**self.plugins, **named}).replace(
            **{"method": stage.method, "method_options": options, "num_epochs": num_epochs, "pivot_checkpoint": ""},
            **{"teacher": names[0], "student": names[-1], "num_networks": len(names)},
            assistants=",".join(names[1:-1]),
            init=transfer.of_part(self.config.init, len(self.architectures), stage.members),
        )


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
    for field in ("assistants", "frozen", *BY_ARCHITECTURE):
        names += [(field, item.partition("=")[0].strip()) for item in config[field].split(",")]
    return [(f"config.{field}", name) for field, name in names]


def _interpret(config: ConfigDict, own: Plugins) -> Resolved:
    known = FIELDS | {own_section(config)}
    values = {name: value for name, value in config.items() if name in known}  # others: of methods that it is no run of
    config = ConfigDict(values | fields.at_home(config))
    architectures = _architectures(config, own)
    factors, kinds, decays = (
        optim.by_architecture(f"config.{field}", config[field], [*MODELS, *own]) for field in BY_ARCHITECTURE
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
        require_choice("config.method", config.method, METHODS)
        require("config.method_options", repr(config.method_options), not config.method_options, _NO_OPTIONS)
        return METHODS[config.method](architectures, **config[config.method])
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
