"""Training recipes that several papers share, as configs to start from. The default config is RepDistiller's."""

from ml_collections import ConfigDict

from orc_jax.config import default


def online() -> ConfigDict:
    """That of online distillation (ONE, OKDDip, PCL): ResNet-32, 300 epochs of batches of 128, rate 0.1, Nesterov."""
    config = default()
    config.teacher = config.student = "resnet32"
    config.assistants = "copies"
    config.batch_size = 128
    config.num_epochs = 300
    config.learning_rate = 0.1
    config.lr_boundaries = (0.5, 0.75)  # epochs 150 and 225
    config.nesterov = True
    return config


def plane() -> ConfigDict:
    """That of DGKD's code for plain networks: plane10 to plane2, 160 epochs, constant rate 0.01, no augmentation."""
    config = default()
    config.teacher, config.student = "plane10", "plane2"
    config.batch_size = 128
    config.num_epochs = config.pretrain_epochs = 160
    config.learning_rate = 0.01
    config.lr_schedule = "constant"
    config.weight_decay = 1e-4
    config.crop_padding = 0
    config.flip = False
    return config


def lineage() -> ConfigDict:
    """The recipe of TAKD's and DGKD's code for ResNets: 160 epochs of batches of 128, rate 0.1."""
    config = default()
    config.batch_size = 128
    config.num_epochs = config.pretrain_epochs = 160
    config.learning_rate = 0.1
    config.lr_boundaries = (0.5, 0.75)
    config.weight_decay = 1e-4
    return config


def imagenet() -> ConfigDict:
    """torchvision's recipe with 100 epochs, ResNet-34 to ResNet-18, with one more ResNet-18 as assistant."""
    config = default()
    config.dataset, config.eval_split = "imagenet2012", "validation"
    config.teacher, config.student, config.assistants, config.num_networks = "resnet34", "resnet18", "copies", 3
    config.batch_size = config.eval_batch_size = 256
    config.num_epochs = config.pretrain_epochs = 100
    config.learning_rate = 0.1
    config.lr_boundaries = (0.3, 0.6, 0.9)
    config.lr_multipliers = ""
    config.weight_decay = 1e-4
    config.log_every_steps = 100
    return config


def modern() -> ConfigDict:
    """What DeiT and ConvNeXt train with on ImageNet, each of one network by itself: 300 epochs of AdamW on a cosine,
    strong augmentation and mixed batches."""
    config = default()
    config.dataset, config.eval_split = "imagenet2012", "validation"
    config.method, config.num_networks, config.assistants = "independent", 1, ""
    config.num_epochs = config.pretrain_epochs = 300
    config.optimizer, config.weight_decay, config.weight_decay_on = "adamw", 0.05, "kernels"
    config.lr_schedule, config.lr_multipliers = "cosine", ""
    config.auto_augment, config.rand_augment = "rand", (2, 9)
    config.random_erasing, config.label_smoothing = 0.25, 0.1
    config.mixup, config.cutmix = 0.8, 1.0
    config.stochastic_depth = 0.1
    config.log_every_steps = 100
    return config


def on_cifar(config: ConfigDict) -> ConfigDict:
    """The same on CIFAR-100, in batches of 256 at a rate of 1e-3: a choice of ours, no published one."""
    config.dataset, config.eval_split = "cifar100", "test"
    config.batch_size, config.eval_batch_size = 256, 512
    config.learning_rate, config.lr_floor, config.warmup_epochs = 1e-3, 0.01, 10.0
    config.ema_decay = 0.999
    return config
