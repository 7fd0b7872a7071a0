"""PCL: Peer Collaborative Learning for Online Knowledge Distillation (Wu, Gong; AAAI 2021; arXiv
2006.04147).

One network with shared early layers and a branch for each *peer*: its own last stage and classifier. Every peer is fed
its own augmentation of each image. Two teachers arise from the peers themselves:

- the *peer ensemble teacher*: the peers' features, concatenated, and a classifier of its own, trained by CE;
- the *peer mean teachers*: each peer's exponential moving average, shared layers included.

    peer i:  CE_i + w T^2 KL(ensemble || i) + w T^2 mean over j != i KL(mean teacher j || i)

w rises with the epoch e from nearly 0 to 1: w = exp(-5 (1 - e / r)^2) up to epoch r, 80 of 300 in the paper.

Members are the peers. Each is a whole network, which can be deployed as it is; the shared layers are equal copies that
stay equal, because they start alike and learn from the sum of all peers' gradients. Peers are alike, so the target
student, the last member, stands for any of them.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from orc_jax.data.types import Images
from orc_jax.errors import UserError, require, require_choice
from orc_jax.losses import cross_entropy, distillation, guided_distillation
from orc_jax.methods.base import Method, pool_roles, rampup, require_members, scores
from orc_jax.models import LAST_STAGE
from orc_jax.models.layers import torch_uniform
from orc_jax.models.network import Params
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
    """
    require("config.pcl.temperature", temperature, temperature > 0, "greater than 0")
    require("config.pcl.rampup_fraction", rampup_fraction, 0 <= rampup_fraction <= 1, "between 0 and 1")
    require("config.pcl.ema_decay", ema_decay, 0 <= ema_decay < 1, "in [0, 1)")
    require_members("pcl", architectures, 2)
    architecture = architectures[-1]
    if set(architectures) != {architecture}:
        raise UserError(
            f"the peers of pcl share layers and must be of one architecture, but the pool is "
            f"{', '.join(architectures)}; --config.teacher={architecture} --config.assistants=copies makes them so"
        )
    require_choice("config.student", architecture, LAST_STAGE)
    size = len(architectures)

    def is_shared(name: str) -> bool:
        return not name.startswith(tuple(f"{part}." for part in LAST_STAGE[architecture]))

    def start(setup: Setup, pool: Pool, key: jax.Array) -> Pool:
        # NOTE(paper): branches start from weights of their own, so that peers differ.
        stack = pool.stacks[architecture]
        tied = tie({architecture: stack.params}, is_shared, lambda x: x[-1:])[architecture]
        stack = stack.replace(params=tied)
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
            of_peers = cross_entropy(out.logits, labels) + ramp * (of_ensemble + of_means)
            return jnp.concatenate([of_peers, cross_entropy(ensemble_logits(out), labels)[None]])

        share = lambda grads: tie(grads, is_shared, lambda x: x.sum(0, keepdims=True))  # noqa: E731
        learnt = learn(context, passed, loss, share=share).stacks
        # NOTE(paper): shared layers see one batch per peer; their running statistics follow the mean over these.
        mean_over_peers = lambda x: x.mean(0, keepdims=True)  # noqa: E731
        statistics = {
            architecture: learnt[architecture].batch_stats,
            MEAN_TEACHERS: mean_pass.batch_stats[architecture],
        }
        statistics = tie(statistics, is_shared, mean_over_peers)
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
        ensemble=ensemble_logits,
    )


def tie(
    trees: dict[str, Params], is_shared: Callable[[str], bool], reduce: Callable[[jax.Array], jax.Array]
) -> dict[str, Params]:
    """Gives all peers one value of what they share.

    Args:
        trees: by stack, what belongs to parameters or statistics by name, `[peers, ...]`.
        is_shared: whether a name is one of the shared layers.
        reduce: `[peers, ...] -> [1, ...]`.
    """

    def one(tree):
        return {k: jnp.broadcast_to(reduce(x), x.shape) if is_shared(k) else x for k, x in tree.items()}

    return {name: tree if name == ENSEMBLE else one(tree) for name, tree in trees.items()}


def ensemble_logits(out: Outputs) -> jax.Array:
    """The peer ensemble teacher: its classifier on all peers' features side by side, `[batch, classes]`."""
    ((_, features),) = out.features.items()
    joined = jnp.moveaxis(features, 0, 1).reshape(features.shape[1], -1)
    classifier = out.heads[ENSEMBLE]
    return joined @ classifier["kernel"][0] + classifier["bias"]
