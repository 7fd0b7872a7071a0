"""One training step and one evaluation step of a pool: pure functions, the same for every method.

A method (see `orc_jax.methods.base`) writes one iteration of its paper with the three verbs of this module: `forward`,
`predict` and `learn`. The step around it picks the images, augments them, and keeps the totals of the metrics.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from orc_jax import optim, parallel, rngs
from orc_jax import pool as pools
from orc_jax.data.augment import crop_and_flip, normalize
from orc_jax.data.sets import Images
from orc_jax.pool import Params, Pool
from orc_jax.roles import gate


@flax.struct.dataclass
class StackState:
    """All that changes of a stack; every leaf is `[members, ...]`."""

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


class Setup(NamedTuple):
    """What is static about a run's step."""

    pool: Pool
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    lr_multipliers: dict[str, float]  # by architecture
    mean: tuple[float, ...]  # per channel
    std: tuple[float, ...]
    crop_padding: int
    flip: bool
    axis_name: str | None  # the mapped axis of devices; None outside pmap


class Context(NamedTuple):
    """What a method gets to see of the iteration it is in."""

    setup: Setup
    step: jax.Array
    key: jax.Array  # of the stream "method": the same on all devices

    @property
    def pool(self) -> Pool:
        return self.setup.pool

    def normalize(self, images: jax.Array) -> jax.Array:
        """Images as the networks take them: float32 `[batch, height, width, channels]`."""
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

    logits: jax.Array  # [members, batch, classes], no gradient attached
    pullback: Callable[[jax.Array], dict[str, Params]]  # cotangent of the logits -> gradients by stack
    batch_stats: dict[str, Params]


def init_stacks(setup: Setup, seed: int | jax.Array) -> Stacks:
    """The initial stacks of a pool; a member's depend on the seed and its position alone."""
    params, batch_stats = pools.init(setup.pool, seed)
    return {
        name: StackState(params[name], batch_stats[name], jax.vmap(setup.optimizer.init)(params[name]))
        for name in params
    }


def init_state(setup: Setup, metrics: tuple[str, ...], seed: int | jax.Array) -> TrainState:
    """The state before the first step. `metrics` are the names that the method reports."""
    return reset_totals(
        TrainState(
            step=jnp.zeros((), jnp.int32),
            seed=jnp.asarray(seed, jnp.uint32),
            stacks=init_stacks(setup, seed),
            totals={name: jnp.zeros(setup.pool.size) for name in metrics},
            iterations=jnp.zeros(()),
        )
    )


def reset_totals(state: TrainState) -> TrainState:
    """`state` with the totals of the metrics back at zero, as at the start of an epoch."""
    totals, iterations = jax.tree.map(jnp.zeros_like, (state.totals, state.iterations))
    return state.replace(totals=totals, iterations=iterations)


def forward(pool: Pool, stacks: Stacks, images: jax.Array) -> Forward:
    """The members of `pool` on normalised `images`, in training mode. Nothing changes until `learn`."""
    batch_stats = {name: stack.batch_stats for name, stack in stacks.items()}
    params = {name: stack.params for name, stack in stacks.items()}
    logits, pullback, moved = jax.vjp(
        lambda params: pools.train_logits(pool, params, batch_stats, images), params, has_aux=True
    )
    return Forward(logits, lambda cotangent: pullback(cotangent)[0], moved)


def predict(pool: Pool, stacks: Stacks, images: jax.Array) -> jax.Array:
    """Logits `[members, batch, classes]` of the members of `pool` in evaluation mode."""
    params = {name: stack.params for name, stack in stacks.items()}
    batch_stats = {name: stack.batch_stats for name, stack in stacks.items()}
    return pools.predict_logits(pool, params, batch_stats, images)


def learn(
    context: Context,
    pool: Pool,
    stacks: Stacks,
    passed: Forward,
    loss: Callable[[jax.Array], jax.Array],
    *,
    learns: jax.Array | None = None,
    lr_multiplier: float = 1.0,
) -> tuple[Stacks, jax.Array]:
    """One update of the members of `pool` from a forward pass they have made.

    The objective is the *sum* over members of their losses, so a member's gradient is exactly that of its own loss,
    whatever the size of the pool, as long as `loss` stops the gradient of what it takes from other members.

    Args:
        context: of this iteration.
        pool: the members that made the pass.
        stacks: their states.
        passed: the pass.
        loss: logits `[members, batch, classes]` -> losses `[members, batch]` of each member on this device's samples.
        learns: bool `[members]`; the others keep parameters, optimizer state and statistics bit for bit.
        lr_multiplier: of this update, on top of the schedule and the architecture's own.

    Returns:
        The new stacks, and each member's mean loss over the global batch, `[members]`.
    """
    losses, pull_loss = jax.vjp(lambda logits: loss(logits).mean(-1), passed.logits)
    (cotangent,) = pull_loss(jnp.ones_like(losses))
    grads = context.mean(passed.pullback(cotangent))
    rate = context.setup.learning_rate(context.step) * lr_multiplier
    masks = None if learns is None else pools.by_stack(pool, learns)
    new_stacks = {}
    for name, stack in stacks.items():
        stack_rate = rate * context.setup.lr_multipliers.get(name, 1.0)
        params, opt_state = optim.update(
            context.setup.optimizer, stack.params, stack.opt_state, grads[name], stack_rate
        )
        updated = StackState(params, passed.batch_stats[name], opt_state)
        new_stacks[name] = updated if masks is None else gate(masks[name], updated, stack)
    return new_stacks, context.mean(losses)


def pick(data: Images | None, batch: jax.Array | Images) -> Images:
    """The examples of a batch (see `orc_jax.data.feed`): rows of the set on the device, or what the batch carries."""
    return batch if data is None else Images(data.images[batch], data.labels[batch])


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
        slots = parallel.local_slots(examples.labels.shape[0], setup.axis_name)
        key = rngs.stream_key(state.seed, "augment", state.step)
        keys = jax.vmap(lambda slot: jax.random.fold_in(key, slot))(slots)
        images = crop_and_flip(keys, examples.images, setup.crop_padding, setup.flip)
        context = Context(setup, state.step, rngs.stream_key(state.seed, "method", state.step))
        stacks, metrics = iterate(context, state.stacks, Images(images, examples.labels))
        totals = {name: total + metrics[name] for name, total in state.totals.items()}
        return state.replace(step=state.step + 1, stacks=stacks, totals=totals, iterations=state.iterations + 1)

    return train_step


class Evaluation(NamedTuple):
    """Sums over samples: of every member in member order, and last of the ensemble (their mean probability)."""

    top1: jax.Array  # [members + 1]
    top5: jax.Array
    loss: jax.Array
    count: jax.Array  # []


def make_evaluation_step(
    setup: Setup,
) -> Callable[[Stacks, Images | None, tuple[jax.Array | Images, jax.Array]], Evaluation]:
    """The evaluation step: `(stacks, set on the device, (batch, weights [batch])) -> Evaluation` of these samples.

    Weights are 1 for a sample that counts and 0 for padding.
    """

    def evaluation_step(stacks: Stacks, data: Images | None, batch: tuple[jax.Array | Images, jax.Array]) -> Evaluation:
        batch, weights = batch
        images, labels = pick(data, batch)
        images = normalize(images, setup.mean, setup.std)
        log_probs = jax.nn.log_softmax(predict(setup.pool, stacks, images))
        ensemble = jax.nn.logsumexp(log_probs, axis=0) - jnp.log(setup.pool.size)
        log_probs = jnp.concatenate([log_probs, ensemble[None]])
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
