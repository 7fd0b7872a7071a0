"""Feature points: the maps that a network makes of images on its way, for methods that compare them.

A network notes them in order, from the stem to its last stage. There are two kinds, as many of one as of the other:

- `post`: after the last activation of a stage, or what stands there in a network that has none;
- `preact`: before that activation. Where a network has no such thing, as after its stem, it is the same map;

and two more, of which not every network has the second:

- `pooled`, one map: that whose mean over pixels are the features that its classifier takes;
- `norms`, one of each point but the stem's: scale and shift `[2, channels]` of the normalisation before its activation.

Outside `noting` nothing is kept and nothing computed.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp

KINDS = ("post", "preact", "pooled", "norms")
Maps = dict[str, tuple[jax.Array, ...]]  # by kind: float32 [batch, height, width, channels], but for `norms`

_noted: ContextVar[dict[str, list[jax.Array]] | None] = ContextVar("noted", default=None)


@contextlib.contextmanager
def noting(kinds: Sequence[str]) -> Iterator[dict[str, list[jax.Array]]]:
    """Around one pass: collects the maps of some `KINDS`, by kind."""
    maps: dict[str, list[jax.Array]] = {kind: [] for kind in kinds}
    token = _noted.set(maps)
    try:
        yield maps
    finally:
        _noted.reset(token)


def asked(kind: str) -> bool:
    """Whether the pass collects maps of this kind: for a network that would have to compute one."""
    return kind in (_noted.get() or ())


def note_norm(norm: Any) -> None:
    """Notes scale and shift of a batch normalisation."""
    if asked("norms"):
        note(norms=jnp.stack([norm.scale[...], norm.bias[...]]))


def note(**maps: jax.Array) -> None:
    """Notes maps `[batch, height, width, channels]` as the next of their kinds: `note(post=x, preact=y)`."""
    noted = _noted.get() or {}
    for kind, x in maps.items():
        if kind in noted:
            noted[kind].append(x.astype(jnp.float32))
