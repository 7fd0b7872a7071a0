"""The backbones, by the names that the field's tables use.

A model is a Flax NNX module `Model(num_classes, *, in_channels, dtype, axis_name, rngs)`; called on images
`[batch, height, width, channels]` it returns `(logits [batch, classes] float32, features [batch, dim])`.
"""

from collections.abc import Callable
from functools import partial

from flax import nnx

from orc_jax.models.resnet_cifar import WIDE, ResNet

# Every depth 6n+2 of the two ResNet families, from the shallowest to the deepest.
RESNETS = {f"resnet{6 * n + 2}": partial(ResNet, blocks=n) for n in range(1, 19)}
RESNETS_X4 = {f"resnet{6 * n + 2}x4": partial(ResNet, blocks=n, widths=WIDE) for n in range(1, 6)}

MODELS: dict[str, Callable[..., nnx.Module]] = {**RESNETS, **RESNETS_X4}

# Families whose members differ in depth alone, in order of depth: what a ladder of assistants is taken from.
LADDERS: tuple[tuple[str, ...], ...] = (tuple(RESNETS), tuple(RESNETS_X4))


def ladder(teacher: str, student: str, count: int) -> tuple[str, ...]:
    """The architectures of `count` assistants between `teacher` and `student`, from large to small.

    Within one family the numbers of blocks fall geometrically, so that each network is smaller than the one before it
    by about the same factor: resnet56 and resnet20 give resnet44, resnet32, resnet26. Where there are fewer depths
    between the two than assistants, depths repeat. Networks of different families have no ladder between them: the
    assistants are then copies of the student.
    """
    for family in LADDERS:
        if teacher in family and student in family:
            top, bottom = family.index(teacher) + 1, family.index(student) + 1
            ratio = bottom / top
            steps = ((i + 1) / (count + 1) for i in range(count))
            return tuple(family[round(top * ratio**x) - 1] for x in steps)
    return (student,) * count
