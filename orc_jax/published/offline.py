"""Rows of the methods of one fixed teacher, with RepDistiller's recipe."""

from collections.abc import Callable

from ml_collections import ConfigDict

from orc_jax.config import default
from orc_jax.published.row import PAIRS, Row, pair, with_fields

KD = {
    f"kd/{t}/{s}": Row(
        with_fields(default, method="kd", num_networks=2, **pair(t, s)),
        figure,
        None,
        "A",
        "last",
        "RepDistiller's README",
    )
    for (t, s), figure in PAIRS.items()
}

# RepDistiller's README, as `PAIRS` and in its order. None: not to be trained, because FSP needs maps of as many
# channels.
REPDISTILLER = {
    "fitnets": (73.58, 72.24, 69.21, 68.99, 71.06, 73.50, 71.02, 64.14, 63.16, 70.69, 73.59, 73.54, 73.73),
    "at": (74.08, 72.77, 70.55, 70.22, 72.31, 73.44, 71.43, 59.40, 58.58, 71.84, 71.73, 72.73, 73.32),
    "sp": (73.83, 72.43, 69.67, 70.04, 72.69, 72.94, 72.68, 66.30, 68.08, 73.34, 73.48, 74.56, 74.52),
    "vid": (74.11, 73.30, 70.38, 70.16, 72.61, 73.09, 71.23, 65.56, 67.57, 70.30, 73.38, 73.40, 73.61),
    "nst": (73.68, 72.24, 69.60, 69.53, 71.96, 73.30, 71.53, 58.16, 64.96, 71.28, 74.12, 74.68, 74.89),
    "cc": (73.56, 72.21, 69.63, 69.48, 71.48, 72.97, 70.71, 64.86, 65.43, 70.25, 71.14, 71.29, 71.38),
    "rkd": (73.35, 72.22, 69.61, 69.25, 71.82, 71.90, 71.48, 64.52, 64.43, 71.50, 72.28, 73.21, 72.21),
    "pkt": (74.54, 73.45, 70.34, 70.25, 72.61, 73.64, 72.88, 67.13, 66.52, 73.01, 74.10, 74.69, 73.89),
    "crd": (75.48, 74.14, 71.16, 71.46, 73.48, 75.51, 73.94, 69.73, 69.11, 74.30, 75.11, 75.65, 76.05),
    "ft": (73.25, 71.59, 69.84, 70.22, 72.37, 72.86, 70.58, 61.78, 60.99, 70.29, 71.75, 72.50, 72.03),
    "ab": (72.50, 72.38, 69.47, 69.53, 70.98, 73.17, 70.94, 66.06, 67.20, 70.65, 73.55, 74.31, 73.34),
    "fsp": (72.91, None, 69.95, 70.11, 71.89, 72.62, 70.23, *[None] * 6),
}
# What the recipe has besides, by method and student.
OF_PAIR = {("ft", "vgg8"): {"ft__learning_rate": 0.05}}
# mdistiller's README, with the beta of each pair.
DKD = {
    ("wrn_40_2", "wrn_16_2"): (76.23, 6.0),
    ("wrn_40_2", "wrn_40_1"): (74.81, 6.0),
    ("resnet56", "resnet20"): (71.97, 2.0),
    ("resnet110", "resnet32"): (74.11, 2.0),
    ("resnet32x4", "resnet8x4"): (76.32, 8.0),
    ("vgg13", "vgg8"): (74.68, 6.0),
    ("vgg13", "MobileNetV2"): (69.71, 6.0),
    ("ResNet50", "MobileNetV2"): (70.35, 8.0),
    ("resnet32x4", "ShuffleV1"): (76.45, 8.0),
    ("resnet32x4", "ShuffleV2"): (77.07, 8.0),
    ("wrn_40_2", "ShuffleV1"): (76.70, 8.0),
}
DIST = {
    ("wrn_40_2", "wrn_40_1"): (74.43, 0.24),
    ("resnet56", "resnet20"): (71.75, 0.30),
    ("resnet32x4", "resnet8x4"): (76.31, 0.19),
    ("ResNet50", "MobileNetV2"): (68.66, 0.23),
    ("resnet32x4", "ShuffleV1"): (76.34, 0.18),
    ("resnet32x4", "ShuffleV2"): (77.35, 0.25),
}
# Quoted by a reproduction study, with the weight of each pair.
REVIEWKD = {
    ("wrn_40_2", "wrn_16_2"): (76.12, 5.0),
    ("wrn_40_2", "wrn_40_1"): (75.09, 5.0),
    ("resnet56", "resnet20"): (71.89, 0.6),
    ("resnet110", "resnet32"): (73.89, 1.0),
    ("resnet32x4", "resnet8x4"): (75.63, 5.0),
    ("resnet32x4", "ShuffleV1"): (77.45, 5.0),
    ("resnet32x4", "ShuffleV2"): (77.78, 8.0),
    ("wrn_40_2", "ShuffleV1"): (77.14, 5.0),
}
SIMKD = {("resnet32x4", "resnet8x4"): 78.08, ("resnet32x4", "vgg8"): 75.76}


def taught(method: str, teacher: str, student: str, **fields: object) -> Callable[[], ConfigDict]:
    """What makes the config of an offline method with RepDistiller's recipe."""
    return with_fields(default, method=method, num_networks=2, **pair(teacher, student), **fields)


OFFLINE = {
    **{
        f"{method}/{t}/{s}": Row(
            taught(method, t, s, **OF_PAIR.get((method, s), {})), figure, None, "A", "last", "RepDistiller's README"
        )
        for method, figures in REPDISTILLER.items()
        for (t, s), figure in zip(PAIRS, figures, strict=True)
        if figure
    },
    **{
        f"dkd/{t}/{s}": Row(taught("dkd", t, s, dkd__beta=beta), figure, None, "A", "best", "mdistiller's README")
        for (t, s), (figure, beta) in DKD.items()
    },
    **{
        f"dist/{t}/{s}": Row(taught("dist", t, s), mean, spread, "A", "?", "README of its repository")
        for (t, s), (mean, spread) in DIST.items()
    },
    **{
        f"reviewkd/{t}/{s}": Row(
            taught("reviewkd", t, s, reviewkd__weight=weight, batch_size=128, learning_rate=0.1, nesterov=True),
            figure,
            None,
            "B",
            "best",
            "Its paper, as a reproduction study quotes it",
        )
        for (t, s), (figure, weight) in REVIEWKD.items()
    },
    **{
        f"simkd/{t}/{s}": Row(taught("simkd", t, s), figure, None, "A", "?", "README of its repository")
        for (t, s), figure in SIMKD.items()
    },
}
