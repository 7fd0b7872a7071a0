"""Optimisation: a direction by optax, of unit rate, and a learning rate that follows the global step.

Rate and direction are kept apart so that a member which pauses keeps its place in the schedule, and so that members
can have different rates.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from orc_jax.errors import require, require_choice
from orc_jax.models.network import Params


def sgd_direction(momentum: float, nesterov: bool, weight_decay: float) -> optax.GradientTransformation:
    """PyTorch's SGD at rate 1: weight decay on every parameter is added to the gradient, before the momentum."""
    transforms = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    if momentum:
        transforms.append(optax.trace(momentum, nesterov))
    return optax.chain(*transforms) if transforms else optax.identity()


def adam_direction(weight_decay: float) -> optax.GradientTransformation:
    """PyTorch's Adam at rate 1, with its numbers: weight decay is added to the gradient, before the moments."""
    decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    return optax.chain(*decay, optax.scale_by_adam())


KINDS = ("sgd", "adam")


# Fields with values by architecture: what reads one, when it is fine, and what is accepted.
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


def optimizer(config: ConfigDict, kind: str = "sgd", weight_decay: float | None = None) -> optax.GradientTransformation:
    """The direction of an optimizer of a config: of one of `KINDS`, and with another weight decay if it is given."""
    decay = config.weight_decay if weight_decay is None else weight_decay
    return adam_direction(decay) if kind == "adam" else sgd_direction(config.momentum, config.nesterov, decay)


def learning_rate_schedule(config: ConfigDict, steps_per_epoch: float, num_steps: int) -> optax.Schedule:
    """The learning rate as a function of the global step.

    A linear warm-up from 0 over `warmup_epochs`, then `lr_schedule`: constant; "step", multiplied by `lr_decay` at each
    of `lr_boundaries` (fractions of the whole run); or "cosine", to 0 at the end.
    """
    peak = config.learning_rate
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if config.lr_schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, num_steps - warmup)
    elif config.lr_schedule == "step":
        drops = {round(fraction * num_steps) - warmup: config.lr_decay for fraction in config.lr_boundaries}
        main = optax.piecewise_constant_schedule(peak, drops)
    else:
        main = optax.constant_schedule(peak)
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), main], [warmup])


def update(
    optimizer: optax.GradientTransformation, params: Params, opt_state: Any, grads: Params, learning_rate: jax.Array
) -> tuple[Params, Any]:
    """One update of the members of a stack: new (params, opt_state). All leaves are `[members, ...]`."""
    # vmapped, so that a transformation with a norm over parameters would take it member by member
    direction, opt_state = jax.vmap(optimizer.update)(grads, opt_state, params)
    params = jax.tree.map(lambda p, d: p - learning_rate * d, params, direction)
    return params, opt_state
