"""What a run would be, without training: its pool, its steps, and what they cost (`--mode=describe`)."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from orc_jax import display, parallel, pretrained
from orc_jax.config import Resolved
from orc_jax.cost import flops
from orc_jax.data import sets
from orc_jax.data.types import Images
from orc_jax.models.network import make_network, weight_shapes
from orc_jax.run import Run, abstract_state, build
from orc_jax.step import make_train_step


def describe(resolved: Resolved, workdir: Path, console: Console) -> None:
    """Prints the pool, the steps and the costs of a run and of those before it. Trains nothing and writes nothing.

    Raises:
        UserError: for what a training would refuse, too.
    """
    dataset = sets.load(resolved.config, display.warner(console), resolved.plugins)
    run = build(resolved, dataset, jax.local_devices())
    stages = [(source.name, source.run) for source in pretrained.plan(run, workdir) if source.run]
    for title, one in [*stages, (run.config.method, run)]:
        costs = {name: f"{cost / 1e6:,.1f}" for name, cost in forward_flops(one).items()}
        title = f"{title} on {one.dataset.name}"
        console.print(display.pool_table(one, title, {"MFLOP of a forward pass": costs}))
        for line in _lines(one):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def forward_flops(run: Run) -> dict[str, float]:
    """Floating-point operations of one member's forward pass on one image, by architecture."""
    image = jax.ShapeDtypeStruct((1, *run.dataset.image_shape), jnp.float32)
    costs = {}
    for stack in run.spec.stacks:
        params, batch_stats = weight_shapes(stack.network)
        costs[stack.name] = flops(stack.network.predict, params, batch_stats, image)
    return costs


def step_flops(run: Run) -> float:
    """Floating-point operations of one training step, on all devices together."""
    count = len(run.devices)
    batch = (count, run.config.batch_size // count)
    data: Any = run.dataset.train
    if run.dataset.is_streamed:
        views = (run.setup.views,) if run.setup.views > 1 else ()
        images = jax.ShapeDtypeStruct((*batch, *views, *run.dataset.image_shape), jnp.uint8)
        data, batch = None, Images(images, jax.ShapeDtypeStruct(batch, jnp.int32))
    else:
        data, batch = jax.tree.map(jax.typeof, data), jax.ShapeDtypeStruct(batch, jnp.int32)
    step = parallel.DataParallel(make_train_step(run.setup, run.method.iterate), run.devices, donate=False)
    return flops(step.mapped, abstract_state(run), data, batch)


def memory(run: Run) -> tuple[float, float]:
    """Bytes on each device: of the state, and what a step adds at most, about.

    The latter is what the forward passes keep for the backward passes; with `config.remat`, that of the largest member.
    Compilers keep less, in docs/performance.md by up to a third.
    """
    setup, config = run.setup, run.config
    shape = (config.batch_size // jax.device_count(), *setup.image_shape)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    kept = []
    for architecture in setup.spec.architectures:
        model = run.resolved.models[architecture]
        network = make_network(model, run.dataset.num_classes, setup.image_shape, config.dtype)

        def residuals(images, network=network):
            params, batch_stats = network.init(jax.random.key(0))
            return jax.vjp(lambda params: network.train(params, batch_stats, images)[0], params)[1], params

        pullback, params = jax.eval_shape(residuals, images)
        kept.append(_bytes(pullback) - _bytes(params))
    return _bytes(abstract_state(run)), max(kept) if config.remat else sum(kept)


def _bytes(tree) -> float:
    return float(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)))


def _lines(run: Run) -> list[str]:
    config, dataset = run.config, run.dataset
    operations, (state, kept) = step_flops(run), memory(run)
    shape = "x".join(map(str, dataset.image_shape))
    data: Any = dataset.train
    where = "streamed" if dataset.is_streamed else f"in memory, {_size(data.images.nbytes, 'B', 1024)}"
    drops = [f"{round(fraction * run.num_steps):,}" for fraction in config.lr_boundaries]
    schedule = {"step": f"times {config.lr_decay} at steps {', '.join(drops)}", "cosine": "cosine to 0"}
    warmup = f"warm-up over {config.warmup_epochs} epochs, then " if config.warmup_epochs else ""
    forward = f"forward passes {_size(kept, 'B', 1024)} at most, about"
    return [
        f"data           {dataset.num_train:,} images of {dataset.num_classes} classes, {shape}, {where}",
        f"steps          {run.num_steps:,} of {config.batch_size} images, {config.num_epochs} epochs",
        f"learning rate  {config.learning_rate}, {warmup}{schedule.get(config.lr_schedule, 'constant')}",
        f"devices        {jax.device_count()} x {run.devices[0].device_kind}, activations in {config.dtype}",
        f"a step         {_size(operations, 'FLOP')}; the run {_size(operations * run.num_steps, 'FLOP')}",
        f"memory         on each device: state {_size(state, 'B', 1024)}, {forward}",
        "",
    ]


def _size(value: float, unit: str, base: int = 1000) -> str:
    """`1.5 GiB`, `2.1 TFLOP`."""
    exponent = min(int(math.log(max(value, 1), base)), 6)
    prefix = ["", *"KMGTPE"][exponent] + ("i" if base == 1024 and exponent else "")
    return f"{value / base**exponent:.1f} {prefix}{unit}"
