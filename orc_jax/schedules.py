"""The learning rate as a function of the global step."""

from collections.abc import Callable, Sequence

import optax
from ml_collections import ConfigDict

from orc_jax.errors import UserError, require


def _restarted(config: ConfigDict, num_steps: int, warmup: int) -> optax.Schedule:
    starts = [warmup, *(round(fraction * num_steps) for fraction in config.lr_restarts)]
    lengths = [max(end - start, 1) for start, end in zip(starts, [*starts[1:], num_steps], strict=True)]
    cycles = [optax.cosine_decay_schedule(config.learning_rate, length, config.lr_floor) for length in lengths]
    return optax.join_schedules(cycles, [start - warmup for start in starts[1:]])


def _one_cycle(config: ConfigDict, num_steps: int, warmup: int) -> optax.Schedule:
    """With PyTorch's numbers: from a 25th up for 30 % of the run, then down to a 10,000th of where it began."""
    del warmup  # it has one of its own
    peak, rise = config.learning_rate, max(round(0.3 * num_steps), 1)
    up = optax.piecewise_interpolate_schedule("cosine", peak / 25, {rise: 25.0})
    return optax.join_schedules([up, optax.cosine_decay_schedule(peak, max(num_steps - rise, 1), 1 / 25e4)], [rise])


def _stepped(config: ConfigDict, num_steps: int, warmup: int) -> optax.Schedule:
    drops = {round(fraction * num_steps) - warmup: config.lr_decay for fraction in config.lr_boundaries}
    return optax.piecewise_constant_schedule(config.learning_rate, drops)


# By name: config, steps of the run and of its warm-up -> the learning rate as a function of the step after the warm-up.
SCHEDULES: dict[str, Callable[[ConfigDict, int, int], optax.Schedule]] = {
    "step": _stepped,
    "cosine": lambda config, num_steps, warmup: optax.cosine_decay_schedule(
        config.learning_rate, num_steps - warmup, config.lr_floor
    ),
    "constant": lambda config, num_steps, warmup: optax.constant_schedule(config.learning_rate),
    "linear": lambda config, num_steps, warmup: optax.linear_schedule(
        config.learning_rate, config.lr_floor * config.learning_rate, num_steps - warmup
    ),
    "one_cycle": _one_cycle,
    "restarts": _restarted,
}
WITH_FLOOR = ("cosine", "linear", "restarts")


def learning_rate_schedule(config: ConfigDict, steps_per_epoch: float, num_steps: int) -> optax.Schedule:
    """The learning rate as a function of the global step.

    A linear warm-up from 0 over `warmup_epochs`, then `lr_schedule`: constant; "step", multiplied by `lr_decay` at each
    of `lr_boundaries` (fractions of the whole run); "cosine" or "linear", to `lr_floor` of the rate at the end;
    "restarts", a cosine to there that begins anew at each of `lr_restarts`; or "one_cycle".
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    main = SCHEDULES[config.lr_schedule](config, num_steps, warmup)
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, config.learning_rate, warmup), main], [warmup])


CHOICES = {"lr_schedule": tuple(SCHEDULES)}


def check(config: ConfigDict) -> None:
    """Checks the fields of the schedule by themselves, but for those of `CHOICES`.

    Raises:
        UserError: naming the first that is wrong, its value and what would be accepted.
    """
    require("config.learning_rate", config.learning_rate, config.learning_rate > 0, "greater than 0")
    for field in ("warmup_epochs", "lr_decay"):
        require(f"config.{field}", config[field], config[field] >= 0, "at least 0")
    for field in ("lr_boundaries", "lr_restarts"):
        fractions = tuple(config[field])
        fine = all(0 < x < 1 for x in fractions) and list(fractions) == sorted(set(fractions))
        require(f"config.{field}", fractions, fine, "increasing fractions between 0 and 1")
    require("config.lr_floor", config.lr_floor, 0 <= config.lr_floor < 1, "a share of the learning rate, in [0, 1)")
    if config.lr_floor and config.lr_schedule not in WITH_FLOOR:
        raise UserError(
            f"config.lr_floor={config.lr_floor}: config.lr_schedule={config.lr_schedule!r} has none; accepted is 0, or "
            f"the schedules {', '.join(WITH_FLOOR)}"
        )
    if config.warmup_epochs and config.lr_schedule == "one_cycle":
        raise UserError(
            f"config.warmup_epochs={config.warmup_epochs}: config.lr_schedule='one_cycle' has a warm-up of its own, "
            "30 % of the run; accepted is 0"
        )


def until_first_drop(config: ConfigDict) -> float:
    """The share of the run that a warm-up has to end in: before the rate first drops or begins anew."""
    fields = {"step": "lr_boundaries", "restarts": "lr_restarts"}
    return min(config[fields[config.lr_schedule]], default=1.0) if config.lr_schedule in fields else 1.0


def check_warmup(config: ConfigDict, fields: Sequence[str]) -> None:
    """Checks that the warm-up fits the runs that last as many epochs as `fields` say.

    Raises:
        UserError: for the first that it does not fit.
    """
    for field in fields:
        limit = config[field] * until_first_drop(config)
        accepted = f"less than {limit:g}, where the learning rate of config.{field}={config[field]} first drops or ends"
        require("config.warmup_epochs", config.warmup_epochs, config.warmup_epochs < limit, accepted)


def described(config: ConfigDict, num_steps: int) -> str:
    """The schedule of a config in words."""
    at = lambda fractions: ", ".join(f"{round(fraction * num_steps):,}" for fraction in fractions)  # noqa: E731
    floor = f"{config.lr_floor:g} of it" if config.lr_floor else "0"
    words = {
        "step": f"times {config.lr_decay} at steps {at(config.lr_boundaries)}",
        "restarts": f"cosine to {floor}, anew at steps {at(config.lr_restarts)}",
        "one_cycle": f"at most, one cycle with its peak at step {round(0.3 * num_steps):,}",
    }
    warmup = f"warm-up over {config.warmup_epochs} epochs, then " if config.warmup_epochs else ""
    kind = config.lr_schedule
    return warmup + words.get(kind, "constant" if kind == "constant" else f"{kind} to {floor}")
