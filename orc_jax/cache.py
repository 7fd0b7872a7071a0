"""Where is kept what takes long to make and can be made again: compiled programs, and sets that were decoded."""

import os
from pathlib import Path


def folder() -> Path:
    """The user's, or what the variable ORC_JAX_CACHE says. It can be deleted at any time."""
    given = os.environ.get("ORC_JAX_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orc_jax"
