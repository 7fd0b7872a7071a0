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
