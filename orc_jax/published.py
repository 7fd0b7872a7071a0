"""The published rows: for each its config, with the recipe of its paper, and the figure that was published.

A row has a name, such as `kd/wrn_40_2/wrn_16_2`; `configs/rows.py:<name>` is its config, and
`python -m orc_jax.compare --rows=<name>` trains it and prints the figures side by side. docs/reproduce.md lists all.

How certain a figure is (its grade): A, the authors' own text, repository or code; B, quoted by others; C, quoted by a
machine-written summary, so that it very likely exists, but which cell it belongs to is not certain; D, inferred.
"""

from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from orc_jax.config import default
from orc_jax.errors import require_choice
from orc_jax.offline_figures import DIST, DKD, OF_PAIR, REPDISTILLER, REVIEWKD, SIMKD
from orc_jax.recipes import imagenet, lineage, online, plane


class Row(NamedTuple):
    """A published figure: top-1 accuracy of the target student in percent."""

    config: Callable[[], ConfigDict]
    figure: float | None  # None: not known
    spread: float | None  # standard deviation over the seeds; None: not told
    grade: str
    epoch: str  # which epoch it is of: "last", "best" or "?"
    source: str

    @property
    def text(self) -> str:
        """As it is printed: "74.14 ± 0.16 [B, ?]"."""
        if self.figure is None:
            return "not known"
        spread = "" if self.spread is None else f" ± {self.spread:.2f}"
        return f"{self.figure:.2f}{spread} [{self.grade}, {self.epoch}]"


def with_fields(make: Callable[[], ConfigDict], **fields: object) -> Callable[[], ConfigDict]:
    """What makes the config of `make` with other values of some fields; `orc__beta` is that of `orc.beta`."""

    def config() -> ConfigDict:
        changed = make()
        for name, value in fields.items():
            group, _, option = name.rpartition("__")
            (changed[group] if group else changed)[option] = value
        return changed

    return config


def pair(teacher: str, student: str, **fields: object) -> dict[str, object]:
    """The fields of a teacher and a student, and others."""
    return {"teacher": teacher, "student": student, **fields}


# RepDistiller's README: student by itself, student with KD; the last of 240 epochs.
PAIRS = {
    ("wrn_40_2", "wrn_16_2"): 74.92,
    ("wrn_40_2", "wrn_40_1"): 73.54,
    ("resnet56", "resnet20"): 70.66,
    ("resnet110", "resnet20"): 70.67,
    ("resnet110", "resnet32"): 73.08,
    ("resnet32x4", "resnet8x4"): 73.33,
    ("vgg13", "vgg8"): 72.98,
    ("vgg13", "MobileNetV2"): 67.37,
    ("ResNet50", "MobileNetV2"): 67.35,
    ("ResNet50", "vgg8"): 73.81,
    ("resnet32x4", "ShuffleV1"): 74.07,
    ("resnet32x4", "ShuffleV2"): 74.45,
    ("wrn_40_2", "ShuffleV1"): 74.83,
}
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


# Pairs that summaries of ORC name; the others are the ones that such tables usually have.
NAMED = (("wrn_40_2", "wrn_16_2"), ("resnet56", "resnet20"), ("resnet32x4", "resnet8x4"))
LIKELY = "the pair is the likely one; no figure can be quoted"
ORC = {
    "orc/cifar10/resnet26/resnet8": Row(
        with_fields(
            lineage, dataset="cifar10", num_networks=4, assistants="resnet20,resnet14", **pair("resnet26", "resnet8")
        ),
        *(None, None, "D", "?", f"Table 1: {LIKELY}"),
    ),
    **{
        f"orc/cifar100/{t}/{s}": Row(
            with_fields(default, **pair(t, s)),
            None,
            None,
            "C" if (t, s) in NAMED else "D",
            "?",
            f"Tables 2, 4: {LIKELY}",
        )
        for t, s in PAIRS
    },
    "orc/imagenet/resnet34/resnet18": Row(
        imagenet, 72.00, None, "A", "?", "README of the authors' repository: error 28.00"
    ),
}

SUMMARY = "Table of the paper, by a summary"
TEKAP = "table of TeKAP, four teachers in all"
WIDE = pair("wrn_40_2", "wrn_16_2", num_networks=5)
BASIC = pair("resnet26", "resnet8", num_networks=4, assistants="resnet20,resnet14")


def staged(method: str, make: Callable[[], ConfigDict], **fields: object) -> Callable[[], ConfigDict]:
    """What makes the config of a method that trains one network after the other."""
    return with_fields(make, method=method, **fields)


TAKD = {
    "takd/cifar10/plane10/plane2": Row(
        staged("takd", plane, dataset="cifar10", num_networks=3, assistants="plane4"), 73.51, None, "C", "best", SUMMARY
    ),
    "takd/cifar100/plane10/plane2": Row(
        staged("takd", plane, num_networks=3, assistants="plane4"), 44.92, None, "C", "best", SUMMARY
    ),
    "takd/cifar10/resnet26/resnet8": Row(
        staged("takd", lineage, dataset="cifar10", **BASIC), None, None, "D", "?", "no figure is known"
    ),
    "takd/cifar100/resnet110/resnet8": Row(
        staged(
            "takd",
            lineage,
            num_networks=3,
            assistants="resnet20",
            takd__lam=0.15,
            takd__kl_reduction="mean",
            **pair("resnet110", "resnet8"),
        ),
        *(61.82, None, "A", "best", "issue 7 of its repository: weight 0.15, T 5, seed 31"),
    ),
    "takd/cifar100/wrn_40_2/wrn_16_2": Row(staged("takd", default, **WIDE), 75.04, None, "B", "?", TEKAP),
    "takd/imagenet/resnet34/resnet18": Row(staged("takd", imagenet), 71.37, None, "C", "?", f"DGKD, {SUMMARY}"),
}
DGKD = {
    "dgkd/cifar10/plane10/plane2": Row(
        staged("dgkd", plane, dataset="cifar10", num_networks=5),
        *(None, None, "C", "?", "over TAKD by up to 1.01 points"),
    ),
    "dgkd/cifar100/plane10/plane2": Row(
        staged("dgkd", plane, num_networks=5), None, None, "C", "?", "over TAKD by up to 3.78 points"
    ),
    "dgkd/cifar10/resnet26/resnet8": Row(
        staged("dgkd", lineage, dataset="cifar10", **BASIC), None, None, "D", "?", "no figure is known"
    ),
    "dgkd/cifar100/wrn_40_2/wrn_16_2": Row(staged("dgkd", default, **WIDE), 76.24, None, "B", "?", TEKAP),
    "dgkd/imagenet/resnet34/resnet18": Row(staged("dgkd", imagenet), 71.73, None, "C", "?", SUMMARY),
}


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

# Those of PCL's paper, quoted by a reproduction's README: mean, standard deviation.
NETWORKS = ("resnet32", "resnet110_bottleneck", "vgg16_linears", "densenet_40_12_norm", "wrn_20_8")
FIGURES = {
    ("cifar100", "dml"): ((73.68, 0.14), (77.86, 0.50), (75.52, 0.10), (73.06, 0.31), (79.77, 0.07)),
    ("cifar100", "cl_ilr"): ((72.33, 0.46), (78.83, 0.58), (74.33, 0.08), (71.45, 0.34), (79.40, 0.12)),
    ("cifar100", "one"): ((73.79, 0.41), (78.40, 0.36), (74.37, 0.39), (71.60, 0.38), (79.10, 0.39)),
    ("cifar100", "okddip"): ((73.25, 0.38), (78.54, 0.26), (74.68, 0.05), (71.23, 0.14), (78.83, 0.06)),
    ("cifar100", "kdcl"): ((73.76, 0.34), (78.28, 0.32), (75.67, 0.22), (72.52, 0.42), (79.37, 0.30)),
    ("cifar100", "pcl"): ((74.14, 0.16), (79.98, 0.55), (76.89, 0.25), (73.09, 0.16), (80.51, 0.49)),
    ("cifar10", "dml"): ((93.94, 0.07), (94.53, 0.25), (94.13, 0.07), (93.59, 0.26), (95.20, 0.13)),
    ("cifar10", "cl_ilr"): ((94.02, 0.28), (95.19, 0.11), (94.14, 0.15), (93.05, 0.25), (94.59, 0.08)),
    ("cifar10", "one"): ((94.20, 0.12), (95.16, 0.30), (94.14, 0.23), (93.08, 0.21), (94.70, 0.14)),
    ("cifar10", "okddip"): ((94.17, 0.15), (95.14, 0.10), (93.98, 0.06), (92.64, 0.22), (94.83, 0.15)),
    ("cifar10", "kdcl"): ((94.01, 0.08), (95.11, 0.16), (94.09, 0.12), (93.87, 0.08), (95.27, 0.16)),
    ("cifar10", "pcl"): ((94.33, 0.12), (95.53, 0.16), (94.74, 0.02), (94.13, 0.13), (95.42, 0.04)),
}
# What the rows have besides the recipe; of one, cl_ilr and dml it is that of OKDDip's comparison, whose code exists.
OF_METHOD: dict[str, dict[str, object]] = {
    "dml": {"dml__temperature": 3.0, "dml__targets": "mean", "dml__target_gradient": True},
    "cl_ilr": {
        **{"cl_ilr__temperature": 3.0, "cl_ilr__label_weight": 1.0, "cl_ilr__weight": 1.0},
        **{"cl_ilr__rampup_fraction": 0.2667, "cl_ilr__target_gradient": True},
    },
    "one": {"one__rampup_fraction": 0.2667, "one__target_gradient": True},
    "okddip": {"num_networks": 4},  # three peers and the leader
    "kdcl": {},
    "pcl": {},
}
ONLINE = {
    f"{method}/{dataset}/{network}": Row(
        with_fields(
            online,
            **{"method": method, "dataset": dataset, **pair(network, network), "num_networks": 3, **OF_METHOD[method]},
        ),
        *(mean, spread, "B", "?", "PCL's paper, by a reproduction's README"),
    )
    for (dataset, method), figures in FIGURES.items()
    for network, (mean, spread) in zip(NETWORKS, figures, strict=True)
}


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

ROWS: dict[str, Row] = KD | OFFLINE | ORC | TAKD | DGKD | SWITOKD | ONLINE


def config_of(name: str) -> ConfigDict:
    """The config of a row.

    Raises:
        UserError: for a row that there is not.
    """
    require_choice("row", name, ROWS)
    return ROWS[name].config()
