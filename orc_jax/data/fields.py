"""The fields of a config that say what of a set is read, and how: their values by themselves."""

from ml_collections import ConfigDict

from orc_jax.errors import require, require_choice


def check(config: ConfigDict) -> None:
    """Checks them.

    Raises:
        UserError: naming the first that is wrong, its value and what would be accepted.
    """
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
