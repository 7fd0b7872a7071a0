"""What methods share whose peers are branches of one network: early layers are tied, the last stage is each peer's.

Every peer is a whole network, which can be deployed as it is. The shared layers are equal copies that stay equal,
because they start alike and learn from the same gradient, made of all peers' own.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from orc_jax.errors import UserError, require_choice
from orc_jax.methods.base import require_members
from orc_jax.models import LAST_STAGE
from orc_jax.models.network import Params
from orc_jax.pool import Pool


def require_branches(method: str, architectures: Sequence[str]) -> str:
    """The one architecture of the peers.

    Raises:
        UserError: for a pool of fewer than two, of several architectures, or of one whose last stage is not known.
    """
    require_members(method, architectures, 2)
    architecture = architectures[-1]
    if set(architectures) != {architecture}:
        raise UserError(
            f"the peers of {method} share layers and must be of one architecture, but the pool is "
            f"{', '.join(architectures)}; --config.teacher={architecture} --config.assistants=copies makes them so"
        )
    require_choice("config.student", architecture, LAST_STAGE)
    return architecture


def is_shared(architecture: str) -> Callable[[str], bool]:
    """Whether a parameter or statistic of this name belongs to the shared layers."""
    own = tuple(f"{part}." for part in LAST_STAGE[architecture])
    return lambda name: not name.startswith(own)


def tie(
    trees: dict[str, Params],
    stacks: Sequence[str],
    shared: Callable[[str], bool],
    reduce: Callable[[jax.Array], jax.Array],
) -> dict[str, Params]:
    """Gives all peers one value of what they share.

    Args:
        trees: by stack, what belongs to parameters or statistics by name, `[peers, ...]`.
        stacks: those of peers; the others are heads, and stay as they are.
        shared: whether a name is one of the shared layers.
        reduce: `[peers, ...] -> [1, ...]`.
    """

    def one(tree):
        return {k: jnp.broadcast_to(reduce(x), x.shape) if shared(k) else x for k, x in tree.items()}

    return {name: one(tree) if name in stacks else tree for name, tree in trees.items()}


def first_tied(pool: Pool, architecture: str) -> Pool:
    """The pool with the target student's shared layers in all peers. Branches start from weights of their own."""
    stack, last = pool.stacks[architecture], lambda x: x[-1:]
    params = tie({architecture: stack.params}, [architecture], is_shared(architecture), last)[architecture]
    return pool.replace(stacks=pool.stacks | {architecture: stack.replace(params=params)})


def total(x: jax.Array) -> jax.Array:
    """The sum over peers: what the gradient of layers is that all of them use."""
    return x.sum(0, keepdims=True)


def average(x: jax.Array) -> jax.Array:
    """The mean over peers: that gradient divided by their number, or one statistic of several batches."""
    return x.mean(0, keepdims=True)
