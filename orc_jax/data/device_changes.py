"""What is changed of an image that has been cropped, on the device: the twin of `orc_jax.data.changes`.

The functions take a key and one image, uint8 `[height, width, channels]`, grey or colour where they are about colours,
and do to its pixels what Pillow does, up to the rounding of a float.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from orc_jax.data.changes import ERASED_AREA, ERASED_RATIOS, TRIES, factor_range

Change = Callable[[jax.Array, jax.Array], jax.Array]


def jitter(key: jax.Array, image: jax.Array, strengths: Sequence[float]) -> jax.Array:
    """As `changes.jitter`. A grey image has no saturation and no hue."""
    asked = [i for i, strength in enumerate(strengths) if strength and (i < 2 or image.shape[-1] == 3)]
    if not asked:
        return image
    low, high = jnp.array([*map(factor_range, strengths[:3]), (-strengths[3], strengths[3])]).T
    key_factors, key_order = jax.random.split(key)
    factors = jax.random.uniform(key_factors, (4,), minval=low, maxval=high)
    colours = [lambda image, i=i: COLOURS[i](image, factors[i]) for i in asked]
    order = jax.random.permutation(key_order, len(asked))
    return jax.lax.fori_loop(0, len(asked), lambda i, image: jax.lax.switch(order[i], colours, image), image)


def grey(image: jax.Array) -> jax.Array:
    """The luma of an image, as integers `[height, width, 1]`."""
    if image.shape[-1] == 1:
        return image.astype(jnp.int32)
    red, green, blue = jnp.split(image.astype(jnp.int32), 3, axis=-1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def blend(base: jax.Array | int, image: jax.Array, factor: jax.Array) -> jax.Array:
    """`factor` of the way from `base`, and beyond where it is more than 1, cut to integers from 0 to 255."""
    moved = base + factor * (image.astype(jnp.int32) - base).astype(jnp.float32)
    return jnp.clip(moved, 0.0, 255.0).astype(jnp.uint8)


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blended with the mean of its luma."""
    mean = jnp.floor(grey(image).astype(jnp.float32).mean() + 0.5).astype(jnp.int32)
    return blend(mean, image, factor)


def turn_hue(image: jax.Array, share: jax.Array) -> jax.Array:
    """The hue turned by a share of the circle, in the 256 steps of Pillow's HSV."""
    rgb = image.astype(jnp.float32)
    most, least = rgb.max(-1), rgb.min(-1)
    spread = jnp.where(most > least, most - least, 1.0)
    red, green, blue = jnp.moveaxis((most[..., None] - rgb) / spread[..., None], -1, 0)
    is_red, is_green = rgb[..., 0] == most, rgb[..., 1] == most
    sixths = jnp.where(is_red, blue - green, jnp.where(is_green, 2.0 + red - blue, 4.0 + green - red))
    hue = jnp.floor(((sixths / 6.0 + 1.0) % 1.0) * 255.0).astype(jnp.int32)
    saturation = jnp.floor(spread / jnp.maximum(most, 1.0) * 255.0) / 255.0
    turned = (jnp.where(most > least, hue, 0) + jnp.trunc(share * 255.0).astype(jnp.int32)) % 256
    sixths = turned.astype(jnp.float32) * 6.0 / 255.0
    part = sixths - jnp.floor(sixths)
    p, q, t = (jnp.round(most * (1.0 - saturation * x)) for x in (jnp.ones_like(part), part, 1.0 - part))
    sector = jnp.floor(sixths).astype(jnp.int32) % 6
    colours = ((most, t, p), (q, most, p), (p, most, t), (p, q, most), (t, p, most), (most, p, q))
    channels = [jnp.select([sector == i for i in range(6)], [colour[k] for colour in colours]) for k in range(3)]
    return jnp.where((most > least)[..., None], jnp.stack(channels, -1), rgb).astype(jnp.uint8)


COLOURS: tuple[Callable[[jax.Array, jax.Array], jax.Array], ...] = (
    lambda image, factor: blend(0, image, factor),
    contrast,
    lambda image, factor: blend(grey(image), image, factor),
    turn_hue,
)


def cutout(key: jax.Array, image: jax.Array, size: int, fill: Sequence[int]) -> jax.Array:
    """As `changes.cutout`."""
    top, left = jax.random.randint(key, (2,), 0, jnp.array(image.shape[:2])) - size // 2
    return _filled(image, within(image.shape[:2], top, left, top + size, left + size), fill)


def erase(key: jax.Array, image: jax.Array, probability: float, fill: Sequence[int]) -> jax.Array:
    """As `changes.erase`."""
    height, width = image.shape[:2]
    key_whether, key_pixels, key_ratio, key_place = jax.random.split(key, 4)
    pixels = height * width * jax.random.uniform(key_pixels, (TRIES,), minval=ERASED_AREA[0], maxval=ERASED_AREA[1])
    low, high = jnp.log(jnp.array(ERASED_RATIOS))
    ratio = jnp.exp(jax.random.uniform(key_ratio, (TRIES,), minval=low, maxval=high))
    h, w = jnp.round(jnp.sqrt(pixels * ratio)), jnp.round(jnp.sqrt(pixels / ratio))
    fits = (h < height) & (w < width)
    first = jnp.argmax(fits)
    h, w = h[first].astype(jnp.int32), w[first].astype(jnp.int32)
    room = jnp.stack([height - h, width - w]) + 1
    top, left = jax.random.randint(key_place, (2,), 0, jnp.maximum(room, 1))
    erases = fits[first] & jax.random.bernoulli(key_whether, probability)
    return _filled(image, within(image.shape[:2], top, left, top + h, left + w) & erases, fill)


def within(shape: tuple[int, ...], top: jax.Array, left: jax.Array, bottom: jax.Array, right: jax.Array) -> jax.Array:
    """Which pixels of `shape` (height, width) a box covers: bool `[height, width]`."""
    rows, columns = (jnp.arange(side) for side in shape)
    return ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))[None]


def _filled(image: jax.Array, hidden: jax.Array, fill: Sequence[int]) -> jax.Array:
    return jnp.where(hidden[..., None], jnp.array(fill, jnp.uint8)[None, None], image)


KINDS = {"jitter": jitter, "cutout": cutout, "erase": erase}
