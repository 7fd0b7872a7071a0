"""Dropout and stochastic depth: how often, what stays, and that all else stays as it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from orc_jax.errors import UserError
from orc_jax.models import MODELS, noise
from orc_jax.models.network import make_network
from orc_jax.models.wrn import WideResNet
from orc_jax.pool import Pool
from orc_jax.step import init_stacks, init_state, make_train_step, noise_of
from orc_jax.testing import assert_devices_agree, build_run
from orc_jax.verbs import forward


@pytest.fixture(autouse=True)
def small_wrn(monkeypatch):
    """The smallest network with dropout."""
    monkeypatch.setitem(MODELS, "wrn_10_1", functools.partial(WideResNet, blocks=1, widen=1))


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def test_dropout_golden():
    """A share of the activations is 0, the others grow by as much; each sample and each layer draws by itself."""
    layer, x = noise.Dropout(), jnp.ones((64, 10, 10, 3))
    layer.rate = 0.25
    np.testing.assert_array_equal(layer(x), x)
    with noise.drawing(keys(64)):
        first, second = layer(x), layer(x)
    with noise.drawing(keys(64)):
        np.testing.assert_array_equal(layer(x), first)
    assert set(np.unique(first).tolist()) == {0.0, np.float32(1 / 0.75)}
    np.testing.assert_allclose((first == 0).mean(), 0.25, atol=4 * np.sqrt(0.25 * 0.75 / x.size))
    assert not np.array_equal(first, second) and not np.array_equal(first[0], first[1])
    with noise.drawing(keys(64)[5:]):  # a sample draws the same, whoever is in its batch
        np.testing.assert_array_equal(layer(x[5:]), first[5:])
    assert layer(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_stochastic_depth_golden():
    """Of the second of four blocks half the rate; a sample's branch stays whole or is left out whole."""
    layer, x = noise.StochasticDepth(2, 4), jnp.ones((20_000, 2, 2, 3))
    layer.rate = 0.5
    with noise.drawing(keys(len(x))):
        dropped = np.asarray(layer(x))
    assert set(np.unique(dropped).tolist()) == {0.0, np.float32(1 / 0.75)}
    assert (dropped == dropped[:, :1, :1, :1]).all()
    np.testing.assert_allclose((dropped[:, 0, 0, 0] == 0).mean(), 0.25, atol=4 * np.sqrt(0.25 * 0.75 / len(x)))


@pytest.mark.parametrize(
    ("names", "draws"),
    [
        (("wrn_16_1", "densenet_40_12", "vgg16_linears", "mobilenet_v2"), ("dropout",)),
        (("resnet8", "resnet18", "ResNet18"), ("stochastic_depth",)),
        (("deit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_100"), ("dropout", "stochastic_depth")),
        (("vgg8", "switokd_wrn_16_1", "MobileNetV2", "ShuffleV1"), ()),
    ],
)
def test_who_draws(names, draws):
    assert {name: make_network(MODELS[name], 5, (64, 64, 3)).draws for name in names} == dict.fromkeys(names, draws)


@pytest.mark.parametrize(("name", "field"), [("resnet8", "stochastic_depth"), ("wrn_10_1", "dropout")])
def test_a_pass_draws_from_its_keys(name, field):
    """Without keys, or a rate, and in evaluation it is the pass that it was."""
    shape = (8, 8, 3)
    plain, network = (make_network(MODELS[name], 5, shape, **{field: rate}) for rate in (0.0, 0.5))
    weights = plain.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (4, *shape))
    (expected, _), _ = plain.train(*weights, images)
    for same in (network.train(*weights, images), plain.train(*weights, images, keys(4))):
        np.testing.assert_array_equal(same[0][0], expected)
    np.testing.assert_array_equal(network.predict(*weights, images)[0], plain.predict(*weights, images)[0])
    (drawn, _), _ = network.train(*weights, images, keys(4))
    assert not np.array_equal(drawn, expected)


def test_blocks_are_counted_from_the_images():
    """Of a ResNet of three stages the last block of all has the whole rate."""
    network = MODELS["resnet14"](5, image_shape=(32, 32, 3), dtype=jnp.float32, axis_name=None, rngs=nnx.Rngs(0))
    shares = [block.drop.share for stage in network.stages for block in getattr(network, stage)]
    np.testing.assert_allclose(shares, np.arange(1, 7) / 6)


@pytest.fixture
def drawing(config):
    """A pool of two wide ResNets and a ResNet, two of one architecture."""
    config.teacher, config.assistants, config.student, config.num_networks = "resnet8", "wrn_10_1", "wrn_10_1", 3
    config.dropout, config.stochastic_depth, config.method, config.pretrain_epochs = 0.3, 0.5, "orc", 0
    return config


def test_a_run_draws_by_seed_step_member_and_sample(drawing, toy):
    run = build_run(drawing, toy, axis_name=None)
    setup, state = run.setup, jax.eval_shape(lambda: init_state(run.setup, run.method, 0))
    batch = jax.tree.map(lambda x: x[:4], toy.train)
    drawn = str(jax.make_jaxpr(make_train_step(setup, run.method.iterate))(state, None, batch))
    quiet = str(jax.make_jaxpr(make_train_step(setup._replace(draws=False), run.method.iterate))(state, None, batch))
    assert drawn.count("random_bits") > quiet.count("random_bits")
    first, later, other = (
        noise_of(setup, np.uint32(seed), np.int32(step), 4)["wrn_10_1"] for seed, step in ((3, 0), (3, 1), (4, 0))
    )
    assert first.shape == (2, 4, 2) and len({bits.tobytes() for bits in np.asarray(first).reshape(-1, 2)}) == 8
    assert not np.array_equal(first, later) and not np.array_equal(first, other)


def test_a_member_draws_the_same_wherever_it_is(drawing, toy):
    """Alone, in the row of a stack, and in a second look at a larger batch."""
    drawing.method, drawing.teacher, drawing.stochastic_depth = "independent", "wrn_10_1", 0.0
    run = build_run(drawing, toy, axis_name=None)
    noise_now = noise_of(run.setup, np.uint32(3), np.int32(0), 4)
    pool = Pool(spec=run.spec, stacks=init_stacks(run.setup, run.method, 0), noise=noise_now)
    images = jax.random.normal(jax.random.key(1), (4, *toy.image_shape))
    look = jax.jit(lambda pool, images: forward(pool, images).logits)
    whole = look(pool, images)
    (stack,) = pool.spec.stacks
    for one in (pool.select([2]), pool.take_row(stack, jnp.int32(2))):
        np.testing.assert_allclose(look(one, images)[0], whole[2], rtol=1e-5, atol=1e-5)
    plain = look(pool.replace(noise={}), images)
    assert not any(np.array_equal(a, b) for a, b in zip(whole, plain, strict=True))
    twice = look(pool, jnp.concatenate([images, images]))
    np.testing.assert_allclose(twice[:, :4], twice[:, 4:], rtol=1e-5, atol=1e-5)


def test_one_device_equals_four(drawing, toy):
    drawing.update(method="independent", teacher="wrn_10_1", num_networks=2, stochastic_depth=0.0, batch_size=16)
    drawing.assistants = ""
    assert_devices_agree(drawing, toy)


@pytest.mark.parametrize(("field", "teacher"), [("dropout", "resnet8"), ("stochastic_depth", "wrn_10_1")])
def test_a_pool_without_such_layers_is_refused(field, teacher, config, toy):
    config.teacher = config.student = teacher
    config.assistants, config[field] = "copies", 0.2
    with pytest.raises(UserError, match=rf"config\.{field}=0\.2: none of {teacher} has such layers; accepted is 0\.0"):
        build_run(config, toy)
