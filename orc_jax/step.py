"""One training step and one evaluation step of a pool: pure functions, the same for every method.

A method (see `orc_jax.methods.base`) writes one iteration of its paper with the three verbs of this module: `forward`,
`predict` and `learn`. The step around it picks the images, augments them, and keeps the totals of the metrics.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from orc_jax import optim, parallel, rngs
from orc_jax import pool as pools
from orc_jax.data.augment import crop_and_flip, normalize
from orc_jax.data.sets import Images
from orc_jax.pool import Outputs, Params, Pool, Pullback, Stack
from orc_jax.roles import gate

if TYPE_CHECKING:
    from orc_jax.methods.base import Method


@flax.struct.dataclass
class StackState:
    """All that changes of a stack; every leaf is `[members, ...]`. A head (see `Outputs`) is a stack of one."""

    params: Params
    batch_stats: Params
    opt_state: Any


Stacks = dict[str, StackState]


@flax.struct.dataclass
class TrainState:
    """All that changes in a run. `step` is its only clock, `seed` the root of all its keys."""

    step: jax.Array  # int32 []
    seed: jax.Array  # uint32 []
    stacks: Stacks
    totals: dict[str, jax.Array]  # metric -> sum over the iterations since the last report, [members]
    iterations: jax.Array  # how many these are, float32 []
    diverged_at: jax.Array  # the first step with a loss that is not finite, counted from 1; 0 is none; int32 [members]


class Setup(NamedTuple):
    """What is static about a run's step."""

    pool: Pool
    image_shape: tuple[int, int, int]
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    lr_multipliers: dict[str, float]  # by architecture
    mean: tuple[float, ...]  # per channel
    std: tuple[float, ...]
    crop_padding: int
    flip: bool
    views: int  # augmentations of each image: 1, or one for each member
    num_steps: int  # of the run
    axis_name: str | None  # the mapped axis of devices; None outside pmap


class Context(NamedTuple):
    """What a method gets to see of the iteration it is in."""

    setup: Setup
    step: jax.Array
    key: jax.Array  # of the stream "method": the same on all devices

    @property
    def pool(self) -> Pool:
        return self.setup.pool

    @property
    def progress(self) -> jax.Array:
        """The share of the run that is over, in [0, 1)."""
        return self.step / self.setup.num_steps

    def normalize(self, images: jax.Array) -> jax.Array:
        """Images as the networks take them: float32 of the same shape."""
        return normalize(images, self.setup.mean, self.setup.std)

    def mean(self, x: jax.Array) -> jax.Array:
        """The mean of a device's value over all devices; whatever decides must go through this or `gather`."""
        return parallel.mean(x, self.setup.axis_name)

    def gather(self, x: jax.Array, axis: int = 0) -> jax.Array:
        """The global batch's values, from each device's share of it along `axis`."""
        return parallel.gather(x, self.setup.axis_name, axis)

    def local(self, x: jax.Array, local_size: int) -> jax.Array:
        """This device's share of `x` `[global batch, ...]`: the inverse of `gather`."""
        return x[parallel.local_slots(local_size, self.setup.axis_name)]


class Forward(NamedTuple):
    """A forward pass in training mode that can still be learnt from."""

    outputs: Outputs  # no gradient attached
    pullbacks: dict[str, Pullback]  # by stack
    batch_stats: dict[str, Params]

    @property
    def logits(self) -> jax.Array:
        return self.outputs.logits


def new_stack(setup: Setup, params: Params, batch_stats: Params) -> StackState:
    """The state of a stack or head that starts from `params` and `batch_stats`; all leaves are `[members, ...]`."""
    return StackState(params, batch_stats, jax.vmap(setup.optimizer.init)(params))


def init_stacks(setup: Setup, method: "Method", seed: int | jax.Array) -> Stacks:
    """The initial stacks of a pool, and what the method adds to them."""
    params, batch_stats = pools.init(setup.pool, seed)
    stacks = {name: new_stack(setup, params[name], batch_stats[name]) for name in params}
    return method.start(setup, stacks, rngs.stream_key(seed, "heads")) if method.start else stacks


def init_state(setup: Setup, method: "Method", seed: int | jax.Array) -> TrainState:
    """The state before the first step."""
    return reset_totals(
        TrainState(
            step=jnp.zeros((), jnp.int32),
            seed=jnp.asarray(seed, jnp.uint32),
            stacks=init_stacks(setup, method, seed),
            totals={name: jnp.zeros(setup.pool.size) for name in method.metrics},
            iterations=jnp.zeros(()),
            diverged_at=jnp.zeros(setup.pool.size, jnp.int32),
        )
    )


def reset_totals(state: TrainState) -> TrainState:
    """`state` with the totals of the metrics back at zero, as at the start of an epoch."""
    totals, iterations = jax.tree.map(jnp.zeros_like, (state.totals, state.iterations))
    return state.replace(totals=totals, iterations=iterations)


def forward(pool: Pool, stacks: Stacks, images: jax.Array) -> Forward:
    """The members of `pool` on normalised `images`, in training mode. Nothing changes until `learn`.

    Args:
        pool: the members.
        stacks: theirs, and those of the heads that learn with them.
        images: `[batch, ...]` for all members, or `[members, batch, ...]`.
    """
    batch_stats = {name: stack.batch_stats for name, stack in stacks.items()}
    params = {name: stack.params for name, stack in stacks.items()}
    return Forward(*pools.train(pool, params, batch_stats, images))


def part(passed: Forward, stack: Stack, row: jax.Array) -> Forward:
    """The part of a pass that is the member in `row` of `stack`: a pass of `orc_jax.pool.one_member`."""
    features, pullback, batch_stats = pools.take_row(
        (passed.outputs.features[stack.name], passed.pullbacks[stack.name], passed.batch_stats[stack.name]), row
    )
    logits = pools.take_row(passed.logits, jnp.array(stack.members)[row])
    outputs = Outputs(logits, {stack.name: features}, {})
    return Forward(outputs, {stack.name: pullback}, {stack.name: batch_stats})


def predict(pool: Pool, stacks: Stacks, images: jax.Array) -> Outputs:
    """The members of `pool` on normalised `images`, in evaluation mode; arguments as of `forward`."""
    params = {name: stack.params for name, stack in stacks.items()}
    batch_stats = {name: stack.batch_stats for name, stack in stacks.items()}
    return pools.predict(pool, params, batch_stats, images)


def learn(
    context: Context,
    pool: Pool,
    stacks: Stacks,
    passed: Forward,
    loss: Callable[[Outputs], jax.Array],
    *,
    learns: jax.Array | None = None,
    pauses_statistics: bool = True,
    lr_multiplier: float = 1.0,
    share: Callable[[dict[str, Params]], dict[str, Params]] | None = None,
) -> tuple[Stacks, jax.Array]:
    """One update of the members of `pool`, and of the heads among `stacks`, from a forward pass they have made.

    The objective is the *sum* of the losses, so a member's gradient is exactly that of its own loss, whatever the size
    of the pool, as long as `loss` stops the gradient of what it takes from other members.

    Args:
        context: of this iteration.
        pool: the members that made the pass.
        stacks: their states, as given to `forward`.
        passed: the pass.
        loss: outputs of the pass -> losses `[losses, batch]` on this device's samples, usually one of each member.
        learns: bool `[members]`; the others keep parameters and optimizer state bit for bit.
        pauses_statistics: members that do not learn keep their running statistics as well.
        lr_multiplier: of this update, on top of the schedule and the architecture's own.
        share: gradients by stack -> gradients by stack, for members that share parameters.

    Returns:
        The new stacks, and each loss's mean over the global batch, `[losses]`.
    """
    losses, pull_loss = jax.vjp(lambda outputs: loss(outputs).mean(-1), passed.outputs)
    (cotangent,) = pull_loss(jnp.ones_like(losses))
    grads = context.mean(pools.gradients(pool, passed.pullbacks, cotangent))
    grads = share(grads) if share else grads
    rate = context.setup.learning_rate(context.step) * lr_multiplier
    masks = {} if learns is None else pools.by_stack(pool, learns)
    new_stacks = {}
    for name, stack in stacks.items():
        stack_rate = rate * context.setup.lr_multipliers.get(name, 1.0)
        params, opt_state = optim.update(
            context.setup.optimizer, stack.params, stack.opt_state, grads[name], stack_rate
        )
        updated = StackState(params, passed.batch_stats[name], opt_state)
        if name in masks:
            paused = stack if pauses_statistics else stack.replace(batch_stats=updated.batch_stats)
            updated = gate(masks[name], updated, paused)
        new_stacks[name] = updated
    return new_stacks, context.mean(losses)


def pick(data: Images | None, batch: jax.Array | Images) -> Images:
    """The examples of a batch (see `orc_jax.data.feed`): rows of the set on the device, or what the batch carries."""
    return batch if data is None else Images(data.images[batch], data.labels[batch])


def augment(setup: Setup, state: TrainState, examples: Images) -> jax.Array:
    """Cropped and flipped images: uint8 `[batch, ...]`, or `[views, batch, ...]` if the method asks for several."""
    images = examples.images
    if setup.views > 1:
        # streamed examples come with their views, [batch, views, ...]; those of a set in memory are all the same yet
        images = jnp.moveaxis(images, 1, 0) if images.ndim == 5 else jnp.stack([images] * setup.views)
    slots = parallel.local_slots(examples.labels.shape[0], setup.axis_name)

    def one_view(view, images):
        key = rngs.stream_key(state.seed, "augment", state.step, view)
        keys = jax.vmap(lambda slot: jax.random.fold_in(key, slot))(slots)
        return crop_and_flip(keys, images, setup.crop_padding, setup.flip)

    return one_view(0, images) if setup.views == 1 else jax.vmap(one_view)(jnp.arange(setup.views), images)


def make_train_step(
    setup: Setup, iterate: Callable
) -> Callable[[TrainState, Images | None, jax.Array | Images], TrainState]:
    """The training step of a method: `(state, set on the device, batch) -> state`, as `orc_jax.data.feed` has them.

    Args:
        setup: of the run.
        iterate: the method's iteration (see `orc_jax.methods.base.Method`).
    """

    def train_step(state: TrainState, data: Images | None, batch: jax.Array | Images) -> TrainState:
        examples = pick(data, batch)
        images = augment(setup, state, examples)
        context = Context(setup, state.step, rngs.stream_key(state.seed, "method", state.step))
        stacks, metrics = iterate(context, state.stacks, Images(images, examples.labels))
        state = state.replace(
            step=state.step + 1,
            stacks=stacks,
            totals={name: total + metrics[name] for name, total in state.totals.items()},
            iterations=state.iterations + 1,
        )
        return state.replace(diverged_at=_first(state, ~jnp.isfinite(metrics["loss"])))

    return train_step


def find_diverged(pool: Pool, state: TrainState) -> jax.Array:
    """`state.diverged_at` with those members, too, whose parameters or statistics are not finite.

    Their losses would tell at the next step; this tells before a checkpoint is made of them.
    """
    finite = {
        stack.name: jnp.stack(
            [
                jnp.isfinite(leaf).all(range(1, leaf.ndim))
                for leaf in jax.tree.leaves((state.stacks[stack.name].params, state.stacks[stack.name].batch_stats))
            ]
        ).all(0)
        for stack in pool.stacks
    }
    return _first(state, ~pools.in_member_order(pool, finite))


def _first(state: TrainState, diverged: jax.Array) -> jax.Array:
    return jnp.where((state.diverged_at == 0) & diverged, state.step, state.diverged_at)


class Evaluation(NamedTuple):
    """Sums over samples: of every member in member order, and last of the ensemble."""

    top1: jax.Array  # [members + 1]
    top5: jax.Array
    loss: jax.Array
    count: jax.Array  # []


def make_evaluation_step(
    setup: Setup, ensemble: Callable[[Outputs], jax.Array] | None
) -> Callable[[Stacks, Images | None, tuple[jax.Array | Images, jax.Array]], Evaluation]:
    """The evaluation step: `(stacks, set on the device, (batch, weights [batch])) -> Evaluation` of these samples.

    Args:
        setup: of the run.
        ensemble: the method's own (see `orc_jax.methods.base.Method`), or None for the members' mean probability.

    Weights are 1 for a sample that counts and 0 for padding.
    """

    def evaluation_step(stacks: Stacks, data: Images | None, batch: tuple[jax.Array | Images, jax.Array]) -> Evaluation:
        batch, weights = batch
        images, labels = pick(data, batch)
        images = normalize(images, setup.mean, setup.std)
        outputs = predict(setup.pool, stacks, images)
        log_probs = jax.nn.log_softmax(outputs.logits)
        if ensemble:
            joint = jax.nn.log_softmax(ensemble(outputs))
        else:
            # A member that diverged is left out; without it there would be no ensemble.
            counts = ~jnp.isnan(log_probs).any(-1, keepdims=True)
            joint = jax.nn.logsumexp(jnp.where(counts, log_probs, -jnp.inf), axis=0) - jnp.log(counts.sum(0))
        log_probs = jnp.concatenate([log_probs, joint[None]])
        truth = jnp.take_along_axis(
            log_probs, jnp.broadcast_to(labels[None, :, None], (*log_probs.shape[:2], 1)), axis=-1
        )
        # Written so that NaN counts as wrong: all classes that are not certainly below the true one rank before it.
        rank = (~(log_probs <= truth)).sum(-1)
        sums = Evaluation(
            top1=((rank < 1) * weights[None]).sum(-1),
            top5=((rank < 5) * weights[None]).sum(-1),
            loss=-(truth[..., 0] * weights[None]).sum(-1),
            count=weights.sum(),
        )
        return parallel.total(sums, setup.axis_name)

    return evaluation_step
