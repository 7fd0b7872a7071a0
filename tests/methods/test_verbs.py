"""The verbs that methods are written with, on networks so small that the gradient of all of it can be written down."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax import optim
from orc_jax.data.augment import none
from orc_jax.models.network import Network
from orc_jax.pool import Pool, PoolSpec, Stack
from orc_jax.testing import assert_close, assert_identical
from orc_jax.verbs import Context, Setup, forward, forward_in_turn, learn, learn_and_look, new_stack, predict

MEMBERS = ("a", "b", "a")
SHAPE = (2, 1, 1)
PIXELS, DIM, CLASSES = 2, 3, 4
MOMENTUM, DECAY = 0.9, 0.1
RATES = jnp.array([1.0, 0.5, 0.25])  # by step


def network(act):
    """Features `act(x v)`, logits `features w`. Training moves "mean" towards the mean of the features."""

    def outputs(params, images):
        features = act(images.reshape(len(images), PIXELS) @ params["v"])
        return features @ params["w"], features

    def train(params, batch_stats, images):
        logits, features = outputs(params, images)
        return (logits, features), {"mean": 0.5 * batch_stats["mean"] + 0.5 * features.mean(0)}

    def predict(params, batch_stats, images):
        logits, features = outputs(params, images)
        return logits + batch_stats["mean"].sum(), features

    return Network(init=None, train=train, predict=predict)


NETWORKS = {"a": network(jnp.tanh), "b": network(jnp.sin)}


def setup(**fields):
    members = {name: tuple(i for i, other in enumerate(MEMBERS) if other == name) for name in NETWORKS}
    stacks = tuple(Stack(name, NETWORKS[name], members[name]) for name in NETWORKS)
    return Setup(
        **{
            "spec": PoolSpec(MEMBERS, (0, 1, 2), stacks),
            "image_shape": SHAPE,
            "optimizer": optim.sgd_direction(MOMENTUM, False, DECAY),
            "learning_rate": lambda step: RATES[step],
            "lr_multipliers": {},
            "augment": none,
            "mean": (0.5,),
            "std": (0.25,),
            "views": 1,
            "num_steps": 4,
            "axis_name": None,
        }
        | fields
    )


def context(step=0, **fields):
    return Context(setup(**fields), jnp.int32(step), jax.random.key(0))


def normal(seed, *shape):
    return jnp.array(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def pool_of(setup):
    """With a head, `[1, CLASSES]`, and momentum that has built up."""
    stacks = {}
    for i, (name, count) in enumerate((("a", 2), ("b", 1))):
        params = {"v": normal(i, count, PIXELS, DIM), "w": normal(i + 5, count, DIM, CLASSES)}
        stacks[name] = new_stack(setup, params, {"mean": normal(i + 7, count, DIM)})
    stacks["head"] = new_stack(setup, {"u": normal(9, 1, CLASSES)}, {})
    moved = {name: s.replace(opt_state=jax.tree.map(lambda x: x + 0.1, s.opt_state)) for name, s in stacks.items()}
    return Pool(spec=setup.spec, stacks=moved)


IMAGES = normal(11, 6, *SHAPE)


def loss(out):
    """One for each member, which uses logits and features, of its own alone, and the head."""
    of_logits = jnp.square(out.logits + out.heads["head"]["u"][None]).mean(-1)
    a, b = (jnp.square(out.features[name]).sum(-1) for name in ("a", "b"))
    return of_logits + jnp.stack([a[0], b[0], a[1]])


def gradients_by_hand(pool, images=IMAGES, share=lambda x: x):
    """Of the sum over members of the means over the batch."""

    def total(params):
        outputs = {
            name: jax.vmap(lambda p, name=name: NETWORKS[name].train(p, {"mean": jnp.zeros(DIM)}, images)[0])(
                params[name]
            )
            for name in NETWORKS
        }
        (za, ha), (zb, hb) = outputs["a"], outputs["b"]
        out = SimpleNamespace(
            logits=jnp.stack([za[0], zb[0], za[1]]), features={"a": ha, "b": hb}, heads={"head": params["head"]}
        )
        return loss(out).mean(-1).sum()

    return share(jax.jit(jax.grad(total))({name: s.params for name, s in pool.stacks.items()}))


def stepped(state, grads, rate):
    """PyTorch's SGD: parameters and momentum."""
    (_, trace) = state.opt_state
    buffers = {k: MOMENTUM * trace.trace[k] + g + DECAY * state.params[k] for k, g in grads.items()}
    return {k: state.params[k] - rate * buffers[k] for k in grads}, buffers


def assert_stepped(after, before, grads, rates):
    """Every stack has taken a step of its rate."""
    for name, state in after.stacks.items():
        params, buffers = stepped(before.stacks[name], grads[name], rates[name])
        assert_close((state.params, state.opt_state[1].trace), (params, buffers), rtol=1e-5, atol=1e-6)


def test_only_some_parameters_learn():
    """Of a stack that is named; the others stay bit for bit, though they would decay. All of other stacks learn."""
    now = context(0)
    pool = pool_of(now.setup)
    step = jax.jit(lambda pool: [learn(now, forward(pool, IMAGES), loss, only=only) for only in ({"a": {"v"}}, {})])
    after, every = step(pool)
    np.testing.assert_array_equal(after.stacks["a"].params["w"], pool.stacks["a"].params["w"])
    assert (every.stacks["a"].params["w"] != pool.stacks["a"].params["w"]).all()
    np.testing.assert_array_equal(after.stacks["a"].params["v"], every.stacks["a"].params["v"])
    assert_identical([after.stacks[name] for name in ("b", "head")], [every.stacks[name] for name in ("b", "head")])


def test_a_pass_over_views_in_turn():
    """The gradient is that of all samples; statistics move with one view after the other."""
    now, views = context(2), jnp.stack([IMAGES, normal(12, 6, *SHAPE)])
    pool = pool_of(now.setup)
    step = jax.jit(lambda pool: (passed := forward_in_turn(pool, views), learn(now, passed, loss)))
    passed, after = step(pool)
    one = jax.jit(forward)
    assert_close(passed.logits, np.concatenate([one(pool, x).logits for x in views], 1))
    grads = jax.tree.map(lambda *x: sum(x) / 2, *(gradients_by_hand(pool, x) for x in views))
    assert_stepped(after, pool, grads, dict.fromkeys(after.stacks, float(RATES[2])))
    for name in ("a", "b"):
        first, second = (one(pool, x).outputs.features[name].mean(1) for x in views)
        expected = 0.25 * pool.stacks[name].batch_stats["mean"] + 0.25 * first + 0.5 * second
        assert_close(after.stacks[name].batch_stats["mean"], expected)


@pytest.mark.parametrize("step", [0, 2])
def test_everyone_takes_the_step_of_its_own_loss(step):
    """The rate is that of the step, times that of the architecture, times that of the update; heads have no own."""
    now = context(step, lr_multipliers={"a": 0.5, "b": 2.0})
    pool = pool_of(now.setup)
    grads, rate = gradients_by_hand(pool), float(RATES[step])
    after = learn(now, forward(pool, IMAGES), loss)
    assert_stepped(after, pool, grads, {"a": 0.5 * rate, "b": 2.0 * rate, "head": rate})
    after = learn(now, forward(pool, IMAGES), loss, lr_multiplier=0.1)
    assert_stepped(after, pool, grads, {"a": 0.05 * rate, "b": 0.2 * rate, "head": 0.1 * rate})


def test_a_pass_moves_the_statistics_once_it_is_learnt_from():
    now = context()
    pool = pool_of(now.setup)
    passed = forward(pool, IMAGES)
    assert passed.pool is pool and passed.logits is passed.outputs.logits
    expected = {
        name: 0.5 * pool.stacks[name].batch_stats["mean"] + 0.5 * passed.outputs.features[name].mean(1) for name in "ab"
    }
    after = learn(now, passed, loss)
    assert_close({name: after.stacks[name].batch_stats["mean"] for name in "ab"}, expected)
    assert after.stacks["head"].batch_stats == {}


@pytest.mark.parametrize("pauses", [True, False])
def test_members_that_do_not_learn(pauses):
    """They keep parameters and momentum bit for bit, and statistics if these pause as well; heads always learn."""
    now = context()
    pool = pool_of(now.setup)
    passed = forward(pool, IMAGES)
    everyone = learn(now, passed, loss)
    learns = jnp.array([True, False, False])
    some = learn(now, passed, loss, learns=learns, pauses_statistics=pauses)
    for i, learnt in enumerate(learns):
        before, after, free = (x.member(i) for x in (pool, some, everyone))
        expected = free if learnt else before
        assert_identical((after.params, after.opt_state), (expected.params, expected.opt_state))
        assert_identical(after.batch_stats, (before if pauses and not learnt else free).batch_stats)
    assert_identical(some.stacks["head"], everyone.stacks["head"])
    default = learn(now, passed, loss, learns=learns)
    assert_identical(default, learn(now, passed, loss, learns=learns, pauses_statistics=True))


def test_shared_gradients():
    """What they share comes before momentum and decay, and sees heads too."""
    now, seen = context(), []
    pool = pool_of(now.setup)

    def share(grads):
        seen.append({name: set(tree) for name, tree in grads.items()})
        summed = jnp.broadcast_to(grads["a"]["v"].sum(0, keepdims=True), grads["a"]["v"].shape)
        return grads | {"a": grads["a"] | {"v": summed}}

    after = learn(now, forward(pool, IMAGES), loss, share=share)
    assert seen == [{"a": {"v", "w"}, "b": {"v", "w"}, "head": {"u"}}]
    assert_stepped(after, pool, gradients_by_hand(pool, share=share), dict.fromkeys(after.stacks, RATES[0]))


def test_gradients_are_averaged_over_devices():
    """Before they are shared: two devices with half of the batch each take the step of one with all of it."""
    one, many = context(), context(axis_name="devices")
    pool = pool_of(one.setup)
    squared = lambda grads: jax.tree.map(jnp.square, grads)  # noqa: E731
    step = lambda now, images: learn(now, forward(pool, images), loss, share=squared).stacks  # noqa: E731
    expected = jax.jit(lambda images: step(one, images))(IMAGES)
    of_devices = jax.vmap(lambda images: step(many, images), axis_name="devices")
    stacks = jax.jit(of_devices)(IMAGES.reshape(2, 3, *SHAPE))
    for i in range(2):
        for name, state in stacks.items():
            ours = jax.tree.map(lambda x, i=i: x[i], (state.params, state.opt_state))
            assert_close(ours, (expected[name].params, expected[name].opt_state))


def test_every_member_has_its_view():
    pool = pool_of(setup())
    views = normal(12, 3, 6, *SHAPE)
    for verb in (forward, predict):
        together = verb(pool, views)
        for i in range(3):
            alone = verb(pool, views[i])
            assert_close(together.logits[i], alone.logits[i], rtol=1e-6)
        assert not np.allclose(together.logits[0], verb(pool, views[1]).logits[0])


def test_predictions_are_in_evaluation_mode_and_in_member_order():
    pool = pool_of(setup())
    outputs = predict(pool, IMAGES)
    for i, name in enumerate(MEMBERS):
        member = pool.member(i)
        logits, features = NETWORKS[name].predict(member.params, member.batch_stats, IMAGES)
        assert_close(outputs.logits[i], logits, rtol=1e-6)
        assert_close(outputs.features[name][i // 2 if name == "a" else 0], features, rtol=1e-6)
        assert not np.allclose(outputs.logits[i], forward(pool, IMAGES).logits[i])  # which has the batch's statistics
    assert_identical(outputs.heads, {"head": pool.stacks["head"].params})


def own_loss(out, member):
    """Of one member; its position makes a difference."""
    return (1.0 + member) * jnp.square(out.logits).mean(-1)


def all_losses(out):
    return jnp.arange(1.0, 4.0)[:, None] * jnp.square(out.logits).mean(-1)


@pytest.mark.parametrize("chosen", [[False, False, True], [True, True, False], [True, True, True]])
def test_the_chosen_learn_and_look_again(chosen):
    """At other images; in member order, with what they have learnt, and their statistics have moved once."""
    now, chosen, others = context(), jnp.array(chosen), normal(13, 5, *SHAPE)
    students = pool_of(now.setup).select([0, 1, 2])
    passed = forward(students, IMAGES)
    expected = learn(now, passed, all_losses, learns=chosen)
    count = int(chosen.sum())
    after, logits = jax.jit(lambda: learn_and_look(now, passed, chosen, count, own_loss, others))()
    assert_close(after.stacks, expected.stacks, rtol=1e-5, atol=1e-6)
    assert_close(logits, forward(expected, others).logits[np.flatnonzero(chosen)], rtol=1e-5, atol=1e-6)


def test_members_of_a_part_of_the_pool():
    """Positions are those in the part: of members 1 and 2 member 2 is the second."""
    now = context()
    students = pool_of(now.setup).select([1, 2])
    passed = forward(students, IMAGES)
    expected = learn(now, passed, lambda out: jnp.array([1.0, 2.0])[:, None] * jnp.square(out.logits).mean(-1))
    everyone = jnp.ones(2, bool)
    after, logits = learn_and_look(now, passed, everyone, 2, own_loss, IMAGES)
    assert_close(after.stacks, expected.stacks, rtol=1e-5, atol=1e-6)
    assert_close(logits, forward(expected, IMAGES).logits, rtol=1e-5, atol=1e-6)


def test_what_a_method_sees_of_its_iteration():
    now = context(step=1)
    assert now.progress == 0.25
    images = jnp.array([0, 51, 255, 102], jnp.uint8).reshape(2, *SHAPE)
    np.testing.assert_allclose(now.normalize(images).ravel(), [-2.0, -1.2, 2.0, -0.4], rtol=1e-5)
    x = jnp.arange(6.0)
    assert_identical((now.mean(x), now.gather(x), now.local(x, 6)), (x, x, x))


def test_what_devices_see_of_each_other():
    now, x = context(axis_name="devices"), jnp.arange(12.0).reshape(2, 3, 2)  # [devices, batch, ...]
    over = lambda f: jax.vmap(f, axis_name="devices")(x)  # noqa: E731
    assert_identical(over(now.mean), jnp.stack([x.mean(0)] * 2))
    assert_identical(over(now.gather), jnp.stack([x.reshape(6, 2)] * 2))
    assert_identical(over(lambda x: now.gather(x, axis=1)), jnp.stack([jnp.concatenate(list(x), axis=1)] * 2))
    assert_identical(over(lambda x: now.local(now.gather(x), 3)), x)
