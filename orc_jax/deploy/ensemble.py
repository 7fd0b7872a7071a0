"""All members of a trained pool together, as its evaluation has them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from orc_jax.config import reopen
from orc_jax.data.augment import normalize
from orc_jax.data.types import Dataset, Images
from orc_jax.deploy.finite import require_usable
from orc_jax.deploy.member import INSTEAD
from orc_jax.evaluate import heads
from orc_jax.run import Run, build
from orc_jax.verbs import predict
from orc_jax.workdir import checkpoint, record
from orc_jax.workdir.record import Record

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
    run = _run(there, own)
    trained = checkpoint.restore_networks(
        workdir, there, which_checkpoint, run.sharding, run.resolved.plugins, heads(run), ema=ema
    )
    for i, name in enumerate(run.spec.member_names):
        state = trained.pool.member(i)
        require_usable(f"{name} of step {trained.step} in {workdir}", state.params, state.batch_stats, INSTEAD)

    @jax.jit
    def probabilities(pool, images):
        outputs = predict(pool, normalize(images, there.mean, there.std))
        if run.method.ensemble:
            return jax.nn.softmax(run.method.ensemble(pool, outputs))
        return jax.nn.softmax(outputs.logits).mean(0)

    pool = trained.pool.replace(spec=run.spec)
    return lambda images: probabilities(pool, jnp.asarray(images))


def _run(there: Record, own: Sequence[str]) -> Run:
    """The run of a record, on data of which only the shapes are known."""
    images = np.broadcast_to(np.uint8(0), (there.num_train, *there.image_shape))
    split = Images(images, np.broadcast_to(np.int32(0), (there.num_train,)))
    names = there.class_names or tuple(map(str, range(there.num_classes)))
    dataset = Dataset("", split, split, names, there.image_shape, there.mean, there.std)
    return build(reopen(there.fields, own), dataset, jax.local_devices()[:1], axis_name=None)
