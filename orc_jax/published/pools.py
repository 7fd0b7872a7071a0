"""Rows of the methods of a pool of one teacher, assistants and one student: ORC, TAKD, DGKD."""

from collections.abc import Callable

from ml_collections import ConfigDict

from orc_jax.config import default
from orc_jax.published.row import PAIRS, Row, pair, with_fields
from orc_jax.recipes import imagenet, lineage, plane

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
