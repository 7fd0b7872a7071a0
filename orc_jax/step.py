"""One training step and one evaluation step of a pool: pure functions, the same for every method.

A method writes one iteration of its paper (see `orc_jax.methods.base`). The step around it picks the images, augments
them, and keeps the totals of the metrics.
"""

import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from orc_jax import parallel, rngs
from orc_jax import pool as pools
from orc_jax.data.augment import normalize
from orc_jax.data.mixing import Mixed, mix
from orc_jax.data.types import Batch, Images
from orc_jax.methods.base import Method, evaluated
from orc_jax.pool import Pool, PoolSpec, Stacks, StackState
from orc_jax.roles import gate
from orc_jax.verbs import Context, Setup, new_stack, predict


class TrainState(struct.PyTreeNode):
    """All that changes in a run, and arrays alone: `step` is its only clock, `seed` the root of all its keys."""

    step: jax.Array  # int32 []
    seed: jax.Array  # uint32 []
    stacks: Stacks
    totals: dict[str, jax.Array]  # metric -> sum over the iterations since the last report, [members]
    iterations: jax.Array  # how many these are, float32 []
    diverged_at: jax.Array  # the first step with a loss that is not finite, counted from 1; 0 is none; int32 [members]
    averages: Stacks = struct.field(default_factory=dict)  # of the members, if the run keeps any; without optimizers


def init_stacks(
    setup: Setup,
    method: Method,
    seed: int | jax.Array,
    trained: Mapping[int, StackState] = MappingProxyType({}),
    heads: Stacks | None = None,
) -> Stacks:
    """The initial stacks of a pool, and what the method adds to them.

    Members that are `trained` start from there, and so does what the method adds of `heads`, by name.
    """
    stacks = {name: new_stack(setup, *weights, name) for name, weights in pools.init(setup.spec, seed).items()}
    pool = Pool(spec=setup.spec, stacks=stacks).with_weights(trained)
    if method.start is None:
        return pool.stacks
    return method.start(setup, pool, rngs.stream_key(seed, "heads")).with_heads(heads or {}).stacks


def init_averages(setup: Setup, stacks: Stacks) -> Stacks:
    """The averages of members that nothing was learnt by yet: what they are now, if the run keeps any."""
    names = [stack.name for stack in setup.spec.stacks] if setup.ema_decay else []
    return {name: jax.tree.map(jnp.copy, stacks[name].replace(opt_state=())) for name in names}


def move_averages(decay: float, updates: jax.Array, averages: Stacks, old: Stacks, new: Stacks) -> Stacks:
    """The averages after a step from `old` to `new`: of parameters, and of the statistics that go with them.

    The decay at the i-th of the `updates` is the lesser of `decay` and `1 - 1 / i`, so that they forget where the
    members started. A member whose parameters are what they were has paused, or waits for its update: its average
    stays, bit for bit.
    """
    share = 1.0 - jnp.minimum(1.0 - 1.0 / jnp.maximum(updates, 1.0), decay)

    def moved(average: StackState, old: StackState, new: StackState) -> StackState:
        changes = [(old.params[name] != x).any(range(1, x.ndim)) for name, x in new.params.items()]
        nearer = jax.tree.map(lambda x, y: x + share * (y - x), average, new.replace(opt_state=()))
        return gate(jnp.stack(changes).any(0), nearer, average)

    return {name: moved(average, old[name], new[name]) for name, average in averages.items()}


def init_state(
    setup: Setup,
    method: Method,
    seed: int | jax.Array,
    trained: Mapping[int, StackState] = MappingProxyType({}),
    heads: Stacks | None = None,
) -> TrainState:
    """The state before the first step; arguments as of `init_stacks`."""
    stacks = init_stacks(setup, method, seed, trained, heads)
    return reset_totals(
        TrainState(
            step=jnp.zeros((), jnp.int32),
            seed=jnp.asarray(seed, jnp.uint32),
            stacks=stacks,
            averages=init_averages(setup, stacks),
            totals={name: jnp.zeros(setup.spec.size) for name in method.metrics},
            iterations=jnp.zeros(()),
            diverged_at=jnp.zeros(setup.spec.size, jnp.int32),
        )
    )


def reset_totals(state: TrainState) -> TrainState:
    """`state` with the totals of the metrics back at zero, as at the start of an epoch."""
    totals, iterations = jax.tree.map(jnp.zeros_like, (state.totals, state.iterations))
    return state.replace(totals=totals, iterations=iterations)


def pick(data: Images | None, batch: Batch) -> Images:
    """The examples of a batch (see `orc_jax.data.feed`): rows of the set on the device, or what the batch carries."""
    return batch if data is None else Images(data.images[batch], data.labels[batch])


def augment(setup: Setup, seed: jax.Array, step: jax.Array, examples: Images) -> jax.Array:
    """The images as a step sees them: uint8 `[batch, ...]`, or `[views, batch, ...]` if the method asks for several."""
    images = examples.images
    if setup.views > 1:
        # streamed examples come with their views, [batch, views, ...]; those of a set in memory are all the same yet
        images = jnp.moveaxis(images, 1, 0) if images.ndim == 5 else jnp.stack([images] * setup.views)
    slots = parallel.local_slots(examples.labels.shape[0], setup.axis_name)

    def one_view(view, images):
        key = rngs.stream_key(seed, "augment", step, view)
        keys = jax.vmap(lambda slot: jax.random.fold_in(key, slot))(slots)
        return setup.augment(keys, images)

    return one_view(0, images) if setup.views == 1 else jax.vmap(one_view)(jnp.arange(setup.views), images)


def seen(setup: Setup, seed: jax.Array, step: jax.Array, examples: Images) -> tuple[jax.Array, Mixed | None]:
    """The images that the networks see in a step: those of `augment`, mixed if the run mixes its batches."""
    images = augment(setup, seed, step, examples)
    if not any(setup.mixing):
        return images, None
    slots = parallel.local_slots(examples.labels.shape[0], setup.axis_name)
    gather = lambda x, axis: parallel.gather(x, setup.axis_name, axis)  # noqa: E731
    key = rngs.stream_key(seed, "mix", step)
    return mix(setup.mixing, key, Images(images, examples.labels), slots, gather)


def noise_of(setup: Setup, seed: jax.Array, step: jax.Array, batch_size: int) -> dict[str, jax.Array]:
    """What the passes of a step draw from (see `Pool.noise`): a key for each member and sample of the global batch."""
    slots = parallel.local_slots(batch_size, setup.axis_name)

    def of_member(number: jax.Array) -> jax.Array:
        key = rngs.stream_key(seed, "noise", step, number)
        return jax.vmap(lambda slot: jax.random.key_data(jax.random.fold_in(key, slot)))(slots)

    return {stack.name: jax.vmap(of_member)(jnp.array(stack.members)) for stack in setup.spec.stacks}


def make_train_step(
    setup: Setup, iterate: Callable, *, takes_values: bool = False
) -> Callable[[TrainState, Any, Batch], TrainState]:
    """The step of a method's `iterate`: `(state, set on the device, batch) -> state`; see `orc_jax.data.feed`.

    If it `takes_values`, the second argument is (set on the device, values of fields by name): one program for all runs
    that differ in these alone. Those that are no options of the method change the setup (see `Setup.of_values`).
    """

    def train_step(state: TrainState, data: Any, batch: Batch) -> TrainState:
        data, values = data if takes_values else (data, {})
        now = setup._replace(**setup.of_values(values))
        examples = pick(data, batch)
        of_data = state.seed if setup.data_seed is None else jnp.uint32(setup.data_seed)
        images, mixed = seen(setup, of_data, state.step, examples)
        of_set = {} if data is None else {"index": batch, "set_labels": data.labels}
        key = rngs.stream_key(state.seed, "method", state.step)
        context = Context(now, state.step, key, values, mixed, **of_set)
        noise = noise_of(setup, state.seed, state.step, examples.labels.shape[0]) if setup.draws else {}
        pool = Pool(spec=setup.spec, stacks=state.stacks, noise=noise)
        pool, metrics = iterate(context, pool, Images(images, examples.labels))
        updates = (state.step + 1) // setup.accumulate_steps
        averages = move_averages(setup.ema_decay, updates, state.averages, state.stacks, pool.stacks)
        state = state.replace(
            averages=averages,
            step=state.step + 1,
            stacks=pool.stacks,
            totals={name: total + metrics[name] for name, total in state.totals.items()},
            iterations=state.iterations + 1,
        )
        return state.replace(diverged_at=_first(state, ~jnp.isfinite(metrics["loss"])))

    return train_step


def in_turn(train_step: Callable) -> Callable[[TrainState, Images | None, Batch], TrainState]:
    """Several steps in one call, for batches with leaves `[steps, batch, ...]`. What single steps do, bit for bit."""

    def steps(state: TrainState, data: Images | None, batches: Batch) -> TrainState:
        return jax.lax.scan(lambda state, batch: (train_step(state, data, batch), None), state, batches)[0]

    return steps


def in_replicas(
    train_step: Callable, *, takes_values: bool, own_batches: bool
) -> Callable[[TrainState, Any, Batch], TrainState]:
    """The step of several runs at once, which differ in their seeds and values: leaves of the state `[replicas, ...]`.

    So are the values, if it `takes_values`. Batches are common, or with `own_batches` `[batch, replicas]`. A branch
    becomes a choice among the results of all its sides.
    """
    given = (None, 0) if takes_values else None
    return jax.vmap(train_step, in_axes=(0, given, 1 if own_batches else None))


def each_of(tree: Any, replicas: int) -> list[Any]:
    """Of each of several runs its own; of one, the tree as it is."""
    return [tree] if replicas == 1 else [jax.tree.map(operator.itemgetter(i), tree) for i in range(replicas)]


def find_diverged(spec: PoolSpec, state: TrainState) -> jax.Array:
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
        for stack in spec.stacks
    }
    return _first(state, ~spec.in_member_order(finite))


def _first(state: TrainState, diverged: jax.Array) -> jax.Array:
    return jnp.where((state.diverged_at == 0) & diverged, state.step, state.diverged_at)


def make_observation_step(
    setup: Setup, observe: Callable
) -> Callable[[Stacks, Images | None, tuple[Batch, jax.Array]], Any]:
    """The step over held-out examples: as an evaluation step, with the sums of a method's `observe`."""

    def observation_step(stacks: Stacks, data: Images | None, batch: tuple[Batch, jax.Array]) -> Any:
        examples, weights = batch
        images, labels = pick(data, examples)
        outputs = predict(Pool(spec=setup.spec, stacks=stacks), normalize(images, setup.mean, setup.std))
        return parallel.total(observe(outputs.logits, labels, weights), setup.axis_name)

    return observation_step


class Evaluation(NamedTuple):
    """Sums over samples: of every member in member order, and last of the ensemble."""

    top1: jax.Array  # [members + 1]
    top5: jax.Array
    loss: jax.Array
    count: jax.Array  # []


def make_evaluation_step(
    setup: Setup, method: Method
) -> Callable[[Stacks, Images | None, tuple[Batch, jax.Array]], Evaluation]:
    """The evaluation step: `(stacks, set on the device, (batch, weights [batch])) -> Evaluation` of these samples.

    The ensemble is the method's own; without one it is the members' mean probability. Weights are 1 for a sample that
    counts and 0 for padding.
    """

    def evaluation_step(stacks: Stacks, data: Images | None, batch: tuple[Batch, jax.Array]) -> Evaluation:
        examples, weights = batch
        images, labels = pick(data, examples)
        images = normalize(images, setup.mean, setup.std)
        pool = Pool(spec=setup.spec, stacks=stacks)
        outputs = evaluated(method, pool, images)
        log_probs = jax.nn.log_softmax(outputs.logits)
        if method.ensemble:
            joint = jax.nn.log_softmax(method.ensemble(pool, outputs))
        else:
            # A member that diverged is left out; without it there would be no ensemble.
            counts = ~jnp.isnan(log_probs).any(-1, keepdims=True)
            joint = jax.nn.logsumexp(jnp.where(counts, log_probs, -jnp.inf), axis=0) - jnp.log(counts.sum(0))
        log_probs = jnp.concatenate([log_probs, joint[None]])
        of_truth = jnp.broadcast_to(labels[None, :, None], (*log_probs.shape[:2], 1))
        truth = jnp.take_along_axis(log_probs, of_truth, axis=-1)
        # Of equals the first is the answer, as in training. Written so that NaN counts as wrong.
        before = jnp.arange(log_probs.shape[-1])[None, None] < of_truth
        rank = (~(log_probs <= truth) | ((log_probs == truth) & before)).sum(-1)
        sums = Evaluation(
            top1=((rank < 1) * weights[None]).sum(-1),
            top5=((rank < 5) * weights[None]).sum(-1),
            loss=-(truth[..., 0] * weights[None]).sum(-1),
            count=weights.sum(),
        )
        return parallel.total(sums, setup.axis_name)

    return evaluation_step
