"""What runs take of a device, and how many like one are trained at once, as replicas in one program."""

import collections
import functools
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from orc_jax import cost
from orc_jax.data.types import Images
from orc_jax.models.network import Network, weight_shapes
from orc_jax.run import Run, abstract_state
from orc_jax.speed import Layer

MANY = 2_000_000  # images times members, from which on a run is a long one
# Pixels times members, from which on a program that is faster by a quarter, but cannot be kept on disk, is compiled
# anew at every start: of small networks 200,000 images of 32x32 take minutes on a CPU, and compiling seconds.
WORTH_COMPILING = 200_000 * 32 * 32
# What the backward pass needs of a forward pass, over all arrays of one in evaluation mode. Of ResNets, wide ResNets,
# VGGs and DenseNets in float32 0.85 to 1.02; less with depthwise convolutions, or fewer and larger layers in bfloat16.
KEPT = {"float32": 0.95, "bfloat16": 0.65}
# Replicas in one program, unless a person says how many. On an H200 each of five ResNet-20s takes 0.49 of the time of
# one alone; by the model of docs/performance.md ten save little more, and their program compiles twice as long.
MOST = 5
SHARE = 0.8  # of the memory that is free: what a program takes is an estimate
MEMORY = Path("/proc/meminfo")
LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container, as its processes see it


def is_long(run: Run) -> bool:
    """Whether a run is a long one: of days on a CPU, and of hours elsewhere, in which to compile for longer pays."""
    return _work(run) >= MANY


def is_worth_compiling(run: Run) -> bool:
    """Whether it pays to compile anew at every start what makes the steps of a run faster."""
    height, width, _ = run.dataset.image_shape
    return _work(run) * height * width >= WORTH_COMPILING


def _work(run: Run) -> int:
    """The images that a run trains on, times its members."""
    return run.num_steps * run.config.batch_size * run.spec.size


class Costs(NamedTuple):
    """What one member's forward pass on one image takes."""

    flops: float  # of convolutions and matrix products
    bytes: float  # of all arrays on its way
    layers: dict[Layer, float]  # its convolutions, without depthwise ones, with the operations of all that are alike
    outputs: Any  # of `predict`: shapes and types


@functools.lru_cache(maxsize=64)
def _costs(network: Network, image_shape: tuple[int, int, int]) -> Costs:
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    closed, outputs = jax.make_jaxpr(network.predict, return_shape=True)(*weight_shapes(network), image)
    jaxpr = closed.jaxpr
    layers: dict[Layer, float] = collections.defaultdict(float)

    def note(equation) -> float:
        flops = cost.flops_of_one(equation)
        if equation.primitive.name == "conv_general_dilated":
            params, (x, kernel) = equation.params, (v.aval.shape for v in equation.invars)
            layers[Layer(x[1:], kernel, params["window_strides"], params["padding"])] += flops
        return flops

    return Costs(cost.total(jaxpr, note), cost.total(jaxpr, cost.result_bytes), dict(layers), outputs)


def costs(run: Run) -> dict[str, Costs]:
    """Those of every architecture."""
    return {stack.name: _costs(stack.network, run.dataset.image_shape) for stack in run.spec.stacks}


def local_batch(run: Run) -> int:
    """Images of a step on each device."""
    return run.config.batch_size // (len(run.devices) * jax.process_count())


def memory(run: Run) -> tuple[float, float]:
    """Bytes on each device: of the state, and what a step adds at most, about.

    The latter is what the forward passes keep for the backward passes; with `config.remat`, that of the largest member.
    """
    each, batch = costs(run), local_batch(run)
    kept = [KEPT[run.config.dtype] * batch * each[name].bytes for name in run.spec.architectures]
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract_state(run)))
    return float(state), max(kept) if run.config.remat else sum(kept)


def free_memory(run: Run) -> float | None:
    """Bytes that are free on each device of a run; of CPUs, their share of what this process can have of the machine.

    None where that is not told.
    """
    stats = run.devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    if run.devices[0].platform != "cpu" or not MEMORY.exists():
        return None
    available = re.search(r"MemAvailable: *(\d+) kB", MEMORY.read_text())
    # What this process has freed it may have kept (orc_jax.allocator).
    own = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    free = 1024.0 * int(available[1]) + own if available else None
    limit = LIMIT.read_text().strip() if LIMIT.exists() else "max"
    bounds = [bound for bound in (free, float(limit) if limit.isdigit() else None) if bound is not None]
    return min(bounds) / len(run.devices) if bounds else None


def fitting(run: Run, taken: tuple[float, float] | None = None) -> int | None:
    """How many replicas of a run fit into the memory of its devices, about; None where that is not told.

    Each takes its state, gradients of about that size, and what its forward passes keep; all have one set. `taken` is
    its `memory`, if that is known.
    """
    free = free_memory(run)
    if free is None:
        return None
    state, kept = taken or memory(run)
    of_run = (run.dataset.train, run.dataset.test, *(examples for _, examples in run.dataset.others))
    sets = sum(of.images.nbytes + of.labels.nbytes for of in of_run if isinstance(of, Images))
    return max(int((SHARE * free - sets) // (2 * state + kept)), 0)


class Together(NamedTuple):
    """How many runs are trained at once, and why not more."""

    count: int
    why: str


def at_once(run: Run) -> Together:
    """How many runs like this one are trained at once where nobody says how many: as many as pay and fit."""
    if run.devices[0].platform == "cpu":
        return Together(1, "a CPU is filled by one")
    if not is_long(run):
        return Together(1, "in so short a run compiling takes more time than replicas save")
    fits = fitting(run)
    if fits is None:
        return Together(1, "how much memory the devices have is not told")
    return Together(MOST, "more save little") if fits >= MOST else Together(max(fits, 1), "so many fit")


def in_words(run: Run, taken: tuple[float, float] | None = None) -> str:
    """How many replicas fit, and how many a comparison or a search trains by itself; `taken` as of `fitting`."""
    fits, (count, why) = fitting(run, taken), at_once(run)
    told = "" if fits is None else f"about {fits:,} fit into the memory that is free; "
    return f"{told}a comparison or a search trains {count} at once by itself ({why})"
