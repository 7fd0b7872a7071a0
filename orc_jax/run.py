"""A run, built from its config: the parts that training and evaluation share, none of which changes."""

import functools
import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from ml_collections import ConfigDict, FrozenConfigDict

from orc_jax import optim, parallel, schedules, step, transfer
from orc_jax.config import Resolved, flat
from orc_jax.data import augment
from orc_jax.data.batches import last_step
from orc_jax.data.mixing import Mixing
from orc_jax.data.types import Dataset, hold_out
from orc_jax.errors import UserError, require
from orc_jax.methods.base import Method
from orc_jax.models import noise
from orc_jax.models.conv import convolution_for
from orc_jax.models.network import Network, Params, class_axes, layers_of, weight_shapes
from orc_jax.parallel import Devices
from orc_jax.pool import PoolSpec, make_spec
from orc_jax.verbs import Setup
from orc_jax.workdir import record
from orc_jax.workdir.record import Record

MOST_STEPS = 2**31 - 1  # a step is counted in 32 bits


class Run(NamedTuple):
    """What is fixed about a run before it starts."""

    resolved: Resolved
    dataset: Dataset
    devices: Devices  # of this process
    setup: Setup

    @property
    def config(self) -> FrozenConfigDict:
        return self.resolved.config

    @property
    def method(self) -> Method:
        return self.resolved.method

    @property
    def spec(self) -> PoolSpec:
        return self.setup.spec

    @property
    def num_steps(self) -> int:
        return self.setup.num_steps

    @property
    def sharding(self) -> NamedSharding:
        """Of the state, which every device holds whole."""
        return parallel.replicated(self.devices)

    def record(self) -> Record:
        """What is kept beside the run's checkpoints."""
        return Record(
            config=json.loads(self.config.to_json()),
            architectures=self.spec.architectures,
            num_classes=self.dataset.num_classes,
            class_names=self.dataset.class_names,
            num_train=self.dataset.num_train,
            image_shape=self.dataset.image_shape,
            mean=self.setup.mean,
            std=self.setup.std,
            eval_crop=self.config.stream.eval_crop if self.dataset.is_streamed and not self.dataset.whole else None,
            versions=record.versions(),
            devices=tuple(device.device_kind for device in self.devices),
            command=record.command_line(),
            machine=record.machine(),
        )


def build(resolved: Resolved, dataset: Dataset, devices: Devices, axis_name: str | None = parallel.AXIS) -> Run:
    """The run of a config on a data set and on devices of this process. Compiles nothing and writes nothing.

    `axis_name` is the mapped axis of its step; None for a step that is not mapped, on one device.
    """
    config, method = resolved.config, resolved.method
    augment.check_images(config, dataset)
    if method.held_out:
        dataset = hold_out(dataset, method.held_out.share)
    if method.indexed and dataset.is_streamed:
        raise UserError(
            f"config.dataset={config.dataset!r} is streamed, but config.method={config.method!r} keeps something of "
            "each training example; accepted is a set in memory"
        )
    num_steps = last_step(config.num_epochs, config.batch_size, dataset.num_train)
    fewer = f"less: {num_steps} steps are more than are counted, {MOST_STEPS}"
    require("config.num_epochs", config.num_epochs, num_steps <= MOST_STEPS, fewer)
    spec = make_spec(
        resolved.architectures,
        resolved.models,
        num_classes=dataset.num_classes,
        image_shape=dataset.image_shape,
        dtype=config.dtype,
        axis_name=axis_name,
        batch_norm=config.batch_norm,
        remat=config.remat,
        platform=devices[0].platform,
        early=method.early,
        maps=method.maps,
        dropout=config.dropout,
        stochastic_depth=config.stochastic_depth,
    )
    _check_draws(config, spec)
    classifiers = _classifiers(resolved, dataset) if config.frozen or config.classifier_lr_multiplier != 1 else {}
    parts = {stack.name: weight_shapes(stack.network)[0] for stack in spec.stacks} if config.frozen else {}
    frozen = {name: transfer.frozen(config.frozen, name, of, classifiers[name]) for name, of in parts.items()}
    optimizers = functools.partial(_optimizers, resolved, spec, dataset.image_shape, classifiers, frozen)
    setup = Setup(
        spec=spec,
        image_shape=dataset.image_shape,
        optimizer=optim.optimizer(config),
        learning_rate=schedules.learning_rate_schedule(config, dataset.num_train / config.batch_size, num_steps),
        lr_multipliers=resolved.lr_multipliers,
        augment=augment.none if dataset.is_streamed else augment.of_memory(config, dataset),
        mean=dataset.mean,
        std=dataset.std,
        views=method.views,
        num_steps=num_steps,
        axis_name=axis_name,
        of_values=functools.partial(_of_values, resolved, dataset, num_steps, optimizers),
        optimizers=optimizers(),
        clip_norm=config.clip_norm,
        ema_decay=config.ema_decay,
        accumulate_steps=config.accumulate_steps,
        mixing=Mixing(config.mixup, config.cutmix),
        label_smoothing=config.label_smoothing,
        frozen=frozen,
        data_seed=None if config.data_seed < 0 else config.data_seed,
        convolution=convolution_for(devices[0].platform),
        draws=config.dropout > 0 or config.stochastic_depth > 0,
        batch_size=config.batch_size,
        num_train=dataset.num_train,
    )
    return Run(resolved, dataset, devices, setup)


def _check_draws(config: FrozenConfigDict, spec: PoolSpec) -> None:
    for field in noise.KINDS:
        if config[field] and not any(field in stack.network.draws for stack in spec.stacks):
            names = ", ".join(stack.name for stack in spec.stacks)
            raise UserError(f"config.{field}={config[field]}: none of {names} has such layers; accepted is 0.0")


def _classifiers(resolved: Resolved, dataset: Dataset) -> dict[str, tuple[str, ...]]:
    """By architecture: the parameters that have an axis of classes."""
    axes = {name: class_axes(of, dataset.num_classes, dataset.image_shape) for name, of in resolved.models.items()}
    return {name: tuple(of) for name, of in axes.items()}


def _optimizers(
    resolved: Resolved,
    spec: PoolSpec,
    image_shape: tuple[int, int, int],
    classifiers: Mapping[str, Collection[str]],
    frozen: Mapping[str, Collection[str]],
    weight_decay: jax.Array | None = None,
) -> dict[str, optax.GradientTransformation]:
    """By architecture, where it is not that of the config; with another `weight_decay` than the config's, if given."""
    config, kinds, decays, rates = resolved.config, resolved.optimizers, resolved.weight_decays, {}
    if config.layer_decay < 1:
        layers = {stack.name: layers_of(stack.network, image_shape, optim.is_kernel) for stack in spec.stacks}
        rates = {name: optim.layer_rates(of, config.layer_decay) for name, of in layers.items()}
    if (factor := config.classifier_lr_multiplier) != 1:
        for name, parameters in classifiers.items():
            of = rates.get(name, {})
            rates[name] = of | {parameter: of.get(parameter, 1.0) * factor for parameter in parameters}
    return {
        name: optim.optimizer(
            config, kinds.get(name), decays.get(name, weight_decay), rates.get(name), frozen.get(name, ())
        )
        for name in {**kinds, **decays, **rates, **frozen}
    }


def _of_values(
    resolved: Resolved,
    dataset: Dataset,
    num_steps: int,
    optimizers: Callable[..., dict[str, optax.GradientTransformation]],
    values: Mapping[str, jax.Array],
) -> dict[str, Any]:
    """The fields of the setup that follow from values: `learning_rate` is the peak of the schedule."""
    config, found = resolved.config, {}
    if "learning_rate" in values:
        unit = schedules.learning_rate_schedule(_of_rate_1(config), dataset.num_train / config.batch_size, num_steps)
        found["learning_rate"] = lambda step: values["learning_rate"] * unit(step)
    if "weight_decay" in values:
        decay = values["weight_decay"]
        found |= {"optimizer": optim.optimizer(config, weight_decay=decay), "optimizers": optimizers(decay)}
    if "label_smoothing" in values:
        found["label_smoothing"] = values["label_smoothing"]
    return found


def _of_rate_1(config: FrozenConfigDict) -> ConfigDict:
    changed = ConfigDict(config)
    changed.learning_rate = 1.0
    return changed


def values_of(run: Run) -> dict[str, jax.Array]:
    """The fields whose values are arguments of the step of `run`, by the names that a method has for them."""
    fields = flat(run.config.to_dict())
    return {field.rpartition(".")[2]: jnp.float32(fields[field]) for field in run.resolved.values}


def abstract_state(run: Run) -> step.TrainState:
    """Shapes and types of the state of `run`."""

    def unfilled(network: Network) -> Network:
        """Initialisation is left out: tracing it takes most of the time."""
        return network._replace(init=lambda key: jax.tree.map(jnp.zeros_like, weight_shapes(network)))

    setup = run.setup._replace(spec=run.spec.with_networks(unfilled))
    return jax.eval_shape(lambda: step.init_state(setup, run.method, 0))


def head_shapes(run: Run) -> dict[str, dict[str, Params]]:
    """Of each head of a run the shapes of its parameters and statistics, if it has any."""
    if run.method.start is None:
        return {}
    heads = {name: of for name, of in abstract_state(run).stacks.items() if name not in run.spec.architectures}
    kinds = {name: {"params": head.params, "batch_stats": head.batch_stats} for name, head in heads.items()}
    return {name: {kind: arrays for kind, arrays in of.items() if arrays} for name, of in kinds.items()}


def parameter_counts(run: Run) -> dict[str, int]:
    """The parameters of one member, by architecture."""
    return {
        stack.name: sum(math.prod(x.shape) for x in weight_shapes(stack.network)[0].values())
        for stack in run.spec.stacks
    }
