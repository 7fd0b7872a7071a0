"""What a file that `orc_jax.export` wrote says of its network: in a file beside it, or in its metadata."""

import json
from pathlib import Path
from typing import NamedTuple

from orc_jax.deploy.torch_kinds import is_safetensors

READ = ("architecture", "class_names", "input", "resize", "pixel_range", "mean", "std")  # of the metadata of an export


class Description(NamedTuple):
    """What an export says of its network (see `orc_jax.deploy.export.describe`)."""

    model: str
    class_names: tuple[str, ...]
    image_size: tuple[int, int]  # (height, width)
    mean: tuple[float, ...]  # per channel, of images in [0, 1]
    std: tuple[float, ...]
    crop: float | None  # share of the short side that evaluation keeps; None: the whole image, resized
    pixel_range: tuple[float, ...]  # black and white of images of more than 8 bits; (): that of their mode


def description_of(path: Path) -> Description | None:
    """What lies beside an exported file, or in the metadata of one in safetensors; None if that is no description."""
    beside = Path(f"{path}.json")
    try:
        if beside.is_file():
            found = json.loads(beside.read_text())
        elif is_safetensors(path):
            from safetensors import safe_open

            with safe_open(path, "np") as file:
                found = {
                    k: v if k == "architecture" else json.loads(v) for k, v in file.metadata().items() if k in READ
                }
        else:
            return None
        resize, shape = found["resize"], (int(found["input"]["height"]), int(found["input"]["width"]))
        return Description(
            model=str(found["architecture"]),
            class_names=tuple(map(str, found["class_names"])),
            image_size=shape,
            mean=tuple(map(float, found["mean"])),
            std=tuple(map(float, found["std"])),
            crop=None if resize["method"] == "stretch" else shape[0] / int(resize["short_side"]),
            pixel_range=tuple(map(float, found.get("pixel_range") or ())),  # which earlier ones lack
        )
    except Exception:  # any file may have such a name, and any metadata
        return None
