"""The order of a network's outputs, and what is known of which class each is."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from orc_jax.data.folder import in_order


def put_in_order(
    params: Mapping[str, jax.Array | np.ndarray], axes: Mapping[str, int], names: Sequence[str]
) -> tuple[dict, tuple[str, ...]]:
    """Parameters whose outputs are classes called `names`, and the names, in the order that a folder of images has.

    Names that are not all numbers stay as they are. `axes` has the axis of the classes for every parameter with one.
    """
    ordered = in_order(names)
    order = np.array([list(names).index(name) for name in ordered], int)
    moved = {name: np.take(np.asarray(params[name]), order, axis) for name, axis in axes.items()} if names else {}
    return {**params, **moved}, ordered
