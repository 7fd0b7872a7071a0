"""One ResNet-20 on CIFAR-100 from the labels alone, 240 epochs: the baseline of RepDistiller's tables.

python -m orc_jax.main --config configs/cifar100_independent.py

In the recipe of the online distillation papers, see configs/cifar100_dml.py: --config.method=independent
"""

from orc_jax.config import default


def get_config():
    config = default()
    config.method = "independent"
    config.num_networks = 1
    return config
