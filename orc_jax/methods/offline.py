"""What the methods have in common in which one fixed teacher teaches: the offline family.

Member 0 is pre-trained, frozen, and in evaluation mode. Every other member is a student that learns from it alone, so
that a pool of several students is as many pairs in one program. A method is then the loss of *one* pair, on this
device's share of the batch; what is added for several students, of one architecture or of several, is here:

    def loss(context, student, teacher, batch, adapter):
        return context.label_loss(student.logits, batch.labels) + ...      # [batch]

A term that is a number of the whole batch is added to each of its samples. If it compares samples with each other, it
takes them from `context.gather`, so that any number of devices sees the same batch.

An *adapter* is what is trained beside a student and not deployed, such as an embedding of its features. Each student
has its own, of the student's learning rate, decay and optimizer; they are in checkpoints, and in no export.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from orc_jax.data.types import Images
from orc_jax.errors import UserError, require
from orc_jax.methods.base import OBJECTIVE, Method, Stage, pool_roles, require_members, scores
from orc_jax.models import FEATURE_POINTS
from orc_jax.models.layers import torch_uniform
from orc_jax.models.network import Params, trunk
from orc_jax.models.points import Maps
from orc_jax.plugins import is_own
from orc_jax.pool import TARGET, Outputs, Pool, PoolSpec
from orc_jax.verbs import Context, Setup, forward, forward_in_turn, head_of, learn, new_stack, predict


class Seen(NamedTuple):
    """What one network makes of this device's share of a batch; without gradients, if it is the teacher."""

    logits: jax.Array  # float32 [batch, classes]
    features: jax.Array  # float32 [batch, dim]: pooled, before the classifier
    maps: Maps = {}  # noqa: RUF012, never changed; of its feature points, those kinds that the method looks at
    params: Params = {}  # noqa: RUF012, likewise; of the teacher: its parameters
    beside: Params = {}  # noqa: RUF012, likewise; of the teacher: those of a network beside it, if there is one


class Adapter(NamedTuple):
    """What a student has beside it; both empty, if the method has no adapters."""

    params: Params  # learnt
    kept: Params  # carried from step to step without gradient, as `keep` moves it


Loss = Callable[[Context, Seen, Seen, Images, Adapter], jax.Array]
MakeAdapter = Callable[[Setup, jax.Array, Seen, Seen], Adapter]
Keep = Callable[[Context, Seen, Seen, Images, Adapter], Params]
MakeBeside = Callable[[Setup, jax.Array, Seen], Params]

PIVOT = Stage("pivot", "independent", (0,))
BESIDE_TEACHER = head_of("the teacher")


def offline(
    name: str,
    architectures: Sequence[str],
    loss: Loss,
    *,
    adapter: MakeAdapter | None = None,
    keep: Keep | None = None,
    answer: Loss | None = None,
    beside: MakeBeside | None = None,
    trunk_alone: bool = False,
    maps: tuple[str, ...] = (),
    values: tuple[str, ...] = (),
    indexed: bool = False,
    decided_by_labels: str = "",
    views: int = 1,
    change: Callable[[Context, jax.Array], jax.Array] | None = None,
) -> Method:
    """The method of a loss of one pair.

    Args:
        name: of the method, for messages.
        architectures: in member order: the teacher, then its students.
        loss: `(context, student, teacher, batch, adapter) -> [batch]`.
        adapter: setup, key, and the shapes of what student and teacher make of one image -> the student's adapter
            before the first step, which may be empty.
        keep: arguments as of `loss` -> what the adapter keeps after a step, the same on all devices. It sees the
            student and the adapter as they were in the step. Without it, what is kept stays.
        answer: arguments as of `loss` -> the student's logits `[batch, classes]` in training mode, where these are not
            those of its network: what its metrics are of.
        beside: setup, key, and the shapes of what the teacher makes of one image -> the parameters of a network beside
            the teacher, which stay as they are, and which a stage with such a network hands on.
        trunk_alone: of the students' networks those parameters alone learn that their maps of kind `post` depend on.
            The loss, which is not of labels, is then a metric, "objective".
        maps, values, indexed, decided_by_labels, views: as of `Method`. Of several views, a student makes a pass each;
            what is seen is then of all samples, view by view, `[views x batch, ...]`, and labels are those of a view.
        change: context, images `[views, batch, ...]` -> images that are changed further.

    Raises:
        UserError: for a pool of fewer than two, or of a network without the feature points that the method looks at.
    """
    require_members(name, architectures, 2)
    if maps:
        require_points(name, architectures)
    numbers = range(1, len(architectures))

    def iterate(context: Context, pool: Pool, batch: Images) -> tuple[Pool, dict[str, jax.Array]]:
        students, teachers = pool.select(numbers), pool.select([0])
        names = [head_of(stack.name) for stack in students.spec.stacks]
        heads = {name: pool.stacks[name] for name in names if name in pool.stacks}
        images = context.normalize(change(context, batch.images) if change else batch.images)
        taught = predict(teachers, images.reshape(-1, *images.shape[-3:]))
        teacher = teacher_of(teachers, taught)
        if beside:
            teacher = teacher._replace(beside=row(pool.stacks[BESIDE_TEACHER].params))
        students_and_heads = students.replace(stacks=students.stacks | heads)
        passed = forward_in_turn(students_and_heads, images) if views > 1 else forward(students_and_heads, images)

        def of_each(function: Callable, out: Outputs) -> dict[str, jax.Array]:
            """A function of a pair, by stack of students."""

            def of_one(seen: Seen, own: Adapter) -> jax.Array:
                return function(context, seen, teacher, batch, own)

            each = {}
            for stack, seen in by_stack(students.spec, out).items():
                head = head_of(stack)
                own = Adapter(out.heads[head], heads[head].batch_stats) if head in heads else Adapter({}, {})
                each[stack] = jax.vmap(of_one)(seen, own)
            return each

        if keep:
            kept = {head_of(name): of for name, of in of_each(keep, passed.outputs).items() if head_of(name) in heads}
            passed = passed._replace(batch_stats=passed.batch_stats | kept)

        def losses(out: Outputs) -> jax.Array:
            return students.spec.in_member_order(of_each(loss, out))

        only = trunks(context.setup, students) if trunk_alone else {}
        learnt = learn(context, passed, losses, only=only)
        pool = pool.put(learnt)
        pool = pool.replace(stacks=pool.stacks | {name: learnt.stacks[name] for name in heads})
        logits = students.spec.in_member_order(of_each(answer, passed.outputs)) if answer else passed.logits
        first = jnp.concatenate([taught.logits, logits])[:, : len(batch.labels)]
        metrics = scores(context, first, batch.labels)
        if trunk_alone:
            of_students = losses(passed.outputs).mean(-1)
            metrics[OBJECTIVE] = context.mean(jnp.concatenate([jnp.zeros(1), of_students]))
        return pool, metrics

    return Method(
        iterate,
        pool_roles(len(architectures), "teacher", "student"),
        metrics=("loss", "accuracy", *([OBJECTIVE] if trunk_alone else [])),
        stages=(PIVOT,),
        frozen=(0,),
        start=start_with(name, architectures, adapter or without, beside) if adapter or beside else None,
        maps=maps,
        values=values,
        indexed=indexed,
        decided_by_labels=decided_by_labels,
        views=views,
    )


def require_points(method: str, architectures: Sequence[str]) -> None:
    """Raises `UserError` for a network of which no feature points are known."""
    for i, name in enumerate(architectures):
        if name not in FEATURE_POINTS and not is_own(name):
            field = {0: "teacher", len(architectures) - 1: "student"}.get(i, "assistants")
            raise UserError(
                f"config.{field}: {name} has no feature points, whose maps {method} compares; accepted are "
                f"{', '.join(FEATURE_POINTS)}"
            )


def without(setup: Setup, key: jax.Array, student: Seen, teacher: Seen) -> Adapter:
    """No adapter."""
    return Adapter({}, {})


class Unfit(Exception):
    """A teacher and a student that a method cannot bring together. `adapter` raises it, with the reason."""


def before(
    name: str, method: str, members: Sequence[int], epochs: int, fields: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Stage, ...]:
    """A stage of so many epochs, none if these are 0, at a constant rate, which no accuracy ends early.

    Arguments are as of `Stage`, and `method` one of `STAGES`.
    """
    require(f"config.{method.partition('.')[0]}.epochs", epochs, epochs >= 0, "at least 0")
    own = {"num_epochs": epochs, "lr_schedule": "constant", "warmup_epochs": 0.0, "patience": 0, **fields}
    return (Stage(name, method, tuple(members), own),) if epochs else ()


def trunks(setup: Setup, students: Pool) -> dict[str, frozenset[str]]:
    """By stack the parameters that `trunk` names."""
    states = {stack.name: row(students.stacks[stack.name]) for stack in students.spec.stacks}
    return {
        stack.name: trunk(stack.network, states[stack.name].params, states[stack.name].batch_stats, setup.image_shape)
        for stack in students.spec.stacks
    }


def start_with(
    method: str, architectures: Sequence[str], adapter: MakeAdapter, beside: MakeBeside | None = None
) -> Callable[[Setup, Pool, jax.Array], Pool]:
    """What adds the adapters of all students to a pool, and a network beside the teacher, before the first step.

    It raises `UserError` for a student that does not fit the teacher.
    """

    def start(setup: Setup, pool: Pool, key: jax.Array) -> Pool:
        images = jax.ShapeDtypeStruct((1, *setup.image_shape), jnp.float32)
        shapes = jax.eval_shape(lambda images: by_stack(pool.spec, predict(pool, images)), images)
        teacher = one_of(shapes[architectures[0]])._replace(
            params=row(pool.select([0]).stacks[architectures[0]].params)
        )
        stacks, last = dict(pool.stacks), len(architectures) - 1
        if beside:
            made = jax.tree.map(lambda x: x[None], beside(setup, jax.random.fold_in(key, 0), teacher))
            stacks[BESIDE_TEACHER] = new_stack(setup, made, {})
        for stack in pool.spec.select(range(1, last + 1)).stacks:
            student = one_of(shapes[stack.name])
            # The target student's is the same in every pool, as its initial weights are.
            keys = [jax.random.fold_in(key, TARGET if member == last else member) for member in stack.members]
            try:
                made = jax.vmap(lambda key, student=student: adapter(setup, key, student, teacher))(jnp.stack(keys))
            except Unfit as reason:
                raise UserError(
                    f"config.method={method!r}: {architectures[0]} cannot teach {stack.name}: {reason}"
                ) from reason
            if any(made):
                stacks[head_of(stack.name)] = new_stack(setup, made.params, made.kept, stack.name)
        return pool.replace(stacks=stacks)

    return start


def by_stack(spec: PoolSpec, outputs: Outputs) -> dict[str, Seen]:
    """What the networks of each stack make of a batch; leaves are `[members of the stack, batch, ...]`."""
    logits = spec.by_stack(outputs.logits)
    maps = {stack.name: outputs.maps.get(stack.name, {}) for stack in spec.stacks}
    return {
        stack.name: Seen(logits[stack.name], outputs.features[stack.name], maps[stack.name]) for stack in spec.stacks
    }


def teacher_of(pool: Pool, outputs: Outputs) -> Seen:
    """The teacher, from a pool of it alone and what that makes of a batch."""
    ((name, seen),) = by_stack(pool.spec, outputs).items()
    return row(seen)._replace(params=row(pool.stacks[name].params))


def row(tree: Any) -> Any:
    """The first network of a stack."""
    return jax.tree.map(lambda x: x[0], tree)


def one_of(shapes: Seen) -> Seen:
    """The shapes of one network of a stack."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes)


def linear_params(key: jax.Array, inputs: Mapping[str, Seen], dim: int) -> Params:
    """Linear layers of features to `dim`, by the names of `inputs`, with PyTorch's initial weights."""
    params = {}
    for i, (name, seen) in enumerate(inputs.items()):
        init = torch_uniform(seen.features.shape[-1])
        key_kernel, key_bias = jax.random.split(jax.random.fold_in(key, i))
        params[f"{name}.kernel"] = init(key_kernel, (seen.features.shape[-1], dim))
        params[f"{name}.bias"] = init(key_bias, (dim,))
    return params


def linear(params: Params, name: str, x: jax.Array) -> jax.Array:
    """A linear layer of an adapter, on `[batch, features]`."""
    return x @ params[f"{name}.kernel"] + params[f"{name}.bias"][None]
