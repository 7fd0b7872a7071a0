"""What a comparison compares: methods, values of fields, or published rows. Each is a variant, with a config."""

import ast
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from orc_jax import plugins, published, transfer
from orc_jax.compare.runs import Variant
from orc_jax.config import flat
from orc_jax.errors import UserError, require_choice, unknown
from orc_jax.methods import BRANCHED, METHODS, OFFLINE, ONLINE

# Words that stand for several methods; without any, those of the pool and plain distillation are compared.
FAMILIES: dict[str, Sequence[str]] = {"online": tuple(ONLINE), "offline": tuple(OFFLINE), "all": tuple(METHODS)}
BY_DEFAULT = ("online", "kd")

PAIR = {"num_networks": 2, "assistants": "ladder"}
# What differs from the config's pool, by method.
POOLS = {
    "independent": {"num_networks": 1},
    "switokd": PAIR,
    **{method: PAIR for method in OFFLINE},
    **{method: {"assistants": "copies"} for method in BRANCHED},  # and the student in place of the teacher
}

# Fields, beside those of `stream`, that make other training images, or other labels of them.
OF_THE_IMAGES = (
    "dataset",
    "data_dir",
    "train_split",
    "validation_share",
    "examples_per_class",
    "image_key",
    "label_key",
    "label_file",
    "mean",
    "std",
)
# Fields that make another teacher; runs that differ in one train theirs themselves.
OF_THE_TEACHER = ("teacher", "init", "pretrain_epochs", *OF_THE_IMAGES)
NOT_SWEPT = ("seed", "pivot_checkpoint", "method_options")


def of_methods(config: ConfigDict, names: Sequence[str]) -> list[Variant]:
    """Every method with the pool of the config, or the one that it can train; by its name, or a word of `FAMILIES`.

    Raises:
        UserError: for an unknown method.
    """
    methods: list[str] = []
    for name in names:
        if not plugins.is_own(name):
            require_choice("--methods", name, [*METHODS, *FAMILIES])
        methods += FAMILIES.get(name, [name])
    return [Variant(method, of_method(config, method)) for method in dict.fromkeys(methods)]


def of_method(config: ConfigDict, method: str) -> ConfigDict:
    """The config of a method: its pool is another where it has to be."""
    config = config.copy_and_resolve_references()
    config.method = method
    config.update(POOLS.get(method, {}))
    if method in BRANCHED:
        config.teacher = config.student
    size = config.num_networks
    roles = ["student"] if method in BRANCHED else [transfer.role(member, size) for member in range(size)]
    config.init = transfer.of_roles(config.init, roles)  # of those that there are, and are of the same architecture
    if not plugins.is_own(method):
        config.method_options = ""
    return config


def of_sweep(config: ConfigDict, sweeps: Sequence[str]) -> list[Variant]:
    """Every combination of the values of some fields, each given as `field=value,value`; the first is the baseline.

    Values with commas of their own stand in brackets: `lr_boundaries=(0.5,0.75),(0.3,0.6,0.9)`.

    Raises:
        UserError: for a field that there is not, or a value that does not fit it.
    """
    choices, variants = _choices("--sweep", config, sweeps, "field=value,value"), []
    for chosen in itertools.product(*(values for _, values in choices)):
        names = [name for name, _ in choices]
        changed = with_values(config, {name: value for name, (_, value) in zip(names, chosen, strict=True)})
        label = ", ".join(f"{name}={text}" for name, (text, _) in zip(names, chosen, strict=True))
        variants.append(Variant(label, changed, shares_teacher(names), tuple(names)))
    return list({variant.name: variant for variant in variants}.values())


def of_ablation(config: ConfigDict, changes: Sequence[str]) -> list[Variant]:
    """The config by the name of its method, and with each value of some fields, `field=value,value`, by itself.

    Raises:
        UserError: as `of_sweep`.
    """
    choices = _choices("--ablate", config, changes, "field=value")
    names = tuple(name for name, _ in choices)
    variants = [Variant(config.method, config, swept=names)]
    for name, values in choices:
        for text, value in values:
            changed = with_values(config, {name: value})
            variants.append(Variant(f"{name}={text}", changed, shares_teacher([name]), names))
    return list({variant.name: variant for variant in variants}.values())


def _choices(
    flag: str, config: ConfigDict, texts: Sequence[str], accepted: str
) -> list[tuple[str, list[tuple[str, Any]]]]:
    """Fields, each with its values as they are written and as they are."""
    fields, choices = flat(config.to_dict()), []
    for text in texts:
        name, values = field_and_values(flag, text, fields, accepted, [other for other, _ in choices])
        choices.append((name, [(value, value_of(flag, name, value, fields[name])) for value in split(values)]))
    return choices


def field_and_values(
    flag: str, text: str, fields: Mapping[str, Any], accepted: str, before: Collection[str]
) -> tuple[str, str]:
    """A field and its values, as `text` has them.

    Raises:
        UserError: for a field that there is not, cannot be chosen, or is among those `before`, or without values.
    """
    name, _, values = text.partition("=")
    name = name.strip().removeprefix("config.")
    if name not in fields:
        raise unknown(f"{flag}: field", name, fields)
    if not values.strip() or name in NOT_SWEPT:
        raise UserError(f"{flag}={text}: accepted is {accepted} of any field but {', '.join(NOT_SWEPT)}")
    if name in before:
        raise UserError(f"{flag}={text}: config.{name} is given twice; give all its values at once")
    return name, values


def shares_teacher(names: Iterable[str]) -> bool:
    """Whether runs that differ in these fields, by their dotted names, can have one pre-trained teacher."""
    return not any(name in OF_THE_TEACHER or name.startswith("stream.") for name in names)


def split(text: str) -> list[str]:
    """Values between commas that stand in no brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def value_of(flag: str, field: str, text: str, now: Any) -> Any:
    """A value of the type that the field has."""
    if isinstance(now, str):
        return text
    try:
        value = ast.literal_eval(text.capitalize() if isinstance(now, bool) else text)
    except (ValueError, SyntaxError):
        value = None
    if isinstance(now, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(now):
        raise UserError(f"{flag}: config.{field}={text}: must be like {now!r}")
    return value


def with_values(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """A config with other values of some fields, by their dotted names."""
    config = config.copy_and_resolve_references()
    for name, value in values.items():
        group, _, option = name.rpartition(".")
        (config[group] if group else config)[option] = value
        if option == "num_temporary_teachers":  # one field by two names
            config.num_temporary_teachers = config.orc.num_temporary_teachers = value
    return config


def of_rows(names: Sequence[str], overrides: Mapping[str, Any]) -> list[Variant]:
    """Published rows, by their names, or all that start so: `kd/`. Each has the teacher of its own recipe.

    Raises:
        UserError: if there is no such row.
    """
    found: list[str] = []
    for name in names:
        several = [row for row in published.ROWS if name.endswith("/") and row.startswith(name)]
        if not several:
            require_choice("--rows", name, published.ROWS)
        found += several or [name]
    configs = {name: with_values(published.config_of(name), overrides) for name in dict.fromkeys(found)}
    return [Variant(name, config, shares_teacher=False) for name, config in configs.items()]
