"""Dropout and stochastic depth: layers that draw anew in every step, each sample for itself.

What they draw is a function of the keys that a pass in training mode is given, one a sample, and of the layer's place
in the pass. A pass that is given none, as in evaluation, draws nothing. Rates are set when a network is made; in the
models they are 0.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax
import jax.numpy as jnp
from flax import nnx


class _Draws:
    """The keys of a pass, and how many of its layers have drawn."""

    def __init__(self, keys: jax.Array):
        self.keys, self.layers = keys, 0

    def keep(self, rate: float, shape: tuple[int, ...]) -> jax.Array:
        """True with probability `1 - rate`: bool `[batch, *shape]`."""
        self.layers += 1
        keys = jax.vmap(jax.random.fold_in, (0, None))(self.keys, self.layers)
        return jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, shape))(keys)


_draws: ContextVar[_Draws | None] = ContextVar("draws", default=None)


@contextlib.contextmanager
def drawing(keys: jax.Array | None) -> Iterator[None]:
    """Around one pass: what it draws from, keys `[batch]`."""
    token = _draws.set(None if keys is None else _Draws(keys))
    try:
        yield
    finally:
        _draws.reset(token)


def _dropped(x: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    draws = _draws.get()
    if draws is None or not rate:
        return x
    return jnp.where(draws.keep(rate, shape), x / (1.0 - rate), 0).astype(x.dtype)


class Dropout(nnx.Module):
    """Each activation is 0 with the probability `rate`, the others grow by as much (Srivastava et al., JMLR 2014)."""

    def __init__(self):
        self.rate = 0.0

    def __call__(self, x: jax.Array) -> jax.Array:
        """`x` is `[batch, ...]`."""
        return _dropped(x, self.rate, x.shape[1:])


class StochasticDepth(nnx.Module):
    """The residual branch of a sample is left out with a probability that grows with depth (Huang et al., ECCV 2016).

    Of block l of L it is `l / L` of the network's rate (their equation 4). Those that stay grow by as much as the
    others lack, so that evaluation needs no factor; in the paper it is evaluation that has one (equation 5).
    """

    def __init__(self, block: int, blocks: int):
        self.share, self.rate = block / blocks, 0.0

    def __call__(self, x: jax.Array) -> jax.Array:
        """`x` is `[batch, ...]`, what the branch adds."""
        return _dropped(x, self.rate * self.share, (1,) * (x.ndim - 1))


KINDS = {"dropout": Dropout, "stochastic_depth": StochasticDepth}  # by the field that is its rate
