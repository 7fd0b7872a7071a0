"""ORC on scikit-learn's handwritten digits (embedded, no download): a pool of five small ResNets, minutes on a CPU.

python -m orc_jax.main --config configs/digits.py
"""

from orc_jax.config import default


def get_config():
    config = default()
    config.dataset = "digits"
    config.teacher = "resnet20"
    config.student = "resnet8"
    config.crop_padding = 1
    config.flip = False
    config.num_epochs = 30
    config.pretrain_epochs = 15
    config.warmup_epochs = 2.0
    config.log_every_steps = 5
    return config
