"""The pool: all networks of a run as stacked pytrees, applied by `vmap`.

A *member* is one network. Members of one architecture form a *stack*: their parameters are one flat dict, such as
`{"layer1.0.conv1.kernel": [members, 3, 3, 16, 16], ...}`, with a leading axis over the members of the stack. A pool's
parameters (statistics, optimizer states ...) are a dict of stacks by architecture. Whatever is per member and of one
shape, such as logits and masks, is one array in *member order*: 0 is the pivot teacher, the last is the target student.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from orc_jax import own, rngs
from orc_jax.errors import UserError, require_choice
from orc_jax.models import MODELS

Params = dict[str, jax.Array]
PyTree = Any
Pullback = Any  # a pytree of arrays [members, ...] that can be called, as `jax.vjp` returns it
TARGET = 2**31 - 1  # stands for the position of the target student where its initial parameters are drawn


class Outputs(NamedTuple):
    """What the members of a pool make of a batch."""

    logits: jax.Array  # float32 [members, batch, classes], in member order
    features: dict[str, jax.Array]  # by stack: float32 [members of the stack, batch, dim]
    heads: dict[str, Params]  # parameters of modules beside the members, which a loss may use too


class Network(NamedTuple):
    """One architecture as pure functions of one member; `vmap` makes them functions of a stack.

    init: key -> (params, batch_stats)
    train: params, batch_stats, images -> (logits, features), batch_stats; batch normalisation by the batch
    predict: params, batch_stats, images -> (logits, features); batch normalisation by the running statistics
    """

    init: Callable
    train: Callable
    predict: Callable


class Stack(NamedTuple):
    """The members of one architecture: their positions in the pool, and their rows in the stacked arrays."""

    name: str
    network: Network
    members: tuple[int, ...]
    rows: tuple[int, ...]


class Pool(NamedTuple):
    """What is static about a pool. The order of stacks and members is that of the tuples, nowhere that of a dict."""

    architectures: tuple[str, ...]  # in member order
    stacks: tuple[Stack, ...]

    @property
    def size(self) -> int:
        return len(self.architectures)

    @property
    def member_names(self) -> tuple[str, ...]:
        """A unique name for each member, for logs: `("0_resnet56", "1_resnet44", ...)`."""
        return tuple(f"{i}_{name}" for i, name in enumerate(self.architectures))


def make_network(
    architecture: str,
    num_classes: int,
    image_shape: tuple[int, int, int],
    dtype: str,
    axis_name: str | None,
    convolution: Callable | None = None,
) -> Network:
    """The pure functions of the registered model `architecture`.

    With `convolution`, such as `jax.lax.conv_general_dilated`, its convolutions are that and not those for a pool.
    """
    own.register_network("network", architecture)
    require_choice("network", architecture, MODELS)

    def build(key):
        return MODELS[architecture](
            num_classes, image_shape=image_shape, dtype=jnp.dtype(dtype), axis_name=axis_name, rngs=nnx.Rngs(key)
        )

    def flat(state):
        return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}

    # The modules are built once, abstractly; all that is kept of them is their structure.
    try:
        model = nnx.eval_shape(build, jax.random.key(0))
    except TypeError as error:
        if not own.is_own(architecture):
            raise
        raise UserError(
            f"{architecture} cannot be built as Model(num_classes, *, image_shape, dtype, axis_name, rngs): {error}"
        ) from error
    for _, module in nnx.iter_modules(model) if convolution else ():
        if isinstance(module, nnx.Conv):
            module.conv_general_dilated = convolution
    paths = {".".join(map(str, path)): path for path in nnx.to_flat_state(nnx.state(model)).paths}
    model.train()
    training = nnx.graphdef(model)
    model.eval()
    predicting = nnx.graphdef(model)

    def merge(graphdef, params, batch_stats):
        leaves = {paths[name]: leaf for name, leaf in (params | batch_stats).items()}
        return nnx.merge(graphdef, nnx.from_flat_state(leaves))

    def init(key):
        model = build(key)
        return flat(nnx.state(model, nnx.Param)), flat(nnx.state(model, nnx.BatchStat))

    def train(params, batch_stats, images):
        model = merge(training, params, batch_stats)
        outputs = model(images)
        return outputs, flat(nnx.state(model, nnx.BatchStat))

    def predict(params, batch_stats, images):
        return merge(predicting, params, batch_stats)(images)

    return Network(init, train, predict)


def make_pool(
    architectures: Sequence[str],
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    dtype: str,
    axis_name: str | None,
    remat: bool = False,
) -> Pool:
    """A pool with one member per name in `architectures` (registered in `MODELS`), equal names stacked.

    With `remat` a backward pass repeats the member's forward pass instead of keeping it: the memory of a step grows
    with the largest member rather than with the pool.
    """
    stacks = []
    for name in dict.fromkeys(architectures):
        members = tuple(i for i, other in enumerate(architectures) if other == name)
        network = make_network(name, num_classes, image_shape, dtype, axis_name)
        if own.is_own(name):
            _check_outputs(name, network, num_classes, image_shape)
        if remat:
            network = network._replace(train=jax.checkpoint(network.train))
        stacks.append(Stack(name, network, members, tuple(range(len(members)))))
    return Pool(tuple(architectures), tuple(stacks))


def _check_outputs(name: str, network: Network, num_classes: int, image_shape: tuple[int, int, int]) -> None:
    images = jnp.zeros((2, *image_shape))
    shapes = jax.eval_shape(lambda: network.predict(*network.init(jax.random.key(0)), images))
    found = [(x.shape, str(x.dtype)) for x in jax.tree.leaves(shapes)]
    fine = isinstance(shapes, tuple) and len(found) == 2 and found[0] == ((2, num_classes), "float32")
    if not fine or len(found[1][0]) != 2:
        raise UserError(
            f"{name} must return (logits [batch, {num_classes}] of float32, features [batch, dim]); for two images of "
            f"{image_shape} it returns {found}"
        )


def init(pool: Pool, seed: int | jax.Array) -> tuple[dict[str, Params], dict[str, Params]]:
    """Initial (params, batch_stats) of all stacks.

    A member's depend on the seed and its position alone, the target student's on the seed: it starts alike in every
    pool, so that methods which need pools of different sizes can be compared.
    """
    params, batch_stats = {}, {}
    for stack in pool.stacks:
        positions = [TARGET if member == pool.size - 1 else member for member in stack.members]
        keys = jnp.stack([rngs.stream_key(seed, "init", position) for position in positions])
        params[stack.name], batch_stats[stack.name] = jax.vmap(stack.network.init)(keys)
    return params, batch_stats


def select(pool: Pool, members: Sequence[int]) -> Pool:
    """The pool of some members of `pool`, renumbered from 0 in increasing order. Its arrays come from `take`.

    A selected pool can be selected from in turn.
    """
    kept = sorted(members)
    stacks = []
    for stack in pool.stacks:
        pairs = [(kept.index(member), row) for row, member in enumerate(stack.members) if member in kept]
        if pairs:
            new_members, rows = zip(*pairs, strict=True)
            stacks.append(stack._replace(members=new_members, rows=rows))
    return Pool(tuple(pool.architectures[m] for m in kept), tuple(stacks))


def take(selected: Pool, stacks: dict[str, PyTree]) -> dict[str, PyTree]:
    """The rows of the `selected` members out of the stacks of the pool they were selected from."""

    def rows_of(stack, x):
        return x if x.shape[0] == len(stack.rows) else x[jnp.array(stack.rows)]

    return {s.name: jax.tree.map(lambda x, s=s: rows_of(s, x), stacks[s.name]) for s in selected.stacks}


def put(selected: Pool, stacks: dict[str, PyTree], values: dict[str, PyTree]) -> dict[str, PyTree]:
    """`stacks` with the rows of the `selected` members replaced by `values`: the inverse of `take`."""

    def replace(stack, old, new):
        return new if old.shape[0] == len(stack.rows) else old.at[jnp.array(stack.rows)].set(new)

    replaced = {
        s.name: jax.tree.map(lambda old, new, s=s: replace(s, old, new), stacks[s.name], values[s.name])
        for s in selected.stacks
    }
    return stacks | replaced


def take_row(values: PyTree, row: jax.Array) -> PyTree:
    """One row of one stack's values, as a stack of one: `[1, ...]`. The row is a value: one program serves all."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1), values)


def put_row(values: PyTree, row: jax.Array, new: PyTree) -> PyTree:
    """One stack's `values` with one row replaced: the inverse of `take_row`."""
    return jax.tree.map(lambda x, n: jax.lax.dynamic_update_slice_in_dim(x, n, row, 0), values, new)


def one_member(stack: Stack) -> Pool:
    """The pool of one member of `stack`, whichever it is."""
    return Pool((stack.name,), (stack._replace(members=(0,), rows=(0,)),))


def take_member(pool: Pool, stacks: dict[str, PyTree], member: int) -> PyTree:
    """One member's values, without the member axis."""
    stack = next(s for s in pool.stacks if member in s.members)
    row = stack.rows[stack.members.index(member)]
    return jax.tree.map(lambda x: x[row], stacks[stack.name])


def by_stack(pool: Pool, vector: jax.Array) -> dict[str, jax.Array]:
    """Splits `[members, ...]` in member order into one array per stack."""
    return {stack.name: vector[jnp.array(stack.members)] for stack in pool.stacks}


def in_member_order(pool: Pool, stacks: dict[str, jax.Array]) -> jax.Array:
    """Concatenates one array per stack on the member axis, in member order: the inverse of `by_stack`."""
    joined = jnp.concatenate([stacks[stack.name] for stack in pool.stacks])
    order = [member for stack in pool.stacks for member in stack.members]
    if order == sorted(order):
        return joined
    return joined[jnp.argsort(jnp.array(order))]


def train(
    pool: Pool, params: dict[str, Params], batch_stats: dict[str, Params], images: jax.Array
) -> tuple[Outputs, dict[str, Pullback], dict[str, Params]]:
    """All members in training mode.

    Each member's pass is differentiated by itself, inside the `vmap`: what a pullback keeps of the pass is stacked like
    all else, so that one member's can be taken out of it.

    Args:
        pool: the members.
        params, batch_stats: by stack. Parameters of no stack of the pool are those of heads, and handed on.
        images: `[batch, height, width, channels]` for all members, or `[members, batch, height, width, channels]`.

    Returns:
        The outputs, a pullback for each stack (see `gradients`), and the moved statistics of the stacks.
    """
    logits, features, pullbacks, moved = {}, {}, {}, dict(batch_stats)
    for stack in pool.stacks:

        def of_one(params, batch_stats, images, stack=stack):
            return jax.vjp(lambda params: stack.network.train(params, batch_stats, images), params, has_aux=True)

        views, axis = _views(stack, images)
        passed = jax.vmap(of_one, in_axes=(0, 0, axis))(params[stack.name], batch_stats[stack.name], views)
        (logits[stack.name], features[stack.name]), pullbacks[stack.name], moved[stack.name] = passed
    return Outputs(in_member_order(pool, logits), features, _heads(pool, params)), pullbacks, moved


def gradients(pool: Pool, pullbacks: dict[str, Pullback], cotangent: Outputs) -> dict[str, Params]:
    """The gradients of the members' parameters by stack, and those of the heads, which are their cotangents.

    Args:
        pool: the members.
        pullbacks: of their pass, from `train`.
        cotangent: of the outputs of `train`.
    """
    pull = jax.vmap(lambda pullback, logits, features: pullback((logits, features))[0])
    logits = by_stack(pool, cotangent.logits)
    grads = {name: pull(pullbacks[name], logits[name], cotangent.features[name]) for name in logits}
    return cotangent.heads | grads


def predict(pool: Pool, params: dict[str, Params], batch_stats: dict[str, Params], images: jax.Array) -> Outputs:
    """All members in evaluation mode; arguments as of `train`."""
    logits, features = {}, {}
    for stack in pool.stacks:
        views, axis = _views(stack, images)
        apply = jax.vmap(stack.network.predict, in_axes=(0, 0, axis))
        logits[stack.name], features[stack.name] = apply(params[stack.name], batch_stats[stack.name], views)
    return Outputs(in_member_order(pool, logits), features, _heads(pool, params))


def _views(stack: Stack, images: jax.Array) -> tuple[jax.Array, int | None]:
    return (images, None) if images.ndim == 4 else (images[jnp.array(stack.members)], 0)


def _heads(pool: Pool, params: dict[str, Params]) -> dict[str, Params]:
    stacks = {stack.name for stack in pool.stacks}
    return {name: value for name, value in params.items() if name not in stacks}
