"""What a method may use: the verbs `forward`, `predict` and `learn`, and what it gets to see of its run.

A method (see `orc_jax.methods.base`) writes one iteration of its paper with them, on a pool and a batch. All of it is
pure and inside the compiled step.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from orc_jax import optim, parallel
from orc_jax.data.augment import Augmentation, normalize
from orc_jax.data.mixing import Mixed, Mixing
from orc_jax.losses import smoothed_cross_entropy
from orc_jax.models.network import Params
from orc_jax.pool import Outputs, Pool, PoolSpec, Stack, StackState, take_row
from orc_jax.roles import gate

Pullback = Any  # a pytree of arrays [members, ...] that can be called, as `jax.vjp` returns it


class Setup(NamedTuple):
    """What is static about a run's step."""

    spec: PoolSpec
    image_shape: tuple[int, int, int]
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    lr_multipliers: dict[str, float]  # by architecture
    augment: Augmentation  # of a set in memory; a streamed one comes augmented
    mean: tuple[float, ...]  # per channel
    std: tuple[float, ...]
    views: int  # augmentations of each image: 1, or one for each member
    num_steps: int  # of the run
    axis_name: str | None  # the mapped axis of devices; None outside pmap
    # What becomes of the fields here, by name, where values of the config are arguments of the program.
    of_values: Callable[[Mapping[str, jax.Array]], dict[str, Any]] = lambda values: {}
    # By architecture, where it is another.
    optimizers: Mapping[str, optax.GradientTransformation] = MappingProxyType({})
    clip_norm: float = 0.0  # the largest norm of a member's gradient; 0 is any
    ema_decay: float = 0.0  # of the members' averages; 0 is none
    accumulate_steps: int = 1  # batches for each update
    mixing: Mixing = Mixing()  # of the batch, memory or streamed
    label_smoothing: float = 0.0
    frozen: Mapping[str, Collection[str]] = MappingProxyType({})  # by architecture: parameters that stay as they are
    data_seed: int | None = None  # what augmentation and mix-up of the batch are drawn by; None: the run's seed
    convolution: Callable = jax.lax.conv_general_dilated  # of the networks beside the members
    draws: bool = False  # some networks have layers that draw anew in every step, at a rate that is not 0
    batch_size: int = 1  # global
    num_train: int = 1  # training examples, without those that are held out

    def optimizer_of(self, stack: str) -> optax.GradientTransformation:
        """That of a stack, or of a head."""
        return self.optimizers.get(owner(stack), self.optimizer)


HEAD = "beside "


def head_of(stack: str) -> str:
    """The name of a head that learns as the members of a stack do: with the rate and the optimizer of their kind."""
    return HEAD + stack


def owner(name: str) -> str:
    """The stack that a stack or head learns as: itself, or that which it is the `head_of`."""
    return name.removeprefix(HEAD)


class Context(NamedTuple):
    """What a method gets to see of the iteration it is in."""

    setup: Setup
    step: jax.Array
    key: jax.Array  # of the stream "method": the same on all devices
    values: Mapping[str, jax.Array] = MappingProxyType({})  # options that are arguments of the program, by name
    mixed: Mixed | None = None  # what the images of the batch are mixed with, if they are
    # Of a set in memory, with a method that asks for them (`Method.indexed`): the rows that this device's samples have
    # in the training set, int32 [batch], and the labels of all of it, int32 [num_train].
    index: jax.Array | None = None
    set_labels: jax.Array | None = None

    @property
    def progress(self) -> jax.Array:
        """The share of the run that is over, in [0, 1)."""
        return self.step / self.setup.num_steps

    @property
    def epoch(self) -> jax.Array:
        """The epoch that the first example of the batch is of, from 0: int32 []."""
        size, examples = self.setup.batch_size, self.setup.num_train
        starts = np.arange(1, max(self.setup.num_steps * size // examples, 1) + 1) * examples
        return (self.step >= jnp.asarray(-(-starts // size), jnp.int32)).sum()

    def value(self, name: str, option: float) -> Any:
        """An option of the method: its value, or, where runs of several values share one program, an argument of it."""
        return self.values.get(name, option)

    def by_labels(
        self, measure: Callable[[jax.Array, jax.Array], jax.Array], logits: jax.Array, labels: jax.Array
    ) -> jax.Array:
        """`measure(logits, labels)`, per sample; of a mixed batch with both labels of each, by their shares."""
        of_own = measure(logits, labels)
        if self.mixed is None:
            return of_own
        return self.mixed.share * of_own + (1.0 - self.mixed.share) * measure(logits, self.mixed.labels)

    def label_loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """The cross-entropy that is learnt, with labels that may be smoothed and mixed; as `losses.cross_entropy`."""
        smoothed = functools.partial(smoothed_cross_entropy, smoothing=self.setup.label_smoothing)
        return self.by_labels(smoothed, logits, labels)

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
    """A forward pass of a pool in training mode, which can still be learnt from."""

    pool: Pool
    outputs: Outputs  # no gradient attached
    pullbacks: dict[str, Pullback]  # by stack
    batch_stats: dict[str, Params]  # by stack, moved

    @property
    def logits(self) -> jax.Array:
        return self.outputs.logits


def new_stack(setup: Setup, params: Params, batch_stats: Params, name: str = "") -> StackState:
    """The state of a stack or head that starts from `params` and `batch_stats`; all leaves are `[members, ...]`.

    `name` is that of its architecture, which may have an optimizer of its own.
    """
    init = setup.optimizer_of(name).init
    return StackState(params=params, batch_stats=batch_stats, opt_state=jax.vmap(init)(params))


def forward(pool: Pool, images: jax.Array) -> Forward:
    """The members of `pool` on normalised `images`, in training mode. Nothing changes until `learn`.

    Each member's pass is differentiated by itself, inside the `vmap`: what a pullback keeps of the pass is stacked like
    all else, so that one member's can be taken out of it.

    Args:
        pool: the members, and the heads that learn with them.
        images: `[batch, height, width, channels]` for all members, or `[members, batch, height, width, channels]`.
    """
    logits, features, pullbacks = {}, {}, {}
    others: dict[str, dict[str, Any]] = {"early": {}, "maps": {}}
    moved = {name: state.batch_stats for name, state in pool.stacks.items()}
    for stack in pool.spec.stacks:

        def of_one(params, batch_stats, images, *keys, stack=stack):
            return jax.vjp(lambda params: stack.network.train(params, batch_stats, images, *keys), params, has_aux=True)

        views, axis = _views(pool.spec, stack, images)
        state, keys = pool.stacks[stack.name], _keys(pool, stack, images.shape[-4])
        passed = jax.vmap(of_one, in_axes=(0, 0, axis, *(0 for _ in keys)))(
            state.params, state.batch_stats, views, *keys
        )
        (logits[stack.name], features[stack.name], *more), pullbacks[stack.name], moved[stack.name] = passed
        for kind, of in (more[0] if more else {}).items():
            others[kind][stack.name] = of
    outputs = Outputs(pool.spec.in_member_order(logits), features, pool.heads, **others)
    return Forward(pool, outputs, pullbacks, moved)


class InTurn(NamedTuple):
    """The pullbacks of passes over views of one batch, as one of all samples, view by view."""

    passes: tuple[Pullback, ...]

    def __call__(self, cotangent: Any) -> tuple[Params]:
        leaves, tree = jax.tree.flatten(cotangent)
        shares = zip(*(jnp.split(leaf, len(self.passes)) for leaf in leaves), strict=True)
        grads = [pullback(tree.unflatten(share))[0] for pullback, share in zip(self.passes, shares, strict=True)]
        return (jax.tree.map(lambda *each: sum(each), *grads),)


def forward_in_turn(pool: Pool, views: jax.Array) -> Forward:
    """As `forward`, of every member on one view `[views, batch, ...]` after the other, each with its own statistics.

    Outputs are of all samples, view by view: `[members, views x batch, ...]`.
    """
    passes, now = [], pool
    for images in views:
        passes.append(forward(now, images))
        moved = passes[-1].batch_stats
        now = now.replace(stacks={name: s.replace(batch_stats=moved[name]) for name, s in now.stacks.items()})
    each = [passed.outputs._replace(heads={}) for passed in passes]
    outputs = jax.tree.map(lambda *x: jnp.concatenate(x, 1), *each)._replace(heads=pool.heads)
    pullbacks = {name: InTurn(tuple(passed.pullbacks[name] for passed in passes)) for name in passes[0].pullbacks}
    return Forward(pool, outputs, pullbacks, passes[-1].batch_stats)


def predict(pool: Pool, images: jax.Array) -> Outputs:
    """The members of `pool` on normalised `images`, in evaluation mode; arguments as of `forward`."""
    logits, features = {}, {}
    others: dict[str, dict[str, Any]] = {"early": {}, "maps": {}}
    for stack in pool.spec.stacks:
        views, axis = _views(pool.spec, stack, images)
        apply = jax.vmap(stack.network.predict, in_axes=(0, 0, axis))
        state = pool.stacks[stack.name]
        logits[stack.name], features[stack.name], *more = apply(state.params, state.batch_stats, views)
        for kind, of in (more[0] if more else {}).items():
            others[kind][stack.name] = of
    return Outputs(pool.spec.in_member_order(logits), features, pool.heads, **others)


def _keys(pool: Pool, stack: Stack, batch: int) -> tuple[jax.Array, ...]:
    """Keys `[members of the stack, batch]` of what a pass draws, if networks draw; a larger batch has them again."""
    if stack.name not in pool.noise:
        return ()
    bits = pool.noise[stack.name]
    return (jax.random.wrap_key_data(bits[:, np.arange(batch) % bits.shape[1]]),)


def _views(spec: PoolSpec, stack: Stack, images: jax.Array) -> tuple[jax.Array, int | None]:
    return (images, None) if images.ndim == 4 else (images[jnp.array(spec.positions(stack))], 0)


def learn(
    context: Context,
    passed: Forward,
    loss: Callable[[Outputs], jax.Array],
    *,
    learns: jax.Array | None = None,
    pauses_statistics: bool = True,
    lr_multiplier: float = 1.0,
    share: Callable[[dict[str, Params]], dict[str, Params]] | None = None,
    only: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> Pool:
    """One update of the members and heads that have made a forward pass.

    The objective is the *sum* of the losses, so a member's gradient is exactly that of its own loss, whatever the size
    of the pool, as long as `loss` stops the gradient of what it takes from other members.

    Args:
        context: has optimizer, learning rate, and the axis over which gradients are averaged.
        passed: the pass.
        loss: outputs of the pass -> losses `[losses, batch]` on this device's samples, usually one of each member.
        learns: bool `[members]`; the others keep parameters and optimizer state bit for bit.
        pauses_statistics: members that do not learn keep their running statistics as well.
        lr_multiplier: of this update, on top of the schedule and the architecture's own.
        share: gradients by stack -> gradients by stack, for members that share parameters.
        only: by stack the parameters that learn, if not all do; the others stay bit for bit.
    """
    losses, pull_loss = jax.vjp(lambda outputs: loss(outputs).mean(-1), passed.outputs)
    (cotangent,) = pull_loss(jnp.ones_like(losses))
    grads = parallel.mean(gradients(passed, cotangent), context.setup.axis_name)
    # Before members share theirs: what they share stays equal, though their norms are not.
    grads = optim.clipped(grads, context.setup.clip_norm, context.setup.frozen) if context.setup.clip_norm else grads
    grads = share(grads) if share else grads
    rate = jnp.asarray(context.setup.learning_rate(context.step)) * lr_multiplier
    masks = {} if learns is None else passed.pool.spec.by_stack(learns)
    stacks = {}
    for name, state in passed.pool.stacks.items():
        stack_rate = rate * context.setup.lr_multipliers.get(owner(name), 1.0)
        params, opt_state = optim.update(
            context.setup.optimizer_of(name), state.params, state.opt_state, grads[name], stack_rate
        )
        params = {p: x if p in only.get(name, params) else state.params[p] for p, x in params.items()}
        updated = StackState(params=params, batch_stats=passed.batch_stats[name], opt_state=opt_state)
        if name in masks:
            paused = state if pauses_statistics else state.replace(batch_stats=updated.batch_stats)
            updated = gate(masks[name], updated, paused)
        stacks[name] = updated
    return passed.pool.replace(stacks=stacks)


def gradients(passed: Forward, cotangent: Outputs) -> dict[str, Params]:
    """The gradients of the members' parameters by stack, and those of the heads, which are their cotangents."""
    pull = jax.vmap(lambda pullback, *outputs: pullback(outputs)[0])
    others = {"early": cotangent.early, "maps": cotangent.maps}
    of = {}
    for name, logits in passed.pool.spec.by_stack(cotangent.logits).items():
        more = {kind: by[name] for kind, by in others.items() if name in by}
        of[name] = (logits, cotangent.features[name], *([more] if more else []))
    grads = {name: pull(passed.pullbacks[name], *of[name]) for name in of}
    return cotangent.heads | grads


# A few members can also learn by themselves: those that a value chooses, and no other is computed. Here `loss` takes
# outputs of one member, and the member's position in the pool, which is a value.
OneLoss = Callable[[Outputs, jax.Array], jax.Array]


def learn_alone(context: Context, passed: Forward, pool: Pool, stack: Stack, row: jax.Array, loss: OneLoss) -> Pool:
    """One member's update, as a pool of that member: the one in `row` of `stack`, as it is in `pool` now."""
    position = jnp.array(passed.pool.spec.positions(stack))[row]
    features, pullback, batch_stats = take_row(
        (passed.outputs.features[stack.name], passed.pullbacks[stack.name], passed.batch_stats[stack.name]), row
    )
    outputs = Outputs(take_row(passed.logits, position), {stack.name: features}, {})
    of_one = Forward(pool.take_row(stack, row), outputs, {stack.name: pullback}, {stack.name: batch_stats})
    return learn(context, of_one, lambda out: loss(out, position))


def learn_and_look(
    context: Context, passed: Forward, chosen: jax.Array, count: int, loss: OneLoss, images: jax.Array
) -> tuple[Pool, jax.Array]:
    """The members that `chosen` `[members]` marks learn from a pass, one by one, and look at `images` again.

    Returns the pool, and the logits `[count, batch, classes]` of the `count` chosen; the second look, in training mode
    as the first, does not move their statistics again. In a pool of several stacks the program branches, on whose turn
    it is; in one of a single stack it takes a row.
    """

    def teach(stack: Stack, row: jax.Array, pool: Pool) -> tuple[Pool, jax.Array]:
        one = learn_alone(context, passed, pool, stack, row, loss)
        return pool.put_row(stack, row, one), forward(one, images).logits

    pool, stacks = passed.pool, passed.pool.spec.stacks
    branches = [functools.partial(teach, stack) for stack in stacks]
    places = sorted((m, s, row) for s, stack in enumerate(stacks) for row, m in enumerate(stack.members))
    _, stack_of, row_of = jnp.array(places).T
    looks = []
    for i in jnp.nonzero(chosen, size=count)[0]:
        pool, logits = jax.lax.switch(stack_of[i], branches, row_of[i], pool)
        looks.append(logits)
    return pool, jnp.concatenate(looks)
