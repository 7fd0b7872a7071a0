"""Compiled training steps of pools on random images, to be measured (scripts/bench.py) or read (compile_report.py)."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from orc_jax import parallel
from orc_jax.config import Resolved, default, resolve
from orc_jax.cost import flops
from orc_jax.data.types import Dataset, Images
from orc_jax.models import ladder
from orc_jax.models.conv import WAYS, Way
from orc_jax.parallel import Devices
from orc_jax.pool import Pool
from orc_jax.run import Run, abstract_state, build
from orc_jax.step import TrainState, in_replicas, init_state, make_train_step
from orc_jax.verbs import predict

POOLS = {
    "one": ("resnet20",),
    "pair": ("resnet56", "resnet20"),
    "default": ("resnet56", *ladder("resnet56", "resnet20", 3), "resnet20"),
    "five": ("resnet20",) * 5,
    "wide": ("wrn_40_2", *ladder("wrn_40_2", "wrn_16_2", 3), "wrn_16_2"),
    "imagenet": ("resnet34", "resnet18", "resnet18"),
    "transformers": ("deit_tiny_patch4_32",) * 5,
}


def resolved_pool(architectures: Sequence[str], batch: int, num_devices: int, **fields: Any) -> Resolved:
    """The config of a run of a pool, with some fields: `{"orc.temporary_teacher_logits": "before"}`.

    Args:
        architectures: in member order.
        batch: images in the global batch.
        num_devices: over which the batch is sharded.
        fields: by their dotted names.
    """
    config = default()
    config.batch_size = batch
    config.teacher, config.student, config.num_networks = architectures[0], architectures[-1], len(architectures)
    config.assistants = ",".join(architectures[1:-1])
    config.update_from_flattened_dict(fields)
    return resolve(config, num_devices)


def random_images(count: int, size: int, num_classes: int = 100) -> Dataset:
    """A set in memory of `count` random square images of `size` pixels."""
    rng = np.random.default_rng(0)
    shape = (size, size, 3)
    images = Images(rng.integers(0, 256, (count, *shape), np.uint8), rng.integers(0, num_classes, count, np.int32))
    return Dataset("random", images, images, tuple(map(str, range(num_classes))), shape, (0.5,) * 3, (0.25,) * 3)


def step_of(run: Run, num_steps: int = 1, replicas: int = 1) -> Callable:
    """The training step of a run, or of replicas of it, or several in one call, of one batch, by `jax.lax.scan`."""
    step = make_train_step(run.setup, run.method.iterate)
    if replicas > 1:
        step = in_replicas(step, takes_values=False, own_batches=True)

    def several(state: TrainState, data: Images, indices: jax.Array):
        return jax.lax.scan(lambda state, _: (step(state, data, indices), None), state, length=num_steps)[0]

    return several if num_steps > 1 else step


def forward_of(run: Run) -> Callable:
    """What the pivot teacher does to teach: a forward pass in evaluation mode."""

    def forward(state: TrainState, data: Images, indices: jax.Array):
        normalized = (data.images[indices] / 255.0 - 0.5) / 0.25
        return parallel.mean(predict(Pool(spec=run.spec, stacks=state.stacks), normalized).logits, parallel.AXIS)

    return forward


def abstract_arguments(run: Run, replicas: int = 1) -> tuple[Any, ...]:
    """The arguments of a step of `run`, or of replicas of it, on its devices, as shapes: nothing is made."""
    place = lambda sharding: lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    of_one, count, several = abstract_state(run), len(run.devices), (replicas,) if replicas > 1 else ()
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*several, *x.shape), x.dtype), of_one)
    state = jax.tree.map(place(run.sharding), stacked)
    data = jax.tree.map(place(run.sharding), run.dataset.train)
    indices = jax.ShapeDtypeStruct((count, run.config.batch_size // count, *several), jnp.int32)
    return state, data, place(parallel.sharded(run.devices))(indices)


@contextlib.contextmanager
def plain_vmap() -> Iterator[None]:
    """Pools that are built within have the grouped convolutions that `jax.vmap` makes."""
    ours = dict(WAYS)
    WAYS.update(dict.fromkeys(WAYS, Way(one_by_one=False, written_out=False)))
    yield
    WAYS.update(ours)


class Program(NamedTuple):
    """A compiled training step, and what the compiler says of it."""

    run: Callable[[], object]
    compile_seconds: float
    memory: float  # bytes of arguments, results and temporaries, on one device
    arguments: float  # those of them that are arguments
    flops: float  # on one device
    bytes: float  # read and written there, each loop once
    text: Callable[[], str | None]  # of the compiled program


def prepare(
    architectures: Sequence[str],
    batch: int,
    dtype: str = "float32",
    *,
    method: str = "orc",
    variant: str = "after",
    num_devices: int = 1,
    num_steps: int = 1,
    forward_only: bool = False,
    size: int = 32,
    remat: bool = False,
    replicas: int = 1,
) -> Program:
    """The training step of a pool, or its forward pass in evaluation mode, on devices that are here.

    Args:
        architectures: in member order.
        batch: images in the global batch.
        dtype: of the activations.
        method: of training; "independent" for a member alone.
        variant: `orc.temporary_teacher_logits`.
        num_devices: over which the batch is sharded.
        num_steps: in one call.
        forward_only: no training step, but what the pivot teacher does to teach.
        size: of the images, in pixels.
        remat: `config.remat`.
        replicas: of the run, in one program.
    """
    fields = {"method": method, "dtype": dtype, "remat": remat, "orc.temporary_teacher_logits": variant}
    devices: Devices = jax.local_devices()[:num_devices]
    run = build(resolved_pool(architectures, batch, num_devices, **fields), random_images(batch, size), devices)
    state = parallel.once(functools.partial(init_state, run.setup, run.method))(0)
    indices = np.arange(batch, dtype=np.int32)
    if replicas > 1:
        state = jax.tree.map(lambda x: np.stack([x] * replicas), state)
        indices = np.stack([indices] * replicas, axis=-1)
    data = jax.device_put(run.dataset.train, run.sharding)
    args = jax.device_put(state, run.sharding), data, parallel.shard(indices, num_devices)
    mapped = parallel.DataParallel(
        forward_of(run) if forward_only else step_of(run, num_steps, replicas), devices, donate=False, long=True
    )
    started = time.perf_counter()
    compiled = mapped.compile(*args)
    seconds = time.perf_counter() - started
    memory: Any = compiled.memory_analysis()
    analysis: Any = compiled.cost_analysis()
    arguments = memory.argument_size_in_bytes
    total = arguments + memory.output_size_in_bytes + memory.temp_size_in_bytes
    operations = flops(mapped.mapped, *args) / num_devices
    moved = analysis.get("bytes accessed", 0.0)
    return Program(lambda: compiled(*args), seconds, total, arguments, operations, moved, compiled.as_text)
