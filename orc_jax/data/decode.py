"""Encoded images to uint8 arrays: the random crops of training and the centre crop of evaluation.

Worker processes import this module: NumPy and Pillow, no JAX. EXIF orientation is not applied, as torchvision does not
either: an image is seen as its pixels are stored, of several frames the first. For an image that cannot be decoded, all
functions that do raise ValueError with a short reason. `values` are the black and the white of images of more than 8
bits, see `orc_jax.data.deep`.
"""

import contextlib
import io
import math
import warnings
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image

from orc_jax.data import deep
from orc_jax.data.deep import Range

RATIOS = (3 / 4, 4 / 3)  # width to height of a random crop
TRIES = 10
LONG = 16  # times its short side: from there on an image is cropped before it is scaled, which may round otherwise
MOST = 64  # times the pixels of the result: so large an image may be scaled before it is cropped
PROGRAMS = ("EPS",)  # formats that Pillow would have another program execute
VIA = {"La": "LA", "RGBa": "RGBA"}  # modes that Pillow converts to RGB in two steps

# For the whole process, because `warnings.catch_warnings` is not safe among threads. Pillow warns from 89 megapixels on
# and refuses from twice as many, 540 MB in RGB. What it finds odd about the metadata of a photo is of no use here, and
# ImageNet has a lot.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Turns whatever Pillow raises, which for broken files is nearly anything, into ValueError with a short reason."""
    try:
        yield
    except MemoryError:
        raise  # says something about this machine, not about the image
    except Image.UnidentifiedImageError:
        raise ValueError("not an image of a known format") from None  # Pillow's message is the repr of a buffer
    except Exception as error:
        raise ValueError(str(error).strip().rstrip(".") or type(error).__name__) from error


def open_image(data: bytes | BinaryIO) -> Image.Image:
    """The image, its header read and its pixels not yet decoded.

    Raises:
        ValueError: with a short reason, if it is not an image that Pillow knows, or has far too many pixels.
    """
    with _reasons():
        image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
    if image.format in PROGRAMS:
        raise ValueError(f"{image.format}, a program and not an image")
    return image


def check_pixels(image: Image.Image) -> None:
    """Decodes the whole image. Raises ValueError with a short reason if that fails."""
    with _reasons():
        image.load()


def deep_values(image: Image.Image) -> deep.Values | None:
    """As `orc_jax.data.deep.values`, for an image whose pixels are not decoded yet. Raises ValueError, too."""
    with _reasons():
        return deep.values(image)


def to_rgb(image: Image.Image, values: Range = ()) -> Image.Image:
    """Decodes to RGB: alpha is dropped, not composited; of a palette its colours; grey of more bits by `values`."""
    with _reasons():
        if image.mode[0] in "IF":
            return deep.to_grey(image, values).convert("RGB")
        if image.mode in VIA:
            image = image.convert(VIA[image.mode])
        elif image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert("RGB")


def crop_box(rng: np.random.Generator, width: int, height: int, area: tuple[float, float]) -> tuple[int, int, int, int]:
    """A random box as torchvision's RandomResizedCrop draws it: (left, top, right, bottom) in pixels.

    Args:
        rng: where the randomness comes from.
        width: of the image, in pixels.
        height: of the image, in pixels.
        area: the least and greatest share of the image that the box covers. The ratio of its sides is log-uniform in
            `RATIOS`. After ten boxes that do not fit, it is the central one, its ratio clamped to `RATIOS`.
    """
    low, high = RATIOS
    for _ in range(TRIES):
        pixels = width * height * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return left, top, left + w, top + h
    # At least one pixel: torchvision's fallback would be empty in an image one pixel wide.
    w = max(1, min(width, round(height * high)))
    h = max(1, min(height, round(width / low)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def random_resized_crop(
    data: bytes,
    rng: np.random.Generator,
    size: int,
    area: tuple[float, float],
    flip: bool,
    draft: bool = True,
    values: Range = (),
) -> np.ndarray:
    """A random part of an image, scaled to a square with antialiased bilinear interpolation, and perhaps mirrored.

    The box is `crop_box`'s. Unlike torchvision, which crops before it scales, the interpolation sees the pixels just
    outside of the box, so that the outermost pixels differ a little.

    Args:
        rng: where the randomness comes from.
        size: width and height of the result, in pixels.
        area: least and greatest share of the image.
        flip: mirror left and right with probability one half.
        draft: let the JPEG decoder skip resolution that the scaling would drop: faster, and nearly the same pixels.

    Returns:
        uint8 `[size, size, 3]`.
    """
    image = open_image(data)
    box = crop_box(rng, image.width, image.height, area)
    shrink = _draft(image, min(box[2] - box[0], box[3] - box[1]) // size) if draft else 1
    image = to_rgb(image, values)
    left, top, right, bottom = (edge / shrink for edge in box)
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    if flip and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)  # to stack a NumPy view takes ten times as long
    return np.asarray(image)


def _draft(image: Image.Image, most: int) -> int:
    """Has a JPEG decoded at 1/2, 1/4 or 1/8 of its size, if that is not less than 1 / `most`; returns the divisor."""
    shrink = next((s for s in (8, 4, 2) if s <= most), 1)
    if image.format != "JPEG" or shrink == 1:
        return 1
    with _reasons():
        return shrink if image.draft(None, (image.width // shrink, image.height // shrink)) else 1


def padded_crop(
    data: bytes, rng: np.random.Generator, size: int, padding: int, flip: bool, values: Range = ()
) -> np.ndarray:
    """A random crop of the whole image, scaled to a square and padded with zeros, as sets in memory are cropped.

    Args:
        rng: where the randomness comes from.
        size: width and height of the image and of the result, in pixels.
        padding: pixels of padding on every side; 0 for no crop.
        flip: mirror left and right with probability one half.

    Returns:
        uint8 `[size, size, 3]`.
    """
    image = resize(data, (size, size, 3), values)
    top, left = rng.integers(2 * padding + 1, size=2)
    image = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))[top : top + size, left : left + size]
    return np.ascontiguousarray(image[:, ::-1] if flip and rng.random() < 0.5 else image)


def resize_and_center_crop(data: bytes, size: int, crop: float, values: Range = ()) -> np.ndarray:
    """The centre of an image as torchvision's Resize and CenterCrop give it, exactly; of very long ones up to rounding.

    Args:
        size: width and height of the result, in pixels.
        crop: share of the short side that is kept, in (0, 1]; 224 pixels and 0.875 are the usual 256 and 224.

    Returns:
        uint8 `[size, size, 3]`.
    """
    image = to_rgb(open_image(data), values)
    short, least = round(size / crop), min(image.size)
    scale = [short if side == least else int(short * side / least) for side in image.size]
    left, top = (round((side - size) / 2) for side in scale)
    box = (left, top, left + size, top + size)
    if max(image.size) <= LONG * least and math.prod(scale) <= MOST * size**2:
        return np.asarray(image.resize(scale, Image.Resampling.BILINEAR).crop(box))
    x, y = (side / scaled for side, scaled in zip(image.size, scale, strict=True))
    source = (left * x, top * y, (left + size) * x, (top + size) * y)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=source))


def resize(data: bytes, image_shape: tuple[int, int, int], values: Range = ()) -> np.ndarray:
    """A whole image scaled to `image_shape`, as a set in memory has them; one of that size keeps its pixels.

    Args:
        image_shape: (height, width, channels); one channel is grey, three are RGB.

    Returns:
        uint8 of `image_shape`.
    """
    height, width, channels = image_shape
    image = to_rgb(open_image(data), values).convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image_shape)
