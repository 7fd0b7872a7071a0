"""Members that start from weights (`config.init`), and parameters that do not learn (`config.frozen`)."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from orc_jax.errors import UserError, require, require_choice
from orc_jax.places import place

ROLES = ("teacher", "assistants", "student")
BACKBONE = "backbone"  # all of a network but its classifier
SHOWN = 8  # parts in an error


class Weights(NamedTuple):
    """Trained weights: of a member of the run, or of the imported weights, in a folder."""

    folder: Path
    member: str = ""  # a number, or a name such as 0_resnet18; "" is the first network of the same architecture


def role(member: int, size: int) -> str:
    """What `config.init` calls a member of a pool of `size`."""
    return "student" if member == size - 1 else "teacher" if member == 0 else "assistants"


def sources(text: str, size: int) -> dict[int, Weights]:
    """Where the members of a pool of `size` start, of those that `text` names: "teacher=FOLDER,student=FOLDER:MEMBER".

    Raises:
        UserError: for what is not of that form, a role that the pool does not have, or one that is named twice.
    """
    roles = [role(member, size) for member in range(size)]
    by_role = {}
    for item in filter(None, text.split(",")):
        name, _, given = (part.strip() for part in item.partition("="))
        fine = name in ROLES and bool(given) and name not in by_role
        require("config.init", repr(item), fine, f"role=folder or role=folder:member, each once, of {', '.join(ROLES)}")
        require("config.init", repr(item), name in roles, f"of a role in this pool: {', '.join(dict.fromkeys(roles))}")
        folder, _, member = given.rpartition(":")
        known = bool(folder) and re.fullmatch(r"\d+(_.*)?", member) is not None
        by_role[name] = Weights(place("config.init", folder if known else given), member if known else "")
    return {member: by_role[name] for member, name in enumerate(roles) if name in by_role}


def of_part(text: str, size: int, members: Sequence[int]) -> str:
    """The same field for a pool of some `members` of one of `size`."""
    found = sources(text, size)
    items = {role(i, len(members)): found[member] for i, member in enumerate(members) if member in found}
    return ",".join(f"{name}={':'.join(filter(None, map(str, one)))}" for name, one in items.items())


def check(config: ConfigDict) -> None:
    """Checks the fields by themselves.

    Raises:
        UserError: naming the first that is wrong, its value and what would be accepted.
    """
    sources(config.init, config.num_networks)
    factor = config.classifier_lr_multiplier
    require("config.classifier_lr_multiplier", factor, factor > 0, "greater than 0")


def check_tied(text: str, starts: Collection[int], size: int) -> None:
    """Checks which members start from weights, where all share layers of the target student; raises `UserError`."""
    fine = not starts or size - 1 in starts
    require("config.init", repr(text), fine, "one that names student: what the peers share is taken from there")


def of_roles(text: str, roles: Collection[str]) -> str:
    """What a value of `config.init` says of some roles."""
    return ",".join(item for item in text.split(",") if item.partition("=")[0].strip() in roles)


def _items(text: str) -> list[tuple[str, str]]:
    """(architecture, part) of each item; no architecture is every one."""
    items = [item.rpartition("=") for item in filter(None, text.split(","))]
    return [(architecture.strip(), part.strip()) for architecture, _, part in items]


def frozen(text: str, architecture: str, parameters: Collection[str], classifier: Collection[str]) -> frozenset[str]:
    """The names of a network's `parameters` that `text`, a value of `config.frozen`, keeps as they are."""

    def named(part: str) -> set[str]:
        if part == BACKBONE:
            return set(parameters) - set(classifier)
        return {name for name in parameters if f"{name}.".startswith(f"{part}.")}

    return frozenset().union(*(named(part) for of, part in _items(text) if of in ("", architecture)))


def check_frozen(
    text: str, parameters: Mapping[str, Collection[str]], frozen: Mapping[str, Collection[str]], known: Collection[str]
) -> None:
    """Checks `config.frozen` for a pool: `parameters`, and those that are `frozen`, by architecture.

    Raises:
        UserError: for an architecture that is not `known`, a part that no network has, or a network without any other.
    """
    for architecture, part in _items(text):
        if architecture:
            require_choice("config.frozen", architecture, known)
        concerned = {name: of for name, of in parameters.items() if architecture in ("", name)}
        if concerned and not any(_has(of, part) for of in concerned.values()):
            shown = list(dict.fromkeys(name.rpartition(".")[0] for of in concerned.values() for name in of))
            more = " ..." if len(shown) > SHOWN else ""
            raise UserError(
                f"config.frozen={text!r}: {' or '.join(concerned)} has no part {part!r}; accepted is {BACKBONE} (all "
                f"but the classifier), and names of parts: {', '.join(shown[:SHOWN])}{more}"
            )
    for name, names in frozen.items():
        if set(names) == set(parameters[name]):
            raise UserError(f"config.frozen={text!r}: nothing is left of {name} that would learn")


def _has(parameters: Collection[str], part: str) -> bool:
    return part == BACKBONE or any(f"{name}.".startswith(f"{part}.") for name in parameters)
