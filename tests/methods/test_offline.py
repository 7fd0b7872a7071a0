"""The laws of the offline family, on networks so small that a step of each method is compiled in no time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax import models, parallel
from orc_jax.data.types import Images
from orc_jax.defaults import options_of
from orc_jax.errors import UserError
from orc_jax.methods import METHODS, OFFLINE, STAGES, group_of
from orc_jax.methods.mlkd import strengthened
from orc_jax.methods.offline import BESIDE_TEACHER
from orc_jax.pool import Pool, PoolSpec, Stack
from orc_jax.pretrained import plan
from orc_jax.testing import assert_close, assert_identical, build_run
from orc_jax.verbs import Context, head_of, new_stack
from tests.helpers import each_method
from tests.methods.test_verbs import CLASSES, NETWORKS, PIXELS, SHAPE, normal, setup

MEMBERS = ("a", "b", "a", "b")  # a teacher, and students of two architectures, one of which is the teacher's
DIMS = {"a": 3, "b": 5}
BATCH = Images(
    np.random.default_rng(0).integers(0, 255, (8, *SHAPE), dtype=np.uint8), np.arange(8, dtype=np.int32) % CLASSES
)
INDEX = np.array([3, 15, 0, 8, 4, 15, 7, 2], np.int32)  # one comes twice
SET_LABELS = np.zeros(16, np.int32)
SET_LABELS[INDEX] = BATCH.labels
# With which nothing is taken from the teacher.
SILENT = {"kd": {"alpha": 0.0}}
SMALL = {"cc": {"dim": 4}, "crd": {"dim": 4, "negatives": 6}}
# The hint's weight of 100 would make the rounding of a gradient show that is 0; a variance of 5 hides what VID
# teaches, and a thousandth what OFD does.
USUAL = {
    "fitnets": {"weight": 1.0},
    "ft": {"weight": 1.0},
    "vid": {"weight": 30.0},
    "ofd": {"weight": 100.0},
    "ab": {"kd_weight": 1.0},
}
USUAL["ab.boundaries"] = {"weight": 1000.0}
SLOW = ("mlkd", "at", "vid", "nst", "ofd", "reviewkd", "simkd", "ft", "ab", "fsp")
QUICK = [name for name in OFFLINE if name not in SLOW]
# Stages in which students learn, with the members whose maps they can bring together.
OF_STUDENTS = {"ab.boundaries": (0, 1, 2, 3), "fsp.flow": (0, 2)}
# The maps of a network are these times what its first layer makes of an image.
PATTERNS = [normal(i + 20, side, side)[None, :, :, None] for i, side in enumerate((4, 4, 2))]


@pytest.fixture(autouse=True)
def feature_points(monkeypatch):
    for name in NETWORKS:
        monkeypatch.setitem(models.FEATURE_POINTS, name, len(PATTERNS))


def noting(network, kinds):
    """A network that gives maps as well, if a method asks for some kinds."""

    def maps(params, images):
        x = (images.reshape(len(images), PIXELS) @ params["v"])[:, None, None]
        preact = tuple(x * pattern for pattern in PATTERNS)
        post = tuple(map(jnp.tanh, preact))
        made = {"post": post, "preact": preact, "pooled": post[-1:], "norms": (params["v"][:2],) * 2}
        return {"maps": {kind: made[kind] for kind in kinds}}

    def train(params, batch_stats, images):
        outputs, stats = network.train(params, batch_stats, images)
        return (*outputs, maps(params, images)), stats

    def predict(params, batch_stats, images):
        return (*network.predict(params, batch_stats, images), maps(params, images))

    return network._replace(train=train, predict=predict) if kinds else network


def setup_of(numbers=(0, 1, 2, 3), maps=(), **fields):
    """That of a pool of some of the members."""
    rows = {name: tuple(i for i, number in enumerate(numbers) if MEMBERS[number] == name) for name in NETWORKS}
    stacks = tuple(Stack(name, noting(network, maps), rows[name]) for name, network in NETWORKS.items() if rows[name])
    spec = PoolSpec(tuple(MEMBERS[number] for number in numbers), tuple(range(len(numbers))), stacks)
    return setup(spec=spec, batch_size=8, num_train=16, learning_rate=lambda step: 0.01, **fields)


def start(method, setup, numbers=(0, 1, 2, 3)):
    """The pool before the first step; a member's weights are those of its number in the whole pool."""
    stacks = {}
    for stack in setup.spec.stacks:
        dim, own = DIMS[stack.name], [numbers[row] for row in stack.members]
        params = {
            "v": jnp.stack([normal(i, PIXELS, dim) for i in own]),
            "w": jnp.stack([normal(i + 5, dim, CLASSES) for i in own]),
        }
        stacks[stack.name] = new_stack(setup, params, {"mean": jnp.stack([normal(i + 9, dim) for i in own])})
    pool = Pool(spec=setup.spec, stacks=stacks)
    return method.start(setup, pool, jax.random.key(0)) if method.start else pool


def made(name, numbers=(0, 1, 2, 3)):
    factory, options = (METHODS | STAGES)[name], options_of(METHODS[group_of(name)]) if name in STAGES else {}
    return factory([MEMBERS[number] for number in numbers], **options, **SMALL.get(name, {}))


@functools.cache
def stepper(name, numbers=(0, 1, 2, 3), axis_name=None):
    """A function that takes two steps of a method: (pool, values of options, batch) -> (pool, metrics)."""
    method = made(name, numbers)
    now = setup_of(numbers, method.maps, axis_name=axis_name)

    def step(pool, values, batch, step):
        images, index = batch
        if method.views > 1:
            images = images._replace(images=jnp.stack([images.images] * method.views))
        context = Context(now, step, jax.random.key(1), values, index=index, set_labels=SET_LABELS)
        return method.iterate(context, pool, images)

    mapped = jax.pmap(step, axis_name, in_axes=(None, None, 0, None), out_axes=None) if axis_name else jax.jit(step)

    def steps(pool, values, batch=(BATCH, INDEX)):
        for i in range(2):
            pool, metrics = mapped(pool, values, batch, jnp.int32(i))
        return jax.device_get((pool, metrics))

    return steps


def values_of(name, **values):
    """All options of a method that are arguments of its program, so that it is compiled once."""
    given = options_of(METHODS[group_of(name)]) | SMALL.get(name, {}) | USUAL.get(name, {}) | values
    return {option: jnp.float32(given[option]) for option in made(name).values}


def taken(name, numbers=(0, 1, 2, 3), **values):
    """The pool before and after two steps, and the metrics of the second."""
    method = made(name, numbers)
    before = jax.device_get(start(method, setup_of(numbers, method.maps), numbers))
    return before, *stepper(name, numbers)(before, values_of(name, **values))


@pytest.mark.parametrize("name", each_method(QUICK, OFFLINE))
def test_the_teacher_stays_and_all_else_learns(name):
    before, after, metrics = taken(name)
    assert_identical(after.member(0), before.member(0))
    for i in (1, 2, 3):
        assert np.abs(after.member(i).params["v"] - before.member(i).params["v"]).max() > 1e-4
        assert np.abs(after.member(i).batch_stats["mean"] - before.member(i).batch_stats["mean"]).max() > 1e-4
    heads = after.stacks.keys() - {*DIMS, BESIDE_TEACHER}
    assert heads == ({head_of("a"), head_of("b")} if made(name).start else set())
    for head in heads:
        count = {head_of("a"): 1, head_of("b"): 2}[head]
        for parameter, value in after.stacks[head].params.items():
            moved = np.abs(value - before.stacks[head].params[parameter]).reshape(count, -1).max(1)
            assert (moved > 0).all()
    assert metrics["loss"].shape == (4,) and np.isfinite(metrics["loss"]).all()
    assert (BESIDE_TEACHER in after.stacks) == (name == "ft")
    if name == "ft":
        assert_identical(after.stacks[BESIDE_TEACHER], before.stacks[BESIDE_TEACHER])


@pytest.mark.parametrize("name", OF_STUDENTS)
def test_in_a_stage_all_up_to_the_maps_learns(name):
    numbers = OF_STUDENTS[name]
    before, after, metrics = taken(name, numbers)
    assert_identical(after.member(0), before.member(0))
    for i in range(1, len(numbers)):
        was, now = before.member(i), after.member(i)
        assert np.abs(now.params["v"] - was.params["v"]).max() > 1e-4
        np.testing.assert_array_equal(now.params["w"], was.params["w"])
    # Where shapes are equal there is nothing between them: the students of the teacher's architecture have no head.
    heads = after.stacks.keys() - set(DIMS)
    assert heads == ({head_of("b")} if name == "ab.boundaries" else set())
    for head in heads:
        for parameter, value in after.stacks[head].params.items():
            assert (value != before.stacks[head].params[parameter]).reshape(2, -1).any(1).all()
    objective = metrics["objective"]
    assert objective[0] == 0 and (objective[1:] > 0).all() and np.isfinite(metrics["loss"]).all()


def test_in_a_stage_a_paraphraser_learns():
    before, after, metrics = taken("ft.paraphraser", (0,))
    assert set(after.stacks) == {"a", BESIDE_TEACHER}
    assert_identical(after.member(0), before.member(0))
    for parameter, value in after.stacks[BESIDE_TEACHER].params.items():
        assert (value != before.stacks[BESIDE_TEACHER].params[parameter]).any()
    assert metrics["objective"].shape == metrics["loss"].shape == (1,) and metrics["objective"] > 0


@pytest.mark.parametrize("name", each_method(QUICK, [name for name in OFFLINE if name not in ("simkd", "mlkd")]))
def test_where_the_teacher_is_silent_it_is_independent_training(name):
    silent = SILENT.get(name) or {option: 0.0 for option in made(name).values if option != "temperature"}
    _, alone, _ = taken("independent")
    _, after, _ = taken(name, **silent)
    for i in (1, 2, 3):
        assert_close(after.member(i), alone.member(i), rtol=1e-5, atol=1e-6)
    _, taught, _ = taken(name)
    for i in (1, 2, 3):
        differ = np.abs(taught.member(i).params["v"] - alone.member(i).params["v"]).max()
        assert differ > 1e-4 if name != "fsp" else differ < 1e-6  # all that it takes it takes in its stage


@pytest.mark.parametrize("name", [*each_method(QUICK, OFFLINE), *STAGES])
def test_one_device_equals_four(name):
    """Statistics of these networks are of each device, and are left out."""
    numbers = {**OF_STUDENTS, "ft.paraphraser": (0,)}.get(name, (0, 1, 2, 3))
    before, one, metrics = taken(name, numbers)
    shares = jax.tree.map(lambda x: parallel.shard(x, 4), (BATCH, INDEX))
    four, of_four = stepper(name, numbers, axis_name=parallel.AXIS)(before, values_of(name), shares)
    of_params = [{stack: (s.params, s.opt_state) for stack, s in pool.stacks.items()} for pool in (one, four)]
    assert_close(*of_params, rtol=1e-4, atol=1e-5)
    kept = [{stack: s.batch_stats for stack, s in pool.stacks.items() if stack not in DIMS} for pool in (one, four)]
    assert_close(*kept, rtol=1e-4, atol=1e-5)
    assert_close(of_four, metrics)


@pytest.mark.parametrize("name", ["kd", "cc"])
def test_students_do_not_touch_each_other(name):
    """The target student ends as in a pool of the teacher and itself, and so does its adapter."""
    _, after, _ = taken(name)
    pair = (0, 3)
    alone, _ = stepper(name, pair)(start(made(name, pair), setup_of(pair), pair), values_of(name))
    assert_close(after.member(3), alone.member(1), rtol=1e-5, atol=1e-6)
    if made(name).start:
        last = jax.tree.map(lambda x: x[-1:], after.stacks[head_of("b")])
        assert_close(last, alone.stacks[head_of("b")], rtol=1e-5, atol=1e-6)


def test_an_adapter_learns_at_the_rate_of_its_student():
    now = setup_of(lr_multipliers={"b": 0.5}, optimizers={"b": "another"})
    assert now.optimizer_of(head_of("b")) == now.optimizer_of("b") == "another"
    assert now.optimizer_of(head_of("a")) is now.optimizer
    method, ends = made("cc"), []
    for multipliers in ({}, {"b": 0.5}):
        given = setup_of(lr_multipliers=multipliers)
        before = start(method, given)
        context = Context(given, jnp.int32(0), jax.random.key(1))
        after, _ = jax.jit(functools.partial(method.iterate, context))(before, BATCH)
        ends.append(jax.tree.map(lambda x, y: np.asarray(y - x), before, after).stacks)
    for stack, factor in {head_of("a"): 1.0, head_of("b"): 0.5}.items():
        scaled = {name: factor * x for name, x in ends[0][stack].params.items()}
        assert_close(ends[1][stack].params, scaled, rtol=1e-3, atol=1e-6)


def test_epochs():
    """An iteration is of the epoch of its first example; batches may reach into the next."""
    given = setup(batch_size=4, num_train=10, num_steps=8)
    epochs = [int(Context(given, jnp.int32(step), jax.random.key(0)).epoch) for step in range(8)]
    assert epochs == [step * 4 // 10 for step in range(8)]


def test_dkd_sets_in_by_epochs():
    """A step an epoch: in the first of 20 it weighs a twentieth."""
    ends = []
    for warmup, scale in ((20, 1.0), (0, 1 / 20)):
        method, now = METHODS["dkd"](["a", "b"], warmup_epochs=warmup, temperature=2.0), setup_of((0, 3))
        values = {"alpha": jnp.float32(scale), "beta": jnp.float32(8 * scale)}
        context = Context(now, jnp.int32(1), jax.random.key(1), values)  # the last step of the first epoch
        ends.append(jax.jit(functools.partial(method.iterate, context))(start(method, now, (0, 3)), BATCH)[0])
    assert_close(*(pool.member(1).params for pool in ends), rtol=1e-5, atol=1e-6)


def test_a_memory_of_the_training_set_needs_it_in_memory(config, toy):
    config.method = "crd"
    with pytest.raises(UserError, match=r"config.dataset='toy' is streamed, but config.method='crd' keeps something"):
        build_run(config, toy._replace(train=[1] * 90))


def test_a_strong_view():
    """Of images that may be mixed: the weak one stays, the strong one is changed, other than in another step."""
    now = setup(batch_size=8)._replace(image_shape=(8, 8, 3))
    images = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 8, 3), dtype=np.uint8)
    change = jax.jit(lambda images, seed: strengthened(Context(now, jnp.int32(0), jax.random.key(seed)), images))
    views = [np.asarray(change(images.astype(np.float32), seed)) for seed in (0, 0, 1)]
    assert all(view.dtype == np.float32 and np.array_equal(view[0], images[0]) for view in views)
    changed = (views[0][1] != images[1]).reshape(8, -1).mean(1)
    assert (changed > 0.1).sum() >= 5  # two operations in a row may be none
    np.testing.assert_array_equal(views[0], views[1])
    assert not np.array_equal(views[0][1], views[2][1])


def test_networks_without_feature_points_are_refused():
    for field, pool in {
        "teacher": ["densenet_40_12", "resnet8", "resnet8"],
        "assistants": ["resnet8", "plane4", "resnet8"],
        "student": ["resnet8", "resnet8", "mobilenet_v2"],
    }.items():
        with pytest.raises(
            UserError, match=rf"config.{field}: \w+ has no feature points, whose maps at compares; accepted"
        ):
            METHODS["at"](pool)


def test_maps_that_do_not_fit_are_refused_before_a_teacher_is_trained(config, toy, tmp_path):
    config.method, config.num_networks, config.assistants = "reviewkd", 2, "copies"
    config.teacher, config.student = "tiny_a", "resnet8"
    run = build_run(config, toy)
    with pytest.raises(UserError, match=r"config.method='reviewkd': tiny_a cannot teach resnet8: it has 4 feature"):
        plan(run, tmp_path)
