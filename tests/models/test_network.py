"""A model as pure functions of its parameters: their names, types and shapes, the two modes, and images of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from orc_jax.errors import UserError
from orc_jax.models import MODELS
from orc_jax.models.network import make_network, weight_shapes
from orc_jax.testing import assert_close, assert_identical
from tests.conftest import TINY

SMALL = (8, 8, 1)


def tiny(**options):
    network = compiled(make_network(TINY["tiny_a"], 3, SMALL, **options))
    return network, *network.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (4, *SMALL))


def compiled(network):
    return network._replace(
        **{name: jax.jit(getattr(network, name)) for name in ("init", "train", "predict", "module")}
    )


def test_names_are_those_of_the_pytorch_state_dicts():
    params, batch_stats = weight_shapes(make_network(MODELS["resnet8x4"], 100, (32, 32, 3)))
    # The stem of the x4 networks is 32, so their first stage has a projection shortcut too.
    assert params["conv1.kernel"].shape == (3, 3, 3, 32)
    assert params["layer1.0.downsample.0.kernel"].shape == (1, 1, 32, 64)
    assert params["layer3.0.conv2.kernel"].shape == (3, 3, 256, 256)
    assert params["fc.kernel"].shape == (256, 100)
    assert batch_stats["layer2.0.downsample.1.var"].shape == (128,)
    assert sum(x.size for x in batch_stats.values()) == 2_752  # "BN-stat floats" of the PyTorch class


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_float32_and_the_last_stage_is_a_quarter(dtype):
    network = compiled(make_network(MODELS["resnet8"], 7, (28, 20, 1), dtype))
    params, batch_stats = network.init(jax.random.key(0))
    images = jnp.ones((2, 28, 20, 1))
    (logits, features), moved = network.train(params, batch_stats, images)
    assert logits.shape == (2, 7) and logits.dtype == jnp.float32
    assert features.shape == (2, 64) and features.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((params, moved)))


def test_the_initial_weights_are_a_function_of_the_key():
    network, params, batch_stats, _ = tiny()
    assert_identical(network.init(jax.random.key(0)), (params, batch_stats))
    assert not np.array_equal(network.init(jax.random.key(1))[0]["conv1.kernel"], params["conv1.kernel"])
    assert weight_shapes(network) == jax.eval_shape(lambda: (params, batch_stats))


def test_training_moves_the_statistics_and_prediction_uses_them():
    network, params, batch_stats, images = tiny()
    trained, moved = network.train(params, batch_stats, images)
    assert moved.keys() == batch_stats.keys() == {"bn1.mean", "bn1.var"}
    assert all(not np.array_equal(moved[name], batch_stats[name]) for name in moved)
    assert_identical(network.train(params, moved, images)[0], trained)  # the statistics are those of the batch
    before, after = (network.predict(params, stats, images)[0] for stats in (batch_stats, moved))
    assert np.abs(before - after).max() > 1e-3 and np.abs(after - trained[0]).max() > 1e-3
    # Of one image alone a prediction is the same, and after many batches it is nearly that of training.
    np.testing.assert_allclose(network.predict(params, moved, images[:1])[0], after[:1], rtol=1e-4, atol=1e-6)
    for _ in range(100):
        _, moved = network.train(params, moved, images)
    assert_close(network.predict(params, moved, images), trained, rtol=0.02, atol=0.01)


def test_another_convolution():
    """The same network with JAX's own, for programs that go elsewhere."""
    calls = []

    def convolution(*args, **options):
        calls.append(options["window_strides"] if "window_strides" in options else args[2])
        return jax.lax.conv_general_dilated(*args, **{k: v for k, v in options.items() if k != "out_sharding"})

    network, params, batch_stats, images = tiny()
    other = make_network(TINY["tiny_a"], 3, SMALL, convolution=convolution)
    assert_close(other.predict(params, batch_stats, images), network.predict(params, batch_stats, images))
    assert [tuple(strides) for strides in calls] == [(1, 1), (2, 2)]


def test_statistics_over_a_mapped_axis():
    """Two devices with half of the batch each see what one sees with all of it."""
    network, params, batch_stats, images = tiny()
    mapped = make_network(TINY["tiny_a"], 3, SMALL, axis_name="devices")
    halves = images.reshape(2, 2, *SMALL)
    train = jax.jit(jax.vmap(mapped.train, in_axes=(None, None, 0), axis_name="devices"))
    (logits, _), moved = train(params, batch_stats, halves)
    (expected, _), expected_moved = network.train(params, batch_stats, images)
    assert_close(logits.reshape(4, 3), expected)
    for i in range(2):
        assert_close(jax.tree.map(lambda x, i=i: x[i], moved), expected_moved)


CLASSES = ("resnet8", "wrn_16_1", "vgg8", "plane8")


@pytest.mark.parametrize("name", CLASSES)
def test_networks_are_for_images_of_three_channels(name):
    """Of 32x32 pixels, where that matters, unless they are told otherwise."""

    def params():
        model = MODELS[name](10, dtype=jnp.float32, axis_name=None, rngs=nnx.Rngs(0))
        return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}

    assert jax.eval_shape(params) == weight_shapes(make_network(MODELS[name], 10, (32, 32, 3)))[0]


@pytest.mark.parametrize(
    ("name", "image_shape", "text"),
    [
        ("vgg8", (7, 32, 3), r"the size of the images=\(7, 32, 3\): must be at least 8x8 for a VGG"),
        ("vgg8", (32, 7, 3), "must be at least 8x8 for a VGG"),
        ("plane4", (3, 8, 3), "plane4: its 2 poolings leave nothing of images of 3x8 pixels.*at least 4x4"),
        ("plane8", (8, 8, 3), "plane8: its 4 poolings leave nothing of images of 8x8 pixels.*at least 16x16"),
    ],
)
def test_images_that_are_too_small(name, image_shape, text):
    with pytest.raises(UserError, match=text):
        make_network(MODELS[name], 100, image_shape)


def test_images_that_are_just_large_enough():
    for name, image_shape in (("vgg8", (8, 8, 3)), ("plane4", (4, 4, 3)), ("plane8", (16, 16, 3))):
        network = make_network(MODELS[name], 100, image_shape)
        shapes = jax.eval_shape(network.predict, *weight_shapes(network), jnp.zeros((2, *image_shape)))
        assert shapes[0].shape == (2, 100), name
