"""ONE: Knowledge Distillation by On-the-Fly Native Ensemble (Lan, Zhu, Gong; NeurIPS 2018; arXiv 1806.04606).

One network with shared early layers and a branch for each *peer*: its own last stage and classifier. A *gate* weighs
the branches, image by image, by what the shared layers make of it (a linear layer on their pooled output, batch
normalisation, ReLU, softmax over the branches), and so makes the teacher of all of them, the gated ensemble:

    z_e = sum_i g_i z_i        CE_e + sum_i CE_i + w T^2 sum_i KL(ensemble || i)

Members are the peers (see `orc_jax.methods.branches`), which are alike: the target student, the last one, stands for
any of them. The ensemble of an evaluation is the gated one.
"""

from collections.abc import Sequence
from functools import cache

import jax
import jax.numpy as jnp
from flax import nnx

from orc_jax.data.types import Images
from orc_jax.errors import require
from orc_jax.losses import softened_kl
from orc_jax.methods.base import Method, pool_roles, rampup, scores
from orc_jax.methods.branches import first_tied, is_shared, require_branches, tie, total
from orc_jax.models.layers import make_layers
from orc_jax.models.network import Network, Params, make_network
from orc_jax.pool import Outputs, Pool
from orc_jax.verbs import Context, Setup, forward, learn, new_stack, predict

GATE = "gate"


class Gate(nnx.Module):
    """Importance of each peer, `[batch, peers]` with sum 1, from the pooled output of the shared layers."""

    def __init__(self, num_classes: int, *, features: int, image_shape, dtype, axis_name, rngs):
        del image_shape
        layers = make_layers(dtype, axis_name, rngs)
        self.linear = layers.linear(features, num_classes)
        self.norm = layers.norm(num_classes)

    def __call__(self, early: jax.Array) -> jax.Array:
        normed = self.norm(self.linear(early)[:, None, None])[:, 0, 0]
        return jax.nn.softmax(nnx.relu(normed))


@cache
def gate_of(peers: int, features: int, axis_name: str | None) -> Network:
    """The gate as pure functions of early features `[batch, features]`."""

    def model(num_classes, **given):
        return Gate(num_classes, features=features, **given)

    return make_network(model, peers, (1, 1, features), "float32", axis_name)


def one(
    architectures: Sequence[str],
    *,
    temperature: float = 3.0,
    weight: float = 1.0,
    rampup_fraction: float = 0.0,
    target_gradient: bool = False,
) -> Method:
    """The method.

    Args:
        architectures: that of the peers, once for each.
        temperature: T; 3 in the paper.
        weight: of distillation, once it has risen; 1 in the paper.
        rampup_fraction: share of the run over which distillation sets in, as in `base.rampup`; 0 is none. In OKDDip's
            comparison it is 80 of 300 epochs.
        target_gradient: gradients of distillation reach the ensemble as well, as in OKDDip's comparison; off, it learns
            from the labels alone. NOTE(paper): it does not say.
    """
    require("config.one.temperature", temperature, temperature > 0, "greater than 0")
    require("config.one.weight", weight, weight >= 0, "at least 0")
    require("config.one.rampup_fraction", rampup_fraction, 0 <= rampup_fraction <= 1, "between 0 and 1")
    architecture = require_branches("one", architectures)
    size, shared = len(architectures), is_shared(architecture)

    def start(setup: Setup, pool: Pool, key: jax.Array) -> Pool:
        images = jax.ShapeDtypeStruct((1, *setup.image_shape), jnp.float32)
        features = jax.eval_shape(lambda images: predict(pool, images).early[architecture], images).shape[-1]
        weights = gate_of(size, features, setup.axis_name).init(key)
        gate = new_stack(setup, *jax.tree.map(lambda x: x[None], weights))
        pool = first_tied(pool, architecture)
        return pool.replace(stacks=pool.stacks | {GATE: gate})

    def gated(pool: Pool, out: Outputs, axis_name: str | None, trains: bool) -> tuple[jax.Array, Params]:
        """The ensemble's logits `[batch, classes]`, and the gate's statistics as they are moved."""
        early = out.early[architecture][-1]  # that of all peers: they share the layers, and see the same images
        gate = gate_of(size, early.shape[-1], axis_name)
        params, stats = jax.tree.map(lambda x: x[0], (out.heads[GATE], pool.stacks[GATE].batch_stats))
        if trains:
            importance, stats = gate.train(params, stats, early)
        else:
            importance = gate.predict(params, stats, early)
        return jnp.einsum("bm,mbc->bc", importance, out.logits), jax.tree.map(lambda x: x[None], stats)

    def iterate(context: Context, pool: Pool, batch: Images) -> tuple[Pool, dict[str, jax.Array]]:
        passed = forward(pool, context.normalize(batch.images))
        ramp, axis_name = weight * rampup(context.progress, rampup_fraction), context.setup.axis_name
        _, moved = gated(pool, passed.outputs, axis_name, trains=True)

        def loss(out):
            ensemble, _ = gated(pool, out, axis_name, trains=True)
            target = ensemble if target_gradient else jax.lax.stop_gradient(ensemble)
            distilled = softened_kl(out.logits, target[None], temperature)
            of_labels = context.label_loss(jnp.concatenate([out.logits, ensemble[None]]), batch.labels)
            return of_labels + ramp * jnp.concatenate([distilled, jnp.zeros_like(distilled[:1])])

        passed = passed._replace(batch_stats=passed.batch_stats | {GATE: moved})
        pool = learn(context, passed, loss, share=lambda grads: tie(grads, [architecture], shared, total))
        return pool, scores(context, passed.logits, batch.labels)

    def ensemble(pool: Pool, out: Outputs) -> jax.Array:
        return gated(pool, out, None, trains=False)[0]

    roles = pool_roles(size, "peer", "peer")
    return Method(iterate, roles, start=start, ensemble=ensemble, early=True, decided_by_labels="", tied=True)
