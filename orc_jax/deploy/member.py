"""One member of a trained pool, taken out of its run: its weights, what it computes, and what its images must be."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from orc_jax import plugins
from orc_jax.data.augment import normalize
from orc_jax.data.decode import resize, resize_and_center_crop
from orc_jax.errors import UserError, unknown
from orc_jax.models import Model
from orc_jax.models.network import Params, make_network
from orc_jax.pool import names_of
from orc_jax.workdir import checkpoint, record

TARGET = "target"


class Member(NamedTuple):
    """A network by itself, and all that its user must know."""

    name: str  # as in the logs of its run: 0_resnet56
    architecture: str
    model: Model
    step: int  # of the checkpoint
    weights: tuple[Params, Params]  # parameters and running statistics
    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # (height, width, channels)
    mean: tuple[float, ...]  # per channel, of images in [0, 1]
    std: tuple[float, ...]
    crop: float | None  # share of an image's short side that evaluation keeps; None: the whole image, resized

    def image(self, data: bytes) -> np.ndarray:
        """An encoded image as evaluation sees it: uint8 of `image_shape`.

        Raises:
            ValueError: with a short reason, if it cannot be decoded.
        """
        if self.crop is None:
            return resize(data, self.image_shape)
        return resize_and_center_crop(data, self.image_shape[0], self.crop)


def load_member(workdir: Path, which_member: str, which_checkpoint: str, own: Sequence[str] = ()) -> Member:
    """A member ("target", a number, or a name in the logs) of the run in `workdir` at a checkpoint.

    The run may be imported weights; the checkpoint is "latest", "best" or a step; `own` is what it may import of
    modules of one's own.

    Raises:
        UserError: if there is no run, member or checkpoint like that, or it cannot be read.
    """
    there = record.require(workdir)
    if not checkpoint.has_checkpoint(workdir):
        raise UserError(f"--workdir={workdir} holds a run without a checkpoint")
    number = find_member(there.architectures, which_member)
    imported = plugins.load([("--own", name) for name in own])
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    trained = checkpoint.restore_networks(workdir, there, which_checkpoint, device, imported)
    state = jax.device_get(trained.pool.member(number))
    architecture = there.architectures[number]
    return Member(
        name=trained.pool.spec.member_names[number],
        architecture=architecture,
        model=plugins.models([architecture], imported)[architecture],
        step=trained.step,
        weights=(state.params, state.batch_stats),
        num_classes=there.num_classes,
        class_names=there.class_names,
        image_shape=there.image_shape,
        mean=there.mean,
        std=there.std,
        crop=there.eval_crop,
    )


def find_member(architectures: Sequence[str], which: str) -> int:
    """The number of the member that `which` means.

    Raises:
        UserError: if there is none.
    """
    names = names_of(architectures)
    accepted = {TARGET: len(names) - 1} | {str(i): i for i in range(len(names))} | {n: i for i, n in enumerate(names)}
    if which not in accepted:
        raise unknown("--member", which, accepted)
    return accepted[which]


def classifier(
    member: Member, convolution: Callable | None = None
) -> Callable[[tuple[Params, Params], jax.Array], jax.Array]:
    """The member as a function: (weights, uint8 images `[batch, height, width, channels]`) -> float32 logits.

    It computes in float32, also if the run was trained with activations in bfloat16. `convolution` is as in
    `orc_jax.models.network.make_network`.
    """
    network = make_network(member.model, member.num_classes, member.image_shape, convolution=convolution)

    def logits(weights, images):
        return network.predict(*weights, normalize(images, member.mean, member.std))[0]

    return logits
