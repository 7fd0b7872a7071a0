"""What a person brings along: a network, a method or a data set of a module of their own, named `my_module:Thing`.

A module is imported only if a person has named it, in the config of a command or by `--own`. What a file names, such as
the description of a run, is not.
"""

import ast
import importlib
import os
import sys
from collections.abc import Iterable
from typing import Any

from orc_jax.errors import UserError
from orc_jax.models import MODELS

_allowed: set[str] = set()


def is_own(name: str) -> bool:
    """Whether a name is that of something in a module of its own."""
    return ":" in name


def allow(names: Iterable[str]) -> None:
    """Notes names that a person has given: from now on they may be imported."""
    _allowed.update(name.strip() for name in names if is_own(name))


def load(field: str, name: str) -> Any:
    """The object that `my_module:Thing` names; modules in the working directory are found.

    Raises:
        UserError: if nobody has allowed it, there is no such module, or nothing of that name in it.
    """
    if name not in _allowed:
        raise UserError(f"{field}={name!r} stands in a file; it is imported only if you name it too: --own {name}")
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise UserError(f"{field}={name!r}: the module {module_name!r} cannot be imported: {error}") from error
    if not hasattr(module, attribute):
        public = ", ".join(x for x in vars(module) if not x.startswith("_"))
        raise UserError(f"{field}={name!r}: {module_name} has no {attribute!r}; it has {public or 'nothing'}")
    return getattr(module, attribute)


def register_network(field: str, name: str) -> None:
    """Makes the network that `my_module:MyNet` names known under that name; other names are left alone.

    Raises:
        UserError: as `load`.
    """
    if is_own(name) and name not in MODELS:
        MODELS[name] = load(field, name)


def options(field: str, text: str) -> dict[str, Any]:
    """`"temperature=2.0,mode='hard'"` as a dict; values are Python literals.

    Raises:
        UserError: if it is not of that form.
    """
    try:
        (call,) = ast.parse(f"_({text})").body
        if call.value.args:
            raise ValueError("a value without a name")
        return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.value.keywords}
    except (SyntaxError, ValueError, AttributeError) as error:
        raise UserError(f"{field}={text!r}: must be name=value,name=value: {error}") from error
