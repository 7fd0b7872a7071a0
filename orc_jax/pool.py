"""The pool: all networks of a run as stacked pytrees, applied by `vmap`.

A *member* is one network; its number is its place in the run's pool, 0 the pivot teacher, the last the target student.
Members of one architecture form a *stack*: their parameters are one flat dict, such as
`{"layer1.0.conv1.kernel": [members, 3, 3, 16, 16], ...}`, with a row for each member of the stack. A `Pool` is some
members together with their stacks; a part of it that was selected knows which members it holds, so that it can only be
put back where it belongs. What is per member and of one shape, such as logits and masks, is one array in *member
order*.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from orc_jax import parallel, plugins, rngs
from orc_jax.errors import UserError
from orc_jax.models import MODELS, Model
from orc_jax.models.conv import convolution_for
from orc_jax.models.network import Network, Params, make_network, weight_shapes
from orc_jax.models.points import Maps

TARGET = 2**31 - 1  # stands for the number of the target student where its initial parameters are drawn
SOMEBODY = -1  # the number of a member that a traced value chose


class Stack(NamedTuple):
    """The members of one architecture: their numbers, in the order of the rows of the stacked arrays."""

    name: str
    network: Network
    members: tuple[int, ...]


class PoolSpec(NamedTuple):
    """What is static about a pool. The order of stacks and members is that of the tuples, nowhere that of a dict."""

    architectures: tuple[str, ...]  # in member order
    members: tuple[int, ...]  # their numbers, increasing
    stacks: tuple[Stack, ...]

    @property
    def size(self) -> int:
        return len(self.members)

    @property
    def member_names(self) -> tuple[str, ...]:
        """A unique name for each member, for logs: `("0_resnet56", "1_resnet44", ...)`."""
        return names_of(self.architectures, self.members)

    def positions(self, stack: Stack) -> tuple[int, ...]:
        """Where the members of `stack` are in arrays in member order."""
        return tuple(self.members.index(member) for member in stack.members)

    def by_stack(self, vector: jax.Array) -> dict[str, jax.Array]:
        """Splits `[members, ...]` in member order into one array per stack."""
        return {stack.name: vector[jnp.array(self.positions(stack))] for stack in self.stacks}

    def in_member_order(self, arrays: dict[str, jax.Array]) -> jax.Array:
        """Concatenates one array per stack on the member axis, in member order: the inverse of `by_stack`."""
        joined = jnp.concatenate([arrays[stack.name] for stack in self.stacks])
        order = [position for stack in self.stacks for position in self.positions(stack)]
        return joined if order == sorted(order) else joined[jnp.argsort(jnp.array(order))]

    def with_networks(self, change: Callable[[Network], Network]) -> "PoolSpec":
        """The same pool of changed networks."""
        return self._replace(stacks=tuple(stack._replace(network=change(stack.network)) for stack in self.stacks))

    def select(self, members: Sequence[int]) -> "PoolSpec":
        """That of some of the members. Raises `ValueError` for one that is not among them."""
        if missing := set(members) - set(self.members):
            raise ValueError(f"members {sorted(missing)} are not in this pool, which holds {self.members}")
        kept = tuple(sorted(members))
        stacks = [stack._replace(members=tuple(m for m in stack.members if m in kept)) for stack in self.stacks]
        architectures = tuple(self.architectures[self.members.index(member)] for member in kept)
        return PoolSpec(architectures, kept, tuple(stack for stack in stacks if stack.members))


class StackState(struct.PyTreeNode):
    """All that changes of a stack; every leaf is `[members, ...]`. A head (see `Outputs`) is a stack of one."""

    params: Params
    batch_stats: Params
    opt_state: Any


Stacks = dict[str, StackState]


class Outputs(NamedTuple):
    """What the members of a pool make of a batch."""

    logits: jax.Array  # float32 [members, batch, classes], in member order
    features: dict[str, jax.Array]  # by stack: float32 [members of the stack, batch, dim]
    heads: dict[str, Params]  # parameters of modules beside the members, which a loss may use too
    early: dict[str, jax.Array] = {}  # noqa: RUF012, never changed; as features, of early layers, if a method asks
    maps: dict[str, Maps] = {}  # noqa: RUF012, likewise; by stack: leaves [members of the stack, batch, h, w, channels]


class Pool(struct.PyTreeNode):
    """Some members, or all, and their arrays. `stacks` has the heads of a method as well.

    `noise` is what passes in training mode draw from, in networks that draw: by stack, the bits of keys, uint32
    `[members of the stack, batch, 2]`. All passes of a step draw the same.
    """

    spec: PoolSpec = struct.field(pytree_node=False)
    stacks: Stacks
    noise: dict[str, jax.Array] = struct.field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.spec.size

    @property
    def heads(self) -> dict[str, Params]:
        """The parameters of the stacks that are no members'."""
        return {name: s.params for name, s in self.stacks.items() if name not in self.spec.architectures}

    def _rows(self, stack: Stack) -> list[int]:
        """The rows that members of `stack` have here."""
        (whole,) = (one.members for one in self.spec.stacks if one.name == stack.name)
        return [whole.index(member) for member in stack.members]

    def select(self, members: Sequence[int]) -> "Pool":
        """Some of the members, without heads. Raises `ValueError` for one that is not in the pool."""
        spec, stacks, noise = self.spec.select(members), {}, {}
        for stack in spec.stacks:
            rows, state = self._rows(stack), self.stacks[stack.name]
            stacks[stack.name] = jax.tree.map(lambda x, rows=rows: _take(x, rows), state)
            if stack.name in self.noise:
                noise[stack.name] = _take(self.noise[stack.name], rows)
        return Pool(spec=spec, stacks=stacks, noise=noise)

    def put(self, part: "Pool") -> "Pool":
        """The pool with the arrays of the members of `part` replaced: the inverse of `select`; raises as it."""
        self.spec.select(part.spec.members)
        stacks = dict(self.stacks)
        for stack in part.spec.stacks:
            rows, old, new = self._rows(stack), stacks[stack.name], part.stacks[stack.name]
            stacks[stack.name] = jax.tree.map(lambda x, y, rows=rows: _put(x, y, rows), old, new)
        return self.replace(stacks=stacks)

    def take_row(self, stack: Stack, row: jax.Array) -> "Pool":
        """The member in a row of a stack. The row is a value, so that one program serves all."""
        spec = PoolSpec((stack.name,), (SOMEBODY,), (stack._replace(members=(SOMEBODY,)),))
        taken = {name: take_row(bits, row) for name, bits in self.noise.items() if name == stack.name}
        return Pool(spec, {stack.name: take_row(self.stacks[stack.name], row)}, taken)

    def put_row(self, stack: Stack, row: jax.Array, one: "Pool") -> "Pool":
        """The pool with the arrays of one member replaced: the inverse of `take_row`."""
        replace = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, row, 0)  # noqa: E731
        replaced = jax.tree.map(replace, self.stacks[stack.name], one.stacks[stack.name])
        return self.replace(stacks=self.stacks | {stack.name: replaced})

    def member(self, number: int) -> StackState:
        """One member's state, without the member axis."""
        ((_, state),) = self.select([number]).stacks.items()
        return jax.tree.map(lambda x: x[0], state)

    def with_weights(self, weights: Mapping[int, StackState]) -> "Pool":
        """The pool with parameters and statistics of some members replaced, from `member` of other pools.

        Parameters that are not given stay.
        """
        pool = self
        for number, state in weights.items():
            part = pool.select([number])
            ((name, own),) = part.stacks.items()
            params, batch_stats = jax.tree.map(lambda x: x[None], (state.params, state.batch_stats))
            own = own.replace(params=own.params | params, batch_stats=batch_stats)
            pool = pool.put(part.replace(stacks={name: own}))
        return pool

    def with_heads(self, heads: Mapping[str, StackState]) -> "Pool":
        """The pool with parameters and statistics of heads replaced, from other pools; those that it lacks are not."""
        own = {name: self.stacks[name] for name in self.heads.keys() & heads.keys()}
        given = {
            name: head.replace(params=heads[name].params, batch_stats=heads[name].batch_stats)
            for name, head in own.items()
        }
        return self.replace(stacks=self.stacks | given)


# Rows are known when the program is traced, so these are slices and joins, which compilers fuse with what comes before
# and after; a gather or a scatter would be a launch of its own for every leaf.
def _take(x: jax.Array, rows: Sequence[int]) -> jax.Array:
    first, last = rows[0], rows[-1] + 1
    return x[first:last] if list(rows) == list(range(first, last)) else jnp.stack([x[row] for row in rows])


def _put(x: jax.Array, new: jax.Array, rows: Sequence[int]) -> jax.Array:
    if len(rows) == len(x):
        return new
    return jnp.stack([new[rows.index(row)] if row in rows else x[row] for row in range(len(x))])


def take_row(values: Any, row: jax.Array) -> Any:
    """One row of one stack's values, as a stack of one: `[1, ...]`. The row is a value."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1), values)


def names_of(architectures: Sequence[str], members: Sequence[int] | None = None) -> tuple[str, ...]:
    """What members are called: by number, from 0 if none is given, and architecture."""
    numbers = range(len(architectures)) if members is None else members
    return tuple(f"{number}_{name}" for number, name in zip(numbers, architectures, strict=True))


# What is kept of the forward pass of a stack for its backward pass where that is not everything, by platform: the
# results of these operations ("name" is that of depthwise convolutions); what lies between them is computed again. Of
# stacks of networks with batch normalisation: for a TPU v5e, which none was run on, an iteration of five ResNet-20s at
# batch 128 takes 0.8 of the cycles so, half of the bytes and of the memory, by its compiler's estimate. A ResNet-20 by
# itself would take a tenth more cycles, and a stack of transformers a fifth; for an H100 it is more launches and bytes.
SAVED = {"tpu": frozenset({"conv_general_dilated", "dot_general", "reduce_sum", "psum", "random_bits", "name"})}


def make_spec(
    architectures: Sequence[str],
    models: Mapping[str, Model] = MODELS,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    dtype: str = "float32",
    axis_name: str | None = None,
    batch_norm: str = "global",
    remat: bool = False,
    platform: str = "cpu",
    early: bool = False,
    maps: tuple[str, ...] = (),
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    members: Sequence[int] | None = None,
) -> PoolSpec:
    """A pool with one member per name in `architectures`, equal names stacked. Other arguments are the models'.

    `members` are their numbers in a run that has more, increasing. With `batch_norm="local"` each device normalises its
    share of the batch by itself, and the running statistics move by the mean over devices. With `remat` a backward pass
    repeats the member's forward pass instead of keeping it: the memory of a step grows with the largest member
    rather than with the pool. `platform` is the one that programs with the networks are compiled for: it makes them
    fast there, not different. With `early` the networks give early features as well, with `maps` the maps of their
    feature points of these kinds. `dropout` and `stochastic_depth` are the rates of networks that have such layers.

    Raises:
        UserError: for a network of one's own that is not as it has to be.
    """
    stacks, numbers = [], tuple(range(len(architectures)) if members is None else members)
    for name in dict.fromkeys(architectures):
        rows = tuple(i for i, other in zip(numbers, architectures, strict=True) if other == name)
        try:
            over = axis_name if batch_norm == "global" else None
            convolution = convolution_for(platform)
            given = num_classes, image_shape, dtype, over, convolution, early, maps, dropout, stochastic_depth
            network = make_network(models[name], *given)
        except TypeError as error:
            if not plugins.is_own(name):
                raise
            raise UserError(
                f"{name} cannot be built as Model(num_classes, *, image_shape, dtype, axis_name, rngs): {error}"
            ) from error
        if plugins.is_own(name):
            _check_outputs(name, network, num_classes, image_shape, maps)
        if over != axis_name:
            network = network._replace(train=_averaging_statistics(network.train, axis_name))
        if remat:
            network = network._replace(train=jax.checkpoint(network.train))
        elif platform in SAVED and len(rows) > 1 and weight_shapes(network)[1]:
            policy = functools.partial(_is_kept, SAVED[platform])
            network = network._replace(train=jax.checkpoint(network.train, policy=policy))
        stacks.append(Stack(name, network, rows))
    return PoolSpec(tuple(architectures), numbers, tuple(stacks))


def _is_kept(names: frozenset[str], primitive: Any, *_: Any, **params: Any) -> bool:
    return primitive.name in names


def _averaging_statistics(train: Callable, axis_name: str | None) -> Callable:
    def averaging(params, batch_stats, images, keys=None):
        outputs, moved = train(params, batch_stats, images, keys)
        return outputs, parallel.mean(moved, axis_name)

    return averaging


def _check_outputs(
    name: str, network: Network, num_classes: int, image_shape: tuple[int, int, int], maps: tuple[str, ...]
) -> None:
    images = jnp.zeros((2, *image_shape))
    shapes = jax.eval_shape(lambda: network.predict(*network.init(jax.random.key(0)), images))
    if maps:
        *shapes, more = shapes
        if not any(more["maps"].values()):
            raise UserError(f"{name} notes no feature points (orc_jax.models.points.note), which the method compares")
        shapes = tuple(shapes)
    found = [(x.shape, str(x.dtype)) for x in jax.tree.leaves(shapes)]
    fine = isinstance(shapes, tuple) and len(found) == 2 and found[0] == ((2, num_classes), "float32")
    if not fine or len(found[1][0]) != 2:
        raise UserError(
            f"{name} must return (logits [batch, {num_classes}] of float32, features [batch, dim]); for two images of "
            f"{image_shape} it returns {found}"
        )


def init(spec: PoolSpec, seed: int | jax.Array) -> dict[str, tuple[Params, Params]]:
    """Initial (params, batch_stats) by stack.

    A member's depend on the seed and its number alone, the target student's on the seed: it starts alike in every pool,
    so that methods which need pools of different sizes can be compared.
    """
    weights = {}
    for stack in spec.stacks:
        numbers = [TARGET if member == spec.size - 1 else member for member in stack.members]
        keys = jnp.stack([rngs.stream_key(seed, "init", number) for number in numbers])
        weights[stack.name] = jax.vmap(stack.network.init)(keys)
    return weights
