"""What a set of images is. Worker processes import this module: no JAX."""

from typing import Any, NamedTuple, Protocol

import numpy as np

from orc_jax.errors import UserError

Array = Any  # of NumPy on the host, of JAX on a device
Batch = Any  # `Images`, or rows of the set that lies on the devices: int32 [n]


class Images(NamedTuple):
    """A labelled set, or a batch of one, on the host or on a device."""

    images: Array  # uint8 [n, height, width, channels]
    labels: Array  # int32 [n]


class Records(Protocol):
    """A labelled set that is streamed: encoded images, read one by one. Worker processes get a pickled copy."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> tuple[bytes, int]:
        """The encoded image and the label of example `i`."""
        ...

    def name(self, i: int) -> str:
        """What to call example `i` in a message."""
        ...


class Dataset(NamedTuple):
    """A training and an evaluation set, and what a network must know about them.

    The evaluation set `test` is that of the first split that a run is evaluated on, which selects its best checkpoint.
    """

    name: str
    train: Images | Records
    test: Images | Records
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # (height, width, channels) as the networks get them
    mean: tuple[float, ...]  # per channel
    std: tuple[float, ...]
    held_out: Images | None = None  # of the training set, if a method asks for it: not trained on
    # Of a streamed set: its images are no larger than the networks' and small, so they are seen and cropped as those of
    # sets in memory are.
    whole: bool = False
    others: tuple[tuple[str, Images | Records], ...] = ()  # further splits to evaluate on, by name

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def is_streamed(self) -> bool:
        return not isinstance(self.train, Images)

    @property
    def num_train(self) -> int:
        return size(self.train)


def hold_out(dataset: Dataset, share: float) -> Dataset:
    """The set with a share of its training examples held out: every n-th, so that a sorted set loses of all classes.

    Raises:
        UserError: if the set is streamed, or so small that nothing would be held out.
    """
    every = round(1 / share)
    if not isinstance(dataset.train, Images) or size(dataset.train) < every:
        raise UserError(
            f"config.dataset: {dataset.name} is streamed or has fewer than {every} training examples; accepted is a "
            "set in memory, of which the method can hold some out"
        )
    chosen = np.arange(size(dataset.train)) % every == every - 1
    kept, held_out = (Images(*(of[rows] for of in dataset.train)) for rows in (~chosen, chosen))
    return dataset._replace(train=kept, held_out=held_out)


def size(examples: Images | Records) -> int:
    """The number of examples of a set."""
    return len(examples.labels) if isinstance(examples, Images) else len(examples)
