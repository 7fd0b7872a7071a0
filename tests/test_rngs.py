"""Keys: one for each seed, stream and counters, and always the same."""

import itertools

import jax
import numpy as np

from orc_jax.rngs import STREAMS, stream_key


def bits(*of):
    return tuple(np.asarray(jax.random.key_data(stream_key(*of))).tolist())


def test_every_key_is_another():
    """Also with the counters exchanged, and with those of another stream."""
    of = [
        (seed, stream, *counters)
        for seed in (0, 1)
        for stream in STREAMS
        for counters in [(), (0,), (1,), (0, 1), (1, 0)]
    ]
    keys = {one: bits(*one) for one in of}
    assert len(set(keys.values())) == len(of)
    assert all(bits(*one) == key for one, key in itertools.islice(keys.items(), 4))


def test_seeds_and_counters_may_be_traced():
    assert np.array_equal(
        jax.jit(lambda seed, step: jax.random.key_data(stream_key(seed, "augment", step, 3)))(
            np.uint32(5), np.int32(7)
        ),
        bits(5, "augment", 7, 3),
    )


def test_runs_that_were_started_go_on():
    """A stream that gets another number would be another run."""
    assert STREAMS == {"init": 0, "augment": 1, "method": 2, "heads": 3, "mix": 4, "noise": 5}
    expected = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(jax.random.key(4), 1), 9), 2)
    assert bits(4, "augment", 9, 2) == tuple(np.asarray(jax.random.key_data(expected)).tolist())
