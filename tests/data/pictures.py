"""Images as files have them."""

import io

import numpy as np
from PIL import Image


def picture(width, height, seed=0):
    """A smooth random image, as photos are."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encode(image, kind="JPEG", **options):
    """The bytes of a file of an image."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


class Encoded:
    """Encoded images, to be streamed; each one's label is its number."""

    def __init__(self, *images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def read(self, i):
        return self.images[i], i

    def name(self, i):
        return f"image {i}"
