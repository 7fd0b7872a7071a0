"""SimKD: Knowledge Distillation with the Reused Teacher Classifier (Chen et al.; CVPR 2022; arXiv 2203.14001).

A student is used with its teacher's classifier: a *projector* P makes of its last map the teacher's, which is all that
is learnt, without labels; the larger map is averaged down to the sides of the other:

    mean (P(f_s) - f_t)^2        logits of the student: the teacher's classifier of the mean of P(f_s) over pixels

P is a 1x1 convolution to a share of the teacher's channels, a 3x3 one, and a 1x1 one to all of them, each with batch
normalisation and ReLU. What is evaluated, exported and predicted with is student, projector and classifier together.
f_t is the map whose mean the teacher's classifier takes; the student's own classifier is never used.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from orc_jax.data.types import Images
from orc_jax.errors import require
from orc_jax.methods.base import Method
from orc_jax.methods.maps import at_one_side, averaged, beside, moved, per_sample, starting
from orc_jax.methods.offline import Adapter, Seen, Unfit, by_stack, offline, row
from orc_jax.models import Model
from orc_jax.models.layers import Layers, global_average_pool, make_layers, torch_default
from orc_jax.models.network import Network, Params
from orc_jax.models.points import noting
from orc_jax.pool import Outputs, Pool
from orc_jax.verbs import Context, Setup, head_of


class Projector(nnx.Module):
    """A student's map of `channels` as a teacher's of `features`, by way of `inner`."""

    def __init__(self, layers: Layers, *, channels: int, inner: int, features: int):
        shapes = ((channels, inner, 1), (inner, inner, 3), (inner, features, 1))
        self.units = nnx.List([nnx.List([layers.conv(*shape), layers.norm(shape[1])]) for shape in shapes])

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv, norm in self.units:
            x = nnx.relu(norm(conv(x)))
        return x


class Reused(nnx.Module):
    """A student with its projector and its teacher's classifier, as one network.

    Args:
        model: the student's.
        options: of the projector.
        sides: height and width of the map that is projected.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        model: Model,
        options: dict[str, int],
        sides: tuple[int, ...],
        image_shape,
        **given: Any,
    ):
        self.student = model(num_classes, image_shape=image_shape, **given)
        layers = make_layers(kernel_init=torch_default, **given)
        self.projector = Projector(layers, **options)
        self.classifier = layers.linear(options["features"], num_classes)
        self.sides = sides

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        with noting(("post",)) as maps:
            self.student(images)
        features = global_average_pool(self.projector(averaged(maps["post"][-1], self.sides)))
        return self.classifier(features), features


def simkd(architectures: Sequence[str], *, factor: int = 2) -> Method:
    """The method.

    Args:
        architectures: the teacher, then its students.
        factor: by how much fewer channels the projector has inside than the teacher's map; 2 in the paper.
    """
    require("config.simkd.factor", factor, factor >= 1, "at least 1")

    def options_of(f_s: jax.Array, f_t: jax.Array) -> dict[str, int]:
        features = f_t.shape[-1]
        return {"channels": f_s.shape[-1], "inner": max(features // factor, 1), "features": features}

    def network(setup: Setup, student: Seen, teacher: Seen) -> Network:
        classifier(teacher)  # or the pair is refused
        return beside(setup, Projector, **options_of(last(student), pooled(teacher)))

    def projected(context: Context, student: Seen, teacher: Seen, adapter: Adapter) -> tuple[jax.Array, Params]:
        """The student's map as the teacher's, in training mode, and the projector's statistics after."""
        f_s, _ = at_one_side(last(student), pooled(teacher))
        return moved(network(context.setup, student, teacher), adapter, f_s)

    def loss(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        _, f_t = at_one_side(last(student), pooled(teacher))
        return per_sample((projected(context, student, teacher, adapter)[0] - f_t) ** 2)

    def answer(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> jax.Array:
        return classified(projected(context, student, teacher, adapter)[0], *classifier(teacher))

    def keep(context: Context, student: Seen, teacher: Seen, batch: Images, adapter: Adapter) -> Params:
        return projected(context, student, teacher, adapter)[1]

    def answers(pool: Pool, out: Outputs) -> jax.Array:
        seen = by_stack(pool.spec, out)
        teacher = row(seen[architectures[0]])._replace(params=pool.member(0).params)
        logits = [teacher.logits]
        for number in range(1, len(architectures)):
            name, of_stack, _ = place(pool, number)
            f_s, f_t = last(seen[name])[of_stack], pooled(teacher)
            own = adapter_of(pool, number)
            made = beside(None, Projector, **options_of(f_s, f_t)).predict(*own, at_one_side(f_s, f_t)[0])
            logits.append(classified(made, *classifier(teacher)))
        return jnp.stack(logits)

    def deployed(pool: Pool, out: Outputs, number: int, model: Model) -> tuple[Model, Params, Params]:
        state = pool.member(number)
        if number == 0:
            return model, state.params, state.batch_stats
        student, teacher = (
            Seen(out.logits, out.features[name], out.maps[name], params)  # shapes, but for the parameters
            for name, params in ((place(pool, number)[0], {}), (architectures[0], pool.member(0).params))
        )
        f_s, f_t, own = last(student), pooled(teacher), adapter_of(pool, number)
        kernel, bias = classifier(teacher)
        sides = tuple(map(min, f_s.shape[2:4], f_t.shape[2:4]))
        params = {"classifier.kernel": kernel, "classifier.bias": bias}
        params |= joined(student=state.params, projector=own.params)
        stats = joined(student=state.batch_stats, projector=own.kept)
        return partial(Reused, model=model, options=options_of(f_s, f_t), sides=sides), params, stats

    return offline(
        "simkd", architectures, loss, adapter=starting(network), keep=keep, answer=answer, maps=("post", "pooled")
    )._replace(answers=answers, deployed=deployed)


def last(student: Seen) -> jax.Array:
    """The map that is projected."""
    return student.maps["post"][-1]


def pooled(teacher: Seen) -> jax.Array:
    """The map that the projected one shall be."""
    return teacher.maps["pooled"][0]


def classifier(teacher: Seen) -> tuple[jax.Array, jax.Array]:
    """The teacher's linear layer from features to logits: kernel `[features, classes]` and bias `[classes]`.

    Raises:
        Unfit: for a teacher that has none, or several layers of that shape.
    """
    shape = (teacher.features.shape[-1], teacher.logits.shape[-1])
    kernels = [name for name, x in teacher.params.items() if x.shape == shape]
    if len(kernels) != 1:
        raise Unfit(f"the teacher's classifier must be one linear layer of its {shape[0]} features")
    bias = teacher.params.get(f"{kernels[0].rpartition('.')[0]}.bias")
    return teacher.params[kernels[0]], jnp.zeros(shape[1]) if bias is None else bias


def classified(f: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """The logits that a classifier gives the mean of maps over their pixels."""
    return global_average_pool(f) @ kernel + bias[None]


def place(pool: Pool, number: int) -> tuple[str, int, int]:
    """Of a student: its stack, and its row in it, and its adapter's among those of the stack's students."""
    (stack,) = (stack for stack in pool.spec.stacks if number in stack.members)
    students = [member for member in stack.members if member]
    return stack.name, stack.members.index(number), students.index(number)


def adapter_of(pool: Pool, number: int) -> Adapter:
    """A student's adapter."""
    name, _, i = place(pool, number)
    head = pool.stacks[head_of(name)]
    return Adapter(*jax.tree.map(lambda x: x[i], (head.params, head.batch_stats)))


def joined(**parts: Params) -> Params:
    """Parameters or statistics of the parts of a network, as its own."""
    return {f"{part}.{name}": x for part, of in parts.items() for name, x in of.items()}
