"""TAKD on CIFAR-100: plain networks of 10, 4 and 2 layers, each taught by the one before; the recipe of DGKD's code.

python -m orc_jax.main --config configs/cifar100_takd.py
"""

from orc_jax.recipes import plane


def get_config():
    config = plane()
    config.method = "takd"
    config.num_networks = 3
    config.assistants = "plane4"
    return config
