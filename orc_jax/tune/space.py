"""What a search may choose: ranges and choices of fields, as a person writes them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from orc_jax.compare.variants import field_and_values, split, value_of
from orc_jax.config import flat
from orc_jax.errors import UserError

# What the papers leave open, by method: what is searched unless a person says what.
OPEN = {
    "orc": (
        "orc.beta=0.1:0.9",
        "orc.temperature=1:10:log",
        "orc.mixup_alpha=0.2:2:log",
        "orc.feedback_fraction=0.25:1",
        "orc.pivot_lr_multiplier=0.01:1:log",
    ),
    "dgkd": ("dgkd.temperature=1:10:log", "dgkd.lam=0.1:0.9"),
    "takd": ("takd.temperature=1:10:log", "takd.lam=0.1:0.9"),
    "kd": ("kd.temperature=1:10:log", "kd.alpha=0.1:0.9"),
}
FLAG = "--search"
FORMS = "field=low:high, field=low:high:log or field=value,value"


class Space(NamedTuple):
    """The fields of a search, by their dotted names, and the text that each was written as."""

    distributions: Mapping[str, CategoricalDistribution | FloatDistribution | IntDistribution]
    texts: tuple[str, ...]

    def extremes(self) -> list[tuple[str, Any]]:
        """The ends of the ranges, and all choices, with their fields."""
        return [
            (name, value)
            for name, found in self.distributions.items()
            for value in (found.choices if isinstance(found, CategoricalDistribution) else (found.low, found.high))
        ]


def of_method(method: str) -> tuple[str, ...]:
    """What is searched of a method if nothing else is said.

    Raises:
        UserError: if its paper leaves open nothing that is listed here.
    """
    if method not in OPEN:
        raise UserError(
            f"--search: nothing is chosen for config.method={method!r}; accepted is {FORMS}, once for each field"
        )
    return OPEN[method]


def parse(config: ConfigDict, searches: Sequence[str]) -> Space:
    """The space of ranges (`orc.beta=0.1:0.9`, `learning_rate=0.01:0.3:log`) and choices (`optimizer=sgd,adamw`).

    Raises:
        UserError: for a field that there is not, or values that do not fit it.
    """
    fields, found = flat(config.to_dict()), {}
    for text in searches:
        name, values = field_and_values(FLAG, text, fields, FORMS, found)
        now = fields[name]
        is_range = ":" in values and isinstance(now, int | float) and not isinstance(now, bool)
        found[name] = _range(text, name, values, now) if is_range else _choices(text, name, values, now)
    return Space(found, tuple(searches))


def values_in(config: ConfigDict, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What was chosen as values of the fields of a config."""
    fields = flat(config.to_dict())
    return {
        name: value_of(FLAG, name, value, fields[name]) if isinstance(value, str) else value
        for name, value in chosen.items()
    }


def _choices(text: str, name: str, values: str, now: object) -> CategoricalDistribution:
    read = {text: value_of(FLAG, name, text, now) for text in split(values)}
    # Optuna keeps numbers and texts: what is neither is kept as it was written.
    chosen = tuple(read if isinstance(now, tuple) else dict.fromkeys(read.values()))
    if len(chosen) < 2:
        raise UserError(f"--search={text}: there is nothing to choose from; accepted is {FORMS}")
    return CategoricalDistribution(chosen)


def _range(text: str, name: str, values: str, now: int | float) -> FloatDistribution | IntDistribution:
    low, high, *scale = values.split(":")
    ends = [value_of(FLAG, name, end.strip(), now) for end in (low, high)]
    log = [one.strip() for one in scale] == ["log"]
    if (scale and not log) or not ends[0] < ends[1] or (log and ends[0] <= 0):
        raise UserError(f"--search={text}: accepted is {FORMS}, low below high, and with log above 0")
    return (IntDistribution if isinstance(now, int) else FloatDistribution)(*ends, log=log)
