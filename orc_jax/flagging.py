"""The flags of the commands that take a config: `--config=FILE`, `--config.field=value`, and flags of their own."""

import difflib
import re
import textwrap
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

import orc_jax
from orc_jax import cache, config_files
from orc_jax.data.fields import check_numbers
from orc_jax.errors import UserError, unknown
from orc_jax.places import place

# What others call a flag or a field, by its name here.
SYNONYMS = {
    "lr": "config.learning_rate",
    "epochs": "config.num_epochs",
    "arch": "config.student",
    "model": "config.student",
    "network": "config.student",
    "data": "config.data_dir",
    "data_path": "config.data_dir",
    "workers": "config.stream.num_workers",
    "precision": "config.dtype",
    "amp": "config.dtype",
    "wd": "config.weight_decay",
    "bs": "config.batch_size",
    "ckpt": "checkpoint",
    "out": "workdir",
    "output": "workdir",
    "output_dir": "workdir",
    "save_dir": "workdir",
    "logdir": "workdir",
    "eval": "mode=evaluate",
    "evaluate": "mode=evaluate",
    "test": "mode=evaluate",
    "describe": "mode=describe",
    "preview": "mode=preview",
    "train": "mode=train",
}


class Given(NamedTuple):
    """What a command was given."""

    config: ConfigDict
    base: str  # what the config was before the overrides
    trusted: Collection[str] | None  # what of a person's own it may import; None is all that it names
    adapted: list[str]  # what was changed of it so that it fits the overrides
    overrides: dict[str, Any]  # fields by their dotted names
    lists: dict[str, str]  # numbers of which several values are given, separated by commas


def define_cache(own: flags.FlagValues) -> flags.FlagHolder[str]:
    """The flag that says where compiled programs are kept; see `commands.keep_programs`."""
    help = "Folder where compiled programs are kept from run to run; empty: they are not."
    return flags.DEFINE_string("compilation_cache", str(cache.folder()), help, flag_values=own)


def refuse(argv: list[str], names: Iterable[str], why: str) -> None:
    """Raises `UserError` if one of the flags `names` is given, which other commands have."""
    for name in names:
        if any(argument.lstrip("-").partition("=")[0] == name for argument in argv[1:]):
            raise UserError(f"--{name} {why}")


def parse(argv: list[str], own: flags.FlagValues, description: str | None, *, lists: bool = False) -> Given:
    """Parses a command line: `own` flags into themselves, and the config with its overrides.

    With `lists`, numbers may be given several values; the config has the first. Ends the program for `--help` and
    `--version`.

    Raises:
        UserError: for what is not understood.
    """
    if any(re.fullmatch("--?(help|helpfull|helpshort|h)", argument) for argument in argv[1:]):
        _help(own, description)
    if {"--version", "-version"} & set(argv[1:]):
        print(f"orc_jax {orc_jax.__version__}")
        raise SystemExit(0)
    given, rest = _without_config(argv)
    try:
        rest = own(rest, known_only=True)
    except flags.Error as error:
        raise UserError(_told(str(error))) from error
    for argument in rest[1:]:
        if argument.startswith("-") and not re.match(r"--?(no)?config\.", argument):
            raise UserError(_unknown_flag(argument, own))
    workdir = own["workdir"].value if "workdir" in own else None
    dataset = re.findall(r"(?m)^--?config\.dataset(?:=|\n)(.*)", "\n".join(rest))
    config, base, of_run = config_files.base(
        given, place("--workdir", workdir) if workdir else None, dataset[-1] if dataset else None
    )
    several, rest = _lists(config, rest) if lists else ({}, rest)
    overrides = override(config, rest)
    check_numbers(config)
    if "eval_split" in overrides and "eval_splits" not in overrides:
        config.eval_splits = ""  # a person who names one split means that alone
    trusted, adapted = None, []
    if not of_run:
        adapted = config_files.adapted(config, overrides)
    else:
        named = [value for value in overrides.values() if isinstance(value, str)]
        trusted = {*_trusted(own), *(item for value in named for item in re.split("[,=]", value))}
    return Given(config, base, trusted, adapted, overrides, several)


def _lists(config: ConfigDict, argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """Fields of numbers that are given several values, and the arguments with the first of them instead."""
    from orc_jax.config import flat

    fields, several, rest = flat(config.to_dict()), {}, []
    for argument in argv:
        found = re.fullmatch(r"--?config\.([\w.]+)=([^,()\[\]]+),(.+)", argument)
        if found and type(fields.get(found[1])) in (int, float):
            several[found[1]] = f"{found[2]},{found[3]}"
            argument = f"--config.{found[1]}={found[2]}"
        rest.append(argument)
    return several, rest


def _trusted(own: flags.FlagValues) -> list[str]:
    return own["own"].value or [] if "own" in own else []


def _without_config(argv: list[str]) -> tuple[str | None, list[str]]:
    """The value of the last `--config`, written with or without "=", and all other arguments."""
    given, rest, i = None, [], 0
    while i < len(argv):
        name, equals, value = argv[i].partition("=")
        if name in ("--config", "-config"):
            if not equals:
                i += 1
                if i == len(argv):
                    raise UserError("--config: needs a file; those that come along: " + config_files.listed())
                value = argv[i]
            given = value
        else:
            rest.append(argv[i])
        i += 1
    return given, rest


def override(config: ConfigDict, argv: list[str]) -> dict[str, Any]:
    """Changes the fields of `config` that arguments name; returns their values by their dotted names.

    Args:
        config: is changed.
        argv: the name of the program, which does not count, and `--config.field=value` for each.

    Raises:
        UserError: for a field that there is not, a value that is not of its type, and all other arguments.
    """
    from orc_jax.config import flat

    fields = flat(config.to_dict())
    for name in re.findall(r"(?m)^--?(?:no)?config\.([\w.]+)", "\n".join(argv)):
        if name not in fields:
            raise unknown("--config: field", name, fields)
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        left = values(argv)
    except (flags.Error, TypeError, ValueError, AttributeError) as error:
        raise UserError(_told(str(error), fields)) from error
    if len(left) > 1:
        raise UserError(f"not understood: {' '.join(left[1:])}. Overrides are written --config.field=value")
    overrides: dict[str, Any] = config_flags.get_override_values(values["config"])
    return overrides


def _told(text: str, fields: dict[str, Any] | None = None) -> str:
    """The message of a flag with a wrong value."""
    found = re.search(r"flag --([\w.]+)=(.*?): (.*)", text, re.DOTALL)
    if not found:
        return " ".join(text.split())
    name, value, reason = found.groups()
    now = (fields or {}).get(name.removeprefix("config."))
    wanted = (
        f"must be {config_files.KINDS[type(now)]}, such as {now}"
        if type(now) in config_files.KINDS
        else " ".join(reason.split())
    )
    return f"--{name}={value}: {wanted}"


def _unknown_flag(argument: str, own: Iterable[str]) -> str:
    from orc_jax.config import default, flat

    name = argument.lstrip("-").partition("=")[0]
    words = set(re.split(r"[_\-.]", name.lower()))
    names = [*own, *(f"config.{field}" for field in flat(default().to_dict()))]
    likely = [other for other in names if words <= set(re.split(r"[_.]", other))]
    key = name.lower().replace("-", "_")
    near = [SYNONYMS[key]] if key in SYNONYMS else sorted(likely, key=len)[:1]
    near = near or difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f" Did you mean --{near[0]}?" if near else ""
    listed = ", ".join(f"--{flag}" for flag in ("config", "config.<field>", *own))
    return f"--{name} is not known.{hint} Accepted: {listed}."


def _help(own: flags.FlagValues, description: str | None) -> NoReturn:
    told = {
        "config=FILE": f"The config. Those that come along: {config_files.listed()}. Without it: that of the run in "
        "the workdir, or the one that comes along for config.dataset, or configs/digits.py.",
        "config.FIELD=VALUE": "Any field of it; docs/config.md lists them, and --mode=describe what comes of them.",
    }
    told |= {name: f"{own[name].help} (default: {own[name].default!r})" for name in own}
    told["version"] = "Print it."
    print(f"{(description or '').strip()}\n\nflags:")
    for name, text in told.items():
        print(textwrap.fill(f"--{name}: {text}", 100, initial_indent="  ", subsequent_indent="      "))
    raise SystemExit(0)
