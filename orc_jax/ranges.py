"""The ranges of the fields that are numbers, each by itself."""

from ml_collections import ConfigDict

from orc_jax.errors import require

POSITIVE = (
    "batch_size",
    "num_epochs",
    "eval_batch_size",
    "eval_every_epochs",
    "log_every_steps",
    "steps_per_call",
    "repeated_augmentation",
)
NOT_NEGATIVE = ("pretrain_epochs", "crop_padding", "examples_per_class", "checkpoint_every_steps", "patience")


def check(config: ConfigDict) -> None:
    """Checks them.

    Raises:
        UserError: naming the first that is out of its range, its value and what would be accepted.
    """
    for field in POSITIVE:
        require(f"config.{field}", config[field], config[field] > 0, "greater than 0")
    for field in NOT_NEGATIVE:
        require(f"config.{field}", config[field], config[field] >= 0, "at least 0")
    for field in ("dropout", "stochastic_depth"):
        require(f"config.{field}", config[field], 0 <= config[field] < 1, "in [0, 1)")
    require("config.seed", config.seed, 0 <= config.seed < 2**31, "from 0 to 2147483647")
    of_data = -1 <= config.data_seed < 2**31
    require("config.data_seed", config.data_seed, of_data, "from 0 to 2147483647, or -1: that of config.seed")
    several = "1 for a single run; several are trained by orc_jax.main and orc_jax.compare"
    require("config.replicas", config.replicas, config.replicas in (0, 1), several)
    k, too = config.num_temporary_teachers, config.orc.num_temporary_teachers  # differ in a copy that was changed
    require("config.num_temporary_teachers", k, k == too, f"that of config.orc.num_temporary_teachers={too}")
