"""DGKD on CIFAR-100: plain networks of 10, 8, 6, 4 and 2 layers, each taught by all larger ones; its code's recipe.

python -m orc_jax.main --config configs/cifar100_dgkd.py

For its ResNets, 56 to 20 or 8: --config.teacher=resnet56 --config.student=resnet20 --config.learning_rate=0.1
--config.lr_schedule=step --config.lr_boundaries='(0.5, 0.75)'
"""

from orc_jax.recipes import plane


def get_config():
    config = plane()
    config.method = "dgkd"
    config.num_networks = 5
    return config
