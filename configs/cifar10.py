"""ORC on CIFAR-10: ResNet-56 to ResNet-20 with a ladder of three assistants, 240 epochs.

python -m orc_jax.main --config configs/cifar10.py

For another TFDS set of images of one size: --config.dataset=svhn_cropped --config.flip=False
"""

from orc_jax.config import default


def get_config():
    config = default()
    config.dataset = "cifar10"
    return config
