"""What a method is: one iteration of its paper, as a function on a pool."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from orc_jax.data.sets import Images
from orc_jax.step import Context, Stacks


class Method(NamedTuple):
    """A method of distillation, made by a factory as an optax optimizer is: `orc(temperature=4.0)`.

    iterate: `(context, stacks, batch) -> (stacks, metrics)`. One iteration on one mini-batch, inside the compiled
        step, on this device's share of the batch. `batch.images` are augmented and still uint8. Values that decide
        anything go through `context.mean` or `context.gather` first. `metrics` maps each name of `metrics` to a value
        per member, `[members]`, the same on all devices.
    check: architectures in member order -> None; raises `UserError` for a pool that the method cannot train.
    metrics: names of the metrics that `iterate` returns; always among them "loss" (cross-entropy on the batch) and
        "accuracy".
    pretrained: members that the method takes as already trained, or first trains if there is no checkpoint of them.
    frozen: those of them that never learn, so that starting them from scratch would be a mistake.
    """

    iterate: Callable[[Context, Stacks, Images], tuple[Stacks, dict[str, jax.Array]]]
    check: Callable[[Sequence[str]], None]
    metrics: tuple[str, ...]
    pretrained: tuple[int, ...] = ()
    frozen: tuple[int, ...] = ()
