"""The one mapping between our arrays and those of PyTorch state dicts, used in both directions.

Names map by rule, because the networks here name their attributes as the PyTorch definitions do.
"""

from typing import Any

import numpy as np

RENAMED = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
COUNTER = "num_batches_tracked"  # of a PyTorch batch normalisation; ours does not count
COUNTERS = (COUNTER, "total_ops", "total_params")  # and of a tool that counts operations: nothing is computed with them
# By number of axes: where ours lie in PyTorch's array. Convolutions [out, in, h, w] to [h, w, in, out], linear layers
# [out, in] to [in, out].
AXES = {2: (1, 0), 4: (2, 3, 1, 0)}


def torch_name(name: str) -> str:
    """The PyTorch name of one of our parameters or statistics: `layer1.0.bn1.scale` is `layer1.0.bn1.weight`."""
    module, dot, leaf = name.rpartition(".")
    return f"{module}{dot}{RENAMED.get(leaf, leaf)}"


def from_torch(value: np.ndarray) -> np.ndarray:
    """A PyTorch array in our layout, as float32; what float32 cannot hold is infinite."""
    value = value.transpose(AXES.get(value.ndim, range(value.ndim)))
    with np.errstate(over="ignore"):  # whoever computes with it looks for what is not finite, and names the array
        return np.asarray(value, np.float32, order="C")


def to_torch(value: np.ndarray) -> np.ndarray:
    """One of our arrays in PyTorch's layout: the inverse of `from_torch`."""
    return np.asarray(value.transpose(np.argsort(AXES.get(value.ndim, range(value.ndim)))), order="C")


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a PyTorch array must have to be of `shape` in our layout."""
    return to_torch(np.broadcast_to(np.float32(0), shape)).shape


def state_dict(params: dict[str, Any], batch_stats: dict[str, Any]) -> dict[str, np.ndarray]:
    """The PyTorch state dict of one network, complete as `load_state_dict(strict=True)` wants it.

    The counters of batch normalisation are 0: PyTorch uses them only where a layer has no momentum.
    """
    arrays = {torch_name(name): to_torch(np.asarray(value)) for name, value in (params | batch_stats).items()}
    norms = [name.removesuffix(".mean") for name in batch_stats if name.endswith(".mean")]
    return arrays | {f"{norm}.{COUNTER}": np.zeros((), np.int64) for norm in norms}
