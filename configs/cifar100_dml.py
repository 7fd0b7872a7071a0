"""DML on CIFAR-100: two ResNet-32 teach each other, 300 epochs; the recipe with which online distillation compares.

python -m orc_jax.main --config configs/cifar100_dml.py

Its paper's own: --config.num_epochs=200 --config.batch_size=64 --config.lr_boundaries='(0.3, 0.6, 0.9)'
"""

from orc_jax.recipes import online


def get_config():
    config = online()
    config.method = "dml"
    config.num_networks = 2
    return config
