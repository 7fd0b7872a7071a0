"""How a set reaches the devices: whole and once if it is in memory, else batch by batch while the devices compute.

A feed is a set that lies on every device, and an iterator of batches. Batches of a set in memory are indices into it;
those of a streamed set are the examples themselves, and the set on the devices is None. `orc_jax.step` takes either.
The order of the examples is a function of (seed, step) alone in both, so the position in the data is the step itself.
With several processes, each takes its share of every global batch.
"""

import collections
import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from orc_jax import parallel
from orc_jax.data import augment, stream
from orc_jax.data.batches import batch_indices, evaluation_batches, seed_of
from orc_jax.data.types import Batch, Dataset, Images, size
from orc_jax.parallel import Devices

AHEAD = 2  # batches that are on their way to the devices while a step computes


def resident(examples: Any, devices: Devices) -> Images | None:
    """What of a set lies on every device throughout: all of a set in memory, nothing of one that is streamed."""
    return jax.device_put(examples, parallel.replicated(devices)) if isinstance(examples, Images) else None


@contextlib.contextmanager
def training(
    dataset: Dataset,
    config: ConfigDict,
    devices: Devices,
    first_step: int,
    num_steps: int,
    views: int,
    calls: Iterable[int] = itertools.repeat(1),
    seeds: Sequence[int] = (),
) -> Iterator[Iterator[Batch]]:
    """Opens the batches of the training steps `first_step` ... `num_steps - 1`, of as many steps as each call takes.

    With several `seeds` the set is in memory, and each has its own order: leaves end with an axis of seeds.

    Yields:
        An iterator of batches on the devices, their leaves `[devices, batch / devices, ...]`, or, for a call of several
        steps, `[devices, steps, batch / devices, ...]`: int32 indices, or `Images` cropped, flipped and resized, each
        image `[views, ...]` if there are several.
    """
    if isinstance(dataset.train, Images):
        orders = [_order(dataset, config, one) for one in seeds or (seed_of(config),)]
        rows = ([order(step) for order in orders] for step in range(first_step, num_steps))
        indices = (_own_share(of[0] if len(of) == 1 else np.stack(of, axis=-1)) for of in rows)
        yield _on_their_way(indices, devices, calls)
        return
    source = _streamed(dataset, config, num_steps, views)
    source = dataclasses.replace(
        source, first_step=first_step, process_index=jax.process_index(), process_count=jax.process_count()
    )
    with stream.batches(source, config.batch_size // jax.process_count(), _num_workers(config)) as batches:
        images = (Images(batch["image"], batch["label"]) for batch in batches)
        yield _on_their_way(images, devices, calls)


def _streamed(dataset: Dataset, config: ConfigDict, num_steps: int, views: int) -> stream.TrainExamples:
    assert not isinstance(dataset.train, Images)
    return stream.TrainExamples(
        dataset.train,
        seed=seed_of(config),
        batch_size=config.batch_size,
        num_steps=num_steps,
        first_step=0,
        augment=augment.of_stream(config, dataset),
        skip_corrupt=config.stream.skip_corrupt,
        views=views,
        classes=_classes(dataset, config),
        repeats=config.repeated_augmentation,
    )


def _order(dataset: Dataset, config: ConfigDict, seed: int) -> Callable[[int], np.ndarray]:
    """The examples of each step of a set in memory."""
    size, classes = dataset.num_train, _classes(dataset, config)
    return lambda step: batch_indices(seed, step, config.batch_size, size, classes, config.repeated_augmentation)


def _classes(dataset: Dataset, config: ConfigDict) -> bytes:
    train: Any = dataset.train
    return np.asarray(train.labels, np.int32).tobytes() if config.balanced_sampling else b""


def first_examples(dataset: Dataset, config: ConfigDict, count: int, views: int) -> Images:
    """The first examples of the first step, at most `count`, on the host, read in this process.

    Images are as `training` gives them: of a set in memory not augmented yet, of a streamed one with their `views`.
    """
    count = min(count, config.batch_size)
    if isinstance(dataset.train, Images):
        rows = _order(dataset, config, seed_of(config))(0)[:count]
        return Images(dataset.train.images[rows], dataset.train.labels[rows])
    source = _streamed(dataset, config, 1, views)
    examples = [source[i] for i in range(count)]
    return Images(*(np.stack([example[name] for example in examples]) for name in ("image", "label")))


@contextlib.contextmanager
def evaluation(dataset: Dataset, config: ConfigDict, devices: Devices) -> Iterator[Iterator[tuple[Batch, jax.Array]]]:
    """Opens the batches of one evaluation: every example once.

    Yields:
        An iterator of (indices or `Images`, weights), leaves `[devices, batch / devices, ...]`; padding has weight 0.
    """
    count = len(devices) * jax.process_count()
    batch_size = -(-min(config.eval_batch_size, size(dataset.test)) // count) * count
    if isinstance(dataset.test, Images):
        batches = map(_own_share, evaluation_batches(batch_size, size(dataset.test)))
        yield _on_their_way(batches, devices)
        return
    source = _evaluated(dataset, config, batch_size)
    source = dataclasses.replace(source, process_index=jax.process_index(), process_count=jax.process_count())
    with stream.batches(source, batch_size // jax.process_count(), _num_workers(config)) as batches:
        images = ((Images(batch["image"], batch["label"]), batch["weight"]) for batch in batches)
        yield _on_their_way(images, devices)


def _evaluated(dataset: Dataset, config: ConfigDict, batch_size: int) -> stream.EvalExamples:
    assert not isinstance(dataset.test, Images)
    return stream.EvalExamples(
        dataset.test,
        batch_size=batch_size,
        center=augment.center_of_stream(config, dataset.whole),
        size=config.stream.image_size,
        skip_corrupt=config.stream.skip_corrupt,
    )


def evaluation_images(dataset: Dataset, config: ConfigDict, rows: Sequence[int]) -> list[np.ndarray]:
    """Some images of the evaluation set as the networks see them, uint8, read in this process."""
    if isinstance(dataset.test, Images):
        return [dataset.test.images[row] for row in rows]
    source = _evaluated(dataset, config, config.eval_batch_size)
    return [source[row]["image"] for row in rows]


def _own_share(batch: Any) -> Any:
    """What this process takes of a global batch, whose leaves are `[batch, ...]`."""

    def of(x):
        local = len(x) // jax.process_count()
        return x[jax.process_index() * local :][:local]

    return jax.tree.map(of, batch)


def _on_their_way(
    batches: Iterator[Any], devices: Devices, calls: Iterable[int] = itertools.repeat(1)
) -> Iterator[Any]:
    """Places batches on the devices ahead of their use: transfers are asynchronous, so they overlap with the steps."""
    sharding = parallel.sharded(devices)
    split = lambda x: parallel.shard(x, len(devices))  # noqa: E731
    waiting = collections.deque()
    for count in calls:
        several = [jax.tree.map(split, batch) for batch in itertools.islice(batches, count)]
        if not several:
            break
        of_call = several[0] if count == 1 else jax.tree.map(lambda *x: np.stack(x, axis=1), *several)
        waiting.append(jax.device_put(of_call, sharding))
        if len(waiting) > AHEAD:
            yield waiting.popleft()
    yield from waiting


def _num_workers(config: ConfigDict) -> int:
    if config.stream.num_workers >= 0:
        return config.stream.num_workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
