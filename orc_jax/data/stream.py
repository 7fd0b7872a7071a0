"""Batches of images that are read and decoded while training goes on, through grain.

The images of a step are a function of (seed, step) alone, whatever the number of workers and of processes: there is no
position to save, and a run goes on from any step.

Worker processes import this module: NumPy and Pillow, no JAX.
"""

import contextlib
import functools
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orc_jax.data.batches import permutation
from orc_jax.data.types import Records
from orc_jax.data.workers import SHARED_MEMORY, end_with_parent, interrupts_blocked, sharing, start_tracker
from orc_jax.errors import UserError, of_system

CHUNK = 16  # images that a worker hands over at a time: bounds the memory of many workers, and the wait for the first


Example = dict[str, Any]  # arrays of NumPy: "image", "label", and of evaluation "weight"


@dataclass(frozen=True)
class TrainExamples:
    """The training images of one process, from step `first_step` to `num_steps`: its share of every global batch.

    The order of an epoch is that of `orc_jax.data.batches.permutation`, with `classes` and `repeats` as there, and the
    epochs follow one another without a gap.
    """

    records: Records
    seed: int
    batch_size: int  # global
    num_steps: int
    first_step: int
    augment: Callable[[bytes, np.random.Generator], np.ndarray]  # encoded image -> uint8 [size, size, 3]
    skip_corrupt: bool  # take the next image instead of one that cannot be decoded
    views: int = 1  # crops of each image
    classes: bytes = b""
    repeats: int = 1
    process_index: int = 0
    process_count: int = 1

    def __len__(self) -> int:
        return (self.num_steps - self.first_step) * (self.batch_size // self.process_count)

    def __getitem__(self, j: int) -> Example:
        """{"image": uint8 [size, size, 3], or [views, size, size, 3] if there are several, "label": int32 []}.

        Raises:
            UserError: naming the file that cannot be read or decoded.
        """
        position = self.first_step * self.batch_size
        position += _global_position(j, self.batch_size, self.process_index, self.process_count)
        count = len(self.records)
        epoch, offset = divmod(position, count)
        first = int(permutation(self.seed, epoch, count, self.classes, self.repeats)[offset])
        for i in range(first, first + count):
            example = _example(self.records, i % count, self.skip_corrupt, functools.partial(self._image, position))
            if example:
                return example
        raise UserError(f"none of the {count} training images can be decoded")

    def _image(self, position: int, data: bytes) -> np.ndarray:
        # A spawn key keeps the stream apart from those of the permutations.
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=(position,))))
        crops = [self.augment(data, rng) for _ in range(self.views)]
        return crops[0] if self.views == 1 else np.stack(crops)


@dataclass(frozen=True)
class EvalExamples:
    """The evaluation images of one process, every record once and in order, padded to whole global batches."""

    records: Records
    batch_size: int  # global
    center: Callable[[bytes], np.ndarray]  # encoded image -> uint8 [size, size, 3]
    size: int  # of the images, in pixels
    skip_corrupt: bool  # give images that cannot be decoded the weight 0
    process_index: int = 0
    process_count: int = 1

    def __len__(self) -> int:
        return -(-len(self.records) // self.batch_size) * (self.batch_size // self.process_count)

    def __getitem__(self, j: int) -> Example:
        """{"image": uint8 [size, size, 3], "label": int32 [], "weight": float32 []}; padding is black of weight 0.

        Raises:
            UserError: naming the file that cannot be read or decoded.
        """
        position = _global_position(j, self.batch_size, self.process_index, self.process_count)
        if position < len(self.records):
            example = _example(self.records, position, self.skip_corrupt, self.center)
            if example:
                return example | {"weight": np.float32(1)}
        black = np.zeros((self.size, self.size, 3), np.uint8)
        return {"image": black, "label": np.int32(0), "weight": np.float32(0)}


def _global_position(j: int, batch_size: int, process_index: int, process_count: int) -> int:
    """Where example j of a process, which holds a run of slots in every global batch, is among all examples."""
    local = batch_size // process_count
    step, slot = divmod(j, local)
    return step * batch_size + process_index * local + slot


def _example(
    records: Records, i: int, skip_corrupt: bool, decode_image: Callable[[bytes], np.ndarray]
) -> Example | None:
    """The decoded record, or None if it is to be left out."""
    try:
        data, label = records.read(i)
    except OSError as error:  # not a matter of `skip_corrupt`: a lost disk must not look like a few broken images
        raise UserError(f"{records.name(i)} cannot be read: {of_system(error)}") from error
    try:
        return {"image": decode_image(data), "label": np.int32(label)}
    except ValueError as error:
        if not skip_corrupt:
            raise UserError(
                f"{records.name(i)} cannot be decoded: {error}. config.stream.skip_corrupt=True would leave it out"
            ) from error
        with REPORTING:  # of several threads one
            _report(f"orc_jax: {records.name(i)} cannot be decoded: {error}; left out")
        return None


REPORTING = threading.Lock()


@functools.cache
def _report(line: str) -> None:
    """Prints to stderr what this process has not printed before."""
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def batches(source: TrainExamples | EvalExamples, batch_size: int, num_workers: int) -> Iterator[Iterator[Example]]:
    """Opens the examples of `source` in order, stacked to batches; leaving the context ends the workers.

    `batch_size` is that of this process, and divides the number of examples. `num_workers` processes decode; with 0 the
    threads of this one do.

    Yields:
        An iterator of dicts of arrays `[batch_size, ...]`. It raises UserError: that of an example, or one that tells
        that a worker has died.
    """
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain asks for its own flags, which only an absl app has parsed
    chunk = max(size for size in range(1, min(CHUNK, batch_size) + 1) if batch_size % size == 0)
    num_workers = min(num_workers, len(source) // chunk)
    threads = 1 if num_workers else os.cpu_count() or 1
    # Without end, because at its end grain waits for its workers, and keeps batches in cycles of garbage.
    examples: Any = source
    dataset = grain.MapDataset.source(examples).batch(chunk).repeat()
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    if num_workers:
        options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(options, worker_init_fn=end_with_parent)
    dataset = dataset.batch(batch_size // chunk, batch_fn=_concatenate)
    with sharing():
        if num_workers:
            start_tracker()
        iterator = iter(grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=1))
    try:
        with interrupts_blocked(), sharing():
            iterator.start_prefetch()
        yield _first(len(source) // batch_size, iterator)
    except BaseException:
        iterator.close()  # not in a thread: the program may be about to exit, when grain cannot start its own any more
        raise
    # In a thread, because grain waits for one worker after the other, a third of a second for each.
    threading.Thread(target=_close, args=[iterator]).start()


def _close(iterator: Any) -> None:
    iterator.close()
    time.sleep(0.3)  # for grain's thread that gives shared memory back, for which an exit would not wait


def _concatenate(parts: Sequence[Example]) -> Example:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _first(count: int, iterator: Iterator[Example]) -> Iterator[Example]:
    """The first `count` elements."""
    try:
        for _ in range(count):
            with sharing():
                element = next(iterator)
            yield element
    except RuntimeError as error:
        code = re.search(r"Worker process was terminated unexpectedly with exit code (-?\d+)", str(error))
        if not code:
            raise
        raise UserError(_death(int(code[1]))) from None


def _death(exit_code: int) -> str:
    """What to tell the person whose worker process has ended."""
    reasons = {
        -signal.SIGKILL: "the memory may have run out, of which fewer config.stream.num_workers need less",
        -signal.SIGBUS: SHARED_MEMORY,
    }
    reason = reasons.get(exit_code, "what it has printed may tell why")
    return f"a worker process of the input pipeline has ended with exit code {exit_code}: {reason}"
