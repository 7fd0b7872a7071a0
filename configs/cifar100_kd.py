"""KD on CIFAR-100: ResNet-56 teaches ResNet-20, 240 epochs; the recipe of RepDistiller's tables.

python -m orc_jax.main --config configs/cifar100_kd.py
"""

from orc_jax.config import default


def get_config():
    config = default()
    config.method = "kd"
    config.num_networks = 2
    return config
