"""The options of the methods: their defaults are what the papers say, and what is out of range is refused."""

import pytest

from orc_jax.config import default, resolve
from orc_jax.defaults import options_of
from orc_jax.errors import UserError
from orc_jax.methods import BRANCHED, METHODS, OFFLINE

# As the papers have them, or their authors' code; docs/methods.md says where neither tells. 80 of 300 epochs are
# 0.2667 of a run.
DEFAULTS = {
    "orc": {
        "num_temporary_teachers": 1,
        "temperature": 4.0,
        "beta": 0.5,
        "mixup_alpha": 1.0,
        "feedback_fraction": 1.0,
        "feedback_rule": "hardest",
        "intensive_samples": "mixup",
        "intensive_teaching": True,
        "private_teaching": True,
        "group_teaching": True,
        "teaching": "individual",
        "role_change": True,
        "temporary_teacher_logits": "after",
        "pivot_batch_norm": "running",
        "pivot_lr_multiplier": 0.1,
    },
    "dgkd": {"temperature": 5.0, "lam": 1.0, "drop": 1, "kl_reduction": "sum"},
    "takd": {"temperature": 5.0, "lam": 1.0, "kl_reduction": "sum"},
    "switokd": {
        "num_teachers": 1,
        "temperature": 1.0,
        "teacher_must_lead": True,
        "paused_statistics": "moved",
        "exponent": "own",
        "paused_step": "skipped",
    },
    "pcl": {
        "temperature": 3.0,
        "rampup_fraction": 0.2667,
        "ema_decay": 0.999,
        "own_augmentation": True,
        "trunk_statistics": "mean",
        "classifiers": "own",
    },
    "kd": {"temperature": 4.0, "alpha": 0.9, "weight": 1.0, "standardize": False},
    "dkd": {"temperature": 4.0, "alpha": 1.0, "beta": 8.0, "warmup_epochs": 20, "standardize": False},
    "dist": {"temperature": 4.0, "beta": 2.0, "gamma": 2.0},
    "rkd": {"distance_weight": 25.0, "angle_weight": 50.0},
    "pkt": {"weight": 30000.0},
    "cc": {"weight": 0.02, "dim": 128},
    "mlkd": {"temperature": 4.0, "label_weight": 0.1, "weight": 0.9, "standardize": False},
    "crd": {
        "weight": 0.8,
        "temperature": 0.07,
        "dim": 128,
        "negatives": 16384,
        "momentum": 0.5,
        "replacement": False,
    },
    "at": {"weight": 1000.0, "power": 2},
    "sp": {"weight": 3000.0},
    "fitnets": {"weight": 100.0, "layer": 2},
    "vid": {"weight": 1.0, "trained_variance": True},
    "nst": {"weight": 50.0},
    "reviewkd": {"weight": 5.0, "warmup_epochs": 20},
    "ofd": {"weight": 1.0},
    "simkd": {"factor": 2},
    "ft": {"weight": 200.0, "share": 0.5, "epochs": 30, "learning_rate": 0.01},
    "ab": {"weight": 3.0, "epochs": 30, "kd_weight": 0.0, "temperature": 4.0},
    "fsp": {"epochs": 30},
    "dml": {"temperature": 1.0, "targets": "each", "target_gradient": False, "sequential": False},
    "kdcl": {"temperature": 2.0, "lam": 1.0, "target": "minlogit", "own_augmentation": True, "held_out": 0.1},
    "okddip": {
        "temperature": 3.0,
        "weight": 1.0,
        "rampup_fraction": 0.2667,
        "projection_divisor": 8,
        "peers_follow_targets": True,
        "branches": False,
    },
    "one": {"temperature": 3.0, "weight": 1.0, "rampup_fraction": 0.0, "target_gradient": False},
    "cl_ilr": {
        "temperature": 2.0,
        "label_weight": 0.5,
        "weight": 0.5,
        "rampup_fraction": 0.0,
        "rescaling": True,
        "target_gradient": False,
    },
    "independent": {},
}


def test_defaults_are_those_of_the_papers():
    """By the factories' signatures, and so by the config."""
    assert {name: options_of(factory) for name, factory in METHODS.items()} == DEFAULTS
    assert {name: default()[name].to_dict() for name in METHODS} == DEFAULTS


TEMPERATURES = [name for name, options in DEFAULTS.items() if "temperature" in options]
AT_LEAST_0 = {
    "one": ["weight"],
    "cl_ilr": ["weight"],
    "kd": ["weight"],
    "dkd": ["alpha", "beta"],
    "dist": ["beta", "gamma"],
    "rkd": ["distance_weight", "angle_weight"],
    "pkt": ["weight"],
    "mlkd": ["label_weight", "weight"],
    "ab": ["weight", "kd_weight"],
    **dict.fromkeys(("cc", "crd", "at", "sp", "nst", "fitnets", "vid", "ofd", "reviewkd", "ft"), ("weight",)),
}
REFUSED = [
    *(
        (name, {"temperature": value}, f"config.{name}.temperature={value}: must be greater than 0")
        for name in TEMPERATURES
        for value in (0.0, -1.0)
    ),
    ("orc", {"num_temporary_teachers": 0}, "config.num_temporary_teachers=0: must be at least 1"),
    ("orc", {"beta": 1.5}, "config.orc.beta=1.5: must be between 0 and 1"),
    ("orc", {"beta": -0.5}, "config.orc.beta=-0.5: must be between 0 and 1"),
    ("orc", {"mixup_alpha": 0.0}, "config.orc.mixup_alpha=0.0: must be greater than 0"),
    ("orc", {"feedback_fraction": 0.0}, "config.orc.feedback_fraction=0.0: must be in"),
    ("orc", {"feedback_fraction": 1.5}, "config.orc.feedback_fraction=1.5: must be in"),
    ("orc", {"pivot_lr_multiplier": 0.0}, "config.orc.pivot_lr_multiplier=0.0: must be greater than 0"),
    ("orc", {"intensive_samples": "mixed"}, "config.orc.intensive_samples='mixed'.*: mixup, feedback, training"),
    (
        "orc",
        {"teaching": "individul"},
        "config.orc.teaching='individul'.*Did you mean individual?.*: individual, ensemble",
    ),
    (
        "orc",
        {"temporary_teacher_logits": "later"},
        "config.orc.temporary_teacher_logits='later'.*Accepted: after, before",
    ),
    ("orc", {"pivot_batch_norm": "run"}, "config.orc.pivot_batch_norm='run'.*Accepted: running, batch"),
    ("dgkd", {"lam": 1.5}, "config.dgkd.lam=1.5: must be between 0 and 1"),
    ("dgkd", {"lam": -0.1}, "config.dgkd.lam=-0.1: must be between 0 and 1"),
    ("dgkd", {"drop": -1}, "config.dgkd.drop=-1: must be at least 0"),
    ("dgkd", {"kl_reduction": "batchmean"}, "config.dgkd.kl_reduction='batchmean' is not known.*sum, mean"),
    ("takd", {"lam": -0.1}, "config.takd.lam=-0.1: must be between 0 and 1"),
    ("takd", {"lam": 1.1}, "config.takd.lam=1.1: must be between 0 and 1"),
    ("switokd", {"num_teachers": 0}, "config.switokd.num_teachers=0: must be at least 1, and less than"),
    ("switokd", {"num_teachers": 5}, "config.switokd.num_teachers=5: must be at least 1, and less than"),
    ("switokd", {"paused_statistics": "move"}, "config.switokd.paused_statistics='move'.*mean moved?.*: moved, kept"),
    ("kd", {"alpha": 1.5}, "config.kd.alpha=1.5: must be between 0 and 1"),
    ("kd", {"alpha": -0.5}, "config.kd.alpha=-0.5: must be between 0 and 1"),
    ("kdcl", {"lam": -1.0}, "config.kdcl.lam=-1.0: must be at least 0"),
    (
        "kdcl",
        {"target": "generals"},
        "config.kdcl.target='generals'.*Did you mean general?.*minlogit, naive, naive_batch",
    ),
    ("kdcl", {"held_out": 0.0}, "config.kdcl.held_out=0.0: must be in"),
    ("kdcl", {"held_out": 0.6}, "config.kdcl.held_out=0.6: must be in"),
    ("dml", {"targets": "all"}, "config.dml.targets='all' is not known.*each, mean"),
    ("takd", {"kl_reduction": "batchmean"}, "config.takd.kl_reduction='batchmean' is not known.*sum, mean"),
    ("orc", {"feedback_rule": "hard"}, "config.orc.feedback_rule='hard'.*mean hardest?.*: hardest, misclassified"),
    ("switokd", {"exponent": "mine"}, "config.switokd.exponent='mine' is not known.*own, code"),
    ("switokd", {"exponent": "code"}, "config.switokd.exponent='code': that code is of three networks"),
    ("switokd", {"paused_step": "skip"}, "config.switokd.paused_step='skip'.*mean skipped?.*: skipped, zero_loss"),
    (
        "switokd",
        {"paused_step": "zero_loss", "paused_statistics": "kept"},
        "config.switokd.paused_statistics='kept': a teacher that takes steps",
    ),
    ("okddip", {"weight": -1.0}, "config.okddip.weight=-1.0: must be at least 0"),
    ("okddip", {"rampup_fraction": 2.0}, "config.okddip.rampup_fraction=2.0: must be between 0 and 1"),
    ("okddip", {"rampup_fraction": -0.1}, "config.okddip.rampup_fraction=-0.1: must be between 0 and 1"),
    ("okddip", {"projection_divisor": 0}, "config.okddip.projection_divisor=0: must be at least 1"),
    ("pcl", {"rampup_fraction": 2.0}, "config.pcl.rampup_fraction=2.0: must be between 0 and 1"),
    ("pcl", {"rampup_fraction": -0.1}, "config.pcl.rampup_fraction=-0.1: must be between 0 and 1"),
    ("pcl", {"trunk_statistics": "all"}, "config.pcl.trunk_statistics='all' is not known.*mean, each"),
    ("pcl", {"classifiers": "same"}, "config.pcl.classifiers='same' is not known.*own, equal"),
    *(
        (name, {option: -1.0}, f"config.{name}.{option}=-1.0: must be at least 0")
        for name, options in AT_LEAST_0.items()
        for option in options
    ),
    ("dkd", {"warmup_epochs": -1}, "config.dkd.warmup_epochs=-1: must be at least 0"),
    ("at", {"power": 0}, "config.at.power=0: must be at least 1"),
    ("fitnets", {"layer": 4}, "config.fitnets.layer=4: must be from 0 to 3"),
    ("reviewkd", {"warmup_epochs": -1}, "config.reviewkd.warmup_epochs=-1: must be at least 0"),
    ("simkd", {"factor": 0}, "config.simkd.factor=0: must be at least 1"),
    *((name, {"epochs": -1}, f"config.{name}.epochs=-1: must be at least 0") for name in ("ft", "ab", "fsp")),
    ("ft", {"share": 0.0}, "config.ft.share=0.0: must be greater than 0"),
    ("ft", {"learning_rate": 0.0}, "config.ft.learning_rate=0.0: must be greater than 0"),
    ("cc", {"dim": 0}, "config.cc.dim=0: must be at least 1"),
    ("crd", {"dim": 0}, "config.crd.dim=0: must be at least 1"),
    ("crd", {"negatives": 0}, "config.crd.negatives=0: must be at least 1"),
    ("crd", {"momentum": 1.0}, r"config.crd.momentum=1.0: must be in \[0, 1\)"),
    *((name, {"rampup_fraction": 2.0}, f"config.{name}.rampup_fraction=2.0: must be") for name in ("one", "cl_ilr")),
    ("cl_ilr", {"label_weight": -1.0}, "config.cl_ilr.label_weight=-1.0: must be at least 0"),
    ("pcl", {"ema_decay": 1.0}, r"config.pcl.ema_decay=1.0: must be in \[0, 1\)"),
    ("pcl", {"ema_decay": -0.1}, r"config.pcl.ema_decay=-0.1: must be in \[0, 1\)"),
]


def of_method(method, **fields):
    """The default pool of five, of which all methods can train."""
    config = default()
    config.method = method
    if method in BRANCHED:
        config.teacher, config.assistants = config.student, "copies"
    config.update(fields)
    return config


@pytest.mark.parametrize(("method", "options", "text"), REFUSED)
def test_options_out_of_range(method, options, text):
    config = of_method(method)
    config[method].update(options)
    with pytest.raises(UserError, match=f"(?s)^{text}"):
        resolve(config, 1)


AT_THE_LIMIT = {
    "orc": [
        {"num_temporary_teachers": 3, "beta": 0.0, "feedback_fraction": 1e-9, "mixup_alpha": 1e-9, "temperature": 1e-9},
        {"beta": 1.0, "feedback_fraction": 1.0, "pivot_lr_multiplier": 1e-9},
    ],
    "dgkd": [{"lam": 0.0, "drop": 0}, {"lam": 1.0, "drop": 100}],
    "takd": [{"lam": 0.0}, {"lam": 1.0}],
    "switokd": [{"num_teachers": 4}],
    "pcl": [{"rampup_fraction": 0.0, "ema_decay": 0.0}, {"rampup_fraction": 1.0, "ema_decay": 0.9999}],
    "kd": [{"alpha": 0.0}, {"alpha": 1.0, "weight": 0.0}],
    **{name: [dict.fromkeys(AT_LEAST_0[name], 0.0)] for name in OFFLINE if name in AT_LEAST_0 and name != "kd"},
    "simkd": [{"factor": 1}, {"factor": 10**6}],
    "ft": [{"weight": 0.0, "epochs": 0, "share": 1e-9}, {"share": 10.0}],
    "fsp": [{"epochs": 0}],
    "dml": [{"temperature": 1e-9}],
    "kdcl": [{"lam": 0.0}],
    "okddip": [{"weight": 0.0, "rampup_fraction": 0.0, "projection_divisor": 1}, {"rampup_fraction": 1.0}],
    "one": [{"weight": 0.0, "rampup_fraction": 1.0}],
    "cl_ilr": [{"weight": 0.0, "label_weight": 0.0, "rampup_fraction": 1.0}],
    "independent": [{}],
}


@pytest.mark.parametrize("method", METHODS)
def test_options_at_the_limit(method):
    for options in AT_THE_LIMIT[method]:
        config = of_method(method)
        config[method].update(options)
        assert dict(resolve(config, 1).config[method]).items() >= options.items()


SMALLEST = {name: 1 if name == "independent" else 3 if name in ("orc", "okddip") else 2 for name in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_pools_that_are_too_small(method):
    least = SMALLEST[method]
    assert len(resolve(of_method(method, num_networks=least), 1).method.roles) == least
    text = "would have to be at least 3" if method == "orc" else f": {method} needs at least {least}"
    for size in range(1, least):
        with pytest.raises(UserError, match=f"config.num_networks={size}.*{text}"):
            resolve(of_method(method, num_networks=size), 1)


def test_a_method_from_scratch_refuses_a_pivot_teacher():
    """And one with a pivot teacher takes it."""
    for method in METHODS:
        config = of_method(method, pivot_checkpoint="somewhere")
        if method in ("orc", "dgkd", "takd", *OFFLINE):
            resolve(config, 1)
        else:
            with pytest.raises(
                UserError, match=r"config.pivot_checkpoint='somewhere'.*trains all members from scratch"
            ):
                resolve(config, 1)
