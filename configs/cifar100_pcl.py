"""PCL on CIFAR-100: ResNet-32 with three peers, 300 epochs.

python -m orc_jax.main --config configs/cifar100_pcl.py

Its other networks: --config.teacher=X --config.student=X with resnet110_bottleneck, vgg16, densenet_40_12 or wrn_20_8.
"""

from orc_jax.recipes import online


def get_config():
    config = online()
    config.method = "pcl"
    config.num_networks = 3
    return config
