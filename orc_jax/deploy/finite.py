"""Weights that compute nothing: not numbers, infinite, or variances below zero."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from orc_jax.errors import UserError, first


def require_usable(what: str, params: Mapping[str, Any], batch_stats: Mapping[str, Any], hint: str = "") -> None:
    """Checks that a network can compute with its arrays (float32, by name); `what` is named in the message.

    Raises:
        UserError: naming the arrays that hold values which are not finite, or variances below zero.
    """
    arrays = {name: np.asarray(value) for name, value in {**params, **batch_stats}.items()}
    wrong = [f"{name} ({int((~np.isfinite(x)).sum())} of {x.size} values)" for name, x in arrays.items()]
    wrong = [text for text, x in zip(wrong, arrays.values(), strict=True) if not np.isfinite(x).all()]
    below = [name for name in batch_stats if name.endswith((".var", ".running_var")) and (arrays[name] < 0).any()]
    told = [("weights that are not finite", wrong), ("variances below zero", below)]
    text = "; ".join(f"{kind}: {first(names)}" for kind, names in told if names)
    if text:
        raise UserError(f"{what} holds {text}{hint}")
