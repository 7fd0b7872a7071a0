"""KDCL-MinLogit on CIFAR-100: three ResNet-32, 300 epochs; the recipe with which online distillation compares.

python -m orc_jax.main --config configs/cifar100_kdcl.py
"""

from orc_jax.recipes import online


def get_config():
    config = online()
    config.method = "kdcl"
    config.num_networks = 3
    return config
