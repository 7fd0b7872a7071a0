"""The operations of RandAugment, TrivialAugment and AutoAugment on the device: the twin of `orc_jax.data.operations`.

They do to the pixels what Pillow does, up to the rounding of a float. Images are uint8 `[height, width, channels]`,
grey or colour; a magnitude `m` is a float `[]`.
"""

import jax
import jax.numpy as jnp

from orc_jax.data.device_changes import blend, contrast, grey
from orc_jax.data.policies import OPERATIONS, SIGNED, Policy

MOVES = OPERATIONS[:6]  # of where a pixel is, the first of which moves none


def move(image: jax.Array, number: jax.Array, m: jax.Array) -> jax.Array:
    """The image sheared, shifted or turned, as `MOVES[number]` says; black where there is nothing."""
    height, width = image.shape[:2]
    zero, one = jnp.zeros(()), jnp.ones(())
    angle = -jnp.deg2rad(m)
    cos, sin, x, y = jnp.cos(angle), jnp.sin(angle), width / 2, height / 2
    matrices = [
        (one, zero, zero, zero, one, zero),
        (one, m, zero, zero, one, zero),
        (one, zero, zero, m, one, zero),
        (one, zero, -jnp.trunc(m), zero, one, zero),
        (one, zero, zero, zero, one, -jnp.trunc(m)),
        (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y),
    ]
    a, b, c, d, e, f = jnp.stack([jnp.stack(matrix) for matrix in matrices])[number]
    # In Pillow's fixed point numbers, at the centres of pixels.
    fixed = lambda x: jnp.floor(x * 65536 + 0.5).astype(jnp.int32)  # noqa: E731
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
    column = (fixed(c + (a + b) / 2) + fixed(a) * columns + fixed(b) * rows) >> 16
    row = (fixed(f + (d + e) / 2) + fixed(d) * columns + fixed(e) * rows) >> 16
    there = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return jnp.where(there[..., None], image[row.clip(0, height - 1), column.clip(0, width - 1)], jnp.uint8(0))


def smooth(image: jax.Array) -> jax.Array:
    """Each pixel with its eight neighbours, of which it counts five times; those at the edges stay."""
    height, width, _ = image.shape
    if min(height, width) < 3:
        return image
    values = image.astype(jnp.int32)
    windows = [values[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3)]
    total = sum(windows, 4 * windows[4])
    return image.at[1:-1, 1:-1].set(((2 * total + 13) // 26).astype(jnp.uint8))


def autocontrast(channel: jax.Array) -> jax.Array:
    """A channel `[height, width]` stretched to all values."""
    low, high = channel.min().astype(jnp.float32), channel.max().astype(jnp.float32)
    scale = 255.0 / jnp.maximum(high - low, 1.0)
    stretched = jnp.floor(jnp.clip(channel * scale - low * scale + 1e-4, 0.0, 255.0)).astype(jnp.uint8)
    return jnp.where(high > low, stretched, channel)


def equalize(channel: jax.Array) -> jax.Array:
    """A channel `[height, width]` whose values are about equally frequent."""
    counts = jnp.zeros(256, jnp.int32).at[channel.reshape(-1)].add(1)
    step = (channel.size - counts[channel.max()]) // 255
    before = jnp.cumsum(counts) - counts
    table = ((step // 2 + before) // jnp.maximum(step, 1)).clip(0, 255).astype(jnp.uint8)
    return jnp.where(step > 0, table[channel], channel)


def _by_channel(change):
    return lambda image, m: jax.vmap(change, -1, -1)(image)


CHANGES = {
    "brightness": lambda image, m: blend(0, image, 1.0 + m),
    "color": lambda image, m: blend(grey(image), image, 1.0 + m),
    "contrast": lambda image, m: contrast(image, 1.0 + m),
    "sharpness": lambda image, m: blend(smooth(image).astype(jnp.int32), image, 1.0 + m),
    "posterize": lambda image, m: image & ~((1 << (8 - m.astype(jnp.int32))) - 1).astype(jnp.uint8),
    "solarize": lambda image, m: jnp.where(image < m, image, 255 - image),
    "autocontrast": _by_channel(autocontrast),
    "equalize": _by_channel(equalize),
    "invert": lambda image, m: 255 - image,
}
IS_SIGNED = [name in SIGNED for name in OPERATIONS]


def operate(image: jax.Array, number: jax.Array, m: jax.Array) -> jax.Array:
    """The image after `OPERATIONS[number]`."""
    still = len(MOVES) - 1
    kinds = [lambda image, m: move(image, jnp.minimum(number, still), m), *CHANGES.values()]
    return jax.lax.switch(jnp.maximum(number - still, 0), kinds, image, m)


def apply(key: jax.Array, image: jax.Array, policy: Policy) -> jax.Array:
    """As `operations.apply`."""
    rows, steps = policy.operations.shape
    key_row, key_whether, key_sign = jax.random.split(key, 3)
    drawn = jax.random.randint(key_row, (policy.draws,), 0, rows)
    numbers, probabilities, sizes = (jnp.asarray(column)[drawn].reshape(-1) for column in policy[1:])
    happens = jax.random.uniform(key_whether, (policy.draws * steps,)) < probabilities
    negative = jax.random.bernoulli(key_sign, shape=(policy.draws * steps,)) & jnp.array(IS_SIGNED)[numbers]
    numbers, sizes = jnp.where(happens, numbers, 0), jnp.where(negative, -sizes, sizes)
    return jax.lax.fori_loop(0, len(numbers), lambda i, image: operate(image, numbers[i], sizes[i]), image)
