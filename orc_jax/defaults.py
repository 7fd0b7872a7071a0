"""The fields of a run and their defaults. `configs/*.py` change what they need to; docs/config.md lists all fields."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from orc_jax.methods import METHODS
from orc_jax.methods.base import Method


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
    config.repeated_augmentation = 1  # times that an image is in a batch, augmented anew; an epoch has as many fewer
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
    config.dropout = 0.0  # probability, in networks that have it; docs/config.md says which
    config.stochastic_depth = 0.0  # probability that the last residual branch is left out; before it less
    config.clip_norm = 0.0  # the largest global norm of each member's gradient; 0 is any
    config.accumulate_steps = 1  # a member is updated by the mean of so many gradients
    config.ema_decay = 0.0  # of exponential moving averages of the members' weights; 0 keeps none
    config.dtype = "float32"  # of activations: "float32" or "bfloat16"; parameters and losses stay float32
    config.batch_norm = "global"  # statistics of the global batch, or "local": of each device's share of it
    config.remat = False  # repeat forward passes in the backward pass instead of keeping them: a fraction of the memory
    config.seed = 0
    config.data_seed = -1  # of order, augmentation and mix-up of the batch; -1: that of `seed`
    config.replicas = 0  # runs that are trained at once, in one program; 0: as many as pay and fit, of a single run one

    # What is kept and shown.
    config.eval_batch_size = 512  # no more than the set has; rounded up to a multiple of the devices
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
