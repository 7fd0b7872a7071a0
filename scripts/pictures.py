"""Draws docs/augmentation.png: eight times what each field of the augmentation makes of a drawn picture.

python -m scripts.pictures
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from orc_jax import samples
from orc_jax.config import default
from orc_jax.data import augment, mixing
from orc_jax.data.types import Dataset, Images

SIZE, COPIES, MARGIN = 64, 8, 120  # pixels, pictures in a row, pixels for the text before it
ROWS = (
    {"crop_padding": 8, "flip": True},
    {"auto_augment": "rand"},
    {"auto_augment": "trivial"},
    {"auto_augment": "auto_cifar"},
    {"auto_augment": "auto_imagenet"},
    {"color_jitter": (0.4, 0.4, 0.4, 0.1)},
    {"cutout": 32},
    {"random_erasing": 1.0},
    {"mixup": 1.0},
    {"cutmix": 1.0},
)


def scene(hue: int) -> np.ndarray:
    """A house under the sun, uint8 `[SIZE, SIZE, 3]`; `hue`, from 0 to 255, is that of its walls."""
    image = Image.new("RGB", (SIZE, SIZE), (150, 190, 230))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 46, SIZE, SIZE), (90, 150, 70))
    draw.ellipse((44, 5, 58, 19), (250, 220, 90))
    walls = Image.new("HSV", (1, 1), (hue, 140, 210)).convert("RGB").tobytes()
    draw.rectangle((12, 28, 42, 54), tuple(walls))
    draw.polygon(((8, 28), (27, 12), (46, 28)), (140, 60, 50))
    draw.rectangle((17, 34, 24, 41), (240, 240, 250))
    draw.rectangle((30, 36, 37, 54), (80, 50, 40))
    return np.asarray(image)


def row(fields: dict, images: np.ndarray) -> np.ndarray:
    """The images as a run with these fields alone sees them."""
    config = default()
    config.update({"crop_padding": 0, "flip": False} | fields)
    nothing = Images(images[:0], np.zeros(0, np.int32))
    shape, mean = (SIZE, SIZE, 3), (0.5, 0.5, 0.5)
    dataset = Dataset("scenes", nothing, nothing, ("house",), shape, mean, std=(0.25,) * 3)
    key = jax.random.key(1)
    seen = augment.of_memory(config, dataset)(jax.random.split(key, len(images)), jnp.asarray(images))
    both = mixing.Mixing(config.mixup, config.cutmix)
    if any(both):
        slots = jnp.arange(len(images))
        seen, _ = mixing.mix(both, key, Images(seen, slots), slots, lambda x, axis: x)
    return np.asarray(seen).round().astype(np.uint8)


def main() -> None:
    # Every other one mirrored, so that one sees what is mixed.
    images = np.stack([scene(32 * i)[:, :: 1 - 2 * (i % 2)] for i in range(COPIES)])
    grid = samples.grid(np.concatenate([row(fields, images) for fields in ROWS]), COPIES)
    sheet = Image.new("RGB", (MARGIN + grid.shape[1], grid.shape[0]), "white")
    sheet.paste(Image.fromarray(grid), (MARGIN, 0))
    for i, fields in enumerate(ROWS):
        text = "\n".join(f"{name}=\n  {value}" for name, value in fields.items())
        ImageDraw.Draw(sheet).text((4, i * SIZE + 6), text, "black")
    sheet.save(Path(__file__).parent.parent / "docs" / "augmentation.png", optimize=True)


if __name__ == "__main__":
    main()
