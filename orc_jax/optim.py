"""Optimizers: a direction by optax, of unit rate, beside the learning rate of `orc_jax.schedules`.

Rate and direction are kept apart so that a member which pauses keeps its place in the schedule, and so that members
can have different rates.
"""

import functools
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from orc_jax.errors import UserError, require, require_choice
from orc_jax.models.network import Params

Decay = float | jax.Array  # the latter an argument of the program, greater than 0
Mask = Callable[[Params], dict[str, bool]] | None  # which parameters of a member decay; None: all


def is_kernel(name: str, parameter: jax.Array) -> bool:
    """Whether a member's parameter is that of a convolution or a matrix: no norm, bias, token or position embedding."""
    own = name.rpartition(".")[2]
    return parameter.ndim >= 2 and not re.search(r"bias|token|pos(ition)?_?(emb|enc)", own)


def kernels(params: Params) -> dict[str, bool]:
    """Of each parameter of a member, whether it is a kernel."""
    return {name: is_kernel(name, parameter) for name, parameter in params.items()}


def _decays(weight_decay: Decay) -> bool:
    return not isinstance(weight_decay, float) or weight_decay > 0


def sgd_direction(
    momentum: float, nesterov: bool, weight_decay: Decay, mask: Mask = None
) -> optax.GradientTransformation:
    """PyTorch's SGD at rate 1: weight decay is added to the gradient, before the momentum."""
    transforms = [optax.add_decayed_weights(weight_decay, mask)] if _decays(weight_decay) else []
    if momentum:
        transforms.append(optax.trace(momentum, nesterov))
    return optax.chain(*transforms) if transforms else optax.identity()


def adam_direction(weight_decay: Decay, mask: Mask = None) -> optax.GradientTransformation:
    """PyTorch's Adam at rate 1, with its numbers: weight decay is added to the gradient, before the moments."""
    decay = [optax.add_decayed_weights(weight_decay, mask)] if _decays(weight_decay) else []
    return optax.chain(*decay, optax.scale_by_adam())


# The others, as optax composes them, with its numbers: weight decay is no part of the gradient, but of the direction.
def adamw_direction(weight_decay: Decay, mask: Mask = None) -> optax.GradientTransformation:
    """PyTorch's AdamW at rate 1, with its numbers."""
    return optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(weight_decay, mask))


def lamb_direction(weight_decay: Decay, mask: Mask = None) -> optax.GradientTransformation:
    """LAMB (You et al.; 2020) at rate 1: each parameter's step is as long as the parameter."""
    decay = optax.add_decayed_weights(weight_decay, mask)
    return optax.chain(optax.scale_by_adam(eps=1e-6), decay, optax.scale_by_trust_ratio())


def lion_direction(weight_decay: Decay, mask: Mask = None) -> optax.GradientTransformation:
    """Lion (Chen et al.; 2023) at rate 1: the sign of the momentum."""
    return optax.chain(optax.scale_by_lion(), optax.add_decayed_weights(weight_decay, mask))


def muon_direction(weight_decay: Decay, mask: Mask = None) -> optax.GradientTransformation:
    """Muon (Jordan; 2024) at rate 1: kernels by their orthogonalised momentum, all else by AdamW, as optax has it.

    A convolution is a matrix from all that it sees to its channels. Steps are as large as AdamW's (Liu et al.; 2025,
    arXiv 2502.16982), so that both go with one rate.
    """

    def matrices(params: Any) -> Any:
        # What is AdamW's has no shape here once it is masked.
        of_muon = {name for name, x in params.items() if not isinstance(x, optax.MaskedNode) and is_kernel(name, x)}
        dims = lambda x: optax.contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1)  # noqa: E731
        return {name: dims(x) if name in of_muon else None for name, x in params.items()}

    muon = optax.contrib.muon(1.0, consistent_rms=0.2, muon_weight_dimension_numbers=matrices)
    return optax.chain(muon, optax.scale(-1.0), optax.add_decayed_weights(weight_decay, mask))


# By name: config, weight decay and mask -> direction.
KINDS: dict[str, Callable[[ConfigDict, Decay, Mask], optax.GradientTransformation]] = {
    "sgd": lambda config, *decay: sgd_direction(config.momentum, config.nesterov, *decay),
    "adam": lambda config, *decay: adam_direction(*decay),
    "adamw": lambda config, *decay: adamw_direction(*decay),
    "lamb": lambda config, *decay: lamb_direction(*decay),
    "lion": lambda config, *decay: lion_direction(*decay),
    "muon": lambda config, *decay: muon_direction(*decay),
}


# Fields with values by architecture, in the order in which `Resolved` has them: what reads one, when it is fine, and
# what is accepted.
BY_ARCHITECTURE: dict[str, tuple[Callable[[str], Any], Callable[[Any], bool], str]] = {
    "lr_multipliers": (float, lambda x: 0 < x < math.inf, "positive number"),
    "optimizers": (str, lambda x: x in KINDS, " or ".join(KINDS)),
    "weight_decays": (float, lambda x: 0 <= x < math.inf, "number from 0 on"),
}


def by_architecture(field: str, text: str, names: Sequence[str]) -> dict[str, Any]:
    """The values of a field that has them by architecture, "name=value,name=value"; empty is none.

    Raises:
        UserError: for an architecture that is not among `names`, or a value out of its range.
    """
    reads, fine, accepted = BY_ARCHITECTURE[field.removeprefix("config.")]
    result = {}
    for item in filter(None, text.split(",")):
        name, _, given = item.partition("=")
        require_choice(field, name.strip(), names)
        try:
            value = reads(given.strip())
        except ValueError:
            value = None
        require(field, repr(item), value is not None and fine(value), f"name={accepted}")
        result[name.strip()] = value
    return result


def optimizer(
    config: ConfigDict,
    kind: str | None = None,
    weight_decay: Decay | None = None,
    layer_rates: Mapping[str, float] | None = None,
    frozen: Collection[str] = (),
) -> optax.GradientTransformation:
    """The direction of an optimizer of a config: of another of `KINDS`, and with another weight decay, if it is given.

    `layer_rates` are factors of the rate by the names of parameters, `frozen` those that stay as they are, whatever
    their gradient and decay. With `accumulate_steps` the direction is 0 but for every so many updates of a member, when
    it is that of their mean gradient: a member that pauses counts none.
    """
    decay = config.weight_decay if weight_decay is None else weight_decay
    mask = kernels if config.weight_decay_on == "kernels" else None
    direction = KINDS[kind or config.optimizer](config, decay, mask)
    if layer_rates:
        slowed = optax.stateless(functools.partial(_scaled, layer_rates))
        direction = optax.chain(direction, slowed)
    if config.accumulate_steps > 1:
        direction = optax.MultiSteps(direction, config.accumulate_steps).gradient_transformation()
    return _of_others(direction, frozen) if frozen else direction


def _scaled(factors: Mapping[str, float], updates: Any, params: Any) -> Any:
    del params
    return {name: x * factors[name] if name in factors else x for name, x in updates.items()}


def _of_others(direction: optax.GradientTransformation, frozen: Collection[str]) -> optax.GradientTransformation:
    """A direction of the parameters that are not `frozen`; of these nothing is kept, and theirs is 0."""

    def others(tree: Any) -> Any:
        return {name: x for name, x in tree.items() if name not in frozen}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        of_others: Any
        of_others, state = direction.update(others(updates), state, others(params))
        return {name: jnp.zeros_like(x) for name, x in updates.items()} | of_others, state

    return optax.GradientTransformation(lambda params: direction.init(others(params)), update)


def layer_rates(layers: Mapping[str, int], decay: float) -> dict[str, float]:
    """Factors of the rate by the names of parameters: 1 in the last of `layers`, `decay` times that in each before."""
    last = max(layers.values())
    return {name: decay ** (last - layer) for name, layer in layers.items()}


def clipped(
    grads: dict[str, Params], norm: float, frozen: Mapping[str, Collection[str]] = MappingProxyType({})
) -> dict[str, Params]:
    """Gradients by stack, each member's, and each head's, scaled down to a global norm of at most `norm`.

    Those of `frozen` parameters, by stack, have no part in it, and stay as they are.
    """
    clip: Any = optax.clip_by_global_norm(norm)
    counted = {name: {p: g for p, g in of.items() if p not in frozen.get(name, ())} for name, of in grads.items()}
    cut = {name: jax.vmap(lambda g: clip.update(g, optax.EmptyState())[0])(of) for name, of in counted.items() if of}
    return {name: of | cut.get(name, {}) for name, of in grads.items()}


CHOICES = {"optimizer": tuple(KINDS), "weight_decay_on": ("all", "kernels")}


def check(config: ConfigDict) -> None:
    """Checks the fields of the optimizer by themselves, but for those of `CHOICES`.

    Raises:
        UserError: naming the first that is wrong, its value and what would be accepted.
    """
    require("config.momentum", config.momentum, 0 <= config.momentum < 1, "in [0, 1)")
    for field in ("weight_decay", "clip_norm"):
        require(f"config.{field}", config[field], config[field] >= 0, "at least 0")
    require("config.accumulate_steps", config.accumulate_steps, config.accumulate_steps >= 1, "at least 1")
    require("config.ema_decay", config.ema_decay, 0 <= config.ema_decay < 1, "in [0, 1)")
    if config.eval_ema and not config.ema_decay:
        raise UserError(
            "config.eval_ema=True: with config.ema_decay=0.0 no averages are kept; accepted is False, or an ema_decay, "
            "such as 0.999"
        )
    require("config.layer_decay", config.layer_decay, 0 < config.layer_decay <= 1, "in (0, 1]")


def check_steps(config: ConfigDict, num_steps: int) -> None:
    """Checks that a member is updated at all in a run of so many steps; raises `UserError`."""
    fits = f"at most the {num_steps} steps of the run, or no member would be updated"
    require("config.accumulate_steps", config.accumulate_steps, config.accumulate_steps <= num_steps, fits)


def described(config: ConfigDict) -> str:
    """The optimizer of a config in words."""
    momentum = f", {'Nesterov ' if config.nesterov else ''}momentum {config.momentum}"
    on = {"all": "all parameters", "kernels": "kernels alone"}[config.weight_decay_on]
    others = [f"{field.replace('_', ' ')} {config[field]}" for field in BY_ARCHITECTURE if config[field]]
    parts = [
        f"{config.optimizer}{momentum if config.optimizer == 'sgd' else ''}",
        f"weight decay {config.weight_decay:g} on {on}",
        *others,
        *([f"gradients of norm {config.clip_norm:g} at most"] if config.clip_norm else []),
        *([f"an update for every {config.accumulate_steps} steps"] if config.accumulate_steps > 1 else []),
        *([f"rates of layers times {config.layer_decay:g} towards the images"] if config.layer_decay < 1 else []),
        *(
            [f"classifiers at {config.classifier_lr_multiplier:g} times the rate"]
            * (config.classifier_lr_multiplier != 1)
        ),
        *([f"frozen {config.frozen}"] if config.frozen else []),
        *([f"averages of decay {config.ema_decay:g}"] if config.ema_decay else []),
        *(["which are evaluated"] if config.eval_ema else []),
    ]
    return ", ".join(parts)


def update(
    optimizer: optax.GradientTransformation, params: Params, opt_state: Any, grads: Params, learning_rate: jax.Array
) -> tuple[Params, Any]:
    """One update of the members of a stack: new (params, opt_state). All leaves are `[members, ...]`."""
    # vmapped, so that a transformation with a norm over parameters would take it member by member
    direction, opt_state = jax.vmap(optimizer.update)(grads, opt_state, params)
    params = jax.tree.map(lambda p, d: p - learning_rate * d, params, direction)
    return params, opt_state
