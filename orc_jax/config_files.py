"""Where the config of a command comes from: a file, one that comes along, or the run in a workdir."""

import importlib.util
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from orc_jax.errors import UserError, unknown
from orc_jax.places import place

# The configs that come along lie beside the package in the repository, and inside it once it is installed.
SHIPPED = next(path for path in (Path(__file__).parents[i] / "configs" for i in (1, 0)) if path.is_dir())
# What a network for this many classes was most likely trained on.
USUAL_SETS = {10: "cifar10", 100: "cifar100", 1000: "imagenet2012"}
# What a field may be, by the type of its default; a list will do for a tuple, a whole number for any.
KINDS = {int: "a whole number", float: "a number", bool: "True or False", tuple: "a tuple", str: "text"}
ALSO = {float: (int, float), tuple: (tuple, list)}
EVAL_SPLITS = ("val", "validation", "valid", "test", "eval")  # what folders of images call it


def shipped() -> list[str]:
    """The names of the configs that come along."""
    return sorted(path.stem for path in SHIPPED.glob("*.py"))


def listed() -> str:
    """The same as a person gives them."""
    return ", ".join(f"configs/{name}.py" for name in shipped())


def find(given: str) -> Path:
    """The file that `--config=given` means: of this path, or one that comes along, as `configs/<name>.py` or its name.

    Raises:
        UserError: if there is none.
    """
    path = place("--config", given)
    comes_along = SHIPPED / f"{path.stem}.py"
    if path.is_file():
        return path
    if str(path.parent) in (".", "configs") and path.suffix in ("", ".py") and comes_along.is_file():
        return comes_along
    if path.exists():
        raise UserError(f"--config={given}: is not a file; accepted is a Python file with get_config()")
    raise UserError(f"--config={given}: there is no such file. Those that come along: {listed()}")


def _parts(given: str) -> tuple[str, str, str]:
    """A path, a colon, and what follows it, both empty if nothing does. A path that is there may have colons itself."""
    ends = [i for i, letter in enumerate(given) if letter == ":"]
    for end in [len(given), *reversed(ends)]:
        if os.path.isfile(os.path.expanduser(given[:end])):  # which takes anything for a path
            return given[:end], given[end : end + 1], given[end + 1 :]
    return given.partition(":")


def load(given: str) -> ConfigDict:
    """The config of a file, given as `path` or `path:argument of its get_config`.

    The file may import modules that lie beside it.

    Raises:
        UserError: if there is no such file, it is no config, or it has fields that there are not.
    """
    name, colon, argument = _parts(given)
    path = find(name)
    if path.suffix != ".py":
        of_a_run = f"; to take that of a run: --workdir={path.parent}" if path.name == "config.json" else ""
        raise UserError(f"--config={given}: accepted is a Python file with get_config(){of_a_run}")
    where = f"--config={given}"
    module = _executed(path, where)
    make = getattr(module, "get_config", None)
    if not callable(make):
        raise UserError(f"{where}: has no function get_config(); configs/cifar100.py is an example")
    try:
        config = make(*([argument] if colon else []))
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever a person's file does
        raise UserError(f"{where}: get_config has failed: {type(error).__name__}: {error}") from error
    if isinstance(config, FrozenConfigDict):
        config = ConfigDict(config)
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{where}: get_config() returns a {type(config).__name__}; needed is a config made by "
            "orc_jax.config.default()"
        )
    check_fields(config, where)
    return config


def _executed(path: Path, where: str):
    folder, before = str(path.parent.absolute()), list(sys.path)
    sys.path.append(folder)
    try:
        spec = importlib.util.spec_from_file_location("orc_jax_config_file", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{where}: line {error.lineno or 1} is not Python: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{where}: cannot be executed: {type(error).__name__}: {error}") from error
    finally:
        sys.path[:] = before


def check_fields(config: ConfigDict, where: str) -> None:
    """Checks that a config has the fields that there are, no fewer, and no more but for options of an own method.

    And that their values are of their kinds: a config holds to these itself, but not for None, nor if told otherwise.

    Raises:
        UserError: naming the first field that is wrong.
    """
    from orc_jax.config import default, flat, own_section

    fields, known = flat(config.to_dict()), flat(default().to_dict())
    own = own_section(config) if "method" in fields else None  # of a method of their own
    for field in fields:
        if field not in known and field.partition(".")[0] != own:
            raise unknown(f"{where}: config field", field, known)
    for field in known:
        if field not in fields:
            raise UserError(f"{where}: lacks config.{field}; configs start from orc_jax.config.default()")
        kind, value = type(known[field]), fields[field]
        accepted = ALSO.get(kind, kind)
        if kind in KINDS and (not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool)):
            raise UserError(f"{where}: config.{field}={value!r}: must be {KINDS[kind]}, such as {known[field]!r}")


def of_run(workdir: Path) -> ConfigDict:
    """The config of the run in `workdir`; of imported weights one with which they can be evaluated.

    Raises:
        UserError: if there is no run, or it cannot be read.
    """
    from orc_jax.workdir import record

    there = record.require(workdir)
    config = there.fields
    check_fields(config, str(workdir / record.FILE))
    if there.imported is not None:
        config.method, config.num_networks, config.student = "independent", 1, there.architectures[-1]
        config.dataset = USUAL_SETS.get(there.num_classes, config.dataset)
        config.stream.image_size = there.image_shape[0]
    return config


def base(given: str | None, workdir: Path | None, dataset: str | None) -> tuple[ConfigDict, str, bool]:
    """The config that the overrides of a command change, what it is called, and whether it is that of a run.

    That of the file that was given; else of the run in the workdir that was given; else the one that comes along for
    the data set that was given; else that for the embedded digits.

    Raises:
        UserError: if it cannot be had.
    """
    if given is not None:
        return load(given), find(_parts(given)[0]).as_posix(), False
    if workdir is not None and (workdir / "config.json").is_file():
        return of_run(workdir), f"that of the run in {workdir}", True
    name = (dataset or "").partition(":")[0]  # cifar100:3.0.2 is a version of the set
    name = name if name in shipped() else "digits"
    return load(f"configs/{name}.py"), f"configs/{name}.py, as no --config was given", False


def adapted(config: ConfigDict, given: Collection[str]) -> list[str]:
    """Changes defaults of `config` that do not fit what a person has given, fields by name; returns a line for each."""
    from orc_jax import schedules
    from orc_jax.methods import BRANCHED

    new: dict[str, Any] = {}
    if config.method in BRANCHED:
        new |= {"teacher": config.student, "assistants": "copies"}
    if config.method == "switokd":
        new["num_networks"] = config.switokd.num_teachers + 1
    epochs = min(config.num_epochs, config.pretrain_epochs or config.num_epochs)
    first_drop = schedules.until_first_drop(config)
    if config.warmup_epochs >= epochs * first_drop:
        new["warmup_epochs"] = epochs * min(0.1, first_drop / 2)
    if config.lr_schedule == "one_cycle":
        new["warmup_epochs"] = 0.0
    if config.dataset == "folder":
        root = place("config.data_dir", config.data_dir)
        if not (root / config.eval_split).is_dir():
            there = (split for split in EVAL_SPLITS if (root / split).is_dir())
            new["eval_split"] = next(there, config.eval_split)
    lines = []
    for field, value in new.items():
        if field not in given and config[field] != value:
            lines.append(f"config.{field}={value!r}, as {config[field]!r} does not fit")
            config[field] = value
    return lines
