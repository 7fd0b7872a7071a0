"""What a person brings along: a network, a method or a data set of a module of their own, named `my_module:Thing`.

A module is imported only if a person has named it, in the config of a command or by `--own`. What a file names, such as
the record of a run, is not.
"""

import ast
import importlib
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from orc_jax.errors import UserError
from orc_jax.models import MODELS, Model

Plugins = Mapping[str, Any]  # what was imported, by the name that a person gave


def is_own(name: str) -> bool:
    """Whether a name is that of something in a module of its own; `cifar100:3.0.2` is a version of a set of TFDS."""
    return re.search(r":(?![\d*])", name) is not None


def load(names: Iterable[tuple[str, str]], trusted: Collection[str] | None = None) -> Plugins:
    """What (field, name)s of the form `my_module:Thing` mean; others are left out, and the field is for messages.

    Modules in the working directory are found. Imported are the `trusted` ones, or all if a person gave them.

    Raises:
        UserError: if one may not be imported, there is no such module, or nothing of that name in it.
    """
    return {name: _import(field, name, trusted) for field, name in names if is_own(name)}


def _import(field: str, name: str, trusted: Collection[str] | None) -> Any:
    if trusted is not None and name not in trusted:
        raise not_trusted(field, name)
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


def not_trusted(field: str, name: str) -> UserError:
    """The error for something that a file names and nobody else."""
    return UserError(f"{field}={name!r} stands in a file; it is imported only if you name it too: --own {name}")


def models(architectures: Iterable[str], plugins: Plugins) -> dict[str, Model]:
    """The models of some architectures that a file names: registered ones, and those of `plugins`.

    Raises:
        UserError: for one that is neither.
    """
    known: Plugins = MODELS | dict(plugins)
    for name in architectures:
        if name not in known:
            raise not_trusted("network", name) if is_own(name) else UserError(f"network={name!r} is not known here")
    return {name: known[name] for name in architectures}


def options(field: str, text: str) -> dict[str, Any]:
    """`"temperature=2.0,mode='hard'"` as a dict; values are Python literals.

    Raises:
        UserError: if it is not of that form.
    """
    try:
        call: Any = ast.parse(f"_({text})", mode="eval").body
        names = [keyword.arg for keyword in call.keywords]
        if call.args or None in names or len(set(names)) < len(names):
            raise ValueError("a value without a name, or a name given twice")
        return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AttributeError) as error:
        raise UserError(f"{field}={text!r}: must be name=value,name=value: {error}") from error
