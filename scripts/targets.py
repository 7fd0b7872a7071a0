"""Devices that XLA compiles for without having them: GPUs by `jax[cuda12]`, TPUs by `libtpu`, neither with a driver."""

import os
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from orc_jax.errors import UserError
from orc_jax.parallel import Devices

LAUNCH = 2e-6  # seconds: what a launch on a GPU takes at least, in the model


class Gpu(NamedTuple):
    """A GPU as XLA needs to know it."""

    name: str
    capability: str  # of CUDA: a text proto
    cores: int
    fpus: int  # of a core
    bandwidth: float  # bytes a second
    cache: int  # bytes of L2
    clock: float  # GHz
    memory: int  # bytes
    shared_memory: int  # bytes of a core


class Tpu(NamedTuple):
    """A TPU as libtpu needs to know it."""

    topology: str
    accelerator: str
    memory: int  # bytes


GIB = 2**30
ACCELERATED = "feature_extension: ACCELERATED_FEATURES"
TARGETS: dict[str, Gpu | Tpu] = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", "major: 8", 108, 64, 2.039e12, 41943040, 1.41, 85100068864, 167936),
    "h100": Gpu(
        "NVIDIA H100 80GB HBM3", f"major: 9 {ACCELERATED}", 132, 128, 3.352e12, 52428800, 1.98, 84942979072, 233472
    ),
    "h200": Gpu(
        "NVIDIA H200 141GB HBM3e", f"major: 9 {ACCELERATED}", 132, 128, 4.8e12, 52428800, 1.98, 151397597184, 233472
    ),
    "b200": Gpu("NVIDIA B200", f"major: 10 {ACCELERATED}", 148, 128, 7.672e12, 132644864, 1.965, 191514411008, 233472),
    "v5e": Tpu("v5e", "v5litepod", 16 * GIB),
    "v6e": Tpu("v6e", "v6e", 32 * GIB),
}
# The smallest slice with so many chips; of one with more the first are taken.
SLICES = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8"}


def devices_of(target: str, count: int) -> Devices:
    """`count` devices of a target, to compile for.

    Raises:
        UserError: if the package with its compiler is not installed, or does not know the target.
    """
    # The compilers start on a machine without a device: nothing is run on one, and none is asked for.
    jax.config.update("jax_platforms", "cpu")
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    there = TARGETS[target]
    try:
        if isinstance(there, Tpu):
            chips = next(size for size in SLICES if size >= count)
            os.environ["TPU_ACCELERATOR_TYPE"] = f"{there.accelerator}-{chips}"
            topology = topologies.get_topology_desc(f"{there.topology}:{SLICES[chips]}", "tpu")
        else:
            config: Any = {"target_config": _target_config(there), "topology": f"1x1x{count}"}
            topology = topologies.get_topology_desc("gpus", "cuda", **config)
    except Exception as error:  # of whatever kind the compiler's package raises
        package = "libtpu" if isinstance(there, Tpu) else "jax[cuda12]"
        raise UserError(f"cannot compile for {target} (pip install '{package}'): {error}") from error
    return topology.devices[:count]


def _target_config(gpu: Gpu) -> str:
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared_memory}
  shared_memory_per_block_optin: {gpu.shared_memory - 1024}
  threads_per_core_limit: 2048
  core_count: {gpu.cores}
  fpus_per_core: {gpu.fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  memory_bandwidth: {gpu.bandwidth:.0f}
  l2_cache_size: {gpu.cache}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {gpu.memory}
  cuda_compute_capability {{ {gpu.capability} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{gpu.name}"
"""
