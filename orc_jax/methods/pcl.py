"""PCL: Peer Collaborative Learning for Online Knowledge Distillation (Wu, Gong; AAAI 2021; arXiv
2006.04147).

One network with shared early layers and a branch for each *peer*: its own last stage and classifier. Every peer is fed
its own augmentation of each image. Two teachers arise from the peers themselves:

- the *peer ensemble teacher*: the peers' features, concatenated, and a classifier of its own, trained by CE;
- the *peer mean teachers*: each peer's exponential moving average, shared layers included.

    peer i:  CE_i + w T^2 KL(ensemble || i) + w T^2 mean over j != i KL(mean teacher j || i)

w rises with the epoch e from nearly 0 to 1: w = exp(-5 (1 - e / r)^2) up to epoch r, 80 of 300 in the paper.

Members are the peers (see `orc_jax.methods.branches`); shared layers learn from the sum of all peers' gradients. Peers
are alike, so the target student, the last member, stands for any of them.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from orc_jax.data.types import Images
from orc_jax.errors import require, require_choice
from orc_jax.losses import distillation, guided_distillation
from orc_jax.methods.base import Method, pool_roles, rampup, scores
from orc_jax.methods.branches import average, first_tied, is_shared, require_branches, tie, total
from orc_jax.models import LAST_STAGE
from orc_jax.models.layers import torch_uniform
from orc_jax.pool import Outputs, Pool
from orc_jax.verbs import Context, Setup, forward, learn, new_stack, predict

ENSEMBLE = "peer_ensemble"  # the head that is the ensemble teacher's classifier
MEAN_TEACHERS = "mean_teachers"


def pcl(
    architectures: Sequence[str],
    *,
    temperature: float = 3.0,
    rampup_fraction: float = 0.2667,
    ema_decay: float = 0.999,
    own_augmentation: bool = True,
    trunk_statistics: str = "mean",
    classifiers: str = "own",
) -> Method:
    """The method.

    Args:
        architectures: that of the peers, once for each.
        temperature: T; 3 in the paper.
        rampup_fraction: r as a share of the run.
        ema_decay: the mean teachers' decay at step i is the lesser of this and `1 - 1 / (i + 1)`. Their running
            statistics are those of their own forward passes, which are in training mode. NOTE(paper): as in a
            reproduction; the paper's code is not public.
        own_augmentation: every peer sees its own crop and flip; off, all see the same.
        trunk_statistics: those of the shared layers follow the "mean" of the peers' batches, or "each" of them, one
            after the other, as in the reproduction.
        classifiers: the peers' start from weights of their "own", or are "equal", as in the reproduction.
    """
    require("config.pcl.temperature", temperature, temperature > 0, "greater than 0")
    require("config.pcl.rampup_fraction", rampup_fraction, 0 <= rampup_fraction <= 1, "between 0 and 1")
    require("config.pcl.ema_decay", ema_decay, 0 <= ema_decay < 1, "in [0, 1)")
    require_choice("config.pcl.trunk_statistics", trunk_statistics, ("mean", "each"))
    require_choice("config.pcl.classifiers", classifiers, ("own", "equal"))
    architecture = require_branches("pcl", architectures)
    size, shared = len(architectures), is_shared(architecture)
    of_peers = (architecture, MEAN_TEACHERS)

    def start(setup: Setup, pool: Pool, key: jax.Array) -> Pool:
        # NOTE(paper): branches start from weights of their own, so that peers differ.
        stack = first_tied(pool, architecture).stacks[architecture]
        if classifiers == "equal":
            last = f"{LAST_STAGE[architecture][-1]}."
            equal = tie({architecture: stack.params}, of_peers, lambda name: name.startswith(last), lambda x: x[-1:])
            stack = stack.replace(params=equal[architecture])
        images = jax.ShapeDtypeStruct((1, *setup.image_shape), jnp.float32)
        outputs = jax.eval_shape(lambda images: predict(pool, images), images)
        dim, classes = size * outputs.features[architecture].shape[-1], outputs.logits.shape[-1]
        key_kernel, key_bias = jax.random.split(key)
        init = torch_uniform(dim)
        classifier = {"kernel": init(key_kernel, (1, dim, classes)), "bias": init(key_bias, (1, classes))}
        ensemble, means = new_stack(setup, classifier, {}), stack.replace(opt_state=())
        return pool.replace(stacks={architecture: stack, ENSEMBLE: ensemble, MEAN_TEACHERS: means})

    def iterate(context: Context, pool: Pool, batch: Images) -> tuple[Pool, dict[str, jax.Array]]:
        images, labels = context.normalize(batch.images), batch.labels
        teachers = pool.stacks[MEAN_TEACHERS]
        mean_pass = forward(pool.replace(stacks={architecture: teachers}), images)
        peers = pool.replace(stacks={name: pool.stacks[name] for name in (architecture, ENSEMBLE)})
        passed = forward(peers, images)
        logits_e = ensemble_logits(passed.outputs)
        ramp = rampup(context.progress, rampup_fraction)
        guidance = (1.0 - jnp.eye(size)) / (size - 1)

        def loss(out):
            of_ensemble = distillation(out.logits, logits_e[None], temperature)
            of_means = guided_distillation(out.logits, mean_pass.logits, guidance, temperature)
            of_peers = context.label_loss(out.logits, labels) + ramp * (of_ensemble + of_means)
            return jnp.concatenate([of_peers, context.label_loss(ensemble_logits(out), labels)[None]])

        learnt = learn(context, passed, loss, share=lambda grads: tie(grads, of_peers, shared, total)).stacks
        # NOTE(paper): shared layers see one batch per peer; their running statistics follow the mean, or each.
        statistics = {
            architecture: learnt[architecture].batch_stats,
            MEAN_TEACHERS: mean_pass.batch_stats[architecture],
        }
        if trunk_statistics == "each":
            before = {architecture: pool.stacks[architecture].batch_stats, MEAN_TEACHERS: teachers.batch_stats}
            statistics = jax.tree.map(one_after_the_other, before, statistics)
        statistics = tie(statistics, of_peers, shared, average if trunk_statistics == "mean" else lambda x: x[-1:])
        stack = learnt[architecture].replace(batch_stats=statistics[architecture])
        decay = jnp.minimum(1.0 - 1.0 / (context.step + 1.0), ema_decay)
        moved = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, teachers.params, stack.params)
        teachers = teachers.replace(params=moved, batch_stats=statistics[MEAN_TEACHERS])
        stacks = {architecture: stack, ENSEMBLE: learnt[ENSEMBLE], MEAN_TEACHERS: teachers}
        return pool.replace(stacks=stacks), scores(context, passed.logits, labels)

    return Method(
        iterate,
        pool_roles(size, "peer", "peer"),
        views=size if own_augmentation else 1,
        start=start,
        tied=True,
        ensemble=lambda pool, out: ensemble_logits(out),
        decided_by_labels="",
    )


def one_after_the_other(before: jax.Array, moved: jax.Array) -> jax.Array:
    """Running statistics that follow each of several batches: from where all were, and where each batch moved them.

    Arguments and result are `[peers, ...]`; row i is after the batches of peers 0 ... i.
    """
    now, rows = before[0], []
    for old, new in zip(before, moved, strict=True):
        now = 0.9 * now + (new - 0.9 * old)  # the momentum of `layers.BatchNorm`
        rows.append(now)
    return jnp.stack(rows)


def ensemble_logits(out: Outputs) -> jax.Array:
    """The peer ensemble teacher: its classifier on all peers' features side by side, `[batch, classes]`."""
    ((_, features),) = out.features.items()
    joined = jnp.moveaxis(features, 0, 1).reshape(features.shape[1], -1)
    classifier = out.heads[ENSEMBLE]
    return joined @ classifier["kernel"][0] + classifier["bias"]
