"""ORC on CIFAR-100: ResNet-56 to ResNet-20 with a ladder of three assistants, 240 epochs.

python -m orc_jax.main --config configs/cifar100.py
"""

from orc_jax.config import default


def get_config():
    return default()
