"""TAKD: Improved Knowledge Distillation via Teacher Assistant (Mirzadeh et al.; AAAI 2020; arXiv 1902.03393).

The chain that DGKD makes dense: teacher, assistants and target student are trained one after the other, each from its
predecessor alone, which is frozen by then and in evaluation mode:

    L = (1 - lam) CE + lam T^2 KL(predecessor || learner)
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from orc_jax.errors import require, require_choice
from orc_jax.methods.base import Method, pool_roles, require_members
from orc_jax.methods.dgkd import VALUES, guided_iteration, stages


def takd(
    architectures: Sequence[str], *, temperature: float = 5.0, lam: float = 1.0, kl_reduction: str = "sum"
) -> Method:
    """The method.

    Args:
        temperature: T. NOTE(paper): searched for each experiment there; here as in DGKD, so that the two compare.
        lam: weight of distillation against labels. NOTE(paper): likewise.
        kl_reduction: "sum" over classes, the formula, or "mean", the authors' code, in which PyTorch's default also
            divides by the number of classes, which is what its weights were chosen with.
    """
    require("config.takd.temperature", temperature, temperature > 0, "greater than 0")
    require("config.takd.lam", lam, 0 <= lam <= 1, "between 0 and 1")
    require_choice("config.takd.kl_reduction", kl_reduction, ("sum", "mean"))
    require_members("takd", architectures, 2)

    def guidance(key: jax.Array) -> jax.Array:
        del key  # nothing is drawn
        return jnp.ones(1)

    iterate = guided_iteration([len(architectures) - 2], guidance, temperature, lam, kl_reduction)
    roles = pool_roles(len(architectures), "teacher", "assistant")
    frozen = tuple(range(len(architectures) - 1))
    before = stages("takd", len(architectures))
    return Method(iterate, roles, stages=before, frozen=frozen, values=VALUES, decided_by_labels="")
