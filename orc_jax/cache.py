"""Where is kept what takes long to make and can be made again: compiled programs, and sets that were decoded."""

import os
import tempfile
from pathlib import Path


def folder() -> Path:
    """The user's, or what the variable ORC_JAX_CACHE says. It can be deleted at any time."""
    if given := os.environ.get("ORC_JAX_CACHE"):
        return Path(given)
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "orc_jax"
    try:
        return Path.home() / ".cache" / "orc_jax"
    except RuntimeError:  # a container whose user has no home
        return Path(tempfile.gettempdir()) / f"orc_jax_{os.getuid()}"
