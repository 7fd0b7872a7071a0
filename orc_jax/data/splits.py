"""The splits that a run is evaluated on, and the one that is held out of its training set."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from orc_jax.data.batches import seed_of
from orc_jax.data.types import Images
from orc_jax.errors import UserError, require

HELD_OUT = "validation"  # what the share that `validation_share` holds out is called
STREAM = 1  # of random numbers: keeps them apart from others of the same seed


def eval_splits(config: ConfigDict | Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the splits that a run is evaluated on; the first selects the best checkpoint.

    The config may be one of before there were several.
    """
    named = tuple(name.strip() for name in config.get("eval_splits", "").split(",") if name.strip())
    return named or (*((HELD_OUT,) if config.get("validation_share") else ()), config["eval_split"])


def check(config: ConfigDict) -> None:
    """Checks the fields of splits by themselves.

    Raises:
        UserError: naming the first that is wrong, its value and what would be accepted.
    """
    names = eval_splits(config)
    share, fine = config.validation_share, 0 <= config.validation_share < 1
    require("config.validation_share", share, fine, "a share of the training set, in [0, 1)")
    twice = f"names of splits, each once, or with config.validation_share {HELD_OUT!r} and another config.eval_split"
    require("config.eval_splits", repr(",".join(names)), len(set(names)) == len(names), twice)


def hold_out(train: Any, config: ConfigDict) -> tuple[Any, Any]:
    """A training set without the share of it that is held out, and that share: as much of every class, by the seed.

    Raises:
        UserError: if its labels cannot be known before training, or nothing would be held out.
    """
    field = f"config.validation_share={config.validation_share}"
    instead = "0, and splits in TFDS's syntax: config.train_split='train[:95%]' config.eval_splits='train[95%:],test'"
    require_labels(train, field, config.dataset, instead)
    rows = held_out_rows(np.asarray(train.labels), config.validation_share, seed_of(config))
    if not rows.any() or rows.all():
        raise UserError(
            f"{field}: that is {rows.sum()} of the {len(rows)} training examples; accepted is another share"
        )
    return _rows(train, ~rows), _rows(train, rows)


def require_labels(train: Any, field: str, name: str, accepted: str) -> None:
    """Raises `UserError`, naming `field` and what is `accepted`, if a set has no labels before its images are read."""
    if not hasattr(train, "labels"):
        raise UserError(
            f"{field}: {name} is streamed from records whose labels are known when they are read alone; accepted is "
            f"{accepted}"
        )


def held_out_rows(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which examples are held out: bool `[n]`, of every class the share of its examples, rounded."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(STREAM,))))
    chosen, order = np.zeros(len(labels), bool), rng.random(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        chosen[rows[np.argsort(order[rows])][: round(share * len(rows))]] = True
    return chosen


def _rows(examples: Any, rows: np.ndarray) -> Any:
    if isinstance(examples, Images):
        return Images(examples.images[rows], examples.labels[rows])
    return dataclasses.replace(examples, paths=examples.paths[rows], labels=examples.labels[rows])  # of a folder
