"""What a run would be, without training: its pool, its steps, and what they cost (`--mode=describe`)."""

import collections
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from orc_jax import capacity, cost, display, optim, pretrained, schedules, speed
from orc_jax.capacity import Costs, costs, local_batch, memory
from orc_jax.config import Resolved
from orc_jax.data import augment, sets
from orc_jax.data.splits import eval_splits
from orc_jax.data.types import Images, size
from orc_jax.models.network import Network, weight_shapes
from orc_jax.models.noise import KINDS
from orc_jax.run import Run, build
from orc_jax.speed import Layer
from orc_jax.step import init_state, make_train_step
from orc_jax.terminal import doing, duration, warner


def describe(resolved: Resolved, workdir: Path, console: Console, *, replicas: int = 1) -> None:
    """Prints the pool, the steps and the costs of a run and of those before it. Trains nothing and writes nothing.

    Of `replicas` of it, what all of them take.

    Raises:
        UserError: for what a training would refuse, too.
    """
    with doing(console, f"reading {resolved.config.dataset}"):
        dataset = sets.load(resolved.config, warner(console), resolved.plugins)
    with doing(console, "building the networks"):
        run = build(resolved, dataset, jax.local_devices())
        sources = pretrained.plan(run, workdir)
        stages = [(source.name, source.run) for source in sources if source.run]
    for title, one in [*stages, (run.config.method, run)]:
        with doing(console, f"{title}: counting operations"):
            cells = {name: f"{each / 1e6:,.1f}" for name, each in forward_flops(one).items()}
            title = f"{title} on {one.dataset.name}"
            table = display.pool_table(one, title, {"MFLOP of a forward pass": cells})
            lines = _lines(one, replicas, is_stage=one is not run)
        console.print(table)
        for line in lines:
            warner(console)(line)
    for line in (*pretrained.about_starts(run, sources), *display.about_splits(run), *display.about_classes(run)):
        warner(console)(line)


def forward_flops(run: Run) -> dict[str, float]:
    """Floating-point operations of one member's forward pass on one image, by architecture."""
    return {name: one.flops for name, one in costs(run).items()}


def step_flops(run: Run) -> float:
    """Floating-point operations of one training step, on all devices together, about.

    It is traced with networks of two matrix products each, which cost as much as those of the run: passes are counted
    as the method makes them, and the backward pass of a network takes twice its forward pass.
    """
    count, each = len(run.devices), costs(run)
    shape = (run.config.batch_size // count,)
    data: Any = run.dataset.train
    if run.dataset.is_streamed:
        views = (run.setup.views,) if run.setup.views > 1 else ()
        images = jax.ShapeDtypeStruct((*shape, *views, *run.dataset.image_shape), jnp.uint8)
        data, batch = None, Images(images, jax.ShapeDtypeStruct(shape, jnp.int32))
    else:
        data, batch = jax.tree.map(jax.typeof, data), jax.ShapeDtypeStruct(shape, jnp.int32)
    stacks = [stack._replace(network=_standing_in(stack.network, each[stack.name])) for stack in run.spec.stacks]
    setup = run.setup._replace(spec=run.spec._replace(stacks=tuple(stacks)), axis_name=None)
    state = jax.eval_shape(lambda: init_state(setup, run.method, 0))
    return count * cost.flops(make_train_step(setup, run.method.iterate), state, data, batch)


def _standing_in(network: Network, costs: Costs) -> Network:
    """A network with the outputs of another, that takes as many operations for one image and is traced at once.

    Of its parameters it has one, and the linear layers, which methods may look at.
    """
    params, _ = weight_shapes(network)
    name = next(iter(params))
    kept = {other: x for other, x in params.items() if other == name or x.ndim == 2}

    def init(key):
        del key
        return jax.tree.map(jnp.zeros_like, kept), {}

    def predict(params, batch_stats, images):
        del batch_stats
        outputs, structure = jax.tree.flatten(costs.outputs)
        widths = [output.shape[1] for output in outputs[:2]]
        width = sum(widths)
        inner = round(costs.flops / (2 * (1 + width)))
        # All that it computes depends on a parameter, and its gradient goes to one.
        seed = params[name].reshape(-1)[:1]
        first, second = jnp.broadcast_to(seed, (1, inner)), jnp.broadcast_to(seed, (inner, width))
        result = images.reshape(len(images), -1)[:, :1] @ first @ second
        # Of one image: what has one row has a row for each image.
        shapes = [(len(images), *x.shape[1:]) if x.shape[0] == 1 else x.shape for x in outputs[2:]]
        others = [jnp.broadcast_to(seed.reshape([1] * len(shape)), shape) for shape in shapes]
        return structure.unflatten([*jnp.split(result, widths[:1], axis=1), *others])

    def train(params, batch_stats, images, keys=None):
        del keys
        return predict(params, batch_stats, images), batch_stats

    return Network(init, train, predict)


def seconds(run: Run, operations: float | None = None) -> float:
    """How long the run takes on these devices, about: its operations at a rate that is measured here and now.

    `operations` are those of a step, if they are known.
    """
    layers: dict[Layer, float] = collections.defaultdict(float)
    each = costs(run)
    for name in run.spec.architectures:
        for layer, flops in each[name].layers.items():
            layers[layer] += flops
    per_operation = speed.seconds(layers, local_batch(run), run.devices[0], run.config.dtype)
    operations = step_flops(run) if operations is None else operations
    return per_operation * operations * run.num_steps / len(run.devices)


def _lines(run: Run, replicas: int, is_stage: bool) -> list[str]:
    config, dataset = run.config, run.dataset
    of_one, taken = step_flops(run), memory(run)
    together, (state, kept) = _in_one_program(run, replicas, is_stage, taken), (replicas * each for each in taken)
    operations, time = replicas * of_one, duration(replicas * seconds(run, of_one))
    shape = "x".join(map(str, dataset.image_shape))
    data: Any = dataset.train
    where = "streamed" if dataset.is_streamed else f"in memory, {_size(data.images.nbytes, 'B', 1024)}"
    often = ", each class as often" if config.balanced_sampling else ""
    often += f", {config.repeated_augmentation} times in a batch" if config.repeated_augmentation > 1 else ""
    forward = f"forward passes {_size(kept, 'B', 1024)} at most, about"
    return [
        f"data           {dataset.num_train:,} images of {dataset.num_classes} classes, {shape}, {where}{often}",
        f"steps          {run.num_steps:,} of {config.batch_size} images, {config.num_epochs} epochs",
        f"augmentation   {augment.in_words(config, streamed=dataset.is_streamed)}{_on_labels(run)}",
        f"optimizer      {optim.described(config)}",
        f"learning rate  {config.learning_rate}, {schedules.described(config, run.num_steps)}",
        f"evaluation     {_evaluation(run)}",
        f"devices        {jax.device_count()} x {run.devices[0].device_kind}",
        f"activations    {config.dtype}{_on_dtype(run)}{_on_draws(run)}",
        f"a step         {_size(operations, 'FLOP')}; the run {_size(operations * run.num_steps, 'FLOP')}",
        *([f"replicas       {together}"] if together else []),
        f"time           about {time} of training here, at the rate of a short measurement",
        f"memory         on each device: state {_size(state, 'B', 1024)}, {forward}",
        "",
    ]


def _in_one_program(run: Run, replicas: int, is_stage: bool, taken: tuple[float, float]) -> str:
    """How many there are, or can be: of a stage that is what the run has."""
    if replicas == 1:
        return "" if is_stage else capacity.in_words(run, taken)
    fits = capacity.fitting(run, taken)
    told = "" if fits is None else f"; about {fits:,} fit into the memory that is free"
    return f"{replicas}, in one program, their seeds from {run.config.seed} on{told}"


def _on_labels(run: Run) -> str:
    smoothing = run.config.label_smoothing
    return f"; labels smoothed by {smoothing}" if smoothing else ""


def _on_dtype(run: Run) -> str:
    """What the other type would change on a CPU."""
    device, dtype = run.devices[0], run.config.dtype
    if device.platform != "cpu" or (dtype == "bfloat16") == speed.bfloat16_pays(device):
        return ""
    return "; bfloat16 would take less time" if dtype == "float32" else ", which take no less time here than float32"


def _on_draws(run: Run) -> str:
    """Who has layers that draw, where their rate is not 0."""
    of = {field: [stack.name for stack in run.spec.stacks if field in stack.network.draws] for field in KINDS}
    told = [f"; {field} {run.config[field]} in {', '.join(names)}" for field, names in of.items() if run.config[field]]
    return "".join(told)


def _evaluation(run: Run) -> str:
    first, patience = eval_splits(run.config)[0], run.config.patience
    others = [f", and on {name}, {size(examples):,} images" for name, examples in run.dataset.others]
    ends = f"; config.patience={patience} may end the run early" if patience else ""
    return f"on {first}, {size(run.dataset.test):,} images, selects the best checkpoint{''.join(others)}{ends}"


def _size(value: float, unit: str, base: int = 1000) -> str:
    """`1.5 GiB`, `2.1 TFLOP`."""
    exponent = min(int(math.log(max(value, 1), base)), 6)
    prefix = ["", *"KMGTPE"][exponent] + ("i" if base == 1024 and exponent else "")
    return f"{value / base**exponent:.1f} {prefix}{unit}"
