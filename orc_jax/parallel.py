"""The one place that says `pmap`, and the collectives that a step may use.

The state is replicated without a device axis (`in_axes=None, out_axes=None`); the batch is sharded over its first axis.
Every collective takes `axis_name=None` as well, so the same step runs unmapped, as one device would run it.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def data_parallel(step: Callable, devices: Sequence[jax.Device], *, donate: bool) -> Callable:
    """`step(state, data, batch)` over `devices`: state and data replicated, `batch` sharded, results replicated.

    Args:
        step: a function that reduces or gathers everything it returns over `AXIS`.
        devices: local devices.
        donate: give the state's memory to the new state.
    """
    mapped = jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, None, 0),
        out_axes=None,
        donate_argnums=(0,) if donate else (),
        devices=devices,
    )
    if len(devices) == 1 or devices[0].platform != "cpu":
        return mapped
    # XLA:CPU runs its virtual devices on one pool of threads: two steps in flight can wait for each other for ever.
    return lambda *args: jax.block_until_ready(mapped(*args))


def replicated(devices: Sequence[jax.Device]) -> NamedSharding:
    """The sharding of a state that every device holds whole."""
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())


def sharded(devices: Sequence[jax.Device]) -> NamedSharding:
    """The sharding of a batch `[devices, batch / devices, ...]`."""
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))


def shard(batch: np.ndarray, num_devices: int) -> np.ndarray:
    """Splits `[batch, ...]` on the host into `[devices, batch / devices, ...]`."""
    return batch.reshape(num_devices, -1, *batch.shape[1:])


def mean(x, axis_name: str | None):
    """The mean over devices of each leaf of `x`."""
    return x if axis_name is None else jax.lax.pmean(x, axis_name)


def total(x, axis_name: str | None):
    """The sum over devices of each leaf of `x`."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def gather(x: jax.Array, axis_name: str | None, axis: int = 0) -> jax.Array:
    """Joins the devices' shards of `x` along `axis`, in the order of the global batch."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, axis=axis, tiled=True)


def local_slots(local_size: int, axis_name: str | None) -> jax.Array:
    """The positions in the global batch of this device's `local_size` samples: int32 `[local_size]`."""
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * local_size
    return first + jnp.arange(local_size)


def assert_replicated(tree, devices: Sequence[jax.Device]) -> None:
    """Checks that all devices hold the same values of a replicated `tree`.

    Raises:
        RuntimeError: naming the first leaf whose fingerprint (the sum of its bits) differs between devices.
    """
    if len(devices) < 2:
        return
    leaves = jax.tree.leaves_with_path(tree)
    prints = jax.device_get([[_fingerprint(shard.data) for shard in leaf.addressable_shards] for _, leaf in leaves])
    for (path, _), values in zip(leaves, prints, strict=True):
        if len(set(map(int, values))) > 1:
            raise RuntimeError(f"replicas differ in {jax.tree_util.keystr(path)}: the devices took different decisions")


@jax.jit
def _fingerprint(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.uint32).sum(dtype=jnp.uint32)
