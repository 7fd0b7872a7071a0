"""The fields of a config that say what of a set is read, and how: their values by themselves."""

import math
import os

from ml_collections import ConfigDict

from orc_jax.errors import UserError, require, require_choice
from orc_jax.places import place

PLACES = ("data_dir", "label_file", "pivot_checkpoint")
ELSEWHERE = ("huggingface:", "hf:", "kaggle:", "torchvision:")  # how other programs name sets


def at_home(config: ConfigDict) -> dict[str, str]:
    """The places in the home folder, which a shell leaves as `~` within an argument, by their fields."""
    return {field: os.path.expanduser(config[field]) for field in PLACES if config[field].startswith("~")}


def check_numbers(config: ConfigDict) -> None:
    """Checks that fields with several values, of the whole config, have numbers: a command line may give anything.

    Raises:
        UserError: naming the first that has others.
    """
    for prefix, section in (("config.", config), ("config.stream.", config.stream)):
        for field, value in section.items():
            fine = not isinstance(value, tuple) or all(isinstance(x, int | float) and math.isfinite(x) for x in value)
            require(prefix + field, value, fine, "numbers, such as (0.25, 0.5)")


def check(config: ConfigDict) -> None:
    """Checks them.

    Raises:
        UserError: naming the first that is wrong, its value and what would be accepted.
    """
    check_numbers(config)
    for field in PLACES:
        place(f"config.{field}", config[field])
    if config.dataset.startswith(ELSEWHERE) or "/" in config.dataset.partition(":")[2]:
        raise UserError(
            f"config.dataset={config.dataset!r}: sets are not fetched from there; accepted are names of TFDS, or the "
            "images written to folders (config.dataset=folder) or as arrays (config.dataset=npz), and config.data_dir"
        )
    stream = config.stream
    require("config.stream.image_size", stream.image_size, stream.image_size > 0, "greater than 0")
    require("config.stream.eval_crop", stream.eval_crop, 0 < stream.eval_crop <= 1, "in (0, 1]")
    require("config.stream.num_workers", stream.num_workers, stream.num_workers >= -1, "-1 or more")
    require_choice("config.stream.check", stream.check, ("quick", "full"))
    area = tuple(stream.crop_area)
    fine = len(area) == 2 and 0 < area[0] <= area[1] <= 1
    require("config.stream.crop_area", area, fine, "(smallest, largest) with 0 < smallest <= largest <= 1")
    values = tuple(stream.pixel_range)
    fine = not values or (len(values) == 2 and values[0] < values[1])
    require("config.stream.pixel_range", values, fine, "(black, white) with black < white, or ()")
