"""Which arrays of a file are a network: those that have its names, whatever stands before all of them.

A file may hold several networks (teacher and student, net1 and net2, weights and their moving average), in dicts of
their own or in one, and each may have been wrapped: `module.`, `model.`, `_orig_mod.`, `module.student.`. No list of
such words is kept: what stands before the names of a network is its prefix.
"""

import difflib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np

from orc_jax.deploy.torch_layout import COUNTERS
from orc_jax.errors import UserError

Arrays = dict[str, np.ndarray]
ROOT = "."  # the label of a network whose names begin at the top of a file
LEAST = 0.25  # share of a network's names that must be there for a prefix to be one
SHOWN = 5  # names of each kind in an error


def candidates(
    found: Mapping[str, Arrays], wanted: Collection[str], known_as: Callable[[str], str] = lambda name: name
) -> dict[str, Arrays]:
    """The arrays in a file that may be a network with the names `wanted`, without their prefixes, by label.

    `found` has the arrays of a file by the place of their dict; `known_as` says what its names are here (see
    `orc_jax.deploy.other_names`). The label is place and prefix. Those that share most
    names with the network come first; where hardly any are shared, the one candidate is the largest of the dicts.
    """
    wanted, shared = frozenset(wanted), Counter()
    for place, arrays in found.items():
        for name in arrays:
            shared.update((place, prefix) for prefix, rest in _split(name) if known_as(rest) in wanted)
    most = max(shared.values(), default=0)
    if not shared or most < LEAST * len(wanted):
        place = max(found, key=lambda place: len(found[place]))
        names = [name for name in found[place] if not counts(name)]
        keys = [(place, _common(names))]
    else:
        keys = [key for key, count in shared.items() if count > most / 2]
        keys.sort(key=lambda key: (-shared[key], len(found[key[0]])))
    result = {}
    for place, prefix in keys:
        below = _below(found[place], prefix, [p for q, p in keys if q == place])
        beside = {name: x for name, x in found[place].items() if not (name.startswith(prefix) or counts(name))}
        result[_label(place, prefix)] = _completed(_renamed(below, known_as), beside, wanted, known_as)
    return result


def counts(name: str) -> bool:
    """Whether an array only counts something, so that no network needs it."""
    return name.rpartition(".")[2] in COUNTERS


def _split(name: str) -> Iterator[tuple[str, str]]:
    """Every way to see a name as prefix and rest."""
    parts = name.split(".")
    for i in range(len(parts)):
        yield "".join(f"{part}." for part in parts[:i]), ".".join(parts[i:])


def _common(names: list[str]) -> str:
    """What stands before all of `names`, without their last two parts: a layer and its array."""
    prefixes = [{prefix for prefix, rest in _split(name) if "." in rest or not prefix} for name in names]
    return max(set.intersection(*prefixes), key=len) if prefixes else ""


def _below(arrays: Arrays, prefix: str, prefixes: list[str]) -> Arrays:
    """The arrays of a prefix, without it, and without those of another network whose prefix is longer."""
    others = tuple(p for p in prefixes if p != prefix and p.startswith(prefix))
    return {
        name.removeprefix(prefix): value
        for name, value in arrays.items()
        if name.startswith(prefix) and not (others and name.startswith(others))
    }


def _renamed(arrays: Arrays, known_as: Callable[[str], str]) -> Arrays:
    """The arrays by their names here; those of which several would have one name keep their own."""
    names = {name: known_as(name) for name in arrays}
    holders = Counter(names.values())
    return {names[name] if holders[names[name]] == 1 else name: value for name, value in arrays.items()}


def _completed(network: Arrays, beside: Arrays, wanted: Collection[str], known_as: Callable[[str], str]) -> Arrays:
    """A network with what lies beside it in its dict, if that is just what it lacks.

    So a wrapper has it that calls the last layer its head, and all else its backbone.
    """
    lacks = set(wanted) - network.keys()
    names = {
        name: next((as_here for _, rest in _split(name) if (as_here := known_as(rest)) in lacks), "") for name in beside
    }
    if not lacks or sorted(names.values()) != sorted(lacks):
        return network
    return network | {as_here: beside[name] for name, as_here in names.items()}


def _label(place: str, prefix: str) -> str:
    return ".".join(part for part in (place, prefix.removesuffix(".")) if part) or ROOT


def named(labels: Collection[str], which: str) -> str:
    """The one of `labels` that `which` means: a label, a part of one between dots, or any part that only one has.

    Raises:
        UserError: if there is none, or several.
    """
    tests = (lambda x: x == which, lambda x: which in x.split("."), lambda x: which in x)
    for test in tests if which else ():
        means = [label for label in labels if test(label)]
        if len(means) == 1:
            return means[0]
        if means:
            raise UserError(f"--key={which!r} is not one but {', '.join(means)}")
    near = difflib.get_close_matches(which, labels, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(f"--key={which!r} is not there.{hint} Accepted: {', '.join(labels)}")


def same(one: Arrays, other: Arrays) -> bool:
    """Whether two candidates are one network."""
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def beside(found: Mapping[str, Arrays], arrays: Arrays) -> str:
    """The names in a file that are no part of the candidate `arrays`, for a message; empty if there are none."""
    ends = tuple(f".{name}" for name in arrays)
    others = [name for place in found.values() for name in place if not f".{name}".endswith(ends) and not counts(name)]
    return f"\nBeside it in the file: {', '.join(_shortened(others))}" if others else ""


def differences(model: str, missing: list[str], shapes: list[str], left: list[str], shared: int) -> UserError:
    """The error for a file that is not one of `model`, with names of both sides and what is likely the cause.

    `shared` is the number of names that both have.
    """
    kinds = {"missing": missing, "of another shape": shapes, "left over": left}
    lines = [f"{kind}: {text}" for kind, texts in kinds.items() for text in _shortened(texts)]
    count = sum(map(len, kinds.values()))
    shown = "\n  ".join(lines)
    return UserError(
        f"the checkpoint is not one of --model={model} ({count} differences):\n  {shown}\n"
        f"Likely: {_cause(missing, shapes, left, shared)}"
    )


def _shortened(texts: list[str]) -> list[str]:
    more = len(texts) - SHOWN
    return texts[:SHOWN] if more <= 0 else [*texts[:SHOWN], f"and {more} more"]


def _cause(missing: list[str], shapes: list[str], left: list[str], shared: int) -> str:
    if missing and shared < len(missing) / 3:
        return "it is another network, or one whose definition has other names (see docs/deploy.md)"
    if missing and all(name.endswith(("running_mean", "running_var")) for name in missing):
        return "only parameters were saved; state_dict() has the statistics of batch normalisation as well"
    if missing and left:
        return "it is another network of this family, or some of its layers have other names"
    if missing:
        return "it is a shallower network of this family, or only a part of one was saved (without its classifier?)"
    if len(shapes) > len(left):
        return "it is a network of another width of this family, or for images of another size (--image_size)"
    return "it is a deeper network of this family, or one with layers added to it"
