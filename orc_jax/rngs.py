"""Random keys, derived and never stored: a key is folded from the seed, a named stream, and counters.

Nothing has to be checkpointed, nothing shifts when a stream is added, and member 3 starts identically in a pool of
four or of eight.
"""

import jax

STREAMS = {"init": 0, "augment": 1, "method": 2, "heads": 3, "mix": 4, "noise": 5}


def stream_key(seed: int | jax.Array, stream: str, *counters: int | jax.Array) -> jax.Array:
    """The key of `stream` (one of `STREAMS`) under `seed`, folded with each of `counters` in turn."""
    key = jax.random.fold_in(jax.random.key(seed), STREAMS[stream])
    for counter in counters:
        key = jax.random.fold_in(key, counter)
    return key


def symmetric_beta(key: jax.Array, alpha: float) -> jax.Array:
    """A ratio drawn from Beta(alpha, alpha), in [0, 1]."""
    # Beta(1, 1) is uniform; other ratios come out of a loop that ends when a value on the device says so.
    return jax.random.uniform(key) if alpha == 1 else jax.random.beta(key, alpha, alpha)
