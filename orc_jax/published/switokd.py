"""Rows of SwitOKD, with the recipe of its code."""

from collections.abc import Callable

from ml_collections import ConfigDict

from orc_jax.config import default
from orc_jax.published.row import Row, pair, with_fields


def switokd(epochs: int, drops: tuple[int, ...], rate: float, **fields: object) -> Callable[[], ConfigDict]:
    """The recipe of SwitOKD's code: `epochs` in all, the rate divided by 10 from each epoch of `drops` on."""
    boundaries = tuple((drop - 1) / epochs for drop in drops)
    recipe = {"method": "switokd", "num_networks": 2, "batch_size": 128, "num_epochs": epochs, "learning_rate": rate}
    return with_fields(default, **(recipe | {"lr_boundaries": boundaries, "lr_multipliers": ""} | fields))


TINY = {
    **{"dataset": "folder", "eval_split": "val", "stream__image_size": 64, "stream__crop_area": (0.4, 1.0)},
    **{"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010), "stream__eval_crop": 1.0},
}
THREE = {"num_networks": 3, "optimizers": "MobileNetV1=adam", "weight_decays": "MobileNetV1=1e-4"}
THREE |= {"switokd__exponent": "code", "lr_multipliers": "MobileNetV1=0.1"}
TABLE_4, TABLE_7 = "Table 4, image in the authors' repository", "Table 7, image in the authors' repository"
SWITOKD = {
    "switokd/tiny_imagenet/ResNet34/mobilenet_v2_1_4": Row(
        switokd(199, (100, 140, 180), 0.01, **TINY, **pair("ResNet34", "mobilenet_v2_1_4")),
        *(58.71, 0.11, "A", "best", TABLE_4),
    ),
    "switokd/tiny_imagenet/wrn_16_2/resnet20": Row(
        switokd(199, (100, 140, 180), 0.01, **TINY, **pair("switokd_wrn_16_2", "switokd_resnet20")),
        *(55.03, 0.19, "A", "best", TABLE_4),
    ),
    "switokd/cifar10/wrn_16_8/wrn_16_1": Row(
        switokd(299, (100, 150, 200), 0.1, dataset="cifar10", **pair("switokd_wrn_16_8", "switokd_wrn_16_1")),
        *(92.50, 0.17, "A", "best", TABLE_4),
    ),
    "switokd/cifar100/wrn_16_2/MobileNetV2": Row(
        switokd(
            *(299, (140, 200, 250), 0.1), **pair("switokd_wrn_16_2", "MobileNetV2", lr_multipliers="MobileNetV2=0.1")
        ),
        *(67.24, 0.04, "A", "best", TABLE_4),
    ),
    "switokd/cifar100/1t2s": Row(
        switokd(
            *(269, (140, 200, 250), 0.1),
            **pair("switokd_wrn_16_10", "MobileNetV1", assistants="switokd_wrn_16_2", switokd__paused_step="zero_loss"),
            **THREE,
        ),
        *(64.62, None, "A", "best", TABLE_7),
    ),
    "switokd/cifar100/2t1s": Row(
        switokd(
            *(269, (140, 200, 250), 0.1),
            **pair("switokd_wrn_16_2", "MobileNetV1", assistants="switokd_wrn_16_10", switokd__num_teachers=2),
            **THREE,
        ),
        *(65.03, None, "A", "best", TABLE_7),
    ),
}
