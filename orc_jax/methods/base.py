"""What a method is: one iteration of its paper as a function on a pool, and what has to be trained before."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from orc_jax.data.types import Images
from orc_jax.errors import UserError
from orc_jax.losses import correct, cross_entropy
from orc_jax.models import Model
from orc_jax.models.network import Params
from orc_jax.pool import Outputs, Pool, Stacks
from orc_jax.verbs import Context, Setup, predict

OBJECTIVE = "objective"  # the metric of a loss that is not of labels


class Stage(NamedTuple):
    """A run that comes before the method's own: it trains `members` by `method`, in a folder `name` of the workdir.

    Members that an earlier stage has trained start from there, and so do heads of the same name. The first stage of a
    method is its pivot teacher's: it takes `config.pretrain_epochs`, and `config.pivot_checkpoint` stands in for it.

    method: one of a person's own, of `METHODS` or, with the options of the method that it comes before, of `STAGES`.
    fields: those of the config that are others in it, such as its length `num_epochs` and its `learning_rate`.
    """

    name: str
    method: str
    members: tuple[int, ...]
    fields: Mapping[str, Any] = MappingProxyType({})


class Share(NamedTuple):
    """A metric that is a share of iterations: summaries show its mean over the run, reports its course.

    adds_up: in every iteration as much is shared out among the members.
    """

    metric: str
    title: str  # what is shared out
    text: str  # what one sees
    adds_up: bool = False


class HeldOut(NamedTuple):
    """What a method finds out, after every epoch, on training examples that nobody is trained on.

    share: of the training set, which has to be in memory.
    observe: logits `[members, batch, classes]` in evaluation mode, labels and weights `[batch]` -> sums over the batch,
        a tree of arrays. Weights are 1 for a sample that counts and 0 for padding.
    renew: these sums over all held-out examples -> stacks to put into the pool, which `start` has put there before.
    """

    share: float
    observe: Callable[[jax.Array, jax.Array, jax.Array], Any]
    renew: Callable[[Any], Stacks]


class Method(NamedTuple):
    """A method of distillation, made for a pool by a factory `kd(architectures, *, temperature=4.0)`.

    The factory takes the architectures in member order and, by keyword, the method's options, which with their defaults
    are the fields of `config.<name>`. It raises `UserError` for a pool that the method cannot train or an option out of
    its range. The last member is the target student.

    iterate: `(context, pool, batch) -> (pool, metrics)`. One iteration on one mini-batch, inside the compiled step, on
        this device's share of the batch. `batch.images` are augmented and still uint8, with mix-up float32 in [0, 255],
        `[batch, ...]` or, with several views, `[views, batch, ...]`. Values that decide anything go through
        `context.mean` or `context.gather` first. `metrics` maps each name of `metrics` to a value per member,
        `[members]`, the same on all devices.
    roles: what each member is called, for people.
    metrics: names of the metrics that `iterate` returns; always among them "loss" (cross-entropy on the batch) and
        "accuracy"; and "objective" where another loss than of labels is minimised.
    shares: those of them that are shares of iterations.
    views: augmentations of each image: 1, or one for each member.
    stages: the runs that come before. Their members start trained.
    frozen: members that never learn, so that starting them from scratch would be a mistake.
    start: `(setup, pool, key) -> pool`: adds the heads and whatever else the method keeps, ties parameters.
    spares: how many assistants may diverge while the others go on, because no member takes anything of one whose loss
        is not finite; None if members learn from all others.
    early: its networks tell what their early layers make of the images, `Outputs.early`: those before the parts that
        `orc_jax.models.LAST_STAGE` names.
    maps: the kinds of maps of its networks' feature points that it looks at, `Outputs.maps`: some of
        `orc_jax.models.points.KINDS`.
    answers: pool, outputs of an evaluation -> logits `[members, batch, classes]` of the members as they are used, where
        these are not those of their networks alone.
    deployed: such a member as a network of its own: pool, shapes of the outputs for one image, its number and its
        model -> a model, its parameters and statistics.
    ensemble: pool, outputs of an evaluation -> logits `[batch, classes]` of the method's own ensemble. Without one, the
        ensemble is the members' mean probability.
    held_out: what the method finds out on held-out training examples, if it does.
    tied: its members share the layers of the target student.
    values: options that `iterate` takes from `context.value`: in runs that differ in these alone, arguments of one
        program.
    decided_by_labels: what `iterate` decides by each sample's one label, which a mixed batch does not have; empty if
        nothing. If it is not None, all that is learnt from labels is `context.label_loss`, which can smooth and mix.
    indexed: it has to know which examples of the training set a batch is of (`Context.index`), which must be in memory.
    hand_back: for a method with feedback samples: of the members that are neither the pivot teacher nor frozen, losses
        and whether they are wrong, `[students, batch]` -> how many each hands back, and which (see
        `orc_jax.roles.hand_back`).
    """

    iterate: Callable[[Context, Pool, Images], tuple[Pool, dict[str, jax.Array]]]
    roles: tuple[str, ...]
    metrics: tuple[str, ...] = ("loss", "accuracy")
    shares: tuple[Share, ...] = ()
    views: int = 1
    stages: tuple[Stage, ...] = ()
    frozen: tuple[int, ...] = ()
    start: Callable[[Setup, Pool, jax.Array], Pool] | None = None
    spares: int | None = None
    early: bool = False
    maps: tuple[str, ...] = ()
    answers: Callable[[Pool, Outputs], jax.Array] | None = None
    deployed: Callable[[Pool, Outputs, int, Model], tuple[Model, Params, Params]] | None = None
    ensemble: Callable[[Pool, Outputs], jax.Array] | None = None
    held_out: HeldOut | None = None
    tied: bool = False
    indexed: bool = False
    values: tuple[str, ...] = ()
    hand_back: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None = None
    decided_by_labels: str | None = None


def evaluated(method: Method, pool: Pool, images: jax.Array) -> Outputs:
    """What the members make of normalised images as they are used, in evaluation mode."""
    out = predict(pool, images)
    return out._replace(logits=method.answers(pool, out)) if method.answers else out


def pool_roles(size: int, first: str, others: str) -> tuple[str, ...]:
    """Roles of a pool: `first` for member 0, `others`, and the target student last."""
    return (first, *[others] * (size - 2), "target student")[-size:]


def require_members(method: str, architectures: Sequence[str], least: int) -> None:
    """Raises `UserError` for a pool of fewer than `least` members."""
    if len(architectures) < least:
        raise UserError(f"config.num_networks={len(architectures)}: {method} needs at least {least}")


def scores(context: Context, logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """The metrics of every method: each member's mean cross-entropy and accuracy on the global batch.

    Args:
        context: for the mean over devices.
        logits: `[members, batch, classes]`.
        labels: `[batch]`.
    """
    return {
        "loss": context.mean(context.by_labels(cross_entropy, logits, labels).mean(1)),
        "accuracy": context.mean(context.by_labels(correct, logits, labels).mean(1)),
    }


def rampup(progress: jax.Array, fraction: float) -> jax.Array:
    """`exp(-5 (1 - progress / fraction)^2)` up to `fraction` of the run, then 1 (Laine, Aila; 2017)."""
    missing = jnp.maximum(1.0 - progress / fraction, 0.0) if fraction else jnp.zeros(())
    return jnp.exp(-5.0 * jnp.square(missing))
