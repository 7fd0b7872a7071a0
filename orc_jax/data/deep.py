"""Images of more than 8 bits a channel: which of their values is black, and which is white.

8-bit modes are seen as they are. 16 bits go from 0 to 65535, unless the values of the whole set say otherwise; integers
and floats of 32 bits have no range of their own. Worker processes import this module: NumPy and Pillow, no JAX.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

GREY, COLOURS, INTEGERS, FLOATS = "16 bits of grey", "16 bits a colour", "integers of 32 bits", "floats of 32 bits"
FULL = (0, 65535)  # what 16 bits can hold
LEAST = 2**14  # what 16 bits hold at the brightest, or they most likely hold fewer bits
USUAL_BITS = (1, 8, 10, 12, 14, 16)
SHORT = ("PNG", "PPM")  # formats whose integers Pillow may widen, but which have 16 bits
UNSEEN = "AaX"  # bands that RGB drops: alpha, which is mostly white, would hide how dark the colours are
WHITE_IS_ZERO = (262, 0)  # a tag of TIFF, which Pillow heeds for 8 bits alone

Range = Sequence[float]  # (black, white), or empty for that of the mode


class Values(NamedTuple):
    """The values of one or of many images of a kind."""

    kind: str
    low: float
    high: float


def kind(image: Image.Image) -> str | None:
    """What of more than 8 bits an image has, told before it is decoded; None if it has 8 or fewer."""
    if image.mode == "F":
        return FLOATS
    if image.mode == "I":
        return GREY if image.format in SHORT else INTEGERS
    if image.mode.startswith("I;16"):
        return GREY
    encodings = (tile[3] for tile in getattr(image, "tile", ()))
    raw = [args if isinstance(args, str) else args[0] if args and isinstance(args, tuple) else "" for args in encodings]
    return COLOURS if any(";16" in str(mode) for mode in raw) else None


def values(image: Image.Image) -> Values | None:
    """The lowest and the highest value of an image of more than 8 bits, which is decoded for it; None of others.

    Raises:
        ValueError: if there are values that are not finite, and what Pillow raises.
    """
    found = kind(image)
    if found is None:
        return None
    if found == COLOURS:  # of which Pillow keeps the upper 8 bits
        colours = [band for name, band in zip(image.getbands(), image.split(), strict=True) if name not in UNSEEN]
        return Values(found, 0, max(float(np.asarray(band).max()) for band in colours) * 256 + 255)
    pixels = _finite(image)
    return Values(found, float(pixels.min()), float(pixels.max()))


def _finite(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise ValueError("values that are not finite")
    return pixels


def to_grey(image: Image.Image, given: Range = ()) -> Image.Image:
    """An image of `GREY`, `INTEGERS` or `FLOATS` as 8 bits of grey, from black to white by the range that is given.

    Raises:
        ValueError: if there is none, or there are values that are not finite.
    """
    pixels = _finite(image)
    if not given and kind(image) == GREY:
        grey = (pixels.clip(*FULL) >> 8).astype(np.uint8)
    elif not given:
        raise ValueError(
            f"{kind(image)} have no range of their own: config.stream.pixel_range='(black, white)' is needed"
        )
    else:
        black, white = map(float, given)
        grey = pixels.clip(black, white).astype(np.float32)
        grey = ((grey - black) * (255 / (white - black))).round().astype(np.uint8)
    tags: Any = getattr(image, "tag_v2", {})
    if tags.get(WHITE_IS_ZERO[0]) == WHITE_IS_ZERO[1]:
        grey = 255 - grey
    return Image.fromarray(grey)


def united(found: Sequence[Values]) -> list[Values]:
    """The values of each kind of images."""
    kinds = {one.kind: [other for other in found if other.kind == one.kind] for one in found}
    return [Values(kind, min(v.low for v in of), max(v.high for v in of)) for kind, of in kinds.items()]


def objection(found: Values, given: Range) -> str | None:
    """Why images of these values cannot be seen as they are meant, and what to do; None if they can."""
    told = f"{found.kind} with values from {found.low:g} to {found.high:g}"
    full = bool(given) and tuple(given) == FULL
    if found.kind == COLOURS:
        if full or (not given and found.high >= LEAST):
            return None
        return (
            f"{found.kind} with values up to about {found.high:g}: of such only the upper 8 bits are read. Save them "
            "with 8 bits, or say that 65535 is white: config.stream.pixel_range='(0, 65535)'"
        )
    if given:
        return f"{told}: all beyond config.stream.pixel_range={tuple(given)}" if _outside(found, given) else None
    if found.kind == GREY and found.high >= LEAST:
        return None
    why = "black is 0 and white 65535, so they are nearly black" if found.kind == GREY else "they have no range"
    also = ", or '(0, 65535)' if they are meant to be dark" if found.kind == GREY else ""
    return f"{told}: {why}. config.stream.pixel_range='{_likely(found)}' says what is black and what is white{also}"


def seen_as(found: Values, given: Range) -> str | None:
    """How an image of these values is seen, if it most likely is not meant so."""
    if objection(found, given) is None:
        return None
    black, white = given if given and found.kind != COLOURS else FULL
    return (
        f"{found.kind} from {found.low:g} to {found.high:g}, of which {black:g} is seen as black and {white:g} as white"
    )


def _outside(found: Values, given: Range) -> bool:
    return found.high <= given[0] or found.low >= given[1]


def cut_off(found: Values, given: Range) -> bool:
    """Whether some of the values are beyond the range that was given."""
    return bool(given) and found.kind != COLOURS and (found.low < given[0] or found.high > given[1])


def _likely(found: Values) -> str:
    """The usual range that values lie in, or their own."""
    low, high = found.low, found.high
    if found.kind == FLOATS and low >= -1 and high <= 1:
        return "(0, 1)" if low >= 0 else "(-1, 1)"
    fitting = [2**bits - 1 for bits in USUAL_BITS if high <= 2**bits - 1]
    if low < 0 or not fitting:
        return f"({low:g}, {high:g})"
    return f"(0, {fitting[0]})"
