"""OKDDip on CIFAR-100: three ResNet-32 as auxiliary peers and one as group leader, 300 epochs.

python -m orc_jax.main --config configs/cifar100_okddip.py
"""

from orc_jax.recipes import online


def get_config():
    config = online()
    config.method = "okddip"
    config.num_networks = 4
    return config
