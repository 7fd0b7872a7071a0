"""The one place that says `pmap`, and the collectives that a step may use.

The state is replicated without a device axis (`in_axes=None, out_axes=None`); the batch is sharded over its first axis.
With several processes each holds the state on its own devices, and its share of the batch.
Every collective takes `axis_name=None` as well, so the same step runs unmapped, as one device would run it.
"""

import functools
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from orc_jax import hosts

AXIS = "data"
PyTree = Any
Devices = Sequence[Any]  # of `jax.Device`, which is no type for a checker


# Options of the compiler, by platform. XLA:CPU gives most convolutions to YNNPACK, which takes up to three times as
# long over the gradients of small images as XLA's own do; reductions it does well.
COMPILER_OPTIONS = {"cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}}
# Those of programs that run for long. From jax 0.12 on XLA:CPU gives oneDNN the convolutions that conv.py lets it have,
# forward and the images' gradients, which take half the time; but then a program cannot be kept on disk.
LONG_OPTIONS = {"cpu": {"xla_cpu_experimental_onednn_custom_call": True}}
ONEDNN = "__onednn$convolution"  # in a compiled program, where oneDNN computes a convolution
# Those of programs that run once, or for a moment. Over the hundreds of random generators of the initial weights
# XLA:CPU of jax 0.12 takes minutes when it optimizes in full; what it makes of them otherwise is the same, bit for bit.
ONCE_OPTIONS = {"cpu": {"xla_backend_optimization_level": 1}}


def compiled(lowered: jax.stages.Lowered, platform: str, *, long: bool = False) -> jax.stages.Compiled:
    """A program, compiled with the options for a platform. One that this version of XLA does not know is left out.

    `long` says that it will run for longer than it takes to compile.
    """
    options: dict[str, Any] = COMPILER_OPTIONS.get(platform, {}) | (LONG_OPTIONS.get(platform, {}) if long else {})
    while True:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry", UserWarning)
                return lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            unknown = re.search(r"No such compile option: '(\w+)'", str(error))
            if unknown is None or unknown[1] not in options:
                raise
            del options[unknown[1]]


def once(function: Callable) -> Callable:
    """`function`, which runs so seldom that compiling it takes longer, such as the one that draws the initial weights.

    It is computed on the CPU, whatever the devices: XLA compiles random generators for a GPU ten times as long, and one
    seed starts from the same bits everywhere.

    Returns:
        A function of arrays on the host, or anywhere, whose results are on the CPU; on the devices if JAX was told
        that there is no CPU (`JAX_PLATFORMS`).
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.jit(function)
    compiled_once = jax.jit(function, compiler_options=ONCE_OPTIONS["cpu"])

    def run(*args):
        with jax.default_device(cpu):
            return compiled_once(*jax.device_get(args))

    return run


class DataParallel:
    """`step(state, data, batch)` over devices: state, data and results replicated, `batch` sharded.

    `step` reduces or gathers everything it returns over `AXIS`. It runs on the devices of all processes; those of this
    one are given. With `donate` the state's memory goes to the new state. `long` is as in `compiled`.
    """

    def __init__(self, step: Callable, devices: Devices, *, donate: bool, long: bool = False):
        self.mapped = jax.pmap(
            step,
            axis_name=AXIS,
            in_axes=(None, None, 0),
            out_axes=None,
            donate_argnums=(0,) if donate else (),
            devices=_all_devices(devices),
        )
        # With several processes, a compiled `pmap` does not take what one that is called does: a process's own share.
        self._compiles = jax.process_count() == 1 and devices[0].platform in COMPILER_OPTIONS
        self._platform, self._long = devices[0].platform, long
        # XLA:CPU runs its virtual devices on one pool of threads: two steps in flight can wait for each other for ever.
        self._waits = len(devices) > 1 and devices[0].platform == "cpu"
        self._programs = {}

    def lower(self, *args) -> jax.stages.Lowered:
        """The program for arguments of these shapes, not compiled yet."""
        return self.mapped.lower(*args)

    def compile(self, *args) -> jax.stages.Compiled:
        """The program for arguments of these shapes."""
        return compiled(self.lower(*args), self._platform, long=self._long)

    def __call__(self, *args):
        if not self._compiles:
            return self.mapped(*args)
        # `pmap` takes no options of the compiler, so its programs are kept here.
        leaves, structure = jax.tree.flatten(args)
        key = structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if key not in self._programs:
            self._programs[key] = self.compile(*args)
        result = self._programs[key](*args)
        return jax.block_until_ready(result) if self._waits else result


def _all_devices(devices: Devices) -> Devices:
    """Those of all processes, in an order in which the shares of the batch are in the order of the processes."""
    if jax.process_count() == 1:
        return devices
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def replicated(devices: Devices) -> NamedSharding:
    """The sharding of a state that every device holds whole."""
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())


def sharded(devices: Devices) -> NamedSharding:
    """The sharding of a batch `[devices, batch / devices, ...]`."""
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))


def shard(batch: np.ndarray, num_devices: int) -> np.ndarray:
    """Splits `[batch, ...]` on the host into `[devices, batch / devices, ...]`."""
    return batch.reshape(num_devices, -1, *batch.shape[1:])


def mean(x: PyTree, axis_name: str | None) -> PyTree:
    """The mean over devices of each leaf of `x`."""
    return x if axis_name is None else jax.lax.pmean(x, axis_name)


def total(x: PyTree, axis_name: str | None) -> PyTree:
    """The sum over devices of each leaf of `x`."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def gather(x: jax.Array, axis_name: str | None, axis: int = 0) -> jax.Array:
    """Joins the devices' shards of `x` along `axis`, in the order of the global batch."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, axis=axis, tiled=True)


def local_slots(local_size: int, axis_name: str | None) -> jax.Array:
    """The positions in the global batch of this device's `local_size` samples: int32 `[local_size]`."""
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * local_size
    return first + jnp.arange(local_size)


def assert_replicated(tree: PyTree) -> None:
    """Checks that all devices, and all processes, hold the same values of a replicated `tree`.

    Raises:
        RuntimeError: naming the first leaf whose fingerprint (the sum of its bits) differs between devices.
    """
    leaves = jax.tree.leaves_with_path(tree)
    if jax.process_count() == 1 and len(leaves[0][1].addressable_shards) == 1:
        return
    devices = sorted(leaves[0][1].sharding.device_set, key=lambda device: (device.process_index, device.id))
    here = np.zeros(len(leaves[0][1].addressable_shards), np.uint32)  # `pmap` wants something to map over
    told = _fingerprints(tuple(devices))([leaf for _, leaf in leaves], here)
    prints = np.concatenate([shard.data for shard in told.addressable_shards])  # [devices of this process, leaves]
    for (path, _), values in zip(leaves, prints.T, strict=True):
        if len(set(values.tolist())) > 1:
            raise RuntimeError(f"replicas differ in {jax.tree_util.keystr(path)}: the devices took different decisions")
    hosts.require_equal(prints[0].tolist(), "their state: they took different decisions")


@functools.lru_cache(maxsize=8)
def _fingerprints(devices: tuple[Any, ...]) -> Callable[[list[jax.Array], np.ndarray], jax.Array]:
    """The sums of the bits of arrays, as each device has them: uint32 `[devices, arrays]`. One program, no copies."""

    def sums(arrays: list[jax.Array], here: jax.Array) -> jax.Array:
        bits = [jax.lax.bitcast_convert_type(x, jnp.uint32) for x in arrays]
        return here + jnp.stack([x.sum(dtype=jnp.uint32) for x in bits])

    return jax.pmap(sums, in_axes=(None, 0), out_axes=0, devices=devices)
