"""All members of a trained pool together, as its evaluation has them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from orc_jax.data.augment import normalize
from orc_jax.deploy.finite import require_usable
from orc_jax.deploy.member import INSTEAD, run_of
from orc_jax.evaluate import heads
from orc_jax.methods.base import evaluated
from orc_jax.workdir import checkpoint, record

ENSEMBLE = "ensemble"


def load_ensemble(
    workdir: Path, which_checkpoint: str, own: Sequence[str] = (), ema: bool | None = None
) -> Callable[[np.ndarray], jax.Array]:
    """A function: uint8 images `[batch, height, width, channels]` -> float32 probabilities `[batch, classes]`.

    They are the method's own ensemble's, or the mean of the members'. Arguments are as those of `load_member`.

    Raises:
        UserError: if there is no run or checkpoint like that, or it cannot be read; if weights of a member are not
            finite.
    """
    there = record.require(workdir)
    run = run_of(there, own)
    trained = checkpoint.restore_networks(
        workdir, there, which_checkpoint, run.sharding, run.resolved.plugins, heads(run), ema=ema
    )
    for i, name in enumerate(run.spec.member_names):
        state = trained.pool.member(i)
        require_usable(f"{name} of step {trained.step} in {workdir}", state.params, state.batch_stats, INSTEAD)

    @jax.jit
    def probabilities(pool, images):
        outputs = evaluated(run.method, pool, normalize(images, there.mean, there.std))
        if run.method.ensemble:
            return jax.nn.softmax(run.method.ensemble(pool, outputs))
        return jax.nn.softmax(outputs.logits).mean(0)

    pool = trained.pool.replace(spec=run.spec)
    return lambda images: probabilities(pool, jnp.asarray(images))
