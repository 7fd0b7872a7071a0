"""The trackers that a run can be logged to besides its files, by name."""

import importlib.util

from orc_jax.errors import UserError, require_choice

TRACKERS = ("tensorboard", "wandb")


def names(log_to: str) -> list[str]:
    """The trackers that `config.log_to` names.

    Raises:
        UserError: for an unknown one, or one whose package is not installed.
    """
    found = [name.strip() for name in log_to.split(",") if name.strip()]
    for name in found:
        require_choice("config.log_to", name, TRACKERS)
        if name == "wandb" and importlib.util.find_spec("wandb") is None:
            raise UserError("config.log_to='wandb': the package wandb is not installed (pip install wandb)")
    return found
