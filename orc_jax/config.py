"""The fields of a run, their defaults, and the checks that need no data and no device.

`configs/*.py` start from `default()` and change what their experiment needs. The README lists every field.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from orc_jax import own
from orc_jax.errors import UserError, require, require_choice
from orc_jax.logs import tracker_names
from orc_jax.methods import METHODS
from orc_jax.methods.base import Method
from orc_jax.models import MODELS, ladder


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
    config.num_temporary_teachers = 1  # k

    # Data.
    config.dataset = "cifar100"  # "digits", "folder", any TFDS image classification set, or "my_module:MyBuilder"
    config.data_dir = ""  # "" is TFDS_DATA_DIR, or TFDS's own default; of "folder", that with train/<class>/<image>
    config.train_split = "train"  # TFDS syntax: "train[:45000]"; of "folder", the name of a folder
    config.eval_split = "test"
    config.examples_per_class = 0  # of sets in memory: train on the first so many of each class; 0 is all
    config.mean = ()  # per channel, of images in [0, 1]; () is the set's published one, or computed
    config.std = ()
    config.crop_padding = 4  # of sets in memory: zero padding before the random crop, in pixels; 0 is no crop
    config.flip = True  # random horizontal flips
    # Sets that are streamed: a folder, and sets of TFDS whose images are of many sizes.
    config.stream = dict(
        image_size=224,  # height and width as the networks get them
        crop_area=(0.08, 1.0),  # smallest and largest share of the image that a random crop takes
        eval_crop=0.875,  # centre crop over the resized short side: 224 of 256
        num_workers=-1,  # processes that decode; -1 is one per core, 0 decodes in the main process
        skip_corrupt=False,  # leave images out that cannot be decoded, with a warning, instead of stopping
    )

    # Optimisation.
    config.batch_size = 64  # global, over all devices
    config.num_epochs = 240
    config.pretrain_epochs = 240  # of the pivot teacher; 0 starts it from scratch
    config.pivot_checkpoint = ""  # workdir of a run that has trained the pivot teacher; "" pre-trains it first
    config.learning_rate = 0.05
    config.lr_schedule = "step"  # "step", "cosine" or "constant"
    config.lr_boundaries = (0.625, 0.75, 0.875)  # of "step", as fractions of the run: epochs 150, 180, 210 of 240
    config.lr_decay = 0.1  # factor of "step" at each boundary
    config.warmup_epochs = 0.0  # linear, from 0
    # By architecture. The field's recipe gives these networks 0.01 where the others have 0.05.
    config.lr_multipliers = "MobileNetV2=0.2,ShuffleV1=0.2,ShuffleV2=0.2"
    config.momentum = 0.9
    config.nesterov = False
    config.weight_decay = 5e-4
    config.dtype = "float32"  # of activations: "float32" or "bfloat16"; parameters and losses stay float32
    config.remat = False  # repeat forward passes in the backward pass instead of keeping them: a fraction of the memory
    config.seed = 0

    # What is kept and shown.
    config.eval_batch_size = 512
    config.eval_every_epochs = 1  # evaluate and save a checkpoint
    config.checkpoint_every_steps = 0  # more checkpoints, within epochs; 0 is none
    config.log_to = "tensorboard"  # "tensorboard", "wandb" (if it is installed), both with a comma, or ""
    config.log_every_steps = 50  # progress bar, and the check that no member has diverged
    # What to do when a member's loss or weights are not finite any more: "stop", or "isolate" an assistant, which is
    # never promoted from then on and left out of the ensemble (ORC and independent training).
    config.on_divergence = "stop"

    # Options of the methods: the keyword arguments of the factory of that name in `orc_jax.methods`.
    config.orc = dict(
        temperature=4.0,
        beta=0.5,
        mixup_alpha=1.0,
        feedback_fraction=1.0,
        intensive_samples="mixup",
        intensive_teaching=True,
        private_teaching=True,
        group_teaching=True,
        teaching="individual",
        role_change=True,
        temporary_teacher_logits="after",
        pivot_batch_norm="running",
        pivot_lr_multiplier=0.1,
    )
    config.dgkd = dict(temperature=5.0, lam=1.0, drop=1, kl_reduction="sum")
    config.takd = dict(temperature=5.0, lam=1.0)
    config.switokd = dict(num_teachers=1, temperature=1.0, teacher_must_lead=True, paused_statistics="moved")
    config.pcl = dict(temperature=3.0, rampup_fraction=0.2667, ema_decay=0.999, own_augmentation=True)
    config.kd = dict(temperature=4.0, alpha=0.9)
    config.dml = dict(temperature=1.0)
    config.kdcl = dict(temperature=2.0, lam=1.0, target="minlogit", own_augmentation=True)
    config.okddip = dict(
        temperature=3.0,
        weight=1.0,
        rampup_fraction=0.2667,
        projection_divisor=8,
        peers_follow_targets=True,
    )
    config.independent = dict()
    return config


def flat(config: dict, prefix: str = "") -> dict[str, Any]:
    """The fields of a config by their dotted names: `{"orc": {"beta": 0.5}}` is `{"orc.beta": 0.5}`."""
    fields = {}
    for name, value in config.items():
        fields |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return fields


def members(config: ConfigDict) -> tuple[str, ...]:
    """The architectures of the pool in member order: pivot teacher, assistants from large to small, target student.

    A pool of one is the target student alone.

    Raises:
        UserError: for an unknown architecture, or a number of assistants that does not fit `num_networks`.
    """
    for field in ("teacher", "student"):
        _require_network(f"config.{field}", config[field])
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
            _require_network("config.assistants", name, "ladder", "copies")
        if len(assistants) != count:
            raise UserError(
                f"config.assistants={config.assistants!r} names {len(assistants)} networks, but "
                f"config.num_networks={config.num_networks} leaves {count} between teacher and student"
            )
    return (config.teacher, *assistants, config.student)


def _require_network(field: str, name: str, *others: str) -> None:
    own.register_network(field, name)
    require_choice(field, name, [*others, *MODELS])


def lr_multipliers(config: ConfigDict) -> dict[str, float]:
    """`config.lr_multipliers` as a dict from architecture to factor.

    Raises:
        UserError: for an unknown architecture or a factor that is not a positive number.
    """
    result = {}
    for item in filter(None, config.lr_multipliers.split(",")):
        name, _, value = item.partition("=")
        _require_network("config.lr_multipliers", name.strip())
        try:
            factor = float(value)
        except ValueError:
            factor = 0.0
        require("config.lr_multipliers", repr(item), 0 < factor < float("inf"), "name=positive number")
        result[name.strip()] = factor
    return result


CHOICES = {
    "lr_schedule": ("step", "cosine", "constant"),
    "dtype": ("float32", "bfloat16"),
    "on_divergence": ("stop", "isolate"),
}
POSITIVE = ("batch_size", "num_epochs", "learning_rate", "eval_batch_size", "eval_every_epochs", "log_every_steps")
NOT_NEGATIVE = (
    "pretrain_epochs",
    "warmup_epochs",
    "weight_decay",
    "momentum",
    "crop_padding",
    "seed",
    "examples_per_class",
    "checkpoint_every_steps",
)


def validate(config: ConfigDict, num_devices: int) -> None:
    """Checks everything about a config that can be checked without data.

    Raises:
        UserError: naming the first field that is wrong, its value and what would be accepted.
    """
    networks = (config.teacher, config.student, *config.assistants.split(","))
    own.allow((config.method, config.dataset, *networks))
    for field, accepted in CHOICES.items():
        require_choice(f"config.{field}", config[field], accepted)
    for field, value in flat(config.to_dict()).items():
        if isinstance(value, float):
            require(f"config.{field}", value, math.isfinite(value), "a finite number")
    for field in POSITIVE:
        require(f"config.{field}", config[field], config[field] > 0, "greater than 0")
    for field in NOT_NEGATIVE:
        require(f"config.{field}", config[field], config[field] >= 0, "at least 0")
    fractions = tuple(config.lr_boundaries)
    fine = all(0 < x < 1 for x in fractions) and list(fractions) == sorted(set(fractions))
    require("config.lr_boundaries", fractions, fine, "increasing fractions between 0 and 1")
    for field in ("batch_size", "eval_batch_size"):
        if config[field] % num_devices:
            raise UserError(
                f"config.{field}={config[field]} is not divisible by the {num_devices} devices of this run: "
                f"{config[field] // num_devices * num_devices or num_devices} would be"
            )
    tracker_names(config.log_to)
    _validate_stream(config.stream)
    lr_multipliers(config)
    method = build_method(config, members(config))
    if config.on_divergence == "isolate" and not method.isolates:
        raise UserError(
            f"config.on_divergence='isolate': with config.method={config.method!r} members learn from all others, so "
            f"one that diverged cannot be left out; accepted is 'stop', or the methods orc and independent"
        )
    first_drop = min(fractions, default=1.0) if config.lr_schedule == "step" else 1.0
    pretrains = method.stages and config.pretrain_epochs and not config.pivot_checkpoint
    for field in ("num_epochs", *(["pretrain_epochs"] if pretrains else [])):
        limit = config[field] * first_drop
        accepted = f"less than {limit:g}, where the learning rate of config.{field}={config[field]} first drops or ends"
        require("config.warmup_epochs", config.warmup_epochs, config.warmup_epochs < limit, accepted)
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


def _validate_stream(stream: ConfigDict) -> None:
    require("config.stream.image_size", stream.image_size, stream.image_size > 0, "greater than 0")
    require("config.stream.eval_crop", stream.eval_crop, 0 < stream.eval_crop <= 1, "in (0, 1]")
    require("config.stream.num_workers", stream.num_workers, stream.num_workers >= -1, "-1 or more")
    area = tuple(stream.crop_area)
    fine = len(area) == 2 and 0 < area[0] <= area[1] <= 1
    require("config.stream.crop_area", area, fine, "(smallest, largest) with 0 < smallest <= largest <= 1")


_NO_OPTIONS = "empty, but for a method of your own (my_module:my_method); others have config.<method>.<option>"


def build_method(config: ConfigDict, architectures: Sequence[str]) -> Method:
    """The method of a config for a pool, made by its factory from the options of the same name.

    Raises:
        UserError: for an unknown method, an option out of its range, or a pool that the method cannot train.
    """
    if own.is_own(config.method):
        factory = own.load("config.method", config.method)
        options = own.options("config.method_options", config.method_options)
    else:
        require_choice("config.method", config.method, METHODS)
        factory, options = METHODS[config.method], config[config.method].to_dict()
        require("config.method_options", repr(config.method_options), not config.method_options, _NO_OPTIONS)
    # k belongs to the description of the pool, and to the methods that promote.
    if "num_temporary_teachers" in inspect.signature(factory).parameters:
        options["num_temporary_teachers"] = config.num_temporary_teachers
    try:
        return factory(architectures, **options)
    except TypeError as error:
        if not own.is_own(config.method):
            raise
        raise UserError(
            f"config.method={config.method!r} cannot be called as method(members, **options) with {options}: {error}"
        ) from error
