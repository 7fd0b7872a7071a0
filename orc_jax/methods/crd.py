"""CRD: Contrastive Representation Distillation (Tian, Krishnan, Isola; ICLR 2020; arXiv 1910.10699).

The student's embedding of a sample is to be told, among those of K samples of other classes, by the teacher's embedding
of the same sample, and the other way round. e = W h + b over its norm is an embedding of the pooled features h, learnt
for the student and for the teacher. Embeddings of all N samples are remembered in two banks, M_s and M_t. For a sample
i with its negatives j_1 ... j_K, and M = K / N:

    x_s[j] = exp(M_t[j] . e_s / T) / Z_s        x_t[j] = exp(M_s[j] . e_t / T) / Z_t
    L(x) = -log(x[i] / (x[i] + M)) - sum over k of log(M / (x[j_k] + M))
    CE + w (L(x_s) + L(x_t))

Each Z is the mean of its exponentials in the first iteration, times N, and stays. After each iteration M[i] moves to
the new embedding: the mean m M[i] + (1 - m) e over its norm, without gradient. All as in the authors' code
(RepDistiller), but for its logarithms of quotients, which are differences here.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from orc_jax.data.types import Images
from orc_jax.errors import require
from orc_jax.losses import unit
from orc_jax.methods.base import Method
from orc_jax.methods.offline import Adapter, Seen, linear, linear_params, offline
from orc_jax.models.network import Params
from orc_jax.verbs import Context, Setup

EPSILON = 1e-7  # of the authors' code, added to M in the denominators
DECIDED = "which images are its negatives, and whose embedding is remembered"


def crd(
    architectures: Sequence[str],
    *,
    weight: float = 0.8,
    temperature: float = 0.07,
    dim: int = 128,
    negatives: int = 16384,
    momentum: float = 0.5,
    replacement: bool = False,
) -> Method:
    """The method. Sets in memory alone: the banks take `2 dim N` numbers of each student, and are in checkpoints.

    Args:
        architectures: the teacher, then its students.
        weight: w; 0.8 in RepDistiller.
        temperature: T; 0.07 in the authors' code.
        dim: of the embeddings; 128 in the authors' code.
        negatives: K, of each sample and step anew; 16384 in the authors' code.
        momentum: m; 0.5 in the authors' code.
        replacement: negatives are drawn one by one, so that some come twice, which takes less time. Off, none does if
            there are so many others, as in the authors' code.
    """
    require("config.crd.weight", weight, weight >= 0, "at least 0")
    require("config.crd.temperature", temperature, temperature > 0, "greater than 0")
    require("config.crd.dim", dim, dim >= 1, "at least 1")
    require("config.crd.negatives", negatives, negatives >= 1, "at least 1")
    require("config.crd.momentum", momentum, 0 <= momentum < 1, "in [0, 1)")

    def memory(setup: Setup, key: jax.Array, student: Seen, teacher: Seen) -> Adapter:
        key_params, key_banks = jax.random.split(key)
        banks = math.sqrt(3 / dim) * jax.random.uniform(key_banks, (2, setup.num_train, dim), minval=-1.0)
        kept = {"student": banks[0], "teacher": banks[1], "log_z": jnp.full(2, -jnp.inf)}
        return Adapter(linear_params(key_params, {"student": student, "teacher": teacher}, dim), kept)

    def scored(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        """Logarithms of x_s and x_t without Z: `[2, batch, 1 + K]`, each sample's own first."""
        assert context.index is not None and context.set_labels is not None
        keys = context.local(jax.random.split(context.key, context.setup.batch_size), len(batch.labels))
        others = jax.vmap(draw_anew if replacement else draw, (0, None, 0, None))
        drawn = others(keys, context.set_labels, batch.labels, negatives)
        compared = jnp.concatenate([context.index[:, None], drawn], 1)
        seen, banks = embeddings(adapter.params, student, teacher), (adapter.kept["teacher"], adapter.kept["student"])
        t = context.value("temperature", temperature)
        return jnp.stack([similarities(e, bank, compared) / t for e, bank in zip(seen, banks, strict=True)])

    def constants(context: Context, found: jax.Array, log_z: jax.Array) -> jax.Array:
        """The logarithms of Z_s and Z_t, made of what is found in the first iteration, and kept from then on."""
        sums = context.gather(jax.nn.logsumexp(jax.lax.stop_gradient(found), (1, 2))[None])
        count = context.setup.batch_size * (1 + negatives)
        first = jax.nn.logsumexp(sums, 0) + math.log(context.setup.num_train / count)
        return jnp.where(jnp.isneginf(log_z), first, log_z)

    def loss(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        found = scored(context, student, teacher, batch, adapter)
        log_x = found - constants(context, found, adapter.kept["log_z"])[:, None, None]
        contrasted = contrast(log_x, context.setup.num_train).sum(0)
        return context.label_loss(student.logits, batch.labels) + context.value("weight", weight) * contrasted

    def keep(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> Params:
        assert context.index is not None
        found, index = scored(context, student, teacher, batch, adapter), context.gather(context.index)
        kept = {"log_z": constants(context, found, adapter.kept["log_z"])}
        for name, e in zip(("student", "teacher"), embeddings(adapter.params, student, teacher), strict=True):
            kept[name] = remembered(adapter.kept[name], index, context.gather(e), momentum)
        return kept

    return offline(
        "crd",
        architectures,
        loss,
        adapter=memory,
        keep=keep,
        values=("weight", "temperature"),
        indexed=True,
        decided_by_labels=DECIDED,
    )


def embeddings(params: Params, student: Seen, teacher: Seen) -> tuple[jax.Array, jax.Array]:
    """e_s and e_t, `[batch, dim]`."""
    both = {"student": student, "teacher": teacher}
    e_s, e_t = (unit(linear(params, name, seen.features)) for name, seen in both.items())
    return e_s, e_t


def similarities(e: jax.Array, bank: jax.Array, compared: jax.Array) -> jax.Array:
    """Products of embeddings `[batch, dim]` with the rows of a bank `[N, dim]` that `compared` `[batch, n]` names.

    With all rows first: the rows themselves, `[batch, n, dim]`, would take far more memory.
    """
    return jnp.take_along_axis(e @ bank.T, compared, 1)


def contrast(log_x: jax.Array, size: int) -> jax.Array:
    """L(x) of each sample: logarithms of x, `[..., batch, 1 + K]`, own first, in a set of `size` -> `[..., batch]`."""
    m = (log_x.shape[-1] - 1) / size
    log_m, log_denominator = math.log(m), math.log(m + EPSILON)
    own, others = log_x[..., 0], log_x[..., 1:]
    return jnp.logaddexp(0.0, log_denominator - own) + (jnp.logaddexp(others, log_denominator) - log_m).sum(-1)


def remembered(bank: jax.Array, index: jax.Array, e: jax.Array, momentum: float) -> jax.Array:
    """A bank `[N, dim]` whose rows `index` `[batch]` have moved to embeddings `[batch, dim]`.

    Of an example that is in the batch several times, the last.
    """
    later = jnp.arange(len(index))[:, None] < jnp.arange(len(index))[None]
    repeated = ((index[:, None] == index[None]) & later).any(1)
    moved = unit(momentum * bank[index] + (1.0 - momentum) * e)
    return bank.at[jnp.where(repeated, len(bank), index)].set(moved, mode="drop")


def draw(key: jax.Array, labels: jax.Array, own: jax.Array, count: int) -> jax.Array:
    """Examples of other classes than `own`, of a set with `labels` `[N]`: int32 `[count]`, none twice if there are
    so many; else all come before one comes again."""
    others = labels != own
    lots = jnp.where(others, jax.random.uniform(key, labels.shape), -1.0)
    _, drawn = jax.lax.top_k(lots, min(count, len(labels)))
    return drawn[jnp.arange(count) % jnp.maximum(others.sum(), 1)]


def draw_anew(key: jax.Array, labels: jax.Array, own: jax.Array, count: int) -> jax.Array:
    """As `draw`, but each by itself."""
    order = jnp.argsort(labels)  # the same for all samples of a batch
    first, end = (jnp.searchsorted(labels[order], own, side=side) for side in ("left", "right"))
    drawn = jax.random.randint(key, (count,), 0, jnp.maximum(len(labels) - (end - first), 1))
    return order[drawn + (drawn >= first) * (end - first)]
