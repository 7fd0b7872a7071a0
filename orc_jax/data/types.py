"""What a set of images is. Worker processes import this module: no JAX."""

from typing import Any, NamedTuple, Protocol

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
    """A training and an evaluation set, and what a network must know about them."""

    name: str
    train: Images | Records
    test: Images | Records
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # (height, width, channels) as the networks get them
    mean: tuple[float, ...]  # per channel
    std: tuple[float, ...]
    # Of a streamed set: its images are no larger than the networks' and small, so they are seen and cropped as those of
    # sets in memory are.
    whole: bool = False

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def is_streamed(self) -> bool:
        return not isinstance(self.train, Images)

    @property
    def num_train(self) -> int:
        return size(self.train)


def size(examples: Images | Records) -> int:
    """The number of examples of a set."""
    return len(examples.labels) if isinstance(examples, Images) else len(examples)
