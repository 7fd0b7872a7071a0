"""The order of examples, as a function of (seed, step) alone: nothing to save, nothing to replay."""

import functools
from collections.abc import Callable, Iterator

import numpy as np
from ml_collections import ConfigDict


def seed_of(config: ConfigDict) -> int:
    """What the order of the examples of a run, and what is done to their images, are functions of."""
    return config.seed if config.data_seed < 0 else config.data_seed


@functools.lru_cache(maxsize=16)  # of replicas each has its own
def permutation(seed: int, epoch: int, num_examples: int, classes: bytes = b"", repeats: int = 1) -> np.ndarray:
    """The order of the examples in an epoch: int32 `[num_examples]`.

    With `classes`, the labels of all examples as the bytes of int32, it has every class as often: see `balanced`.
    With `repeats`, the first of them stand there so many times one after the other, and the last do not come
    (Hoffer et al., "Augment your batch", CVPR 2020; as the sampler of DeiT).
    """
    rng = np.random.Generator(np.random.Philox([seed, epoch]))
    order = balanced(rng, np.frombuffer(classes, np.int32)) if classes else rng.permutation(num_examples)
    return order.repeat(repeats)[:num_examples].astype(np.int32)


def balanced(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """As many examples as there are `labels` `[n]`, in random order: every class that has any as often, up to one.

    Within a class, examples are as often as each other, up to one; who comes once more or not at all is drawn.
    """
    _, counts = np.unique(labels, return_counts=True)
    of_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    share, left = divmod(len(labels), len(of_class))
    once_more = set(rng.permutation(len(of_class))[:left].tolist())
    drawn = [np.resize(rng.permutation(rows), share + (i in once_more)) for i, rows in enumerate(of_class)]
    return rng.permutation(np.concatenate(drawn))


def batch_indices(
    seed: int, step: int, batch_size: int, num_examples: int, classes: bytes = b"", repeats: int = 1
) -> np.ndarray:
    """The examples of training step `step`: int32 `[batch_size]`; `classes` and `repeats` as of `permutation`.

    The epochs' permutations form one endless stream that is cut into batches, so a batch may reach into the next epoch
    and, unless they are balanced or repeated, no example is dropped or seen twice in an epoch.
    """
    start = step * batch_size
    parts = []
    while start < (step + 1) * batch_size:
        epoch, offset = divmod(start, num_examples)
        part = permutation(seed, epoch, num_examples, classes, repeats)[offset:]
        parts.append(part[: (step + 1) * batch_size - start])
        start += len(parts[-1])
    return np.concatenate(parts)


def last_step(epochs: float, batch_size: int, num_examples: int) -> int:
    """The number of whole batches in the first `epochs` epochs."""
    return int(epochs * num_examples) // batch_size


def calls(first_step: int, num_steps: int, at_once: int, stops: Callable[[int], bool]) -> Iterator[int]:
    """How many steps each call of the training step takes, from `first_step` to `num_steps`: `at_once`, or one.

    Where `stops(step)`, something is to be done after `step` steps, so a call ends there.
    """
    step = first_step
    while step < num_steps:
        whole = step + at_once <= num_steps and not any(map(stops, range(step + 1, step + at_once)))
        count = at_once if whole else 1
        yield count
        step += count


def evaluation_batches(batch_size: int, num_examples: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (indices, weights), both `[batch_size]`: every example once, the last batch padded with weight 0."""
    for start in range(0, num_examples, batch_size):
        indices = np.arange(start, start + batch_size, dtype=np.int32)
        weights = (indices < num_examples).astype(np.float32)
        yield np.minimum(indices, num_examples - 1), weights
