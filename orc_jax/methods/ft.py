"""FT: Paraphrasing Complex Network: Network Compression via Factor Transfer (Kim, Park, Kwak; NeurIPS 2018; arXiv
1802.04977).

A *paraphraser* makes a teacher's last map easier to learn from. It is one half of an auto-encoder, which a stage before
trains by itself, on the maps of a teacher that stays as it is:

    mean (D(P(f_t)) - f_t)^2        P, D: three 3x3 convolutions each with leaky ReLU, k C_t channels between them

Then P stays as it is. A *translator* R, like P with batch normalisation, learns beside the student; the larger map is
averaged down to the sides of the other:

    CE + w mean over pixels |Q(R(f_s)) - Q(P(f_t))|        Q(F) = unit(mean over channels of F^2)
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
from flax import nnx

from orc_jax.data.types import Images
from orc_jax.errors import require
from orc_jax.methods.at import attention
from orc_jax.methods.base import OBJECTIVE, Method, scores
from orc_jax.methods.maps import at_one_side, beside, moved, per_sample, starting, weighed
from orc_jax.methods.offline import (
    BESIDE_TEACHER,
    PIVOT,
    Adapter,
    Seen,
    before,
    offline,
    row,
    start_with,
    teacher_of,
    without,
)
from orc_jax.models.layers import Layers, apply, torch_uniform
from orc_jax.models.network import Network, Params
from orc_jax.pool import Outputs, Pool
from orc_jax.verbs import Context, Forward, Setup, learn, predict


class Convolutions(nnx.Module):
    """3x3 convolutions from each of `widths` to the next, with leaky ReLU; `normalised` by batch normalisation.

    `transposed` ones are the same at stride 1, but for PyTorch's initial weights, which take one for the other side.
    """

    def __init__(self, layers: Layers, *, widths: tuple[int, ...], normalised: bool = False, transposed: bool = False):
        units = []
        for old, new in pairwise(widths):
            init = torch_uniform(9 * (new if transposed else old))
            conv = layers.conv(old, new, 3, kernel_init=init, bias_init=init)
            units.append(nnx.List([conv, *([layers.norm(new)] if normalised else [])]))
        self.units = nnx.List(units)

    def __call__(self, x: jax.Array) -> jax.Array:
        for unit in self.units:
            x = nnx.leaky_relu(apply(unit, x), 0.1)
        return x


class Paraphraser(nnx.Module):
    """Maps of `channels` as `factors`, and back: the factors, and what is made of them."""

    def __init__(self, layers: Layers, *, channels: int, factors: int):
        widths = (channels, channels, factors, factors)
        self.encoder = Convolutions(layers, widths=widths)
        self.decoder = Convolutions(layers, widths=widths[::-1], transposed=True)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        factors = self.encoder(x)
        return factors, self.decoder(factors)


def ft(
    architectures: Sequence[str],
    *,
    weight: float = 200.0,
    share: float = 0.5,
    epochs: int = 30,
    learning_rate: float = 0.01,
) -> Method:
    """The method.

    NOTE(paper): factors are compared by their mean square over channels, as in RepDistiller; in the paper whole, at
    unit length. Several students have one paraphraser, which depends on their teacher alone.

    Args:
        architectures: the teacher, then its students.
        weight: w; 200 in RepDistiller.
        share: k, of the teacher's channels; 0.5 in the paper.
        epochs: of the stage before, on top of those of the run; 30 in RepDistiller. 0 leaves it out: a paraphraser that
            nobody has trained.
        learning_rate: of the stage before, without drops. NOTE(paper): 0.01 in RepDistiller, where the student is a
            ResNet or WRN, else that of the run.
    """
    weighed("ft", weight)
    require("config.ft.share", share, share > 0, "greater than 0")
    require("config.ft.learning_rate", learning_rate, learning_rate > 0, "greater than 0")

    def translator(setup: Setup, student: Seen, teacher: Seen) -> Network:
        channels, factors = last(student).shape[-1], factors_of(teacher, share)
        return beside(setup, Convolutions, widths=(channels, channels, factors, factors), normalised=True)

    def translated(context: Context, student: Seen, teacher: Seen, adapter: Adapter) -> tuple[jax.Array, Params]:
        return moved(translator(context.setup, student, teacher), adapter, last(student))

    def loss(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        made, _ = translated(context, student, teacher, adapter)
        factors, _ = paraphrasing(context.setup, teacher, share).predict(teacher.beside, {}, last(teacher))
        differ = factor_loss(made, factors)
        return context.label_loss(student.logits, batch.labels) + context.value("weight", weight) * differ

    def keep(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> Params:
        return translated(context, student, teacher, adapter)[1]

    method = offline(
        "ft",
        architectures,
        loss,
        adapter=starting(translator),
        keep=keep,
        beside=partial(initial, share),
        maps=("post",),
        values=("weight",),
    )
    stage = before("paraphraser", "ft.paraphraser", [0], epochs, {"learning_rate": learning_rate})
    return method._replace(stages=(*method.stages, *stage))


def paraphraser(architectures: Sequence[str], *, share: float, **options: Any) -> Method:
    """The stage before: beside a teacher that stays as it is, its paraphraser learns."""
    del options  # which are of the run

    def iterate(context: Context, pool: Pool, batch: Images) -> tuple[Pool, dict[str, jax.Array]]:
        teachers = pool.select([0])
        taught = predict(teachers, context.normalize(batch.images))
        teacher, head = teacher_of(teachers, taught), {BESIDE_TEACHER: pool.stacks[BESIDE_TEACHER]}
        network, alone = paraphrasing(context.setup, teacher, share), pool.select([]).replace(stacks=head)

        def loss(out: Outputs) -> jax.Array:
            _, made = network.predict(row(out.heads[BESIDE_TEACHER]), {}, last(teacher))
            return per_sample((made - last(teacher)) ** 2)[None]

        # No member makes a pass that is learnt from.
        passed = Forward(alone, Outputs(taught.logits[:0], {}, alone.heads), {}, {BESIDE_TEACHER: {}})
        pool = pool.replace(stacks=pool.stacks | learn(context, passed, loss).stacks)
        objective = context.mean(loss(passed.outputs).mean(-1))
        return pool, scores(context, taught.logits, batch.labels) | {OBJECTIVE: objective}

    return Method(
        iterate,
        ("teacher",),
        metrics=("loss", "accuracy", OBJECTIVE),
        stages=(PIVOT,),
        frozen=(0,),
        start=start_with("ft", architectures, without, partial(initial, share)),
        maps=("post",),
        decided_by_labels="",
    )


def last(seen: Seen) -> jax.Array:
    """The map that factors are made of."""
    return seen.maps["post"][-1]


def factors_of(teacher: Seen, share: float) -> int:
    """How many factors a teacher's map has."""
    return max(int(last(teacher).shape[-1] * share), 1)


def paraphrasing(setup: Setup, teacher: Seen, share: float) -> Network:
    """The network beside a teacher."""
    return beside(setup, Paraphraser, channels=last(teacher).shape[-1], factors=factors_of(teacher, share))


def initial(share: float, setup: Setup, key: jax.Array, teacher: Seen) -> Params:
    """The parameters of that network before the first step of the stage."""
    return paraphrasing(setup, teacher, share).init(key)[0]


def factor_loss(made: jax.Array, factors: jax.Array) -> jax.Array:
    """The difference of factors `[batch, height, width, factors]`: `[batch]`."""
    of_student, of_teacher = (attention(x, 2) for x in at_one_side(made, factors))
    return abs(of_student - of_teacher).mean(-1)
