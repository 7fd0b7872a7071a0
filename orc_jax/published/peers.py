"""Rows of the methods of peers: DML, CL-ILR, ONE, OKDDip, KDCL, PCL."""

from orc_jax.published.row import Row, pair, with_fields
from orc_jax.recipes import online

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
PEERS = {
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
