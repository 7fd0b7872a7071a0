"""One member of a trained pool, taken out of its run: its weights, what it computes, and what its images must be."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from orc_jax import checkpoint, own
from orc_jax.config import default
from orc_jax.data.augment import normalize
from orc_jax.data.decode import resize, resize_and_center_crop
from orc_jax.errors import UserError, unknown
from orc_jax.models import LARGE
from orc_jax.pool import Params, Pool, make_network, take_member

TARGET = "target"


class Member(NamedTuple):
    """A network by itself, and all that its user must know."""

    name: str  # as in the logs of its run: 0_resnet56
    architecture: str
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


def add_member_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which member of which run: those of `load_member`."""
    parser.add_argument("--workdir", type=Path, required=True, help="of a run that was trained, or imported weights")
    parser.add_argument(
        "--member", default=TARGET, help="target (default), a position in the pool, or a name in the logs: 0_resnet56"
    )
    parser.add_argument("--checkpoint", default="latest", help="latest (default), best, or a step")
    add_own_argument(parser)


def add_own_argument(parser: argparse.ArgumentParser) -> None:
    """The argument that allows what the run has of a person's own; it takes effect as it is read."""
    help = "my_module:Thing, a network, method or data set of your own that the run has and may import; once for each"
    parser.add_argument("--own", action="append", type=_allow, help=help)


def _allow(name: str) -> str:
    own.allow([name])
    return name


def load_member(workdir: Path, which_member: str, which_checkpoint: str) -> Member:
    """A member of the run in `workdir`.

    Args:
        workdir: of a run that was trained, or of imported weights.
        which_member: "target", its position in the pool, or its name in the logs.
        which_checkpoint: "latest", "best" or a step.

    Raises:
        UserError: if there is no run, member or checkpoint like that, or it cannot be read.
    """
    description = checkpoint.read_description(workdir)
    if description is None:
        raise UserError(f"--workdir={workdir} holds no run: there is no {checkpoint.DESCRIPTION} in it")
    if not checkpoint.has_checkpoint(workdir):
        raise UserError(f"--workdir={workdir} holds a run without a checkpoint")
    position = find_member(description["members"], which_member)
    with checkpoint.open_manager(workdir, create=False) as manager:
        step = checkpoint.find_step(manager, which_checkpoint)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        pool, *stacks = checkpoint.restore_networks(manager, step, description, device)
    params, batch_stats = (jax.device_get(take_member(pool, values, position)) for values in stacks)
    return Member(
        name=pool.member_names[position],
        architecture=pool.architectures[position],
        step=step,
        weights=(params, batch_stats),
        num_classes=description["num_classes"],
        class_names=tuple(description["class_names"]),
        image_shape=tuple(description["image_shape"]),
        mean=tuple(description["mean"]),
        std=tuple(description["std"]),
        crop=_crop(description),
    )


def find_member(architectures: list[str], which: str) -> int:
    """The position of the member that `which` means.

    Raises:
        UserError: if there is none.
    """
    names = Pool(tuple(architectures), ()).member_names
    accepted = {TARGET: len(names) - 1} | {str(i): i for i in range(len(names))} | {n: i for i, n in enumerate(names)}
    if which not in accepted:
        raise unknown("--member", which, accepted)
    return accepted[which]


def _crop(description: dict) -> float | None:
    """How evaluation crops; of runs from before this was written down, by what is usual."""
    config = description["config"]
    streamed = config.get("dataset") == "folder" or description["members"][-1] in LARGE
    usual = config.get("stream", default().stream.to_dict())["eval_crop"]
    return description.get("eval_crop", usual if streamed else None)


def classifier(
    member: Member, convolution: Callable | None = None
) -> Callable[[tuple[Params, Params], jax.Array], jax.Array]:
    """The member as a function: (weights, uint8 images `[batch, height, width, channels]`) -> float32 logits.

    It computes in float32, also if the run was trained with activations in bfloat16. `convolution` is as in
    `orc_jax.pool.make_network`.
    """
    network = make_network(
        member.architecture, member.num_classes, member.image_shape, "float32", None, convolution=convolution
    )

    def logits(weights, images):
        return network.predict(*weights, normalize(images, member.mean, member.std))[0]

    return logits
