"""One member of a trained pool, taken out of its run: its weights, what it computes, and what its images must be."""

import contextlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from orc_jax import plugins
from orc_jax.config import reopen
from orc_jax.data.augment import normalize
from orc_jax.data.decode import resize, resize_and_center_crop
from orc_jax.data.types import Dataset, Images
from orc_jax.deploy.finite import require_usable
from orc_jax.errors import UserError, require
from orc_jax.evaluate import heads
from orc_jax.methods import OFFLINE
from orc_jax.methods.base import Method
from orc_jax.models import Model
from orc_jax.models.conv import convolution_for
from orc_jax.models.network import Network, Params, make_network
from orc_jax.pool import names_of
from orc_jax.run import Run, build
from orc_jax.verbs import predict
from orc_jax.workdir import checkpoint, metrics, record
from orc_jax.workdir.comparison import of_replica
from orc_jax.workdir.record import Record

USED = " as used by "  # in the architecture of a member that is more than its network
INSTEAD = ": it has diverged. Another --checkpoint or --member may be sound"


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
    pixel_range: tuple[float, ...] = ()  # black and white of images of more than 8 bits; (): that of their mode
    ema: bool = False  # whether the weights are the member's averages

    def image(self, data: bytes) -> np.ndarray:
        """An encoded image as evaluation sees it: uint8 of `image_shape`.

        Raises:
            ValueError: with a short reason, if it cannot be decoded.
        """
        if self.crop is None:
            return resize(data, self.image_shape, self.pixel_range)
        return resize_and_center_crop(data, self.image_shape[0], self.crop, self.pixel_range)


def load_member(
    workdir: Path, which_member: str, which_checkpoint: str, own: Sequence[str] = (), ema: bool | None = None
) -> Member:
    """A member (see `find_member`) of the run in `workdir` at a checkpoint.

    Of replicas, and other comparisons, the member names the run as well: `student@2` (see `comparison.of_replica`).
    The run may be imported weights; the checkpoint is "latest", "best" or a step; `own` is what it may import of
    modules of one's own. With `ema` its weights are the averages of the member, without it they are not; None is as
    the run evaluates its members.

    Raises:
        UserError: if there is no run, member, checkpoint or average like that, or it cannot be read; if its weights are
            not finite.
    """
    workdir, which_member = of_replica(workdir, which_member)
    there = record.require(workdir)
    step = checkpoint.step_of(workdir, which_checkpoint)
    number = find_member(there, workdir, which_member, step, own)
    imported = plugins.load([("--own", name) for name in own])
    architecture, name = there.architectures[number], names_of(there.architectures)[number]
    model = plugins.models([architecture], imported)[architecture]
    method = _method(there, own)
    if method and method.deployed:
        run = run_of(there, own)
        trained = checkpoint.restore_networks(
            workdir, there, str(step), run.sharding, run.resolved.plugins, heads(run), ema=ema
        )
        pool = trained.pool.replace(spec=run.spec)
        images = jax.ShapeDtypeStruct((1, *there.image_shape), np.float32)
        shapes = jax.eval_shape(lambda images: predict(pool, images), images)
        alone, (model, params, batch_stats) = model, method.deployed(pool, shapes, number, model)
        architecture += "" if model is alone else f"{USED}{there.fields.method}"
    else:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        trained = checkpoint.restore_networks(
            workdir, there, str(step), device, imported, architectures=[architecture], ema=ema
        )
        state = trained.pool.member(number)
        params, batch_stats = state.params, state.batch_stats
    params, batch_stats = jax.device_get((params, batch_stats))
    require_usable(f"{name} of step {step} in {workdir}", params, batch_stats, INSTEAD)
    return Member(
        name=name,
        architecture=architecture,
        model=model,
        step=trained.step,
        weights=(params, batch_stats),
        num_classes=there.num_classes,
        class_names=there.class_names,
        image_shape=there.image_shape,
        mean=there.mean,
        std=there.std,
        crop=there.eval_crop,
        pixel_range=there.pixel_range,
        ema=there.fields.eval_ema if ema is None else ema,
    )


def find_member(there: Record, workdir: Path, which: str, step: int, own: Sequence[str] = ()) -> int:
    """The number of the member that `which` means, of the run `there` in `workdir`.

    It may be a number, a name in the logs (0_resnet56), a role (pivot teacher, target student), or any part of these
    that only one member has; "best" is the member with the highest top-1 at the checkpoint of `step`.

    Raises:
        UserError: if there is none, or several.
    """
    names, roles = names_of(there.architectures), _roles(there, own)
    if re.fullmatch(r"-?\d+", which):
        require("--member", which, 0 <= int(which) < len(names), f"a number from 0 to {len(names) - 1}, or a name")
        return int(which)
    if which == "best":
        return names.index(best_member(workdir, step, names))
    asked = _plain(which)
    words = [tuple(map(_plain, of)) for of in zip(names, there.architectures, roles, strict=True)]
    exact = [i for i, of in enumerate(words) if asked in of]
    parts = [i for i, of in enumerate(words) if any(asked in word for word in of)]
    found = exact or parts if asked else []
    listed = ", ".join(f"{name} ({role})" if role else name for name, role in zip(names, roles, strict=True))
    if len(found) > 1:
        raise UserError(f"--member={which!r} is not one member but {', '.join(names[i] for i in found)}; all: {listed}")
    if not found:
        raise UserError(
            f"--member={which!r} is not known. Accepted: a number, a name or a role, or a part that only one has: "
            f"{listed}; or best"
        )
    return found[0]


def _plain(text: str) -> str:
    """Without what people write in different ways."""
    return re.sub(r"[\s_-]", "", text.lower())


def _method(there: Record, own: Sequence[str]) -> Method | None:
    """That of a run; None for imported weights, and if it is not known here."""
    if there.imported is not None:
        return None
    with contextlib.suppress(UserError):
        resolved = reopen(there.fields, own)
        if resolved.architectures == there.architectures:
            return resolved.method
    name = there.fields.method  # networks of its pool may be a person's own that are not imported here
    return OFFLINE[name](there.architectures, **there.fields[name]) if name in OFFLINE else None


def _roles(there: Record, own: Sequence[str]) -> Sequence[str]:
    """The roles of the members; without a method, the last is the target."""
    method = _method(there, own)
    return method.roles if method else [*[""] * (len(there.architectures) - 1), "target student"]


def run_of(there: Record, own: Sequence[str]) -> Run:
    """The run of a record, on data of which only the shapes are known."""
    images = np.broadcast_to(np.uint8(0), (there.num_train, *there.image_shape))
    split = Images(images, np.broadcast_to(np.int32(0), (there.num_train,)))
    names = there.class_names or tuple(map(str, range(there.num_classes)))
    dataset = Dataset("", split, split, names, there.image_shape, there.mean, there.std)
    return build(reopen(there.fields, own), dataset, jax.local_devices()[:1], axis_name=None)


def best_member(workdir: Path, step: int, names: Sequence[str]) -> str:
    """The name of the member with the highest top-1 in the evaluation at `step`; the first of equals.

    Raises:
        UserError: if there was none.
    """
    if len(names) == 1:
        return names[0]
    for row in metrics.evaluated(metrics.read(workdir)):
        if row["step"] == step:
            return max(names, key=lambda name: row[metrics.evaluation("top1", name)])
    raise UserError(f"--member=best: the checkpoint of step {step} in {workdir} was not evaluated in training")


def network_of(member: Member, convolution: Callable | None = None) -> Network:
    """The member's network, for where JAX runs now, or with another `convolution` (see `make_network`)."""
    chosen = convolution or convolution_for(jax.default_backend())
    return make_network(member.model, member.num_classes, member.image_shape, convolution=chosen)


def classifier(
    member: Member, convolution: Callable | None = None
) -> Callable[[tuple[Params, Params], jax.Array], jax.Array]:
    """The member as a function: (weights, uint8 images `[batch, height, width, channels]`) -> float32 logits.

    It computes in float32, also if the run was trained with activations in bfloat16. `convolution` is as in
    `network_of`.
    """
    network = network_of(member, convolution)

    def logits(weights, images):
        return network.predict(*weights, normalize(images, member.mean, member.std))[0]

    return logits
