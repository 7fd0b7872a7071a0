"""ORC, and the methods it stands on and is compared with, on a pool of networks in one compiled step.

What a program calls are `train`, `load` and `default_config`. They are imported when they are first asked for, so that
the package itself is there at once.
"""

from typing import Any

__version__ = "0.1.0"
_LIBRARY = ("default_config", "load", "train")


def __getattr__(name: str) -> Any:
    if name not in _LIBRARY:
        raise AttributeError(f"module 'orc_jax' has no attribute {name!r}")
    from orc_jax import library

    return getattr(library, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LIBRARY])
