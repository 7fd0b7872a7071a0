"""The pool: which rows are whose, parts of it, and where its members start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from orc_jax import pool as pools
from orc_jax.errors import UserError
from orc_jax.models.network import Network
from orc_jax.pool import Pool, PoolSpec, Stack, StackState, make_spec
from orc_jax.testing import assert_identical, build_run
from tests.conftest import TINY
from tests.helpers import stepper_of

NETWORK = Network(init=None, train=None, predict=None)  # these tests apply none


def numbered(*architectures):
    """A pool whose arrays tell whose they are: each member's number, in all of its leaves."""
    stacks = {}
    for name in dict.fromkeys(architectures):
        members = tuple(i for i, other in enumerate(architectures) if other == name)
        stacks[name] = Stack(name, NETWORK, members)
    spec = PoolSpec(architectures, tuple(range(len(architectures))), tuple(stacks.values()))

    def leaf(stack, scale):
        return jnp.array(stack.members, jnp.float32)[:, None] * scale + jnp.zeros((1, 3))

    states = {
        name: StackState(
            params={"w": leaf(stack, 1)}, batch_stats={"mean": leaf(stack, 10)}, opt_state=leaf(stack, 100)
        )
        for name, stack in stacks.items()
    }
    return Pool(spec=spec, stacks=states)


def numbers(pool):
    """The numbers in the arrays of a pool, in member order."""
    return [int(x) for x in pool.spec.in_member_order({name: s.params["w"][:, 0] for name, s in pool.stacks.items()})]


FIVE = ("a", "b", "a", "c", "b")


def test_members_keep_their_order_whatever_their_stacks(toy, config):
    spec = build_run(config, toy).spec
    assert spec.member_names == ("0_tiny_a", "1_tiny_b", "2_tiny_a", "3_tiny_b")
    assert {stack.name: stack.members for stack in spec.stacks} == {"tiny_a": (0, 2), "tiny_b": (1, 3)}
    vector = jnp.arange(4) * 10
    np.testing.assert_array_equal(spec.in_member_order(spec.by_stack(vector)), vector)
    np.testing.assert_array_equal(spec.by_stack(vector)["tiny_b"], [10, 30])


def test_select_and_put():
    pool = numbered(*FIVE)
    students = pool.select([1, 2, 3, 4])
    assert students.spec.architectures == FIVE[1:] and students.spec.members == (1, 2, 3, 4) and students.size == 4
    assert numbers(students) == [1, 2, 3, 4]
    negative = students.replace(stacks=jax.tree.map(lambda x: -x, students.stacks))
    back = pool.put(negative)
    assert back.spec == pool.spec and numbers(back) == [0, -1, -2, -3, -4]
    assert_identical(back.stacks["a"].opt_state[:, 0], [0, -200])
    assert_identical(back.stacks["b"].batch_stats["mean"][:, 0], [-10, -40])
    assert numbers(pool) == [0, 1, 2, 3, 4]  # nothing is changed in place


@pytest.mark.parametrize("members", [[0], [1, 2, 3], [0, 3], [1, 3], [0, 1, 2, 3]])
def test_rows_of_one_stack(members):
    """Next to each other or not, at its ends or within."""
    pool = numbered(*"aaaa")
    part = pool.select(members)
    assert numbers(part) == members
    back = pool.put(part.replace(stacks=jax.tree.map(lambda x: x + 0.5, part.stacks)))
    expected = [i + 0.5 * (i in members) for i in range(4)]
    np.testing.assert_array_equal(back.stacks["a"].params["w"][:, 0], expected)


def test_a_selection_keeps_its_numbers():
    """Member 4 is member 4 wherever it is, and the rows of a part are looked up in the part."""
    pool = numbered(*FIVE)
    part = pool.select([1, 2, 4])
    again = part.select([4, 2])
    assert again.spec.members == (2, 4) and again.spec.member_names == ("2_a", "4_b") and numbers(again) == [2, 4]
    assert [float(part.member(number).params["w"][0]) for number in (1, 2, 4)] == [1.0, 2.0, 4.0]
    changed = again.replace(stacks=jax.tree.map(lambda x: x + 0.5, again.stacks))
    np.testing.assert_array_equal(part.put(changed).stacks["b"].params["w"][:, 0], [1, 4.5])
    np.testing.assert_array_equal(pool.put(part.put(changed)).stacks["b"].params["w"][:, 0], [1, 4.5])
    np.testing.assert_array_equal(pool.put(changed).stacks["a"].params["w"][:, 0], [0, 2.5])


@pytest.mark.parametrize("members", [[1], [0, 1], [-1], [5]])
def test_members_that_a_pool_does_not_hold(members):
    """Not the first row, nor the last: an error."""
    pool = numbered(*FIVE)
    alone = pool.select([0])
    with pytest.raises(ValueError, match=r"are not in this pool, which holds \(0,\)"):
        alone.select(members)
    with pytest.raises(ValueError, match="are not in this pool"):
        alone.spec.select(members)
    with pytest.raises(ValueError, match="are not in this pool"):
        alone.member(members[-1])


def test_a_part_is_put_only_where_it_belongs():
    """Member 2 is of the architecture of member 0, but it is not member 0."""
    pool = numbered(*FIVE)
    for part in ([2], [0, 2], [1]):
        with pytest.raises(ValueError, match=r"are not in this pool, which holds \(0, 3\)"):
            pool.select([0, 3]).put(pool.select(part))
    with pytest.raises(ValueError, match=r"\[1\] are not in this pool"):
        pool.select([0, 2]).with_weights({1: pool.member(1)})


def test_weights_are_replaced_and_the_optimizer_is_not():
    pool = numbered(*FIVE)
    weights = {4: pool.member(0), 0: pool.member(3)}
    changed = pool.with_weights(weights)
    assert numbers(changed) == [3, 1, 2, 3, 0]
    np.testing.assert_array_equal(changed.stacks["b"].batch_stats["mean"][:, 0], [10, 0])
    assert_identical(
        {n: s.opt_state for n, s in changed.stacks.items()}, {n: s.opt_state for n, s in pool.stacks.items()}
    )
    assert pool.with_weights({}) is pool


def test_heads_are_replaced_by_their_names():
    """Those that the pool has; members never are, nor is an optimizer."""
    one = StackState(params={"u": np.ones(2)}, batch_stats={}, opt_state="own")
    other = one.replace(params={"u": np.zeros(2)}, opt_state=())
    pool = numbered(*FIVE)
    pool = pool.replace(stacks=pool.stacks | {"head": one})
    changed = pool.with_heads({"head": other, "another": other, "a": other})
    assert changed.stacks["head"] == other.replace(opt_state="own")
    assert changed.stacks.keys() == pool.stacks.keys() and changed.stacks["a"] is pool.stacks["a"]


def test_rows_chosen_by_a_value():
    """One program takes and puts any row; the member that it gives has no number that another pool would take."""
    pool = numbered(*FIVE)
    stack = pool.spec.stacks[1]
    assert stack.name == "b"

    @jax.jit
    def negated(pool, row):
        one = pool.take_row(stack, row)
        return pool.put_row(stack, row, one.replace(stacks=jax.tree.map(lambda x: -x, one.stacks)))

    assert numbers(negated(pool, 0)) == [0, -1, 2, 3, 4]
    assert numbers(negated(pool, 1)) == [0, 1, 2, 3, -4]
    one = pool.take_row(stack, jnp.int32(1))
    assert one.size == 1 and one.spec.architectures == ("b",) and numbers(one) == [4]
    with pytest.raises(ValueError, match="are not in this pool"):
        pool.put(one)


def test_heads_are_no_members():
    """They stay with the whole pool; a part is without."""
    pool = numbered(*FIVE)
    head = StackState(params={"w": jnp.ones((1, 2))}, batch_stats={}, opt_state=())
    pool = pool.replace(stacks=pool.stacks | {"head": head})
    assert pool.heads == {"head": head.params} and pool.size == 5
    part = pool.select([0, 1])
    assert not part.heads and set(part.stacks) == {"a", "b"}
    assert pool.put(part).heads == pool.heads


def test_a_member_starts_alike_in_every_pool(toy, config):
    large = stepper_of(config, toy)
    config.num_networks, config.assistants = 3, "tiny_b"
    small = stepper_of(config, toy)
    for i in (0, 1):
        assert_identical(large.member(large.init(), i), small.member(small.init(), i))
    assert_identical(large.member(large.init(), 3), small.member(small.init(), 2))  # the target student
    first, other = (large.member(large.init(seed), 0).params["conv1.kernel"] for seed in (0, 1))
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, large.member(large.init(), 2).params["conv1.kernel"])
    assert not np.array_equal(*large.init().stacks["tiny_b"].params["conv1.kernel"])


def test_a_pool_of_one_is_the_target_student(toy, config):
    shape = {"num_classes": 3, "image_shape": (8, 8, 1)}
    (alone,) = pools.init(make_spec(["tiny_a"], TINY, **shape), 0).values()
    last = pools.init(make_spec(["tiny_b", "tiny_a"], TINY, **shape), 0)["tiny_a"]
    assert_identical(alone, last)


def test_networks_of_ones_own_that_are_not_as_they_have_to_be():
    """Of a person's own, so they are told; a fault of ours stays a fault."""

    def model(num_classes):
        raise AssertionError

    shape = {"num_classes": 3, "image_shape": (8, 8, 1)}
    with pytest.raises(UserError, match=r"mine:Net cannot be built as Model\(num_classes, \*, image_shape"):
        make_spec(["mine:Net"], {"mine:Net": model}, **shape)
    with pytest.raises(TypeError):
        make_spec(["ours"], {"ours": model}, **shape)
    tiny = TINY["tiny_a"]
    with pytest.raises(UserError, match=r"mine:Net must return \(logits \[batch, 3\] of float32, features"):
        make_spec(["mine:Net"], {"mine:Net": lambda num_classes, **given: tiny(4, **given)}, **shape)


@pytest.mark.parametrize("name", ["resnet8", "MobileNetV2"])
def test_what_the_pass_of_a_stack_keeps_by_platform(name, monkeypatch):
    """On a TPU the results of convolutions, products and sums, whose gradients are those of a pass that keeps all."""
    shape = (32, 32, 3)
    networks = []
    for kept in (pools.SAVED, {"tpu": pools.SAVED["tpu"] - {"name"}}, {}):
        monkeypatch.setattr(pools, "SAVED", kept)
        spec = make_spec((name, name), num_classes=10, image_shape=shape, platform="tpu")
        networks.append(spec.stacks[0].network)

    def passed(network, params, batch_stats, images):
        return jax.vjp(lambda params: network.train(params, batch_stats, images)[0][0], params)

    shapes = jax.eval_shape(networks[0].init, jax.random.key(0))
    images = jnp.zeros((4, *shape))
    sizes = []
    for network in networks:
        _, pullback = jax.eval_shape(lambda *args, network=network: passed(network, *args), *shapes, images)
        sizes.append(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pullback)))
    weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes[0]))
    assert sizes[0] - weights < 0.5 * (sizes[2] - weights)
    assert (sizes[1] < sizes[0]) == (name == "MobileNetV2")  # depthwise convolutions are among what is kept
    if name != "resnet8":
        return  # which takes less long to compile
    params, batch_stats = networks[0].init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), images.shape)

    @jax.jit
    def gradients(*args):
        results = [passed(network, *args) for network in (networks[0], networks[2])]
        return [pullback(logits) for logits, pullback in results]

    found, expected = gradients(params, batch_stats, images)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(abs(b).max())), found, expected
    )


def test_what_keeps_all_on_every_platform(monkeypatch):
    """Networks by themselves, and transformers."""
    monkeypatch.setattr(jax, "checkpoint", lambda *_, **__: pytest.fail("keeps less"))
    for names in (("resnet8", "resnet14"), ("deit_tiny_patch4_32",) * 2):
        make_spec(names, num_classes=10, image_shape=(32, 32, 3), platform="tpu")
    make_spec(("resnet8",) * 2, num_classes=10, image_shape=(32, 32, 3), platform="gpu")
