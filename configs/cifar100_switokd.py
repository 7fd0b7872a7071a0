"""SwitOKD on CIFAR-100: WRN-16-2 and MobileNetV2 (half width) together from scratch; the recipe of its code.

python -m orc_jax.main --config configs/cifar100_switokd.py

Its own networks and numbers, row by row: configs/rows.py:switokd/cifar100/wrn_16_2/MobileNetV2

Two teachers and one student (2T1S): --config.num_networks=3 --config.switokd.num_teachers=2
--config.teacher=wrn_16_10 --config.assistants=wrn_16_2
"""

from orc_jax.config import default


def get_config():
    config = default()
    config.method = "switokd"
    config.teacher, config.student = "wrn_16_2", "MobileNetV2"
    config.num_networks = 2
    config.batch_size = 128
    config.num_epochs = 300
    config.learning_rate = 0.1
    config.lr_multipliers = "MobileNetV2=0.1"
    config.lr_boundaries = (140 / 300, 200 / 300, 250 / 300)
    return config
